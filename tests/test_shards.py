"Archives go in and come out like folders, and nothing that one says of itself is believed."
import io, json, os, stat, tarfile
from dataclasses import asdict
from pathlib import Path
import numpy as np
import pytest, torch
from PIL import Image
from privreid.arms import Arm
from privreid.config import preset
from privreid.deploy import desensitize_folder, protect_folder, recover_folder, shard_by_shard
from privreid.folder import write_json
from privreid.pictures import read_image
from privreid.pix2pix import UNetGenerator
from privreid.records import save_arm
from privreid.shards import contents, member, pack
from privreid.training import agw_of
from privreid.tree import RECORD, pictures_below, read_record

def untrained(folder):
    "A run whose networks have learnt nothing: what stands around them is tested."
    cfg = preset('demo', ngf=4)
    torch.manual_seed(0)
    write_json(asdict(cfg)|dict(run=dict(arms=['w/o U'], identities=96)), folder/'config.json')
    save_arm(Arm('w/o U', agw_of(cfg, 96), UNetGenerator(cfg.size, 4), UNetGenerator(cfg.size, 4)), folder)
    return folder

@pytest.fixture(scope='module')
def run(tmp_path_factory): return untrained(tmp_path_factory.mktemp('shards')/'run')

def photo(i, size=(70,40), format='png'):
    f = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)).save(f, format)
    return f.getvalue()

def tar(path, members:dict):
    "Names and bytes; a `TarInfo` in place of bytes is written as it is."
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as t:
        for name,data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info is data: t.addfile(info); continue
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path

def folder(path, members:dict):
    for name,data in members.items(): (path/name).parent.mkdir(parents=True, exist_ok=True); (path/name).write_bytes(data)
    return path

def tree(folder)->dict[str,bytes]: return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}
def inside(path)->dict[str,bytes]:
    with tarfile.open(path) as t: return {m.name: t.extractfile(m).read() for m in t}

PHOTOS = {'a/0.png': photo(0), 'a/1.jpg': photo(1, format='jpeg'), 'ä b/2.png': photo(2, (20, 9)), 'broken.png': b'no picture', 'empty.jpg': b'', 'note.txt': b'x', 'x.heic': b'x'}

def test_an_archive_is_a_folder(run, tmp_path):
    src,shard = folder(tmp_path/'src', PHOTOS), tar(tmp_path/'in.tar', PHOTOS)
    plain = protect_folder(src, run, tmp_path/'plain', device='cpu')
    done = protect_folder(shard, run, tmp_path/'out', device='cpu')
    assert tree(tmp_path/'out')==tree(tmp_path/'plain')
    assert (done.pictures, done.others, set(done.failed))==(plain.pictures, plain.others, set(plain.failed)) and '6 pictures = 3 done + 3 listed' in str(done)
    done = protect_folder(shard, run, tmp_path/'out.tar', device='cpu', verify=True)
    assert inside(tmp_path/'out.tar')==tree(tmp_path/'plain') and list(inside(tmp_path/'out.tar'))[0]==RECORD and 'Read back 3' in str(done)
    assert set(p.name for p in tmp_path.iterdir())=={'src', 'in.tar', 'plain', 'out', 'out.tar'}
    before = (tmp_path/'out.tar').read_bytes()
    assert protect_folder(shard, run, tmp_path/'out.tar', device='cpu').new==0 and (tmp_path/'out.tar').read_bytes()==before
    protect_folder(src, run, tmp_path/'again.tar', device='cpu')
    assert (tmp_path/'again.tar').read_bytes()==before
    recover_folder(tmp_path/'plain', run, tmp_path/'back', device='cpu')
    recover_folder(tmp_path/'out.tar', run, tmp_path/'back.tar', device='cpu')
    assert inside(tmp_path/'back.tar')==tree(tmp_path/'back') and stat.S_IMODE((tmp_path/'back.tar').stat().st_mode)==0o600
    desensitize_folder(shard, tmp_path/'blurred.tar', device='cpu')
    assert set(inside(tmp_path/'blurred.tar'))==set(inside(tmp_path/'out.tar'))

