"A folder goes in, a folder comes out: whole, in its place, with nothing that does not belong there, whatever happens in between."
import importlib.util, io, json, os, random, re, shutil, signal, stat, subprocess, time
from pathlib import Path
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from privreid.bundles import export
from privreid.config import preset
from privreid.data import SyntheticPedestrians
from privreid.deploy import Anonymizer, Recovery, desensitize_folder, enlarged, protect_folder, recover_folder, reduced, run_beside
from privreid.experiments import run_experiment
from privreid.outsider import MARKET_NAMES
from privreid.pictures import read_image
from privreid.tree import RECORD, named, read_record, safe_name

TINY = dict(people=12, test_people=6, epochs=1, batch=16, ngf=4, ndf=4, milestones=(), weights='')

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('deploy')/'run'
    run_experiment(preset('demo', **TINY), folder, 'w/o U')
    return folder

@pytest.fixture(scope='module')
def hides(run): return Anonymizer.load(run, device='cpu', batch=4)

@pytest.fixture(scope='module')
def opens(run): return Recovery.load(run, device='cpu', batch=4)

def noise(h, w, seed=0, channels=3): return np.random.default_rng(seed).integers(0, 256, (h, w, channels), np.uint8)

def photos(folder, n=6, sizes=((64,32), (90,50), (20,10), (1,1), (128,64), (70,20)), seed=0):
    for i in range(n):
        path = folder/f'd{i%3}'/f'{i}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(*sizes[i%len(sizes)], seed+i)).save(path)
    return folder

def tree(folder)->dict[str,bytes]: return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}

# --- sizes

@settings(max_examples=100)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
def test_where_there_is_room_nothing_is_lost(h, w, H, W, seed):
    im = noise(h, w, seed)
    out = enlarged(im, (H, W))
    assert out.shape==(H, W, 3) and out.dtype==np.uint8 and reduced(out, (h, w)).shape==im.shape
    if H>=h and W>=w: assert (reduced(out, (h, w))==im).all()

@settings(max_examples=15)
@given(st.integers(1, 1000), st.integers(1, 2000), st.sampled_from(['L', 'P', 'RGBA', 'CMYK', 'RGB', '1', 'LA', 'I;16', 'YCbCr']), st.integers(0, 9))
def test_round_trip_of_any_picture(hides, opens, h, w, mode, seed):
    im = Image.fromarray(noise(h, w, seed))
    im = Image.fromarray(noise(h, w, seed)[...,0].astype(np.uint16)*257) if mode=='I;16' else im.convert(mode)
    made = hides(im)
    assert made.size==(w, h) and made.mode=='RGB' and hides(im, 'network').size==(32, 64)
    back = opens(made)
    assert back.size==(w, h)
    if h>=64 and w>=32: assert (np.asarray(opens(made, 'network'))==np.asarray(opens(hides(im, 'network'), 'network'))).all()

@pytest.mark.full
@pytest.mark.parametrize('size', [(1, 1), (1, 2000), (1000, 1), (1000, 2000), (63, 31), (65, 33), (64, 32)])
@pytest.mark.parametrize('ending, mode', [('png', 'L'), ('png', 'P'), ('png', 'RGBA'), ('png', 'I;16'), ('jpg', 'CMYK'), ('tif', 'CMYK'), ('webp', 'RGB'), ('gif', 'P'), ('bmp', 'RGB'), ('tif', 'I;16')])
def test_files_of_any_size_and_mode(run, tmp_path, size, ending, mode):
    (tmp_path/'src').mkdir()
    im = Image.fromarray(noise(*size)[...,0].astype(np.uint16)*257) if mode=='I;16' else Image.fromarray(noise(*size)).convert(mode)
    im.save(tmp_path/'src'/f'x.{ending}')
    for way in ('original', 'network'):
        done = protect_folder(tmp_path/'src', run, tmp_path/way, size=way, device='cpu')
        assert not done.failed
        assert read_image(tmp_path/way/'x.png').shape[:2]==(size if way=='original' else (64, 32))
        assert not recover_folder(tmp_path/way, run, tmp_path/f'{way} back', device='cpu').failed
        assert read_image(tmp_path/f'{way} back'/'x.png').shape[:2]==size

