"The widgets below their surface: live epsilons over kills, any input, any size."
import contextlib, html, json, re, shutil, threading
from pathlib import Path
import ipywidgets, numpy as np, pytest
from accelerate import Accelerator
from privreid.checkpoint import Checkpoint
from privreid.cli import main
from privreid.config import preset
from privreid.data import SyntheticPedestrians
from privreid.desensitize import Blur
from privreid.evaluation import Validate
from privreid.joint import Callback, Trainer
from privreid.training import JointTraining, Supervision
from privreid.upgradation import Epsilons, Upgradation, Validation, replay
from privreid import hindsight
from privreid.hindsight import demo_run, long_run, spans
from privreid.live import LiveEpsilons, start
from privreid.widgets import Explorer, explore

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

@pytest.mark.full
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
    (lambda run: (run/'history.jsonl').write_text((run/'history.jsonl').read_text().splitlines()[0]+'\n{"arm"'), 'line 2 is not JSON'),
    (lambda run: (run/'history.jsonl').write_text('{"arm": "w/ U", "kind": "validation", "epoch": 1}\n'), 'line 1 is damaged'),
    (lambda run: (run/'history.jsonl').write_text('17\n'), 'line 1 is damaged'),
    (lambda run: (run/'history.jsonl').write_text((run/'history.jsonl').read_text().replace('"psnr_ano": ', '"psnr_ano": "x", "was": ')), 'psnr_ano'),
    (lambda run: (run/'history.jsonl').write_text(''), 'no validation'),
    (lambda run: (run/'results.json').write_text('{"base_r1": null}'), 'no rank-1 of Base'),
], ids=['history', 'config', 'results', 'torn', 'short', 'number', 'text', 'empty', 'base'])
def test_a_broken_run_is_a_sentence(run, spoil, says):
    spoil(run)
    assert says in sentence(explore(run))

def rewrite(path, **changes): path.write_text(json.dumps(json.loads(path.read_text())|changes))

@pytest.mark.parametrize('spoil, says', [
    (lambda run: (run/'results.json').write_text('[]'), 'results.json does not hold the results'),
    (lambda run: rewrite(run/'results.json', base_r1='x'), "'x', not a number from 0 to 1: results.json"),
    (lambda run: rewrite(run/'results.json', base_r1=float('nan')), 'nan, not a number from 0 to 1: results.json'),
    (lambda run: rewrite(run/'config.json', eps_psnr='much'), 'eps_psnr must be a finite number'),
    (lambda run: (run/'history.jsonl').write_text(re.sub('"epoch": [0-9]+', '"epoch": 0', (run/'history.jsonl').read_text())), 'order of their epochs, from 1 on (0, 0, 0, 0, 0, 0, 0, 0, 0, 0): history.jsonl'),
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

def test_numbers_say_whose_they_are(): assert 'epoch 10, on validation people: rank-1' in (page := Explorer.of_run(demo_run())._repr_html_()) and '(raw query, protected gallery); protected' in page

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

def test_the_longer_run_is_shown_where_there_is_one(monkeypatch, tmp_path):
    "A folder that is not whole is none."
    monkeypatch.setattr(hindsight.privreid, '__file__', str(tmp_path/'__init__.py'))
    assert long_run()==demo_run()==tmp_path/'demo_run'
    (tmp_path/'long_run').mkdir()
    assert long_run()==demo_run()
    (tmp_path/'long_run'/'results.json').write_text('{}')
    assert long_run()==tmp_path/'long_run'

def test_an_epsilon_is_the_distance_from_the_level():
    "At zero each limit lies on the thin line, until a generator has earned a higher rank-1; above zero, privacy's lie above it."
    demo = Explorer.of_run(demo_run())
    (base,*privacy),(start,*limits) = demo.levels(), demo.moving(Epsilons(0., 0., 0.))['limits']
    assert privacy==limits and start.split('V')[0].split('H')[0]==base.split('H')[0]
    def heights(path): return [float(y) for y in re.findall(r'(?:M\d+ |V)([\d.]+)', path)]
    assert all(a<b for limit,level in zip(demo.moving(Epsilons())['limits'][1:], privacy) for a,b in zip(heights(limit), heights(level)))   # higher up on the page
    assert demo.svg(demo.eps).count('class="level"')==3

def test_limits_beyond_a_panel_are_marked():
    "Above, below, and where no limit can be met; inside, nothing."
    e = Explorer([Validation(1, 20., .5, 20., .5, .5), Validation(2, 21., .5, 20., .5, .6)], .5, title='t')
    assert e.moving(e.eps)['beyond']==['', '', '']
    assert [t[:13] for t in e.moving(Epsilons(9., -.4, .4))['beyond']]==['▼ limit below', '▲ limit above', '▼ limit below']
    broken = Explorer([Validation(1, 20., .5, float('nan'), .5, .5)], .5, title='t')
    assert broken.moving(broken.eps)['beyond'][1]=='no limit can be met here' and broken.decibels(broken.eps)==''

def test_the_grid_share_counts():
    "Against a count by hand, on a coarse grid."
    e = Explorer.of_run(demo_run())
    share = e.grid_share(3)
    places = [[d.action for d in e.decisions(Epsilons(p, s, r))] for p in (-2., 1., 4.) for s in (-.2, .05, .3) for r in (-.2, .1, .4)]
    assert share['with an upgrade']==sum('upgrade' in p for p in places)/27 and share['with a fall back']==sum('fall back' in p for p in places)/27
    assert share["with decisions unlike the run's"]==sum(p!=e.actions for p in places)/27 and all(0<=v<=1 for v in share.values())
