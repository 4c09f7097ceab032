"Properties of the rule that must hold for every history."
from hypothesis import given, strategies as st
from privreid.upgradation import Epsilons, State, Validation, decide, replay

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
