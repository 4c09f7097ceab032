"Properties of the rule that must hold for every history."
import json, math
from dataclasses import asdict, replace
import numpy as np
import pytest, torch
from hypothesis import given, strategies as st
from privreid.upgradation import JUDGED, PSNR_CEILING, Epsilons, State, Validation, decide, draw_decisions, is_private, replay, validations

number = st.floats(0, 1)
record = st.builds(Validation, epoch=st.integers(1, 120), psnr_ano=st.floats(10, 30), ssim_ano=number, psnr_des=st.just(20.), ssim_des=st.just(.5), r1_raw_ano=number)
epsilons = st.builds(Epsilons, psnr=st.floats(-2, 5), ssim=st.floats(-.2, .4), r1=st.floats(-.2, .4))

@given(record, st.builds(State, best_r1=number, upgraded=st.booleans()), epsilons)
def test_rule_is_what_the_paper_says(v, state, eps):
    private = v.psnr_ano<v.psnr_des+eps.psnr and v.ssim_ano<v.ssim_des+eps.ssim
    better = v.r1_raw_ano>state.best_r1
    d = decide(v, state, eps)
    assert d.action==('upgrade' if private and better else 'fall back' if not private and state.upgraded else 'keep')
    assert d.state.upgraded==(private and (better or state.upgraded))
    assert d.state.best_r1==(v.r1_raw_ano if d.action=='upgrade' else state.best_r1)
    assert d.reason and '\n' not in d.reason

@given(st.lists(record, max_size=30), number, epsilons)
def test_replay_threads_the_state(history, base, eps):
    decisions = replay(history, base, eps)
    state = State(base-eps.r1)
    for v,d in zip(history, decisions):
        assert d==decide(v, state, eps)
        assert d.state.best_r1>=state.best_r1        # the bar never drops
        state = d.state
    assert len(decisions)==len(history)

FINE = Validation(5, 20.5, .52, 20., .5, .9)

@pytest.mark.parametrize('field', JUDGED)
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_what_could_not_be_measured_is_not_private(field, value):
    "Whatever the epsilons, whether something supervises or not; and it is named."
    assert is_private(FINE)
    for state,eps in ((State(.4), Epsilons()), (State(.4, True), Epsilons(1e9, 1e9, 1e9))):
        d = decide(replace(FINE, **{field: value}), state, eps)
        assert not d.private and d.action==('fall back' if state.upgraded else 'keep') and f'{field} is {value}' in d.reason and d.state.best_r1==.4

def test_a_desensitizer_that_hides_nothing_sets_no_limit():
    for ano in (PSNR_CEILING, 30., 5.): assert not is_private(replace(FINE, psnr_des=PSNR_CEILING, psnr_ano=ano, ssim_des=1., ssim_ano=.1))

def test_histories_of_older_runs_are_replayed():
    "Rows with `Infinity` and `NaN` in them, as JSON was written then, and without the fields that came later."
    old = {k: v for k,v in asdict(FINE).items() if k in ('epoch', *JUDGED)}
    lines = [json.dumps(dict(arm='w/ U', kind='validation')|old|change) for change in ({}, dict(psnr_des=math.inf), dict(epoch=15, psnr_ano=math.nan))]
    assert 'Infinity' in lines[1] and 'NaN' in lines[2]
    found = validations([json.loads(l) for l in lines], 'w/ U')
    assert [d.action for d in replay(found, .5)]==['upgrade', 'fall back', 'keep']
    assert len(draw_decisions(found, .5).axes)==3

@pytest.mark.parametrize('change', [dict(epoch=math.inf), dict(epoch=None), dict(psnr_ano='x'), dict(more=1)])
def test_a_damaged_row_is_one_sentence(change, one_line):
    with pytest.raises(ValueError) as e: validations([dict(kind='validation')|asdict(FINE)|change])
    one_line(e.value, 'not a whole validation')

