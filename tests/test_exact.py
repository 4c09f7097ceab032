"One person, one key: exactly these pixels, nobody else's, and nothing at all from a file that somebody has touched."
import importlib.util, json, os, random, shutil, stat
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from negative import net_of
from privreid.boxes import Boxes, boxes_of, painted_film, placed, protect_boxes, rows_of, shut_for
from privreid.deploy import Anonymizer
from privreid.films import read_frames
from privreid.outlet import encoded
from privreid.video import protect_film
from privreid import locks, sidecar
from privreid.exact import crops_of, grant, log_of, open_film, protect_exact, read_log
from privreid.exactkeys import ExactKey, new_master, read_exact
from privreid.sidecar import EXACT_MAGIC, Sidecar, parts_of, seal_film, sidecar_of

pytestmark = pytest.mark.skipif(not importlib.util.find_spec('cryptography'), reason="encrypts: pip install 'privreid[keys]'")
needs_av = pytest.mark.skipif(not importlib.util.find_spec('av'), reason="reads videos: pip install 'privreid[video]'")

HIDES = net_of(Anonymizer)
SIZE = 60, 90

def folder_of(path, frames):
    path.mkdir(parents=True)
    for k,im in enumerate(frames, 1): (path/f'{k:06}.png').write_bytes(encoded(im))
    return path

def street(tmp, n=4, boxes=None):
    "A folder of frames, protected and sealed."
    frames,at = painted_film(n, SIZE, height=32)
    at = boxes or at
    folder_of(tmp/'in', frames)
    protect_film(tmp/'in', at, HIDES, tmp/'out')
    master = new_master(tmp/'keys'/'MASTER')
    seal_film(tmp/'in', tmp/'out', master)
    return frames, at, master

@pytest.fixture
def sealed(tmp_path): return street(tmp_path)

@pytest.fixture
def cheap(monkeypatch): monkeypatch.setattr(locks, 'COST', dict(n=2**14, r=8, p=1))

def shots(path): return [im for _,im in read_frames(path)]

def alone(at, tracks, size):
    "Pixels that are covered by these tracks only."
    return shut_for(at, (), size)&~shut_for(at, tracks, size)

# --- parts of a frame

boxes5 = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 15), st.integers(1, 15), st.integers(0, 4)).map(lambda b: (b[0], b[1], b[0]+b[2], b[1]+b[3], b[4])), max_size=7)

@given(boxes5)
def test_parts_are_who_covers_a_pixel(boxes):
    at = placed(rows_of(boxes), (25, 25))
    label,sets = parts_of(at, (25, 25))
    for y in range(25):
        for x in range(25):
            over = tuple(sorted({int(k) for l,t,r,b,k in at if l<=x<r and t<=y<b}))
            assert over==(sets[label[y,x]-1] if label[y,x] else ())
    assert len(set(sets))==len(sets) and set(np.unique(label))-{0}==set(range(1, len(sets)+1))

# --- exactly these pixels

@settings(max_examples=12)
@given(st.lists(boxes5.map(lambda b: [x for x in b if x[0]<20 and x[1]<18]), min_size=1, max_size=3), st.sets(st.integers(0, 4), min_size=1), st.integers(0, 99))
def test_a_key_opens_its_own_pixels_and_no_other(tmp_path_factory, film, tracks, seed):
    tmp = tmp_path_factory.mktemp('exact')
    frames = list(np.random.default_rng(seed).integers(0, 256, (len(film), 20, 23, 3), np.uint8))
    folder_of(tmp/'in', frames)
    boxes = boxes_of(film)
    there = set(boxes.tracks())
    protect_film(tmp/'in', boxes, HIDES, tmp/'out', bare='pass')
    master = new_master(tmp/'MASTER')
    seal_film(tmp/'in', tmp/'out', master)
    safe = shots(tmp/'out')
    if tracks&there:
        tracks = tracks&there
        grant(sidecar_of(tmp/'out'), master, tracks, tmp/'KEY')
        open_film(tmp/'out', tmp/'KEY', tmp/'some')
        for n,(raw,s,o) in enumerate(zip(frames, safe, shots(tmp/'some'), strict=True), 1):
            mine = alone(placed(boxes.at[n], (20, 23)), tracks, (20, 23))
            assert (o[mine]==raw[mine]).all() and (o[~mine]==s[~mine]).all()
    open_film(tmp/'out', master, tmp/'all')
    assert all((a==b).all() for a,b in zip(shots(tmp/'all'), frames, strict=True))