# --- whatever is given, the same comes back

def test_the_same_kind_comes_back(hides, tmp_path):
    x = torch.rand(3, 3, 64, 32)*2-1
    assert torch.equal(hides(x), hides.net(x).detach()) and hides(x[0]).shape==x.shape[1:]
    for size in ((64,32), (90,40), (20,10)):
        u = torch.from_numpy(noise(*size)).permute(2,0,1)
        ours = hides(u)
        assert ours.dtype==torch.uint8 and ours.shape==u.shape
        array = hides(noise(*size))
        assert (array==ours.permute(1,2,0).numpy()).all() and (hides(np.stack([noise(*size)]*2))[1]==array).all()
        Image.fromarray(noise(*size)).save(tmp_path/'x.png')
        for given in (tmp_path/'x.png', str(tmp_path/'x.png'), Image.open(tmp_path/'x.png')): assert (np.asarray(hides(given))==array).all()
        assert [i.size for i in hides([tmp_path/'x.png', Image.new('L', (3, 5))])]==[size[::-1], (3, 5)]
    assert hides(torch.rand(1, 3, 40, 50)).shape==(1, 3, 40, 50) and hides([])==[]
    assert hides([x[0], noise(9, 9)])[1].shape==(9, 9, 3)

@pytest.mark.parametrize('wrong', [3, None, np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), torch.zeros(2, 2), torch.full((1, 3, 64, 32), 9.), torch.zeros(1, 3, 64, 32, dtype=torch.int32)], ids=range(8))
def test_what_is_no_picture(hides, wrong, one_line):
    with pytest.raises((TypeError, ValueError)) as e: hides(wrong)
    one_line(e.value)

# --- a folder

def test_tree_names_and_sizes_are_kept(run, tmp_path):
    src,before = photos(tmp_path/'src'), None
    (src/'note.txt').write_text('x')
    before = tree(src)
    done = protect_folder(src, run, tmp_path/'out', device='cpu')
    assert done.pictures==done.new==6 and not done.failed and done.others==1 and 'smaller than 64 x 32' in str(done)
    assert set(tree(tmp_path/'out'))=={f'd{i%3}/{i}.png' for i in range(6)}|{RECORD}
    for p in src.rglob('*.jpg'): assert Image.open(tmp_path/'out'/p.relative_to(src).with_suffix('.png')).size==Image.open(p).size
    back = recover_folder(tmp_path/'out', run, tmp_path/'back', device='cpu')
    assert back.pictures==6 and not back.failed
    for p in (tmp_path/'back').rglob('*'):
        assert stat.S_IMODE(p.stat().st_mode)==(0o700 if p.is_dir() else 0o600), p   # people as they are
    assert tree(src)==before
    assert not list(tmp_path.rglob('.privreid')) and not list(tmp_path.rglob('*.tmp'))

def test_the_list_knows_nothing_of_the_originals(run, tmp_path):
    from hashlib import sha256, md5, blake2b
    src = photos(tmp_path/'src')
    protect_folder(src, run, tmp_path/'out', device='cpu')
    text = (tmp_path/'out'/RECORD).read_text()
    for p in src.rglob('*.jpg'):
        for data in (p.read_bytes(), read_image(p).tobytes()): assert not [h for h in (sha256, md5, blake2b) if h(data).hexdigest() in text]
    for name,made in read_record(tmp_path/'out')['pictures'].items(): assert sha256((tmp_path/'out'/name).read_bytes()).hexdigest()==made['sha256']

def test_a_broken_picture_stops_nobody(run, tmp_path):
    src = photos(tmp_path/'src')
    (src/'a.jpg').write_bytes(b'nothing'); (src/'b.png').write_bytes(b''); (src/'c.heic').write_bytes(b'x')
    (src/'d.jpg').write_bytes((src/'d1'/'1.jpg').read_bytes()[:300])
    done = protect_folder(src, run, tmp_path/'out', device='cpu')
    assert set(done.failed)=={'a.jpg', 'b.png', 'c.heic', 'd.jpg'} and done.pictures==6
    assert read_record(tmp_path/'out')['left_out']==4 and '4 NOT done' in str(done)
    shutil.copy(src/'d1'/'1.jpg', src/'a.jpg')
    assert protect_folder(src, run, tmp_path/'out', device='cpu').new==1

