"""What a GPU makes of this package: parts that each write their result at once, so that a run that is cut off still tells. Started by gpu.sh.

Each part is a process of its own with a time limit. It prints Markdown and leaves in the folder of results `gpu.csv` (part, what, value, unit), `gpu.md` (the tables) and what its training wrote.
"""
import argparse, csv, gc, os, platform, statistics, subprocess, sys, time
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from threading import Timer
import numpy as np
import torch
from claims import commit
from common import stopwatch
from evaluation import SIZES, fabricate
from training import GPU, Machine, PlainStep, Utilisation, epoch, flops, makers
from privreid.config import preset
from privreid.cudagraphs import Replayed
from privreid.data import SyntheticPedestrians, augment, draw_augmentation, to_float
from privreid.desensitize import DESENSITIZERS, desensitizer
from privreid.evaluation import distances, evaluate_ranking, ssim
from privreid.experiments import run_experiment
from privreid.joint import freeze_bn
from privreid.report import write_report
from privreid.scores import summary
from privreid.training import JointTraining
from privreid.verdicts import read_run

TOY = dict(height=64, width=32, backbone='mini', weights='', ngf=8, ndf=8, batch=16)

class Part:
    "What a part is given: where, how large, and a place for what it finds."
    def __init__(self, name:str, out:Path, device:str, toy:bool):
        self.name,self.out,self.device,self.toy = name, out, torch.device(device), toy
        self.cuda = self.device.type=='cuda'
    def size(self, **changes): return replace(GPU, **(TOY if self.toy else {})|changes)
    def sync(self): torch.cuda.synchronize() if self.cuda else None
    def found(self, what:str, value:float, unit:str):
        "Write one number down, and print it."
        print(f'| {what} | {value:,.4g} | {unit} |')
        with open(self.out/'gpu.csv', 'a', newline='', encoding='utf-8') as f: csv.writer(f).writerow([self.name, what, f'{value:.6g}', unit])
    def seconds(self, f, rounds:int, times:int=1)->float: # of one call of f
        "Median of rounds."
        clock = stopwatch('wall', self.sync)
        for _ in range(3): f()
        return statistics.median(clock(lambda: [f() for _ in range(times)])/times for _ in range(2 if self.toy else rounds))

# --- the joint step

def time_steps(part:Part, compile:bool, chosen=lambda name: True):
    "Milliseconds and memory of a joint step, version by version."
    cfg = part.size()
    made = {k: v for k,v in makers(cfg, part.device, 'bf16', compile).items() if chosen(k)}
    for name,make in reversed(made.items()) if compile else made.items():   # the fastest first, while there is time
        gc.collect()   # or memory of the version before would count
        if part.cuda: torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
        start,step = time.perf_counter(), make()
        step(); part.sync()
        first = time.perf_counter()-start
        s = part.seconds(step, 5, 1 if part.toy else 10)
        part.found(name, 1e3*s, 'ms a step')
        part.found(f'{name}: throughput', cfg.batch/s, 'images/s')
        if 'compile' in name: part.found(f'{name}: first step', first, 's')
        if part.cuda:
            part.found(f'{name}: peak memory', torch.cuda.max_memory_reserved()/2**30, 'GiB reserved')
            watch = Utilisation(); watch.start()
            end = time.monotonic()+1.5
            while time.monotonic()<end: step(); part.sync()
            watch.done.set(); watch.join()
            if watch.samples: part.found(f'{name}: GPU utilisation', statistics.mean(watch.samples), '%')
        del step

def step(part:Part):
    "The joint step at the paper's size: plain, each lever alone, all of them, in half precision"
    time_steps(part, False)
    if not part.cuda: return
    make = makers(part.size(), part.device, 'bf16', False)
    part.found('work of a step', flops(make['privreid']())/1e9, 'GFLOP')

def settings(part:Part):
    "The step under PyTorch's own switches"
    switches = [('cuDNN looks for the fastest algorithm', dict(benchmark=True, tf32=True, matmul='highest')), ('no TF32 at all', dict(benchmark=False, tf32=False, matmul='highest')),
                ('TF32 in matrix products too', dict(benchmark=False, tf32=True, matmul='high'))]
    for name,s in switches:
        torch.backends.cudnn.benchmark,torch.backends.cudnn.allow_tf32 = s['benchmark'], s['tf32']
        torch.set_float32_matmul_precision(s['matmul'])
        for version in ('plain: float32, channels-first, eager', 'privreid', 'privreid, bf16'):
            made = makers(part.size(), part.device, 'bf16', False)
            part.found(f'{version}; {name}', 1e3*part.seconds(made[version](), 3, 1 if part.toy else 10), 'ms a step')