@needs_av
@pytest.mark.parametrize('lossy', [None, 20])
def test_a_video(tmp_path, lossy):
    from test_video import save
    frames,boxes = painted_film(6, SIZE, height=32)
    source = save(tmp_path/'in.mkv', frames)
    protect_film(source, boxes, HIDES, tmp_path/'out.mkv', lossy=lossy)
    master = new_master(tmp_path/'MASTER')
    seal_film(source, tmp_path/'out.mkv', master)
    safe = shots(tmp_path/'out.mkv')
    open_film(tmp_path/'out.mkv', master, tmp_path/'back.mkv', tracks=[1, 2])
    assert stat.S_IMODE((tmp_path/'back.mkv').stat().st_mode)==0o600
    for n,(raw,s,o) in enumerate(zip(frames, safe, shots(tmp_path/'back.mkv'), strict=True), 1):
        mine = alone(placed(boxes.at[n], SIZE), {1, 2}, SIZE)
        assert (o[mine]==raw[mine]).all() and (o[~mine]==s[~mine]).all() and mine.any()

def test_overlaps_open_with_all_keys_of_those_who_are_in_them(tmp_path):
    frames = [np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)]
    boxes = boxes_of([[[5, 5, 30, 40, 7], [20, 10, 50, 50, 9]]])
    folder_of(tmp_path/'in', frames)
    protect_film(tmp_path/'in', boxes, HIDES, tmp_path/'out')
    master = new_master(tmp_path/'MASTER')
    seal_film(tmp_path/'in', tmp_path/'out', master)
    safe,both = shots(tmp_path/'out')[0], (slice(10, 40), slice(20, 30))
    for tracks in ([7], [9], [7, 9]):
        grant(sidecar_of(tmp_path/'out'), master, tracks, tmp_path/f'{tracks}')
        open_film(tmp_path/'out', tmp_path/f'{tracks}', tmp_path/f'out {tracks}')
        assert (shots(tmp_path/f'out {tracks}')[0][both]==(frames[0] if len(tracks)==2 else safe)[both]).all()
    crop = {t: next(crops_of(sidecar_of(tmp_path/'out'), tmp_path/f'[{t}]', t)) for t in (7, 9)}
    n,box,im = crop[7]
    assert (n, box)==(1, (5, 5, 30, 40)) and (im[:5]==frames[0][5:10,5:30]).all() and not im[5:,15:].any()

