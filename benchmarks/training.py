"""A joint training step, and where the time of an epoch goes: this package against a plain step of the same mathematics.

    python benchmarks/training.py                                   # CPU: 128 x 64, ResNet-18, ngf and ndf 32, batch 16
    python benchmarks/training.py --device cuda                     # one GPU: the paper's size, 256 x 128, ResNet-50, batch 64
    python benchmarks/training.py --device cuda --apart --steps 5   # a small GPU: one version in memory at a time
    python benchmarks/training.py --compile                         # on a CPU too (minutes of compiling, kept for the next time)
    python benchmarks/training.py --epoch --preset demo             # data, progress bar, log, checkpoint and validation beside the step

`PlainStep` is what one would write first: float32, channels-first, eager. Each lever is put on it alone; `privreid` pulls all of them. tests/test_speed.py holds the two to the same losses and gradients.
Prints a table and appends it to benchmarks/RESULTS.md. Versions run in turn, on a CPU each in a process of its own (as a training is), and the median of the rounds counts.
"""
import argparse, statistics, subprocess, tempfile, threading, time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from common import Apart, load, options, publish, race, stopwatch
from privreid.agw import wrt_loss
from privreid.checkpoint import Checkpoint
from privreid.config import Config, preset
from privreid.data import SyntheticPedestrians
from privreid.evaluation import Validate
from privreid.experiments import Log
from privreid.joint import Progress, Trainer
from privreid.machine import HALF, bf16_in_hardware
from privreid.training import JointTraining, Supervision, desensitizer_of

CPU = Config(data='synthetic', height=128, width=64, backbone='resnet18', weights='', ngf=32, ndf=32, batch=16)
GPU = Config(data='synthetic', weights='')

class Machine:
    "What a training asks of Accelerate, without its global state: a CPU and a GPU fit into one process."
    num_processes,process_index,is_main_process = 1, 0, True
    def __init__(self, device:torch.device): self.device = device

# --- the baseline: equations (1) to (8), one after the other

def bce(logits, real): return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

class PlainStep:
    "One joint step in plain PyTorch. `fused` and `spare` are levers: fused optimisers; no gradients for discriminators that only pass them on."
    def __init__(self, nets:dict[str,nn.Module], cfg:Config, fused:bool=False, spare:bool=False):
        self.nets,self.cfg,self.spare = nets, cfg, spare
        betas = dict(G_X=.5, G_Y=.5, D_Y=.5, D_X=.5, reid=.9)
        self.optimizers = {k: torch.optim.Adam([p for p in nets[k].parameters() if p.requires_grad], cfg.lr, (b, .999), weight_decay=cfg.weight_decay, fused=fused or None) for k,b in betas.items()}
        self.optimizers['center'] = torch.optim.SGD(nets['center'].parameters(), cfg.center_lr)

    def agw(self, z, labels):
        out,centers = self.nets['reid'](z), self.nets['center'].centers
        identity = F.cross_entropy(out.logits, labels, label_smoothing=.1)
        return identity+self.cfg.center_weight*(out.pooled-centers[labels]).pow(2).sum(1).mean()+wrt_loss(out.pooled, labels, self.cfg.wrt_eps)

    def step(self, losses, names):
        for n in self.nets.values(): n.zero_grad()
        sum(losses).backward()
        if 'center' in names: self.nets['center'].centers.grad /= self.cfg.center_weight
        for n in names: self.optimizers[n].step()

    def __call__(self, x, y, labels):
        n = self.nets
        p = n['G_X'](x)
        r = n['G_Y'](p)
        D = dict(D_Y=bce(n['D_Y'](x, y), 1)+bce(n['D_Y'](x, p.detach()), 0),                      # (1)
                 D_X=bce(n['D_X'](p.detach(), x), 1)+bce(n['D_X'](p.detach(), r.detach()), 0))    # (4)
        self.step(D.values(), ('D_Y', 'D_X'))
        for k in ('D_Y', 'D_X'): n[k].requires_grad_(not self.spare)
        G = dict(adv_ano=bce(n['D_Y'](x, p), 1), l1_ano=self.cfg.lambda_l1*(y-p).abs().mean(),             # (1), (2), (3)
                 adv_rec=bce(n['D_X'](p, r), 1), l1_rec=self.cfg.lambda_l1*(x-r).abs().mean(),             # (4), (5), (6)
                 reid_raw=self.agw(x, labels), reid_protected=self.agw(p, labels))                         # (7)
        self.step(G.values(), ('G_X', 'G_Y', 'reid', 'center'))                                            # (8)
        for k in ('D_Y', 'D_X'): n[k].requires_grad_(True)
        return D|G

# --- versions of the step

