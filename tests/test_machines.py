"Devices that this machine lacks: an NVIDIA GPU played by PyTorch's fake tensors, an Apple GPU by real ones that pretend. And the device, the threads and the processors that a run asks for."
import time, warnings
from contextlib import contextmanager
from types import SimpleNamespace
import pytest, torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from privreid import evaluation, machine
from privreid.arms import Arm, Experiment
from privreid.config import preset
from privreid.data import SyntheticPedestrians, augment, draw_augmentation, to_float, to_uint8
from privreid.desensitize import DESENSITIZERS, desensitizer
from privreid.evaluation import Retrieval, Validate, distances, four_settings, image_quality, pooled_psnr, psnr, ssim
from privreid.joint import Progress, Trainer, home
from privreid.machine import abilities, accelerator_on, device_name, device_named, free_threads, precision_on, set_threads, threads_in
from privreid.training import JointTraining, Supervision

TINY = dict(ngf=4, ndf=4, batch=8, epochs=1, people=10, test_people=4)

@pytest.fixture(scope='module')
def street(): return SyntheticPedestrians(train_ids=10, test_ids=4, distractors=2, size=(64,32)).load()

@pytest.fixture
def here(): return accelerator_on('cpu')

# --- an NVIDIA GPU: shapes, types and devices, without a number

CUDA = torch.device('cuda')

@contextmanager
def on_cuda(trainer):
    "A trainer of the CPU as if it had been made on a GPU. Its fake tensors refuse to be mixed with those of the CPU."
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer.training.accelerator = trainer.accelerator = SimpleNamespace(device=CUDA, num_processes=1, process_index=0, is_main_process=True)
        trainer.nets.to(CUDA); trainer.supervision.desensitize.to(CUDA)
        trainer.labels = trainer.labels.to(CUDA)
        yield trainer

@pytest.fixture(params=DESENSITIZERS)
def trainer(request, street, here): return Trainer(JointTraining(preset('demo', **TINY), 8, here), street.train, Supervision(desensitizer(request.param)))

def forward_half(trainer):
    "Batch, supervision and losses of a step: all but what the backward pass and the optimisers do, which fake tensors cannot."
    x,y,labels = next(trainer.batches(1))
    p,r = trainer.training.generate(x)
    return dict(x=x, y=y, labels=labels, p=p, r=r)|trainer.training.losses_D(x, y, p, r)|trainer.training.losses_G(x, y, p, r, labels)

def test_the_forward_half_of_a_step_stays_on_the_gpu(trainer):
    with on_cuda(trainer):
        trainer.nets.train()
        made = forward_half(trainer)
        trainer.supervision.generator = trainer.nets['G_X']   # a copy of fake weights has no values to copy
        made |= {f'again {k}': v for k,v in forward_half(trainer).items()}
    assert len(made)==2*13 and {v.device.type for v in made.values()}=={'cuda'}

def test_a_mixed_device_is_found(trainer):
    "What the test above is worth: an image that was left behind is refused."
    trainer.supervision.desensitize.forward = lambda x, forward=trainer.supervision.desensitize.forward: forward(x.to('cpu'))
    with on_cuda(trainer), pytest.raises(Exception, match='device'): forward_half(trainer)

@pytest.fixture
def dry(monkeypatch):
    "Runs what measures to the moment in which a number is read; ranking only looks where its distances are."
    def ranked(distance, *_):
        assert {d.device.type for d in ([distance] if isinstance(distance, torch.Tensor) else distance)}=={'cuda'}
        return Retrieval(0., 0., 0., 0., 1)
    monkeypatch.setattr(evaluation, 'evaluate_ranking', ranked)
    def run(f):
        try: f()
        except DataDependentOutputException: pass
    return run

def test_what_measures_stays_on_the_gpu(trainer, street, dry):
    with on_cuda(trainer):
        x,y,_ = next(trainer.batches(1))
        trainer.nets.eval()
        f = trainer.nets['reid'](x)
        for made in (psnr(x, y), ssim(x, y), pooled_psnr(x, y), to_uint8(x), *augment(draw_augmentation(8, 64, 32), x, y), *distances(f, f)): assert made.device.type=='cuda'
        G_X = trainer.nets['G_X']
        dry(lambda: image_quality(G_X, street.gallery, CUDA))
        dry(lambda: four_settings(trainer.nets['reid'], trainer.supervision.desensitize, street.query, street.gallery, CUDA))
        dry(lambda: four_settings(trainer.nets['reid'], G_X, street.query, street.gallery, CUDA))
        dry(lambda: Validate(street).measure(trainer))

