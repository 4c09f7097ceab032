"Own parts in a run, backbones of one's own, and what a run that goes on from another begins with."
import json, shutil, stat, sys
from dataclasses import replace
import numpy as np, pytest, torch
from safetensors.torch import load_file
from torch import nn
from privreid import checks, parts
from privreid.agw import AGW, NonLocal
from privreid.backbones import BACKBONES, load_backbone, maps_of, register_backbone
from privreid.bundles import export, from_run
from privreid.cli import main
from privreid.config import check, preset
from privreid.datasets import READERS, load_data, register_data
from privreid.desensitize import DESENSITIZERS, register_desensitizer
from privreid.experiments import begin, needs_tracker, run_experiment
from privreid.features import extract, features_file
from privreid.joint import Callback
from privreid.parts import Parts, load_plugin, try_parts, use_parts
from privreid.records import load_arm, load_history, load_run
from privreid.reopen import evaluate_run, first_weights
from privreid.report import write_report
from privreid.training import JointTraining

TINY = dict(people=8, test_people=4, epochs=1, batch=16, ngf=4, ndf=4, validate_every=1, milestones=(), weights='', freeze_bn=0, freeze_reid_bn=0)
PLUGIN = """
from pathlib import Path
from torch import nn
from privreid.agw import AGW
from privreid.desensitize import register_desensitizer
from privreid.joint import Callback
Path(__file__).with_suffix('.ran').touch()

class Small(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh())
    def forward(self, x): return self.net(x)

class Half(nn.Module):
    def forward(self, x): return x*.5
register_desensitizer('half', Half)

class Count(Callback):
    batches = []
    def after_batch(self, trainer, losses): self.batches.append(sorted(losses))

networks, losses, callbacks = dict(G_X=Small), dict(smooth=lambda p: (p[...,1:]-p[...,:-1]).abs().mean()), [Count]
def reid(cfg, identities): return AGW(identities, nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU()), features=8, pool='gem')
"""

@pytest.fixture(autouse=True)
def forgetful():
    "What one test names or registers, the next does not know."
    lists,registries = (parts._NAMED, checks.REGISTERED), (BACKBONES, DESENSITIZERS, READERS)
    before = [(x, x[:]) for x in lists], [(x, dict(x)) for x in registries]
    for x in lists: x.clear()
    yield
    for x,was in before[0]: x[:] = was
    for x,was in before[1]: x.clear(); x.update(was)

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A plugin, and a run that was trained with it by the command."
    home = tmp_path_factory.mktemp('own')
    (home/'my.py').write_text(PLUGIN)
    words = ['--people', '8', '--test-people', '4', '--epochs', '1', '--batch', '16', '--ngf', '4', '--ndf', '4', '--milestones', '', '--weights', '', '--freeze-bn', '0', '--freeze-reid-bn', '0']
    code = main(['train', '--preset', 'demo', '--out', str(home/'run'), '--arms', 'w/o U', '--plugin', str(home/'my.py'), '--desensitizer', 'half', '--keep-checkpoints', *words])
    assert code==0
    (home/'my.ran').unlink()
    del DESENSITIZERS['half'], parts._NAMED[:], checks.REGISTERED[:]   # as in a process that has not named it
    return home

def said(capsys, *words):
    code = main([str(w) for w in words])
    return code, capsys.readouterr().err.strip().splitlines()[-1:]

# --- a run with a plugin

def test_own_parts_are_in_the_run(made):
    run = made/'run'
    told = load_run(run)[1]['parts']
    assert told['networks']=={'G_X': 'privreid_plugin_my.Small'} and told['registered']==[['desensitizer', 'half']] and told['plugin']==str((made/'my.py').resolve())
    assert all('smooth' in h and h['smooth']>0 for h in load_history(run) if h['kind']=='epoch')
    assert set(load_file(run/'without-u'/'anonymizer.safetensors'))=={f'net.{i}.{k}' for i in (0, 2) for k in ('weight', 'bias')}
    kept, = (run/'without-u'/'checkpoints').iterdir()
    assert stat.S_IMODE(kept.stat().st_mode)==0o600 and any(k.startswith('nets.D_Y') for k in load_file(kept))

def test_a_report_needs_no_plugin_and_shows_own_losses(made, tmp_path):
    page = write_report(made/'run', tmp_path/'r.html').read_text()
    assert '>smooth<' in page and 'Own parts: G_X' in page and not (made/'my.ran').exists()

