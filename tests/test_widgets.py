"The widgets below their surface: live epsilons over kills, any input, any size, Colab's ipywidgets."
import contextlib, json, os, shutil, subprocess, sys, threading
from dataclasses import asdict
from pathlib import Path
import ipywidgets, nbformat, numpy as np, pytest, torch
from accelerate import Accelerator
from nbclient import NotebookClient
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
from privreid.viewer import ArmResults, Viewer, view
from privreid.widgets import Explorer, LiveEpsilons, demo_run, explore, spans, start

ROOT = Path(__file__).resolve().parent.parent

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

def test_rows_of_changed_epsilons_are_tolerated(run):
    "The explorer, the report and the rule read past them."
    before,path = Explorer.of_run(run), run/'history.jsonl'
    rows = [json.loads(l) for l in path.read_text().splitlines()]
    last = next(i for i,h in enumerate(rows) if h['arm']=='w/ U')
    rows.insert(last+3, dict(arm='w/ U', kind='epsilons', epoch=1, psnr=3., ssim=.1, r1=0.))
    path.write_text(''.join(json.dumps(r)+'\n' for r in rows))
    assert Explorer.of_run(run).validations==before.validations
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

def test_missing_pictures_and_weights_are_sentences(tiny_market, tmp_path):
    root,run = tiny_market(), tmp_path/'run'
    cfg = preset('demo', data='market1501', root=str(root), ngf=4)
    data = load_data(cfg.data, cfg.root, cfg.size, cfg.seed)
    people = len(data.train.pids.unique())
    write_json(asdict(cfg)|dict(run=dict(arms=['w/o U'], identities=people)), run/'config.json')
    save_split(data, run/'split.json')
    save_arm(Arm('w/o U', AGW(people, 'mini'), UNetGenerator(cfg.size, 4), UNetGenerator(cfg.size, 4)), run)
    assert not isinstance(view(run), ipywidgets.HTML)
    (run/'without-u'/'recovery.safetensors').rename(tmp_path/'away')
    assert 'recovery.safetensors is missing' in sentence(view(run))
    (tmp_path/'away').rename(run/'without-u'/'recovery.safetensors')
    sorted((root/'bounding_box_test').glob('00*_c2*.jpg'))[0].unlink()
    assert 'gallery differ' in sentence(view(run))
    shutil.rmtree(root)
    assert str(root) in sentence(view(run))

# ---- Colab

def test_on_colabs_ipywidgets(tmp_path, monkeypatch):
    "The lesson runs with ipywidgets 7.7.1, which Colab has."
    pip = subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', tmp_path, 'ipywidgets==7.7.1', 'ipython_genutils'], capture_output=True, text=True)
    if pip.returncode: (pytest.fail if os.environ.get('CI')=='true' else pytest.skip)(f'ipywidgets 7.7.1 cannot be installed: {pip.stderr.strip().splitlines()[-1]}')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')])))
    nb = nbformat.read(ROOT/'nbs'/'10_widgets.ipynb', 4)
    nb.cells.insert(0, nbformat.v4.new_code_cell("import ipywidgets\nassert ipywidgets.__version__=='7.7.1'"))
    NotebookClient(nb, timeout=300, kernel_name='python3').execute()
    assert any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for c in nb.cells for o in c.get('outputs', []))
