"""What a stranger may hand over where pictures are protected and recovered, for `fuzz.py`: bundles, keys, lists of folders, archives, boxes, videos, sidecars.

Most inputs are whole files that were damaged, or say something odd. They may be refused in one sentence, or read as what they are; what is
recovered then has the right number of pictures. A sidecar that was altered is never opened.
"""
import io, json, tarfile, warnings
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
import numpy as np
import torch
from torch import nn
from privreid.boxes import read_boxes
from privreid.bundles import export, info, read_bundle
from privreid.deploy import Anonymizer, Recovery, protect_folder, recover_folder
from privreid.exact import open_film
from privreid.exactkeys import new_master, read_exact
from privreid.files import strict_json
from privreid.filmed import BOXES, facts_of
from privreid.films import Film
from privreid.locks import passphrase_in
from privreid.outlet import encoded
from privreid.shards import contents
from privreid.sidecar import seal_film, sidecar_of
from privreid.tree import RECORD, read_record
from privreid.video import protect_film, recover_film
from fuzz_files import Case, as_json, damaged, finite, lay, lying, picture, twisted

SIZE,FRAMES = (24, 32), 4

class Half(nn.Module):
    "A network that is quick."
    size = 16, 8
    def forward(self, x): return x/2

def net_of(kind): return kind(Half(), '0'*32, 'w/ U', torch.device('cpu'), 8)

def written(folder:Path, files:dict[str,bytes])->Path:
    for name,data in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(data)
    return folder

def files_in(folder:Path)->dict[str,bytes]: return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}

@lru_cache
def bundle(role:str, passphrase:str='')->bytes:
    with TemporaryDirectory() as tmp: return export(lay(Path(tmp)), role, Path(tmp)/'out', passphrase=passphrase).read_bytes()

# --- bundles and keys

def bundles(rng, folder)->Case:
    "What is given away, damaged, lying, or something else."
    role,asked = rng.choice(('protect', 'reid')), rng.choice(('protect', 'protect', 'reid'))
    path,whole,dice = folder/rng.choice(('protect.safetensors', 'ä b.safetensors')), bundle(role), rng.random()
    data,what = (whole, 'plain') if dice<.1 else (damaged(rng, whole), 'damaged') if dice<.4 else lying(rng, whole)
    path.write_bytes(data)
    def act():
        told = info(path)
        found = read_bundle(path, asked)
        return told, found.tensors
    def right(found):
        return '' if role==asked and 'KEY' not in found[0].splitlines()[0] else f'a {role} bundle is taken for {asked}'
    return Case(f'{role} for {asked}, {what}', act, (path,), lambda found: right(found) or finite(found[1]), must=what=='plain' and role==asked)

@lru_cache
def exact_keys()->dict[str,bytes]: return {n: d for n,d in film_files().items() if n.startswith('keys/')}

def keys(rng, folder)->Case:
    "Keys: recovery weights, encrypted or not, the master key, passphrases."
    kind,dice = rng.choice(('open', 'encrypted', 'master', 'passphrase')), rng.random()
    path = folder/'KEY'
    if kind=='passphrase':
        path.write_bytes(rng.choice((b'', b'\n', b'one\ntwo', bytes(99), b'\xff\xfe\xff', b'x'*10**6, damaged(rng, b'a phrase\n'*3))))
        return Case(kind, lambda: passphrase_in(path), (path,), lambda said: '' if said and isinstance(said, str) else f'{said!r}')
    whole = exact_keys()['keys/MASTER'] if kind=='master' else bundle('recover', 'fuzz' if kind=='encrypted' else '')
    data,what = (whole, 'plain') if dice<.1 else (damaged(rng, whole), 'damaged')
    if dice>=.6 and kind=='open': data,what = lying(rng, whole)
    if dice>=.6 and kind=='master':
        tree,what = twisted(rng, json.loads(whole))
        data = as_json(rng, tree)
    path.write_bytes(data)
    if kind=='master': return Case(f'{kind}, {what}', lambda: (read_exact(path), repr(read_exact(path))), (path,), must=what=='plain')
    def act(): return info(path), read_bundle(path, 'recover', 'fuzz').tensors
    def right(found): return finite(found[1]) if 'KEY' in found[0] else 'a key is not called one'
    return Case(f'{kind}, {what}', act, (path,), right, must=what=='plain')

# --- folders and archives

@lru_cache
def protected()->dict[str,bytes]:
    with TemporaryDirectory() as tmp:
        source = written(Path(tmp)/'in', {'a/0.png': picture(), '1.png': picture()})
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            protect_folder(source, lay(Path(tmp)), Path(tmp)/'out', device='cpu')
        return files_in(Path(tmp)/'out')

