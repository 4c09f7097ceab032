"""What happens to damaged files, odd names and odd arguments: is each read rightly, or refused in one sentence?

    python benchmarks/fuzz.py                                                      # prints a table and appends it to benchmarks/RESULTS.md
    python benchmarks/fuzz.py --inputs 200 --kind images manifest --dry-run        # prints it only
    python benchmarks/fuzz.py --kind images --first 17 --inputs 1 --dry-run --traceback  # one input again

An input is a function of seed, kind and number (`fuzz_files.py`, `fuzz_calls.py` and `fuzz_use.py` draw them), so each can be had again. It is tried
in a child process, which may take no more memory, time and disk than the limits below: an input that kills the child is a fault like
others, and the next child goes on behind it. A fault is
- an exception that is no refusal: of another type than `REFUSALS`, raised by a library and not by the package, in more than one line,
  or without the name of the file;
- a result that is not what the input was made to give: lost images, two people made of one, a NaN or a wrong number;
- a file that is written, moved or removed outside the input's folder, a connection, a program that is started (but Python for a decoder
  that is kept apart, and has limits of its own);
- more than the limits, or a dead process.
Works where there is fork: Linux and macOS.
"""
import argparse, io, multiprocessing, os, random, re, resource, shutil, sys, tempfile, time, traceback, warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Callable
import torch
import fuzz_calls, fuzz_files, fuzz_use, privreid
from common import peak_memory, publish
from fuzz_files import Case

# of one input: MB beyond what was there, MB of a file, seconds of a processor, seconds until the child is given up
MEMORY,DISK,SECONDS,PATIENCE = 400, 64, 10, 120
KINDS = fuzz_files.KINDS|fuzz_calls.KINDS|fuzz_use.KINDS
REFUSALS = ValueError, TypeError, OSError, FloatingPointError, IndexError   # the last is what `split[92]` has to say, or a loop over it would not end
LONGEST = 400   # characters of a message, the path of the input's folder not counted

@dataclass
class Outcome:
    kind:str
    number:int
    what:str      # the input
    verdict:str   # accepted, refused or fault
    said:str=''   # the refusal, or what the fault is
    trace:str=''

# --- what is a fault

def deliberate(e:Exception)->bool:
    "Whether the package itself raised it: no library did, and none of its own lines stumbled."
    last = traceback.extract_tb(e.__traceback__)[-1]
    return Path(privreid.__file__).parent in Path(last.filename).parents and 'raise ' in (last.line or '')

def no_refusal(e:BaseException, case:Case, folder:Path)->str:
    "Why an exception is not a refusal in one sentence that helps; '' if it is one."
    text = str(e).replace(str(folder), '')
    if not isinstance(e, REFUSALS): return 'no refusal'
    if case.must: return 'should not be refused'
    if not text.strip() or any(ord(c)<32 or ord(c)==127 for c in text): return 'not one line'
    if len(text)>LONGEST: return f'{len(text)} characters'
    if 'MemoryError' in text or "can't allocate" in text: return 'memory'
    if not deliberate(e) and not (isinstance(e, OSError) and e.filename): return 'raised by a library, or by a line that stumbled'
    if case.names and not any(str(n) in str(e) for n in case.names): return f'names none of {", ".join(map(str, case.names))}'
    return ''

ESCAPES,_allowed = [], []   # what was written elsewhere; where it is allowed
ELSEWHERE = 'home', 'here', 'tmp'   # folders of a child process that no input may write to: its HOME, working and temporary directory
_CHANGES = 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.link', 'os.symlink', 'os.truncate'

def _watch(event:str, args:tuple):
    "An audit hook: Python calls it before each of these acts."
    if not _allowed: return
    ours = event=='subprocess.Popen' and list(args[1])[:3]==[sys.executable, '-I', '-c']   # a decoder that is kept apart
    if event in ('subprocess.Popen', 'socket.connect', 'os.system') and not ours: ESCAPES.append(event)
    if event=='open': paths = args[:1] if args[2] and args[2]&(os.O_WRONLY|os.O_RDWR|os.O_CREAT|os.O_TRUNC) else ()
    else: paths = args[:2] if event in _CHANGES else ()
    for p in paths:
        if not isinstance(p, (str, bytes)): continue
        if event in ('os.remove', 'os.rmdir') and args[1]>=0 and Path('/proc/self/fd').exists():   # below a folder that is open
            p = os.path.join(os.readlink(f'/proc/self/fd/{args[1]}'), os.fsdecode(p))
        p = Path(os.path.realpath(os.fsdecode(os.path.dirname(p))), os.fsdecode(os.path.basename(p)))
        if str(p)!='/dev/null' and not any(a in p.parents or a==p for a in _allowed): ESCAPES.append(f'{event} {p}')