def test_a_run_never_starts_code_by_itself(made, tmp_path, capsys, one_line):
    "Whoever reads a run names its plugin once more; until then, nothing of it is run."
    run = made/'run'
    for act in (lambda: load_arm(run, 'w/o U'), lambda: evaluate_run(run), lambda: from_run(run, 'protect'), lambda: run_experiment(load_run(run)[0], run, 'w/o U', resume=True)):
        with pytest.raises(ValueError) as e: act()
        one_line(e.value, run, 'my.py', '--plugin', 'never starts code')
    for words in (['evaluate', run], ['train', '--resume', run], ['export', run, '--for', 'protect', '--out', tmp_path/'x']):
        code,(line,) = said(capsys, *words)
        assert code==2; one_line(line, 'my.py', '--plugin')
    assert not (made/'my.ran').exists() and not (tmp_path/'x').exists()

def test_named_again_it_is_read(made, tmp_path, one_line):
    run = made/'run'
    load_plugin(made/'my.py')
    arm = load_arm(run, 'w/o U')
    assert type(arm.anonymizer).__name__=='Small' and arm.reid.features==8
    results = json.loads((run/'results.json').read_text())
    assert evaluate_run(run)['arms']['w/o U']['settings']==results['arms']['w/o U']['settings']
    assert from_run(run, 'protect').net()(torch.zeros(1, 3, 64, 32)).shape==(1, 3, 64, 32)
    with pytest.raises(ValueError) as e: export(run, 'protect', tmp_path/'out')
    one_line(e.value, 'Small', 'carries no code'); assert not (tmp_path/'out').exists()

@pytest.mark.full
def test_attacked_with_its_plugin(made, capsys, tmp_path, one_line):
    "Attackers meet the run's own generator and Re-ID model, and its own desensitizer."
    shutil.copytree(made/'run', run := tmp_path/'run')
    words = ['attack', run, '--attack', 'pictures', 'pairs', 'authorised', '--people', '8', '--steps', '2', '--device', 'cpu']
    code,(line,) = said(capsys, *words)
    assert code==2; one_line(line, 'my.py', '--plugin')
    code,last = said(capsys, *words, '--plugin', made/'my.py')
    assert code==0, last
    found = json.loads((run/'attacks.json').read_text())['arms']['w/o U']
    assert {r['attack'] for r in found['rows']}=={'scale', 'pairs', 'authorised'} and all(0<=r['rank1']<=1 for r in found['rows'])
    assert list(found['skipped'])==['pictures']   # nobody has learnt to undo this desensitizer

def test_a_plugin_that_changed_is_told_and_not_gone_on_with(made, tmp_path, one_line, recwarn):
    (tmp_path/'my.py').write_text(PLUGIN+'# another word')
    load_plugin(tmp_path/'my.py')
    load_arm(made/'run', 'w/o U')
    one_line(recwarn.pop(UserWarning).message, 'my.py has changed', 'numbers may be others')
    with pytest.raises(ValueError) as e: run_experiment(load_run(made/'run')[0], made/'run', 'w/o U', resume=True)
    one_line(e.value, 'my.py has changed', 'begin a new run')

@pytest.mark.parametrize('text, words', [('x = ', ['line 1', 'SyntaxError']), ('\n1/0', ['line 2', 'ZeroDivisionError']), ('x = 1', ['brings nothing', 'networks']), ('losses = 3', ['losses must be a dictionary']),
    ('networks = dict(G=len)', ['G_X, G_Y']), ('losses = dict(lr=len)', ['name of its own'])])
def test_plugins_that_are_none(text, words, tmp_path, one_line):
    (tmp_path/'bad.py').write_text(text)
    with pytest.raises(ValueError) as e: load_plugin(tmp_path/'bad.py')
    one_line(e.value, *words)

# --- parts given in Python

class Shift(nn.Module):
    def forward(self, x): return x+2
class Flat(nn.Module):
    features = 4
    def __init__(self, *a): super().__init__()
    def forward(self, x): return x.flatten(1)[:,:4]

@pytest.mark.parametrize('own, words', [(dict(networks=dict(G_X=lambda cfg: Shift())), ['G_X', 'values from']), (dict(desensitizer=Shift()), ['desensitizer', 'Shift']), (dict(networks=dict(G_Y=lambda cfg: nn.Conv2d(3, 3, 3))), ['G_Y', '62 x 30']),
    (dict(networks=dict(D_Y=lambda cfg: 3)), ['D_Y', 'Module']), (dict(reid=lambda cfg, n: Flat()), ['reid', 'ReidOutput']), (dict(reid=lambda cfg, n: Shift()), ['.features']), (dict(data=3), ['data', 'ReidData']), (dict(network={}), ["'network'", 'networks'])])
