"Every notebook runs from top to bottom, in nbdev's own test runner, as a test named after it."
import multiprocessing, os
from pathlib import Path
import nbformat, pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('[!._]*.ipynb'))
COURSE = [p for p in NOTEBOOKS if p.stem[0].isdigit()]   # test_lessons runs them: a file is a worker's, and these take long
QUICK = 'behind_files', '03_measure', 'behind_upgradation', 'behind_tables', 'behind_widgets', 'index'   # one of each kind: files, pictures, a rule, numbers, widgets, prose

APART = multiprocessing.get_context('forkserver')   # each in a fresh process, born with what takes seconds to import
APART.set_forkserver_preload(['torch', 'torchvision', 'accelerate', 'pandas', 'skimage.metrics', 'matplotlib.pyplot', 'ipywidgets', 'nbdev.test'])

def in_this_process(notebook:Path, said:Path):
    "Run one notebook as `nbdev_test` does; what it says goes into a file."
    file = os.open(said, os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
    for stream in (1, 2): os.dup2(file, stream)
    os.chdir(ROOT)
    import matplotlib
    from nbdev.test import nbdev_test
    matplotlib.use('Agg')
    nbdev_test(path=str(notebook), n_workers=0)

def run(notebook:Path, said:Path)->tuple[bool,str]:
    "Run one notebook; did it pass, and what did it say?"
    p = APART.Process(target=in_this_process, args=(notebook, said))
    p.start()
    p.join(1800)
    if p.is_alive(): p.kill(); p.join()
    text = said.read_text(encoding='utf-8', errors='replace') if said.is_file() else ''
    return p.exitcode==0 and 'Success.' in text, f'{text}\nexit code {p.exitcode}'   # with nothing to test it is silent, and exits with 0

def each(notebooks:list[Path]):
    return pytest.mark.parametrize('notebook', [pytest.param(p, id=p.stem, marks=() if p.stem in QUICK else pytest.mark.full) for p in notebooks])

def check(notebook:Path, tmp_path:Path):
    passed,said = run(notebook, tmp_path/'said.txt')
    if not passed: pytest.fail(f'{notebook.name}\n'+'\n'.join(said.splitlines()[-40:]), pytrace=False)

@each([p for p in NOTEBOOKS if p not in COURSE])
def test_notebook(notebook, tmp_path): check(notebook, tmp_path)

@pytest.mark.parametrize('cell, told', [('assert 1+1==3', 'AssertionError'), ('import os; os._exit(7)', 'exit code 7')])
def test_a_notebook_that_fails_is_told(tmp_path, cell, told):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), tmp_path/'bad.ipynb')
    passed,said = run(tmp_path/'bad.ipynb', tmp_path/'said.txt')
    assert not passed and told in said
