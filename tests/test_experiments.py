"Arms that share what they have in common end as if each had trained alone."
import pytest
from privreid.experiments import load_history, run_experiment
from privreid.joint import preset

TINY = dict(people=8, test_people=4, epochs=3, batch=16, ngf=4, ndf=4, validate_every=1, milestones=(2,), eps_psnr=99., eps_ssim=9.)

def weights(run, arm): return {p.name: p.read_bytes() for p in (run/arm).glob('*.safetensors')}
def rows(run, arm): return [{k: v for k,v in h.items() if k!='arm'} for h in load_history(run) if h['arm']==arm]

@pytest.mark.parametrize('eps_r1, upgrades', [(1., True), (-1., False)])
def test_forked_training_equals_the_whole_one(tmp_path, eps_r1, upgrades):
    "w/ U goes on from w/o U's first upgrade; trained alone it gives the same bytes."
    cfg = preset('demo', **TINY, eps_r1=eps_r1)
    run_experiment(cfg, tmp_path/'forked')
    run_experiment(cfg, tmp_path/'alone', arms=('Upper', 'Base', 'w/ U'))
    assert len(weights(tmp_path/'forked', 'with-u'))==3
    assert weights(tmp_path/'forked', 'with-u')==weights(tmp_path/'alone', 'with-u')
    assert rows(tmp_path/'forked', 'w/ U')==rows(tmp_path/'alone', 'w/ U')
    actions = [h['action'] for h in rows(tmp_path/'forked', 'w/ U') if h['kind']=='decision']
    assert len(actions)==3 and ('upgrade' in actions)==upgrades
    assert (weights(tmp_path/'forked', 'with-u')==weights(tmp_path/'forked', 'without-u'))!=upgrades
    assert not list(tmp_path.rglob('checkpoints'))