def test_a_part_that_does_not_fit_is_told_before_there_is_a_folder(own, words, tmp_path, one_line):
    with pytest.raises((ValueError, TypeError)) as e: run_experiment(preset('demo', **TINY), tmp_path/'run', 'Upper', **own)
    one_line(e.value, *words)
    assert not (tmp_path/'run').exists()

def test_trying_leaves_the_dice_alone():
    torch.manual_seed(3); want = torch.rand(2)
    torch.manual_seed(3); try_parts(Parts(desensitizer=lambda cfg: nn.Dropout(.5), reid=lambda cfg, n: AGW(n, 'mini')), preset('demo', **TINY), 5)
    assert torch.rand(2).equal(want)

def test_data_and_callbacks_from_python(tmp_path, one_line):
    "Data, a network that is copied for each arm, and a callback; read again, they are wanted again."
    cfg = preset('demo', **TINY)
    data = load_data('synthetic', size=cfg.size, seed=5, train_ids=8, test_ids=4)
    seen = []
    class Watch(Callback):
        def before_fit(self, trainer): seen.append(trainer)
    run_experiment(cfg, tmp_path/'run', ('Upper',), data=data, callbacks=[Watch])
    assert len(seen)==1 and seen[0].labels.shape==data.train.pids.shape
    assert load_arm(tmp_path/'run', 'Upper').reid.features==96          # its network is the paper's: nothing is missing
    evaluate_run(tmp_path/'run')                                        # this process has named them
    parts._NAMED.clear()
    with pytest.raises(ValueError) as e: evaluate_run(tmp_path/'run')
    one_line(e.value, 'given in Python', 'use_parts')
    use_parts(data=data, callbacks=[Watch])
    evaluate_run(tmp_path/'run')

# --- names

def test_registered_names_are_known(one_line):
    class Half(nn.Module):
        def forward(self, x): return x/2
    register_desensitizer('half', Half)
    register_backbone('dots', lambda: (nn.Conv2d(3, 6, 8, 8), 6))
    register_data('office', lambda root: None)
    cfg = check(replace(preset('demo', **TINY), desensitizer='Half', backbone='dots', data='office'))
    assert (cfg.desensitizer, cfg.backbone, cfg.data)==('half', 'dots', 'office') and AGW(3, 'dots').features==6
    for act in (lambda: register_desensitizer('blur', Half), lambda: register_backbone('mini', Half), lambda: register_data('synthetic', len)):
        with pytest.raises(ValueError) as e: act()
        one_line(e.value, 'is there already')
    with pytest.raises(ValueError) as e: check(replace(cfg, desensitizer='halv'))
    one_line(e.value, 'blur, pixelation, noise, half', "Did you mean 'half'?")

# --- backbones

@pytest.mark.parametrize('name, features, blocks, size', [('resnet34', 512, 5, (4, 2)), ('convnext_tiny', 768, 5, (2, 1)), pytest.param('vit_b_32', 768, 0, (2, 1), marks=pytest.mark.full), pytest.param('resnext50_32x4d', 2048, 5, (4, 2), marks=pytest.mark.full)])
def test_backbones_of_torchvision(name, features, blocks, size, tmp_path, one_line):
    net = AGW(3, name)
    assert net.features==features and sum(isinstance(m, NonLocal) for m in net.modules())==blocks
    net(torch.rand(2, 3, 64, 32)*2-1).logits.sum().backward()
    assert net.eval()(torch.rand(2, 3, 64, 32)*2-1).shape==(2, features)
    other = AGW(7, name)
    torch.save(net.state_dict(), tmp_path/'w.pth')
    with pytest.warns(UserWarning, match='stay behind'): load_backbone(other.backbone, name, str(tmp_path/'w.pth'))
    assert all(a.equal(b) for a,b in zip(net.backbone.state_dict().values(), other.backbone.state_dict().values()))
    if not blocks:
        with pytest.raises(ValueError) as e: AGW(3, name, inter_channels=1)
        one_line(e.value, name, 'no stages')

@pytest.mark.full
def test_a_transformer_at_the_size_it_was_made_for_is_torchvisions():
    "Its patches, seen from here, are what torchvision computes; only the head is missing."
    from torchvision.models import vit_b_32
    torch.manual_seed(0)
    net,x = vit_b_32().eval(), torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        tokens = net._process_input(x)
        want = net.encoder(torch.cat([net.class_token.expand(1, -1, -1), tokens], 1))[:,1:]
        got = maps_of(net, x).flatten(2).transpose(1, 2)
    assert torch.allclose(got, want, atol=1e-5)

