"The widgets below their surface: live epsilons over kills, any input, any size."
import contextlib, html, io, json, re, shutil, threading
from dataclasses import asdict
from pathlib import Path
import ipywidgets, numpy as np, pytest, torch
from accelerate import Accelerator
from torch import nn
from privreid.agw import AGW
from privreid.checkpoint import Checkpoint
from privreid.cli import main
from privreid.data import Split, SyntheticPedestrians
from privreid.datasets import load_data, save_split
from privreid.desensitize import Blur
from privreid.evaluation import Validate, evaluate_ranking
from privreid.experiments import Arm, save_arm, write_json
from privreid.joint import Callback, JointTraining, Supervision, Trainer, preset
from privreid.pix2pix import UNetGenerator
from privreid.upgradation import Epsilons, Upgradation, Validation, replay
from privreid import viewer
from privreid.viewer import ArmResults, Viewer, view
from privreid.widgets import Explorer, LiveEpsilons, demo_run, explore, spans, start

def sentence(widget):
    "The one sentence that a widget shows instead of itself."
    assert isinstance(widget, ipywidgets.HTML) and widget.value.startswith('<p role="alert">') and '\n' not in widget.value and 'Traceback' not in widget.value
    return widget.value

# ---- LiveEpsilons

@pytest.fixture(scope='module')
def street(): return SyntheticPedestrians(train_ids=10, test_ids=4, size=(64,32)).draw()

class Hand(Callback):
    "Moves a slider in epoch 3, and pulls the plug after some epoch."
    def __init__(self, live, stop=None): self.live,self.stop = live, stop
    def after_batch(self, trainer, losses):
        if trainer.epoch==3: self.live.sliders['psnr'].value = 4.; self.live.sliders['ssim'].value = .3
    def after_epoch(self, trainer):
        if trainer.epoch==self.stop: raise KeyboardInterrupt

def tiny(street, *callbacks, **changes):
    cfg = preset('demo', **dict(epochs=5, batch=16, validate_every=1, ngf=4, ndf=4)|changes)
    return Trainer(JointTraining(cfg, 8, Accelerator(cpu=True)), street.train, Supervision(Blur()), [Validate(street), *callbacks])

def rule(): return Upgradation(0., Epsilons(psnr=-2., ssim=-.2))   # nothing is private

def test_live_change_survives_a_kill(street, tmp_path):
    "A change is in the history and in the checkpoint: a resumed training goes on under it, and ends as the whole one."
    whole = tiny(street, rule(), live := LiveEpsilons(), Hand(live)).fit()
    with contextlib.suppress(KeyboardInterrupt): tiny(street, rule(), live := LiveEpsilons(), Checkpoint(tmp_path), Hand(live, 4)).fit()
    resumed = tiny(street, rule(), live := LiveEpsilons(), saved := Checkpoint(tmp_path))
    saved.load(resumed)
    assert resumed.epoch==4 and resumed.callbacks[1].eps==Epsilons(4., .3)
    assert resumed.fit().history==whole.history
    assert live.sliders['psnr'].value==4.   # the sliders stand where the rule stands
    assert [(h['epoch'], h['psnr'], h['ssim']) for h in whole.history if h['kind']=='epsilons']==[(3, 4., .3)]
    assert [h['private'] for h in whole.history if h['kind']=='decision']==[False, False, True, True, True]

def test_start_leaves_the_main_thread_free(street):
    "The cell is over while training goes on; what goes wrong comes out of `result`, and into the panel."
    go = threading.Event()
    class Wait(Callback):
        def after_epoch(self, trainer): assert go.wait(60)
    training = start(tiny(street, rule(), live := LiveEpsilons(), Wait(), epochs=9999))
    assert not training.done()
    live.panel.children[3].click()   # stop
    go.set()
    with pytest.raises(KeyboardInterrupt, match='by hand'): training.result(120)
    assert 'stopped by hand' in live.status.value

def test_live_epsilons_want_a_rule(street, one_line):
    with pytest.raises(ValueError) as e: tiny(street, LiveEpsilons()).fit()
    one_line(e.value, 'LiveEpsilons', 'Upgradation')

# ---- readers of a history

@pytest.fixture
def run(tmp_path): return Path(shutil.copytree(demo_run(), tmp_path/'run'))

