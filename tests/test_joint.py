"Which loss reaches which network, determinism, and two processes. (The step against one written out by hand: test_speed.py.)"
import json, os, socket, subprocess, sys
from dataclasses import asdict, fields, replace
from types import SimpleNamespace
import numpy as np
import pytest, torch
from accelerate import Accelerator
from privreid.agw import NonLocal
from privreid.data import SyntheticPedestrians, augment, draw_augmentation, to_float
from privreid.desensitize import Blur, GaussianNoise
from privreid import joint as module, machine, training as joint_step
from privreid.config import LATER, RULES, Config, check, lr_factor, preset, read_config, stretched
from privreid.joint import Callback, Trainer
from privreid.training import JointTraining, ReidTraining, Supervision, agw_of, desensitizer_of

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

@pytest.mark.full
def test_bf16_is_computed_with_and_stays_finite(street, monkeypatch):
    "The precision of the configuration counts, whatever the Accelerator was told."
    monkeypatch.setattr(machine, 'bf16_in_hardware', lambda: True)
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
    "As its authors have it: 3.815e-5 in epoch 1, full in epoch 10, a tenth in 40, a hundredth in 80."
    cfg = Config()
    rates = {e: cfg.lr*lr_factor(e, cfg) for e in range(1, 121)}
    assert rates[1]==pytest.approx(3.815e-5) and all(rates[e]<rates[e+1] for e in range(1, 10))
    want = {e: 3.5e-4 for e in range(10, 40)}|{e: 3.5e-5 for e in range(40, 80)}|{e: 3.5e-6 for e in range(80, 121)}
    assert {e: rates[e] for e in want}==pytest.approx(want)

def test_a_training_has_the_rates_of_its_epochs(street):
    cfg = preset('demo', **TINY|dict(epochs=4, warmup=2, milestones=(3, 4)))
    history = Trainer(ReidTraining(cfg, 8, Accelerator(cpu=True)), street.train, Supervision(Blur())).fit().history
    assert [h['lr']/cfg.lr for h in history]==pytest.approx([.505, 1, .1, .01])

@pytest.mark.parametrize('epochs, milestones', [(120, (40, 80)), (12, (5, 9)), (240, (79, 159)), (3, (2, 3)), (1, ())])
def test_a_stretched_schedule_keeps_its_share(epochs, milestones):
    "39 of 120 epochs at the full rate are 4 of 12; what would begin before the second epoch or after the last is left out."
    short = stretched(Config(), epochs)
    assert short.milestones==milestones and short.warmup==round(epochs/12)

# --- the configuration, and what is told before anything is trained

WRONG = {   # changes -> words of the sentence
    'a share meant as percent': (dict(eps_r1=5), ['eps_r1', 'at most 1']), 'NaN': (dict(eps_psnr=float('nan')), ['eps_psnr', 'finite']), 'infinity': (dict(lr=float('inf')), ['lr', 'finite']),
    'near backbone': (dict(backbone='resnet51'), ['backbone', 'resnet51', "Did you mean 'resnet50'?"]), 'near data': (dict(data='makret'), ['data', "Did you mean 'market1501'?"]),
    'no such precision': (dict(precision='fp32'), ['precision', 'bf16']), 'half an epoch': (dict(epochs=2.5), ['epochs', 'whole', '2.5']), 'a word for a number': (dict(epochs='e'), ['epochs', 'whole']),
    'an epoch alone': (dict(milestones=6), ['milestones', '(40, 80)']), 'epochs as text': (dict(milestones='(40, 80)'), ['milestones', 'list']), 'downhill': (dict(milestones=(80, 40)), ['milestones', 'go up']),
    'twice': (dict(milestones=(40, 40)), ['milestones', 'go up']), 'beyond the end': (dict(milestones=(40, 121)), ['milestones', '121', '120 epochs']), 'before the start': (dict(milestones=(-1, 40)), ['milestones', 'at least 1']),
    'no epoch': (dict(milestones=(1, 'a')), ['milestones', 'whole']), 'frozen too late': (dict(freeze_bn=121), ['freeze_bn', '120 epochs']), 'warm too late': (dict(warmup=121), ['warmup', '120 epochs']),
    'no': (dict(compile='no'), ['compile', 'True or False']), '1': (dict(compile=1), ['compile', 'True or False']), 'True for a number': (dict(batch=True), ['batch', 'whole']),
    'a number for text': (dict(root=74), ['root', 'text']), 'no such weights': (dict(weights='imagnet'), ['weights', 'imagnet', 'file']), 'endless': (dict(weights='x'*5000), ['weights']),
    'two lines': (dict(desensitizer='a\nb'), ['desensitizer', 'blur']), 'weights that are not there': (dict(backbone='mini'), ['mini', 'ImageNet']), 'a seed': (dict(seed=2**63), ['seed', 'at most']),
    'odd size': (dict(height=250), ['multiples of 32']), 'tiny': (dict(width=16), ['width', 'at least 32']), 'one identity': (dict(batch=4), ['batch', 'at least two']), 'no groups': (dict(batch=62), ['batch 62', 'per_identity 4']),
    'more people than there are': (dict(data='synthetic', people=10), ['16 identities', '10 people']), 'a tensor': (dict(lr=torch.ones(3, 3)), ['lr', 'finite'])}

