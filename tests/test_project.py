"What holds for the repository as a whole."
import ast, json, re, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'docs'))
from readme import settings

NOTEBOOKS = sorted((ROOT/'nbs').glob('[!._]*.ipynb'))
MODULES = sorted((ROOT/'privreid').glob('[!_]*.py'))
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
each_module = pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)

# From the ground up; modules on one floor do not know each other.
FLOORS = [floor.split() for floor in """
files canvas
body checks cache names teaching shards distrust
pedestrians pictures backbones parts
data
listings
public
manifest
codec datasets desensitize folder machine pix2pix agw
keyed
doctor config tree locks cudagraphs
training
joint
checkpoint upgradation
metrics ranking intervals
evaluation
arms outlet
records
reopen
experiments
verdicts webpage
scores
verification report bundles outsider features cluster
threats
inverses leaks
tables figures compare deploy attacks export
boxes
films
filmed
video exactkeys
sidecar
exact
jobs
rows
reproduce
hindsight
drawn
live
widgets
matches
views
viewer study dashboard playground
options
commands use
cli
""".strip().splitlines()]
FLOOR = {name: i for i,names in enumerate(FLOORS) for name in names}
ALONE = {'desensitize', 'machine', 'pix2pix', 'backbones'}   # but for what they refuse: checks

def tree(path): return ast.parse(path.read_text(encoding='utf-8'))
def exported(path)->list[str]: return next(ast.literal_eval(n.value) for n in tree(path).body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0])=='__all__')
def calls(path): return [(n, ast.unparse(n.func)) for n in ast.walk(tree(path)) if isinstance(n, ast.Call)]
def code_cells(path): return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code']

def test_readme_is_current():
    p = subprocess.run([sys.executable, ROOT/'docs'/'readme.py', '--check'], capture_output=True, text=True)
    assert p.returncode==0, p.stderr

@each_notebook
def test_notebook_is_small(path): assert path.stat().st_size<1e6

@each_notebook
def test_notebook_is_clean(path):
    "No execution counts: they change with every run and tell a reader nothing."
    for cell in code_cells(path): assert not any(o.get('execution_count') for o in [cell, *cell['outputs']]), cell['source']

@each_notebook
def test_notebook_carries_its_outputs(path):
    cells = code_cells(path)
    if path.stem!='index' and cells: assert any(c['outputs'] for c in cells), f'python docs/execute.py nbs/{path.name}'

def test_no_path_of_one_machine():
    git = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if git.returncode: pytest.skip('not a git checkout')
    machine = re.compile(rb'(?<!\w)/(?:work|root|tmp/w)/')   # a pattern that does not match itself
    files = [ROOT/f for f in git.stdout.split('\0') if f and (ROOT/f).is_file()]
    texts = {f: data for f in files if b'\0' not in (data := f.read_bytes())}
    assert not [f'{f.relative_to(ROOT)}: {m[0].decode()}' for f,data in texts.items() for m in machine.finditer(data)]

@each_module
def test_no_pickle_is_loaded(path):
    "`torch.load` runs whatever a file tells it to, unless it reads weights only."
    for node,name in calls(path):
        if name=='torch.load': assert 'weights_only=True' in [ast.unparse(k) for k in node.keywords], f'line {node.lineno}'

def imported(path):
    "Modules of this package that a module imports, in whichever way it is written."
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(filter(None, ['privreid' if node.level else '', node.module]))
            names = [f'{base}.{a.name}' for a in node.names]
        else: continue
        yield from (parts[1] for n in names if (parts := n.split('.'))[0]=='privreid' and parts[1:] and parts[1] in FLOOR)

@each_module
def test_imports_go_up_only(path):
    assert path.stem in FLOOR, f'give {path.stem} a place in FLOORS'
    below = {'checks'} if path.stem in ALONE else {n for n in FLOOR if FLOOR[n]<FLOOR[path.stem]}
    assert set(imported(path))<=below

# -- what modules have in common

def test_a_public_name_means_one_thing():
    where = {}
    for path in MODULES:
        for name in exported(path): where.setdefault(name, []).append(path.stem)
    assert not {name: modules for name,modules in where.items() if len(modules)>1}