def records(rng, folder)->Case:
    "What a folder says of itself, the names that go with it, and a journal, in which anything may stand."
    files,which,dice = dict(protected()), rng.choice((RECORD, RECORD, 'names', 'journal')), rng.random()
    if which=='names': whole = strict_json(dict(format=1, names={'1.png': 'somebody.png', 'a/0.png': 'b/x.png'})).encode()
    elif which=='journal': whole = b''.join(strict_json(r).encode()+b'\n' for r in (dict(job=json.loads(files[RECORD])['job'], fresh=False), dict(name='1.png'), dict(name='1.png', size=[16, 8], sha256='0'*64)))
    else: whole = files[RECORD]
    data,what = (whole, 'plain') if dice<.1 else (damaged(rng, whole), 'damaged') if dice<.4 or which=='journal' else (None, '')
    if data is None:
        tree,what = twisted(rng, json.loads(whole))
        if which=='names' and rng.random()<.3: tree,what = dict(format=1, names={'1.png': rng.choice(('../x.png', '/x.png', 'a/../../x', '.privreid/x', 'a'*5000, 'x\0y'))}), 'leads out'
        data = as_json(rng, tree)
    run,names = lay(folder), folder/'names.json' if which=='names' else None
    if which==RECORD: files[RECORD] = data
    source = written(folder/'in', files)
    if names: names.write_bytes(data)
    if which=='journal': written(folder/'out'/'.privreid', {'journal': data})
    act = partial(recover_folder, source, run, folder/'out', names=names, device='cpu')
    return Case(f'{which}, {what}', act, (source, folder/'out', run, *[names]*bool(names)), lambda done: '' if done.pictures+len(done.failed)>=2-2*(what!='plain') else f'{done}', must=what=='plain' and which!='journal')

@lru_cache
def archive()->bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as t:
        for name,data in dict({'a/0.png': picture(), 'ä'*99+'.png': picture(), 'c.jpg': picture('jpeg'), 'note.txt': b'x'}).items():
            m = tarfile.TarInfo(name)
            m.size = len(data)
            t.addfile(m, io.BytesIO(data))
    return buffer.getvalue()

def archives(rng, folder)->Case:
    "Archives that were cut, altered, or whose members lead elsewhere."
    whole,done = archive(), 'plain'
    if rng.random()<.5: whole,done = damaged(rng, whole), 'damaged'
    elif rng.random()<.8:
        buffer,done = io.BytesIO(), 'odd'
        with tarfile.open(fileobj=buffer, mode='w', format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as t:
            for _ in range(rng.choice((1, 3))):
                m = tarfile.TarInfo(rng.choice(('a.png', 'a.png/b.png', '../up.png', '/tmp/abs.png', 'x'*9000+'.png', './a.png', '', '..', 'a\\b.png', '.privreid/x.png', RECORD, '\udcff.png')))
                m.type,m.linkname = rng.choice((tarfile.REGTYPE,)*3+(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.CONTTYPE, b'S', b'Z')), '/etc/passwd'
                data = rng.choice((picture(), b'', b'x', b'{}'))
                if m.isreg(): m.size = len(data)
                t.addfile(m, io.BytesIO(data))
        whole = bytearray(buffer.getvalue())
        if rng.random()<.3: whole[124:136] = rng.choice((b'77777777777\0', b'\x80'+bytes(6)+b'\xff'*5, b'\xff'*12, b'-0000000001\0'))
    path = folder/'in.tar'
    path.write_bytes(whole)
    run,out = lay(folder), folder/rng.choice(('out', 'out.tar'))
    def act(): return protect_folder(path, run, out, device='cpu')
    def right(found): return '' if found.inputs==found.pictures+len(found.failed) else str(found)
    return Case(done, act, (path, out), right, must=done=='plain')

# --- boxes and films

@lru_cache
def film_files()->dict[str,bytes]:
    "A folder of frames, its boxes, protected, sealed; the keys."
    with TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        rng = np.random.default_rng(0)
        written(tmp/'frames', {f'{n:03}.png': encoded(rng.integers(0, 256, (*SIZE, 3), np.uint8)) for n in range(1, FRAMES+1)})
        boxes = {str(n): [[2, 2, 12, 20, 1], [8, 4, 20, 22, 2]] for n in range(1, FRAMES+1)}
        written(tmp, {'boxes.json': strict_json(dict(frames=boxes)).encode()})
        protect_film(tmp/'frames', tmp/'boxes.json', net_of(Anonymizer), tmp/'out')
        seal_film(tmp/'frames', tmp/'out', new_master(tmp/'keys'/'MASTER'))
        return files_in(tmp)

def boxes(rng, folder)->Case:
    "Boxes as trackers write them, and the list beside a protected film."
    kind,dice = rng.choice(('mot', 'json', 'list', 'beside')), rng.random()
    rows = [(n, t, 2+t, 3, 9., 12.5) for n in range(1, FRAMES+1) for t in (1, 2)]
    if kind=='mot': whole = b''.join(','.join(map(str, r)).encode()+b',1,-1,-1,-1\n' for r in rows)
    elif kind=='list': whole = strict_json([dict(frame=n, track=t, bbox=[l, top, w, h]) for n,t,l,top,w,h in rows]).encode()
    else: whole = film_files()['boxes.json' if kind=='json' else f'out/{BOXES}']
    data,what = (whole, 'plain') if dice<.1 else (damaged(rng, whole), 'damaged')
    if dice>.5 and kind!='mot':
        tree,what = twisted(rng, json.loads(whole))
        data = as_json(rng, tree)
    if dice>.8 and kind=='mot': data,what = whole+rng.choice((b'1,1,nan,0,1,1', b'1,1,0,0,inf,1', b'1e400,1,0,0,1,1', b'0,1,0,0,1,1', b'1,1,0,0,-1,1', b','*9999, b'5,1,1e308,1e308,1e308,1e308', b'9'*5000+b',1,1,1,1,1')), 'an odd line'
    source = written(folder/'frames', {n.removeprefix('frames/'): d for n,d in film_files().items() if n.startswith('frames/')})
    if kind=='beside':
        out = written(folder/'out', {n.removeprefix('out/'): d for n,d in film_files().items() if n.startswith('out/')}|{BOXES: data})
        return Case(f'{kind}, {what}', lambda: recover_film(out, net_of(Recovery), folder/'back'), (out, folder/'back', 'rame '), lambda done: '' if done.frames==FRAMES else str(done), must=what=='plain')
    path = folder/'det.txt'
    path.write_bytes(data)
    def act(): return protect_film(source, read_boxes(path), net_of(Anonymizer), folder/'out', bare='black')
    return Case(f'{kind}, {what}', act, (path, source, 'boxes', 'rame '), lambda done: '' if done.frames+len(done.failed)==FRAMES else str(done), must=what=='plain')

@lru_cache
def video(ending:str)->bytes:
    import av
    codec,pixels = {'.mkv': ('ffv1', 'bgr0'), '.mp4': ('libx264', 'yuv420p'), '.avi': ('mjpeg', 'yuvj420p'), '.webm': ('libvpx', 'yuv420p'), '.ts': ('mpeg2video', 'yuv420p')}[ending]
    with TemporaryDirectory() as tmp:
        with av.open(f'{tmp}/x{ending}', 'w') as to:
            stream = to.add_stream(codec, rate=25)
            (stream.height,stream.width),stream.pix_fmt = (32, 48), pixels
            for k in range(FRAMES): to.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 48, 3), 40*k, np.uint8), format='rgb24')))
            to.mux(stream.encode())
        return Path(f'{tmp}/x{ending}').read_bytes()

