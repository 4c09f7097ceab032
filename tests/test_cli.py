"The installed command, as a user meets it."
import contextlib, importlib.util, io, json, os, re, stat, subprocess, sys
from pathlib import Path
import pytest, torch
from PIL import Image
from safetensors.torch import load_file
from privreid import cli
from privreid.cli import main
from privreid.config import preset
from privreid.data import SyntheticPedestrians

PRIVREID = str(Path(sys.executable).parent/'privreid')
TINY = ['--people', '12', '--test-people', '6', '--epochs', '2', '--batch', '16', '--ngf', '4', '--ndf', '4', '--validate-every', '1', '--milestones', '']

ENV = os.environ|dict(OMP_NUM_THREADS='1')

def privreid(*words, **how): return subprocess.run([PRIVREID, *map(str, words)], **dict(env=ENV, capture_output=True, text=True, timeout=600)|how)

@pytest.fixture
def say(capsys):
    "The command in this process: exit code, stdout, stderr."
    def run(*words):
        before = cli.warnings.showwarning
        try: code = main(list(map(str, words)))
        except SystemExit as e: code = e.code
        finally: cli.warnings.showwarning = before
        return code, *capsys.readouterr()
    return run

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

def test_evaluate_repeats_the_numbers(demo, say, tmp_path):
    run,done = demo
    code,said,err = say('evaluate', run, '--json', tmp_path/'again.json')
    assert code==0, err
    table = lambda text: text[text.index('Rank-1, %'):text.index('Claims')].strip()
    assert table(said)==table(done.stdout)
    again,results = json.loads((tmp_path/'again.json').read_text()), json.loads((run/'results.json').read_text())
    for k in ('arms', 'unprotected', 'desensitized'): assert again[k]==results[k]

def test_report_is_written_again(demo, say):
    run,_ = demo
    (run/'report.html').unlink()
    assert say('report', run)[0]==0 and (run/'report.html').is_file()

# --- words never fail

@pytest.mark.parametrize('encoding, words, shown', [('cp932', ['report', None], 'report.html'), pytest.param('ascii', ['train', '--help'], '--eps-psnr', marks=pytest.mark.full)])
def test_any_code_page(demo, encoding, words, shown):
    done = privreid(*(w or demo[0] for w in words), env=ENV|dict(PYTHONIOENCODING=encoding))
    assert done.returncode==0 and shown in done.stdout, done.stderr

@pytest.mark.parametrize('words, end', [('train --resume', '| head -n 1'), pytest.param('report', '>&- 2>&-', marks=pytest.mark.full), pytest.param('report', '>/dev/full', marks=pytest.mark.full)])
def test_nobody_has_to_listen(demo, words, end):
    "A reader who leaves, streams that are closed, a disk that is full: the result is there, and the exit code is that of the work."
    run,_ = demo
    (run/'report.html').unlink(missing_ok=True)
    done = subprocess.run(['bash', '-c', f'set -o pipefail; "$0" {words} "$1" {end}', PRIVREID, run], env=ENV, capture_output=True, text=True, timeout=600)
    assert done.returncode==0 and (run/'report.html').stat().st_size>50_000, done.stderr
    assert 'Traceback' not in done.stderr and 'Exception ignored' not in done.stderr

class Stream(io.StringIO):
    "A terminal that knows few letters, and may be gone."
    def __init__(self, encoding='ascii', error=None): super().__init__(); self.letters,self.error = encoding, error
    encoding = property(lambda self: self.letters)
    def write(self, text):
        if self.error: raise self.error
        return super().write(text.encode(self.letters).decode(self.letters))

@pytest.mark.parametrize('stream', [None, Stream('ascii'), Stream('cp932'), Stream(error=BrokenPipeError()), Stream(error=OSError(28, 'No space left on device')), Stream(error=ValueError('I/O operation on closed file'))], ids=range(6))
def test_every_stream_takes_every_word(stream):
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), cli._speaking():
        print('±–✓ \udcff'); cli._say('±–✓'); sys.stdout.flush(); sys.stdout.isatty()
    if stream and not stream.error: assert stream.getvalue().count('\n')==2

