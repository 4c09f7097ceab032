"Which loss reaches which network, determinism, and two processes. (The step against one written out by hand: test_speed.py.)"
import json, os, socket, subprocess, sys
from types import SimpleNamespace
import pytest, torch
from accelerate import Accelerator
from privreid.data import SyntheticPedestrians, to_float
from privreid.desensitize import Blur, GaussianNoise
from privreid import joint as module
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

def test_G_step_leaves_discriminators_alone(batch):
    training = joint(); training.nets.train()
    x,y,labels = batch
    p,r = training.generate(x)
    before = {k: v.clone() for k,v in training.nets.named_parameters() if k.startswith('D_')}
    training.step_G(x, y, p, r, labels)
    for k,v in training.nets.named_parameters():
        if k.startswith('D_'): assert v.grad is None and torch.equal(v, before[k]) and v.requires_grad

def test_D_step_leaves_generators_alone(batch):
    training = joint(); training.nets.train()
    x,y,labels = batch
    p,r = training.generate(x)
    training.step_D(x, y, p, r)
    assert all(v.grad is None for k,v in training.nets.named_parameters() if not k.startswith('D_'))
    assert all(v.grad is not None for k,v in training.nets.named_parameters() if k.startswith('D_'))

@pytest.mark.parametrize('term', ['adv_ano', 'l1_ano', 'adv_rec', 'l1_rec', 'reid_protected'])
def test_each_term_reaches_G_X(batch, term):
    training = joint(); training.nets.train()
    x,y,labels = batch
    p,r = training.generate(x)
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

def test_bf16_is_computed_with_and_stays_finite(street, monkeypatch):
    "The precision of the configuration counts, whatever the Accelerator was told."
    monkeypatch.setattr(module, 'bf16_in_hardware', lambda: True)
    training,kinds = joint(precision='bf16'), set()
    training.nets['G_X'].register_forward_hook(lambda net, x, y: kinds.add(y.dtype))
    training.nets['reid'].backbone.register_forward_hook(lambda net, x, y: kinds.add(y.dtype))
    history = Trainer(training, street.train, Supervision(Blur())).fit().history
    assert kinds=={torch.bfloat16}
    assert all(v==v and abs(v)<1e4 for row in history for v in row.values() if isinstance(v, float))

def test_images_wait_where_there_is_room(monkeypatch):
    images,free = torch.zeros(10, 3, 64, 32, dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (free[0], 10**12))
    def where(bytes_free, device='cuda'): free[:] = [bytes_free]; return module.home(images, torch.device(device)).type
    assert (where(3*images.nbytes-1), where(3*images.nbytes))==('cpu', 'cuda')
    assert where(0, 'cpu')=='cpu' and where(0, 'meta')=='meta'

def test_batches_travel_from_ram_to_the_device(street):
    "To PyTorch's device without memory, in place of a GPU."
    trainer = Trainer(joint(), street.train, Supervision(Blur()))
    want = [x.shape for x,_,_ in trainer.batches(1)]
    trainer.accelerator = SimpleNamespace(device=torch.device('meta'), process_index=0, num_processes=1)
    trainer.labels,trainer.supervision.desensitize = trainer.labels.to('meta'), torch.nn.Identity()
    got = list(trainer.batches(1))
    assert trainer.images.device.type=='cpu' and {t.device.type for b in got for t in b}=={'meta'}
    assert [x.shape for x,_,_ in got]==[y.shape for _,y,_ in got]==want

def test_schedule_of_the_paper():
    rates = [lr_factor(e, Config()) for e in range(120)]
    assert rates[0]==pytest.approx(.01) and rates[10:40]==[1.]*30 and rates[79]==pytest.approx(.1) and rates[119]==pytest.approx(.01)
    assert all(a<b for a,b in zip(rates[:10], rates[1:11]))

def test_too_few_people_for_a_batch_is_said_in_one_line(street):
    one = street.train[street.train.pids==street.train.pids[0]]
    with pytest.raises(ValueError) as e: Trainer(ReidTraining(preset('demo', **TINY), 1, Accelerator(cpu=True)), one, Supervision(Blur())).fit()
    assert '\n' not in str(e.value)