def videos(rng, folder)->Case:
    "Videos in several containers, damaged."
    ending,what = rng.choice(('.mkv', '.mp4', '.avi', '.webm', '.ts')), 'plain'
    data = video(ending)
    if rng.random()<.9: data,what = damaged(rng, data), 'damaged'
    if rng.random()<.05: data,what = rng.choice((b'', picture(), archive(), b'ffconcat version 1.0\nfile /etc/passwd\n', b'#EXTM3U\nhttp://127.0.0.1/x\n')), 'something else'
    path,out = folder/f'in{ending}', folder/'out.mkv'
    path.write_bytes(data)
    def act():
        n = Film(path).count
        return protect_film(path, {k: [[1, 1, 20, 30, 1]] for k in range(1, n+1)}, net_of(Anonymizer), out, bare='black')
    def right(done): return '' if what!='plain' or done.frames==FRAMES else str(done)
    return Case(f'{ending}, {what}', act, (path, out, 'rame '), right, must=what=='plain' and ending!='.ts')   # FFmpeg knows no transport stream as short as this one

def sidecars(rng, folder)->Case:
    "What is locked up beside a film, damaged: not one pixel of it may come back."
    files,what = dict(film_files()), 'plain'
    if rng.random()<.9: files['out.exact'],what = damaged(rng, files['out.exact']), 'damaged'
    if files['out.exact']==film_files()['out.exact']: what = 'plain'
    written(folder, files)
    act = partial(open_film, folder/'out', folder/'keys'/'MASTER', folder/'back')
    def right(done):
        if what!='plain': return 'an altered sidecar is opened'
        return '' if all((folder/'back'/f'{n:03}.png').is_file() for n in range(1, FRAMES+1)) else str(done)
    return Case(what, act, (sidecar_of(folder/'out'),), right, must=what=='plain')

KINDS = dict(bundles=bundles, keys=keys, records=records, archives=archives)
if find_spec('cryptography'): KINDS |= dict(sidecars=sidecars, boxes=boxes)
if find_spec('av'): KINDS |= dict(videos=videos)