@pytest.mark.parametrize('wrong', ['20', None, [20.], torch.tensor(20.), True, 1j, 10**400], ids=lambda v: type(v).__name__)
def test_what_is_no_number_is_one_sentence(wrong, one_line):
    for make,named in ((lambda: replace(FINE, psnr_des=wrong), 'Validation.psnr_des'), (lambda: Epsilons(ssim=wrong), 'Epsilons.ssim'), (lambda: State(wrong), 'State.best_r1'), (lambda: replay([FINE], wrong), 'base_r1')):
        with pytest.raises(ValueError) as e: make()
        one_line(e.value, named)
    for call in (lambda: decide(wrong, State(.1)), lambda: decide(FINE, wrong), lambda: decide(FINE, State(.1), wrong), lambda: replay([wrong], .1), lambda: replay([FINE], .1, wrong)):
        with pytest.raises(TypeError) as e: call()
        one_line(e.value, 'The rule takes')

def test_the_figure_shows_all_three_limits():
    "SSIM, too: it may be the only one that binds."
    fig = draw_decisions([FINE, replace(FINE, epoch=10, ssim_ano=.6)], .5, Epsilons(1., .05))
    for ax,limit in zip(fig.axes, (.45, 21., .55)): assert ax.lines[0].get_ydata()[0]==pytest.approx(limit)
    assert [ax.lines[1].get_ydata()[1] for ax in fig.axes]==[.9, 20.5, .6]

# --- where the authors decide otherwise

def supervised(history, start, eps=Epsilons()):
    "What supervises after each validation in the authors' code, in words of our own: the epoch of a generator, or None."
    best,now,last,out = start, None, None, []
    for v in history:
        if not is_private(v, eps): now = None
        elif v.r1_raw_ano>best: best,now,last = v.r1_raw_ano, v.epoch, v.epoch
        elif v.r1_raw_ano<=start: now = None                 # no better than at the start: desensitized again
        elif now is None: now = last                         # private again, but no record: the old generator returns
        out.append(now)
    return out

def ours(history, start, eps=Epsilons()):
    state,now,out = State(start), None, []
    for v in history:
        d = decide(v, state, eps); state = d.state
        now = v.epoch if d.action=='upgrade' else None if d.action=='fall back' else now
        assert state.upgraded==(now is not None)
        out.append(now)
    return out

def at(epoch, r1, private=True): return Validation(epoch, 20.5 if private else 25., .52, 20., .5, r1)

@pytest.mark.parametrize('history, here, theirs', [
    ([at(1, .6), at(2, .35)], [1, 1], [1, None]),                                                   # private, not above the start of .4
    ([at(1, .6), at(2, .7, False), at(3, .5)], [1, None, None], [1, None, 1]),                      # private again, no record
    ([at(1, .6), at(2, .7, False), at(3, .8)], [1, None, 3], [1, None, 3]),                         # private again, a record
    ([at(1, .6), at(2, .5), at(3, .7)], [1, 1, 3], [1, 1, 3]), ([at(1, .3), at(2, .3, False)], [None, None], [None, None])])
def test_two_histories_on_which_the_authors_decide_otherwise(history, here, theirs):
    assert ours(history, .4)==here and supervised(history, .4)==theirs

def test_most_differences_are_of_the_first_kind():
    rng,kinds = np.random.default_rng(0), dict(dismissed=0, returned=0)
    for _ in range(300):
        history = [at(e, r1, private) for e,(r1,private) in enumerate(zip(rng.uniform(.3, .7, 8), rng.random(8)<.8), 1)]
        here,theirs = ours(history, .4), supervised(history, .4)
        first = next((i for i,(a,b) in enumerate(zip(here, theirs)) if a!=b), None)
        if first is not None: kinds['dismissed' if theirs[first] is None else 'returned'] += 1
    print(kinds)
    assert kinds['dismissed']>kinds['returned']>0
