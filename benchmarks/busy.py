"""A training on a quiet machine and beside other programs: what the number of threads, and how long they spin, do to it.

    python benchmarks/busy.py                             # both states, all settings, three rounds
    python benchmarks/busy.py --rounds 1 --steps 20       # a quick look
    python benchmarks/busy.py --settings chosen one       # some of the settings

Busy means: on each processor but one, a process that does nothing but burn it. Each training is a process of its own, since OpenMP reads its variables when it is loaded, and the settings take turns, state by state.
Prints a table and appends it to benchmarks/RESULTS.md. The burners end with this script, however it ends, and by themselves after `--limit` seconds.
"""
import multiprocessing, os, statistics, subprocess, sys, time
from contextlib import contextmanager
from common import load, options, publish
from privreid.machine import our_cpus

SETTINGS = dict(   # name -> variables of the environment
    chosen={},                                      # what the package does: as many threads as processors are free
    all=dict(OMP_NUM_THREADS=str(len(our_cpus()))), # a thread on each processor, whoever sits there
    one=dict(OMP_NUM_THREADS='1'),
    passive=dict(OMP_NUM_THREADS=str(len(our_cpus())), OMP_WAIT_POLICY='PASSIVE'),
    spin=dict(OMP_NUM_THREADS=str(len(our_cpus())), GOMP_SPINCOUNT='10000'))
OURS = 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'

TRAINING = """
import sys, time, warnings, torch
warnings.simplefilter('ignore')
from privreid.config import preset
from privreid.data import SyntheticPedestrians
from privreid.desensitize import desensitizer
from privreid.joint import Trainer
from privreid.machine import accelerator_on
from privreid.training import JointTraining, Supervision
cfg = preset('demo')
street = SyntheticPedestrians(train_ids=16, test_ids=4, distractors=2, size=cfg.size).load()
trainer = Trainer(JointTraining(cfg, 13, accelerator_on('cpu')), street.train, Supervision(desensitizer('blur')))
trainer.nets.train()
batch,steps = next(trainer.batches(1)), int(sys.argv[1])
for _ in range(2): trainer.training.step(*batch)
start = time.perf_counter()
for _ in range(steps): trainer.training.step(*batch)
print(time.perf_counter()-start, torch.get_num_threads())
"""

def burn(limit:float, parent:int):
    "Keep a processor busy until the time is over or nobody is left who wants it."
    end = time.monotonic()+limit
    while time.monotonic()<end and os.getppid()==parent:
        for _ in range(10**6): pass

@contextmanager
def burners(n:int, limit:float):
    "Inside, `n` processes burn."
    spawn = multiprocessing.get_context('spawn')
    all = [spawn.Process(target=burn, args=(limit, os.getpid()), daemon=True) for _ in range(n)]
    try:
        for p in all: p.start()
        if all: time.sleep(3)   # until they are under way
        yield
    finally:
        for p in all: p.kill()
        for p in all: p.join()

def training(setting:dict, steps:int, limit:float)->tuple[float,int]: # seconds, threads
    "Time some joint steps of the demo in a process of their own."
    env = {k: v for k,v in os.environ.items() if k not in OURS}|setting
    done = subprocess.run([sys.executable, '-c', TRAINING, str(steps)], env=env, capture_output=True, text=True, timeout=limit)
    if done.returncode: sys.exit(done.stderr)
    seconds,threads = done.stdout.split()[-2:]
    return float(seconds), int(threads)

def main():
    p = options(__doc__, 3)
    p.add_argument('--steps', type=int, default=60, help='joint steps that are timed (default: %(default)s)')
    p.add_argument('--settings', nargs='+', choices=SETTINGS, default=list(SETTINGS))
    p.add_argument('--limit', type=float, default=600, help='seconds after which a training, and the burners, are given up (default: %(default)s)')
    args,n = p.parse_args(), len(our_cpus())
    start,took = load(), {}
    for _ in range(args.rounds):
        for state,others in (('quiet', 0), ('busy', n-1)):
            with burners(others, args.limit*len(args.settings)):
                for k in args.settings:
                    took.setdefault((k, state), []).append(training(SETTINGS[k], args.steps, args.limit))
                    print(f'{state} {k}: %.1f s with %d thread(s)' % took[k, state][-1], file=sys.stderr, flush=True)
    def seconds(k, state): return statistics.median(t for t,_ in took[k, state])
    def threads(k, state): return '/'.join(map(str, sorted({n for _,n in took[k, state]})))
    base = seconds('all' if 'all' in args.settings else args.settings[0], 'quiet')
    table = ['| setting | quiet, s | threads | busy, s | threads | quiet, of all | busy, of its own quiet |', '|---|---|---|---|---|---|---|']
    for k in args.settings:
        q,b = seconds(k, 'quiet'), seconds(k, 'busy')
        table.append(f"| {k} ({' '.join(f'{a}={v}' for a,v in SETTINGS[k].items()) or 'nothing set'}) | {q:.1f} | {threads(k, 'quiet')} | {b:.1f} | {threads(k, 'busy')} | {q/base:.2f} | {b/q:.2f} |")
    about = f'{args.steps} joint steps of the demo; busy: {n-1} of {n} processors burnt by others. Load when it began: {start:.1f}.'
    publish('A busy machine', 'torch', f'{about} {args.note}', table)

if __name__=='__main__': main()