@each_module
def test_public_functions_say_what_they_do(path):
    "Each has a sentence, and each parameter a type, a comment or a default: `help()` and the site show them."
    lines,names = path.read_text(encoding='utf-8').splitlines(), exported(path)
    for f in (n for n in tree(path).body if isinstance(n, ast.FunctionDef) and n.name in names):
        assert ast.get_docstring(f), f.name
        required = [*f.args.posonlyargs, *f.args.args][:len(f.args.posonlyargs)+len(f.args.args)-len(f.args.defaults)]
        assert not [a.arg for a in required if not a.annotation and '#' not in lines[a.lineno-1]], f.name

@each_module
def test_files_are_whole_and_json_is_strict(path):
    "A file is written under the name that `atomic` gives, and JSON by `strict_json`, which knows no NaN."
    for node,name in calls(path):
        writes = name=='open' and len(node.args)>1 and not ast.unparse(node.args[1]).strip("'").startswith('r') and ast.unparse(node.args[0])
        if name.endswith(('.write_text', '.write_bytes')): writes = name.rpartition('.')[0]
        assert not writes or re.search(r'\b(tmp|new|devnull)\b', writes), f'line {node.lineno}: {ast.unparse(node)}'
        assert name not in ('json.dump', 'json.dumps') or path.stem in ('files', 'widgets'), f'line {node.lineno}: {ast.unparse(node)}'   # widgets have a word for NaN

def test_requirements_are_lower_bounds():
    "An upper bound would fight with what the user has; Colab's torch must not move."
    for r in settings()['requirements'].split(): assert re.fullmatch(r'[\w.-]+>=\d+(\.\d+)*', r), r

# --- where paper, authors and this package differ, the lesson says so at that spot

BOXES = {   # lesson -> what differs
    '01_people': ('the range of pictures', 'the last images of a person', 'the grey of an erased rectangle'),
    '02_hide': ('the colour of a block',),
    '03_measure': ('the PSNR and SSIM of many pictures',),
    '05_recognise': ('channels inside a non-local block', "the stem's ReLU", 'the weights of pairs'),
    '06_together': ('the condition of `D_X` in `adv_rec`', 'which epoch is kept'),
    '07_upgrade': ('the rank-1 to start at', 'private, and not even better than at the start', 'private again after a fall', 'what privacy is measured on', 'what the teacher looks at after an upgrade'),
    '09_private': ('what privacy is measured by',),
    'behind_config': ('the epochs of the learning rate',),
    'behind_tables': ('who trains on which pictures', 'the cameras of MSMT17')}
BOX = re.compile(r'^\| \*\*Paper / authors / here\*\* \| (.+) \|\n\|---\|---\|\n\| paper \| (.+) \|\n\| authors \| (.+) \|\n\| here \| (.+) \|$', re.M)

@pytest.mark.parametrize('lesson', BOXES)
def test_a_lesson_says_where_the_authors_differ(lesson):
    cells = json.loads((ROOT/'nbs'/f'{lesson}.ipynb').read_text(encoding='utf-8'))['cells']
    texts = [''.join(c['source']) for c in cells if c['cell_type']=='markdown']
    assert tuple(sorted(m[1] for t in texts for m in BOX.finditer(t)))==tuple(sorted(BOXES[lesson]))
    for t in texts: assert t.count('**Paper / authors / here**')==len(BOX.findall(t)), t

def test_every_page_behind_the_scenes_has_its_place():
    from lessons import BEHIND
    there = [f'behind_{page}' for pages in BEHIND.values() for page in pages]   # in the sidebar
    assert sorted(there)==sorted(p.stem for p in NOTEBOOKS if p.stem.startswith('behind_'))
    front = (ROOT/'README.md').read_text(encoding='utf-8')
    assert re.findall(r'^\| \[(behind_\w+)\]', front, flags=re.M)==there   # and in the same order on the front page
    assert front.count('<details><summary>')==len(BEHIND)

COURSE = [p for p in NOTEBOOKS if p.stem[0].isdigit()]

@pytest.mark.parametrize('path', COURSE, ids=lambda p: p.stem)
def test_code_of_the_course_fits_the_page(path):
    for cell in code_cells(path):
        source = ''.join(cell['source'])
        if re.search(r'^#\|\s*hide\b', source, flags=re.M): continue
        for line in source.splitlines():
            if not line.startswith('#|'): assert len(line)<=88, line

@pytest.mark.parametrize('path', COURSE, ids=lambda p: p.stem)
def test_an_exercise_has_its_solution(path):
    marks = [m[1] for c in code_cells(path) if (m := re.match(r'#\|\s*(exercise|solution)\b', ''.join(c['source'])))]
    assert marks[::2]==['exercise']*len(marks[::2]) and marks[1::2]==['solution']*len(marks[::2])