# --- one input

@dataclass
class Tried:
    "What came of one input."
    folder:Path
    result:object=None
    error:BaseException=None
    warned:str=''       # by a library, about numbers
    megabytes:float=0.
    seconds:float=0.
    elsewhere:tuple=()  # what was changed outside the folder

def run(case:Case, folder:Path)->Tried:
    "Try one input in its folder, and look around."
    tried = Tried(folder)
    def act():
        _allowed[:] = folder, Path(os.environ['PRIVREID_CACHE'])
        try: tried.result = case.act()
        except BaseException as e: tried.error = e
        finally: _allowed.clear()
    ESCAPES.clear()
    start = time.process_time()
    with warnings.catch_warnings(record=True) as told, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter('always')
        tried.megabytes = peak_memory(act)
    tried.seconds = time.process_time()-start
    tried.warned = next((str(w.message) for w in told if issubclass(w.category, RuntimeWarning)), '')
    # the latter by libraries, which tell no hook of Python
    tried.elsewhere = (*ESCAPES, *(str(p) for name in ELSEWHERE for p in (folder.parent/name).glob('*')))
    return tried

def fault(case:Case, tried:Tried)->str:
    "What is wrong, '' if nothing is."
    if tried.elsewhere: return f'outside its folder: {", ".join(tried.elsewhere[:3])}'
    if tried.megabytes>MEMORY: return f'{tried.megabytes:.0f} MB'
    if tried.seconds>SECONDS: return f'{tried.seconds:.0f} s'
    if tried.error is not None:
        why = no_refusal(tried.error, case, tried.folder)
        return why and f'{why}: {type(tried.error).__name__}: {str(tried.error)[:300]!r}'
    try: wrong = case.right(tried.result)
    except Exception as e: wrong = f'the result is of an odd kind: {type(e).__name__}: {e}'
    return wrong or tried.warned and f'RuntimeWarning: {tried.warned}'

def attempt(kind:str, number:int, make:Callable, seed:int, folder:Path)->Outcome: # make(rng, folder) -> Case
    "Make an input, try it, and judge."
    case = make(random.Random(f'{seed} {kind} {number}'), folder)
    tried = run(case, folder)
    wrong,e = fault(case, tried), tried.error
    verdict = 'fault' if wrong else 'refused' if e else 'accepted'
    said = wrong or (str(e) if e else '')
    return Outcome(kind, number, case.what, verdict, said.replace(str(folder), '…'), ''.join(traceback.format_exception(e)) if e else '')

def limit():
    "No more memory and disk than the limits, for this process and for good."
    virtual = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize() if Path('/proc/self/statm').exists() else 0
    # address space is asked for more freely than it is used: `peak_memory` looks closer
    if virtual: resource.setrlimit(resource.RLIMIT_AS, (virtual+4*MEMORY*10**6,)*2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK*10**6,)*2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def _work(pipe, kind:str, make:Callable, numbers:range, seed:int, where:Path):
    "What a child process does: one input after another."
    os.setsid(); torch.set_num_threads(1)
    for name in ('cache', *ELSEWHERE): (where/name).mkdir(parents=True, exist_ok=True)
    os.environ.update(HOME=str(where/'home'), PRIVREID_CACHE=str(where/'cache'), TMPDIR=str(where/'tmp'), TQDM_DISABLE='1')
    tempfile.tempdir = None
    limit(); sys.addaudithook(_watch)
    for n in numbers:
        folder = where/f'{n}'
        folder.mkdir(); os.chdir(where/'here')
        pipe.send(attempt(kind, n, make, seed, folder))
        shutil.rmtree(folder, ignore_errors=True)
        for stray in (p for name in ELSEWHERE for p in (where/name).glob('*')): shutil.rmtree(stray) if stray.is_dir() else stray.unlink()

