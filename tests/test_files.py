"Files: strange images, and a cache that survives rivals, kills, full disks and changes."
import os, signal, subprocess, sys, time, warnings
from contextlib import contextmanager
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
import privreid.files as files
from privreid.data import SyntheticPedestrians, Split
from privreid.files import decode, keep, read_image, sweep

posix = pytest.mark.skipif(os.name!='posix', reason='needs Unix')
SIZE = (32,16)

@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    "A cache of its own for every test."
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'

@pytest.fixture
def photos(tmp_path):
    "A factory of `n` different JPEGs; returns their paths in order of name."
    def make(n=6, size=(40,20)):
        rng,folder = np.random.default_rng(n), tmp_path/'photos'
        folder.mkdir()
        for i in range(n): Image.fromarray(rng.integers(0, 256, (*size,3), dtype=np.uint8)).save(folder/f'{i:03d}.jpg')
        return sorted(folder.iterdir())
    return make

def by_pillow(paths, size=SIZE):
    "The reference: one image after the other."
    return torch.stack([torch.from_numpy(np.array(Image.open(p).convert('RGB').resize(size[::-1], Image.BILINEAR))).permute(2,0,1) for p in paths])

@contextmanager
def nobody(monkeypatch, cache):
    "Without root's rights, who may write anywhere, and with `cache` for the cache; pytest's folders are private, so those above are opened."
    monkeypatch.setenv('PRIVREID_CACHE', str(cache))
    for p in cache.parents:
        if 'pytest-' in str(p): p.chmod(0o755)
    root = os.geteuid()==0
    if root: os.seteuid(65534)
    try: yield
    finally:
        if root: os.seteuid(0)

def never(*args): raise AssertionError('decoded again')
def entries(cache): return sorted(p.name for p in cache.iterdir())

# --- one image

@pytest.fixture
def picture():
    im = SyntheticPedestrians(size=(64,32)).split([(3,1,0)]).images[0]
    return Image.fromarray(im.permute(1,2,0).numpy())

@pytest.mark.parametrize('orientation, stored', [(1, None), (2, 'FLIP_LEFT_RIGHT'), (3, 'ROTATE_180'), (4, 'FLIP_TOP_BOTTOM'),
                                                 (5, 'TRANSPOSE'), (6, 'ROTATE_90'), (7, 'TRANSVERSE'), (8, 'ROTATE_270')])
@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_exif_turns_a_picture_upright(tmp_path, picture, orientation, stored, suffix):
    exif = Image.Exif(); exif[0x112] = orientation
    lying = picture.transpose(Image.Transpose[stored]) if stored else picture
    lying.save(tmp_path/f'a.{suffix}', exif=exif, **(dict(quality=100, subsampling=0) if suffix=='jpg' else {}))
    off = np.abs(read_image(tmp_path/f'a.{suffix}', (64,32)).astype(int)-np.asarray(picture))
    assert off.max()<=(0 if suffix=='png' else 6)

def test_sixteen_bits_are_scaled(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)      # each 8-bit level once
    for name in ('a.png', 'a.tif'):
        Image.fromarray(ramp).save(tmp_path/name)
        assert (read_image(tmp_path/name, (4,256))==np.arange(256)[None,:,None]).all(), name

def test_cmyk(tmp_path, picture):
    picture.convert('CMYK').save(tmp_path/'a.jpg', quality=100, subsampling=0)
    assert np.abs(read_image(tmp_path/'a.jpg', (64,32)).astype(int)-np.asarray(picture)).mean()<2

def test_transparency_is_ignored(tmp_path, picture):
    few = picture.quantize(16)
    few.save(tmp_path/'p.png', transparency=bytes([0]*8+[128]*8))
    picture.putalpha(0); picture.save(tmp_path/'rgba.png')
    with warnings.catch_warnings():
        warnings.simplefilter('error')                                   # Pillow warns of palettes with transparency
        assert (read_image(tmp_path/'p.png', (64,32))==np.asarray(few.convert('RGB'))).all()
        assert (read_image(tmp_path/'rgba.png', (64,32))==np.asarray(picture)[...,:3]).all()

def test_one_pixel(tmp_path):
    Image.new('RGB', (1,1), (7,80,255)).save(tmp_path/'a.png')
    assert (read_image(tmp_path/'a.png', SIZE)==[7,80,255]).all()

@pytest.mark.parametrize('spoil', [lambda p: p.write_bytes(b''), lambda p: p.write_bytes(p.read_bytes()[:-100]), lambda p: p.write_bytes(b'text, not a picture'),
                                   lambda p: (p.unlink(), p.mkdir()), lambda p: p.unlink()], ids=['empty', 'truncated', 'text', 'folder', 'missing'])
