"The cache: private, verified, and it survives rivals, kills, full disks, zeros and other users."
import os, shutil, signal, subprocess, sys, time, warnings
from pathlib import Path
import pytest
import privreid.cache as cache_
from privreid.cache import cache_dir, cached, clear_cache, keep
from test_files import mode, nobody, posix

@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    "A cache of its own for every test."
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(cache_, '_CHECKED', {})
    return tmp_path/'cache'

class Work:
    "Something to keep, a file or a folder of three, that counts how often it was made."
    def __init__(self, folder=False): self.folder,self.made = folder, 0
    def __call__(self, path):
        self.made += 1
        if self.folder: path.mkdir()
        for p in [path/f'{i}.png' for i in range(3)] if self.folder else [path]: p.write_bytes(b'pixels of '+p.name.encode())

def entries(cache): return sorted(p.name for p in cache.iterdir())
def bytes_of(path): return {p.name: p.read_bytes() for p in ([path] if path.is_file() else sorted(path.iterdir()))}

# --- it is kept, and it is ours alone

@posix
@pytest.mark.parametrize('folder', [False, True])
def test_kept_once_and_private(cache, folder):
    old,work = os.umask(0), Work(folder)
    try: path = keep('images', 'these', work, note='three pictures')
    finally: os.umask(old)
    before = bytes_of(path)
    assert keep('images', 'these', work)==path and work.made==1 and bytes_of(path)==before
    assert keep('images', 'those', work)!=path and work.made==2
    for p in (cache, *cache.rglob('*')): assert mode(p)==(0o700 if p.is_dir() else 0o600), p

@posix
def test_an_entry_that_was_opened_is_closed_when_it_is_used(cache):
    path = keep('images', 1, Work(True))
    for p in (path.parent, *path.parent.rglob('*')): p.chmod(0o755)
    keep('images', 1, Work(True))
    assert {mode(p) for p in (path.parent, *path.parent.rglob('*'))}=={0o700, 0o600}

@posix
def test_what_earlier_versions_left_goes_and_the_folder_is_closed(cache):
    cache.mkdir(mode=0o755); cache.chmod(0o755)
    for name in ('images-0123456789abcdef.u8', 'synthetic-0123456789abcdef.safetensors'): (cache/name).write_text('raw')
    (cache/'cuhk03-detected-0123456789abcdef').mkdir()
    assert {c.what for c in cached()}=={'of an earlier version'}
    keep('images', 1, Work())
    assert len(entries(cache))==1 and mode(cache)==0o700

@posix
def test_a_folder_that_others_use_too_stays_as_it_is(cache):
    for shared,friend in ((0o755, 'notes.txt'), (0o1777, None), (0o775, None)):
        shutil.rmtree(cache, ignore_errors=True); cache.mkdir(); cache.chmod(shared)
        if friend: (cache/friend).touch()
        path = keep('images', 1, Work())
        assert mode(cache)==shared and mode(path.parent)==0o700 and (not friend or (cache/friend).exists())

# --- off, no home, no rights

