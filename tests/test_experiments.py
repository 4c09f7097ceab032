"Arms that share what they have in common end as if each had trained alone."
from dataclasses import replace
import pytest, torch
from privreid.data import SyntheticPedestrians
from privreid.datasets import save_split
from privreid.experiments import load_history, refuse_other_images, run_experiment
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

def test_other_images_are_refused(tmp_path):
    "A run is not resumed on images that came or went in between."
    data = SyntheticPedestrians(train_ids=5, test_ids=2, distractors=1, cameras=2, size=(64,32)).draw()
    save_split(data, tmp_path/'split.json')
    refuse_other_images(tmp_path, data)
    data.gallery = data.gallery[torch.arange(1, len(data.gallery))]
    with pytest.raises(ValueError, match=r'other images \(gallery differ\)'): refuse_other_images(tmp_path, data)

def test_pattern_reaches_the_reader(tmp_path):
    with pytest.raises(ValueError, match="no option 'pattern'"): run_experiment(preset('demo', data='market1501', root=str(tmp_path), pattern='x'), tmp_path/'run')
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('left', ['.config.json.1.tmp', 'config.json'])
def test_a_run_that_has_hardly_begun_begins_again(tmp_path, left):
    "Killed before it had a configuration, or ended by a mistake before anything was trained."
    cfg = preset('demo', people=5, test_people=3, epochs=1, batch=16, milestones=())
    with pytest.raises(FileNotFoundError): run_experiment(replace(cfg, weights=str(tmp_path/'none.pth')), tmp_path/'run', ('Base',))
    if left!='config.json':
        for p in (tmp_path/'run').iterdir(): p.unlink()
        (tmp_path/'run'/left).write_text('{')
    run_experiment(cfg, tmp_path/'run', ('Upper',))
    assert (tmp_path/'run'/'results.json').is_file() and not list((tmp_path/'run').glob('.*'))
    with pytest.raises(FileExistsError): run_experiment(cfg, tmp_path/'run', ('Upper',))
