"Files: nobody sees half of one, nobody but its owner a private one; strict JSON; bars for those who look."
import json, math, os, stat, subprocess, sys
from contextlib import contextmanager
from pathlib import Path
import pytest
import privreid.files as files
from privreid.files import atomic, expand, make_private, progress, strict_json, legible

posix = pytest.mark.skipif(os.name!='posix', reason='needs Unix')

@contextmanager
def nobody(monkeypatch, cache, uid=65534):
    "Without root's rights, who may write anywhere, and with `cache` for the cache; pytest's folders are private, so those above are opened."
    monkeypatch.setenv('PRIVREID_CACHE', str(cache))
    for p in cache.parents:
        if 'pytest-' in str(p): p.chmod(0o755)
    root = os.geteuid()==0
    if root: os.seteuid(uid)
    try: yield
    finally:
        if root: os.seteuid(0)

def mode(path): return stat.S_IMODE(path.lstat().st_mode)

# --- who may look

@posix
@pytest.mark.parametrize('umask', [0, 0o022, 0o077])
def test_a_private_file_is_private_at_every_moment(tmp_path, umask):
    "Whatever is below the folder is either below a closed one or closed itself, while writing and afterwards."
    old,target = os.umask(umask), tmp_path/'new'/'newer'/'key.txt'
    try:
        with atomic(target, private=True) as tmp:
            tmp.write_text('secret')
            assert mode(tmp.parent)==0o700 and tmp.parent.parent==target.parent
    finally: os.umask(old)
    assert target.read_text()=='secret' and [mode(p) for p in (target, target.parent, target.parent.parent)]==[0o600, 0o700, 0o700]
    assert list(target.parent.iterdir())==[target]

@posix
def test_a_watcher_never_opens_a_private_file(tmp_path, monkeypatch):
    "Another user who tries all the time, in a folder that all may enter."
    if os.geteuid(): pytest.skip('needs two users')
    with nobody(monkeypatch, tmp_path/'x'): pass
    watch = ('import os, sys, time\nos.seteuid(65534)\nprint("ready", flush=True)\nend = time.time()+.6\nwhile time.time()<end:\n for at,_,names in os.walk(sys.argv[1]):\n'
             '  for n in names:\n   try: print(open(os.path.join(at, n)).read())\n   except OSError: pass\n')
    open_to_all = tmp_path/'note.txt'
    open_to_all.write_text('seen')                                       # the watcher can watch
    with subprocess.Popen([sys.executable, '-c', watch, str(tmp_path)], stdout=subprocess.PIPE, text=True) as p:
        p.stdout.readline()
        while p.poll() is None:
            for name in ('key', 'key', 'folder'):
                with atomic(tmp_path/name, private=True) as tmp:
                    if name=='folder': tmp.mkdir(); (tmp/'a').write_text('secret')
                    else: tmp.write_text('secret')
            files.remove(tmp_path/'folder')
        said = set(p.stdout.read().split())
    assert said=={'seen'}

@posix
def test_a_private_folder_in_place_of_an_open_file(tmp_path):
    (tmp_path/'out').write_text('open'); (tmp_path/'out').chmod(0o644)
    with atomic(tmp_path/'out', private=True) as tmp: tmp.write_text('closed')
    assert mode(tmp_path/'out')==0o600 and mode(tmp_path)!=0o600
    with atomic(tmp_path/'pictures', private=True) as tmp:
        (tmp/'deep').mkdir(parents=True); (tmp/'deep'/'a.png').write_text('x'); (tmp/'link').symlink_to(tmp_path/'elsewhere')
    (tmp_path/'elsewhere').write_text('not ours'); (tmp_path/'elsewhere').chmod(0o644)
    make_private(tmp_path/'pictures')
    assert [mode(tmp_path/p) for p in ('pictures', 'pictures/deep', 'pictures/deep/a.png', 'elsewhere')]==[0o700, 0o700, 0o600, 0o644]