def versions(cfg:Config, identities:int, batch:tuple, half:str, compile:bool)->dict:
    "By name, a function that makes the step to be timed."
    device = batch[0].device
    def ours(cfg=cfg):
        training = JointTraining(cfg, identities, Machine(device))
        training.nets.train()
        return lambda: training.step(*batch)
    def plain(layout=torch.contiguous_format, precision='no', translate=False, **levers):
        nets = JointTraining(cfg, identities, Machine(device)).nets.train().to(memory_format=layout)
        step = PlainStep(dict(nets), cfg, **levers)
        if translate: step.nets = {k: n if k=='center' else torch.compile(n, dynamic=False) for k,n in nets.items()}
        def run():
            with torch.autocast(device.type, HALF[precision]) if precision!='no' else nullcontext(): return step(*batch)
        return run
    def read(make): return lambda: (lambda step: lambda: [v.item() for v in step().values()])(make())
    rows = {'plain: float32, channels-first, eager': plain, 'plain + channels_last': lambda: plain(torch.channels_last), 'plain + fused optimisers': lambda: plain(fused=True),
            'plain + no gradients that nobody uses': lambda: plain(spare=True)}
    if half!='no': rows[f'plain + {half}'] = lambda: plain(precision=half)
    if compile: rows['plain + torch.compile'] = lambda: plain(translate=True)
    rows['privreid'] = ours
    cuda = device.type=='cuda'
    if cuda: rows |= {'privreid, each loss read at each step': read(ours), 'privreid, told step by step': lambda: ours(replace(cfg, cuda_graphs=False))}
    if compile: rows['privreid, compile'] = lambda: ours(replace(cfg, compile=True))
    if half!='no': rows[f'privreid, {half}'] = lambda: ours(replace(cfg, precision=half))
    if half!='no' and cuda: rows[f'privreid, {half}, told step by step'] = lambda: ours(replace(cfg, precision=half, cuda_graphs=False))
    if half!='no' and compile: rows[f'privreid, {half}, compile'] = lambda: ours(replace(cfg, precision=half, compile=True))
    return rows

def flops(step)->int:
    "Floating-point operations of a step, counted by PyTorch: matrix products and convolutions, two for a multiplication and addition."
    with FlopCounterMode(display=False) as counter: step()
    return counter.get_total_flops()