def test_nothing_of_the_original_is_legible(sealed, tmp_path):
    frames,boxes,_ = sealed
    whole = sidecar_of(tmp_path/'out').read_bytes()
    for n,im in enumerate(frames, 1):
        for l,t,r,b,_ in placed(boxes.at[n], SIZE):
            assert encoded(im[t:b,l:r])[60:80] not in whole and im[(t+b)//2,l:r].tobytes()[:24] not in whole
    assert b'PNG' not in whole

def test_two_sidecars_of_the_same_share_nothing(sealed, tmp_path):
    _,_,master = sealed
    a,b = Sidecar(sidecar_of(tmp_path/'out')), Sidecar(seal_film(tmp_path/'in', tmp_path/'out', master, tmp_path/'again.exact'))
    assert a.facts['film']!=b.facts['film'] and not set(a.facts['keys'].values())&set(b.facts['keys'].values())
    grant(a.path, master, [1], tmp_path/'KEY')
    with pytest.raises(ValueError, match='belongs to film'): open_film(tmp_path/'out', tmp_path/'KEY', tmp_path/'no', sidecar=b.path)

# --- refused, and nothing written

def refused(tmp_path, key, **options):
    "Nothing is opened, nothing is written, nothing is in the log."
    log = log_of(options.get('sidecar') or sidecar_of(tmp_path/'out'))
    before = log.read_bytes() if log.exists() else b''
    with pytest.raises((ValueError, OSError)) as e: open_film(tmp_path/'out', key, tmp_path/'no', **options)
    assert '\n' not in str(e.value) and str(e.value).isprintable() and not (tmp_path/'no').exists()
    assert (log.read_bytes() if log.exists() else b'')==before
    return str(e.value)

@pytest.mark.parametrize('who', ['master', 'track'])
def test_one_bit_anywhere(sealed, tmp_path, who):
    "Each kind of byte: magic, lengths, head, locked keys, lines, parts of mine and of others, end, signature."
    _,_,master = sealed
    side = sidecar_of(tmp_path/'out')
    grant(side, master, [1], tmp_path/'KEY')
    key,good = master if who=='master' else read_exact(tmp_path/'KEY'), side.read_bytes()
    s = Sidecar(side)
    places = {0, len(EXACT_MAGIC)-1, len(EXACT_MAGIC), len(EXACT_MAGIC)+3, s.begin-1, s.begin, s.begin+3, s.begin+4, s.begin+30, len(good)-1, len(good)-64, len(good)-65, len(good)-68, len(good)-100}
    places |= {good.index(word)+len(word)+3 for word in (b'"film"', b'"master"', b'"protected"', b'"frames"', b'"keys"', b'"1"', b'"2"', b'"boxes"', b'"parts"', b'"frame"', b'"size"')}
    places |= {random.Random(k).randrange(len(good)) for k in range(30)}
    for at in sorted(places):
        for bit in (1, 128):
            side.write_bytes(good[:at]+bytes([good[at]^bit])+good[at+1:])
            refused(tmp_path, key)
    for n in (0, 1, len(EXACT_MAGIC), len(EXACT_MAGIC)+2, s.begin-5, s.begin, s.begin+9, len(good)//2, len(good)-65, len(good)-64, len(good)-1):
        side.write_bytes(good[:n]); refused(tmp_path, key)
    for more in (good+b'x', good+good, good[:-64]+bytes(64), good[:-68]+bytes(4)+good[-64:]+good[-64:]): side.write_bytes(more); refused(tmp_path, key)
    side.write_bytes(good)
    open_film(tmp_path/'out', key, tmp_path/'yes')

def pieces(whole:bytes):
    "A sidecar cut at its seams: start, frames (line and parts), end."
    at = len(EXACT_MAGIC)
    at += 4+int.from_bytes(whole[at:at+4], 'little')
    head,frames = whole[:at], []
    while n := int.from_bytes(whole[at:at+4], 'little'):
        line = json.loads(whole[at+4:at+4+n])
        end = at+4+n+sum(line['parts'])
        frames.append((whole[at:at+4+n], [whole[end-sum(line['parts'][k:]):end-sum(line['parts'][k+1:])] for k in range(len(line['parts']))]))
        at = end
    return head, frames, whole[at:]

def joined(head, frames, end): return head+b''.join(line+b''.join(parts) for line,parts in frames)+end

def test_swapped_pieces(sealed, tmp_path):
    _,_,master = sealed
    side = sidecar_of(tmp_path/'out')
    good = side.read_bytes()
    head,frames,end = pieces(good)
    assert joined(head, frames, end)==good
    (l0,p0),(l1,p1),*rest = frames
    for wrong in ([(l1,p1),(l0,p0),*rest], [(l0,p0),*rest], [(l0,p0),(l0,p0),*rest], [(l0,p1),(l1,p0),*rest], [(l0,p0[::-1]),(l1,p1),*rest]):
        side.write_bytes(joined(head, wrong, end)); refused(tmp_path, master)
    other = seal_film(tmp_path/'in', tmp_path/'out', master, tmp_path/'again.exact').read_bytes()
    head2,frames2,end2 = pieces(other)
    for wrong in (joined(head2, frames, end), joined(head, frames2, end), joined(head, frames, end2), joined(head, [frames2[0], *frames[1:]], end)): side.write_bytes(wrong); refused(tmp_path, master)

def test_without_the_signature_the_encryption_still_notices(sealed, tmp_path, monkeypatch):
    "Whoever has the signing key, or a library whose signatures are broken, cannot move a crop either."
    _,_,master = sealed
    side = sidecar_of(tmp_path/'out')
    good = side.read_bytes()
    head,frames,end = pieces(good)
    monkeypatch.setattr(Sidecar, 'prove', lambda self, key: None)
    (l0,p0),(l1,p1),*rest = frames
    line = json.loads(l0[4:])
    def relined(**changes):
        text = json.dumps(line|changes).encode()
        return len(text).to_bytes(4, 'little')+text
    moved = [[l+1, t, r+1, b, k] for l,t,r,b,k in line['boxes']]
    others = [[l, t, r, b, {1: 2, 2: 1}.get(k, k)] for l,t,r,b,k in line['boxes']]
    for wrong in ([(relined(boxes=moved), p0), (l1,p1), *rest], [(relined(boxes=others), p0), (l1,p1), *rest], [(relined(frame=99), p0), (l1,p1), *rest], [(l0,p0[::-1]),(l1,p1),*rest], [(l0,p0),*rest], [(l0,p0),(l0,p0),*rest]):
        side.write_bytes(joined(head, wrong, end)); refused(tmp_path, master)
    side.write_bytes(joined(head.replace(b'"frames": 4', b'"frames": 3'), frames, end)); refused(tmp_path, master)
    side.write_bytes(good)
    open_film(tmp_path/'out', master, tmp_path/'yes')

def test_another_film_beside_it(sealed, tmp_path):
    frames,boxes,master = sealed
    protect_film(tmp_path/'in', boxes, HIDES, tmp_path/'other', margin=.1)
    shutil.copy(sidecar_of(tmp_path/'out'), sidecar_of(tmp_path/'other'))
    with pytest.raises(ValueError, match='not the film that'): open_film(tmp_path/'other', master, tmp_path/'no')
    picture = next((tmp_path/'out').glob('*.png'))
    picture.write_bytes(encoded(frames[0]))
    assert 'is not what was written' in refused(tmp_path, master)
    open_film(tmp_path/'out', master, tmp_path/'yes', force=True)
    picture.write_bytes(encoded(frames[0][:30]))
    with pytest.raises(ValueError, match='1 NOT|scaled'): print(open_film(tmp_path/'out', master, tmp_path/'scaled', force=True)); 

def test_wrong_keys(sealed, tmp_path):
    _,_,master = sealed
    side = sidecar_of(tmp_path/'out')
    other = new_master(tmp_path/'OTHER')
    assert 'was locked under master key' in refused(tmp_path, other)
    assert 'no track 12' in refused(tmp_path, master, tracks=[12])
    grant(side, master, [1], tmp_path/'KEY')
    assert 'does not open track 2' in refused(tmp_path, tmp_path/'KEY', tracks=[1, 2])
    facts = json.loads((tmp_path/'KEY').read_text())
    for wrong in (facts|dict(keys={'1': '0'*64}), facts|dict(keys={'2': facts['keys']['1']}), facts|dict(public='0'*64), facts|dict(master='0'*32), facts|dict(film='0'*32), facts|dict(keys={'9': '0'*64}), facts|dict(keys={})|dict(public=other.public.public_bytes_raw().hex())):
        (tmp_path/'bad').write_text(json.dumps(wrong)); refused(tmp_path, tmp_path/'bad')
    with pytest.raises(ValueError, match='takes the master key'): seal_film(tmp_path/'in', tmp_path/'out', read_exact(tmp_path/'KEY'), force=True)
    with pytest.raises(ValueError, match='does not open track 2'): grant(side, tmp_path/'KEY', [2], tmp_path/'more')
    with pytest.raises(FileExistsError): grant(side, master, [1], tmp_path/'KEY')
    assert not (tmp_path/'more').exists()

def test_a_granted_key_holds_nothing_of_the_master(sealed, tmp_path):
    _,_,master = sealed
    side = Sidecar(sidecar_of(tmp_path/'out'))
    text = grant(side.path, master, [1], tmp_path/'KEY').read_text()
    secrets = [master.master.hex(), *(k.hex() for t,k in side.keys(master).items() if t!=1)]
    assert not [s for s in secrets if s in text or s[:16] in text] and side.keys(master)[1].hex() in text
    assert stat.S_IMODE((tmp_path/'KEY').stat().st_mode)==stat.S_IMODE((tmp_path/'keys'/'MASTER').stat().st_mode)==0o600
    for s in secrets+[side.keys(master)[1].hex()]: assert bytes.fromhex(s) not in side.path.read_bytes() and s.encode() not in side.path.read_bytes()

@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '{}', '{"format": 1, "what": "master key"}', '{"format": 1, "what": "master key", "key": "0"}', '{"format": 2, "what": "master key", "key": "%s"}' % ('0'*64), '{"format": 1, "what": "master key", "key": "%s", "more": 1}' % ('0'*64),
                                  '['*10**5, '{"format": 1, "what": "key of tracks", "film": "%s", "master": "%s", "public": "%s", "keys": {"a": "%s"}}' % ('0'*32, '0'*32, '0'*64, '0'*64), '{"format": 1, "what": "key of tracks", "film": "%s", "master": "%s", "public": "%s", "keys": {"01": "%s"}}' % ('0'*32, '0'*32, '0'*64, '0'*64)], ids=range(12))