@posix
@pytest.mark.parametrize('chmod', [lambda self, mode: None, lambda self, mode: (_ for _ in ()).throw(PermissionError(1, 'Operation not permitted'))], ids=['ignored', 'refused'])
def test_a_place_that_knows_no_modes_is_named_once(tmp_path, monkeypatch, one_line, chmod):
    monkeypatch.setattr(Path, 'chmod', chmod); monkeypatch.setattr(files, '_UNPROTECTED', set())
    with pytest.warns(UserWarning) as told:
        for folder in ('a', 'b', 'a'):
            for i in range(2):
                with atomic(tmp_path/folder/f'{i}.png', private=True) as tmp: tmp.touch(0o644)
    assert len(told)==2
    for w,folder in zip(told, 'ab'): one_line(w.message, tmp_path/folder, 'disk of your own')

def test_what_is_half_written_goes_whatever_happens(tmp_path):
    for private in (False, True):
        with pytest.raises(KeyError), atomic(tmp_path/'a', private=private) as tmp: tmp.write_text('half'); raise KeyError
        with atomic(tmp_path/('n'*250), private=private) as tmp: tmp.write_text('a name as long as names may be')
    assert [p.name for p in tmp_path.iterdir()]==['n'*250]

# --- JSON

def test_json_is_strict(one_line):
    value = {'a': [1, 2.5, None, 'é'], 'b': {'1': True}}
    assert json.loads(strict_json(value))==value and strict_json(value, indent=1)==json.dumps(value, indent=1)
    for bad,place in (({'arms': {'Base': {'psnr': math.nan}}}, "arms['Base']['psnr'] "), ({'rows': [1., (2., -math.inf)]}, 'rows[1][1] '), ([{}, {'a b': math.inf}], "[1]['a b'] "), (math.nan, 'the value ')):
        with pytest.raises(ValueError) as e: strict_json(bad)
        one_line(e.value, 'is NaN or infinite'); assert str(e.value).startswith(place)

# --- paths, bars

def test_no_home_is_one_sentence(monkeypatch, one_line):
    monkeypatch.setenv('HOME', '/home/somebody'); assert expand('~/a/~b')==Path('/home/somebody/a/~b') and expand('a')==Path('a')
    monkeypatch.delenv('HOME'); monkeypatch.setattr(os, 'getuid', lambda: 4_000_000_000)   # a user whom the system does not know
    for path in ('~/runs', '~nobody-of-that-name/x'):
        with pytest.raises(ValueError) as e: expand(path)
        one_line(e.value, path, 'Write the path in full')

def test_bars_are_for_those_who_look(monkeypatch, capsys):
    def drawn(**kw): list(progress(range(3), 'working', **kw)); return 'working' in capsys.readouterr().err
    assert not drawn()                                                    # standard error goes to a file, or to pytest
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    assert drawn() and not drawn(show=False)
    monkeypatch.setenv('TQDM_DISABLE', '1'); assert not drawn()
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: False)
    monkeypatch.setenv('TQDM_DISABLE', '0'); assert drawn() and not drawn(show=False)

def test_no_standard_error_at_all(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', None)
    assert list(progress(range(3)))==[0, 1, 2]

# --- what people have written, in a message

def test_told_is_seen_and_short():
    assert legible('Zoë/李 2.jpg')=='Zoë/李 2.jpg' and legible(Path('a')/'b')==str(Path('a')/'b')
    assert legible('a\nb\x1b[0m\u202e\xa0\udcff')==r'a\nb\x1b[0m\u202e\xa0\udcff'
    long = legible('begin'+'\n'*10**6+'end', 100)
    assert len(long)==100 and long.startswith('begin') and long.endswith('end') and '...' in long

@pytest.mark.parametrize('odd', [None, 7, [], {}, 'a\0b', 'x'*5000, '\ud800'], ids=repr)
def test_what_is_no_path_is_refused(odd, one_line):
    with pytest.raises((TypeError, ValueError)) as e: expand(odd)
    one_line(e.value, type(odd).__name__ if not isinstance(odd, str) else 'nothing that a file can be called')
    assert len(str(e.value))<500 and str(e.value).isprintable()

def test_paths_that_may_yet_be_made(tmp_path):
    (tmp_path/'file').touch()
    for path in (tmp_path/'new'/'er', tmp_path/'file'/'x', 'here', os.fsencode(tmp_path)): assert expand(path)==Path(os.fsdecode(path))
