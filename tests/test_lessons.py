"Every lesson of the course runs from top to bottom, as the other notebooks do."
from test_notebooks import COURSE, check, each

@each(COURSE)
def test_lesson(notebook, tmp_path): check(notebook, tmp_path)