def test_files_that_are_no_keys(tmp_path, text, one_line):
    (tmp_path/'k').write_text(text)
    with pytest.raises(ValueError) as e: read_exact(tmp_path/'k')
    one_line(e.value, tmp_path/'k')

def test_a_passphrase(tmp_path, cheap):
    master = new_master(tmp_path/'M', 'correct horse')
    assert master.master.hex().encode() not in (tmp_path/'M').read_bytes()
    assert read_exact(tmp_path/'M', 'correct horse')==read_exact(tmp_path/'M', lambda: 'correct horse')==master
    with pytest.raises(ValueError, match='another passphrase'): read_exact(tmp_path/'M', 'battery')
    with pytest.raises(ValueError, match='is encrypted'): read_exact(tmp_path/'M')

def hostile(tmp_path, n):
    _,_,master = street(tmp_path)
    side = sidecar_of(tmp_path/'out')
    good = side.read_bytes()
    for seed in range(n):
        rnd,data = random.Random(seed), bytearray(good)
        for _ in range(rnd.randint(1, 5)):
            at = rnd.randrange(len(data)+1)
            match rnd.randrange(4):
                case 0: data[at:at+1] = bytes([rnd.randrange(256)])
                case 1: del data[at:at+rnd.randint(1, 500)]
                case 2: data[at:at] = bytes(rnd.randrange(256) for _ in range(rnd.randint(1, 50)))
                case 3: data[len(EXACT_MAGIC):len(EXACT_MAGIC)+4] = rnd.choice([b'\xff'*4, bytes(4), b'\0\0\0\1'])
        if bytes(data)==good: continue
        side.write_bytes(data)
        refused(tmp_path, master)

