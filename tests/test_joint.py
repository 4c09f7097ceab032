"The joint step against a reference written out by hand, gradients, determinism, and two processes."
import copy, json, os, subprocess, sys, textwrap
import pytest, torch
import torch.nn.functional as F
from accelerate import Accelerator
from privreid.agw import id_loss, wrt_loss
from privreid.data import SyntheticPedestrians, to_float
from privreid.desensitize import Blur, GaussianNoise
from privreid.joint import Config, JointTraining, ReidTraining, Supervision, Trainer, lr_factor, preset

TINY = dict(ngf=4, ndf=4, batch=8, epochs=2, milestones=(), people=10, test_people=4)

@pytest.fixture(scope='module')
def street(): return SyntheticPedestrians(train_ids=10, test_ids=4, distractors=2, size=(64,32)).load()

@pytest.fixture
def batch(street):
    few = street.train[torch.arange(0, 48, 4)[:8]]
    x = to_float(few.images)
    return x, Blur()(x), few.labels()

def joint(**changes): return JointTraining(preset('demo', **TINY|changes), 8, Accelerator(cpu=True))
def bce(logits, real): return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

def reference_step(nets, cfg, x, y, labels):
    "One joint step with plain autograd and plain optimisers, every equation spelled out; returns the losses."
    betas = dict(G_X=.5, G_Y=.5, D_X=.5, D_Y=.5, reid=.9)
    adam = {k: torch.optim.Adam([p for p in nets[k].parameters() if p.requires_grad], cfg.lr, (b, .999), weight_decay=cfg.weight_decay) for k,b in betas.items()}
    sgd = torch.optim.SGD(nets['center'].parameters(), cfg.center_lr)
    p = nets['G_X'](x); r = nets['G_Y'](p)
    losses = {'D_Y': bce(nets['D_Y'](x, y), 1)+bce(nets['D_Y'](x, p.detach()), 0),                          # (1)
              'D_X': bce(nets['D_X'](p.detach(), x), 1)+bce(nets['D_X'](p.detach(), r.detach()), 0)}        # (4)
    for k in ('D_Y', 'D_X'):
        adam[k].zero_grad(); losses[k].backward(); adam[k].step()
    def agw(z):
        out = nets['reid'](z)
        center = sum((f-nets['center'].centers[l]).pow(2).sum() for f,l in zip(out.pooled, labels))/len(labels)
        return id_loss(out.logits, labels)+.0005*center+wrt_loss(out.pooled, labels)
    losses |= dict(adv_ano=bce(nets['D_Y'](x, p), 1), l1_ano=100*(y-p).abs().mean(), adv_rec=bce(nets['D_X'](p.detach(), r), 1),
                   l1_rec=100*(x-r).abs().mean(), reid_raw=agw(x), reid_protected=agw(p))
    for n in nets.values(): n.zero_grad()
    sum(losses[k] for k in ('adv_ano', 'l1_ano', 'adv_rec', 'l1_rec', 'reid_raw', 'reid_protected')).backward()
    nets['center'].centers.grad /= .0005
    for o in (adam['G_X'], adam['G_Y'], adam['reid'], sgd): o.step()
    return losses

def test_step_equals_reference(batch):
    training = joint(); training.nets.train()
    nets = {k: copy.deepcopy(n) for k,n in training.nets.items()}
    want,got = reference_step(nets, training.cfg, *batch), training.step(*batch)
    assert got.keys()==want.keys()
    for k in want: assert got[k].item()==pytest.approx(want[k].item(), rel=1e-4), k

def test_weights_after_a_step_equal_reference(batch):
    training = joint(lr=1e-4); training.nets.train()
    nets = {k: copy.deepcopy(n) for k,n in training.nets.items()}
    start = {k: v.clone() for k,v in training.nets.state_dict().items()}
    reference_step(nets, training.cfg, *batch); training.step(*batch)
    for name,net in nets.items():
        for k,want in net.named_parameters():
            got,was = dict(training.nets[name].named_parameters())[k], start[f'{name}.{k}']
            # Adam's first step is lr*sign(gradient): gradients that are only rounding may go either way, so compare the bulk
            assert (got-want).abs().mean()<.2*(want-was).abs().mean()+1e-9, f'{name}.{k}'
    assert (training.nets['center'].centers-nets['center'].centers).abs().max()<1e-4

def test_G_step_leaves_discriminators_alone(batch):
    training = joint(); training.nets.train()
    x,y,labels = batch
    p = training.nets['G_X'](x); r = training.nets['G_Y'](p)
    before = {k: v.clone() for k,v in training.nets.named_parameters() if k.startswith('D_')}
    training.step_G(x, y, p, r, labels)
    for k,v in training.nets.named_parameters():
        if k.startswith('D_'): assert v.grad is None and torch.equal(v, before[k]) and v.requires_grad

def test_D_step_leaves_generators_alone(batch):
    training = joint(); training.nets.train()
    x,y,labels = batch
    p = training.nets['G_X'](x); r = training.nets['G_Y'](p)
    training.step_D(x, y, p, r)
    assert all(v.grad is None for k,v in training.nets.named_parameters() if not k.startswith('D_'))
    assert all(v.grad is not None for k,v in training.nets.named_parameters() if k.startswith('D_'))