def test_off_keeps_nothing(cache, monkeypatch, tmp_path):
    for word in ('off', 'OFF'):
        monkeypatch.setenv('PRIVREID_CACHE', word); monkeypatch.chdir(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert keep('images', 1, Work()) is None and cache_dir() is None and cached()==clear_cache()==[]
    assert list(tmp_path.iterdir())==[]

NEEDED = '''
import sys
from pathlib import Path
from privreid.cache import keep
def write(path): path.mkdir(); (path/'a.png').write_text('raw'); print('made', flush=True)
for _ in range(2): path = keep('cuhk03', 1, write, needed=True)
print(path, (path/'a.png').read_text(), oct(path.parent.stat().st_mode)[-3:], oct((path/'a.png').stat().st_mode)[-3:])
'''

@posix
def test_what_is_needed_lives_as_long_as_the_process(monkeypatch, tmp_path):
    env = os.environ|dict(PRIVREID_CACHE='off', TMPDIR=str(tmp_path), PYTHONPATH=str(Path(cache_.__file__).parents[1]), OMP_NUM_THREADS='1')
    p = subprocess.run([sys.executable, '-c', NEEDED], env=env, capture_output=True, text=True)
    made,said = p.stdout.splitlines()
    assert made=='made' and said.split()[1:]==['raw', '700', '600'] and p.stderr=='' and not list(tmp_path.iterdir())

def test_no_home_is_one_line(monkeypatch, one_line):
    monkeypatch.delenv('PRIVREID_CACHE'); monkeypatch.delenv('HOME'); monkeypatch.setattr(os, 'getuid', lambda: 4_000_000_000)
    with pytest.warns(UserWarning) as told: assert keep('images', 1, Work()) is None
    one_line(told[0].message, '~/.cache/privreid', 'PRIVREID_CACHE')
    monkeypatch.setenv('HOME', '/home/somebody'); assert cache_dir()==Path('/home/somebody/.cache/privreid')

def useless(cache, one_line, *names):
    with pytest.warns(UserWarning) as told: assert keep('images', 1, Work()) is None
    assert len(told)==1
    one_line(told[0].message, cache, 'PRIVREID_CACHE', *names)

def test_a_file_in_place_of_the_cache(cache, one_line):
    cache.write_text('in the way')
    useless(cache, one_line)
    assert cache.read_text()=='in the way' and cached()==[]

@posix
def test_a_read_only_cache(cache, one_line, monkeypatch):
    cache.mkdir(0o555)
    with nobody(monkeypatch, cache): useless(cache, one_line)
    assert entries(cache)==[]

@posix
def test_a_read_only_cache_is_still_read(cache, monkeypatch):
    cache.mkdir(0o777); cache.chmod(0o777)
    with nobody(monkeypatch, cache):
        path = keep('images', 1, Work())
        if os.geteuid(): path.parent.chmod(0o500)
    cache.chmod(0o555)
    with nobody(monkeypatch, cache), warnings.catch_warnings():
        warnings.simplefilter('error')
        assert keep('images', 1, never)==path
    cache.chmod(0o777)

@posix
def test_a_full_disk(cache, one_line):
    "A limit on the size of a file stops the writing half-way, as a full disk does."
    import resource
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
    try: useless(cache, one_line)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert entries(cache)==[]

def never(path): raise AssertionError('made again')

# --- other users

@posix
@pytest.mark.skipif(os.name=='posix' and os.geteuid()!=0, reason='needs two users')
def test_what_somebody_else_left_is_not_believed(cache, one_line, monkeypatch):
    cache.mkdir(); cache.chmod(0o777)
    with nobody(monkeypatch, cache, uid=1234): theirs = keep('images', 1, Work())
    with nobody(monkeypatch, cache):
        mine = keep('images', 1, Work())
        assert mine!=theirs and len(cached())==1                          # each has an entry of their own
        mine.parent.rename(cache/'away')
    with nobody(monkeypatch, cache, uid=1234): shutil.copytree(theirs.parent, mine.parent)   # the right name, the wrong owner
    with nobody(monkeypatch, cache):
        useless(cache, one_line, mine.parent, 'somebody else')
        assert clear_cache()==[]
        with pytest.raises(PermissionError): theirs.read_bytes()
    assert mine.exists() and theirs.exists()

@posix
def test_a_link_in_place_of_an_entry_is_not_followed(cache, one_line, tmp_path):
    path = keep('images', 1, Work())
    path.parent.rename(tmp_path/'elsewhere'); path.parent.symlink_to(tmp_path/'elsewhere')
    useless(cache, one_line, 'a link')
    assert clear_cache()==[] and (tmp_path/'elsewhere'/'content').exists() and path.parent.is_symlink()

@posix
def test_a_link_to_the_cache_is_followed(cache, tmp_path):
    (tmp_path/'large disk').mkdir(); cache.symlink_to(tmp_path/'large disk')
    work = Work()
    assert keep('images', 1, work)==keep('images', 1, work) and work.made==1
    assert len(clear_cache())==1 and cache.is_symlink() and list(cache.iterdir())==[]

# --- damage and change

def zeros(p): p.write_bytes(bytes(p.stat().st_size))
def flipped(p): data = bytearray(p.read_bytes()); data[3] ^= 1; p.write_bytes(data)
DAMAGES = dict(zeros=zeros, flipped=flipped, truncated=lambda p: p.write_bytes(p.read_bytes()[:-1]), empty=lambda p: p.write_bytes(b''), longer=lambda p: p.write_bytes(p.read_bytes()+b'0'), gone=lambda p: p.unlink())

@pytest.mark.parametrize('same_process', [True, False])
@pytest.mark.parametrize('folder', [False, True])
@pytest.mark.parametrize('damage', DAMAGES)
def test_what_is_damaged_is_made_again(cache, damage, folder, same_process):
    work = Work(folder)
    path = keep('images', 1, work)
    whole,victim = bytes_of(path), path/'1.png' if folder else path
    when = victim.stat().st_mtime_ns
    DAMAGES[damage](victim)
    if damage!='gone': os.utime(victim, ns=(when, when))                  # as if nothing had happened
    if not same_process: cache_._CHECKED.clear()
    assert keep('images', 1, work)==path and work.made==2 and bytes_of(path)==whole
    assert keep('images', 1, work)==path and work.made==2 and len(entries(cache))==1

def test_pictures_that_change_places_are_noticed(cache):
    work = Work(True)
    path = keep('images', 1, work)
    (path/'0.png').rename(path/'x'); (path/'1.png').rename(path/'0.png'); (path/'x').rename(path/'1.png')
    keep('images', 1, work); assert work.made==2
    (path/'more.png').touch()
    keep('images', 1, work); assert work.made==3 and not (path/'more.png').exists()

@pytest.mark.parametrize('seal', [b'', b'['*100_000, b'{}', b'[1]', b'null', bytes(100), b'\xff', None])
def test_a_damaged_seal(cache, seal):
    work = Work()
    at = keep('images', 1, work).parent/'seal.json'
    at.write_bytes(seal) if seal is not None else at.unlink()
    assert [c.what for c in cached()]==([] if seal is None else ['damaged'])
    keep('images', 1, work)
    assert work.made==2 and len(entries(cache))==1

def test_another_source_takes_the_place_of_the_first(cache):
    work = Work()
    for made,source in ((1, 'a'), (1, 'a'), (2, 'b'), (3, 'a')): keep('images', 1, work, source); assert work.made==made
    assert len(entries(cache))==1

def test_something_else_under_the_name_of_an_entry(cache):
    entry = keep('images', 1, Work()).parent
    shutil.rmtree(entry); entry.write_text('a file')
    assert keep('images', 1, Work())==entry/'content' and (entry/'content').is_file() and len(entries(cache))==1

def test_each_process_looks_once(cache, monkeypatch):
    keep('images', 1, Work(True))
    looked,checksum = [], cache_._checksum
    monkeypatch.setattr(cache_, '_checksum', lambda p: looked.append(p) or checksum(p))
    for _ in range(3): keep('images', 1, never)
    assert len(looked)==1

# --- rivals and killed writers

CHILD = '''
import sys, time
from privreid.cache import keep
def write(path):
    with open(path, 'wb') as f:
        for i in range(40): f.write(b"pixels"); f.flush(); time.sleep(.01)
print('ready', flush=True); sys.stdin.readline()
print(keep('images', 1, write))
'''

def child():
    "A process that waits for a line, and then writes for half a second."
    env = os.environ|dict(OMP_NUM_THREADS='1', PYTHONPATH=str(Path(cache_.__file__).parents[1]))
    return subprocess.Popen([sys.executable, '-c', CHILD], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def wait_for(what, seconds=60):
    end = time.time()+seconds
    while not what():
        assert time.time()<end, 'waited in vain'
        time.sleep(.005)

def half(path): path.write_bytes(b'pixels')
def unfinished(cache): return [t for t in cache.glob('.*.tmp') if any(p.is_file() and p.stat().st_size for p in t.rglob('*'))]

def test_two_processes_race(cache):
    rivals = [child() for _ in range(2)]
    for p in rivals: assert p.stdout.readline()=='ready\n'
    for p in rivals: p.stdin.write('\n'); p.stdin.flush()
    wait_for(lambda: len(unfinished(cache))==2)                           # both are at it
    said = [p.communicate(timeout=60) for p in rivals]
    path = keep('images', 1, never)
    assert said==[(f'{path}\n', '')]*2 and path.read_bytes()==b'pixels'*40 and len(entries(cache))==1

@posix
def test_killed_half_way(cache):
    p = child()
    assert p.stdout.readline()=='ready\n'
    p.stdin.write('\n'); p.stdin.flush()
    wait_for(lambda: unfinished(cache))                                   # something is written ...
    os.kill(p.pid, signal.SIGKILL); p.communicate()
    left, = unfinished(cache)
    assert p.returncode==-signal.SIGKILL and entries(cache)==[left.name] and mode(left)==0o700   # ... and nobody else sees it
    assert [c.what for c in cached()]==['unfinished']
    keep('images', 1, half); assert left.exists()                         # too young to tell whether its writer is dead
    for p in (left, *left.rglob('*')): os.utime(p, (time.time()-3700,)*2)
    keep('images', 2, half); assert not left.exists() and len(entries(cache))==2

def test_a_writer_that_takes_hours_is_left_alone(cache):
    cache.mkdir()
    tmp = cache/'.images-0123456789abcdef.01234567.tmp'
    (tmp/'new').mkdir(parents=True); (tmp/'new'/'content').touch()
    for p in (tmp, tmp/'new'): os.utime(p, (0, 0))                        # it makes no new files, but writes to this one
    keep('images', 1, half); assert tmp.exists()

@posix
def test_a_cache_that_is_cleared_under_a_writer(cache):
    p = child()
    p.stdout.readline(); p.stdin.write('\n'); p.stdin.flush()
    wait_for(lambda: unfinished(cache))
    assert len(clear_cache())==1
    out,err = p.communicate(timeout=60)
    assert p.returncode==0 and out=='None\n' and 'could not be kept' in err and 'Traceback' not in err and entries(cache)==[]

def test_errors_of_the_writer_pass_through(cache):
    def write(path): path.write_text('half'); raise KeyError('a mistake of its own')
    with pytest.raises(KeyError): keep('images', 1, write)
    assert entries(cache)==[]

# --- what lies there

def test_only_what_is_ours_is_shown_and_removed(cache):
    keep('images', 1, Work(True), note='three pictures'); keep('synthetic', 2, Work())
    (cache/'images-0123456789abcdef').mkdir()                             # the name, no seal
    (cache/'photos-2024').mkdir(); (cache/'photos-2024'/'seal.json').touch()   # a seal, not the name
    for name in ('.old.tmp', '.hidden', 'visible.tmp', 'images-0123456789abcdef.u8.txt'): (cache/name).write_text('?'); os.utime(cache/name, (0, 0))
    foreign = entries(cache)
    shown = cached()
    assert [(c.what, c.path.name.split('-')[0]) for c in shown]==[('three pictures', 'images'), ('', 'synthetic')]
    assert shown[0].bytes==sum(p.stat().st_size for p in shown[0].path.rglob('*') if p.is_file()) and 0<=shown[0].age<60
    assert [c.path for c in clear_cache()]==[c.path for c in shown]
    assert cached()==[] and entries(cache)==[n for n in foreign if n not in {c.path.name for c in shown}] and len(entries(cache))==6

@posix
def test_what_cannot_be_removed_is_named(cache, monkeypatch, one_line):
    cache.mkdir(); cache.chmod(0o777)
    with nobody(monkeypatch, cache):
        if not os.geteuid(): pytest.skip('needs two users')
        entry = keep('images', 1, Work()).parent
        entry.chmod(0o500)
        with pytest.warns(UserWarning) as told: assert clear_cache()==[]
    one_line(told[0].message, entry, 'could not be removed')
    entry.chmod(0o700)

@posix
def test_litter_that_cannot_be_removed(monkeypatch, cache):
    "In a cache shared like /tmp only its owner may remove a file."
    litter = cache/'.images-0123456789abcdef.01234567.tmp'
    (litter/'locked').mkdir(parents=True); (litter/'locked'/'1.png').touch()
    cache.chmod(0o1777)
    for p in (litter, *litter.rglob('*')): os.utime(p, (0, 0))
    with nobody(monkeypatch, cache), warnings.catch_warnings():
        warnings.simplefilter('error')
        assert keep('images', 1, Work()).exists()
    if os.geteuid()==0: assert litter.exists()
