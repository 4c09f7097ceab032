"`import privreid` shows everything and loads nothing; help() shows what the source says about parameters."
import importlib, inspect, pydoc, subprocess, sys
import pytest
from fastcore.docments import docments
import privreid
from privreid._modidx import d

MODULES = sorted(d['syms'])
each_module = pytest.mark.parametrize('module', MODULES)

def run(code): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout

def test_importing_loads_nothing():
    out = run('import sys, privreid; before = set(sys.modules); dir(privreid); print(sorted({"torch", "numpy", "fastcore", "ast"}&set(sys.modules)), *(m for m in sys.modules if m.startswith("privreid")))')
    assert out.split('\n')[0]=='[] privreid privreid._modidx'

def test_every_public_name_is_offered_and_found():
    offered = set(dir(privreid))
    for module in MODULES:
        there = importlib.import_module(module)
        assert module.split('.')[1] in offered and getattr(privreid, module.split('.')[1]) is there
        for name in there.__all__:
            if name.isupper() or not hasattr(getattr(there, name), '__module__') or getattr(there, name).__module__!=module: continue   # a constant, or torchvision's
            assert name in offered, name
            if name not in ('export', 'compare', 'playground', 'reproduce'): assert getattr(privreid, name) is getattr(there, name), name
    assert not {n for n in offered if n.startswith('_') and not n.startswith('__')}-{'_public', '_told', '_describe', '_Package', '_waiting', '_OnHelp', '_read', '_modidx'}

def test_an_unknown_name_is_an_attribute_error(one_line):
    with pytest.raises(AttributeError) as e: privreid.spnr
    one_line(e.value, 'spnr')
    assert not hasattr(privreid, '__wrapped__') and 'psnr' in run('import privreid\ntry: privreid.psnrr\nexcept AttributeError as e: import traceback; print(*traceback.format_exception(e))')

def test_help_through_the_package():
    out = run('import privreid; help(privreid.draw_augmentation); help(privreid.agw.AGW); from privreid.desensitize import Pixelate; help(Pixelate)')
    for comment in ('pixels at height 256, scaled with the height', 'I, to classify while training', 'top-left pixel instead of the mean'): assert comment in out

@pytest.mark.full
def test_a_script_does_not_pay_for_help():
    "Sources are read when pydoc is imported, which help() does; or before, where it is the program."
    told = 'top-left pixel instead of the mean'
    out = run(f'from privreid.desensitize import Pixelate; print({told!r} in Pixelate.__doc__); help(Pixelate)')
    assert out.startswith('False') and told in out
    assert told in subprocess.run([sys.executable, '-m', 'pydoc', 'privreid.desensitize.Pixelate'], capture_output=True, text=True, check=True).stdout
    assert run(f'import pydoc; from privreid.desensitize import Pixelate; print({told!r} in Pixelate.__doc__)')=='True\n'
    assert run(f'import builtins; builtins.__IPYTHON__ = True; from privreid.desensitize import Pixelate; print({told!r} in Pixelate.__doc__)')=='True\n'

def things(module):
    there = importlib.import_module(module)
    for full in d['syms'][module]:
        holder,*rest = full[len(module)+1:].split('.')
        if holder.startswith('_') or rest and rest[0].startswith('_') or not hasattr(there, holder): continue
        yield full, (inspect.getattr_static(getattr(there, holder), rest[0]) if rest else getattr(there, holder))

@each_module
def test_help_says_what_the_source_says(module):
    "fastcore reads the comments in its own way; what it finds is in help()."
    for full,thing in things(module):
        thing = getattr(thing, '__func__', thing)
        for f in ([thing, thing.__init__] if inspect.isclass(thing) else [getattr(thing, 'fget', None) or thing]):
            try: told = docments(f)
            except (TypeError, OSError, ValueError): continue
            help_text = ' '.join(pydoc.render_doc(thing, renderer=pydoc.plaintext).split())
            for name,comment in told.items():
                if name!='self' and comment: assert ' '.join(comment.split()) in help_text, (full, name)

def test_a_comment_belongs_to_its_name():
    told = {(h,n): c for h,n,c in privreid._told('''
def one(a, b=2)->int: # what comes out
    x = 1 # not this
def many(
    a:str='#', # first
    b:int=3, c=4, # two of them
    *rest, # the others
    key:dict=dict(
        x=1), # over two lines
    ü:int=1, # ä
)->float: # in dB
    "Doc."
class C:
    "Doc."
    field:int=1 # a field
    def __init__(self, z, # zed
    ): pass
    def method(self,
        m, # em
    ): pass
@patch
def patched(self:C,
    p, # pe
): pass
''')}
    assert told=={(None,'one'): {'returns': 'what comes out'}, (None,'C'): {'field': 'a field', 'z': 'zed'}, ('C','__init__'): {'z': 'zed'}, ('C','method'): {'m': 'em'}, ('C','patched'): {'p': 'pe'},
        (None,'many'): {'a': 'first', 'b, c': 'two of them', 'rest': 'the others', 'key': 'over two lines', 'ü': 'ä', 'returns': 'in dB'}}