def test_moved_epsilons_are_told(run):
    "The report reads past the row; the explorer says so, and compares with what was decided, not with a replay."
    before,path = Explorer.of_run(run), run/'history.jsonl'
    rows = [json.loads(l) for l in path.read_text().splitlines()]
    first = next(i for i,h in enumerate(rows) if h['arm']=='w/ U')
    rows.insert(first+3, dict(arm='w/ U', kind='epsilons', epoch=1, psnr=3., ssim=.1, r1=0.))
    decided = [h for h in rows if h['arm']=='w/ U' and h['kind']=='decision']
    for h in decided[:2]: h['action'] = 'upgrade'   # as the rule would not have it
    path.write_text(''.join(json.dumps(r)+'\n' for r in rows))
    after = Explorer.of_run(run)
    assert after.validations==before.validations and after.actions==[h['action'] for h in decided]!=before.actions
    page = after.widget().children[-1].value
    assert 'Its epsilons were moved' in page and f'<b>2</b></td><th scope="row">of {len(decided)} decisions unlike' in page
    page = before.widget().children[-1].value
    assert 'were moved' not in page and f'<b>0</b></td><th scope="row">of {len(decided)} decisions unlike' in page
    main(['report', str(run)])
    assert (run/'report.html').stat().st_size>1000

@pytest.mark.parametrize('spoil, says', [
    (lambda run: (run/'history.jsonl').unlink(), 'history.jsonl is missing'),
    (lambda run: (run/'config.json').unlink(), 'not a run folder'),
    (lambda run: (run/'results.json').unlink(), 'results.json is missing'),
    (lambda run: (run/'history.jsonl').write_text('{"arm": "w/ U", "kind": "validation"}\n{"arm"'), 'line 2 is not JSON'),
    (lambda run: (run/'history.jsonl').write_text('{"arm": "w/ U", "kind": "validation", "epoch": 1}\n'), 'not a whole validation'),
    (lambda run: (run/'history.jsonl').write_text('17\n'), 'not a whole validation'),
    (lambda run: (run/'history.jsonl').write_text((run/'history.jsonl').read_text().replace('"psnr_ano": ', '"psnr_ano": "x", "was": ')), 'not a whole validation'),
    (lambda run: (run/'history.jsonl').write_text(''), 'no validation'),
    (lambda run: (run/'results.json').write_text('{"base_r1": null}'), 'no rank-1 of Base'),
], ids=['history', 'config', 'results', 'torn', 'short', 'number', 'text', 'empty', 'base'])
def test_a_broken_run_is_a_sentence(run, spoil, says):
    spoil(run)
    assert says in sentence(explore(run))

def rewrite(path, **changes): path.write_text(json.dumps(json.loads(path.read_text())|changes))

@pytest.mark.parametrize('spoil, says', [
    (lambda run: (run/'results.json').write_text('[]'), 'results.json does not hold the results'),
    (lambda run: rewrite(run/'results.json', base_r1='x'), "'x', not a number: results.json"),
    (lambda run: rewrite(run/'results.json', base_r1=float('nan')), 'nan, not a number: results.json'),
    (lambda run: rewrite(run/'config.json', eps_psnr='much'), 'not three numbers: config.json'),
    (lambda run: (run/'history.jsonl').write_text(re.sub('"epoch": [0-9]+', '"epoch": 0', (run/'history.jsonl').read_text())), 'order of their epochs, from 1 on (0, 0, 0, 0, 0, 0, 0, 0, 0): history.jsonl'),
], ids=['results a list', 'base text', 'base nan', 'epsilon text', 'epoch 0'])
def test_a_wrong_value_is_a_sentence(run, spoil, says):
    spoil(run)
    assert says in html.unescape(sentence(explore(run)))

def test_buttons_set_the_exact_values(run):
    "Values between the steps of a slider, or beyond its ends."
    rewrite(run/'config.json', eps_psnr=-2.13, eps_ssim=.0512)
    own = Explorer.of_run(run)
    *controls,buttons,view = own.widget().children
    paper,back = buttons.children
    for button,eps in ((paper, Epsilons()), (back, Epsilons(-2.13, .0512)), (paper, Epsilons())):
        button.click()
        assert Epsilons(*(c.value for c in controls))==eps and view.value==own.view(eps)
    assert (controls[0].min, controls[1].min)==(-2.15, -.2)   # on the grid, so that the paper's values are

