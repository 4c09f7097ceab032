"Every notebook runs from top to bottom, in nbdev's own test runner, as a test named after it."
import os, subprocess, sysconfig
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('[!._]*.ipynb'))
COURSE = [p for p in NOTEBOOKS if p.stem[0].isdigit()]   # test_lessons runs them: a file is a worker's, and these take long
RUNNER = Path(sysconfig.get_path('scripts'))/'nbdev_test'   # called from `python -c`, nbdev_test would not read its arguments
QUICK = 'behind_files', '02_hide', 'behind_upgradation', 'behind_tables', 'behind_widgets', 'index'   # one of each kind: files, pictures, a rule, numbers, widgets, prose

def run(notebook:Path)->tuple[bool,str]:
    "Run one notebook; did it pass, and what did it say?"
    p = subprocess.run([RUNNER, '--path', notebook], cwd=ROOT, env=os.environ|dict(MPLBACKEND='Agg'), timeout=1800,
                       text=True, encoding='utf-8', errors='replace', stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return p.returncode==0 and 'Success.' in p.stdout, p.stdout   # with nothing to test it is silent, and exits with 0

def each(notebooks:list[Path]):
    return pytest.mark.parametrize('notebook', [pytest.param(p, id=p.stem, marks=() if p.stem in QUICK else pytest.mark.full) for p in notebooks])

def check(notebook:Path):
    passed,said = run(notebook)
    if not passed: pytest.fail(f'{notebook.name}\n'+'\n'.join(said.splitlines()[-40:]), pytrace=False)

@each([p for p in NOTEBOOKS if p not in COURSE])
def test_notebook(notebook): check(notebook)
