"The dashboard changes nothing, costs little, does not grow, and stops where one can go on."
import contextlib, json, threading, time
import ipywidgets, pytest, torch
from accelerate import Accelerator
from privreid import dashboard as module
from privreid.checkpoint import Checkpoint
from privreid.config import preset
from privreid.dashboard import LOSS_WORDS, Dashboard, spark
from privreid.data import SyntheticPedestrians
from privreid.desensitize import Blur, GaussianNoise
from privreid.evaluation import Validate
from privreid.joint import Callback, Progress, Trainer
from privreid.live import start
from privreid.training import JointTraining, ReidTraining, Supervision
from privreid.upgradation import Epsilons, Upgradation

@pytest.fixture(scope='module')
def street(): return SyntheticPedestrians(train_ids=10, test_ids=4, size=(64,32)).draw()

def tiny(street, *callbacks, hide=Blur, kind=JointTraining, validate=True, **changes):
    cfg = preset('demo', **dict(epochs=2, batch=16, validate_every=1, ngf=4, ndf=4)|changes)
    judged = [Validate(street), Upgradation(0., Epsilons(psnr=9., ssim=.9))] if validate else []
    return Trainer(kind(cfg, 8, Accelerator(cpu=True)), street.train, Supervision(hide()), [*judged, *callbacks])

def test_a_dashboard_changes_nothing(street):
    "With dice in the desensitizer, and a generator that teaches: the same history, the same weights, the same dice of torch."
    ends = []
    for extra in ([], [Dashboard(street.val_gallery, every=0, share=1, show=True)]):
        torch.manual_seed(3)
        t = tiny(street, *extra, hide=GaussianNoise).fit()
        ends.append((t.history, t.nets.state_dict(), torch.rand(1)))
        if extra: assert extra[0].updates>8 and extra[0].row.value[:2]==b'\xff\xd8'
    assert ends[0][0]==ends[1][0] and torch.equal(ends[0][2], ends[1][2])
    assert any(h.get('action')=='upgrade' for h in ends[0][0])
    for (k,a),b in zip(ends[0][1].items(), ends[1][1].values()): assert torch.equal(a, b), k

class Clock:
    "Time that passes by hand: a batch takes 10 ms, an update of the panel 50 ms."
    def __init__(self): self.now = 0.
    def time(self): return self.now
    def __getattr__(self, name): return getattr(time, name)

def test_it_costs_at_most_its_share_and_does_not_grow(street, monkeypatch):
    "A thousand updates by the clock: at most 2 % of the time, and a saved notebook of the last state only."
    clock,board = Clock(), Dashboard(street.val_gallery, every=0, show=True)
    monkeypatch.setattr(module, 'time', clock)
    draw = board.head_html
    board.head_html = lambda trainer: (setattr(clock, 'now', clock.now+.05), draw(trainer))[1]
    t = tiny(street, board, epochs=10**6)
    board.before_fit(t)
    t.epoch,losses,sizes = 1, {k: torch.tensor(.5) for k in LOSS_WORDS}, []
    while board.updates<1000:
        clock.now += .01
        board.after_batch(t, losses)
        if board.updates in (10, 999): sizes.append(sum(len(json.dumps({k: v for k,v in w.get_state().items() if not isinstance(v, (bytes, memoryview))}))+len(getattr(w, 'value', b'')) for w in widgets_of(board.panel)))
    assert board.spent<=.02*(clock.now-board.begun)+.06
    assert max(sizes)<100_000 and abs(sizes[-1]-sizes[0])<200

def widgets_of(w): return [w, *(x for c in getattr(w, 'children', ()) for x in widgets_of(c))]

@pytest.mark.full
def test_it_costs_little_by_the_clock_on_the_wall(street):
    "Real time: the panel's own share while it trains, by what it measured itself and was held to."
    board = Dashboard(street.val_gallery, show=True, every=.1)
    tiny(street, board, epochs=30).fit()
    assert board.spent<=.02*(time.time()-board.begun)+.2