TWO = """
import hashlib, json, sys, torch
from accelerate import Accelerator, notebook_launcher
from privreid.agw import agw_loss
from privreid.data import SyntheticPedestrians
from privreid.desensitize import GaussianNoise
from privreid.evaluation import Validate
from privreid.joint import JointTraining, Supervision, Trainer, average, preset, share_cpus
from privreid.upgradation import Upgradation

def difference(training, a, x, labels):
    "Re-ID's loss and gradients, shared out, against those of one process with the whole batch; BatchNorm in eval mode."
    reid,center,part = training.nets['reid'], training.nets['center'], slice(a.process_index*8, (a.process_index+1)*8)
    params = [p for p in [*reid.parameters(), *center.parameters()] if p.requires_grad]
    for m in reid.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.eval()
    def shared(gathered):
        loss = training.reid_loss(x[part], labels[part]) if gathered else agw_loss(reid(x[part]), labels[part], center)
        got = [g.contiguous() for g in torch.autograd.grad(loss, params)]
        average(mean := [loss.detach().reshape(1), *got], a)
        return mean
    loss = agw_loss(reid(x), labels, center)
    want = [loss.detach().reshape(1), *torch.autograd.grad(loss, params)]
    return [max(((g-w).norm()/w.norm().clamp(min=1e-3)).item() for g,w in zip(shared(gathered), want)) for gathered in (True, False)]

def train(folder):
    torch.set_num_threads(1)
    share_cpus()
    street = SyntheticPedestrians(train_ids=10, test_ids=4, distractors=2, size=(64,32)).load()
    cfg = preset('demo', ngf=4, ndf=4, batch=16, epochs=2, validate_every=1, milestones=(), people=10, test_people=4)
    a = Accelerator()
    t = Trainer(JointTraining(cfg, 8, a), street.train, Supervision(GaussianNoise()), [Validate(street), Upgradation(0.)])
    whole = (torch.rand(16, 3, 64, 32, generator=torch.Generator().manual_seed(0))*2-1, torch.arange(16)//4)
    apart = difference(t.training, a, *whole)
    compiled = JointTraining(cfg, 8, a)
    compiled.reid_loss = torch.compile(compiled.reid_loss, backend='aot_eager', dynamic=False)
    apart.append(difference(compiled, a, *whole)[0])
    seen = [sorted(set(l.tolist())) for x,y,l in t.batches(1)]
    t.fit()
    digest = hashlib.sha256(b''.join(v.cpu().contiguous().numpy().tobytes() for v in t.nets.state_dict().values() if v.is_floating_point())).hexdigest()
    with open(f'{folder}/{a.process_index}.json', 'w') as f: json.dump(dict(world=a.num_processes, digest=digest, history=t.history, seen=seen, apart=apart), f)

if __name__=='__main__': notebook_launcher(train, (sys.argv[1],), num_processes=2, use_port=sys.argv[2])
"""

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

CPUS = os.environ|dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What two processes of `notebook_launcher` say."
    folder = tmp_path_factory.mktemp('two')
    (folder/'two.py').write_text(TWO)
    done = subprocess.run([sys.executable, str(folder/'two.py'), str(folder), str(free_port())], env=CPUS, capture_output=True, text=True, timeout=600)
    assert done.returncode==0, done.stderr[-3000:]
    return [json.loads((folder/f'{i}.json').read_text()) for i in (0, 1)]

def test_two_processes_end_with_equal_weights(two):
    a,b = two
    assert a['world']==b['world']==2
    assert a['digest']==b['digest'] and a['history']==b['history']
    assert all(not set(p)&set(q) for p,q in zip(a['seen'], b['seen'], strict=True))          # no identity twice in a step

def test_two_processes_compute_the_loss_and_gradients_of_one(two):
    for shared,alone,compiled in (r['apart'] for r in two):
        assert shared<1e-4 and compiled<1e-4
        assert alone>1e-2      # triplets of a process's own half would be another loss

def test_accelerate_launch_shares_a_run(tmp_path):
    "The command of lesson 04, on CPUs: two processes, one folder though none is named, one writer, and w/ U goes on where w/o U left its first checkpoint."
    words = ['train', '--preset', 'demo', '--arms', 'Upper', 'Base', 'w/o U', 'w/ U', '--people', '10', '--test-people', '4', '--epochs', '2', '--batch', '16', '--milestones', '', '--ngf', '4', '--ndf', '4']
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', str(free_port())]
    done = subprocess.run([*launch, '-m', 'privreid.cli', *words], env=CPUS, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode==0, done.stderr[-3000:]
    run, = (tmp_path/'runs').iterdir()
    assert json.loads((run/'config.json').read_text())['run']['processes']==2
    rows = [json.loads(l) for l in (run/'history.jsonl').read_text().splitlines()]
    assert [(r['arm'], r['epoch']) for r in rows if r['kind']=='epoch']==[(a, e) for a in ('Upper', 'Base', 'w/o U', 'w/ U') for e in (1, 2)]
    assert done.stdout.count('Report: ')==1
