"What is promised about speed: the same mathematics as a plain step, no work for nothing, quick to import, a cost model that counts right."
import copy, re, subprocess, sys, warnings
from pathlib import Path
import pytest, torch
from accelerate import Accelerator
from privreid import machine
from privreid.agw import AGW
from privreid.config import preset
from privreid.data import SyntheticPedestrians, to_float
from privreid.desensitize import Blur
from privreid.machine import HALF, bf16_in_hardware, precision_on
from privreid.pix2pix import PatchGAN, UNetGenerator
from privreid.training import JointTraining

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'benchmarks'))
from training import PlainStep, flops

def joint(**changes): return JointTraining(preset('demo', **dict(ngf=4, ndf=4, batch=8, lr=1e-4, people=10, test_people=4)|changes), 8, Accelerator(cpu=True))

@pytest.fixture(scope='module')
def batch():
    few = SyntheticPedestrians(size=(64,32)).split([(p, c, 0) for p in (5, 6) for c in range(4)])   # no two maxima of a pooling window so close that rounding decides
    x = to_float(few.images)
    return x, Blur()(x), few.labels()

# --- the same mathematics

def recorded(optimizers):
    "By network, the gradients that its optimiser is given."
    seen = {}
    for k,opt in optimizers.items(): opt.register_step_pre_hook(lambda opt, *_, k=k: seen.update({k: [p.grad.clone() for g in opt.param_groups for p in g['params']]}))
    return seen

def compile_with(backend, monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **options: compile(f, backend=backend, **options))

@pytest.mark.parametrize('backend', ['', *(pytest.param(b, marks=pytest.mark.full) for b in ('aot_eager', 'inductor'))])   # of torch.compile; aot_eager translates alike and does not compile
def test_fast_step_equals_plain_step(batch, backend, monkeypatch):
    compile_with(backend, monkeypatch)
    training = joint(compile=bool(backend)); training.nets.train()
    plain = PlainStep({k: copy.deepcopy(n).to(memory_format=torch.contiguous_format) for k,n in training.nets.items()}, training.cfg)
    start,before = {k: v.clone() for k,v in training.nets.named_parameters()}, {k: [b.clone() for b in n.buffers()] for k,n in training.nets.items()}
    want,got = recorded(plain.optimizers), recorded(training.optimizers)
    a,b = plain(*batch), training.step(*batch)
    assert a.keys()==b.keys()
    for k in a: assert b[k].item()==pytest.approx(a[k].item(), rel=1e-5), k
    assert want.keys()==got.keys()==training.nets.keys()
    for name,net in plain.nets.items():
        params = [(k,p) for k,p in net.named_parameters() if p.requires_grad]
        largest = max(g.norm() for g in want[name])
        for (k,p),g,h in zip(params, want[name], got[name], strict=True):
            assert (g-h).norm()<=1e-4*g.norm()+1e-5*largest, f'{name}.{k}'
            # Adam's first step is lr in the direction of gradient and decay; where these are only rounding, that may be either
            was,now = start[f'{name}.{k}'], training.nets[name].get_parameter(k)
            drive = g.abs() if name=='center' else (g+training.cfg.weight_decay*was).abs()
            sure = drive>1e-2*drive.max()
            moved = (p-was)[sure].abs()
            assert ((p-now)[sure].abs()<1e-2*moved.max()).all() and (moved>0).all(), f'{name}.{k}'
        for (k,b),was in zip(net.named_buffers(), before[name], strict=True):     # BatchNorm's statistics, and how often they were updated
            torch.testing.assert_close(training.nets[name].get_buffer(k), b, rtol=1e-4, atol=1e-5, msg=lambda m: f'{name}.{k}: {m}')
            assert k in ('mean', 'std') or not torch.equal(b, was), f'{name}.{k}'   # AGW's own, of ImageNet, are constants

@pytest.mark.full
def test_a_compiled_step_is_three_graphs(batch, monkeypatch):
    "Pictures, losses of the discriminators, losses of the others: each in one piece, and translated once."
    counters = torch._dynamo.utils.counters
    compile_with('aot_eager', monkeypatch)
    training = joint(compile=True); training.nets.train()
    torch._dynamo.reset(); counters.clear()
    for _ in range(3): training.step(*batch)
    assert counters['stats']['unique_graphs']==3 and not counters['graph_break']

def test_raw_and_protected_batches_have_statistics_of_their_own(batch):
    "Two BatchNorm updates a step, not one of both batches together."
    training = joint(); training.nets.train()
    training.step(*batch)
    assert training.nets['reid'].neck.num_batches_tracked==2
    assert training.nets['D_Y'].body[3].num_batches_tracked==3     # real, fake, and fake again for the generator

# --- the cost model

def test_flops_of_the_cost_model(batch):
    "The formula of nbs/scale.md against PyTorch's own count of a whole step."
    training = joint(ngf=8, ndf=8); training.nets.train()
    n,(x,_,_) = training.nets.eval(), batch
    with torch.no_grad(): G,D,R = (flops(f) for f in (lambda: n['G_X'](x), lambda: n['D_Y'](x, x), lambda: n['reid'](x)))
    n.train()
    assert flops(lambda: training.step(*batch))==pytest.approx(6*G+16*D+6*R, rel=.03)

def stated(name):
    "GFLOP, million parameters and MB of a network in the table of nbs/scale.md."
    row = re.search(rf'^\| {re.escape(name)} \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|', (ROOT/'nbs'/'scale.md').read_text(encoding='utf-8'), re.M)
    assert row, name
    return [float(v) for v in row.groups()]

