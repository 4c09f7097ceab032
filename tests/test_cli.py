"The installed command, as a user meets it."
import json, os, stat, subprocess, sys
from pathlib import Path
import pytest
from PIL import Image
from safetensors.torch import load_file
from privreid.data import SyntheticPedestrians
from privreid.joint import preset

PRIVREID = str(Path(sys.executable).parent/'privreid')
TINY = ['--people', '12', '--test-people', '6', '--epochs', '2', '--batch', '16', '--ngf', '4', '--ndf', '4', '--validate-every', '1', '--milestones', '']

def privreid(*words, cwd=None): return subprocess.run([PRIVREID, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=600)

@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    run = tmp_path_factory.mktemp('cli')/'run'
    done = privreid('demo', '--out', run, *TINY)
    assert done.returncode==0, done.stderr[-3000:]
    return run, done

def test_demo_ends_with_tables_and_report(demo):
    run,done = demo
    assert 'Rank-1, %' in done.stdout and str(run/'report.html') in done.stdout
    assert (run/'report.html').stat().st_size>50_000

def test_run_folder_is_complete(demo):
    run,_ = demo
    config,results = json.loads((run/'config.json').read_text()), json.loads((run/'results.json').read_text())
    assert config['people']==12 and set(results['arms'])=={'Base', 'Upper', 'w/o U', 'w/ U'}
    history = [json.loads(line) for line in (run/'history.jsonl').read_text().splitlines()]
    assert {h['kind'] for h in history if h['arm']=='w/ U'}=={'epoch', 'validation', 'decision'}
    assert {h['kind'] for h in history if h['arm']=='Base'}=={'epoch'}
    for arm,files in {'base': 1, 'upper': 1, 'without-u': 3, 'with-u': 3}.items():
        weights = list((run/arm).glob('*.safetensors'))
        assert len(weights)==files and all(load_file(w) for w in weights)
    assert not list(run.rglob('*.tmp'))

def test_the_key_is_apart_and_private(demo):
    run,_ = demo
    for arm in ('without-u', 'with-u'):
        assert stat.S_IMODE((run/arm/'recovery.safetensors').stat().st_mode)==0o600
        assert not set(load_file(run/arm/'anonymizer.safetensors'))-{k for k in load_file(run/arm/'recovery.safetensors')}   # same shape of net
        assert any((a!=b).any() for a,b in zip(load_file(run/arm/'anonymizer.safetensors').values(), load_file(run/arm/'recovery.safetensors').values()))

def test_evaluate_repeats_the_numbers(demo):
    run,done = demo
    again = privreid('evaluate', run)
    assert again.returncode==0, again.stderr
    table = lambda text: text[text.index('Rank-1, %'):text.index('Claims')].strip()
    assert table(again.stdout)==table(done.stdout)

def test_report_is_written_again(demo):
    run,_ = demo
    (run/'report.html').unlink()
    assert privreid('report', run).returncode==0 and (run/'report.html').is_file()

def test_market_layout_trains(tmp_path, tiny_market):
    done = privreid('train', '--data', 'market1501', '--root', tiny_market(), '--preset', 'demo', '--out', tmp_path/'run', '--arms', 'Base', 'w/ U', '--weights', '', *TINY)
    assert done.returncode==0, done.stderr[-3000:]

def market_with(tmp_path, bad:bytes):
    "A Market-style root whose first training image is not one."
    for folder,pids,cameras in (('bounding_box_train', (1, 2, 3), (0, 1)), ('query', (4, 5, 6), (0,)), ('bounding_box_test', (4, 5, 6), (1,))):
        (tmp_path/folder).mkdir(parents=True)
        people = SyntheticPedestrians(size=(64,32)).split([(p, c, 0) for p in pids for c in cameras])
        for im,name in zip(people.images, people.names): Image.fromarray(im.permute(1,2,0).numpy()).save(tmp_path/folder/name)
    (tmp_path/'bounding_box_train'/'0001_c1s1_000000_01.png').write_bytes(bad)
    return tmp_path

def mistakes(tmp_path):
    empty = tmp_path/'empty'
    for f in ('bounding_box_train', 'query', 'bounding_box_test'): (empty/f).mkdir(parents=True)
    market = ['train', '--preset', 'demo', '--data', 'market1501', '--root']
    (tmp_path/'full').mkdir(); (tmp_path/'full'/'x').write_text('x')
    return {'missing folder': ([*market, tmp_path/'none'], 'none'), 'empty folder': ([*market, empty], 'bounding_box_train'),
            'unreadable image': ([*market, market_with(tmp_path/'bad', b'not an image')], '0001_c1s1_000000_01.png'),
            'no root': (market[:-1], 'root'), 'batch and K': (['demo', '--batch', '30'], 'not divisible'),
            'size': (['demo', '--height', '60'], '60 x 32'), 'preset': (['demo', '--preset', 'dem'], "'dem'"),
            'desensitizer': (['demo', '--desensitizer', 'fog'], "'fog'"), 'backbone': (['demo', '--backbone', 'vgg'], "'vgg'"), 'weights': (['demo', '--weights', '/none.pth'], '/none.pth'),
            'arm': (['demo', '--arms', 'Bse'], "'Bse'"), 'not a number': (['demo', '--epochs', 'abc'], "--epochs: invalid int value: 'abc'"), 'epochs': (['demo', '--milestones', '3,x'], "'3,x' is not a list of epochs"),
            'option': (['demo', '--bogus'], '--bogus'), 'command': (['dmeo'], "'dmeo'"), 'no command': ([], 'required'), 'no run': (['evaluate'], 'run'), 'height': (['demo', '--height', '0'], 'height'), 'seed': (['demo', '--seed', '-1'], 'seed'),
            'folder in use': (['demo', '--out', tmp_path/'full'], 'full'), 'not a run': (['evaluate', tmp_path/'full'], 'full')}

@pytest.mark.parametrize('case', ['missing folder', 'empty folder', 'unreadable image', 'no root', 'batch and K', 'size', 'preset', 'desensitizer', 'backbone', 'weights', 'arm', 'folder in use', 'not a run',
                                  'not a number', 'epochs', 'option', 'command', 'no command', 'no run', 'height', 'seed'])
def test_a_mistake_costs_one_line_and_exit_code_2(tmp_path, case):
    words,named = mistakes(tmp_path)[case]
    done = privreid(*words, cwd=tmp_path)
    assert done.returncode==2, done.stderr
    lines = [l for l in done.stderr.splitlines() if l.strip()]
    assert len(lines)==1 and lines[0].startswith('privreid: ') and named in lines[0], done.stderr
    assert not (tmp_path/'runs').exists() or not list((tmp_path/'runs').rglob('*.safetensors'))

def test_identity_with_one_image_is_warned_about_once(tmp_path, tiny_market):
    root = Path(tiny_market())
    lonely = sorted((root/'bounding_box_train').glob('*.jpg'))[0]
    (root/'bounding_box_train'/f'0999{lonely.name[4:]}').write_bytes(lonely.read_bytes())
    for seed in range(3):      # the lonely one may be drawn for validation; some seed leaves it in training
        done = privreid('train', '--data', 'market1501', '--root', root, '--preset', 'demo', '--out', tmp_path/f'run{seed}', '--arms', 'Upper', '--seed', seed, *TINY)
        assert done.returncode==0, done.stderr[-2000:]
        if 'single training image' in done.stderr: break
    assert done.stderr.count('single training image')==1 and '999' in done.stderr

def test_help_names_units_and_defaults():
    text = privreid('train', '--help').stdout
    assert '--eps-psnr' in text and 'dB' in text and '(default: 1.0)' in text and 'pixels' in text
    text = ' '.join(privreid('demo', '--help').stdout.split())
    assert f"(default: {preset('demo').epochs}; paper: 120)" in text and "(default: 'mini'; paper: 'resnet50')" in text
