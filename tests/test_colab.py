"The lessons on Colab: what it ships is not moved, and they run from top to bottom."
import json, os, re, shutil, subprocess, sys, venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
import nbformat, pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'docs'))
from colab import with_cell
from readme import pages, settings

CFG = settings()
LESSONS = pages()
SHIPPED = ['fastcore>=2', 'ipywidgets==7.7.1', 'ipython==7.34.0']   # where Colab is ahead of us, or behind
RUN = ['03_measure', 'behind_widgets']   # pictures and widgets

def sources(path:Path)->list[str]: return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code']

def test_first_cells_are_current():
    p = subprocess.run([sys.executable, ROOT/'docs'/'colab.py', '--check'], capture_output=True, text=True)
    assert p.returncode==0, p.stderr

@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_first_cell(path):
    first = sources(path)[0]
    order = [f"'{CFG['lib_name']}=={CFG['version']}'", f"'git+{CFG['git_url']}@v{CFG['version']}'", f"'git+{CFG['git_url']}'"]
    assert ', '.join(order) in first and 'GPU' in first

NEEDLESS,USED = ('01_people', '04_translate', '06_together', 'behind_checkpoint'), ('08_settings', 'behind_joint', 'behind_evaluation', 'behind_reproduce', 'behind_viewer', 'behind_cli')
@pytest.mark.parametrize('name, uses', [(n, n in USED) for n in (*NEEDLESS, *USED)])
def test_what_is_said_of_a_gpu(name, uses):
    first = next(c for c in with_cell(nbformat.read(ROOT/'nbs'/f'{name}.ipynb', 4)) if c.cell_type=='code').source
    assert ('this lesson computes on it' in first, 'does not use it' in first)==(uses, not uses)

@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_no_lesson_needs_nbdev(path):
    assert not [s for s in sources(path) if re.search(r'^\s*(?:import|from)\s+(?:nbdev|execnb|ghapi)\b', s, flags=re.M)]

def find(name:str):
    try: return distribution(name)
    except PackageNotFoundError: return None

def needed(names, but=())->set[str]:
    "Distributions that `names` need here, and those that they need, and so on."
    seen,todo = set(), [Requirement(n) for n in names]
    while todo:
        r = todo.pop()
        if str(r) in seen or r.name in but: continue
        seen.add(str(r))
        here = find(r.name)   # None: for another platform
        todo += [q for q in map(Requirement, here and here.requires or []) if not q.marker or any(q.marker.evaluate({'extra': e}) for e in ('', *r.extras))]
    return {n for n in (Requirement(s).name for s in seen) if find(n)}

@pytest.fixture(scope='module')
def colab(tmp_path_factory):
    "Run a command in an environment like Colab's: big packages are borrowed from this one by links, the rest is installed. Ours lies in a wheel beside it."
    tmp = tmp_path_factory.mktemp('colab')
    (lent := tmp/'lent').mkdir()
    for name in needed(CFG['requirements'].split(), but=[Requirement(s).name for s in SHIPPED]):
        for top in {f.parts[0] for f in distribution(name).files}-{'..', '__pycache__'}:
            if not (lent/top).exists(): (lent/top).symlink_to(distribution(name).locate_file(top))
    venv.create(tmp/'venv', with_pip=True, upgrade_deps=True)   # an old setuptools would hide the lent one
    python = tmp/'venv'/'bin'/'python'
    env = {k: v for k,v in os.environ.items() if k not in ('PYTHONPATH', 'MPLBACKEND')} | dict(PIP_DISABLE_PIP_VERSION_CHECK='1')
    def run(*args, **more):
        p = subprocess.run([python, '-m', *args], cwd=tmp, env=env|more, capture_output=True, text=True, timeout=900)
        assert p.returncode==0, p.stderr[-4000:]
        return p.stdout
    site_packages = Path(subprocess.check_output([python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], text=True).strip())
    (site_packages/'lent.pth').write_text(f'{lent}\n')
    run('pip', 'install', '-q', *SHIPPED, 'ipykernel', 'nbconvert')
    run('pip', 'wheel', '-q', '--no-deps', '-w', str(tmp/'dist'), str(ROOT))
    run.wheel = next((tmp/'dist').glob('*.whl'))
    return run