def compiled(part:Part):
    "The same in half precision, translated by torch.compile"
    time_steps(part, True, lambda name: name=='privreid, bf16, compile')

# --- is the fast step the plain one?

def parity(part:Part):
    "Largest relative difference of the fast step from the plain one, in float32 without TF32, on the same batch"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name,cfg in dict(demo=preset('demo', weights='', batch=8, lr=1e-4), paper=part.size(batch=16)).items():
        people = SyntheticPedestrians(size=cfg.size).split([(p, c%4, 0) for p in range(cfg.batch//4) for c in range(4)])
        x = to_float(people.images.to(part.device))
        batch = x, desensitizer('blur').to(part.device)(x), people.labels().to(part.device)
        training = JointTraining(cfg, cfg.batch//4, Machine(part.device)); training.nets.train()
        twin = JointTraining(cfg, cfg.batch//4, Machine(part.device)); twin.nets.load_state_dict(training.nets.state_dict())
        plain = PlainStep(dict(twin.nets.train().to(memory_format=torch.contiguous_format)), cfg)
        before = {k: v.detach().clone() for k,v in training.nets.named_parameters()}
        want,got = plain(*batch), training.step(*batch)
        off = max(abs((got[k]-v)/v).item() for k,v in want.items())
        part.found(f'{name}: losses', off, 'relative')
        assert off<1e-3, f'{name}: the losses of the fast step differ by {off:.2g}'
        for net in ('G_X', 'G_Y', 'D_Y', 'D_X', 'reid'):
            a,b = (torch.cat([(p-before[k]).flatten() for k,p in nets.named_parameters() if k.startswith(net)]) for nets in (twin.nets, training.nets))
            part.found(f'{name}: update of {net}, cosine', torch.nn.functional.cosine_similarity(a, b, 0).item(), '1 is equal')
    for precision in ('bf16', 'fp16') if part.cuda else ():
        cfg = part.size(batch=16, precision=precision)
        twins = [JointTraining(replace(cfg, cuda_graphs=on), cfg.batch//4, Machine(part.device)) for on in (True, False)]
        for t in twins: t.nets.train()
        if precision=='fp16': twins[0].step = Replayed(twins[0].step, twins[0].nets, twins[0].optimizers)   # a training does not, before it has been measured here
        for i in range(16):   # through a new rate and resting BatchNorm
            if i==6: [t.set_lr(1e-4) for t in twins]
            if i==11: [freeze_bn(t.nets) for t in twins]
            got,want = (t.step(*(v.roll(i, 0) for v in batch)) for t in twins)
        a,b = (torch.cat([v.float().flatten() for v in t.nets.state_dict().values()]) for t in twins)
        part.found(f'{precision}, 16 steps: weights of the repeated step', (a-b).abs().max().item(), 'largest difference to steps told one by one')
        assert twins[0].step.recording, f'{precision}: the step was not recorded'

# --- everything beside the step

def pipeline(part:Part):
    "Desensitizers, augmentation and SSIM on batches that are on the device"
    size,n = ((64, 32), 16) if part.toy else ((256, 128), 64)
    images = SyntheticPedestrians(size=size).split([(i//4+1, i%4, 0) for i in range(n)]).images.to(part.device)
    x,dice = to_float(images), draw_augmentation(n, *size, generator=torch.Generator().manual_seed(0))
    work = {name: lambda d=desensitizer(name).to(part.device): d(x) for name in DESENSITIZERS}
    work |= {'augmentation of a pair': lambda: augment(dice, x, x), 'SSIM': lambda: ssim(x, x.flip(0))}
    with torch.no_grad():
        for name,f in work.items(): part.found(name, 1/part.seconds(f, 9, 10), f'batches of {n} a second')

def retrieval(part:Part):
    "Distances and ranking with the features on the device"
    for size in ('tiny',) if part.toy else ('market1501', 'msmt17'):
        q,v,labels = fabricate(*SIZES[size])
        q,v = q.to(part.device), v.to(part.device)
        if size!='msmt17': part.found(f'{size}: bare product', part.seconds(lambda: q@v.T, 3), 's')
        part.found(f'{size}: product and ranking', part.seconds(lambda: evaluate_ranking(distances(q, v), *labels), 3 if size!='msmt17' else 1), 's')

def whole(part:Part):
    "Where the time of an epoch goes at the paper's size, in bf16: data, log, checkpoint and validation beside the step"
    cfg = part.size(precision='bf16' if part.cuda else 'no', validate_every=1 if part.toy else 5, people=16 if part.toy else 128, test_people=4 if part.toy else 48)
    with redirect_stderr(open(os.devnull, 'w')): about,seconds = epoch(cfg, part.device)
    for k,s in seconds.items():
        part.found(k, s, 's')
        part.found(f'{k}, of the steps', 100*s/seconds['step'], '%')
    print(f'\n{about}')

# --- trainings

def train(part:Part, name:str, arms:tuple[str,...]=('Base', 'Upper', 'w/o U', 'w/ U'), **changes):
    "A run with its report."
    toy = TOY|dict(epochs=2, people=12, test_people=4, milestones=(2,), warmup=0, freeze_bn=0, validate_every=1, checkpoint_every=1, precision='no') if part.toy else {}
    folder,start = part.out/f'run-{name}', time.perf_counter()
    with redirect_stderr(open(os.devnull, 'w')): run_experiment(preset(name, **changes|toy), folder, arms, device=str(part.device))
    part.found(f'{name}: whole run', time.perf_counter()-start, 's')
    run = read_run(folder)
    for arm in run.meta['arms']: part.found(f'{name}, {arm}: rank-1 raw-raw', 100*run.results['arms'][arm]['settings']['raw-raw']['rank1'], '%')
    print('\n```\n'+summary(run.results, run.history, run.eps)+'\n```\n')
    write_report(folder, part.out/f'report-{name}.html')

def paper(part:Part):
    "About a hundred steps of the paper's preset, on painted people"
    train(part, 'paper', ('Base', 'w/o U', 'w/ U'), data='synthetic', weights='', epochs=5, milestones=(4,), validate_every=5, checkpoint_every=5, precision='bf16' if part.cuda else 'no')

def colab(part:Part):
    "The colab preset with its report"
    train(part, 'colab', weights='', **dict(precision='bf16') if part.cuda else {})

PARTS = dict(step=120, parity=40, compiled=240, whole=60, retrieval=90, pipeline=40, settings=60, paper=120, colab=420)   # seconds that each may take, most valuable first

def machine(out:Path, device:str):
    "What it was measured on."
    card = torch.cuda.get_device_name() if device=='cuda' else 'no GPU'
    line = f'{card}, {os.cpu_count()} CPU cores, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, Python {platform.python_version()}, NumPy {np.__version__}; commit {commit() or "unknown"}, seed 0'
    with open(out/'gpu.csv', 'a', newline='', encoding='utf-8') as f: csv.writer(f).writerows([('part', 'what', 'value', 'unit'), ('machine', line, '', '')])
    return line

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='*', metavar='part', help=f"of {', '.join(PARTS)} (default: all)")
    p.add_argument('--out', type=Path, default=Path('gpu-results'), help='folder of results (default: %(default)s)')
    p.add_argument('--device', default='cuda', help='cuda or cpu (default: %(default)s)')
    p.add_argument('--toy', action='store_true', help='toy sizes')
    p.add_argument('--minutes', type=float, default=12, help='of all parts together; what does not fit is left out (default: %(default)s)')
    p.add_argument('--here', action='store_true', help=argparse.SUPPRESS)   # one part, in this process
    args = p.parse_args()
    if strange := set(args.parts)-set(PARTS): p.error(f"no part is called {', '.join(sorted(strange))}: choose {', '.join(PARTS)}.")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.here:
        name, = args.parts
        part,f = Part(name, args.out, args.device, args.toy), globals()[name]
        print(f'\n## {f.__doc__}\n\n| what | measured | unit |\n|---|---:|---|')
        return f(part)
    begun,failed = time.monotonic(), []
    with open(args.out/'gpu.md', 'a', encoding='utf-8') as log:
        def tell(text): print(text, end='', flush=True); log.write(text); log.flush()
        tell(machine(args.out, args.device)+'\n')
        for name in args.parts or PARTS:
            left = min(PARTS[name], 60*args.minutes-(time.monotonic()-begun))
            if left<5: tell(f'\n{name}: no time left.\n'); failed.append(name); continue
            start = time.monotonic()
            child = subprocess.Popen([sys.executable, __file__, name, '--here', '--out', args.out, '--device', args.device]+['--toy']*args.toy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            end = Timer(left, child.kill); end.start()
            for line in child.stdout: tell(line)
            end.cancel()
            how = 'done' if child.wait()==0 else f'cut off after {left:.0f} s' if child.returncode<0 else 'FAILED'
            tell(f'\n({name}: {how}, {time.monotonic()-start:.0f} s)\n')
            if child.returncode: failed.append(name)
    return f"{', '.join(failed)}: not measured" if failed else None

if __name__=='__main__': sys.exit(main())