@pytest.mark.parametrize('term', ['adv_ano', 'l1_ano', 'adv_rec', 'l1_rec', 'reid_protected'])
def test_each_term_reaches_G_X(batch, term):
    training = joint(); training.nets.train()
    x,y,labels = batch
    p = training.nets['G_X'](x); r = training.nets['G_Y'](p)
    training.losses_G(x, y, p, r, labels)[term].backward()
    assert all(v.grad is not None and v.grad.abs().sum()>0 for k,v in training.nets['G_X'].named_parameters() if k.endswith('weight') and v.dim()==4)

def test_frozen_supervision_never_learns(batch, street):
    training = joint()
    supervision = Supervision(Blur()); supervision.upgrade(training.nets['G_X'])
    before = {k: v.clone() for k,v in supervision.generator.state_dict().items()}
    Trainer(training, street.train, supervision).fit()
    assert all(torch.equal(v, before[k]) for k,v in supervision.generator.state_dict().items())      # statistics of BatchNorm included
    assert all(p.grad is None for p in supervision.generator.parameters())
    assert any(not torch.equal(v, before[k]) for k,v in training.nets['G_X'].state_dict().items())

def test_two_runs_agree_also_with_noise(street):
    def run():
        t = Trainer(joint(), street.train, Supervision(GaussianNoise())).fit()
        return t.history, {k: v.clone() for k,v in t.nets.state_dict().items()}
    (h1,w1),(h2,w2) = run(), run()
    assert h1==h2 and all(torch.equal(w1[k], w2[k]) for k in w1)
    assert Trainer(joint(seed=1), street.train, Supervision(GaussianNoise())).fit().history!=h1

def test_seed_reaches_the_weights():
    a,b,c = (joint(seed=s).nets['G_X'].body[0].weight for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_bf16_runs_and_stays_finite(street):
    training = JointTraining(preset('demo', **TINY), 8, Accelerator(cpu=True))
    training.accelerator = type('A', (), dict(autocast=lambda self: torch.autocast('cpu', torch.bfloat16), num_processes=1, device=torch.device('cpu'), process_index=0, is_main_process=True))()
    history = Trainer(training, street.train, Supervision(Blur())).fit().history
    assert all(v==v and abs(v)<1e4 for row in history for v in row.values() if isinstance(v, float))

def test_schedule_of_the_paper():
    rates = [lr_factor(e, Config()) for e in range(120)]
    assert rates[0]==pytest.approx(.01) and rates[10:40]==[1.]*30 and rates[79]==pytest.approx(.1) and rates[119]==pytest.approx(.01)
    assert all(a<b for a,b in zip(rates[:10], rates[1:11]))

def test_too_few_people_for_a_batch_is_said_in_one_line(street):
    one = street.train[street.train.pids==street.train.pids[0]]
    with pytest.raises(ValueError) as e: Trainer(ReidTraining(preset('demo', **TINY), 1, Accelerator(cpu=True)), one, Supervision(Blur())).fit()
    assert '\n' not in str(e.value)

TWO = '''
import hashlib, json, sys, torch
from accelerate import Accelerator
from privreid.data import SyntheticPedestrians
from privreid.desensitize import GaussianNoise
from privreid.evaluation import Validate
from privreid.joint import JointTraining, Supervision, Trainer, preset
from privreid.upgradation import Upgradation
torch.set_num_threads(1)
street = SyntheticPedestrians(train_ids=10, test_ids=4, distractors=2, size=(64,32)).load()
cfg = preset('demo', ngf=4, ndf=4, batch=16, epochs=2, validate_every=1, milestones=(), people=10, test_people=4)
a = Accelerator(cpu=True)
t = Trainer(JointTraining(cfg, 8, a), street.train, Supervision(GaussianNoise()), [Validate(street), Upgradation(0.)])
seen = [sorted(set(l.tolist())) for x,y,l in t.batches(1)]
t.fit()
digest = hashlib.sha256(b''.join(v.cpu().contiguous().numpy().tobytes() for v in t.nets.state_dict().values() if v.is_floating_point())).hexdigest()
with open(f'{sys.argv[1]}/{a.process_index}.json', 'w') as f: json.dump(dict(world=a.num_processes, digest=digest, history=t.history, seen=seen), f)
'''

def test_two_processes_end_with_equal_weights(tmp_path, street):
    (tmp_path/'two.py').write_text(textwrap.dedent(TWO))
    env = os.environ|dict(OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true')
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(tmp_path/'two.py'), str(tmp_path)],
                          env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode==0, done.stderr[-3000:]
    a,b = (json.loads((tmp_path/f'{i}.json').read_text()) for i in (0, 1))
    assert a['world']==b['world']==2
    assert a['digest']==b['digest'] and a['history']==b['history']
    assert all(not set(p)&set(q) for p,q in zip(a['seen'], b['seen']))          # no identity twice in a step