def test_two_names_that_would_meet(run, tmp_path):
    src = tmp_path/'src'
    src.mkdir()
    for n in ('a.jpg', 'a.png', 'A.bmp'): Image.fromarray(noise(9, 9)).save(src/n)
    protect_folder(src, run, tmp_path/'out', device='cpu')
    assert set(tree(tmp_path/'out'))=={'a.jpg.png', 'a.png.png', 'A.bmp.png', RECORD}

@given(st.lists(st.from_regex(r'([aAb]/)?[aAb](\.(jpg|png|bmp|JPG)){0,2}', fullmatch=True), unique=True, max_size=12))
def test_no_two_names_meet(names):
    new = named(names, '.png')
    assert len({v.casefold() for v in new.values()})==len(names) and all(safe_name(v, 'x') for v in new.values())

def test_its_own_output_and_other_refusals(run, tmp_path):
    src = photos(tmp_path/'src')
    protect_folder(src, run, tmp_path/'out', device='cpu')
    with pytest.raises(ValueError, match='output of privreid'): protect_folder(tmp_path/'out', run, tmp_path/'twice', device='cpu')
    with pytest.raises(ValueError, match='output of privreid'): desensitize_folder(tmp_path/'out', tmp_path/'twice', device='cpu')
    for dst in (src, src/'in', tmp_path): 
        with pytest.raises(ValueError, match='in each other'): protect_folder(src, run, dst, device='cpu')
    with pytest.raises(FileExistsError, match='another command'): protect_folder(src, run, tmp_path/'out', size='network', device='cpu')
    with pytest.raises(ValueError, match='no privreid.json'): recover_folder(src, run, tmp_path/'x', device='cpu')
    desensitize_folder(src, tmp_path/'blurred', device='cpu')
    with pytest.raises(ValueError, match='no protected pictures'): recover_folder(tmp_path/'blurred', run, tmp_path/'x', device='cpu')
    with pytest.raises(FileNotFoundError): protect_folder(tmp_path/'none', run, tmp_path/'x', device='cpu')
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='no picture'): protect_folder(tmp_path/'empty', run, tmp_path/'x', device='cpu')
    assert not (tmp_path/'x').exists() and not (tmp_path/'twice').exists()

def test_files_of_others(run, tmp_path):
    src = photos(tmp_path/'src')
    (tmp_path/'out'/'d0').mkdir(parents=True)
    (tmp_path/'out'/'d0'/'3.png').write_text('mine')
    with pytest.raises(FileExistsError, match='--force'): protect_folder(src, run, tmp_path/'out', device='cpu')
    assert (tmp_path/'out'/'d0'/'3.png').read_text()=='mine' and len(tree(tmp_path/'out'))<=3
    assert protect_folder(src, run, tmp_path/'out', force=True, device='cpu').new==6
    again = tree(tmp_path/'out')
    assert protect_folder(src, run, tmp_path/'out', force=True, device='cpu').new==6 and tree(tmp_path/'out')==again

@pytest.mark.skipif(os.name!='posix', reason='links')
def test_nothing_goes_through_links(run, tmp_path):
    src,away = photos(tmp_path/'src'), tmp_path/'away'
    away.mkdir()
    (tmp_path/'link').symlink_to(away)
    with pytest.raises(ValueError, match='through links'): protect_folder(src, run, tmp_path/'link', device='cpu')
    (tmp_path/'out').mkdir(); (tmp_path/'out'/'d0').symlink_to(away)
    for force in (False, True):
        with pytest.raises((ValueError, FileExistsError), match='link|there already'): protect_folder(src, run, tmp_path/'out', force=force, device='cpu')
    (tmp_path/'out2'/'d0').mkdir(parents=True)
    (away/'target').write_text('mine'); (tmp_path/'out2'/'d0'/'0.png').symlink_to(away/'target')
    protect_folder(src, run, tmp_path/'out2', force=True, device='cpu')
    assert (away/'target').read_text()=='mine' and not (tmp_path/'out2'/'d0'/'0.png').is_symlink()
    (tmp_path/'out3').mkdir(); (tmp_path/'out3'/'.privreid').symlink_to(away)
    with pytest.raises(ValueError, match='link'): protect_folder(src, run, tmp_path/'out3', device='cpu')
    assert [p.name for p in away.iterdir()]==['target']