def test_hostile_sidecars(tmp_path): hostile(tmp_path, 100)

@pytest.mark.full
def test_many_hostile_sidecars(tmp_path): hostile(tmp_path, 1000)

def test_what_cannot_be_sealed(tmp_path, one_line):
    frames,boxes = painted_film(3, SIZE, height=32)
    folder_of(tmp_path/'in', frames)
    nameless = Boxes({n: np.column_stack([r[:,:4], np.full(len(r), -1.)]) for n,r in boxes.at.items()})
    protect_film(tmp_path/'in', nameless, HIDES, tmp_path/'out')
    master = new_master(tmp_path/'MASTER')
    with pytest.raises(ValueError, match='a key belongs to a track') as e: seal_film(tmp_path/'in', tmp_path/'out', master)
    one_line(e.value)
    protect_film(tmp_path/'in', boxes, HIDES, tmp_path/'out2')
    (tmp_path/'in'/'000002.png').unlink()
    with pytest.raises(ValueError, match='no frame 2'): seal_film(tmp_path/'in', tmp_path/'out2', master)
    with pytest.raises(ValueError, match='is missing'): seal_film(tmp_path/'in', tmp_path/'in', master)
    assert not list(tmp_path.glob('*.exact')) and not list(tmp_path.glob('.*'))

