"Arms that share what they have in common end as if each had trained alone; a run refuses what would make its numbers wrong, and reads nothing that is damaged."
import json, math, shutil, stat
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from privreid.arms import ARMS, arm_named
from privreid.cli import main
from privreid.config import preset
from privreid.data import PARTS, SyntheticPedestrians
from privreid.datasets import save_split
from privreid.evaluation import SETTINGS
from privreid.experiments import begin, run_experiment
from privreid.folder import compare_part, look_of, write_json
from privreid.records import load_arm, load_history, load_outcomes, load_results, load_run, load_weights, read_pictures
from privreid.reopen import evaluate_run, open_run, refuse_other_images

TINY = dict(people=8, test_people=4, epochs=3, batch=16, ngf=4, ndf=4, validate_every=1, milestones=(2,), eps_psnr=99., eps_ssim=2.)

def weights(run, arm): return {p.name: p.read_bytes() for p in (run/arm).glob('*.safetensors')}
def rows(run, arm): return [{k: v for k,v in h.items() if k!='arm'} for h in load_history(run) if h['arm']==arm]

@pytest.mark.full
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

def test_pattern_reaches_the_reader(tmp_path):
    with pytest.raises(ValueError, match="no option 'pattern'"): run_experiment(preset('demo', data='market1501', root=str(tmp_path), pattern='x'), tmp_path/'run')
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('left', ['.config.json.1.tmp', 'config.json'])
def test_a_run_that_has_hardly_begun_begins_again(tmp_path, left):
    "Killed before it had a configuration, or ended by a mistake before anything was trained."
    cfg = preset('demo', people=5, test_people=3, epochs=1, batch=16, milestones=())
    (tmp_path/'bad.pth').write_bytes(b'no weights')
    with pytest.raises((OSError, ValueError)): run_experiment(replace(cfg, weights=str(tmp_path/'bad.pth')), tmp_path/'run', ('Base',))
    if left!='config.json':
        for p in (tmp_path/'run').iterdir(): p.unlink()
        (tmp_path/'run'/left).write_text('{')
    run_experiment(cfg, tmp_path/'run', ('Upper',))
    assert (tmp_path/'run'/'results.json').is_file() and not list((tmp_path/'run').glob('.*'))
    with pytest.raises(FileExistsError): run_experiment(cfg, tmp_path/'run', ('Upper',))

# --- one small run of real files, for all that follows

UPPER = dict(epochs=1, batch=16, milestones=(), weights='', ngf=4, ndf=4, data='market1501', freeze_bn=0)

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A finished run with one arm, on files; its images stand beside it."
    home = tmp_path_factory.mktemp('trained')
    root,people = home/'market', SyntheticPedestrians(size=(64,32), seed=7)
    for folder,pids,shots in (('bounding_box_train', range(1, 6), (0, 1)), ('query', (6, 7, 8), (0,)), ('bounding_box_test', (6, 7, 8), (1,))):
        (root/folder).mkdir(parents=True)
        split = people.split([(p, c, s) for p in pids for c in (0, 1) for s in shots])
        for im,name in zip(split.images, split.names): Image.fromarray(im.permute(1,2,0).numpy()).save(root/folder/name)
    run_experiment(preset('demo', root=str(root), **UPPER), home/'run', 'upper')
    return home

@pytest.fixture
def home(trained, tmp_path):
    shutil.copytree(trained, tmp_path/'home')
    config = tmp_path/'home'/'run'/'config.json'
    config.write_text(config.read_text().replace(str(trained), str(tmp_path/'home')))
    return tmp_path/'home'

def say(capsys, *words):
    code = main(list(map(str, words)))
    out,err = capsys.readouterr()
    return code, out, err.strip()

def first(home, folder): return sorted((home/'market'/folder).iterdir())[0]
def repaint(path): Image.new('RGB', (32, 64), 'red').save(path)

def test_a_run_is_its_owners(home):
    run = home/'run'
    assert json.loads((run/'config.json').read_text())['root']==str(home/'market')
    for p in (run/'pictures.png',): assert stat.S_IMODE(p.stat().st_mode)==0o600

