"Learnable privacy-preserving anonymization of pedestrian images. Every public name of every module is here, and loaded when it is asked for."
__version__ = "0.1.0"

import builtins, os, sys
from types import ModuleType

os.environ.setdefault('PYTORCH_ENABLE_MPS_FALLBACK', '1')   # read when PyTorch is loaded: what Apple's GPUs cannot do is done on the CPU

def _public()->dict[str,str]: # name -> its module; a module's own name -> the module
    "What there is, from nbdev's index: nothing is imported for it."
    from ._modidx import d
    names = {full[len(module)+1:]: module for module,syms in d['syms'].items() for full in syms}
    return {k: v for k,v in names.items() if k.isidentifier() and not k.startswith('_')} | {m.split('.')[1]: m for m in d['syms']}

def _told(source:str):
    "The comments that stand beside parameters, fields and results: (class or None, name, {names: comment}) for each function and class."
    import ast
    lines = source.splitlines()
    def comments(named):   # pairs of a name and the node that ends it
        ends = {}          # line -> the names that end there, and behind which column
        for name,node in named:
            names,_ = ends.get(node.end_lineno, ((), 0))
            ends[node.end_lineno] = (*names, name), node.end_col_offset
        rest = {', '.join(names): lines[i-1].encode()[column:].decode() for i,(names,column) in ends.items()}
        return {k: text.partition('#')[2].strip() for k,text in rest.items() if '#' in text}
    def of(function):
        args,result = function.args, function.returns
        ordered = args.posonlyargs+args.args
        defaults = dict(zip((x.arg for x in reversed(ordered)), reversed(args.defaults)))
        defaults.update({x.arg: v for x,v in zip(args.kwonlyargs, args.kw_defaults) if v})
        given = [x for x in (*ordered, args.vararg, *args.kwonlyargs, args.kwarg) if x and x.arg not in ('self', 'cls')]
        named = [(x.arg, defaults.get(x.arg, x)) for x in given]
        if result: named = [(k, node) for k,node in named if node.end_lineno<result.end_lineno]+[('returns', result)]   # a comment behind the result is the result's
        return comments(named)
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            patched = 'patch' in [ast.unparse(d) for d in node.decorator_list]
            yield (ast.unparse(node.args.args[0].annotation) if patched else None), node.name, of(node)
        elif isinstance(node, ast.ClassDef):
            methods = {n.name: of(n) for n in node.body if isinstance(n, ast.FunctionDef)}
            fields = comments([(n.target.id, n) for n in node.body if isinstance(n, ast.AnnAssign)])
            yield None, node.name, fields | methods.get('__init__', {})
            yield from ((node.name, k, v) for k,v in methods.items())

def _describe(module:ModuleType):
    "Add to each docstring what the source says about parameters: help() shows docstrings only."
    source = module.__loader__.get_source(module.__name__) if hasattr(module.__loader__, 'get_source') else None
    for holder,name,told in _told(source or ''):
        known = vars(vars(module).get(holder, module))
        thing = known.get(name) if told else None
        thing = getattr(thing, '__func__', thing)
        if thing is None or sys.flags.optimize>1: continue
        text = 'Parameters:\n'+'\n'.join(f'    {k}: {v}' for k,v in told.items())
        thing.__doc__ = f'{thing.__doc__}\n\n{text}' if thing.__doc__ else text

_waiting = []   # modules whose docstrings nobody has asked for: to read a source again takes longer than to import it

class _OnHelp:
    "Finds nothing. Python asks it, too, when pydoc is imported for the first time: by help(), by notebooks and by editors."
    @staticmethod
    def find_spec(name, path=None, target=None):
        while name=='pydoc' and _waiting: _describe(_waiting.pop())

def _read()->bool:
    "Whether somebody may read docstrings: pydoc is here, or it is the program that runs, or a notebook does."
    program = getattr(sys.modules.get('__main__'), '__spec__', None)
    return 'pydoc' in sys.modules or getattr(program, 'name', '')=='pydoc' or hasattr(builtins, '__IPYTHON__')

class _Package(ModuleType):
    "A module that knows the public names of the modules in it."
    def __dir__(self): return sorted({*super().__dir__(), *_public()})
    def __getattr__(self, name):
        from importlib import import_module
        home = '' if name.startswith('_') else _public().get(name)
        if not home: raise AttributeError(f'privreid has no {name!r}', name=name, obj=self)
        module = import_module(home)
        return module if home.split('.')[1]==name else getattr(module, name)
    def __setattr__(self, name, value):   # Python binds each module here when it has been imported
        super().__setattr__(name, value)
        if not isinstance(value, ModuleType) or name.startswith('_'): return
        if _read(): _describe(value)
        else: _waiting.append(value)

sys.meta_path.insert(0, _OnHelp)
sys.modules[__name__].__class__ = _Package