@pytest.mark.parametrize('changes, words', WRONG.values(), ids=WRONG)
def test_each_field_has_a_rule(changes, words, one_line):
    with pytest.raises(ValueError) as e: check(Config(**changes))
    one_line(e.value, *words)
    assert len(str(e.value))<400

def test_no_field_is_without_a_rule():
    free = 'root', 'pattern', 'weights', 'compile', 'corner', 'stem_relu', 'sync_bn', 'cuda_graphs'   # text that only the disk knows, and switches
    assert {f.name for f in fields(Config)}=={*RULES, *free} and check(Config())==Config()

def test_numbers_of_numpy_and_paths_become_plain(tmp_path):
    (tmp_path/'w.pth').touch()
    cfg = check(Config(epochs=np.int32(120), lr=np.float64(.5), lambda_l1=0, compile=np.bool_(True), milestones=np.array([3, 4]), weights=tmp_path/'w.pth', desensitizer='Mosaic'))
    assert json.loads(json.dumps(asdict(cfg)))==asdict(Config(epochs=120, lr=.5, lambda_l1=0., compile=True, milestones=[3, 4], weights=str(tmp_path/'w.pth'), desensitizer='pixelation'))
    assert {type(v) for v in asdict(cfg).values()}=={str, int, float, bool, tuple}

def test_more_or_fewer_epochs_stretch_a_preset():
    def plan(cfg): return cfg.epochs, cfg.warmup, cfg.milestones, cfg.freeze_bn, cfg.freeze_reid_bn
    assert plan(preset('demo', epochs=5))==(5, 0, (3, 5), 3, 1) and plan(preset('paper', epochs=60))==(60, 5, (21, 41), 0, 0)
    assert plan(preset('demo', epochs=4, milestones=(), freeze_bn=0))==(4, 0, (), 0, 1) and plan(preset('demo', epochs=1))==(1, 0, (), 1, 0)
    for field in ('freeze_bn', 'freeze_reid_bn'):
        with pytest.raises(ValueError, match=f'{field} 5 is beyond the last of 4 epochs'): preset('demo', epochs=4, **{field: 5})

def test_statistics_stand_still_from_their_epoch_on(street):
    "AGW's after the first epoch, the generators' after the second; discriminators go on."
    cfg = preset('demo', **TINY|dict(epochs=3, milestones=(), freeze_reid_bn=1, freeze_bn=2))
    seen = []
    class Watch(Callback):
        def after_epoch(self, trainer): seen.append({k: torch.cat([b.flatten().clone() for n,b in trainer.nets[k].named_buffers() if n.endswith('running_mean')]) for k in ('reid', 'G_X', 'G_Y', 'D_Y')})
    Trainer(JointTraining(cfg, 8, Accelerator(cpu=True)), street.train, Supervision(Blur()), [Watch()]).fit()
    still = {k: [torch.equal(a[k], b[k]) for a,b in zip(seen, seen[1:])] for k in seen[0]}
    assert still==dict(reid=[True, True], G_X=[False, True], G_Y=[False, True], D_Y=[False, False])

