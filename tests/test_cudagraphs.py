"A step that a GPU repeats is the step: tried on a CPU with a stand-in that takes what a recording takes and hears what a recording hears."
import gc, weakref
from dataclasses import replace
import pytest, torch
from accelerate import Accelerator
from privreid import machine, training as training_module
from privreid.config import preset
from privreid.data import SyntheticPedestrians, to_float
from privreid.desensitize import Blur
from privreid.joint import Trainer, freeze_bn
from privreid.keyed import KEYED
from privreid.parts import Parts
from privreid.cudagraphs import Replayed
from privreid.training import JointTraining, ReidTraining, Supervision

class StandIn:
    "Keeps places for the numbers and the settings that were there when it was made, and goes the step under these settings, whatever they are by now."
    made = []
    def __init__(self, step, batch, stream):
        self.step,self.batch,self.training = weakref.WeakMethod(step), [t.clone() for t in batch], weakref.ref(step.__self__)
        self.heard = self.settings(); StandIn.made.append(self)
    def settings(self):
        t = self.training()
        return [g['lr'] for o in t.optimizers.values() for g in o.param_groups], [m.training for m in t.nets.modules()]
    def __call__(self, *batch):
        assert self.heard==self.settings(), 'this recording is of other settings'
        for place,t in zip(self.batch, batch, strict=True): place.copy_(t)
        return self.step()(*self.batch)

class Impossible:
    def __init__(self, *_): raise RuntimeError('operation not permitted when stream is capturing\nmore')

@pytest.fixture
def graphs(monkeypatch):
    "A CPU that repeats what was recorded."
    StandIn.made.clear()
    monkeypatch.setitem(machine.DEVICES, 'cpu', replace(machine.DEVICES['cpu'], graphs=True))
    def use(record): monkeypatch.setattr(training_module, 'Replayed', lambda *args: Replayed(*args, record))
    use(StandIn)
    return use

def made(kind=JointTraining, parts=None, **changes):
    cfg = preset('demo', **dict(ngf=4, ndf=4, batch=8, people=10, test_people=4)|changes)
    t = kind(cfg, 8, Accelerator(cpu=True), **dict(parts=parts) if parts else {}); t.nets.train()
    return t

@pytest.fixture(scope='module')
def people(): return SyntheticPedestrians(size=(64,32)).split([(p, c, 0) for p in range(1, 9) for c in range(4)])

def weights(t): return torch.cat([v.float().flatten() for v in t.nets.state_dict().values()])

