"A run that is killed again and again ends like one that never was; whatever fails, the last good checkpoint stays; and one process at a time writes."
import errno, json, multiprocessing, os, random, re, resource, shutil, signal, stat, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest, torch
from accelerate import Accelerator
from privreid.checkpoint import Checkpoint, read_tensors, restore, training_state
from privreid.cli import main
from privreid.config import preset
from privreid.data import SyntheticPedestrians
from privreid.desensitize import GaussianNoise
from privreid.evaluation import Validate
from privreid.folder import LOCK, NOTE, held, holder
from privreid.joint import Callback, Trainer
from privreid.training import JointTraining, Supervision
from privreid.upgradation import Upgradation

# Noise, two learning rates, and epsilons that upgrade early: all that can be forgotten takes part.
TINY = dict(people=8, test_people=4, epochs=3, batch=16, ngf=4, ndf=4, desensitizer='noise', validate_every=1, checkpoint_every=1, milestones=(2,), eps_psnr=99., eps_ssim=2., eps_r1=1.)
WORDS = ['train', '--preset', 'demo', *(w for k,v in TINY.items() for w in ('--'+k.replace('_', '-'), ' '.join(map(str, v)) if isinstance(v, tuple) else str(v)))]

# Workers come from a server that has imported everything and computed nothing: they start at once, and are real processes that get a real SIGKILL.
workers = multiprocessing.get_context('forkserver')
workers.set_forkserver_preload(['pytest', 'privreid.experiments', 'privreid.cli'])

def die(): os.kill(os.getpid(), signal.SIGKILL)

def die_writing(when:str, n:int):
    "Die at the `n`-th file: 'half' written, whole but not 'renamed', or 'just after'."
    count,name = [n], 'fsync' if when=='half' else 'replace'
    original = getattr(os, name)
    def fatal(*args):
        count[0] -= 1
        if count[0]: return original(*args)
        if when=='half': os.ftruncate(args[0], os.fstat(args[0]).st_size//2)
        if when=='just after': original(*args)
        die()
    setattr(os, name, fatal)

def disk_full(): resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))   # Python ignores SIGXFSZ: writing beyond it is an OSError, as on a full disk
def read_only():
    def refuse(*args): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    os.replace = refuse

def work(argv, log, fault=None, *how):
    torch.set_num_threads(1)
    with open(log, 'w') as f: os.dup2(f.fileno(), 1); os.dup2(f.fileno(), 2)
    if fault: fault(*how)
    sys.exit(main(list(map(str, argv))))

def start(argv, log, *fault):
    p = workers.Process(target=work, args=(argv, log, *fault))
    p.start()
    return p

def finish(*args)->int:
    p = start(*args)
    p.join(300)
    return p.exitcode

def resume(run): return ['train', '--resume', run]

def ending(run)->dict:
    "All that a run leaves which is not wall clock: weights and history by the byte, results."
    results = json.loads((run/'results.json').read_text())
    for row in results['arms'].values(): del row['seconds']
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob('*.safetensors'))}|dict(history=(run/'history.jsonl').read_bytes(), results=results)

def checkpoints(run): return {p.name: p.read_bytes() for p in sorted(run.rglob('epoch-*'))}

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "How the run ends that is never interrupted."
    run = tmp_path_factory.mktemp('whole')/'run'
    assert finish([*WORDS, '--out', run], run.parent/'log')==0, (run.parent/'log').read_text()[-2000:]
    return ending(run)

def assert_ends_like(run, whole):
    got = ending(run)
    assert got.keys()==whole.keys()
    for k in whole: assert got[k]==whole[k], k
    left = [p.name for p in run.rglob('*') if p.name.startswith('.') or 'checkpoint' in p.name]
    assert not left, f'{left}: strays and checkpoints hold the key, and nobody needs them any more'

def test_the_run_has_everything_that_can_be_forgotten(whole):
    rows = [json.loads(line) for line in whole['history'].splitlines()]
    assert [r['supervision'] for r in rows if r['arm']=='w/ U' and r['kind']=='epoch']==['desensitized', 'generator', 'generator']
    assert len({r['lr'] for r in rows if r['arm']=='w/ U' and r['kind']=='epoch'})>1 and len(rows)==3*4+3*2+3