def test_table_of_the_cost_model():
    "GFLOP per image and millions of parameters."
    def count(net, *shapes):
        with torch.device('meta'): net = net().eval()
        with torch.no_grad(): work = flops(lambda: net(*(torch.empty(1, *s, device='meta') for s in shapes)))
        return work/1e9, sum(p.numel() for p in net.parameters())/1e6
    picture = (3,256,128)
    for name,got in {'U-Net': count(UNetGenerator, picture), 'PatchGAN': count(PatchGAN, picture, picture), 'AGW, ResNet-50': count(lambda: AGW(751), picture),
                     'AGW, ResNet-50, `inter_channels=1`': count(lambda: AGW(751, inter_channels=1), picture)}.items():
        assert stated(name)[:2]==[pytest.approx(v, abs=.06) for v in got], name

def test_memory_of_the_cost_model():
    "MB that an image leaves for the backward pass."
    def kept(net, pictures):
        own,seen = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}, {}
        def pack(t):
            storage = t.untyped_storage()
            if storage.data_ptr() not in own: seen[storage.data_ptr()] = (storage.nbytes(), t)   # the tensor too, or its address would be used again
            return t
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): out = net(*(torch.rand(2, 3, 256, 128) for _ in range(pictures)))
        return sum(n for n,_ in seen.values())/2e6
    for name,got in {'U-Net': kept(UNetGenerator(), 1), 'PatchGAN': kept(PatchGAN(), 2), 'AGW, ResNet-50': kept(AGW(751), 1),
                     'AGW, ResNet-50, `inter_channels=1`': kept(AGW(751, inter_channels=1), 1)}.items():
        assert stated(name)[2]==pytest.approx(got, abs=.3), name

# --- quick to start

def python(code, *words): return subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True, timeout=600, check=True).stdout.split()

def test_help_needs_no_torch():
    "Processor time, so that a busy machine changes nothing."
    loaded,seconds = python('''
import sys, time, io, contextlib
from privreid.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(['--help'])
print('torch' in sys.modules or 'accelerate' in sys.modules, time.process_time())''')
    assert loaded=='False' and float(seconds)<1

def seconds_to_import(what, loaded):
    "Processor time, with `loaded` in memory already; its objects are frozen, for a collection of them may fall into any import."
    return float(*python('import gc, sys, time\nexec(sys.argv[2])\ngc.collect()\ngc.freeze()\nstart = time.process_time()\nexec(sys.argv[1])\nprint(time.process_time()-start)', f'import {what}', f'import {loaded}'))

@pytest.mark.full
def test_import_costs_little():
    "Beyond torch, which a training needs anyway; and the modules beyond the libraries that they use."
    assert seconds_to_import('privreid', loaded='torch')<.05
    modules = 'privreid.checkpoint, privreid.evaluation, privreid.joint, privreid.upgradation'
    loaded = 'torch, torchvision, accelerate, safetensors.torch, numpy, PIL.Image, tqdm.auto, fastcore.basics'
    assert min(seconds_to_import(modules, loaded) for _ in range(3))<.3   # the best of three: other programs disturb, and never help

# --- what the machine can do

@pytest.mark.parametrize('wanted, hardware, computed', [('fp16', True, 'no'), ('fp16', False, 'no'), ('bf16', False, 'no'), ('bf16', True, 'bf16'), ('no', False, 'no')])
def test_a_cpu_computes_in_what_it_has(wanted, hardware, computed, batch, monkeypatch, one_line):
    "And says so, once, where that is not what was asked for."
    monkeypatch.setattr(machine, 'bf16_in_hardware', lambda: hardware)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        training = joint(precision=wanted)
    said = [str(w.message) for w in told if 'precision' in str(w.message)]
    assert len(said)==(computed!=wanted)
    if said: one_line(said[0], wanted, 'float32', 'GPU' if wanted=='fp16' else 'AMX')
    assert training.precision==computed and training.cfg.precision==wanted and not training.scaler.is_enabled()
    training.nets.train()
    kinds = set()
    training.nets['G_X'].register_forward_hook(lambda net, x, y: kinds.add(y.dtype))
    training.step(*batch)
    assert kinds=={HALF.get(computed, torch.float32)}

def test_a_gpu_is_believed(monkeypatch, recwarn):
    monkeypatch.setattr(machine, 'bf16_in_hardware', lambda: False)
    for wanted in ('no', 'bf16', 'fp16'): assert precision_on(torch.device('cuda'), wanted)==wanted
    assert not recwarn

def test_bf16_is_read_from_cpuinfo(tmp_path):
    for flags,has in (('avx2 avx512f', False), ('avx512f avx512_bf16', True), ('amx_tile amx_bf16', True)):
        (tmp_path/'cpuinfo').write_text(f'model name : CPU\nflags : {flags}\n')
        assert bf16_in_hardware(tmp_path/'cpuinfo')==has
    assert bf16_in_hardware(tmp_path/'none')

def test_compile_without_a_compiler_is_said_in_one_line(monkeypatch, one_line):
    monkeypatch.setattr(machine.shutil, 'which', lambda name: None)
    with pytest.raises(ValueError) as e: joint(compile=True)
    one_line(e.value, 'compiler', 'g++')

def test_processes_that_do_not_know_each_other_are_refused(monkeypatch, one_line):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError) as e: joint()
    one_line(e.value, '2 processes', 'accelerator_on')