def test_runs_of_other_versions_are_read_or_named(one_line, recwarn):
    old = asdict(Config(freeze_bn=500, weights='gone.pth', milestones=(80, 400)))
    assert read_config(old|dict(milestones=[80, 400]))==Config(**old) and not recwarn
    assert read_config({k: v for k,v in old.items() if k!='compile'}).compile is False
    one_line(recwarn.pop(UserWarning).message, 'compile')
    first = {k: v for k,v in old.items() if k not in LATER}
    assert read_config(first)==Config(**old) and not recwarn                     # what is new and changes nothing is not worth a word
    assert read_config(first|dict(desensitizer='noise'))==Config(**old|dict(desensitizer='noise')) and not recwarn
    assert read_config(first|dict(desensitizer='noise', height=64)).height==64
    one_line(recwarn.pop(UserWarning).message, 'noise of 0.125', '0.5 at every size')
    for row,word in ((old|dict(colour='red'), 'colour'), ({}, 'no field'), (old|dict(lr=-1), 'lr')):
        with pytest.raises(ValueError) as e: read_config(row)
        one_line(e.value, word)

MISFITS = {'another size': (lambda s: s, dict(height=128), 8, ['64 x 32', '128 x 32']), 'more people': (lambda s: s, {}, 5, ['8 identities', '5']),
           'one person': (lambda s: s[s.pids==s.pids[0]], {}, 8, ['1 identity', 'triplet'])}

@pytest.mark.parametrize('change, size, identities, words', MISFITS.values(), ids=MISFITS)
def test_images_that_do_not_fit_a_training_are_told(change, size, identities, words, street, one_line):
    with pytest.raises(ValueError) as e: Trainer(ReidTraining(preset('demo', **TINY|size), identities, Accelerator(cpu=True)), change(street.train), Supervision(Blur()))
    one_line(e.value, *words)

def test_batches_smaller_than_asked_for_are_told(street):
    with pytest.warns(UserWarning, match='batches of 32 images, not of 64'): Trainer(ReidTraining(preset('demo', **TINY|dict(batch=64, people=100)), 8, Accelerator(cpu=True)), street.train, Supervision(Blur()))

@pytest.mark.parametrize('part', ['weight', 'bias', 'running_var'])
def test_a_nan_of_the_last_step_ends_the_epoch(part, street, one_line):
    "No loss is left to tell of it."
    class Spoil(Callback):
        def after_batch(self, trainer, losses): getattr(trainer.nets['reid'].neck, part).data[0] = float('nan')
    few = street.train[torch.arange(24)]
    trainer = Trainer(ReidTraining(preset('demo', **TINY), 8, Accelerator(cpu=True)), few, Supervision(Blur()), [Spoil()])
    trainer.training.step = lambda x, y, labels: dict(reid_raw=torch.tensor(1.))
    with pytest.raises(FloatingPointError) as e: trainer.fit()
    one_line(e.value, 'Epoch 1', f'reid.neck.{part}')
    assert trainer.history==[]

def test_reprs_fit_a_line(street):
    training = joint()
    trainer = Trainer(training, street.train, Supervision(Blur()))
    assert repr(trainer.supervision)=='Supervision by Blur(12, height=256)' and 'G_X 0.07' in repr(training) and '96 images of 8 identities' in repr(trainer) and 'Supervision by Blur' in repr(trainer)
    trainer.supervision.upgrade(training.nets['G_X'])
    assert 'UNetGenerator' in repr(trainer.supervision)
    assert repr(Config())=='Config()' and eval(repr(preset('demo')))==preset('demo')
    for thing in (training, trainer, trainer.supervision, preset('demo')): assert '\n' not in repr(thing) and len(repr(thing))<330

def test_too_few_people_for_a_batch_is_said_in_one_line(street):
    one = street.train[street.train.pids==street.train.pids[0]]
    with pytest.raises(ValueError) as e: Trainer(ReidTraining(preset('demo', **TINY), 1, Accelerator(cpu=True)), one, Supervision(Blur())).fit()
    assert '\n' not in str(e.value)

