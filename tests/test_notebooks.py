"Every notebook runs from top to bottom, in nbdev's own test runner, as a test named after it."
import os, subprocess, sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('[!._]*.ipynb'))
RUNNER = Path(sysconfig.get_path('scripts'))/'nbdev_test'   # called from `python -c`, nbdev_test would not read its arguments

def run(notebook:Path, threads:int)->tuple[bool,str]:
    "Run one notebook; did it pass, and what did it say?"
    env = os.environ | {'MPLBACKEND': 'Agg'} | ({'OMP_NUM_THREADS': str(threads)} if threads else {})
    p = subprocess.run([RUNNER, '--path', notebook], cwd=ROOT, env=env, timeout=1800,
                       text=True, encoding='utf-8', errors='replace', stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return p.returncode==0 and 'Success.' in p.stdout, p.stdout   # with nothing to test it is silent, and exits with 0

@pytest.fixture(scope='module')
def results(request):
    "Notebook -> its future. The first test to ask starts all notebooks that were selected, and no other."
    selected = [i.callspec.params['notebook'] for i in request.session.items if getattr(i, 'originalname', '')=='test_notebook']
    workers = os.cpu_count() or 1
    threads = 1 if min(workers, len(selected))>1 else 0   # side by side, each with all cores, they would only disturb each other
    pool = ThreadPoolExecutor(workers)
    yield {nb: pool.submit(run, nb, threads) for nb in selected}
    pool.shutdown(cancel_futures=True)

@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(notebook, results):
    passed,said = results[notebook].result()
    if not passed: pytest.fail(f'{notebook.name}\n'+'\n'.join(said.splitlines()[-40:]), pytrace=False)