def test_the_wrong_pair_writes_nothing(run, tmp_path):
    protect_folder(photos(tmp_path/'src'), run, tmp_path/'out', device='cpu')
    told = json.loads((tmp_path/'out'/RECORD).read_text())
    told['job']['pair'] = '0'*32
    (tmp_path/'out'/RECORD).write_text(json.dumps(told))
    key = export(run, 'recover', tmp_path/'mine')
    for k in (run, key):
        with pytest.raises(ValueError, match='cannot bring them back'): recover_folder(tmp_path/'out', k, tmp_path/'back', device='cpu')
    with pytest.raises(ValueError, match='is a KEY'): protect_folder(tmp_path/'src', key, tmp_path/'x', device='cpu')
    assert not (tmp_path/'back').exists() and not (tmp_path/'x').exists()

# --- names and notes

def test_random_names_and_back(run, tmp_path):
    src,names = photos(tmp_path/'src'), tmp_path/'mine'/'names.json'
    protect_folder(src, run, tmp_path/'out', rename=names, size='network', device='cpu')
    out = tree(tmp_path/'out')
    assert len(out)==7 and stat.S_IMODE(names.stat().st_mode)==0o600
    assert not [n for n in out if '/' in n] and not any(f'd{i%3}/{i}' in out[RECORD].decode() for i in range(6))
    assert protect_folder(src, run, tmp_path/'out', rename=names, size='network', device='cpu').new==0
    recover_folder(tmp_path/'out', run, tmp_path/'back', names=names, device='cpu')
    assert set(tree(tmp_path/'back'))=={f'd{i%3}/{i}.png' for i in range(6)}|{RECORD}
    for bad in ('../x.png', '/etc/x.png', 'a/../../x', ''):
        names.write_text(json.dumps(dict(format=1, names={n: bad for n in out})))
        with pytest.raises(ValueError, match='no name of a file'): recover_folder(tmp_path/'out', run, tmp_path/'b2', names=names, device='cpu')
    with pytest.raises(ValueError, match='beside the key'): protect_folder(src, run, tmp_path/'o3', rename=tmp_path/'o3'/'names.json', device='cpu')

def with_notes(path):
    exif = Image.Exif()
    exif[0x010f],exif[0x013b] = 'SecretCamera', 'SecretArtist'
    exif.get_ifd(0x8769)[0x9003] = '2026:11:27 03:00:00'
    exif.get_ifd(0x8825)[2] = (48., 12., 30.)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">SecretPlace</x:xmpmeta>'
    from PIL import ImageCms
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    Image.fromarray(noise(80, 40)).save(path, exif=exif, xmp=xmp, icc_profile=icc, comment=b'SecretComment', dpi=(300, 300))

@pytest.mark.parametrize('format', ['png', 'jpeg'])
def test_no_note_survives(run, tmp_path, format, recwarn):
    (tmp_path/'src').mkdir()
    with_notes(tmp_path/'src'/'x.jpg')
    for name,keep in (('none', ()), ('some', ('date', 'dpi', 'icc'))):
        protect_folder(tmp_path/'src', run, tmp_path/name, format=format, keep=keep, device='cpu')
        path = next((tmp_path/name).glob('x.*'))
        im = Image.open(path)
        assert b'Secret' not in path.read_bytes() and not im.getexif().get_ifd(0x8825)
        assert (im.getexif().get_ifd(0x8769).get(0x9003)=='2026:11:27 03:00:00')==bool(keep) and ('icc_profile' in im.info)==bool(keep)
        if not keep: assert set(im.info)<={'jfif', 'jfif_version', 'jfif_unit', 'jfif_density'}
        if not keep and importlib.util.find_spec('exifread'):
            import exifread
            with open(path, 'rb') as f: assert not exifread.process_file(f)
        if not keep and shutil.which('exiftool'):
            said = json.loads(subprocess.run(['exiftool', '-json', '-G', path], capture_output=True, text=True).stdout)[0]
            assert not {k.split(':')[0] for k in said}-{'SourceFile', 'ExifTool', 'File', 'PNG', 'JFIF', 'Composite'}
    if format=='jpeg': assert any('dB' in str(w.message) for w in recwarn)

