"What Sphinx reads in the place of a notebook: hidden cells gone, figures described, names linked, and the reference of its module at the end."
import ast, importlib, inspect, re
from functools import cache
from types import FunctionType, MethodType
import nbformat
from fastcore.docments import docments
from readme import fill, pages, settings

CFG = settings()
PACKAGE = CFG['lib_name']
COLAB = f"https://colab.research.google.com/github/{CFG['user']}/{CFG['repo']}/blob/{CFG['branch']}/{CFG['nbs_path']}"
markdown,code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell

# -- what there is ----------------------------------------------------------------------------------------------------

def _object(module:str, name:str):
    "What `name`, perhaps `Class.method`, means in a module: without calling properties."
    holder,*attributes = name.split('.')
    found = getattr(importlib.import_module(module), holder)
    return inspect.getattr_static(found, attributes[0]) if attributes else found

def _function(obj): return getattr(obj, 'fget', None) or getattr(obj, 'func', None) or getattr(obj, '__func__', None) or obj

@cache
def parameters(module:str, name:str)->dict[str,dict]: # parameter, field or 'return' -> its docment, anno and default
    "What docments say."
    obj = _function(_object(module, name))
    try: rows = docments(obj, full=True)
    except (TypeError, ValueError): return {}
    stars = dict(re.findall(r'^\s*\*+(\w+).*?#\s*(.*)$', inspect.getsource(obj), flags=re.M))   # docments take these for the result's
    for k,text in stars.items():
        if k in rows:
            rows[k]['docment'] = text
            if rows['return']['docment']==text: rows['return']['docment'] = None
    return {k: v for k,v in rows.items() if k not in ('self', 'cls') and not (k=='return' and not v['docment'])}

def _doc(obj, name:str)->str:
    "Its own docstring. A dataclass without one has its signature there."
    doc = vars(obj).get('__doc__') if inspect.isclass(obj) else _function(obj).__doc__
    return '' if not doc or doc.startswith(f"{name}(") else inspect.cleandoc(doc)

@cache
def documented()->dict[str,list[str]]: # module -> names, a class before its methods
    "Public functions and classes, and those methods that say something about themselves."
    found = {}
    for module,names in importlib.import_module(f'{PACKAGE}._modidx').d['syms'].items():
        public = set(importlib.import_module(module).__all__)
        names = [n[len(module)+1:] for n in names]
        found[module] = [n for n in sorted(names) if n.split('.')[0] in public and '._' not in n
                         and ('.' not in n or _doc(_object(module, n), n) or any(v['docment'] for v in parameters(module, n).values()))]
    return found

@cache
def targets()->dict[str,str]: # as written in prose -> full name
    "What prose can mean by a name; a name that two modules share needs its module before it."
    full = [(m, n) for m,names in documented().items() for n in names]
    short = [n for _,n in full]
    return {n: f'{m}.{n}' for m,n in full if short.count(n)==1} | {f'{m}.{n}': f'{m}.{n}' for m,n in full}

def link(text:str)->str:
    "Turn `name` into a reference, where it is one; code blocks and headings stay as they are."
    def role(m):
        if m[1] in documented(): return f'{{py:mod}}`{m[1]}`'
        return f'{{py:obj}}`{m[1]} <{targets()[m[1]]}>`' if m[1] in targets() else m[0]
    parts = re.split(r'(^```.*?^```[^\n]*$|^#[^\n]*$)', text, flags=re.M|re.S)
    return ''.join(p if p.startswith(('#', '```')) else re.sub(r'(?<![`}\w\[])`([A-Za-z_][\w.]*)`(?!`)', role, p) for p in parts)

# -- the reference ----------------------------------------------------------------------------------------------------

class Shown:
    "A default, as a reader would write it."
    def __init__(self, value): self.value = value
    def __repr__(self): return getattr(self.value, '__name__', None) or re.sub(r' at 0x\w+', '', repr(self.value))

def signature(obj)->str:
    "Names and defaults; types have a column of their own."
    try: s = inspect.signature(obj)
    except (TypeError, ValueError): return '()'
    kept = [p.replace(annotation=p.empty, default=p.default if p.default is p.empty else Shown(p.default)) for k,p in s.parameters.items() if k not in ('self', 'cls')]
    return str(s.replace(parameters=kept, return_annotation=s.empty))

def _type(annotation)->str:
    if annotation in (None, inspect.Parameter.empty): return ''
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return link('`'+re.sub(r'(?<![\w.])(?:\w+\.)+(?=\w)', '', text).replace('|', '\\|')+'`')

def table(rows:dict[str,dict])->str:
    "Parameters as a Markdown table; '' where no comment says more than the signature."
    if not any(v['docment'] for v in rows.values()): return ''
    def row(name, v):
        default = v['default'] if 'default' in v else inspect.Parameter.empty
        shown = '' if default is inspect.Parameter.empty else f'`{Shown(default)!r}`'
        meaning = link(' '.join((v['docment'] or '').split())).replace('|', '\\|')
        return f"| {'*returns*' if name=='return' else f'`{name}`'} | {_type(v['anno'])} | {shown if name!='return' else ''} | {meaning} |"
    return '\n'.join(['| Parameter | Type | Default | Meaning |', '|---|---|---|---|', *(row(*r) for r in rows.items())])

def entry(module:str, name:str)->str:
    "The reference of one function, class or method."
    obj = _object(module, name)
    kind = 'class' if inspect.isclass(obj) else 'function' if '.' not in name else 'method' if isinstance(obj, (FunctionType, MethodType)) else 'property'
    args = '' if kind=='property' else signature(_function(obj))
    line = inspect.getsourcelines(_function(obj))[1]
    source = f"[source]({CFG['git_url']}/blob/{CFG['branch']}/{module.replace('.', '/')}.py#L{line})"
    parts = [link(_doc(obj, name)), table(parameters(module, name)), source]
    return f'````{{py:{kind}}} {name}{args}\n:module: {module}\n\n'+'\n\n'.join(p for p in parts if p)+'\n````'