def market_with(tmp_path, bad:bytes):
    "A Market-style root whose first training image is not one."
    for folder,pids,cameras in (('bounding_box_train', (1, 2, 3), (0, 1)), ('query', (4, 5, 6), (0,)), ('bounding_box_test', (4, 5, 6), (1,))):
        (tmp_path/folder).mkdir(parents=True)
        people = SyntheticPedestrians(size=(64,32)).split([(p, c, s) for p in pids for c in cameras for s in (0, 1)])
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
            'option': (['demo', '--bogus'], '--bogus'), 'command': (['dmeo'], "'dmeo'"), 'no command': ([], 'required'), 'no run': (['evaluate'], 'run'), 'near option': (['demo', '--epoks', '3'], 'Did you mean --epochs?'), 'near command': (['evalute', 'x'], 'Did you mean evaluate?'),
            'near arm': (['demo', '--arms', 'uper'], "Did you mean 'Upper'?"), 'device': (['demo', '--device', 'gpu'], "'gpu'"), 'pattern alone': (['evaluate', tmp_path, '--pattern', 'x'], '--data'), 'nobody': (['demo', '--out', '~nobody-of-that-name/x'], '~nobody-of-that-name'),
            'twice': (['reproduce', '--preset', 'demo', '--data', 'folder=a', 'folder=b'], 'folder twice'), 'other set': (['evaluate', tmp_path/'full', '--data', 'folder', '--root', empty], 'full'), 'height': (['demo', '--height', '0'], 'height'), 'seed': (['demo', '--seed', '-1'], 'seed'),
            'folder in use': (['demo', '--out', tmp_path/'full'], 'full'), 'not a run': (['evaluate', tmp_path/'full'], 'full')}

CASES = ['missing folder', 'empty folder', 'unreadable image', 'no root', 'batch and K', 'size', 'preset', 'desensitizer', 'backbone', 'weights', 'arm', 'folder in use', 'not a run', 'not a number', 'epochs', 'option', 'command', 'no command', 'no run', 'height', 'seed',
         'near option', 'near command', 'near arm', 'device', 'pattern alone', 'nobody', 'twice', 'other set']
@pytest.mark.parametrize('case', CASES)
def test_a_mistake_costs_one_line_and_exit_code_2(tmp_path, monkeypatch, say, case):
    monkeypatch.chdir(tmp_path)
    words,named = mistakes(tmp_path)[case]
    code,_,err = say(*words)
    lines = [l for l in err.splitlines() if l.strip()]
    assert code==2 and len(lines)==1 and lines[0].startswith('privreid: ') and named in lines[0], err
    assert not (tmp_path/'runs').exists() or not list((tmp_path/'runs').rglob('*.safetensors'))

def test_a_mistake_is_one_line_in_a_process_too(tmp_path):
    done = privreid('demo', '--batch', '30', cwd=tmp_path)
    assert done.returncode==2 and done.stderr.startswith('privreid: ') and done.stderr.count('\n')==1

def test_without_a_home(tmp_path):
    done = privreid('demo', '--out', '~/run', '--batch', '30', env={k: v for k,v in ENV.items() if k not in ('HOME', 'PRIVREID_CACHE')}, cwd=tmp_path)
    assert done.returncode==2 and done.stderr.startswith('privreid: ') and done.stderr.count('\n')==1, done.stderr

@pytest.mark.parametrize('error, told', [(MemoryError(), "computer's memory"), (RuntimeError('[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 9 bytes'), "computer's memory"),
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'), "GPU's memory"), (PermissionError(13, 'Permission denied', 'x'), 'Permission denied'), (TypeError('two\nlines'), 'two lines')], ids=range(5))
def test_what_is_no_bug_is_one_line(monkeypatch, say, error, told):
    def fails(args): raise error
    monkeypatch.setitem(cli.COMMANDS, 'cache', fails)
    code,_,err = say('cache')
    assert code==2 and told in err and err.count('\n')==1

def test_a_bug_stays_a_bug(monkeypatch):
    def fails(args): {}['key']
    monkeypatch.setitem(cli.COMMANDS, 'cache', fails)
    with pytest.raises(KeyError): main(['cache'])

def test_what_is_kept_is_shown_and_removed(tmp_path, monkeypatch, say):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'kept'))
    SyntheticPedestrians(train_ids=3, test_ids=2, distractors=1, size=(32,16)).load()
    code,out,_ = say('cache')
    assert code==0 and str(tmp_path/'kept') in out and 'MB' in out
    assert say('cache', '--clear')[0]==0 and not [p for p in (tmp_path/'kept').rglob('*') if p.is_file()]
    assert say('cache')[1].startswith('0 ')
    monkeypatch.setenv('PRIVREID_CACHE', 'off')
    assert say('cache')[0]==0

def test_identity_with_one_image_is_warned_about_once(tmp_path, tiny_market, say):
    root = Path(tiny_market())
    lonely = sorted((root/'bounding_box_train').glob('*.jpg'))[0]
    (root/'bounding_box_train'/f'0999{lonely.name[4:]}').write_bytes(lonely.read_bytes())
    code,_,err = say('train', '--data', 'market1501', '--root', root, '--preset', 'demo', '--out', tmp_path/'run', '--arms', 'Upper', *TINY, '--epochs', '1')
    assert code==0, err
    assert err.count('single training image')==1 and '999' in err      # seed 0 leaves the lonely one in training