def test_a_bad_file_is_named_and_nothing_is_kept(photos, cache, one_line, spoil):
    paths = photos(6)
    spoil(paths[3])
    with warnings.catch_warnings():
        warnings.simplefilter('error')                                   # the cache is not to blame
        with pytest.raises(ValueError) as e: decode(paths, SIZE)
    one_line(e.value, paths[3], 'Replace or remove')
    assert not cache.exists() or entries(cache)==[]

# --- many images

def test_decode_is_pillow_in_order(photos, cache):
    paths = photos(9)
    images = decode(paths, SIZE)
    assert images.dtype==torch.uint8 and images.shape==(9,3,*SIZE) and images.is_contiguous()
    assert torch.equal(images, by_pillow(paths)) and len(entries(cache))==1
    assert torch.equal(decode([str(p) for p in paths], list(SIZE)), images) and len(entries(cache))==1
    for other in (paths[::-1], paths[:4], [paths[0]]*3): assert torch.equal(decode(other, SIZE), by_pillow(other))
    assert torch.equal(decode(paths, (16,32)), by_pillow(paths, (16,32)))
    assert len(entries(cache))==5

def test_nothing_to_decode(cache): assert decode([], SIZE).shape==(0,3,*SIZE) and not cache.exists()

def test_the_second_call_decodes_nothing(photos, monkeypatch):
    paths = photos()
    first = decode(paths, SIZE)
    monkeypatch.setattr(files, 'read_image', never)
    assert torch.equal(decode(paths, SIZE), first)

def test_a_changed_file_is_decoded_again(photos, monkeypatch):
    paths = photos()
    decode(paths, SIZE)
    when = paths[2].stat().st_mtime_ns
    for colour,ns in (((255,0,0), when), ((0,255,0), when+1)):           # other bytes at the same time; then as many bytes, a nanosecond later
        Image.new('RGB', (20,40), colour).save(paths[2], 'bmp'); os.utime(paths[2], ns=(ns, ns))
        assert torch.equal(decode(paths, SIZE), by_pillow(paths))
    monkeypatch.setattr(files, 'FORMAT', -1); monkeypatch.setattr(files, 'read_image', never)
    with pytest.raises(AssertionError, match='again'): decode(paths, SIZE)

def test_the_result_cannot_alter_the_cache(photos, cache):
    paths = photos()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        images = decode(paths, SIZE)
        before, = [p.read_bytes() for p in cache.iterdir()]
        images.zero_(); images.numpy()[:] = 7
    assert [p.read_bytes() for p in cache.iterdir()]==[before]
    assert torch.equal(decode(paths, SIZE), by_pillow(paths)) and (images==7).all()

def test_the_result_serves_a_split(photos):
    paths = photos()
    split = Split(decode(paths, SIZE), torch.arange(6), torch.ones(6).long(), [p.name for p in paths])
    assert torch.equal(split[torch.tensor([4,1])].images, by_pillow([paths[4], paths[1]]))
    assert torch.equal(split.images.to('cpu', torch.float32), by_pillow(paths).float()) and split.size==SIZE

def test_threads_do_not_run_away_from_a_slow_disk(monkeypatch):
    "However long the writer pauses, only so many images wait for it in memory."
    n,begun,most = 3*files.AHEAD+1, [], 0
    monkeypatch.setattr(files, 'read_image', lambda path, size: begun.append(path) or np.full((*size,3), path, np.uint8))
    for taken,im in enumerate(files.decoded([i%251 for i in range(n)], (2,1)), 1):
        if taken%100==1: time.sleep(.1)
        most = max(most, len(begun)-taken)
        assert (im==(taken-1)%251).all()
    assert taken==len(begun)==n and 0<most<files.AHEAD

def test_a_bar_when_there_is_much_to_do(photos, capsys):
    path, = photos(1, (2,2))
    decode([path]*999, (2,2)); assert 'decoding' not in capsys.readouterr().err
    decode([path]*1000, (2,2)); assert 'decoding' in capsys.readouterr().err

# --- a cache that cannot be written

def unwritable(paths, cache, one_line):
    with pytest.warns(UserWarning) as w: images = decode(paths, SIZE)
    assert len(w)==1 and torch.equal(images, by_pillow(paths))
    one_line(w[0].message, cache, 'PRIVREID_CACHE')

def test_a_file_in_place_of_the_cache(photos, cache, one_line):
    cache.write_text('in the way')
    unwritable(photos(), cache, one_line)
    assert cache.read_text()=='in the way'

@posix
def test_a_read_only_cache(photos, cache, one_line, monkeypatch):
    paths = photos()
    cache.mkdir(0o555)
    with nobody(monkeypatch, cache): unwritable(paths, cache, one_line)
    assert entries(cache)==[]