@pytest.mark.full
def test_killed_at_random_moments(tmp_path, whole):
    rng,run,kills = random.Random(0), tmp_path/'run', 0
    argv = [*WORDS, '--out', run]
    files = lambda: {(p, p.stat().st_mtime_ns) for p in run.rglob('[!.]*') if p.is_file() and not p.name.startswith('.')}
    while kills<14:
        p = start(argv, tmp_path/'log')
        before = files() if run.exists() else set()
        while p.is_alive():                               # until it has written something, and a random while longer
            try:
                if run.exists() and files()-before: break
            except FileNotFoundError: pass                # renamed while we looked
            time.sleep(.01)
        time.sleep(rng.uniform(0, .6))
        p.kill(); p.join()
        if p.exitcode==0: break
        assert p.exitcode==-signal.SIGKILL, (tmp_path/'log').read_text()[-2000:]
        kills,argv = kills+1, resume(run)
    print(f'{kills} kills')
    assert kills>=8
    assert finish(resume(run), tmp_path/'log')==0, (tmp_path/'log').read_text()[-2000:]
    assert_ends_like(run, whole)

@pytest.mark.full
@pytest.mark.parametrize('least', [3, 12])
def test_killed_while_writing(tmp_path, whole, least):
    rng,run,kills = random.Random(1), tmp_path/'run', 0
    whens = ['half', 'renamed', 'just after']
    assert finish([*WORDS, '--out', run], tmp_path/'log', die_writing, 'just after', 2)==-signal.SIGKILL      # config.json stands, nothing else
    assert {p.name for p in run.iterdir()}=={LOCK, NOTE, 'config.json'}
    while (code := finish(resume(run), tmp_path/'log', die_writing, whens[kills%3], rng.randint(3, 5) if kills<least else 999))==-signal.SIGKILL: kills += 1
    assert code==0, (tmp_path/'log').read_text()[-2000:]
    assert kills>=least
    assert_ends_like(run, whole)

