"Many processes make the files that one would make, and a dead one is replaced."
import importlib.util, os, signal, stat, threading, time
from pathlib import Path
import pytest
from privreid.cli import main
from privreid.deploy import protect_folder, recover_folder
from privreid.outlet import convert
from privreid.pictures import read_image
from privreid.tree import filled
from test_shards import folder, inside, photo, tar, tree, untrained

@pytest.mark.skipif(bool(importlib.util.find_spec('ray')), reason='is about its absence')
def test_without_ray(tmp_path, one_line, capsys):
    run = untrained(tmp_path/'run')
    with pytest.raises(ValueError) as e: protect_folder(folder(tmp_path/'src', {'0.png': photo(0)}), run, tmp_path/'out', device='cpu', engine='ray')
    one_line(e.value, 'privreid[ray]')
    assert main(['protect', f'{tmp_path}/src', '--with', f'{run}', '--out', f'{tmp_path}/out', '--engine', 'ray', '--device', 'cpu'])==2

needs_ray = pytest.mark.skipif(not importlib.util.find_spec('ray'), reason="many processes: pip install 'privreid[ray]'")

@pytest.fixture(scope='module')
def run(tmp_path_factory): return untrained(tmp_path_factory.mktemp('cluster')/'run')

@pytest.fixture(scope='module')
def ray():
    "Two processors of Ray; it gives itself half a minute to start, and a busy machine gets more."
    from ray._private import services
    from privreid.cluster import ray_session
    patch,get_node = pytest.MonkeyPatch(), services.get_node
    def patient(*args, **kwargs):
        end = time.monotonic()+60
        while True:
            try: return get_node(*args, **kwargs)
            except RuntimeError:
                if time.monotonic()>end: raise   # a raylet that was too slow dies, and is not waited for longer
                time.sleep(.5)
    patch.setattr(services, 'get_node', patient)
    patch.setenv('PYTHONPATH', f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")   # workers know this file
    try:
        with ray_session(2) as ray: yield ray
    finally: patch.undo()

PHOTOS = {f'd{i%3}/{i}.png': photo(i, ((70,40), (20,10), (90,50))[i%3]) for i in range(40)}|{'broken.png': b'no picture', 'empty.jpg': b''}

@needs_ray
def test_the_same_to_the_byte(ray, run, tmp_path):
    src,how = folder(tmp_path/'src', PHOTOS), dict(device='cpu', batch=4)
    plain = protect_folder(src, run, tmp_path/'plain', **how)
    done = protect_folder(src, run, tmp_path/'ray', engine='ray', workers=2, **how)
    assert tree(tmp_path/'ray')==tree(tmp_path/'plain')
    assert done.failed==plain.failed and (done.pictures, done.new)==(40, 40) and '42 pictures = 40 done + 2 listed' in str(done)
    assert protect_folder(src, run, tmp_path/'ray', engine='ray', **how).new==0
    protect_folder(tar(tmp_path/'in.tar', PHOTOS), run, tmp_path/'out.tar', engine='ray', **how)
    assert inside(tmp_path/'out.tar')==tree(tmp_path/'plain')
    recover_folder(tmp_path/'plain', run, tmp_path/'back', **how)
    recover_folder(tmp_path/'plain', run, tmp_path/'ray back', engine='ray', **how)
    assert tree(tmp_path/'ray back')==tree(tmp_path/'back') and stat.S_IMODE((tmp_path/'ray back'/'d0'/'0.png').stat().st_mode)==0o600
    assert os.environ['RAY_USAGE_STATS_ENABLED']=='0'

class Slow:
    "Leaves its process id, and takes its time."
    def __init__(self, at, wait=.1): self.at,self.wait = at, wait
    def decode(self, path):
        (self.at/str(os.getpid())).touch()
        time.sleep(self.wait)
        return read_image(path)
    def change(self, seen): return [255-im for im in seen]
    def encode(self, im): return im.tobytes(), im.shape[:2]

def turned(engine, name, tmp_path, does, batch=4, **how):
    with filled(tmp_path/name, tmp_path/'src', dict(what='toy')) as out:
        return engine(out, {p.relative_to(tmp_path/'src').as_posix(): p for p in (tmp_path/'src').rglob('*.*')}, does.decode, does.change, does.encode, batch, **how)

@needs_ray
def test_a_worker_is_killed_half_way(ray, tmp_path):
    from privreid.cluster import on_ray
    folder(tmp_path/'src', PHOTOS); (tmp_path/'pids').mkdir()
    said = turned(convert, 'plain', tmp_path, Slow(tmp_path/'pids', wait=0))
    mine,killed = str(os.getpid()), []
    def kill():
        while not killed:
            done = len(list((tmp_path/'ray').rglob('*.png')))
            workers = [p.name for p in (tmp_path/'pids').iterdir() if p.name!=mine]
            if done>=10 and workers: os.kill(int(workers[0]), signal.SIGKILL); killed.append(done)
            time.sleep(.05)
    hand = threading.Thread(target=kill, daemon=True)
    hand.start()
    assert turned(on_ray, 'ray', tmp_path, Slow(tmp_path/'pids'), workers=2)==said
    hand.join(1)
    assert killed and killed[0]<40, 'nobody was killed half-way'
    assert tree(tmp_path/'ray')==tree(tmp_path/'plain') and len(said)==2

@needs_ray
def test_too_many_workers(ray, run, tmp_path):
    with pytest.raises(ValueError, match='too many'): protect_folder(folder(tmp_path/'src', {'0.png': photo(0)}), run, tmp_path/'out', device='cpu', engine='ray', workers=99)

@needs_ray
@pytest.mark.full
def test_nothing_is_left_of_it(run, tmp_path):
    "In a process of its own: Ray's folder is closed to others, and gone at the end."
    import subprocess, sys, tempfile
    src = folder(tmp_path/'src', {'0.png': photo(0)})
    p = subprocess.run([sys.executable, '-m', 'privreid', 'protect', src, '--with', run, '--out', tmp_path/'out', '--engine', 'ray', '--workers', '1', '--device', 'cpu'], text=True, capture_output=True, env=os.environ|dict(TMPDIR='/tmp'))
    assert p.returncode==0 and 'Traceback' not in p.stderr, p.stderr
    assert (tmp_path/'out'/'0.png').is_file()