TWO = """
import hashlib, json, sys, torch
from accelerate import notebook_launcher
from privreid.agw import agw_loss
from privreid.config import preset
from privreid.data import SyntheticPedestrians
from privreid.desensitize import GaussianNoise
from privreid.evaluation import Validate
from privreid.joint import Trainer
from privreid.machine import accelerator_on
from privreid.training import JointTraining, Supervision, average
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
    street = SyntheticPedestrians(train_ids=10, test_ids=4, distractors=2, size=(64,32)).load()
    cfg = preset('demo', ngf=4, ndf=4, batch=16, epochs=2, validate_every=1, milestones=(), people=10, test_people=4)
    a = accelerator_on()
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

@pytest.mark.full
def test_accelerate_launch_shares_a_run(tmp_path):
    "The command of the page on the trainer, on CPUs: two processes, one folder though none is named, one writer, and w/ U goes on where w/o U left its first checkpoint."
    words = ['train', '--preset', 'demo', '--arms', 'Upper', 'Base', 'w/o U', 'w/ U', '--people', '10', '--test-people', '4', '--epochs', '2', '--batch', '16', '--milestones', '', '--ngf', '4', '--ndf', '4']
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', str(free_port())]
    done = subprocess.run([*launch, '-m', 'privreid.cli', *words], env=CPUS, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode==0, done.stderr[-3000:]
    run, = (tmp_path/'runs').iterdir()
    assert json.loads((run/'config.json').read_text())['run']['processes']==2
    rows = [json.loads(l) for l in (run/'history.jsonl').read_text().splitlines()]
    assert [(r['arm'], r['epoch']) for r in rows if r['kind']=='epoch']==[(a, e) for a in ('Upper', 'Base', 'w/o U', 'w/ U') for e in (1, 2)]
    assert done.stdout.count('Report: ')==1

# --- where the authors differ

def test_what_a_teacher_looks_at(street):
    "A desensitizer hides the whole picture, which is augmented then; a generator sees the augmented picture, as its pupil does."
    trainer = Trainer(joint(), street.train, Supervision(Blur()))
    x,y,_ = next(trainer.batches(1))
    raw = trainer.images[trainer.sampler.epoch(1)[0]]
    dice = draw_augmentation(len(raw), *trainer.cfg.size, generator=torch.Generator().manual_seed(module.seed_of(trainer.cfg.seed, 7, 1)))
    want = augment(dice, to_float(raw), Blur()(to_float(raw)))
    assert torch.equal(x, want[0]) and torch.equal(y, want[1])
    assert not torch.allclose(y, Blur()(x), atol=.1)                       # covered after it was blurred: the edge is sharp
    trainer.supervision.upgrade(trainer.nets['G_X'])
    x,y,_ = next(trainer.batches(1))
    assert torch.equal(x, want[0])                                         # the same people, the same accidents
    assert torch.equal(y, trainer.supervision(x)) and not torch.allclose(y, augment(dice, trainer.supervision(to_float(raw)))[0], atol=1e-3)

def test_the_condition_teaches_too(batch):
    "Equation (4) detaches nothing: `adv_rec` reaches G_X through the recovered picture and through the condition."
    training = joint()
    x,y,labels = batch
    p,r = training.generate(x)
    through,beside = p.detach().requires_grad_(), r.detach()
    loss = training.losses_G(x, y, through, beside, labels)['adv_rec']
    assert torch.autograd.grad(loss, through)[0].abs().sum()>0
    through,beside = p.detach().requires_grad_(), r.detach().requires_grad_()
    losses = training.losses_D(x, y, through, beside)
    assert torch.autograd.grad(losses['D_X'], [through, beside], allow_unused=True)==(None, None)   # in the step of D_X everything is

def test_variants_reach_the_networks():
    cfg = preset('demo', **TINY|dict(desensitizer='pixelation', corner=True, inter_channels=1, stem_relu=False, wrt_eps=1e-6))
    training = JointTraining(cfg, 8, Accelerator(cpu=True))
    for net in (training.nets['reid'], agw_of(cfg, 8)):
        assert {m.theta.out_channels for m in net.modules() if isinstance(m, NonLocal)}=={1} and isinstance(net.backbone.relu, torch.nn.Identity)
    assert desensitizer_of(cfg).corner and not desensitizer_of(replace(cfg, corner=False)).corner and type(desensitizer_of(replace(cfg, desensitizer='blur'))) is Blur
    plain = agw_of(preset('demo', **TINY), 8)
    assert {m.theta.out_channels for m in plain.modules() if isinstance(m, NonLocal)}=={12, 24} and isinstance(plain.backbone.relu, torch.nn.ReLU)
    seen = []
    patched = joint_step.agw_loss
    joint_step.agw_loss = lambda *args: seen.append(args[-1]) or patched(*args)
    try: training.reid_loss(torch.rand(8, 3, *cfg.size)*2-1, torch.arange(8)//2)
    finally: joint_step.agw_loss = patched
    assert seen==[1e-6]

FOUR = """
import json, sys, torch
from accelerate import notebook_launcher
from privreid.config import preset
from privreid.data import SyntheticPedestrians
from privreid.desensitize import Blur
from privreid.joint import Trainer
from privreid.machine import accelerator_on
from privreid.training import JointTraining, Supervision