def test_desensitized_for_good(tmp_path):
    src = photos(tmp_path/'src')
    for method in ('blur', 'mosaic', 'noise'):
        done = desensitize_folder(src, tmp_path/method, method, verify=True, device='cpu')
        assert done.pictures==6 and 'Read back 6' in str(done)
        assert Image.open(tmp_path/method/'d1'/'1.png').size==(50, 90)
    desensitize_folder(src, tmp_path/'noise again', 'noise', device='cpu')
    assert tree(tmp_path/'noise again')!=tree(tmp_path/'noise')   # noise that is known could be taken away again
    with pytest.raises(ValueError, match='unknown'): desensitize_folder(src, tmp_path/'x', 'fog')

def test_what_was_written_is_compared(run, tmp_path):
    done = protect_folder(photos(tmp_path/'src'), run, tmp_path/'out', verify=True, device='cpu')
    assert 'Read back 6 pictures' in str(done) and 'dB' in str(done)

# --- trained on the pictures themselves, and looked at by an outsider

def street(folder, people=8, cameras=2, shots=3, name='{p:04}_c{c}s1_{s:06}_00.jpg'):
    rows = [(p, c, s) for p in range(people) for c in range(cameras) for s in range(shots)]
    folder.mkdir(parents=True, exist_ok=True)
    for (p,c,s),im in zip(rows, SyntheticPedestrians(size=(64,32), seed=7).split(rows).images):
        path = folder/name.format(p=p+1, c=c+1, s=s)
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(im.permute(1,2,0).numpy()).save(path, quality=95)
    return folder

@pytest.fixture
def small_training(monkeypatch):
    from privreid import deploy
    monkeypatch.setattr(deploy, 'preset', lambda name, **changes: preset(name, epochs=1, ngf=4, ndf=4, milestones=(), weights='', **changes))

def test_trained_on_the_pictures_themselves(small_training, tmp_path):
    src,out = street(tmp_path/'src'), tmp_path/'out'
    before = tree(src)
    done = protect_folder(src, None, out, arm='w/o U', train=True, verify=True, device='cpu')
    run = run_beside(out)
    assert run==tmp_path/'out.run' and stat.S_IMODE(run.stat().st_mode)==0o700 and tree(src)==before
    assert done.pictures==48 and 'KEY' in str(done) and "An outsider (the run's Upper" in str(done)
    asked = int(re.search(r'(\d+) raw pictures of (\d+) people', str(done))[2])
    assert asked==4   # half of the people trained
    assert not list(out.rglob('*.safetensors'))
    stamp = (run/'results.json').stat().st_mtime_ns
    assert protect_folder(src, None, out, arm='w/o U', train=True, device='cpu').new==0 and (run/'results.json').stat().st_mtime_ns==stamp
    assert recover_folder(out, run, tmp_path/'back', device='cpu').pictures==48
    with pytest.raises(ValueError, match='was trained on'): protect_folder(street(tmp_path/'other'), None, out, train=True, device='cpu')

def test_a_training_that_was_stopped_goes_on(small_training, tmp_path, monkeypatch):
    from privreid import experiments
    src,out,old = street(tmp_path/'src'), tmp_path/'out', experiments.save_arm
    class Killed(BaseException): pass
    def dies(arm, folder):
        if arm.name=='w/o U': raise Killed
        return old(arm, folder)
    monkeypatch.setattr(experiments, 'save_arm', dies)
    with pytest.raises(Killed): protect_folder(src, None, out, arm='w/o U', train=True, device='cpu')
    assert not out.exists() and not (run_beside(out)/'results.json').exists()
    monkeypatch.setattr(experiments, 'save_arm', old)
    stamp = (run_beside(out)/'upper'/'arm.json').stat().st_mtime_ns
    assert protect_folder(src, None, out, arm='w/o U', train=True, device='cpu').pictures==48
    assert (run_beside(out)/'upper'/'arm.json').stat().st_mtime_ns==stamp   # what was finished is not trained again

