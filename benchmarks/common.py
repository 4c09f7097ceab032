"What the benchmarks share: the clock, peak memory, and the table that goes into RESULTS.md."
import argparse, ctypes, datetime, importlib.metadata, multiprocessing, os, platform, statistics, time
from contextlib import suppress
from pathlib import Path
import torch

CLOCKS = dict(wall=time.perf_counter, cpu=time.process_time)

def stopwatch(
    clock:str='wall',       # or cpu: the seconds that processors worked for us
    sync=lambda: None,      # waits for a GPU
):                          # f -> seconds that f() takes
    now = CLOCKS[clock]
    def seconds(f):
        sync(); start = now(); f(); sync()
        return now()-start
    return seconds

def race(
    rivals:dict,            # name -> function without arguments
    rounds:int,             # that count
    seconds=stopwatch(),    # that one of them takes
    warm:int=1,             # rounds that do not count, before
)->dict[str,float]:
    "Run all in turn, round after round; the median seconds of each."
    times = [{k: seconds(f) for k,f in rivals.items()} for _ in range(warm+rounds)][warm:]
    return {k: statistics.median(t[k] for t in times) for k in rivals}

def _work(pipe, clock:str, make, args:tuple):
    f,seconds = make(*args), stopwatch(clock)
    with suppress(EOFError):   # the other side is gone
        while pipe.recv(): pipe.send(seconds(f))

class Apart:
    "A rival in a process of its own, which measures for itself: what others leave in memory neither helps nor hurts it."
    def __init__(self, clock:str, make, *args): # make(*args), called there, gives the function to measure
        spawn = multiprocessing.get_context('spawn')
        self.pipe,theirs = spawn.Pipe()
        spawn.Process(target=_work, args=(theirs, clock, make, args), daemon=True).start()
        theirs.close()
    def seconds(self)->float: self.pipe.send('run'); return self.pipe.recv()

def peak_memory(f)->float: # MB
    "What a call needs at its peak beyond what was there before; nan where the system does not tell (it is Linux that does)."
    def status(key): return int(next(l for l in open('/proc/self/status') if l.startswith(key)).split()[1])/1e3
    try:
        ctypes.CDLL(None).malloc_trim(0)                        # or memory that is kept for reuse would hide the need
        with open('/proc/self/clear_refs', 'w') as reset: reset.write('5')
    except (OSError, AttributeError): return float('nan')
    before = status('VmRSS')
    f()
    return max(0., status('VmHWM')-before)

def options(doc:str, rounds:int)->argparse.ArgumentParser:
    "The options that every benchmark has."
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=rounds, help='rounds that count (default: %(default)s)')
    p.add_argument('--threads', type=int, default=torch.get_num_threads(), help="torch's threads (default: %(default)s)")
    p.add_argument('--clock', choices=CLOCKS, default='wall', help='cpu with --threads 1: on a busy machine, time spent waiting for a processor does not count (default: %(default)s)')
    p.add_argument('--note', default='', help='to stand above the table, say, what else the machine did')
    return p

def load()->float: return os.getloadavg()[0] if hasattr(os, 'getloadavg') else float('nan')

def publish(title:str, packages:str, about:str, table:list[str]):
    "Print a table with date and machine, and append it to RESULTS.md."
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    versions = ', '.join(f'{p} {importlib.metadata.version(p)}' for p in packages.split())
    lines = [f'## {title}, {datetime.date.today()}', '',
             f'{os.cpu_count()} CPU cores ({platform.machine()}), {gpu}; {versions}, Python {platform.python_version()}; torch with {torch.get_num_threads()} thread(s). {about}'.rstrip(), '', *table, '']
    print('\n'.join(lines))
    results = Path(__file__).with_name('RESULTS.md')
    head = '' if results.exists() else '# Measured\n\nWritten by the scripts in this folder, newest last; run them on your machine to add a table.\n\n'
    with open(results, 'a', encoding='utf-8') as f: f.write(head+'\n'.join(lines)+'\n')