def test_numbers_say_whose_they_are(): assert 'epoch 9, on validation people: rank-1' in (page := Explorer.of_run(demo_run())._repr_html_()) and '(raw query, protected gallery); protected' in page

def test_spans_against_a_walk_through_the_epochs():
    "Ask for each single epoch what the last decision before it was."
    g = np.random.default_rng(0)
    for _ in range(50):
        epochs = np.sort(g.choice(np.arange(1, 60), int(g.integers(1, 15)), replace=False)).tolist()
        ds = replay([Validation(e, float(g.choice([20, 22])), .5, 20., .5, float(g.random())) for e in epochs], .3)
        bars = {e: source for first,last,source in spans(ds) for e in range(first, last+1)}
        assert list(bars)==list(range(1, epochs[-1]+1))
        for e,source in bars.items():
            before = [d for d in ds if d.epoch<e]
            assert source==('generator' if before and before[-1].state.upgraded else 'desensitized')

# ---- viewer

def fake(q, n, seed=0, size=(32,16)):
    "Results of random features and pictures, with junk, distractors and queries that nobody can find."
    g = torch.Generator().manual_seed(seed)
    def split(n, low): return Split(torch.randint(0, 256, (n,3,*size), dtype=torch.uint8, generator=g), torch.randint(low, 8, (n,), generator=g), torch.randint(1, 4, (n,), generator=g), [f'{i}.png' for i in range(n)])
    counted = Counting()
    r = ArmResults(Arm('w/ U', nn.Identity(), counted, counted), split(q, 1), split(n, -1), counted)
    r.features = {k: [torch.randint(0, 4, (len(s), 3), generator=g).float() for s in (r.query, r.gallery)] for k in r.sides}
    return r, counted

class Counting(nn.Module):
    "An identity that counts the pictures that pass."
    seen = 0
    def forward(self, x): self.seen += len(x); return x

@pytest.mark.parametrize('seed', range(5))
def test_rankings_and_failures_are_the_protocols(seed):
    r,_ = fake(12, 40, seed)
    q,g = r.features['raw'][0], r.features['protected'][1]
    failed,scored = [], 0
    for i in range(len(r.query)):
        d = ((q[i]-g)**2).sum(1).sqrt().tolist()
        counts = [j for j in range(len(d)) if r.gallery.pids[j]!=-1 and not (r.gallery.pids[j]==r.query.pids[i] and r.gallery.cams[j]==r.query.cams[i])]
        want = sorted(counts, key=lambda j: d[j])[:6]   # Python's sort is stable
        got = r.ranking('raw-protected', i, 6)
        assert [m.index for m in got]==want and [m.distance for m in got]==pytest.approx([d[j] for j in want], abs=1e-3)
        right = [bool(r.gallery.pids[j]==r.query.pids[i]) for j in counts]
        assert [m.right for m in got]==[bool(r.gallery.pids[j]==r.query.pids[i]) for j in want]
        scored += any(right)
        if any(right) and not got[0].right: failed.append(i)
    assert r.failures('raw-protected', chunk=5)==failed
    rank1 = evaluate_ranking(torch.cdist(q, g), r.query.pids, r.gallery.pids, r.query.cams, r.gallery.cams).rank1
    assert 1-len(failed)/scored==pytest.approx(rank1)

def viewer_of(results, per_page=12):
    "A viewer without a run folder behind it."
    v = Viewer.__new__(Viewer)
    v.runs,v.per_page,v.run,v.opened,v.loaded = {'run': Path('run')}, per_page, 'run', {'run': (None, ['w/ U'])}, {('run', 'w/ U'): results}
    v.choose()
    return v

def test_thousands_of_images():
    "However large the test set, a view passes some dozens of pictures through the networks and weighs little."
    r,counted = fake(3000, 20_000)
    v = viewer_of(r)
    assert v.pages==250 and v.shown==list(range(12))
    v.turn(249); v.look(v.shown[-1])
    page = v.to_html()
    assert v.query==2999 and 'query 2999 of 3000' in page
    assert counted.seen<60 and len(page)<300_000
    assert page.count('<img')==4+3+4*9

def test_nothing_failed_is_said():
    r,_ = fake(5, 20)
    r.kept['raw-protected'] = []
    v = viewer_of(r)
    v.choose(order='false first match')
    assert v.query is None and v.pages==1 and v.shown==[] and 'no first match' in v.to_html()