NEEDED = 'at least 6 people'
def test_what_a_training_needs(tmp_path, one_line):
    for i,src in enumerate([photos(tmp_path/'nameless'), street(tmp_path/'few', 4), street(tmp_path/'one camera', 8, 1), street(tmp_path/'two pictures', 8, 2, 1)]):
        with pytest.raises(ValueError) as e: protect_folder(src, None, tmp_path/f'out{i}', train=True, device='cpu')
        one_line(e.value, NEEDED)
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match=NEEDED): protect_folder(tmp_path/'empty', None, tmp_path/'x', train=True, device='cpu')
    one = next((tmp_path/'few').iterdir())
    for src in (one, tmp_path/'none'):
        with pytest.raises((ValueError, FileNotFoundError), match='folder'): protect_folder(src, None, tmp_path/'x', train=True, device='cpu')
    with pytest.raises(ValueError, match='in each other'): protect_folder(tmp_path/'few', None, tmp_path/'few'/'x', train=True, device='cpu')
    for bundle,train in ((None, False), ('x', True)):
        with pytest.raises(ValueError, match='one of the two'): protect_folder(tmp_path/'few', bundle, tmp_path/'x', train=train, device='cpu')
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(('out', 'x'))]

def test_six_people_are_enough(tmp_path):
    from privreid.listings import refuse_unusable
    from privreid.manifest import image_folder
    refuse_unusable(image_folder(street(tmp_path/'six', 6, 2, 2), MARKET_NAMES).load((64,32)))

def test_an_outsider_is_asked_where_people_are_known(run, tmp_path):
    for i,(name,known) in enumerate([('{p:04}_c{c}s1_{s:06}_00.jpg', True), ('{p:02}/{c}_{s}.jpg', False), ('{c}-{p}-{s}.jpg', False)]):
        src = street(tmp_path/f'src{i}', 4, 2, 2, name)
        assert ('An outsider' in str(protect_folder(src, run, tmp_path/f'out{i}', verify=True, device='cpu')))==known
        if not known: assert 'An outsider' in str(protect_folder(src, run, tmp_path/f'out{i}', verify=True, device='cpu', pattern=r'(?P<identity>\d+)/(?P<camera>\d)_' if i==1 else r'(?P<camera>\d)-(?P<identity>\d+)-'))
    src = tmp_path/'src2'
    (src/'manifest.csv').write_text('path,identity,camera\n'+''.join(f'{p.name},{p.name[2]},{p.name[0]}\n' for p in src.glob('*.jpg')))
    done = protect_folder(src, run, tmp_path/'renamed', rename=tmp_path/'names.json', verify=True, device='cpu')
    assert '8 raw pictures of 4 people' in str(done)

# --- killed, and going on

@pytest.mark.parametrize('where', ['_note', 'put', 'finish'])
@pytest.mark.parametrize('when', [1, 4])
def test_stopped_at_a_step(run, tmp_path, monkeypatch, where, when):
    from privreid import deploy, tree as t
    src = photos(tmp_path/'src')
    protect_folder(src, run, tmp_path/'whole', batch=2, device='cpu')
    steps,old = [0], getattr(t.Output, where)
    class Killed(BaseException): pass
    def dies(self, *args, **kwargs):
        steps[0] += 1
        if steps[0]==when or where=='finish': raise Killed
        return old(self, *args, **kwargs)
    monkeypatch.setattr(t.Output, where, dies)
    with pytest.raises(Killed): protect_folder(src, run, tmp_path/'out', batch=2, device='cpu')
    assert not (tmp_path/'out'/RECORD).exists()
    monkeypatch.undo()
    protect_folder(src, run, tmp_path/'out', batch=2, device='cpu')
    assert tree(tmp_path/'out')==tree(tmp_path/'whole')

@pytest.mark.skipif(os.name!='posix', reason='signals')
def test_two_at_once(run, tmp_path):
    src = photos(tmp_path/'src')
    from privreid.tree import filled
    with filled(tmp_path/'out', src, dict(what='protect')):
        with pytest.raises(BlockingIOError, match='in use'): protect_folder(src, run, tmp_path/'out', device='cpu')

def forked(act)->int: # process id
    "A child that has everything imported already, does one thing, and says whether it has ended well."
    if pid := os.fork(): return pid
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2): os.dup2(devnull, stream)
        act()
    except BaseException: os._exit(1)
    os._exit(0)