def test_folder_that_a_run_makes_is_closed(tmp_path):
    with begin(preset('demo', people=5, test_people=3, batch=16), tmp_path/'new'/'run', 'Upper') as run:
        assert stat.S_IMODE(run.folder.stat().st_mode)==0o700
    (tmp_path/'open').mkdir(0o755)
    with begin(preset('demo', people=5, test_people=3, batch=16), tmp_path/'open', 'Upper') as run: pass
    assert stat.S_IMODE((tmp_path/'open').stat().st_mode)==0o755      # somebody else made it, and knows why

def test_a_relative_root_is_found_from_anywhere(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    with begin(preset('demo', root='market', **UPPER), tmp_path/'run', 'Upper'): pass
    monkeypatch.chdir(tmp_path)
    assert load_run(tmp_path/'run')[0].root==str(trained/'market')
    open_run(tmp_path/'run')

def test_measured_again_every_query_comes_out_the_same(home, tmp_path, capsys):
    "The outcomes stay out of the JSON; a run that has none is measured with them."
    run = home/'run'
    kept = load_outcomes(run, load_results(run))
    (run/'outcomes.safetensors').unlink()
    assert load_outcomes(run, load_results(run)) is None
    again = evaluate_run(run)
    assert again.outcomes.ranked.keys()==kept.ranked.keys()=={'arms/Upper/raw-raw', *(f'unprotected/desensitized/{s}' for s in SETTINGS)}
    assert all(np.array_equal(v, kept.ranked[k]) for k,v in again.outcomes.ranked.items())
    code,_,err = say(capsys, 'evaluate', run, '--json', tmp_path/'out.json')
    assert (code, err)==(0, '') and json.loads((tmp_path/'out.json').read_text())['arms']==again['arms']

# --- the images of a run

@pytest.mark.parametrize('part, folder', [('train', 'bounding_box_train'), ('query', 'query'), ('gallery', 'bounding_box_test')])
@pytest.mark.parametrize('change', [repaint, Path.unlink], ids=['other pixels', 'missing'])
def test_other_images_are_not_measured_as_the_runs_own(home, capsys, one_line, part, folder, change):
    change(first(home, folder))
    code,_,err = say(capsys, 'evaluate', home/'run')
    assert code==2
    one_line(err.splitlines()[-1], home/'run', 'other images', part if part!='train' else '')

def test_pictures_are_told_from_others(one_line):
    data = SyntheticPedestrians(train_ids=5, test_ids=2, distractors=1, cameras=2, size=(64,32)).draw()
    split = data.gallery
    kept = split.names, look_of(split)
    assert compare_part(split, *kept)==('', False) and compare_part(split, split.names, {})==('', False)
    assert compare_part(replace(split, pids=split.pids*7+3, cams=split.cams*2), *kept)==('', False)      # the same people, numbered anew
    assert compare_part(replace(split, cams=split.cams.flip(0)), *kept)==('identities or cameras', True)
    bit = replace(split, images=split.images^1)
    assert compare_part(bit, *kept)==('pixels, by a rounding', False)                  # another decoder
    mirrored = split.images.clone(); mirrored[3] = mirrored[3].flip(-1)
    assert compare_part(replace(split, images=mirrored), *kept)==(f'1 pictures, such as {split.names[3]}', True)
    for quarters in (['zz'], [], ['00'], look_of(split)['quarters'][1:]): assert compare_part(bit, split.names, look_of(split)|dict(quarters=quarters))[1]
    assert look_of(split[torch.zeros(len(split), dtype=torch.bool)])['quarters']==[]

def test_a_repaired_test_goes_on_and_other_training_images_do_not(tmp_path, one_line):
    data = SyntheticPedestrians(train_ids=5, test_ids=2, distractors=1, cameras=2, size=(64,32)).draw()
    save_split(data, tmp_path/'split.json', looks={p: look_of(getattr(data, p)) for p in PARTS})
    refuse_other_images(tmp_path, data)
    repaired = replace(data, gallery=data.gallery[torch.arange(1, len(data.gallery))])
    with pytest.raises(ValueError, match=r'other images \(gallery: names\)'): refuse_other_images(tmp_path, repaired)
    with pytest.warns(UserWarning, match='goes on with other test images'): refuse_other_images(tmp_path, repaired, repaired=True)
    for part in ('train', 'val_query', 'val_gallery'):
        other = replace(data, **{part: replace(getattr(data, part), images=255-getattr(data, part).images)})
        with pytest.raises(ValueError, match=part): refuse_other_images(tmp_path, other, repaired=True)
    begun = json.loads((tmp_path/'split.json').read_text()); del begun['looks']
    (tmp_path/'split.json').write_text(json.dumps(begun))                              # of an older version
    refuse_other_images(tmp_path, replace(data, query=replace(data.query, images=255-data.query.images)))

def test_a_run_with_a_broken_test_picture_goes_on_when_it_is_mended(home, capsys):
    run,broken = home/'run', first(home, 'bounding_box_test')
    (run/'results.json').unlink()
    whole = broken.read_bytes()
    broken.write_bytes(b'nothing')
    code,_,err = say(capsys, 'train', '--resume', run)
    assert code==2 and broken.name in err
    repaint(broken)                                    # mended: not to the bit what it was
    code,_,err = say(capsys, 'train', '--resume', run)
    assert code==0 and 'other test images' in err and broken.name in err
    assert say(capsys, 'evaluate', run)[0]==0          # and these are its images from now on
    broken.write_bytes(whole)
    assert say(capsys, 'evaluate', run)[0]==2

def test_images_that_moved_are_found_by_root(home, capsys, monkeypatch, one_line):
    (home/'market').rename(home/'moved')
    code,_,err = say(capsys, 'evaluate', home/'run')
    one_line(err, home/'market', '--root')
    assert code==2
    monkeypatch.chdir(home)
    assert say(capsys, 'evaluate', home/'run', '--root', 'moved')[0]==0
    assert say(capsys, 'train', '--resume', home/'run', '--root', 'moved')[0]==0
    assert load_run(home/'run')[0].root==str(home/'moved')

def test_other_people_are_measured_on_purpose(home, capsys):
    shutil.rmtree(home/'market'/'bounding_box_train'); (home/'market'/'bounding_box_train').mkdir()
    repaint(home/'market'/'bounding_box_train'/'0001_c1s1_000000_01.png')              # nothing is asked of who would train
    repaint(first(home, 'query'))
    code,out,_ = say(capsys, 'evaluate', home/'run', '--data', 'market1501', '--root', home/'market', '--json', home/'found.json')
    found = json.loads((home/'found.json').read_text())
    assert code==0 and 'not the images of this run' in out and str(home/'market') in out
    assert found['measured_on']==dict(data='market1501', root=str(home/'market'), own=False)
    assert found['arms']['Upper']['settings']['raw-raw']['queries']==6

def test_results_are_written_before_they_are_said(home, capsys, monkeypatch):
    def fails(*_): raise ValueError('no words')
    monkeypatch.setattr('privreid.scores.summary', fails)
    assert say(capsys, 'evaluate', home/'run', '--json', home/'found.json')[0]==2
    again = json.loads((home/'found.json').read_text())
    assert again['measured_on']['own'] and again['arms']['Upper']['settings']==load_results(home/'run')['arms']['Upper']['settings']

# --- before the first step

def one_camera(home):
    for folder in ('query', 'bounding_box_test'):
        for p in (home/'market'/folder).glob('*_c2*'): p.unlink()
def one_training_camera(home):
    for p in (home/'market'/'bounding_box_train').glob('*_c2*'): p.unlink()
def broken_query(home): first(home, 'query').write_bytes(b'nothing')

@pytest.mark.parametrize('spoil', [one_camera, one_training_camera, broken_query])
@pytest.mark.parametrize('command', ['train', 'reproduce'])
def test_what_cannot_be_scored_is_refused_before_there_is_a_folder(home, capsys, monkeypatch, command, spoil):
    spoil(home)
    monkeypatch.chdir(home)
    words = dict(train=['train', '--data', 'market1501', '--root', 'market'], reproduce=['reproduce', '--data', 'market1501=market', '--table', '5', '--desensitizer', 'blur'])[command]
    code,_,err = say(capsys, *words, '--preset', 'demo', '--weights', '', '--epochs', '1', '--batch', '16', '--milestones', '', '--freeze-bn', '0', '--ngf', '4', '--ndf', '4', *(['--out', 'out'] if command=='reproduce' else []))
    assert code==2 and err.startswith('privreid: '), err
    if command=='train' or spoil is not broken_query: assert {p.name for p in home.iterdir()}=={'market', 'run'}, err

@pytest.mark.parametrize('people', [1, 2])
def test_too_few_people_are_refused_before_there_is_a_folder(tmp_path, people):
    with pytest.raises(ValueError): run_experiment(preset('demo', people=people, test_people=2, batch=16), tmp_path/'run')
    assert not (tmp_path/'run').exists()

# --- names, and what they lead to

@pytest.mark.parametrize('word, arm', [('with-u', 'w/ U'), ('WITHOUT-U', 'w/o U'), ('w/ u', 'w/ U'), ('W/oU', 'w/o U'), ('base', 'Base'), (' Upper ', 'Upper')])
def test_arms_by_any_of_their_names(word, arm): assert arm_named(word)==arm

@pytest.mark.parametrize('word', ['B', 'uper', '', 3, None])
def test_an_unknown_arm_lists_the_choices(word):
    with pytest.raises(ValueError) as e: arm_named(word)
    assert all(a in str(e.value) for a in ARMS)

def test_one_arm_by_its_bare_name(home):
    arm = load_arm(home/'run', 'UPPER')
    assert arm.name=='Upper' and load_run(home/'run')[1]['arms']==['Upper']
    with pytest.raises(ValueError, match="no arm 'w/ U': choose Upper"): load_arm(home/'run', 'with-u')
    with pytest.raises(ValueError, match='needs arm'): run_experiment(preset('demo', weights=''), home/'x', 'w/ U')
    with pytest.raises(ValueError, match='no arm to train'): run_experiment(preset('demo'), home/'x', ())
    load_weights(arm.reid, str(home/'run'/'upper'/'reid.safetensors'))

def test_reprs_fit_a_line(home):
    exp,done = open_run(home/'run')
    with begin(preset('demo', people=5, test_people=3, batch=16), home/'new') as run:
        for x in (load_arm(home/'run', 'Upper'), exp, run): assert len(repr(x).replace(str(home), ''))<=120 and '\n' not in repr(x), repr(x)
    assert done==['Upper'] and 'Upper' in repr(load_arm(home/'run', 'Upper')) and 'market1501' in repr(exp)

# --- what is damaged

def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))