def test_own_backbones(one_line):
    net = AGW(3, backbone=nn.Sequential(nn.Conv2d(3, 8, 8, 8)), features=8)
    assert net(torch.rand(2, 3, 64, 32)*2-1).pooled.shape==(2, 8) and 'pool.p' not in net.state_dict()
    assert AGW(3, backbone=nn.Sequential(nn.Flatten(), nn.Linear(3*64*32, 8)), features=8)(torch.zeros(2, 3, 64, 32)).pooled.shape==(2, 8)
    for make,told in ((lambda: AGW(3, nn.Conv2d(3, 8, 8)), 'features=768'), (lambda: AGW(3, nn.Conv2d(3, 8, 8), 'imagenet', features=8), 'weights are for'), (lambda: AGW(3, 'mini', features=8), 'features is said of a module'),
                      (lambda: AGW(3, nn.Conv2d(3, 8, 8), features=9)(torch.zeros(2, 3, 64, 32)), 'features=8'), (lambda: AGW(3, nn.Flatten(0), features=9)(torch.zeros(2, 3, 64, 32)), 'maps (B,F,h,w)'), (lambda: AGW(3, 'timm:a/b'), 'no network of timm')):
        with pytest.raises(ValueError) as e: make()
        one_line(e.value, told)

def test_timm_that_is_not_there_is_said(monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ValueError) as e: AGW(3, 'timm:convnext_tiny')
    one_line(e.value, "pip install 'privreid[timm]'")

@pytest.mark.parametrize('name, blocks', [('resnet18', 4), ('vit_tiny_patch16_224', 0), pytest.param('convnext_atto', 5, marks=pytest.mark.full), pytest.param('swin_tiny_patch4_window7_224', 0, marks=pytest.mark.skip('wants pictures of its own size'))])
def test_backbones_of_timm(name, blocks, one_line):
    pytest.importorskip('timm')
    net = AGW(3, f'timm:{name}')
    assert sum(isinstance(m, NonLocal) for m in net.modules())==blocks
    assert net(torch.rand(2, 3, 64, 32)*2-1).pooled.shape==(2, net.features)
    with pytest.raises(ValueError) as e: AGW(3, 'timm:resnet19x')
    one_line(e.value, 'timm', 'resnet19x')

# --- from a run on

def test_a_run_begins_with_the_networks_of_another(made, tmp_path, recwarn, one_line):
    "Generators, Re-ID model, discriminators: the last weights of the one are the first of the other; for other people, all but the classifier."
    load_plugin(made/'my.py')
    cfg = load_run(made/'run')[0]
    mine = parts._NAMED[-1]
    for people in (8, 10):
        recwarn.clear()
        with begin(replace(cfg, people=people, eps_psnr=2.), tmp_path/f'run{people}', ('w/o U',), parts=mine, start=made/'run') as run:
            nets = run.trainer('w/o U', JointTraining).nets
        old,kept = load_file(made/'run'/'without-u'/'anonymizer.safetensors'), load_file(next((made/'run'/'without-u'/'checkpoints').iterdir()))
        assert all(nets['G_X'].state_dict()[k].equal(v) for k,v in old.items()) and all(nets['D_Y'].state_dict()[k.removeprefix('nets.D_Y.')].equal(v) for k,v in kept.items() if k.startswith('nets.D_Y.'))
        reid = load_file(made/'run'/'without-u'/'reid.safetensors')
        same = {k: v.shape==reid[k].shape and v.equal(reid[k]) for k,v in nets['reid'].state_dict().items()}
        assert [k for k in same if not same[k]]==([] if people==8 else ['classifier.weight'])
        told = [str(w.message) for w in recwarn if 'classifier begins anew' in str(w.message)]
        assert len(told)==(people!=8)
        assert load_run(tmp_path/f'run{people}')[1]['start']['run']==str((made/'run').resolve())
    with pytest.raises(ValueError) as e: first_weights(made/'run', replace(cfg, ndf=8), ('w/o U',), run.data, mine)
    one_line(e.value, 'D_Y', 'does not fit')
    with pytest.raises(ValueError) as e, begin(replace(cfg, people=10), tmp_path/'resumed', ('w/o U',), parts=mine, start=tmp_path/'run10'): pass
    one_line(e.value, 'has not finished')