KILLS = 50
@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='kills children that were forked')
def test_killed_fifty_times(run, tmp_path):
    "At random moments of the whole command, from reading the network to the last line."
    torch.set_num_threads(1)   # a pool of threads does not survive a fork
    src,out,dice = photos(tmp_path/'src', 24, sizes=((120,80), (90,50), (20,10), (64,32))), tmp_path/'out', random.Random(0)
    def act(folder=out): protect_folder(src, run, folder, batch=2, device='cpu')
    def took(folder):
        start,pid = time.monotonic(), forked(lambda: act(folder))
        assert os.waitpid(pid, 0)[1]==0
        return time.monotonic()-start
    def pngs(): return sum(n.endswith('.png') for *_,names in os.walk(out) for n in names)   # unlike rglob, not surprised by what vanishes
    def ended(pid): return os.waitpid(pid, os.WNOHANG)!=(0, 0)
    whole = min(took(tmp_path/'whole'), took(tmp_path/'whole too'))
    kills,begun,partly,went = 0, 0, 0, 0
    while kills<KILLS and begun<3*KILLS:
        begun += 1
        pid = forked(act)
        if begun%2: time.sleep(dice.uniform(0, 1.1*whole)); over = ended(pid)
        else:   # while it writes, however busy the machine is
            some = dice.randint(1, 23)
            while not (over := ended(pid)) and pngs()<some: time.sleep(.001)
        if not over:
            os.kill(pid, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        there = pngs()
        partly += 0<there<24
        if (out/RECORD).is_file(): went += 1; assert {k: v for k,v in tree(out).items() if not k.startswith('.privreid/')}==tree(tmp_path/'whole')   # its journal goes last
        if there==24 or begun%4==0: shutil.rmtree(out, ignore_errors=True)   # from the beginning again
    assert kills==KILLS and partly>=5, (kills, begun, partly, went)
    act()
    assert tree(out)==tree(tmp_path/'whole') and not list(tmp_path.rglob('*.tmp'))

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='two processes')
def test_two_processes_on_one_folder(run, tmp_path):
    "One is let in, the other gets one line; what comes out is whole, whoever was first."
    torch.set_num_threads(1)
    src = photos(tmp_path/'src')
    protect_folder(src, run, tmp_path/'whole', batch=2, device='cpu')
    def act():
        while True:
            try: return protect_folder(src, run, tmp_path/'out', batch=2, device='cpu')
            except BlockingIOError as e:
                if 'in use' not in str(e): raise
                (tmp_path/'blocked').touch(); time.sleep(.01)
    children = [forked(act) for _ in range(3)]
    assert [os.waitpid(c, 0)[1] for c in children]==[0, 0, 0]
    assert tree(tmp_path/'out')==tree(tmp_path/'whole')

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the limit holds for a process')
def test_files_that_may_not_grow(run, tmp_path):
    "The system itself says no in the middle of a file: nothing half-written keeps a name, and the same command goes on."
    import resource
    torch.set_num_threads(1)
    src,how = photos(tmp_path/'src', sizes=((64,32), (600,400))), dict(device='cpu', batch=1, format='jpeg', quality=100)   # every second one is too large
    protect_folder(src, run, tmp_path/'whole', **how)
    _,_,small,large,*_ = sorted(p.stat().st_size for p in (tmp_path/'whole').rglob('*.jpg'))
    limit = (small+large)//2
    assert small<limit<large and limit>3000
    def act():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try: protect_folder(src, run, tmp_path/'out', **how)
        except OSError as e: assert 'cannot be written (File too large)' in str(e); os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(forked(act), 0)[1])==7
    whole = tree(tmp_path/'whole')
    assert not (tmp_path/'out'/RECORD).exists() and all(whole[p.relative_to(tmp_path/'out').as_posix()]==p.read_bytes() for p in (tmp_path/'out').rglob('*.jpg'))
    protect_folder(src, run, tmp_path/'out', **how)
    assert tree(tmp_path/'out')==whole