def test_help_names_units_and_defaults():
    text = privreid('train', '--help').stdout
    assert '--eps-psnr' in text and 'dB' in text and '(default: 1.0)' in text and 'pixels' in text
    text = ' '.join(privreid('demo', '--help').stdout.split())
    assert f"(default: {preset('demo').epochs}; paper: 120)" in text and "(default: 'mini'; paper: 'resnet50')" in text

# --- one's own pictures

@pytest.fixture
def photos(tmp_path):
    (tmp_path/'photos'/'in').mkdir(parents=True)
    for i,im in enumerate(SyntheticPedestrians(size=(80,40)).split([(0, 0, s) for s in range(3)]).images): Image.fromarray(im.permute(1,2,0).numpy()).save(tmp_path/'photos'/'in'/f'{i}.jpg')
    return tmp_path/'photos'

@pytest.mark.full
def test_export_as_onnx(demo, say, tmp_path):
    "The network alone, for other programs; a key is named one, and is its owner's."
    pytest.importorskip('onnxscript'); runtime = pytest.importorskip('onnxruntime')
    run,_ = demo
    code,out,err = say('export', run, '--for', 'protect', '--out', tmp_path/'web', '--onnx', '--bits', '8')
    assert (code, out.strip())==(0, str(tmp_path/'web'/'protect.onnx')), err
    y, = runtime.InferenceSession(tmp_path/'web'/'protect.onnx').run(None, {'x': torch.zeros(2, 3, 64, 32).numpy()})
    assert y.shape==(2, 3, 64, 32)
    code,out,err = say('export', run, '--for', 'recover', '--out', tmp_path/'mine', '--onnx')
    assert code==0 and out.startswith('KEY: ') and (tmp_path/'mine'/'KEY.onnx').stat().st_mode & 0o777==0o600
    for words,says in (['--bits', '8'], '--onnx'), (['--onnx', '--bits', '7'], '8'), (['--onnx', '--terms', 'x'], 'plain file'):
        code,out,err = say('export', run, '--for', 'protect', '--out', tmp_path/'new', *words)
        assert code==2 and says in err and err.count('\n')==1 and not (tmp_path/'new').exists()

def test_protect_share_and_recover(demo, say, tmp_path, photos):
    run,_ = demo
    code,out,err = say('export', run, '--for', 'protect', '--out', tmp_path/'others')
    assert code==0 and 'anonymizer of pair' in out, err
    assert say('export', run, '--for', 'recover', '--out', tmp_path/'mine')[0]==0
    code,out,_ = say('info', tmp_path/'mine'/'KEY.safetensors')
    assert code==0 and out.startswith('KEY') and 'Give it to nobody' in out
    code,out,err = say('protect', photos, '--with', tmp_path/'others'/'protect.safetensors', '--out', tmp_path/'hidden', '--verify', '--rename', tmp_path/'mine'/'names.json')
    assert code==0 and '3 pictures, 3 of them new' in out and 'Read back 3' in out, err
    code,out,err = say('recover', tmp_path/'hidden', '--key', tmp_path/'mine'/'KEY.safetensors', '--out', tmp_path/'back', '--names', tmp_path/'mine'/'names.json')
    assert code==0 and sorted(p.name for p in (tmp_path/'back'/'in').iterdir())==['0.png', '1.png', '2.png'], err

def test_a_broken_picture_is_in_the_exit_code(say, tmp_path, photos):
    (photos/'bad.jpg').write_bytes(b'x')
    for _ in range(2):
        code,out,err = say('desensitize', photos, '--method', 'mosaic', '--out', tmp_path/'hidden')
        assert code==1 and '1 NOT done' in out and 'bad.jpg' in out.splitlines()[-1], err

def test_a_key_behind_a_passphrase(demo, say, tmp_path, photos, missing):
    if not importlib.util.find_spec('cryptography'): missing("keys are encrypted with cryptography: pip install -e '.[dev]'")
    run,_ = demo
    (tmp_path/'word').write_text('correct horse\n')
    code,out,err = say('export', run, '--for', 'recover', '--out', tmp_path/'mine', '--passphrase-file', tmp_path/'word')
    assert code==0 and 'encrypted' in out, err
    assert say('protect', photos, '--with', run, '--out', tmp_path/'hidden')[0]==0
    key = tmp_path/'mine'/'KEY.encrypted'
    (tmp_path/'wrong').write_text('battery staple\n')
    code,_,err = say('recover', tmp_path/'hidden', '--key', key, '--out', tmp_path/'back', '--passphrase-file', tmp_path/'wrong')
    assert code==2 and 'another passphrase' in err and not (tmp_path/'back').exists()
    assert say('recover', tmp_path/'hidden', '--key', key, '--out', tmp_path/'back', '--passphrase-file', tmp_path/'word')[0]==0