def test_an_arm_that_is_not_there_begins_anew(made, tmp_path, recwarn):
    load_plugin(made/'my.py')
    with begin(load_run(made/'run')[0], tmp_path/'run', ('Base', 'w/ U'), parts=parts._NAMED[-1], start=made/'run') as run: pass
    assert set(run.start)=={'w/ U'} and any('no arm Base' in str(w.message) for w in recwarn)

def test_dry_run_counts_the_disk(made, capsys, tmp_path):
    words = ['--people', '8', '--test-people', '4', '--epochs', '1', '--batch', '16', '--ngf', '4', '--ndf', '4', '--milestones', '', '--weights', '', '--freeze-bn', '0', '--freeze-reid-bn', '0']
    assert main(['train', '--preset', 'demo', '--out', str(tmp_path/'x'), '--arms', 'w/o U', '--dry-run', *words])==0
    out = capsys.readouterr().out
    assert 'disk: weights' in out and 'Nothing was trained.' in out and not (tmp_path/'x').exists()

# --- features

def test_features_of_a_folder(made, tmp_path, capsys, one_line):
    from PIL import Image
    (tmp_path/'in'/'a').mkdir(parents=True)
    for i in range(3): Image.new('RGB', (40, 90), (80*i, 10, 10)).save(tmp_path/'in'/'a'/f'{i}.png')
    assert main(['features', str(made/'run'), str(tmp_path/'in'), '--out', str(tmp_path/'f.npz'), '--plugin', str(made/'my.py')])==0
    with np.load(tmp_path/'f.npz', allow_pickle=False) as f: features,names = f['features'], f['names']
    assert features.dtype==np.float32 and features.shape==(3, 8) and list(names)==[f'a/{i}.png' for i in range(3)] and np.allclose(np.linalg.norm(features, axis=1), 1)
    assert stat.S_IMODE((tmp_path/'f.npz').stat().st_mode)==0o600
    reid = load_arm(made/'run', 'w/o U').reid
    assert np.allclose(features, extract(reid, [tmp_path/'in'/n for n in names], (64, 32), batch=2).numpy(), atol=1e-5)
    for act,told in ((lambda: extract(reid, []), 'no image'), (lambda: extract(reid, 'x.png'), 'list of paths'), (lambda: features_file(made/'run', tmp_path/'in', tmp_path/'f.txt'), '.npz')):
        with pytest.raises((ValueError, TypeError)) as e: act()
        one_line(e.value, told)

def test_a_run_is_measured_on_other_people_in_one_command(made, tmp_path, capsys, tiny_market):
    root = tiny_market()
    assert main(['evaluate', str(made/'run'), '--data', f'market1501={root}', 'synthetic', '--plugin', str(made/'my.py'), '--json', str(tmp_path/'r.json')])==0
    found = json.loads((tmp_path/'r.json').read_text())
    assert list(found)==['own', 'market1501', 'synthetic'] and found['market1501']['measured_on']['own'] is False
    assert 'market1501' in capsys.readouterr().out

def test_a_cmc_curve_goes_through_rank1_and_rank5(one_line):
    from privreid.evaluation import Retrieval, evaluate_ranking
    torch.manual_seed(0)
    d,q,g = torch.rand(6, 20), torch.arange(6)%3+1, torch.arange(20)%4+1
    found = evaluate_ranking(d, q, g, torch.zeros(6), torch.ones(20))
    curve = found.cmc(20)
    first = [min(i for i,j in enumerate(row.argsort().tolist(), 1) if g[j]==p) for row,p in zip(d, q)]
    assert curve.shape==(20,) and curve[0]==found.rank1 and curve[4]==found.rank5 and curve[-1]==1 and (np.diff(curve)>=0).all()
    assert curve.tolist()==[sum(f<=k for f in first)/6 for k in range(1, 21)]
    with pytest.raises(ValueError) as e: Retrieval(0., 0., 0., 0., 1).cmc()
    one_line(e.value, 'evaluate_ranking')

@pytest.mark.parametrize('name, told', [('wandb', 'pip install wandb'), ('wandbb', "Did you mean 'wandb'?")])
def test_other_trackers_are_known(name, told, one_line):
    if name=='wandb':
        try: import wandb; pytest.skip('it is there')
        except ModuleNotFoundError: pass
    with pytest.raises(ValueError) as e: needs_tracker(name)
    one_line(e.value, told)

def test_results_say_what_they_were_made_with(made):
    env = json.loads((made/'run'/'results.json').read_text())['environment']
    assert {'device', 'python', 'torch', 'torchvision', 'numpy', 'accelerate', 'threads'}<=set(env)