def makers(cfg:Config, device:torch.device, half:str, compile:bool)->dict:
    "`versions` on a batch of noise."
    x = torch.rand(cfg.batch, 3, *cfg.size, device=device)*2-1
    y = desensitizer_of(cfg).to(device)(x)
    return versions(cfg, 751, (x, y, torch.arange(cfg.batch, device=device)//cfg.per_identity), half, compile)

def several(name:str, steps:int, threads:int, *args):
    "A function that goes `steps` steps of one version."
    torch.set_num_threads(threads)
    step = makers(*args)[name]()
    return lambda: [step() for _ in range(steps)]

def measure(rounds:int, steps:int, apart:bool, clock:str, *args)->list[str]: # lines of the table; args as of `makers`
    cfg,device = args[:2]
    def run(names):
        these = {k: (k, steps, torch.get_num_threads(), *args) for k in names}
        if device.type=='cpu': return race({k: Apart(clock, several, *t) for k,t in these.items()}, rounds, Apart.seconds, warm=3)
        return race({k: several(*t) for k,t in these.items()}, rounds, stopwatch(clock, torch.cuda.synchronize), warm=3)
    made = makers(*args)
    seconds = {k: run([k])[k] for k in made} if apart else run(made)
    first,work = next(iter(seconds.values())), flops(made['privreid']())
    lines = [f'One step counts {work/1e9:,.1f} GFLOP.', '', '| version | ms a step | images/s | times plain | GFLOP/s |', '|---|---:|---:|---:|---:|']
    return lines+[f'| {k} | {1e3*s/steps:,.1f} | {cfg.batch*steps/s:,.1f} | {first/s:.2f} | {work*steps/s/1e9:,.1f} |' for k,s in seconds.items()]

# --- a whole training: where does the time go?

class Clock:
    "Seconds by name."
    def __init__(self, sync): self.sync,self.seconds,self.calls = sync, defaultdict(float), defaultdict(int)
    def timed(self, name, f):
        def run(*args):
            self.sync(); start = time.perf_counter()
            try: return f(*args)
            finally:
                self.sync()
                self.seconds[name] += time.perf_counter()-start; self.calls[name] += 1
        return run

class Utilisation(threading.Thread):
    "Asks nvidia-smi five times a second how busy the GPU is."
    def __init__(self):
        super().__init__(daemon=True)
        self.samples,self.done = [], threading.Event()
    def run(self):
        ask = ['nvidia-smi', '--query-gpu=utilization.gpu', '--format=csv,noheader,nounits', '-i', '0']
        while not self.done.wait(.2): self.samples.append(float(subprocess.run(ask, capture_output=True, text=True).stdout or 'nan'))

def epoch(cfg:Config, device:torch.device)->tuple[str,dict[str,float]]: # what it was, seconds of each part and of all
    "Train until the first validation and checkpoint, both included."
    cfg = replace(cfg, epochs=cfg.validate_every, checkpoint_every=cfg.validate_every)
    data = SyntheticPedestrians(train_ids=cfg.people, test_ids=cfg.test_people, size=cfg.size, seed=cfg.seed).load()
    clock = Clock(torch.cuda.synchronize if device.type=='cuda' else lambda: None)
    with tempfile.TemporaryDirectory() as folder:
        training = JointTraining(cfg, len(data.train.pids.unique()), Machine(device))
        callbacks = dict(validation=Validate(data), progress=Progress(), log=Log(Path(folder)/'history.jsonl', 'w/o U', []), checkpoint=Checkpoint(folder, cfg.checkpoint_every))
        trainer = Trainer(training, data.train, Supervision(desensitizer_of(cfg).to(device)), callbacks.values())
        trainer.nets.train(); training.step(*next(trainer.batches(0)))   # to warm up
        for name,c in callbacks.items():
            for moment in ('before_fit', 'after_batch', 'after_epoch', 'after_fit'): setattr(c, moment, clock.timed(name, getattr(c, moment)))
        training.step,batches = clock.timed('step', training.step), trainer.batches
        def drawn(epoch):
            draw,end = clock.timed('data', lambda it: next(it, None)), batches(epoch)
            while (batch := draw(end)) is not None: yield batch
        trainer.batches = drawn
        watch = Utilisation()
        if device.type=='cuda': watch.start()
        start = time.perf_counter(); trainer.fit(); clock.sync(); total = time.perf_counter()-start
        watch.done.set()
    rows = {k: clock.seconds[k] for k in ('step', 'data', 'progress', 'log', 'checkpoint', 'validation')}
    rows |= {'all else': total-sum(rows.values()), 'sum': total}
    busy = f' GPU utilisation {statistics.mean(watch.samples):.0f} %.' if watch.samples else ''
    return f"{cfg.epochs} epochs of {clock.calls['step']//cfg.epochs} steps, {cfg.batch*clock.calls['step']/total:,.1f} images/s over all, {len(data.val_query)+len(data.val_gallery)} images to validate on.{busy}", rows

def epoch_table(about:str, rows:dict[str,float])->list[str]: # lines
    "What `epoch` measured."
    return [about, '', '| part | seconds | % of the steps |', '|---|---:|---:|']+[f"| {k} | {s:.2f} | {100*s/rows['step']:.1f} |" for k,s in rows.items()]

def main():
    p = options(__doc__, rounds=5)
    p.add_argument('--device', default='cpu', help='cpu or cuda (default: %(default)s)')
    p.add_argument('--preset', help="sizes of a preset instead of the device's: demo, colab or paper")
    p.add_argument('--batch', type=int, help='images in a batch')
    p.add_argument('--half', choices=('no', *HALF), help='precision to compare with float32 (default: bf16 where the hardware has it; fp16 on older GPUs)')
    p.add_argument('--compile', action=argparse.BooleanOptionalAction, help='compiled versions too (default: on a GPU only)')
    p.add_argument('--epoch', action='store_true', help='where the time of a whole training goes, instead of the step')
    p.add_argument('--apart', action='store_true', help='one version after the other, so that only one is in memory')
    p.add_argument('--steps', type=int, help='steps in a round (default: 1 on a CPU, 20 on a GPU)')
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    device,cuda,busy = torch.device(args.device), args.device=='cuda', load()
    cfg = preset(args.preset, weights='', precision='no') if args.preset else GPU if cuda else CPU
    if args.batch: cfg = replace(cfg, batch=args.batch)
    native = torch.cuda.get_device_capability()>=(8, 0) if cuda else bf16_in_hardware()
    half = args.half or ('bf16' if native else 'fp16' if cuda else 'no')
    compile = cuda if args.compile is None else args.compile
    if args.epoch: how,table = f'precision {half}, compile {compile}', epoch_table(*epoch(replace(cfg, precision=half, compile=compile), device))
    else:
        how = f'median of {args.rounds} rounds by the {args.clock} clock, versions {"one after the other" if args.apart else "in turn"}{"" if cuda else ", each in a process of its own"}'
        table = measure(args.rounds, args.steps or (20 if cuda else 1), args.apart, args.clock, cfg, device, half, compile)
    publish(f"Training{', whole epochs' if args.epoch else ''}", 'torch', f'{cfg.height} x {cfg.width}, batch {cfg.batch}, {cfg.backbone}, ngf {cfg.ngf}, ndf {cfg.ndf}; {how}; '
            f'load average {busy:.1f} at the start. {args.note}', table+([] if cuda else ['', 'On a GPU: not measured.']))

if __name__ == '__main__': main()