def put(*keys):
    "Put the last of `keys` where the others lead; ... removes."
    *way,last,value = keys
    def change(tree):
        for k in way: tree = tree[k]
        if value is ...: del tree[last]
        else: tree[last] = value
    return change

DAMAGED = [('config.json', put('run', ...)), ('config.json', put('run', 'arms', 'Upper')), ('config.json', put('run', 'identities', 10**30)), ('config.json', put('run', 'identities', 'four')),
    ('config.json', put('run', [])), ('config.json', put('ngf', 'many')), ('config.json', put('batch', 1e999)), ('config.json', put('milestones', 3)), ('config.json', put('run', 'arms', ['Foo'])), ('config.json', put('what', 1)),
    ('upper/arm.json', put('seconds', None)), ('upper/arm.json', put('history', ...)), ('upper/arm.json', put('history', [1])), ('upper/arm.json', put('history', [{}])), ('upper/arm.json', put('seconds', math.inf)), ('upper/arm.json', put('history', 0, 'lr', 10**400)), ('upper/arm.json', put('history', 0, 'kind', [])),
    ('split.json', put('query', 3)), ('split.json', put('gallery', ...)), ('split.json', put('looks', [])), ('split.json', put('looks', 'train', 'pixels', 3)),
    ('results.json', put('arms', ...)), ('results.json', put('arms', 'Upper', 'settings', ...)), ('results.json', put('arms', 'Upper', 'settings', 'raw-raw', 'rank1', 'high')), ('results.json', put('arms', 'Upper', 'settings', 'raw-raw', 'mAP', 1e308)), ('results.json', put('arms', 'Upper', 'settings', 'raw-raw', 'rank1', -.1)), ('results.json', put('arms', 'Upper', 'settings', 'raw-raw', 'queries', -1)), ('results.json', put('base_r1', 2)), ('results.json', put('desensitized', 'psnr', -math.inf)), ('results.json', put('arms', 'F\noo', {})), ('results.json', put('arms', 'Foo', {})), ('results.json', put('unprotected', 3)), ('results.json', put('desensitized', 'psnr', None))]