def test_what_is_not_written_over(run, tmp_path):
    shard = tar(tmp_path/'in.tar', {'0.png': photo(0)})
    tar(tmp_path/'mine.tar', {'0.png': photo(1)})
    before = (tmp_path/'mine.tar').read_bytes()
    with pytest.raises(FileExistsError, match='--force'): protect_folder(shard, run, tmp_path/'mine.tar', device='cpu')
    with pytest.raises(ValueError, match='in each other'): protect_folder(shard, run, shard, device='cpu')
    assert (tmp_path/'mine.tar').read_bytes()==before and {p.name for p in tmp_path.iterdir()}=={'in.tar', 'mine.tar'}
    protect_folder(shard, run, tmp_path/'mine.tar', force=True, device='cpu')
    with pytest.raises(FileExistsError, match='another command'): protect_folder(shard, run, tmp_path/'mine.tar', size='network', device='cpu')
    with pytest.raises(ValueError, match='output of privreid'): protect_folder(tmp_path/'mine.tar', run, tmp_path/'twice.tar', device='cpu')
    (tmp_path/'link.tar').symlink_to(tmp_path/'mine.tar'); (tmp_path/'folder.tar').mkdir()
    for wrong in ('link.tar', 'folder.tar'):
        with pytest.raises(ValueError, match='link|no file'): protect_folder(shard, run, tmp_path/wrong, device='cpu')
    assert not (tmp_path/'twice.tar').exists()

@pytest.mark.parametrize('where', ['put', 'finish', 'pack'])
def test_stopped_and_going_on(run, tmp_path, monkeypatch, where):
    from privreid import tree as t
    shard = tar(tmp_path/'in.tar', {f'{i}.png': photo(i) for i in range(5)})
    protect_folder(shard, run, tmp_path/'whole.tar', device='cpu', batch=2)
    class Killed(BaseException): pass
    steps,owner = [], t if where=='pack' else t.Output
    old = getattr(owner, where)
    def dies(*args, **kwargs):
        steps.append(1)
        if where!='put' or len(steps)==3: raise Killed
        return old(*args, **kwargs)
    monkeypatch.setattr(owner, where, dies)
    with pytest.raises(Killed): protect_folder(shard, run, tmp_path/'out.tar', device='cpu', batch=2)
    assert not (tmp_path/'out.tar').exists()
    monkeypatch.undo()
    done = protect_folder(shard, run, tmp_path/'out.tar', device='cpu', batch=2)
    assert (tmp_path/'out.tar').read_bytes()==(tmp_path/'whole.tar').read_bytes() and (done.new<5)
    assert {p.name for p in tmp_path.iterdir()}=={'in.tar', 'whole.tar', 'out.tar'}

def odd(name, kind, to=''):
    info = tarfile.TarInfo(name)
    info.type,info.linkname = kind, to
    return info

def test_hostile_members(run, tmp_path):
    outside = tmp_path/'outside.png'
    outside.write_bytes(photo(9))
    bad = {'../up.png': photo(0), '/tmp/abs.png': photo(0), 'a/../../b.png': photo(0), '.privreid/journal.png': photo(0), 'link.png': odd('link.png', tarfile.SYMTYPE, str(outside)),
           'hard.png': odd('hard.png', tarfile.LNKTYPE, 'good.png'), 'pipe.png': odd('pipe.png', tarfile.FIFOTYPE), 'x.png': photo(1), 'x.png/y.png': photo(2)}
    shard = tar(tmp_path/'in.tar', {'good.png': photo(3)}|bad)
    before = tree(tmp_path)
    done = protect_folder(shard, run, tmp_path/'deep'/'out', device='cpu')
    assert set(done.failed)==set(bad)-{'x.png/y.png'} and done.pictures==2
    assert set(tree(tmp_path))==set(before)|{'deep/out/good.png', 'deep/out/x.png/y.png', f'deep/out/{RECORD}'}
    protect_folder(shard, run, tmp_path/'deep'/'out.tar', device='cpu')
    assert set(inside(tmp_path/'deep'/'out.tar'))=={'good.png', 'x.png/y.png', RECORD}