def test_the_module_is_the_command():
    said = subprocess.run([sys.executable, '-m', 'privreid', '--version'], cwd=ROOT, text=True, capture_output=True)
    assert said.returncode==0 and settings()['version'] in said.stdout

def test_the_citation_names_this_version():
    assert f"version: {settings()['version']}\n" in (ROOT/'CITATION.cff').read_text(encoding='utf-8')

# -- spelling: British, as the texts have it; `anonymize` and `desensitize` are the paper's words and names of modules

AMERICAN = re.compile(r'(?:(?:mis|un|re|dis)?(?:color|center|gray|neighbor|behavior|favor|honor|labor|flavor|fiber|meter|catalog|artifact|defense|offense|fulfill|skillful)(?:s|ed|ing|ful|less|ite|hood|ish|able)?'
    r'|(?:un|re|mis|over)?(?:normal|recogn|optim|minim|maxim|regular|general|initial|summar|visual|organ|real|special|serial|quant|util|penal|random|standard|vector|categor|memor|synchron|character|emphas|critic)iz(?:e|es|ed|er|ers|ing|ation|ations|able)'
    r'|(?:analy|cataly|paraly)z(?:e|es|ed|er|ing)|learned|burned|modeled|modeling|traveled|canceled|canceling|signaled|leveled)')
MISSPELT = re.compile(r'(?:accomodat\w+|acheiv\w+|adress\w*|agrement|alot|aparent\w*|arguement|basicly|begining|beleiv\w+|calender|catagor\w+|comming|commited|comparision|concious|definately|dependan\w+|develope|diferen\w+'
    r'|dissap\w+|embarass\w*|enviroment\w*|exagerat\w+|existan\w+|familar|febuary|finaly|foriegn|fourty|goverment|gaurd|happend|heigth|hight|immediatly|independan\w+|intial\w*|intresting|knowlege|lenght|liason|libary'
    r'|maintainance|mispell\w*|neccess\w+|necesary|noticable|occa?sionaly|occured|occurence\w*|occuring|paralel\w*|parralel\w*|peice|persistan\w+|posess\w*|prefered|preceed\w*|priviledge|probabl[ei]ty|proccess\w*|publically|pyschol\w+'
    r'|quater|recieve\w*|recomend\w*|refered|relevent|repetion|responsab\w+|rythm|seperat\w+|similiar\w*|succes|sucess\w*|supress\w*|suprise\w*|teh|thier|threshhold|tommorow|transfered|truely|untill|usefull\w*|wether|wich|writting)')
TWICE = re.compile(r'\b(a|an|and|are|as|at|be|by|for|from|if|in|is|it|of|on|or|than|the|their|to|was|what|with)\s+\1\b(?!-)', re.I)

def prose(path)->str:
    "What a file says to people: no code, no formulas, no targets of links."
    text = path.read_text(encoding='utf-8')
    if path.suffix=='.ipynb': text = '\n\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type']=='markdown')
    elif path.suffix=='.py':
        said = [ast.get_docstring(n) or '' for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
        text = '\n\n'.join(said+re.findall(r'(?:^|\s)#(?!\|) (.*)$', text, flags=re.M))
    return re.sub(r'```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)\s]*\)|https?://\S+', ' _ ', text, flags=re.S)

def test_words_are_spelt_as_elsewhere():
    files = [*NOTEBOOKS, *MODULES, *sorted((ROOT/'nbs').glob('*.md')), *sorted(ROOT.glob('*.md'))]
    said = {path.relative_to(ROOT): prose(path) for path in files}
    assert not {f'{path}: {word}' for path,text in said.items() for word in set(re.findall('[a-z]+', text.lower())) if AMERICAN.fullmatch(word) or MISSPELT.fullmatch(word)}
    assert not [f'{path}: {m[0]!r}' for path,text in said.items() for m in TWICE.finditer(text)]

def test_the_spelling_test_can_fail():
    for rule,wrong,right in ((AMERICAN, 'colors normalized optimizer learned', 'colours normalised anonymizer desensitized size prize metre'), (MISSPELT, 'seperate lenght', 'separate length height agreement')):
        assert all(rule.fullmatch(w) for w in wrong.split()) and not any(rule.fullmatch(w) for w in right.split())
    assert TWICE.search('of the the two') and not TWICE.search('that that is; of the other')