# --- the log

def test_who_opened_what(sealed, tmp_path, one_line):
    _,_,master = sealed
    side = sidecar_of(tmp_path/'out')
    grant(side, master, [2], tmp_path/'KEY')
    open_film(tmp_path/'out', tmp_path/'KEY', tmp_path/'two')
    list(crops_of(side, master, 3))
    log = log_of(side)
    assert [(e['what'], e['tracks']) for e in read_log(log)]==[('granted', [2]), ('opened', [2]), ('opened', [3])]
    assert stat.S_IMODE(log.stat().st_mode)==0o600
    lines = log.read_text().splitlines(keepends=True)
    for wrong in ([lines[0], lines[2]], lines[1:], [lines[0].replace('[2]', '[1]'), *lines[1:]], [*lines[:2], lines[2][:-1]], [lines[1], lines[0], lines[2]], [*lines, 'x\n'], [*lines, lines[-1]]):
        log.write_text(''.join(wrong))
        with pytest.raises(ValueError, match='was altered') as e: read_log(log)
        one_line(e.value)
        with pytest.raises(ValueError, match='was altered'): open_film(tmp_path/'out', master, tmp_path/'no')
    log.write_text(''.join(lines))
    assert not (tmp_path/'no').exists() and len(read_log(log))==3

def test_where_it_cannot_be_written_down_nothing_is_opened(sealed, tmp_path):
    _,_,master = sealed
    log_of(sidecar_of(tmp_path/'out')).symlink_to(tmp_path/'elsewhere')
    with pytest.raises(ValueError, match='is a link'): open_film(tmp_path/'out', master, tmp_path/'no')
    assert not (tmp_path/'no').exists() and not (tmp_path/'elsewhere').exists()

def test_protect_and_lock_up_in_one_call(tmp_path):
    from privreid.exact import protect_exact
    frames,boxes = painted_film(3, SIZE, height=32)
    folder_of(tmp_path/'in', frames)
    done = protect_exact(tmp_path/'in', boxes, HIDES, tmp_path/'out', tmp_path/'MASTER')
    assert 'The master key is new' in str(done)
    before = sidecar_of(tmp_path/'out').read_bytes()
    again = protect_exact(tmp_path/'in', boxes, HIDES, tmp_path/'out', tmp_path/'MASTER')
    assert 'is new' not in str(again) and sidecar_of(tmp_path/'out').read_bytes()==before
    with pytest.raises(ValueError, match='was locked under'): protect_exact(tmp_path/'in', boxes, HIDES, tmp_path/'out', tmp_path/'MASTER2')
    grant(sidecar_of(tmp_path/'out'), tmp_path/'MASTER', [1], tmp_path/'KEY')
    with pytest.raises(ValueError, match='takes the master key'): protect_exact(tmp_path/'in', boxes, HIDES, tmp_path/'out2', tmp_path/'KEY')
    with pytest.raises(ValueError, match='a key belongs to a track'): protect_exact(tmp_path/'in', {n: r[:,:4] for n,r in boxes.at.items()}, HIDES, tmp_path/'out2', tmp_path/'M3')
    assert not (tmp_path/'out2').exists() and not (tmp_path/'M3').exists()
    open_film(tmp_path/'out', tmp_path/'MASTER', tmp_path/'back')
    assert all((a==b).all() for a,b in zip(shots(tmp_path/'back'), frames, strict=True))