@posix
def test_a_full_disk(photos, cache, one_line):
    "A limit on the size of a file stops the writing half-way, as a full disk does."
    import resource
    paths,limits = photos(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4*3*32*16+5, limits[1]))
    try: unwritable(paths, cache, one_line)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert entries(cache)==[]

# --- other processes

CHILD = '''
import hashlib, sys, time
import privreid.files as files
read,pause = files.read_image, float(sys.argv[1])
def slow(path, size): time.sleep(pause); return read(path, size)
files.read_image = slow
print('ready', flush=True); sys.stdin.readline()
print(hashlib.sha256(files.decode(sys.argv[2:], (32,16)).numpy().tobytes()).hexdigest())
'''

def child(paths, pause):
    "A process that waits for a line before it decodes, `pause` seconds an image and thread."
    env = os.environ|dict(OMP_NUM_THREADS='1', PYTHONPATH=str(Path(files.__file__).parents[1]))
    return subprocess.Popen([sys.executable, '-c', CHILD, str(pause), *map(str, paths)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

def wait_for(what, seconds=60):
    end = time.time()+seconds
    while not what():
        assert time.time()<end, 'waited in vain'
        time.sleep(.005)

def test_two_processes_race(photos, cache):
    import hashlib
    paths = photos(40)
    rivals = [child(paths, .3) for _ in range(2)]
    for p in rivals: assert p.stdout.readline()=='ready\n'
    for p in rivals: p.stdin.write('\n'); p.stdin.flush()
    wait_for(lambda: cache.exists() and len(list(cache.glob('.*.tmp')))==2)   # both are at it
    said = [p.communicate(timeout=60)[0].strip() for p in rivals]
    assert said==[hashlib.sha256(by_pillow(paths).numpy().tobytes()).hexdigest()]*2
    assert len(entries(cache))==1 and entries(cache)[0].startswith('images-')

@posix
def test_killed_half_way(photos, cache):
    paths = photos(60)
    p = child(paths, .1)
    assert p.stdout.readline()=='ready\n'
    p.stdin.write('\n'); p.stdin.flush()
    wait_for(lambda: any(t.stat().st_size for t in cache.glob('.*.tmp')))     # something is written ...
    os.kill(p.pid, signal.SIGKILL); p.communicate()
    left, = cache.iterdir()
    assert p.returncode==-signal.SIGKILL and left.name.startswith('.') and 0<left.stat().st_size<60*3*32*16   # ... and not all
    assert torch.equal(decode(paths, SIZE), by_pillow(paths))
    assert len(entries(cache))==2                                        # too young to tell whether its writer is dead
    os.utime(left, (time.time()-3700,)*2)
    decode(paths[:2], SIZE)
    assert not left.exists() and len(entries(cache))==2

# --- keep

def test_keep_writes_once_and_sweeps_only_its_own_litter(cache):
    calls = []
    def write(path): calls.append(path); path.write_text('42')
    cache.mkdir()
    old = time.time()-5000
    (cache/'.folder.tmp').mkdir(); (cache/'.folder.tmp'/'a.png').touch(); os.utime(cache/'.folder.tmp', (old, old))
    for name in ('.old.tmp', '.hidden', 'visible.tmp', '.young.tmp'):
        (cache/name).write_text('?')
        if name!='.young.tmp': os.utime(cache/name, (old, old))
    for _ in range(2): assert keep('a', write)==cache/'a' and (cache/'a').read_text()=='42'
    assert len(calls)==1 and calls[0].parent==cache and not calls[0].exists()
    assert entries(cache)==['.hidden', '.young.tmp', 'a', 'visible.tmp']

def test_sweep_and_a_writer_that_finishes_meanwhile(tmp_path):
    (tmp_path/'.gone.tmp').symlink_to(tmp_path/'nowhere')                # listed, and not there when looked at
    sweep(tmp_path)

@posix
def test_litter_that_cannot_be_removed(monkeypatch, cache):
    "In a cache shared like /tmp only its owner may remove a file; one's own folder can be locked, too."
    litter = cache/'.old.tmp'/'locked'
    litter.mkdir(parents=True); (litter/'1.png').touch(); litter.chmod(0o555)
    cache.chmod(0o1777); os.utime(litter.parent, (0, 0))
    with nobody(monkeypatch, cache), warnings.catch_warnings():
        warnings.simplefilter('error')
        assert keep('answer', lambda path: path.write_text('42'))==cache/'answer'
    assert entries(cache)==['.old.tmp', 'answer'] and (litter/'1.png').exists()

def test_errors_of_the_writer_pass_through(cache):
    def write(path): path.write_text('half'); raise KeyError('a mistake of its own')
    with pytest.raises(KeyError): keep('a', write)
    assert entries(cache)==[]