@pytest.fixture
def market_run(tiny_market, tmp_path):
    "A run of two arms on pictures of Market-1501's layout, whose networks have learned nothing; returns folder and root of the pictures."
    root,run = tiny_market(), tmp_path/'run'
    cfg = preset('demo', data='market1501', root=str(root), ngf=4)
    data = load_data(cfg.data, cfg.root, cfg.size, cfg.seed)
    people = len(data.train.pids.unique())
    write_json(asdict(cfg)|dict(run=dict(arms=['Base', 'w/o U', 'w/ U'], identities=people)), run/'config.json')
    save_split(data, run/'split.json')
    for name,nets in {'Base': 0, 'w/o U': 2}.items(): save_arm(Arm(name, AGW(people, 'mini'), *(UNetGenerator(cfg.size, 4) for _ in range(nets))), run)
    return run, root

def test_missing_pictures_and_weights_are_sentences(market_run, tmp_path):
    run,root = market_run
    assert not isinstance(view(run), ipywidgets.HTML)
    (run/'without-u'/'recovery.safetensors').rename(tmp_path/'away')
    assert 'recovery.safetensors is missing' in sentence(view(run))
    (tmp_path/'away').rename(run/'without-u'/'recovery.safetensors')
    sorted((root/'bounding_box_test').glob('00*_c2*.jpg'))[0].unlink()
    assert 'gallery differ' in sentence(view(run))
    shutil.rmtree(root)
    assert str(root) in sentence(view(run))

def test_only_finished_arms_are_offered(market_run):
    "A killed run can be looked at as far as it came."
    run,_ = market_run
    v = Viewer(run)
    assert (v.arms, v.arm)==(['Base', 'w/o U'], 'w/o U')
    for folder in ('base', 'without-u'): (run/folder/'arm.json').unlink()
    assert 'no finished arm yet' in sentence(view(run))

def test_an_order_that_an_arm_lacks(market_run):
    "It gives way when the arm changes; asked for, it is refused."
    v = Viewer(market_run[0])
    for order,after in (('worst recovery', 'all queries'), ('false first match', 'false first match')):
        v.choose(arm='w/o U', order=order)
        v.choose(arm='Base')
        assert (v.arm, v.order)==('Base', after)
    with pytest.raises(ValueError, match='recovers nothing'): v.choose(order='worst recovery')
    assert v.order=='false first match'

@pytest.mark.parametrize('spoil, says', [
    (lambda run: (run/'without-u'/'arm.json').write_text('[]'), 'arm.json'),
    (lambda run: rewrite(run/'config.json', run=dict(identities=4)), 'config.json'),
    (lambda run: rewrite(run/'config.json', run=dict(identities=4, arms=['w/ V'])), 'w/ V'),
], ids=['arm a list', 'no arms', 'unknown arm'])
def test_a_broken_run_folder_is_a_sentence_in_the_viewer(market_run, spoil, says):
    run,_ = market_run
    spoil(run)
    assert says in html.unescape(sentence(view(run)))

def test_progress_where_it_takes_a_while(monkeypatch):
    "A bar for the pictures of a big test set, raw and protected; none for a small one."
    bars = []
    class Bar(viewer.tqdm):
        def __init__(self, *args, **kwargs): super().__init__(*args, **kwargs|dict(file=io.StringIO())); bars.append((self, not self.disable))   # closed, it is disabled
    monkeypatch.setattr(viewer, 'tqdm', Bar)
    for q,n in ((5, 20), (100, 500)):
        r,_ = fake(q, n)
        del r.features
        r.arm.reid = lambda x: x.flatten(1)[:,:3]
        assert r.features['raw'][0].shape==(q,3)
    (_, small),(bar, big) = bars
    assert (small, big, bar.n, bar.total)==(False, True, 1200, 1200)

@pytest.mark.parametrize('there, device', [(True, 'cuda'), (False, 'cpu')])
def test_device_is_a_gpu_where_there_is_one(monkeypatch, there, device):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: there)
    monkeypatch.setattr(Viewer, 'choose', lambda *args, **kwargs: None)
    assert (Viewer('run').device, Viewer('run', device='cpu').device)==(device, 'cpu')