@pytest.mark.full
def test_nothing_is_moved(colab):
    "pip would install our wheel and leave everything else as it is."
    report = json.loads(colab('pip', 'install', '-q', '--dry-run', '--report', '-', str(colab.wheel)))
    assert [i['metadata']['name'] for i in report['install']]==[CFG['lib_name']]

def execute(colab, path:Path, **env)->nbformat.NotebookNode:
    "Run a notebook where it lies, from top to bottom, and read what came of it."
    done = path.with_name('done.ipynb')
    colab('nbconvert', '--to', 'notebook', '--execute', '--output', done.stem, str(path), PIP_NO_INDEX='1', OMP_NUM_THREADS='1', **env)
    return nbformat.read(done, 4)

@pytest.mark.full
@pytest.mark.parametrize('tagged', [True, False], ids=['tag', 'branch'])
def test_without_a_release(colab, tmp_path, tagged):
    "The first cell takes the repository's tag, and the branch where there is no tag. (git is led to a copy of this repository.)"
    if not (ROOT/'.git').exists(): pytest.skip('not a clone of the repository')
    repo,tag = tmp_path/'repo', f"v{CFG['version']}"
    def git(*args, check=True): subprocess.run(['git', *map(str, args)], check=check, capture_output=True)
    git('clone', '--bare', ROOT, repo)
    git('-C', repo, 'tag', '-d', tag, check=False)
    if tagged: git('-C', repo, 'tag', tag)
    first = sources(ROOT/'nbs'/'04_translate.ipynb')[0]
    ask = f"from importlib.metadata import distribution\nprint(source)\nprint(distribution({CFG['lib_name']!r}).read_text('direct_url.json'))"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (first, ask)]), tmp_path/'lesson.ipynb')
    done = execute(colab, tmp_path/'lesson.ipynb', PIP_NO_BUILD_ISOLATION='0', GIT_CONFIG_COUNT='1', GIT_CONFIG_KEY_0=f'url.file://{repo}.insteadOf', GIT_CONFIG_VALUE_0=CFG['git_url'])
    last,origin = done.cells[1].outputs[0].text.split('\n', 1)
    origin = json.loads(origin)
    colab('pip', 'uninstall', '-q', '-y', CFG['lib_name'])
    assert last==f"git+{CFG['git_url']}"+f'@{tag}'*tagged   # and none after it
    assert (origin['url'], origin['vcs_info'].get('requested_revision'))==(CFG['git_url'], tag if tagged else None)

@pytest.mark.full
def test_lessons_run(colab, tmp_path):
    "Top to bottom, with every cell, in a folder that holds nothing else; the first installs the package, the others find it."
    assert CFG['lib_name'] not in [p['name'] for p in json.loads(colab('pip', 'list', '--format', 'json'))]
    for name in RUN:
        (alone := tmp_path/name).mkdir()
        nb = execute(colab, Path(shutil.copy(ROOT/'nbs'/f'{name}.ipynb', alone)), PIP_FIND_LINKS=str(colab.wheel.parent))
        outputs = [o for c in nb.cells for o in c.get('outputs', [])]
        assert any('No GPU' in o.get('text', '') or ' found, ' in o.get('text', '') for o in outputs)
        if name=='behind_widgets': assert any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for o in outputs)
    versions = {p['name']: p['version'] for p in json.loads(colab('pip', 'list', '--format', 'json'))}
    assert (versions[CFG['lib_name']], versions['ipywidgets'], 'nbdev' in versions)==(CFG['version'], '7.7.1', False)