def test_what_it_says(street):
    board = Dashboard(street.val_gallery, every=0, share=1, show=True)
    t = tiny(street, board, Progress()).fit()
    assert not any(isinstance(c, Progress) for c in t.callbacks)                     # one display is enough
    for words in LOSS_WORDS.values(): assert words in board.losses.value
    assert 'Epoch 2 of 2' in board.head.value and '0 s left' in board.head.value and 'a frozen generator teaches' in board.head.value
    v,d = ([h for h in t.history if h['kind']==k][-1] for k in ('validation', 'decision'))
    assert f"{v['psnr_ano']:.2f} dB" in board.limits.value and f"below {v['psnr_des']+9:.2f} dB" in board.limits.value and d['reason'].split(',')[0] in board.limits.value
    first = next(h for h in t.history if h['kind']=='decision')
    assert f"above {first['state']['best_r1']:.1%}" in board.limits.value            # what this validation had to beat, not the next
    assert board.limits.value.count('✓')+board.limits.value.count('✕')==3

def test_re_id_alone_has_no_pictures(street):
    board = Dashboard(every=0, share=1, show=True)
    tiny(street, board, kind=ReidTraining, validate=False).fit()
    assert board.row.value==b'' and 'No validation yet' in board.limits.value and LOSS_WORDS['reid_raw'] in board.losses.value

def test_elsewhere_there_is_the_plain_bar(street, monkeypatch):
    monkeypatch.setenv('TQDM_DISABLE', '0')
    board,bar = Dashboard(street.val_gallery), Progress()                             # pytest is no notebook
    t = tiny(street, board, bar, validate=False).fit()
    assert bar in t.callbacks and bar.bar.n==sum(len(t.sampler.epoch(e)) for e in (1, 2)) and board.updates==0 and board.head.value==''

class Press(Callback):
    def __init__(self, board): self.board = board
    def after_batch(self, trainer, losses):
        if trainer.epoch==2: self.board.button.click()

@pytest.mark.parametrize('own', [True, pytest.param(False, marks=pytest.mark.full)], ids=['its own checkpoints', 'a Checkpoint among the callbacks'])
def test_a_stop_leaves_a_resumable_training(street, tmp_path, own):
    whole = tiny(street, epochs=3).fit()
    board = Dashboard(street.val_gallery, keep=tmp_path if own else '', show=True)
    more = [] if own else [Checkpoint(tmp_path)]
    training = start(tiny(street, *more, Press(board), board, epochs=3))
    with pytest.raises(KeyboardInterrupt, match='stopped by hand in epoch 2: epoch-00001.safetensors is kept'): training.result()
    for _ in range(100):                                                             # the panel hears of it a moment later
        if board.button.disabled: break
        time.sleep(.05)
    assert 'stopped by hand' in board.status.value and board.button.description=='stop (resumable)'
    resumed = tiny(street, saved := Checkpoint(tmp_path), epochs=3)
    saved.load(resumed)
    assert resumed.epoch==1
    resumed.fit()
    assert resumed.history==whole.history
    for (k,a),b in zip(whole.nets.state_dict().items(), resumed.nets.state_dict().values()): assert torch.equal(a, b), k

def test_without_checkpoints_it_says_so(street):
    board = Dashboard(street.val_gallery, show=True)
    with pytest.raises(KeyboardInterrupt, match='nothing is kept'): start(tiny(street, Press(board), board, validate=False)).result()
    assert board.button.description=='stop (nothing is kept)'

def test_a_failure_is_told_and_wrong_options_are_refused(street, one_line):
    class Fail(Callback):
        def after_epoch(self, trainer): raise FloatingPointError('the loss <b> is nan')
    training = start(tiny(street, Fail(), validate=False, *[board := Dashboard(street.val_gallery, show=True)]))
    with pytest.raises(FloatingPointError): training.result()
    for _ in range(100):
        if board.status.value: break
        time.sleep(.05)
    assert '&lt;b&gt; is nan' in board.status.value
    for wrong in (dict(every=-1), dict(share=0), dict(share=2)):
        with pytest.raises(ValueError) as e: Dashboard(**wrong)
        one_line(e.value, *wrong)

def test_curves_stay_small():
    assert len(spark([float(i) for i in range(10**5)], 'x'))<800 and spark([float('nan')]*9, 'x')=='' and 'nan' not in spark([1., float('nan'), 2.], 'x')