def train(folder):
    torch.set_num_threads(1)
    a = accelerator_on()
    found = {}
    for sync in (True, False):
        cfg = preset('demo', ngf=4, ndf=4, batch=16, epochs=1, validate_every=1, milestones=(), people=10, test_people=4, sync_bn=sync)
        t = Trainer(JointTraining(cfg, 8, a), SyntheticPedestrians(train_ids=10, test_ids=4, distractors=2, size=(64,32)).load().train, Supervision(Blur()))
        x,y,labels = next(iter(t.batches(1)))
        t.nets.train()
        found[str(sync)] = {k: v.item() for k,v in t.training.step(x, y, labels).items()}
        found[str(sync)] = dict(zip(found[str(sync)], a.reduce(torch.tensor(list(found[str(sync)].values())), 'mean').tolist()))
        found[str(sync)+' mean'] = t.nets['G_X'].state_dict()[next(k for k in t.nets['G_X'].state_dict() if k.endswith('running_mean'))].tolist()
        found[str(sync)+' weight'] = t.nets['reid'].backbone.layer4[0].conv2.weight.flatten()[:50].tolist()
    with open(f'{folder}/{a.num_processes}-{a.process_index}.json', 'w') as f: json.dump(found, f)

if __name__=='__main__':
    if sys.argv[2]=='1': train(sys.argv[1])
    else: notebook_launcher(train, (sys.argv[1],), num_processes=int(sys.argv[2]), use_port=sys.argv[3])
"""

@pytest.mark.full
def test_four_processes_with_shared_statistics_are_one(tmp_path):
    "With sync_bn a step of four processes has the losses, statistics and new weights of one process with the whole batch; without, it does not."
    (tmp_path/'four.py').write_text(FOUR)
    for n in (1, 4):
        done = subprocess.run([sys.executable, str(tmp_path/'four.py'), str(tmp_path), str(n), str(free_port())], env=CPUS, capture_output=True, text=True, timeout=600)
        assert done.returncode==0, done.stderr[-3000:]
    one,*four = (json.loads((tmp_path/f'{k}.json').read_text()) for k in ('1-0', '4-0', '4-1', '4-2', '4-3'))
    assert one['True']==one['False'] and one['True weight']==one['False weight']        # alone, the field changes no bit
    def far(a, b): return max(abs(a[k]-b[k])/max(1e-3, abs(b[k])) for k in b)
    for f in four:
        assert f['True']==four[0]['True'] and f['True mean']==four[0]['True mean'] and f['True weight']==four[0]['True weight']
        assert far(f['True'], one['True'])<1e-3, (f['True'], one['True'])
        assert np.allclose(f['True mean'], one['True mean'], atol=1e-5) and not np.allclose(f['False mean'], one['False mean'], atol=1e-5)
        near = np.abs(np.subtract(f['True weight'], one['True weight'])).mean()/np.abs(np.subtract(f['False weight'], one['False weight'])).mean()
        assert near<.2, near
