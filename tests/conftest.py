"What the tests share: a cache of their own, one thread, `--all`, one-line messages, a tiny Market-1501, a browser, the site."
import atexit, importlib.util, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path
# Before anything is imported, and for subprocesses too. Two threads on a busy two-core machine wait for each other at every small operation: 50 times slower.
os.environ |= dict(PRIVREID_CACHE=tempfile.mkdtemp(prefix='privreid-test-'), OMP_NUM_THREADS='1')
atexit.register(shutil.rmtree, os.environ['PRIVREID_CACHE'], ignore_errors=True)

import pytest
from filelock import FileLock
from hypothesis import settings
from PIL import Image
from privreid.data import SyntheticPedestrians

def pytest_addoption(parser): parser.addoption('--all', action='store_true', help='run what takes long, too: tests that are marked full')

LONG = 'site', 'lessons', 'notebooks', 'colab', 'resume', 'deploy', 'gpu_script'   # a file is one worker's: what takes minutes begins first, or the others wait for it in the end

def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda i: LONG.index(n) if (n := i.path.stem[5:]) in LONG else len(LONG))
    if config.getoption('--all'): return
    for item in items:
        if item.get_closest_marker('full'): item.add_marker(pytest.mark.skip(reason='takes long: pytest --all runs it'))

settings.register_profile('privreid', deadline=None, derandomize=True, database=None, max_examples=30)
settings.load_profile('privreid')

@pytest.fixture
def one_line():
    "Check that a message is a single line that names everything it should."
    def check(message, *names):
        message = str(message)
        assert message.strip() and '\n' not in message
        for n in names: assert str(n) in message, f'{n!r} is not named in: {message}'
    return check

@pytest.fixture
def tiny_market(tmp_path):
    "A factory of folders in Market-1501's layout, filled with synthetic pedestrians; returns the root."
    def make(train=5, test=3, cameras=2, per_camera=3, size=(64,32), oddities=True, name='market'):
        root,people = tmp_path/name, SyntheticPedestrians(size=size, seed=7)
        def put(folder, rows, pid=None, suffix='.jpg'):
            (root/folder).mkdir(parents=True, exist_ok=True)
            if not rows: return
            for (p,c,s),im in zip(rows, people.split(rows).images):
                path = root/folder/f'{p if pid is None else pid:04d}_c{c+1}s1_{s:06d}_00{suffix}'
                Image.fromarray(im.permute(1,2,0).numpy()).save(path, format='jpeg', quality=95, subsampling=0)
        def rows(first, n, shots): return [(p,c,s) for p in range(first, first+n) for c in range(cameras) for s in shots]
        put('bounding_box_train', rows(1, train, range(per_camera)))
        put('query', rows(train+1, test, [0]))
        put('bounding_box_test', rows(train+1, test, range(1, per_camera)))
        if oddities:
            put('bounding_box_test', [(900,0,0)], pid=0)                  # a distractor
            put('bounding_box_test', [(901,0,1)], pid=-1)                 # junk: named -001_c1…
            (root/'bounding_box_test'/'-001_c1s1_000001_00.jpg').rename(root/'bounding_box_test'/'-1_c1s1_000001_00.jpg')
            put('bounding_box_test', [(train+1,1,90)], suffix='.jpg.jpg') # as in the real archive
            for folder in ('bounding_box_train', 'bounding_box_test'): (root/folder/'Thumbs.db').write_bytes(b'\xd0\xcf\x11\xe0')
        return root
    return make

@pytest.fixture(scope='session')
def missing():
    "Skip on somebody's laptop, fail where everything must be checked."
    return pytest.fail if os.environ.get('CI') else pytest.skip

@pytest.fixture(scope='session')
def chromium(missing)->str:
    "The path of a browser."
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None) or missing('this test looks with Chromium, and there is none: apt-get install chromium')

@pytest.fixture(scope='session')
def browser(chromium, missing):
    "One browser for all tests: Playwright starts once in a process."
    if not importlib.util.find_spec('playwright'): missing("Chromium is driven by Playwright: pip install -e '.[dev]'")
    from playwright.sync_api import expect, sync_playwright
    expect.set_options(timeout=60_000)   # milliseconds: a busy machine is no error
    with sync_playwright() as p:
        with p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-dev-shm-usage']) as browser: yield browser

@pytest.fixture(scope='session')
def site(tmp_path_factory, missing)->Path:
    "The site, built as docs/README.md says, with a proxy that leads nowhere."
    if not all(map(importlib.util.find_spec, ('sphinx', 'myst_nb', 'sphinx_book_theme'))): missing("the site needs Sphinx: pip install -e '.[docs]'")
    root,tmp = Path(__file__).resolve().parent.parent, tmp_path_factory.getbasetemp()/'site'
    if 'PYTEST_XDIST_WORKER' in os.environ: tmp = tmp_path_factory.getbasetemp().parent/'site'   # one for all workers
    command = re.search(r'^sphinx-build (.*) -d \S+ nbs _site$', (root/'docs'/'README.md').read_text(encoding='utf-8'), flags=re.M)[1].split()
    env = os.environ | {k: 'http://127.0.0.1:9' for k in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY')}
    with FileLock(f'{tmp}.lock'):
        if not (said := tmp.with_suffix('.txt')).exists():
            p = subprocess.run([sys.executable, '-m', 'sphinx', '-q', *command, '-d', tmp/'doctrees', 'nbs', tmp/'html'], cwd=root, env=env, capture_output=True, text=True)
            said.write_text(p.stderr[-4000:] if p.returncode else '', encoding='utf-8')
    assert not said.read_text(encoding='utf-8'), said.read_text(encoding='utf-8')
    return tmp/'html'