def reference(module:str)->str:
    return f'## Reference\n\n```{{py:module}} {module}\n```\n\n'+'\n\n'.join(entry(module, n) for n in documented()[module])

def overview(lessons:dict[str,str])->str: # module -> lesson
    "Every module with what it holds, one line each."
    def first(m, n): return link((_doc(_object(m, n), n) or '').split('\n')[0]).replace('|', '\\|')
    return '\n\n'.join(f'## {m}\n\nFrom the lesson [{lesson}]({lesson}.ipynb).\n\n| Name | What it is |\n|---|---|\n'+
                       '\n'.join(f'| {{py:obj}}`{n} <{m}.{n}>` | {first(m, n)} |' for n in documented()[m] if '.' not in n) for m,lesson in lessons.items())

# -- the pages --------------------------------------------------------------------------------------------------------

BEHIND = {k: pages.split() for k,pages in {   # in the order in which they may be read
    'data': 'canvas body pedestrians files names cache shards distrust pictures data listings public manifest datasets doctor checks teaching',
    'networks': 'desensitize backbones agw codec keyed',
    'training': 'machine cudagraphs folder config training joint checkpoint upgradation arms records reopen experiments parts',
    'measuring': 'metrics ranking intervals evaluation features verification tables figures jobs rows reproduce verdicts scores webpage report compare threats inverses leaks attacks',
    'using it': 'bundles deploy export outsider locks tree outlet cluster boxes films filmed video exactkeys sidecar exact',
    'looking at it': 'hindsight drawn live widgets matches views viewer study dashboard playground options commands use cli'}.items()}

def wing(caption:str, *pages:str, glob:bool=False)->str:
    "A part of the sidebar."
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', *[':glob:']*glob, '', *pages, '```'])

TOC = '\n\n'.join([wing('Course', 'how_to_read', '[0-9]*', glob=True), *(wing(f'Behind the scenes: {k}', *(f'behind_{page}' for page in pages), *['scale']*(k=='training')) for k,pages in BEHIND.items()),
                   wing('Look up', 'glossary', 'reference', 'claims', 'queries')])

def module_of(nb)->str|None:
    "The module that a notebook exports to, if it does."
    found = re.search(r'^#\|\s*default_exp\s+(\w+)', '\n'.join(c.source for c in nb.cells if c.cell_type=='code'), flags=re.M)
    return found and f'{PACKAGE}.{found[1]}'

def only_imports(source:str)->bool:
    "Whether a cell does nothing but import."
    try: body = ast.parse(source).body
    except SyntaxError: return False   # a line for the shell
    return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)

def fold(cell, what:str, part:str='cell'):
    "Show a cell, or its `input` alone, as one line that opens."
    cell.metadata |= dict(tags=[f'hide-{part}'], mystnb=dict(code_prompt_show=f'Show {what}', code_prompt_hide=f'Hide {what}'))

def shown(cell):
    "A code cell as the site shows it, or None."
    told = {k.strip(): v.strip() for k,_,v in (d.partition(':') for d in re.findall(r'^#\|(.*)$', cell.source, flags=re.M))}   # directive -> what it says
    cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip('\n')
    if 'solution' in told: fold(cell, 'the solution')
    if 'code-fold' in told: fold(cell, told['code-fold'], 'input')   # say, the drawing: its picture stays
    if 'hide' in told and only_imports(cell.source): fold(cell, 'the imports')
    elif 'hide' in told or not cell.source: return
    if alt := told.get('fig-alt'): cell.metadata['mystnb'] = cell.metadata.get('mystnb', {})|dict(image=dict(alt=alt))
    elif any('image/png' in o.get('data', {}) for o in cell.outputs): raise ValueError(f'This cell draws a picture: describe it in a line `#| fig-alt: ...`.\n{cell.source}')
    return cell

def lesson(nb, name:str)->list:
    "The cells of a lesson's page."
    module = module_of(nb)
    buttons = f'[Open in Colab]({COLAB}/{name}.ipynb) {{download}}`Download notebook <{name}.ipynb>`'
    nb.cells[0].source = re.sub(r'^(# .*\n+> .*)$', lambda m: f'{m[1]}\n\n:::{{container}} lesson-links\n{buttons}\n:::', nb.cells[0].source, count=1, flags=re.M)
    cells = [shown(c) if c.cell_type=='code' else markdown(link(c.source)) for c in nb.cells]
    return [c for c in cells if c]+([markdown(reference(module))] if module else [])

def prepare(app, docname:str, source:list[str]):
    "Sphinx's `source-read` event: change a page before it is parsed."
    path = app.env.doc2path(docname)
    if path.suffix=='.md':
        source[0] = link(source[0])
        if docname!='reference': return
        lessons = {module_of(nbformat.read(p, 4)): p.stem for p in pages()}
        source[0] += '\n\n'+overview({m: lesson for m,lesson in lessons.items() if m})
        return
    nb = nbformat.reads(source[0], as_version=4)
    if docname=='index':
        nb.cells = [markdown(link(fill(c.source, CFG))) for c in nb.cells if c.cell_type=='markdown']+[markdown(TOC)]
    else: nb.cells = lesson(nb, docname)
    nb.metadata['language_info'] = {'name': 'python', 'pygments_lexer': 'ipython3'}
    source[0] = nbformat.writes(nb)