def test_damaged_archives(run, tmp_path, one_line):
    whole = tar(tmp_path/'in.tar', {f'{i}.png': photo(i) for i in range(3)}).read_bytes()
    huge = tarfile.TarInfo('x'); huge.type,huge.size = tarfile.XHDTYPE, 2**33
    for i,data in enumerate([b'', b'x', whole[:600], whole[:-10240+512], whole[:20480], whole[512:], b'\x1f\x8b'+whole, huge.tobuf()+bytes(10240), whole[:512].replace(b'0', b'9')+whole[512:]]):
        (tmp_path/'bad.tar').write_bytes(data)
        os.utime(tmp_path/'bad.tar', ns=(i, i))
        with pytest.raises(ValueError) as e: protect_folder(tmp_path/'bad.tar', run, tmp_path/'out', device='cpu')
        one_line(e.value, 'bad.tar')
    for text in (b'{', b'[]', json.dumps(dict(format=1, job={}, pictures={'../x': dict(size=[1, 1], sha256='0'*64)}, left_out=0)).encode()):
        with pytest.raises(ValueError) as e: recover_folder(tar(tmp_path/'bad.tar', {RECORD: text, '0.png': photo(0)}), run, tmp_path/'out', device='cpu')
        one_line(e.value, 'bad.tar')
    assert {p.name for p in tmp_path.iterdir()}=={'in.tar', 'bad.tar'}

def test_shard_by_shard(run, tmp_path):
    for i in range(3): tar(tmp_path/'in'/f'd{i%2}'/f'{i}.tar', {f'{i}{k}.png': photo(10*i+k) for k in range(2)}|({'broken.png': b'x'} if i==1 else {}))
    (tmp_path/'in'/'cut.tar').write_bytes((tmp_path/'in'/'d0'/'0.tar').read_bytes()[:700])
    def act(source, out): return protect_folder(source, run, out, device='cpu')
    done = shard_by_shard(tmp_path/'in', tmp_path/'out', act)
    assert done.pictures==done.new==6 and set(done.failed)=={'cut.tar', 'd1/1.tar/broken.png'} and '8 pictures = 6 done + 2 listed' in str(done)
    assert [p.relative_to(tmp_path/'out').as_posix() for p in sorted((tmp_path/'out').rglob('*')) if p.is_file()]==['d0/0.tar', 'd0/2.tar', 'd1/1.tar']
    assert shard_by_shard(tmp_path/'in', tmp_path/'out', act).new==0
    for wrong in (tmp_path/'in', tmp_path/'in'/'deep'):
        with pytest.raises(ValueError, match='in each other'): shard_by_shard(tmp_path/'in', wrong, act)

def test_the_command(run, tmp_path, capsys):
    from privreid.cli import main
    tar(tmp_path/'in'/'0.tar', {'a.png': photo(0)})
    assert main(['protect', f'{tmp_path}/in', '--from-tar', '--with', f'{run}', '--out', f'{tmp_path}/out', '--device', 'cpu'])==0
    assert main(['recover', f'{tmp_path}/out/0.tar', '--key', f'{run}', '--out', f'{tmp_path}/back.tar', '--device', 'cpu'])==0
    assert read_image(tmp_path/'back.tar'/'a.png').shape==(70, 40, 3)
    for wrong in (['--train'], ['--with', f'{run}', '--workers', '2'], ['--with', f'{run}', '--engine', 'fog']): assert main(['protect', f'{tmp_path}/in', '--from-tar', '--out', f'{tmp_path}/x', *wrong])==2
    assert not (tmp_path/'x').exists()