def test_a_key_lies_apart_from_the_film(tmp_path, one_line):
    "In the folder that is given away, among the originals, or where the film or its sidecar is to be, it is refused before anything is written."
    from privreid.exact import protect_exact
    frames,boxes = painted_film(2, SIZE, height=32)
    folder_of(tmp_path/'in', frames)
    out = tmp_path/'out'
    for key in (tmp_path/'in'/'M', out/'M', out, sidecar_of(out)):
        with pytest.raises(ValueError, match='apart from the film') as e: protect_exact(tmp_path/'in', boxes, HIDES, out, key)
        one_line(e.value)
        assert sorted(p.name for p in tmp_path.iterdir())==['in'] and not (tmp_path/'in'/'M').exists()
    protect_exact(tmp_path/'in', boxes, HIDES, out, tmp_path/'M')
    for to in (out/'KEY', sidecar_of(out)):
        with pytest.raises(ValueError, match='apart from the film'): grant(sidecar_of(out), tmp_path/'M', [1], to)
    assert not (out/'KEY').exists()

# --- what is broken, and crowds

def test_a_broken_frame_leaves_the_others_locked_up(tmp_path):
    frames,at = painted_film(6, SIZE, height=32)
    folder_of(tmp_path/'in', frames)
    good = (tmp_path/'in'/'000003.png').read_bytes()
    (tmp_path/'in'/'000003.png').write_bytes(good[:200])
    def go(): return protect_exact(tmp_path/'in', at, HIDES, tmp_path/'out', tmp_path/'keys'/'MASTER')
    done = go()
    assert list(done.failed)==['000003.png'] and 'Locked up' in str(done)
    assert Sidecar(sidecar_of(tmp_path/'out')).facts['frames']==sum(bool(len(at.at[n])) for n in (1, 2, 4, 5, 6))
    open_film(tmp_path/'out', tmp_path/'keys'/'MASTER', tmp_path/'back')
    back = dict(read_frames(tmp_path/'back'))
    assert set(back)=={1, 2, 4, 5, 6} and all((im==frames[n-1]).all() for n,im in back.items())
    assert list(go().failed)==['000003.png']   # once more: nothing has changed
    (tmp_path/'in'/'000003.png').write_bytes(good)
    assert not go().failed
    open_film(tmp_path/'out', tmp_path/'keys'/'MASTER', tmp_path/'all')
    assert all((a==b).all() for a,b in zip(shots(tmp_path/'all'), frames, strict=True))

def crowd(n, size, seed=0, side=12):
    dice = random.Random(seed)
    return [[x := dice.randrange(size[1]-side), y := dice.randrange(size[0]-side), x+side, y+side, k] for k in range(n)]

def test_a_crowd_takes_no_more_memory_than_its_frame(tmp_path):
    import tracemalloc
    size = 400, 600
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    folder_of(tmp_path/'in', [frame])
    boxes = boxes_of([crowd(600, size)])
    protect_film(tmp_path/'in', boxes, HIDES, tmp_path/'out')
    master = new_master(tmp_path/'keys'/'MASTER')
    tracemalloc.start()
    try:
        seal_film(tmp_path/'in', tmp_path/'out', master)
        open_film(tmp_path/'out', master, tmp_path/'back')
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert (shots(tmp_path/'back')[0]==frame).all()
    assert peak<30*frame.nbytes, f'{peak/1e6:.0f} MB'   # 600 parts and more, each as large as the frame, would be 430 MB

def test_too_great_a_crowd_is_refused_before_anything_is_written(tmp_path, monkeypatch, one_line):
    monkeypatch.setattr(sidecar, 'MOST_PARTS', 100)
    folder_of(tmp_path/'in', [np.zeros((200, 200, 3), np.uint8)])
    with pytest.raises(ValueError) as e: protect_exact(tmp_path/'in', boxes_of([crowd(150, (200, 200), side=40)]), HIDES, tmp_path/'out', tmp_path/'keys'/'MASTER')
    one_line(e.value, 'too many', '100')
    assert not (tmp_path/'out').exists() and not sidecar_of(tmp_path/'out').exists()