def go(t, people, steps, before=lambda t, i: None):
    losses = []
    for i in range(steps):
        before(t, i)
        x = to_float(people.images[4*(i%4):4*(i%4)+8])
        losses.append([v.item() for v in t.step(x, Blur()(x), torch.arange(8)//4).values()])
    return losses

@pytest.mark.parametrize('kind', [JointTraining, ReidTraining])
def test_repeated_steps_are_the_steps(graphs, people, kind):
    "Through a new rate and resting BatchNorm, each of which ends a recording."
    def change(t, i):
        if i==6: t.set_lr(1e-4)
        if i==12: freeze_bn(t.nets)
    a,b = made(kind), made(kind, cuda_graphs=False)
    assert isinstance(a.step, Replayed) and not isinstance(b.step, Replayed)
    assert go(a, people, 18, change)==go(b, people, 18, change) and torch.equal(weights(a), weights(b))
    assert len(StandIn.made)==3

def test_a_training_is_the_same_with_recordings(graphs, people):
    "Epochs, rates and supervision as the loop changes them."
    def trained(**changes):
        t = made(epochs=3, batch=8, milestones=(3,), freeze_bn=1, **changes)
        return Trainer(t, people, Supervision(Blur())).fit()
    a,b = trained(), trained(cuda_graphs=False)
    assert a.history==b.history and torch.equal(weights(a.training), weights(b.training))
    assert StandIn.made

def test_what_cannot_be_recorded_is_told(graphs, people):
    graphs(Impossible)
    a,b = made(), made(cuda_graphs=False)
    with pytest.warns(UserWarning, match='cannot be recorded for the GPU to repeat .operation not permitted when stream is capturing.: it is told each time') as seen: got = go(a, people, 7)
    assert len([w for w in seen if 'recorded' in str(w.message)])==1 and got==go(b, people, 7) and torch.equal(weights(a), weights(b))

@pytest.mark.parametrize('how', [dict(cuda_graphs=False), dict(through='jpeg'), *(dict(keyed=k) for k in KEYED if k), dict(parts=Parts(losses=dict(mine=lambda p: p.mean()))),
                                 dict(parts=Parts(networks=dict(D_Y=lambda cfg: training_module.PatchGAN(cfg.ndf))))], ids=str)
def test_a_step_that_is_new_each_time_is_told(graphs, how): assert not isinstance(made(**how).step, Replayed)

def test_callbacks_and_data_of_ones_own_keep_it(graphs): assert isinstance(made(parts=Parts(callbacks=(object(),))).step, Replayed)

def test_half_precision_with_a_scale_is_told(graphs, monkeypatch):
    monkeypatch.setattr(training_module, 'precision_on', lambda *_: 'fp16')
    assert not isinstance(made(precision='fp16').step, Replayed)

def test_a_backbone_of_ones_own_is_told(graphs, monkeypatch):
    monkeypatch.setattr(training_module, 'REGISTERED', [('backbone', 'mini')])
    assert not isinstance(made().step, Replayed)

@pytest.mark.parametrize('change', ['moments elsewhere', 'weights elsewhere', 'another set-up', 'momentum', 'a hook'])
def test_what_changes_beneath_ends_a_recording(graphs, people, change):
    "As a checkpoint that is read does, or a callback of one's own."
    t = made(); go(t, people, 5)
    assert t.step.recording
    p = t.nets['G_X'].body[0].weight
    if change=='moments elsewhere': t.optimizers['G_X'].state[p]['exp_avg'] = torch.zeros_like(p)
    if change=='weights elsewhere': p.data = p.data.clone()
    if change=='another set-up': t.cfg = replace(t.cfg, lambda_l1=1.)
    if change=='momentum': t.nets['reid'].neck.momentum = .5
    if change=='a hook': t.nets['G_X'].register_forward_hook(lambda *_: None)
    go(t, people, 1)
    assert not t.step.recording and t.step.left==Replayed.told-1

def test_a_run_goes_on_told_otherwise(tmp_path, people):
    "`--no-cuda-graphs` is no other set-up: a run that has filled a card goes on with it."
    from privreid.experiments import run_experiment
    cfg = preset('demo', ngf=4, ndf=4, epochs=1, milestones=(), freeze_bn=0, freeze_reid_bn=0, people=10, test_people=4)
    run_experiment(cfg, tmp_path/'run', ('Base',), device='cpu')
    done = run_experiment(replace(cfg, cuda_graphs=False), tmp_path/'run', ('Base', 'Upper'), resume=True, device='cpu')
    assert set(done['arms'])=={'Base', 'Upper'}

def test_a_cpu_has_no_recordings(): assert not isinstance(made().step, Replayed)

def test_a_training_is_freed_with_its_recording(graphs, people):
    "Without the collector of cycles: a GPU that is full does not call it."
    t = made(); go(t, people, 5)
    assert t.step.recording
    gone = weakref.ref(t)
    gc.disable()
    try:
        del t
        assert gone() is None
    finally: gc.enable()

def test_gradients_live_in_the_recording(graphs, people):
    "None of an earlier step is there when it begins, or it would be added to for ever."
    seen = []
    class Looks(StandIn):
        def __init__(self, step, batch, stream):
            super().__init__(step, batch, stream)
            seen.extend(p.grad is None for p in step.__self__.nets.parameters())
    graphs(Looks)
    go(made(), people, 4)
    assert seen and all(seen)