# --- an Apple GPU: numbers that pretend to be elsewhere

MPS = torch.device('mps:0')
MIXES = 'copy_', '_to_copy', 'index', 'index_put_', '_index_put_impl_'   # in which PyTorch takes tensors of two devices

def tensors(*args): return [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
def memory(t): return t.untyped_storage()._cdata

class There:
    "Knows which memory is on the device that is played."
    def __init__(self): self.refs = {}
    def __contains__(self, t): return memory(t) in self.refs
    def put(self, t, who):
        if t.dtype is torch.float64: raise TypeError(f'{who}: the MPS framework does not support float64.')
        self.refs[memory(t)] = StorageWeakRef(t.untyped_storage())   # kept, so that its address is not used again
    def take(self, t): self.refs.pop(memory(t), None)

class Kernels(TorchDispatchMode):
    "What is made of the device's memory is the device's; no operator mixes it with the CPU's; none makes float64."
    def __init__(self, there): super().__init__(); self.there,self.reads = there, 0
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name,given,made = f._schema.name.removeprefix('aten::'), tensors(args, kwargs or {}), f(*args, **(kwargs or {}))
        ours = [t in self.there for t in given]
        self.reads += name=='_local_scalar_dense' and any(ours)
        if not any(ours) or name in MIXES and not ours[0]: return made
        if not all(o or not t.dim() for t,o in zip(given, ours)) and name not in MIXES and not name.startswith('_foreach'): raise RuntimeError(f'{name}: Expected all tensors to be on the same device, but found mps:0 and cpu!')
        for t in tensors(made): self.there.put(t, name)
        return made

def named(v): return torch.device(v) if isinstance(v, torch.device) or isinstance(v, str) and v in ('cpu', 'mps', 'mps:0') else None

class Played(TorchFunctionMode):
    "What Python sees of the device: where a tensor says that it is, and how it gets there and back."
    def __init__(self): super().__init__(); self.there = There()
    def __enter__(self): self.kernels = Kernels(self.there); self.kernels.__enter__(); return super().__enter__()
    def __exit__(self, *error): super().__exit__(*error); self.kernels.__exit__(*error)
    def __torch_function__(self, f, types, args=(), kwargs=None):
        leaves,form = tree_flatten((args, kwargs or {}))
        first,devices = next(iter(tensors(leaves)), None), [d for d in map(named, leaves) if d]
        ours = first is not None and first in self.there
        if f in (torch.device, torch._C._nn._parse_to): return f(*args, **(kwargs or {}))
        if f==torch.Tensor.device.__get__: return MPS if ours else f(first)
        if f in (torch.Tensor.numpy, torch.Tensor.__array__) and ours: raise TypeError("can't convert mps:0 device type tensor to numpy.")
        args,kwargs = tree_unflatten(['cpu' if named(v) else v for v in leaves], form)
        made = f(*args, **kwargs)
        if f in (torch.Tensor.to, torch.Tensor.cpu):
            to = 'cpu' if f==torch.Tensor.cpu else devices[0].type if devices else 'mps' if tensors(leaves)[-1] in self.there else 'cpu'
            if memory(made)==memory(first) and ours!=(to=='mps'): made = made.clone()
            if to=='cpu': self.there.take(made)
            else: self.there.put(made, 'to')
        elif f==torch.Tensor.__deepcopy__ and ours or any(d.type=='mps' for d in devices):
            for t in tensors(made): self.there.put(t, f.__name__)
        return made

@pytest.fixture
def mps(monkeypatch):
    "A machine with an Apple GPU, played; `played.kernels` counts."
    dice = torch.Generator
    monkeypatch.setattr(torch.mps, 'device_count', lambda: 1)
    monkeypatch.setattr(torch, 'Generator', lambda device='cpu': dice())
    with Played() as played:
        machine = accelerator_on('mps')
        machine.played = played
        yield machine

def test_the_player_plays(mps):
    "Otherwise nothing that follows says anything."
    a = torch.ones(3).to('mps')
    assert a.device==(a+1).device==torch.zeros(2, device=a.device).device==MPS and a.cpu().device.type=='cpu' and a.to(torch.ones(1)).device.type=='cpu'
    assert torch.nn.Linear(2, 2).to(mps.device).weight.device==MPS
    for f,words in ((lambda: a.double(), 'float64'), (lambda: a.mean(dtype=torch.float64), 'float64'), (lambda: torch.zeros(2, dtype=torch.float64, device='mps'), 'float64'),
                    (lambda: a+torch.ones(3), 'same device'), (lambda: a.numpy(), 'numpy')):
        with pytest.raises((TypeError, RuntimeError), match=words): f()
    assert torch.equal((a*2+1).cpu(), torch.full((3,), 3.)) and a.cpu().double().dtype==torch.float64

def test_an_apple_gpu_trains_validates_and_tests(mps, street):
    "The whole of a run in numbers, by noise and then by a teacher; what it measures is what the CPU measures of the same networks."
    few = street.train[torch.arange(0, 96, 4)]
    trainer = Trainer(JointTraining(preset('demo', **TINY), 8, mps), few, Supervision(desensitizer('noise')), [Validate(street)])
    assert {t.device for t in (*trainer.nets.parameters(), trainer.images, trainer.labels)}=={MPS}
    assert not trainer.nets['G_X'].body[0].weight.is_contiguous(memory_format=torch.channels_last)
    trainer.supervision.upgrade(trainer.nets['G_X'])
    assert [row['kind'] for row in trainer.fit().history]==['epoch', 'validation']
    def measured(machine):
        exp,nets = Experiment(preset('demo', **TINY), street), trainer.nets.eval().to(machine.device)
        exp.accelerator = machine
        return exp.test([Arm('w/o U', nets['reid'], nets['G_X'], nets['G_Y']), Arm('Upper', nets['reid'])])['arms']['w/o U']
    there,here = measured(mps), measured(accelerator_on('cpu'))
    for what in ('protected', 'recovered'): assert there[what]==pytest.approx(here[what], rel=1e-5)
    assert {k: v['queries'] for k,v in there['settings'].items()}=={k: v['queries'] for k,v in here['settings'].items()}

def test_a_step_reads_no_number_from_its_device(mps, street):
    "Each would wait for all that the device still has to do. (On a CPU, where nothing waits, values are checked.)"
    trainer = Trainer(JointTraining(preset('demo', **TINY), 8, mps), street.train, Supervision(desensitizer('pixelation')))
    trainer.nets.train()
    kernels = mps.played.kernels
    kernels.reads = 0
    losses = trainer.training.step(*next(trainer.batches(1)))
    assert kernels.reads==0
    assert all(v.item()>=0 for v in losses.values()) and kernels.reads==len(losses)

@pytest.mark.parametrize('name', DESENSITIZERS)
def test_an_apple_gpu_hides_like_a_cpu(name, mps, street):
    "The noise of a batch is not that of the batch before: a device may go by two names, mps and mps:0."
    x,hide = to_float(street.train.images[:2]), Supervision(desensitizer(name))
    first,second,here = hide(x.to('mps')), hide(x.to('mps')), Supervision(desensitizer(name))(x)
    assert first.device==MPS and torch.equal(first.cpu(), second.cpu())==(name!='noise')
    if name!='noise': torch.testing.assert_close(first.cpu(), here, rtol=0, atol=1e-6)

# --- what is asked for

def test_devices_by_name(monkeypatch, one_line):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert [device_named(n) for n in ('cpu', 'cpu:0', 'cuda', 'cuda:1')]==[torch.device(n) for n in ('cpu', 'cpu', 'cuda', 'cuda:1')]
    for name,words in (('gpu', ['choose', 'cuda']), ('cuda:', ['unknown']), ('cuda:-1', ['unknown']), ('cuda:2', ['not there', 'cuda:0 to cuda:1']), ('mps', ['not there', 'cpu'])):
        with pytest.raises(ValueError) as e: accelerator_on(name)
        one_line(e.value, f"'{name}'", *words)
    assert accelerator_on('cuda:1').device==torch.device('cuda:1') and accelerator_on('cpu').device==torch.device('cpu')   # side by side in one process

def test_one_device_for_several_processes_is_refused(monkeypatch, one_line):
    monkeypatch.setenv('WORLD_SIZE', '2'); monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(ValueError) as e: accelerator_on('cuda:1')
    one_line(e.value, '2 processes', 'cuda:1')

def test_what_a_device_lacks_is_not_asked_of_it(street, recwarn):
    for kind,half,last,fused in (('mps', (), False, ()), ('xpu', ('bf16',), True, ()), ('cuda', ('bf16', 'fp16'), True, ('Adam', 'SGD'))):
        device = torch.device(kind)
        assert (abilities(device).half, abilities(device).channels_last, abilities(device).fused)==(half, last, fused)
        assert [precision_on(device, w) for w in ('no', 'bf16', 'fp16')]==['no', *(w if w in half else 'no' for w in ('bf16', 'fp16'))]
    assert [str(w.message) for w in recwarn if 'mps' in str(w.message)]
    assert device_name(torch.device('mps'))=='mps' and home(street.train.images, torch.device('mps'))==torch.device('mps')

# --- processors, and who else is there

@pytest.fixture
def two_cpus(monkeypatch):
    "A machine with two processors, of which others take `taken`, and we `own`."
    def make(taken, own=1.):
        monkeypatch.setattr(machine, 'AT_FIRST', 2)
        monkeypatch.setattr(machine, 'our_cpus', lambda: {0, 1})
        monkeypatch.setattr(machine, 'busy_seconds', lambda: ((taken+own)*time.monotonic(), own*time.monotonic()))
    return make

@pytest.mark.parametrize('taken, threads', [(0., 2), (.4, 2), (.6, 1), (1., 1), (2., 1)])
def test_threads_are_as_many_as_processors_are_free(taken, threads, two_cpus, one_line):
    two_cpus(taken)
    with warnings.catch_warnings(record=True) as told: assert free_threads.__wrapped__(.05)==threads
    assert len(told)==(threads<2)
    for w in told: one_line(w.message, f'{taken:.1f} of 2', 'OMP_NUM_THREADS')

@pytest.mark.parametrize('environment, now, asked, set_to', [({}, 2, None, [1]), ({}, 2, 2, [2]), ({}, 1, None, []), ({}, 1, 2, [2]), ({'OMP_NUM_THREADS': '2'}, 2, None, []), ({'MKL_NUM_THREADS': '1'}, 2, 1, [])])
def test_who_has_chosen_threads_keeps_them(environment, now, asked, set_to, two_cpus, monkeypatch):
    "Whoever set a variable or called torch; then the run that goes on; then the free processors."
    two_cpus(1.)
    for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): monkeypatch.delenv(k, raising=False)
    for k,v in environment.items(): monkeypatch.setenv(k, v)
    done = []
    monkeypatch.setattr(machine, 'free_threads', lambda: 1)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: now)
    monkeypatch.setattr(torch, 'set_num_threads', done.append)
    set_threads(asked)
    assert done==set_to

@pytest.mark.parametrize('taken, threads, tells', [(1., 2, True), (1., 1, False), (.3, 2, False)])
def test_late_neighbours_are_told_of_once(taken, threads, tells, two_cpus, monkeypatch, street, one_line):
    two_cpus(taken)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    bar,trainer = Progress(), SimpleNamespace(device=torch.device('cpu'), accelerator=SimpleNamespace(is_main_process=True), epoch=0, cfg=preset('demo'), sampler=SimpleNamespace(epoch=lambda e: []))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        bar.before_fit(trainer)
        for _ in range(3): time.sleep(.01); bar.after_epoch(trainer)
    assert len(told)==tells
    for w in told: one_line(w.message, '1.0 of 2', 'OMP_NUM_THREADS=1')

def test_threads_are_read_from_a_record():
    assert threads_in(device_name(torch.device('cpu')))==torch.get_num_threads() and threads_in('Tesla T4') is None