def test_killed_and_resumed_through_the_command(tmp_path, whole):
    run,env = tmp_path/'run', os.environ|dict(OMP_NUM_THREADS='1')
    command = [str(Path(sys.executable).parent/'privreid')]
    p = subprocess.Popen([*command, *WORDS, '--out', run], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while p.poll() is None and not (run/'without-u'/'checkpoints'/'epoch-00001.safetensors').exists(): time.sleep(.02)
    p.kill(); assert p.wait()==-signal.SIGKILL
    kept = run/'upper'/'reid.safetensors'
    before = kept.stat().st_mtime_ns
    done = subprocess.run([*command, 'train', '--resume', run], env=env, capture_output=True, text=True)
    assert done.returncode==0, done.stderr[-2000:]
    assert kept.stat().st_mtime_ns==before                                # what was finished is not trained again
    assert_ends_like(run, whole)

@pytest.fixture(scope='module')
def killed(tmp_path_factory, whole):   # `whole` has drawn the data: only the run's own files are counted
    "A run that was killed when Upper's second checkpoint stood."
    run = tmp_path_factory.mktemp('killed')/'run'
    assert finish([*WORDS, '--out', run], run.parent/'log', die_writing, 'just after', 7)==-signal.SIGKILL
    assert list(checkpoints(run))==['epoch-00001.safetensors', 'epoch-00002.safetensors']
    return run

@pytest.fixture
def interrupted(killed, tmp_path): return Path(shutil.copytree(killed, tmp_path/'run'))

def test_a_checkpoint_is_private(killed):
    for p in killed.rglob('epoch-*'): assert stat.S_IMODE(p.stat().st_mode)==0o600

@pytest.mark.parametrize('fault,reason', [(disk_full, 'File too large'), (read_only, 'Read-only file system')])
def test_failed_write_is_one_sentence_and_harms_nothing(interrupted, tmp_path, fault, reason, one_line):
    before,strays = checkpoints(interrupted), set(interrupted.rglob('.*'))    # of the kill
    assert finish(resume(interrupted), tmp_path/'log', fault)==2
    said = [line for line in re.split(r'[\r\n]+', (tmp_path/'log').read_text()) if line.startswith('privreid: ')]
    one_line('\n'.join(said), interrupted, reason, 'unharmed')
    assert checkpoints(interrupted)==before and set(interrupted.rglob('.*'))<=strays

def test_run_folder_that_cannot_be_made(tmp_path, capsys, one_line):
    (tmp_path/'file').write_text('in the way')
    assert main([*WORDS, '--out', str(tmp_path/'file'/'run')])==2
    one_line(capsys.readouterr().err.strip(), tmp_path/'file')

@pytest.mark.parametrize('change,named', [(['--epochs', '9', '--lr', '0.5'], ['epochs: 3 -> 9', f"lr: {preset('demo').lr} -> 0.5"]), (['--arms', 'Upper', 'Base'], ['arms: ', "-> ['Upper', 'Base']"]),
                                          (['--preset', 'colab'], ['backbone: mini -> resnet18', 'precision: no -> fp16'])])
def test_changed_setup_is_refused(interrupted, capsys, change, named, one_line):
    before = {p: p.read_bytes() for p in interrupted.rglob('*') if p.is_file()}
    assert main([*map(str, resume(interrupted)), *change])==2
    said = capsys.readouterr().err.strip()
    one_line(said, interrupted, *named)
    assert 'batch' not in said or 'colab' in change                      # what did not change is not named
    assert {p: p.read_bytes() for p in interrupted.rglob('*') if p.is_file()}==before

def test_other_number_of_identities_is_refused(interrupted, capsys, one_line):
    path = interrupted/'config.json'
    path.write_text(path.read_text().replace('"identities": ', '"identities": 1'))
    assert main(list(map(str, resume(interrupted))))==2
    one_line(capsys.readouterr().err.splitlines()[-1], interrupted, 'identities: 1')

def test_nothing_to_resume(tmp_path, capsys, one_line):
    assert main(list(map(str, resume(tmp_path))))==2
    one_line(capsys.readouterr().err.strip(), tmp_path, 'config.json')

# One process at a time

def lines(log): return [l for l in re.split(r'[\r\n]+', log.read_text()) if l.startswith('privreid: ')]

def same_second(): time.strftime = lambda *_: '20260101-000000'

def test_two_that_begin_in_the_same_second_both_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, '--epochs', '1', '--milestones', '', '--arms', 'Upper']
    two = [start(words, tmp_path/f'log{i}', same_second) for i in (0, 1)]
    for p in two: p.join(300)
    assert [p.exitcode for p in two]==[0, 0], lines(tmp_path/'log0')+lines(tmp_path/'log1')
    assert {p.name for p in (tmp_path/'runs').iterdir()}=={'20260101-000000', '20260101-000000-2'}
    for run in (tmp_path/'runs').iterdir():
        assert set(json.loads((run/'results.json').read_text())['arms'])=={'Upper'} and (run/'report.html').is_file()
        assert str(run/'report.html') in (tmp_path/'log0').read_text()+(tmp_path/'log1').read_text()
        assert stat.S_IMODE(run.stat().st_mode)==0o700 and stat.S_IMODE((run/'pictures.png').stat().st_mode)==0o600

def hold(run, taken):
    with held(run):
        taken.set()
        time.sleep(300)

@pytest.fixture
def busy(interrupted):
    "An interrupted run that another process has gone on with."
    taken = workers.Event()
    p = workers.Process(target=hold, args=(interrupted, taken))
    p.start()
    assert taken.wait(60)
    yield interrupted, p
    p.kill(); p.join()

def test_a_second_process_on_a_live_run_is_told(busy, capsys, one_line):
    run,other = busy
    before = {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}
    for words in (resume(run), ['evaluate', run]):
        assert main(list(map(str, words)))==2
        one_line(capsys.readouterr().err.strip(), run, f'process {other.pid}', 'since')
    assert {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}==before