def test_a_folder_that_says_no(run, tmp_path, monkeypatch, one_line):
    "As a read-only disk does, also to root."
    mkdir = Path.mkdir
    def no(self, *args, **kwargs):
        if self.name=='.privreid': raise OSError(30, 'Read-only file system')
        return mkdir(self, *args, **kwargs)
    monkeypatch.setattr(Path, 'mkdir', no)
    with pytest.raises(OSError) as e: protect_folder(photos(tmp_path/'src'), run, tmp_path/'out', device='cpu')
    one_line(e.value, 'Read-only file system', tmp_path/'out')
    assert not list((tmp_path/'out').iterdir())

@pytest.mark.skipif(os.name!='posix' or os.geteuid()==0, reason='root may write everywhere')
def test_a_folder_that_cannot_be_written(run, tmp_path, one_line):
    (tmp_path/'out').mkdir(0o500)
    with pytest.raises(OSError) as e: protect_folder(photos(tmp_path/'src'), run, tmp_path/'out', device='cpu')
    one_line(e.value, 'cannot be written')

def test_a_full_disk_stops_with_one_line(run, tmp_path, monkeypatch, one_line):
    src,write = photos(tmp_path/'src'), Path.write_bytes
    def full(self, data):
        if self.suffix=='.tmp' and self.parent.name=='.privreid' and len(list((tmp_path/'out').rglob('*.png')))>=3: raise OSError(28, 'No space left on device')
        return write(self, data)
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError) as e: protect_folder(src, run, tmp_path/'out', device='cpu')
    one_line(e.value, 'No space left')
    monkeypatch.undo()
    assert protect_folder(src, run, tmp_path/'out', device='cpu').pictures==6

# --- hostile lists

LISTS = [b'', b'[]', b'{', b'['*10**5, b'{"format": 1}', b'{"format": 1, "job": {}, "pictures": {"../x": {"size": [1, 1], "sha256": "0"}}, "left_out": 0}',
         b'{"format": 1, "job": {"what": "protect", "pair": "x"}, "pictures": {"../x.png": {"size": [1, 1], "sha256": "%s"}}, "left_out": 0}' % (b'0'*64),
         b'{"format": 1, "job": {"what": "protect"}, "pictures": {"x.png": {"size": [100000000, 100000000], "sha256": "%s"}}, "left_out": 0}' % (b'0'*64),
         b'{"format": 1, "job": {"what": "protect"}, "pictures": {"x.png": {"size": [1, -1], "sha256": "%s"}}, "left_out": 0}' % (b'0'*64), b'{"format": 1e999}', b'\xff\xfe']
@pytest.mark.parametrize('text', LISTS, ids=range(len(LISTS)))
def test_hostile_lists(run, tmp_path, text, one_line):
    src = photos(tmp_path/'src')
    (src/RECORD).write_bytes(text)
    for act in (lambda: recover_folder(src, run, tmp_path/'out', device='cpu'), lambda: protect_folder(src, run, tmp_path/'out', device='cpu')):
        with pytest.raises(ValueError) as e: act()
        one_line(e.value, src)
    assert not (tmp_path/'out').exists()

@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_a_torn_or_foreign_journal(run, tmp_path_factory, seed):
    dice,at = random.Random(seed), tmp_path_factory.mktemp('journal')
    src = photos(at/'src', 3)
    (at/'out'/'.privreid').mkdir(parents=True)
    job = dict(what='protect', pair=Anonymizer.load(run, device='cpu').pair, arm='w/o U', height=64, width=32, size='original', format='png', names='kept')
    whole = b''.join(json.dumps(r).encode()+b'\n' for r in [dict(job=job, fresh=False), dict(name='d0/0.png'), dict(name='d0/0.png', size=[64, 32], sha256='0'*64), dict(name='d1/1.png')])
    (at/'out'/'d0').mkdir(); (at/'out'/'d0'/'0.png').write_bytes(b'half')
    cut = dice.randrange(len(whole)+1)
    (at/'out'/'.privreid'/'journal').write_bytes(whole[:cut])
    try: protect_folder(src, run, at/'out', device='cpu')
    except FileExistsError: return   # the line that claims the name is gone
    assert {n for n in tree(at/'out')}=={'d0/0.png', 'd1/1.png', 'd2/2.png', RECORD} and Image.open(at/'out'/'d0'/'0.png').size==(32, 64)