def test_trained_on_the_pictures_and_looked_at(say, tmp_path):
    for (p,c,s),im in zip(rows := [(p, c, s) for p in range(6) for c in range(2) for s in range(3)], SyntheticPedestrians(size=(64,32)).split(rows).images):
        path = tmp_path/'photos'/f'p{p} c{c} {s}.jpg'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(im.permute(1,2,0).numpy()).save(path)
    code,out,err = say('protect', tmp_path/'photos', '--train', '--arm', 'w/o U', '--pattern', r'(?P<identity>p\d) (?P<camera>c\d)', '--out', tmp_path/'hidden', '--verify', '--device', 'cpu')
    assert code==0 and '36 pictures, 36 of them new' in out and 'An outsider' in out and 'hidden.run' in out and 'KEY' in out, err
    assert say('recover', tmp_path/'hidden', '--key', tmp_path/'hidden.run', '--out', tmp_path/'back')[0]==0
    code,out,err = say('export', tmp_path/'hidden.run', '--for', 'protect', '--out', tmp_path/'others', '--terms', 'with the consent of all six')
    assert code==0 and 'with the consent of all six' in out, err

def use_mistakes(run, tmp_path, photos):
    return {'two anonymizers': (['protect', photos, '--with', run, '--train', '--out', tmp_path/'x'], '--with'), 'nobody is named': (['protect', photos, '--train', '--out', tmp_path/'x'], 'at least 6 people'),
            'terms': (['export', run, '--for', 'protect', '--out', tmp_path/'x', '--terms', 'x'*2000], 'terms'),
            'no anonymizer': (['protect', photos, '--out', tmp_path/'x'], 'privreid train'), 'no output': (['protect', photos, '--with', run], '--out'), 'into the source': (['desensitize', photos, '--out', photos/'x'], 'in each other'),
            'nothing there': (['desensitize', tmp_path/'none', '--out', tmp_path/'x'], 'none'), 'not protected': (['recover', photos, '--key', run, '--out', tmp_path/'x'], 'privreid.json'), 'no bundle': (['protect', photos, '--with', photos/'in'/'0.jpg', '--out', tmp_path/'x'], '0.jpg'),
            'no run': (['protect', photos, '--with', photos, '--out', tmp_path/'x'], 'config.json'), 'role': (['export', run, '--for', 'protcet', '--out', tmp_path/'x'], "Did you mean 'protect'?"), 'method': (['desensitize', photos, '--method', 'fog', '--out', tmp_path/'x'], "'fog'"),
            'format': (['desensitize', photos, '--format', 'gif', '--out', tmp_path/'x'], "'gif'"), 'quality': (['desensitize', photos, '--quality', '0', '--out', tmp_path/'x'], 'quality'), 'note': (['desensitize', photos, '--keep', 'gps', '--out', tmp_path/'x'], "'gps'"),
            'size': (['protect', photos, '--with', run, '--size', 'big', '--out', tmp_path/'x'], "'big'"), 'batch': (['protect', photos, '--with', run, '--batch', '0', '--out', tmp_path/'x'], 'batch'), 'device': (['protect', photos, '--with', run, '--device', 'gpu', '--out', tmp_path/'x'], "'gpu'"),
            'arm': (['protect', photos, '--with', run, '--arm', 'Base', '--out', tmp_path/'x'], 'hides nobody'), 'passphrase of a run': (['recover', photos, '--key', run, '--out', tmp_path/'x', '--passphrase-file', tmp_path/'none'], 'passphrase'), 'info of a folder': (['info', photos], 'folder'), 'info of nothing': (['info', tmp_path/'none'], 'none')}

@pytest.mark.parametrize('case', ['two anonymizers', 'nobody is named', 'terms', 'no anonymizer', 'no output', 'into the source', 'nothing there', 'not protected', 'no bundle', 'no run', 'role', 'method', 'format', 'quality', 'note', 'size', 'batch', 'device', 'arm', 'passphrase of a run', 'info of a folder', 'info of nothing'])
def test_a_mistake_with_own_pictures_costs_one_line(demo, say, tmp_path, photos, case):
    words,named = use_mistakes(demo[0], tmp_path, photos)[case]
    code,_,err = say(*words)
    lines = [l for l in err.splitlines() if l.strip()]
    assert code==2 and len(lines)==1 and lines[0].startswith('privreid: ') and named in lines[0], err
    assert not (tmp_path/'x').exists()