def test_a_killed_process_holds_nothing(busy):
    run,other = busy
    other.kill(); other.join()
    assert str(other.pid) in holder(run)            # its note is still there
    with held(run): assert str(os.getpid()) in holder(run)
    assert holder(run)==''

def test_a_folder_that_is_refused_is_left_alone(tmp_path, capsys, one_line):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'letter').write_text('x')
    assert main([*WORDS, '--out', str(tmp_path/'mine')])==2
    one_line(capsys.readouterr().err.strip(), tmp_path/'mine', 'already holds something')
    assert [p.name for p in (tmp_path/'mine').iterdir()]==['letter']

# The parts, in one process

@pytest.fixture(scope='module')
def street(): return SyntheticPedestrians(train_ids=10, test_ids=4, distractors=2, size=(64,32)).load()

def make(street, *callbacks, **changes):
    cfg = preset('demo', **dict(batch=16, epochs=2, ngf=4, ndf=4, validate_every=1, warmup=1, milestones=())|changes)
    return Trainer(JointTraining(cfg, 8, Accelerator(cpu=True)), street.train, Supervision(GaussianNoise()), callbacks)

def test_nobody_touches_the_global_generators(street):
    trainer = make(street, Validate(street), Upgradation(0.))
    look = lambda: (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    before = look()
    trainer.fit()
    assert look()==before

def test_scale_of_the_loss_is_kept(street):
    trainer,new = make(street, epochs=1), make(street, epochs=1)
    for t in (trainer, new): t.training.scaler = torch.amp.GradScaler('cpu', init_scale=8., growth_interval=3)
    trainer.fit()
    scale = trainer.training.scaler.state_dict()
    assert scale!=new.training.scaler.state_dict()
    restore(new, *json_round(training_state(trainer)))
    assert new.training.scaler.state_dict()==scale

def json_round(both): return both[0], json.loads(json.dumps(both[1]))

def test_moments_lie_in_memory_as_their_weights(street):
    trainer,new = make(street, epochs=1).fit(), make(street, epochs=1)
    tensors,numbers = training_state(trainer)
    restore(new, {k: v.contiguous() for k,v in tensors.items()}, numbers)
    moments = [(p, s) for o in new.training.optimizers.values() for p,states in o.state.items() for s in states.values() if s.shape==p.shape and s.dim()==4]
    assert any(not p.is_contiguous() for p,_ in moments) and all(p.stride()==s.stride() for p,s in moments)

class Poison(Callback):
    "NaN in a weight after a batch of epoch 2."
    def __init__(self, batch): self.batch,self.seen = batch, 0
    def after_batch(self, trainer, losses):
        if trainer.epoch<2: return
        self.seen += 1
        if self.seen==self.batch: next(trainer.nets['G_Y'].parameters()).data[0,0,0,0] = float('nan')

def test_loss_that_is_not_finite_is_named(street, tmp_path, one_line):
    n = len(make(street).sampler.epoch(2))
    trainer = make(street, Poison(1), checkpoint := Checkpoint(tmp_path))
    with pytest.raises(FloatingPointError) as e: trainer.fit()
    one_line(e.value, 'Epoch 2', f'batch 2 of {n}', 'D_X', 'nan')          # G_Y's picture enters D_X first
    assert [p.name for p in checkpoint.paths()]==['epoch-00001.safetensors']
    assert all(v.isfinite().all() for v in read_tensors(checkpoint.paths()[0])[0].values())

def test_one_bad_term_is_named(street, monkeypatch):
    losses_G,count = JointTraining.losses_G, iter(range(99))
    monkeypatch.setattr(JointTraining, 'losses_G', lambda self, *a: losses_G(self, *a)|(dict(l1_rec=torch.tensor(float('inf'))) if next(count)==2 else {}))
    with pytest.raises(FloatingPointError, match='Epoch 1, batch 3 of .*the loss l1_rec is inf'): make(street).fit()

@pytest.mark.parametrize('every, kept', [(1, ['epoch-00001.safetensors']), (5, [])])
def test_weights_that_are_not_finite_are_not_kept(street, tmp_path, one_line, every, kept):
    "Neither as a checkpoint nor, after the last epoch, as the result."
    n = len(make(street).sampler.epoch(2))
    trainer = make(street, Poison(n), checkpoint := Checkpoint(tmp_path, every))       # no loss sees them any more
    with pytest.raises(FloatingPointError) as e: trainer.fit()
    one_line(e.value, 'Epoch 2', 'G_Y')
    assert [p.name for p in checkpoint.paths()]==kept

def test_runaway_training_ends_with_exit_code_2(tmp_path, one_line):
    log = tmp_path/'log'
    assert finish([*WORDS, '--out', tmp_path/'run', '--arms', 'Upper', '--lr', '100', '--warmup', '0'], log)==2
    one_line('\n'.join(l for l in re.split(r'[\r\n]+', log.read_text()) if l.startswith('privreid: ')), 'Epoch 1, batch ', 'the loss reid_raw', 'lr')

def test_last_two_are_kept(street, tmp_path):
    trainer = make(street, checkpoint := Checkpoint(tmp_path, every=2), epochs=7, people=10)
    trainer.train_epoch = lambda: {}
    trainer.fit()
    assert [p.name for p in checkpoint.paths()]==['epoch-00004.safetensors', 'epoch-00006.safetensors']

TWO = '''
import contextlib, hashlib, json, os, sys, torch
from accelerate import Accelerator
from privreid.checkpoint import Checkpoint
from privreid.config import preset
from privreid.data import SyntheticPedestrians
from privreid.desensitize import GaussianNoise
from privreid.evaluation import Validate
from privreid.joint import Callback, Trainer
from privreid.training import JointTraining, Supervision
from privreid.upgradation import Upgradation
torch.set_num_threads(1)
street = SyntheticPedestrians(train_ids=10, test_ids=4, distractors=2, size=(64,32)).load()
cfg = preset('demo', ngf=4, ndf=4, batch=16, epochs=3, validate_every=1, milestones=(), eps_psnr=99., eps_ssim=2.)
a = Accelerator(cpu=True)
class Stop(Callback):
    def after_batch(self, trainer, losses):
        if trainer.epoch==3: raise InterruptedError
def make(*callbacks): return Trainer(JointTraining(cfg, 8, a), street.train, Supervision(GaussianNoise()), [Validate(street), Upgradation(0.), *callbacks])
def end(t): return t.history, hashlib.sha256(b''.join(v.contiguous().numpy().tobytes() for v in t.nets.state_dict().values())).hexdigest()
whole = end(make().fit())
writer = Checkpoint(f'{sys.argv[1]}/kept')
writes = []
os_replace = os.replace
os.replace = lambda *args: (writes.append(str(args[1])), os_replace(*args))
with contextlib.suppress(InterruptedError): make(writer, Stop()).fit()
a.wait_for_everyone()
trainer = make(writer)
writer.load(trainer)
epoch = trainer.epoch
a.wait_for_everyone()
with open(f'{sys.argv[1]}/{a.process_index}.json', 'w') as f: json.dump(dict(world=a.num_processes, whole=whole, epoch=epoch, writes=len(writes), resumed=end(trainer.fit())), f)
'''

@pytest.mark.full
def test_two_processes_resume_alike(tmp_path, street):
    (tmp_path/'two.py').write_text(TWO)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(tmp_path/'two.py'), str(tmp_path)],
                          env=os.environ|dict(OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true'), capture_output=True, text=True, timeout=600)
    assert done.returncode==0, done.stderr[-3000:]
    a,b = (json.loads((tmp_path/f'{i}.json').read_text()) for i in (0, 1))
    assert a['world']==b['world']==2 and a['epoch']==b['epoch']==2
    assert a['resumed']==b['resumed']==a['whole']==b['whole']
    assert a['writes']==2 and b['writes']==0                                     # only the main process writes