def try_all(kind:str, make:Callable, numbers:range, seed:int=0)->list[Outcome]:
    "Try inputs of one kind; a child that dies costs one of them."
    fork,outcomes = multiprocessing.get_context('fork'), []
    while len(outcomes)<len(numbers):
        with tempfile.TemporaryDirectory(prefix='fuzz-') as where:
            ours,theirs = fork.Pipe()
            child = fork.Process(target=_work, args=(theirs, kind, make, numbers[len(outcomes):], seed, Path(where).resolve()))
            child.start(); theirs.close()
            while len(outcomes)<len(numbers):
                try:
                    if not ours.poll(PATIENCE): raise TimeoutError(f'no answer within {PATIENCE} s')
                    outcomes.append(ours.recv())
                except (EOFError, TimeoutError) as e:
                    child.kill(); child.join()
                    outcomes.append(Outcome(kind, numbers[len(outcomes)], '', 'fault', str(e) or f'the process died ({child.exitcode})'))
                    break
            child.join()
    return outcomes

# --- all inputs

def share(inputs:int, kinds:list[str])->dict[str,int]:
    "Inputs dealt to kinds."
    return {k: inputs//len(kinds)+(i<inputs%len(kinds)) for i,k in enumerate(kinds)}

def distinct(faults:list[Outcome])->dict[str,list[Outcome]]: # kind and words of the fault -> outcomes
    "Faults that differ in numbers and names only are one."
    groups = {}
    for o in faults: groups.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|…\S*|\d+", '#', f'{o.kind}: {o.said}')[:160], []).append(o)
    return groups

def main(argv:list[str]=None)->int: # how many faults
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--inputs', type=int, default=10_000, help='in all, dealt to the kinds (default: %(default)s)')
    p.add_argument('--first', type=int, default=0, help='number of the first input of each kind (default: %(default)s)')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--kind', nargs='+', choices=KINDS, default=list(KINDS), metavar='KIND',
                   help=f'some of {", ".join(KINDS)} (default: all)')
    p.add_argument('--dry-run', action='store_true', help='print the table and do not append it to RESULTS.md')
    p.add_argument('--traceback', action='store_true', help='print where each fault and refusal came from')
    p.add_argument('--note', default='', help='to stand above the table')
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    start,outcomes,table = time.perf_counter(), [], ['| kind | inputs | accepted | refused in one sentence | faults |',
                                                     '|---|---:|---:|---:|---:|']
    for kind,n in share(args.inputs, args.kind).items():
        found = try_all(kind, KINDS[kind], range(args.first, args.first+n), args.seed)
        count = Counter(o.verdict for o in found)
        table.append(f'| {kind} | {n:,} | {count["accepted"]:,} | {count["refused"]:,} | {count["fault"]:,} |')
        print(f'{kind:12} {dict(count)} after {time.perf_counter()-start:.0f} s', file=sys.stderr, flush=True)
        for group in distinct([o for o in found if o.verdict=='fault']).values():
            print(f'\n{len(group)} x {kind} {group[0].number}: {group[0].what}\n    {group[0].said}', flush=True)
        outcomes += found
    count = Counter(o.verdict for o in outcomes)
    table.append(f'| **all** | {len(outcomes):,} | {count["accepted"]:,} | {count["refused"]:,} | {count["fault"]:,} |')
    if args.traceback: print('\n'.join(f'\n{o.kind} {o.number}: {o.what}: {o.verdict}: {o.said}\n{o.trace}' for o in outcomes if o.trace))
    about = (f'Seed {args.seed}, {time.perf_counter()-start:.0f} s. Limits of one input: {MEMORY} MB of memory beyond what was there, '
             f'{SECONDS} s, files of {DISK} MB, one folder. {args.note}')
    if args.dry_run: print('\n'.join(['', about, *table]))
    else: publish('Damaged files, odd names and odd arguments', 'torch Pillow numpy scipy safetensors hypothesis', about, table)
    return count['fault']

if __name__ == '__main__': sys.exit(min(1, main()))