@pytest.mark.parametrize('name, change', DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_named_in_one_line(home, capsys, one_line, name, change):
    path = home/'run'/name
    edit(path, change)
    if name=='results.json':                           # a measurement does not read the last one's
        with pytest.raises(ValueError) as e: load_results(home/'run')
        assert say(capsys, 'report', home/'run')[0]==2
        return one_line(e.value, path)
    code,_,err = say(capsys, 'evaluate', home/'run')
    assert code==2
    one_line(err, 'privreid: ', path)

@pytest.mark.parametrize('text', ['', '{', '[]', '3', 'null', '\xff', '['*100_000, '9'*5000, '{"kind": "epoch", "epoch": 1}', '{"arm": "Upper", "kind": "other"}', '{"arm": "Upper", "kind": "validation", "epoch": 1}', '{"arm": "Upper", "kind": "epoch", "epoch": 1, "lr": 1, "supervision": "", "reid_raw": 1'+'0'*400+'}', '{"arm": "Upper", "kind": "a\\nb"}', '{"arm": "Upper", "kind": "epoch", "epoch": true, "lr": 1, "supervision": ""}'])
@pytest.mark.parametrize('name', ['history.jsonl', 'config.json', 'upper/arm.json', 'split.json'])
def test_any_text_in_any_file_is_one_line(home, capsys, one_line, name, text):
    if name=='history.jsonl' and not text: pytest.skip('no row is a history too')
    (home/'run'/name).write_text(text, encoding='latin-1')
    code,_,err = say(capsys, 'evaluate', home/'run')
    assert code==2
    one_line(err, home/'run')

def test_pictures_of_another_make_are_refused(tmp_path, one_line):
    for content in (b'', b'\x89PNG\r\n\x1a\n', b'GIF89a'):
        (tmp_path/'pictures.png').write_bytes(content)
        with pytest.raises(ValueError) as e: read_pictures(tmp_path/'pictures.png')
        one_line(e.value, tmp_path/'pictures.png')
    repaint(tmp_path/'pictures.png')
    with pytest.raises(ValueError): read_pictures(tmp_path/'pictures.png')

def test_weights_of_another_make_are_refused(home, capsys, one_line):
    path = home/'run'/'upper'/'reid.safetensors'
    for spoil in (lambda: path.write_bytes(b''), lambda: path.write_bytes(b'\xff'*100), lambda: save_file({'x': torch.zeros(3)}, path)):
        spoil()
        code,_,err = say(capsys, 'evaluate', home/'run')
        assert code==2
        one_line(err, path)

def test_a_weight_that_is_no_number_is_named(home, capsys, one_line):
    path = home/'run'/'upper'/'reid.safetensors'
    whole = load_file(path)
    for value in (math.nan, math.inf):
        save_file(whole|{'neck.running_mean': torch.full_like(whole['neck.running_mean'], value)}, path)
        code,_,err = say(capsys, 'evaluate', home/'run')
        assert code==2
        one_line(err, path, "'neck.running_mean' holds NaN or infinity")

def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match='psnr'): write_json(dict(arms=dict(Base=dict(psnr=float('inf')))), tmp_path/'x.json')
    assert not list(tmp_path.iterdir())
