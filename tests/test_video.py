"A film goes in, a film comes out: whole, at its pace, upright, and with nobody in the open."
import importlib.util, json, os, random, resource, shutil, stat, subprocess, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from negative import Negative, net_of, pair_of
from privreid import films
from privreid.boxes import Boxes, boxes_of, painted_film, placed, protect_boxes, recover_boxes, shut_for
from privreid.deploy import Anonymizer, Recovery
from privreid.filmed import agreed_boxes, BOXES, beside, facts_of
from privreid.films import Film, frame_numbers, is_video, read_frames
from privreid.outlet import encoded
from privreid.tree import RECORD, read_record
from privreid.video import protect_film, recover_film

needs_av = pytest.mark.skipif(not importlib.util.find_spec('av'), reason="reads videos: pip install 'privreid[video]'")

@pytest.fixture(scope='module')
def pair(): return pair_of()

SIZE = 60, 90
def scene(n=12): return painted_film(n, SIZE, height=32)

def save(path, frames, rate=25, codec='ffv1', pixels='bgr0', times=None, sound=False, options=None):
    "A video as somebody else would write it."
    import av
    with av.open(str(path), 'w') as to:
        stream = to.add_stream(codec, rate=rate, options=options or {})
        (stream.height, stream.width), stream.pix_fmt = frames[0].shape[:2], pixels
        voice = to.add_stream('aac', rate=8000) if sound else None
        to.metadata['title'] = 'who was where'
        for k,im in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(im, format='rgb24')
            if times: stream.codec_context.time_base = Fraction(1, 1000); frame.time_base,frame.pts = Fraction(1, 1000), times[k]
            to.mux(stream.encode(frame))
        if voice:
            for k in range(8):
                part = av.AudioFrame.from_ndarray((np.sin(np.arange(1024)/5)*9000).astype(np.float32)[None]/32768, format='fltp', layout='mono')
                part.sample_rate,part.pts = 8000, k*1024
                to.mux(voice.encode(part))
            to.mux(voice.encode())
        to.mux(stream.encode())
    return path

@pytest.fixture
def film(tmp_path):
    frames,boxes = scene()
    return save(tmp_path/'in.mkv', frames), frames, boxes

def folder_of(path, frames, name='{:06}.png'):
    path.mkdir()
    for k,im in enumerate(frames, 1): (path/name.format(k)).write_bytes(encoded(im))
    return path

def shots(path): return [im for _,im in read_frames(path)]
def tree(folder)->dict[str,bytes]: return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}
def nothing_left(folder): return not [p for p in folder.rglob('*') if p.name.endswith('.tmp') or p.name.startswith('no')]

# --- there and back

@needs_av
@pytest.mark.parametrize('ending', ['.mkv', '.mp4'])
def test_a_film_is_what_its_frames_are_one_by_one(pair, film, tmp_path, ending):
    source,frames,boxes = film
    done = protect_film(source, boxes, pair[0], tmp_path/f'out{ending}', verify=True)
    assert done.frames==12 and done.boxes==sum(map(len, boxes.at.values())) and 'every frame is as it was meant' in str(done)
    safe = shots(tmp_path/f'out{ending}')
    assert len(safe)==12 and all((a==protect_boxes(f, boxes.at[n], pair[0])).all() for n,(a,f) in enumerate(zip(safe, frames), 1))
    recover_film(tmp_path/f'out{ending}', pair[1], tmp_path/'back.mkv')
    assert all((a==recover_boxes(f, boxes.at[n], pair[1])).all() for n,(a,f) in enumerate(zip(shots(tmp_path/'back.mkv'), safe), 1))
    recover_film(tmp_path/f'out{ending}', pair[1], tmp_path/'one.mkv', tracks=[2])
    assert all((a==recover_boxes(f, boxes.at[n], pair[1], tracks=[2])).all() for n,(a,f) in enumerate(zip(shots(tmp_path/'one.mkv'), safe), 1))
    assert stat.S_IMODE((tmp_path/'back.mkv').stat().st_mode)==0o600
    assert not list(tmp_path.glob('.*'))

@needs_av
@settings(max_examples=12)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 5), st.sampled_from(['.mkv', '.mp4']), st.sampled_from([Fraction(25), Fraction(30000, 1001), Fraction(10), Fraction(60)]), st.integers(0, 99))
def test_every_size_and_pace(pair, tmp_path_factory, h, w, n, ending, rate, seed):
    tmp = tmp_path_factory.mktemp('film')
    frames = list(np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), np.uint8))
    source = save(tmp/'in.mkv', frames, rate)
    boxes = boxes_of([[[1, 1, w-.5, h-.5]]]*n)
    protect_film(source, boxes, pair[0], tmp/f'out{ending}')
    assert all((a==protect_boxes(f, [[1, 1, w-.5, h-.5]], pair[0])).all() for a,f in zip(shots(tmp/f'out{ending}'), frames, strict=True))
    assert abs(float(Film(tmp/f'out{ending}').rate)/float(rate)-1)<.01 or n<3

@needs_av
def test_times_and_sound_and_notes(pair, tmp_path):
    import av
    frames,boxes = scene()
    times = [0, 40, 90, 100, 170, 220, 300, 333, 390, 410, 500, 1000]   # of no fixed rate
    source = save(tmp_path/'in.mkv', frames, times=times, sound=True)
    told = protect_film(source, boxes, pair[0], tmp_path/'out.mkv')
    assert 'sound was left out' in str(told)
    protect_film(source, boxes, pair[0], tmp_path/'loud.mkv', sound=True)
    def look(path):
        with av.open(str(path)) as c:
            streams = sorted(s.type for s in c.streams)
            ms = [round(float(f.pts*f.time_base)*1000) for f in c.decode(video=0)]
        with av.open(str(path)) as c: sounds = [bytes(p) for p in c.demux(audio=0) if p.size] if 'audio' in streams else []
        with av.open(str(path)) as c: return streams, ms, sounds, dict(c.metadata)
    before,silent,loud = (look(p) for p in (source, tmp_path/'out.mkv', tmp_path/'loud.mkv'))
    assert silent[0]==['video'] and loud[0]==['audio', 'video'] and before[2]
    assert silent[1]==loud[1]==before[1]==times
    assert loud[2]==before[2]
    assert 'title' in {k.lower() for k in before[3]}
    for seen in (silent, loud): assert 'who was where' not in str(seen[3])
    assert b'who was where' not in (tmp_path/'loud.mkv').read_bytes()

@needs_av
@pytest.mark.parametrize('turn, matrix', [(1, (0, -1, 1, 0)), (-1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1))])
def test_a_film_on_its_side_is_brought_upright(pair, tmp_path, turn, matrix):
    "The note in an MP4 is written by hand, by its standard: x' = a x + c y, y' = b x + d y, with y down."
    frames,boxes = scene(4)
    lying = [np.ascontiguousarray(np.rot90(f, -turn)) for f in frames]
    data = save(tmp_path/'in.mp4', lying, codec='libx264rgb', pixels='rgb24', options=dict(qp='0')).read_bytes()
    def numbers(a, b, c, d): return b''.join(int(v*s).to_bytes(4, 'big', signed=True) for v,s in zip((a, b, 0, c, d, 0, 0, 0, 1), (2**16, 2**16, 2**30)*3))
    at = data.index(b'tkhd')
    where = data.index(numbers(1, 0, 0, 1), at)
    (tmp_path/'in.mp4').write_bytes(data[:where]+numbers(*matrix)+data[where+36:])
    assert Film(tmp_path/'in.mp4').size==SIZE
    assert all((a==f).all() for a,f in zip(shots(tmp_path/'in.mp4'), frames, strict=True))
    protect_film(tmp_path/'in.mp4', boxes, pair[0], tmp_path/'out.mkv')
    assert all((a==protect_boxes(f, boxes.at[n], pair[0])).all() for n,(a,f) in enumerate(zip(shots(tmp_path/'out.mkv'), frames, strict=True), 1))

@needs_av
def test_a_lossy_file_says_what_it_costs(pair, film, tmp_path):
    source,frames,boxes = film
    said = []
    for q in (5, 40):
        done = protect_film(source, boxes, pair[0], tmp_path/f'{q}.mp4', lossy=q)
        note, = [n for n in done.notes if n.startswith('Lossy')]
        said.append(float(note.split(' dB')[0].split()[-1]))
        errors = []
        for n,(a,f) in enumerate(zip(shots(tmp_path/f'{q}.mp4'), frames), 1):   # measured again, on all frames
            mask = shut_for(placed(boxes.at[n], SIZE), (), SIZE)
            errors.append(((a.astype(float)-protect_boxes(f, boxes.at[n], pair[0]))[mask]**2).mean())
        assert abs(10*np.log10(255**2/np.mean(errors))-said[-1])<1.5
    assert said[0]>said[1]+8 and (tmp_path/'5.mp4').stat().st_size>(tmp_path/'40.mp4').stat().st_size
    recover_film(tmp_path/'5.mp4', pair[1], tmp_path/'back.mkv')
    for wrong in (-1, 52, 1.5):
        with pytest.raises(ValueError): protect_film(source, boxes, pair[0], tmp_path/'no.mp4', lossy=wrong)

# --- nobody is let through

def wrong_boxes():
    boxes = scene()[1].at
    without = lambda *out: Boxes({n: r for n,r in boxes.items() if n not in out})
    return {'first missing': (without(1), 'frame 1 is not in the list'), 'last missing': (without(12), 'frame 12 is not'), 'some missing': (without(4, 5, 9), '3 of 12 frames'), 'none at all': (Boxes({}), '12 of 12'),
            'empty between others': (Boxes(boxes|{6: boxes[6][:0]}), 'frame 6 has no box'), 'of a longer film': (Boxes(boxes|{13: boxes[1]}), 'frame 13'), 'counted from 0': (Boxes({n-1: r for n,r in boxes.items()}), 'frame 0'),
            'of a larger film': (Boxes({n: np.column_stack([r[:,:4]*[50]*4+200, r[:,4]]) for n,r in boxes.items()}), 'another size')}

@needs_av
@pytest.mark.parametrize('kind', wrong_boxes())
@pytest.mark.parametrize('folder', [False, True])
def test_frames_whose_boxes_are_not_known_stop_everything(pair, film, tmp_path, kind, folder, one_line):
    source,frames,_ = film
    boxes,why = wrong_boxes()[kind]
    if folder: source = folder_of(tmp_path/'frames', frames)
    out = tmp_path/('no' if folder else 'no.mkv')
    if folder and kind=='of a larger film':
        done = protect_film(source, boxes, pair[0], out)
        assert done.frames==0 and len(done.failed)==12 and not list(out.glob('*.png'))
        return
    with pytest.raises(ValueError, match=why) as e: protect_film(source, boxes, pair[0], out)
    one_line(e.value)
    assert nothing_left(tmp_path)

@needs_av
def test_what_is_said_of_such_frames_is_done(pair, film, tmp_path):
    source,frames,boxes = film
    some = Boxes({n: r for n,r in boxes.at.items() if n not in (4, 5)})
    black = protect_film(source, some, pair[0], tmp_path/'black.mkv', bare='black')
    passed = protect_film(source, some, pair[0], tmp_path/'pass.mkv', bare='pass')
    filled = protect_film(source, some, pair[0], tmp_path/'fill.mkv', fill=2)
    assert '2 frames' in str(black) and 'LET THROUGH' in str(passed) and 'LET THROUGH' not in str(filled)
    for n,(b,p,f,raw) in enumerate(zip(shots(tmp_path/'black.mkv'), shots(tmp_path/'pass.mkv'), shots(tmp_path/'fill.mkv'), frames), 1):
        want = protect_boxes(raw, boxes.at[n], pair[0])
        assert (b==(0 if n in (4, 5) else want)).all() and (p==(raw if n in (4, 5) else want)).all()
        shut = shut_for(placed(boxes.at[n], SIZE), (), SIZE)
        if n in (4, 5): assert (f!=raw)[shut].mean()>.7
        else: assert (f==want).all()
    recover_film(tmp_path/'black.mkv', pair[1], tmp_path/'back.mkv')
    assert not shots(tmp_path/'back.mkv')[3].any()
    missed = Boxes(boxes.at|{6: boxes.at[6][1:]})
    assert 'somebody has no box' in str(protect_film(source, missed, pair[0], tmp_path/'gap.mkv'))
    with pytest.raises(ValueError, match='unknown'): protect_film(source, boxes, pair[0], tmp_path/'no.mkv', bare='let')

@needs_av
def test_a_film_that_is_cut_or_grows_is_not_let_through(pair, film, tmp_path, monkeypatch, one_line):
    source,frames,boxes = film
    longer,shorter = save(tmp_path/'longer.mkv', frames+frames[:2]), save(tmp_path/'shorter.mkv', frames[:-2])
    with pytest.raises(ValueError, match='frame 13 is not in the list'): protect_film(longer, boxes, pair[0], tmp_path/'no.mkv')
    with pytest.raises(ValueError, match='speak of frame 11'): protect_film(shorter, boxes, pair[0], tmp_path/'no.mkv')
    real = Film.__init__
    def lies(by):   # packets say something else than decoding
        def init(self, path): real(self, path); self.count += by
        monkeypatch.setattr(Film, '__init__', init)
    lies(-1)
    with pytest.raises(ValueError): protect_film(source, Boxes({n: r for n,r in boxes.at.items() if n<12}), pair[0], tmp_path/'no.mkv')
    lies(1)
    with pytest.raises(ValueError, match='12 frames and says that it has 13') as e: protect_film(source, Boxes(boxes.at|{13: boxes.at[12]}), pair[0], tmp_path/'no.mkv')
    one_line(e.value)
    assert nothing_left(tmp_path)

@needs_av
def test_packets_that_hold_no_frame(pair, film, tmp_path, monkeypatch):
    "The boxes end where the frames end, though the file speaks of more packets: then frames are counted by decoding."
    real = Film.__init__
    def init(self, path): real(self, path); self.count += 3
    monkeypatch.setattr(Film, '__init__', init)
    assert protect_film(film[0], film[2], pair[0], tmp_path/'out.mkv').frames==12

@needs_av
def test_a_network_that_fails_leaves_nothing(pair, film, tmp_path):
    class Breaks(Negative):
        calls = 0
        def forward(self, x):
            Breaks.calls += 1
            if Breaks.calls>1: raise RuntimeError('no')
            return -x
    with pytest.raises(RuntimeError): protect_film(film[0], film[2], Anonymizer(Breaks(), '0'*32, 'w/o U', torch.device('cpu'), 8), tmp_path/'no.mkv')
    assert nothing_left(tmp_path)

# --- which file goes with which

@needs_av
def test_the_right_key_the_right_boxes_the_right_film(pair, film, tmp_path, one_line):
    source,frames,boxes = film
    hides,shows = pair
    protect_film(source, boxes, hides, tmp_path/'out.mkv')
    other = net_of(Recovery, '1'*32)
    with pytest.raises(ValueError, match='cannot bring anybody back') as e: recover_film(tmp_path/'out.mkv', other, tmp_path/'no.mkv')
    one_line(e.value)
    with pytest.raises(ValueError, match='no track 9'): recover_film(tmp_path/'out.mkv', shows, tmp_path/'no.mkv', tracks=[9])
    facts = beside(tmp_path/'out.mkv')
    text = facts.read_text()
    facts.rename(tmp_path/'kept.json')
    with pytest.raises(FileNotFoundError, match='name them with --boxes'): recover_film(tmp_path/'out.mkv', shows, tmp_path/'no.mkv')
    with pytest.raises(ValueError, match='Which pair'): recover_film(tmp_path/'out.mkv', shows, tmp_path/'no.mkv', boxes=tmp_path/'kept.json')
    recover_film(tmp_path/'out.mkv', shows, tmp_path/'a.mkv', boxes=tmp_path/'kept.json', force=True)
    facts.write_text(text)
    recover_film(tmp_path/'out.mkv', shows, tmp_path/'b.mkv')
    assert all((a==b).all() for a,b in zip(shots(tmp_path/'a.mkv'), shots(tmp_path/'b.mkv'), strict=True))
    whole = (tmp_path/'out.mkv').read_bytes()
    (tmp_path/'out.mkv').write_bytes(whole[:-1]+bytes([whole[-1]^1]))
    with pytest.raises(ValueError, match='altered, or coded anew'): recover_film(tmp_path/'out.mkv', shows, tmp_path/'no.mkv')
    (tmp_path/'out.mkv').write_bytes(whole)
    for wrong in ('', '{}', text[:-9], text.replace('"format": 1', '"format": 2'), text.replace('"margin": 0.0', '"margin": 7'), text.replace('"count"', '"cuont"'), '['*10**5):
        facts.write_text(wrong)
        with pytest.raises(ValueError) as e: recover_film(tmp_path/'out.mkv', shows, tmp_path/'no.mkv')
        one_line(e.value)
    assert nothing_left(tmp_path)

@needs_av
def test_margin_goes_with_the_film(pair, film, tmp_path):
    source,frames,boxes = film
    protect_film(source, boxes, pair[0], tmp_path/'out.mkv', margin=.2)
    recover_film(tmp_path/'out.mkv', pair[1], tmp_path/'back.mkv')
    for n,(s,b,f) in enumerate(zip(shots(tmp_path/'out.mkv'), shots(tmp_path/'back.mkv'), frames), 1):
        assert (s==protect_boxes(f, boxes.at[n], pair[0], .2)).all() and (b==recover_boxes(s, boxes.at[n], pair[1], .2)).all()

@needs_av
def test_where_nothing_is_written(pair, film, tmp_path, one_line):
    source,_,boxes = film
    (tmp_path/'there.mkv').write_bytes(b'mine'); (tmp_path/'link.mkv').symlink_to(tmp_path/'there.mkv'); (tmp_path/'folder.mkv').mkdir()
    for out,why in (('there.mkv', '--force'), ('link.mkv', 'is a link'), ('folder.mkv', 'is a folder'), ('in.mkv', 'the film itself'), ('out.gif', 'name it so'), ('out', 'name it so')):
        with pytest.raises((ValueError, FileExistsError), match=why) as e: protect_film(source, boxes, pair[0], tmp_path/out)
        one_line(e.value)
    assert (tmp_path/'there.mkv').read_bytes()==b'mine'
    protect_film(source, boxes, pair[0], tmp_path/'there.mkv', force=True)
    with pytest.raises(ValueError, match='protected twice'): protect_film(tmp_path/'there.mkv', boxes, pair[0], tmp_path/'no.mkv')
    with pytest.raises(FileNotFoundError): protect_film(tmp_path/'nothing.mp4', boxes, pair[0], tmp_path/'no.mkv')
    with pytest.raises((ValueError, FileNotFoundError)): protect_film(tmp_path/'folder.mkv', boxes, pair[0], tmp_path/'no')
    assert nothing_left(tmp_path)

# --- hostile videos

def hostile(tmp_path, pair, n:int)->int:
    frames,boxes = scene(3)
    good = []
    for name,codec,pixels in (('g.mkv', 'ffv1', 'bgr0'), ('g.mp4', 'libx264', 'yuv420p'), ('g.avi', 'mpeg4', 'yuv420p')): good.append(save(tmp_path/name, frames, codec=codec, pixels=pixels).read_bytes())
    outside,refused = tmp_path/'outside', 0
    outside.mkdir()
    for seed in range(n):
        rnd = random.Random(seed)
        data = bytearray(rnd.choice(good))
        for _ in range(rnd.randint(1, 8)):
            at = rnd.randrange(len(data))
            match rnd.randrange(3):
                case 0: data[at] = rnd.randrange(256)
                case 1: del data[at:at+rnd.randint(1, 400)]
                case 2: data[at:at] = bytes(rnd.randrange(256) for _ in range(rnd.randint(1, 40)))
            if not data: data = bytearray(b'x')
        path = tmp_path/f'x{rnd.choice([".mp4", ".mkv", ".avi"])}'
        path.write_bytes(data)
        out = outside/'no.mkv'
        try: protect_film(path, boxes, pair[0], out, force=True)
        except (ValueError, OSError) as e:
            assert '\n' not in str(e) and str(e).isprintable() and 'no.mkv cannot be read' not in str(e)
            assert not list(outside.iterdir())
            refused += 1
        else:
            assert all(len(i) for i in shots(out))
            for p in outside.iterdir(): p.unlink()
        path.unlink()
    return refused

@needs_av
def test_notes_that_are_no_text(tmp_path):
    "A title of wrong bytes costs nobody the film."
    path = save(tmp_path/'in.mkv', scene(3)[0])
    whole = path.read_bytes()
    assert b'who was where' in whole
    path.write_bytes(whole.replace(b'who was where', b'\xff'*13))
    assert len(shots(path))==3

@needs_av
@pytest.mark.parametrize('name,codec,own,foreign', [('x.avi', 'mpeg4', b'FMP4', b'ZZZZ'), ('x.mp4', 'libx264', b'avc1', b'zzzz'), ('x.mkv', 'ffv1', b'V_FFV1', b'V_ZZZZ')])
def test_pictures_without_a_decoder(tmp_path, pair, one_line, name, codec, own, foreign):
    frames,boxes = scene(3)
    path = save(tmp_path/name, frames, codec=codec, pixels='bgr0' if codec=='ffv1' else 'yuv420p')
    assert own in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(own, foreign))
    with pytest.raises(ValueError, match='decoder') as e: protect_film(path, boxes, pair[0], tmp_path/'no.mkv')
    one_line(e.value, name)

@needs_av
def test_sound_without_a_decoder(tmp_path, pair, one_line):
    frames,boxes = scene()
    path = save(tmp_path/'in.mkv', frames, sound=True)
    codec = Film(path).sounds[0]
    own = next(k for k in (b'A_PCM/INT/LIT', b'A_AAC', b'A_FLAC', b'A_OPUS', b'A_MPEG/L3', b'A_AC3') if k in path.read_bytes())
    path.write_bytes(path.read_bytes().replace(own, b'A_'+b'Z'*(len(own)-2)))
    assert Film(path).sounds!=[codec]
    assert 'sound was left out' in str(protect_film(path, boxes, pair[0], tmp_path/'still.mkv'))
    with pytest.raises(ValueError, match='does not fit') as e: protect_film(path, boxes, pair[0], tmp_path/'loud.mkv', sound=True)
    one_line(e.value, 'in.mkv')

@needs_av
def test_hostile_videos(tmp_path, pair): assert hostile(tmp_path, pair, 40)>10

@needs_av
@pytest.mark.full
def test_many_hostile_videos(tmp_path, pair): hostile(tmp_path, pair, 300)

@needs_av
def test_no_other_file_is_opened(pair, film, tmp_path):
    "Lists of other files, and of addresses, that FFmpeg would follow."
    source,_,boxes = film
    for text in ('#EXTM3U\n#EXTINF:1,\nin.mkv\n#EXT-X-ENDLIST\n', "ffconcat version 1.0\nfile 'in.mkv'\n", 'concat:in.mkv|in.mkv', '#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n', 'v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n'):
        (tmp_path/'list.mp4').write_text(text)
        with pytest.raises(ValueError, match='cannot be read as a video'): protect_film(tmp_path/'list.mp4', boxes, pair[0], tmp_path/'no.mkv')
    os.mkfifo(tmp_path/'pipe.mp4')
    with pytest.raises(FileNotFoundError): protect_film(tmp_path/'pipe.mp4', boxes, pair[0], tmp_path/'no.mkv')

def test_without_av_there_is_one_sentence(pair, tmp_path, monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, 'av', None)
    (tmp_path/'x.mp4').write_bytes(b'x')
    with pytest.raises(ValueError, match=r'privreid\[video\]') as e: protect_film(tmp_path/'x.mp4', scene()[1], pair[0], tmp_path/'no.mkv')
    one_line(e.value)

# --- memory

GROWTH = '''
import resource, sys, numpy as np, torch
sys.path.insert(0, sys.argv[1])
from test_video import Negative, Anonymizer, Boxes, protect_film
import av
def long(path, n):
    with av.open(path, 'w') as to:
        stream = to.add_stream('libx264', rate=25, options=dict(preset='ultrafast')); stream.height,stream.width,stream.pix_fmt = 240, 320, 'yuv420p'
        for k in range(n): to.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((240, 320, 3), k%256, np.uint8), format='rgb24')))
        to.mux(stream.encode())
hides = Anonymizer(Negative(), '0'*32, 'w/o U', torch.device('cpu'))
peaks = []
for n in (100, int(sys.argv[3])):
    long(f'{sys.argv[2]}/{n}.mp4', n)
    protect_film(f'{sys.argv[2]}/{n}.mp4', Boxes({k: np.array([[10., 10, 60, 100, 1]]) for k in range(1, n+1)}), hides, f'{sys.argv[2]}/{n}.mkv')
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10)
print(peaks[1]-peaks[0])
'''
@needs_av
@pytest.mark.full
@pytest.mark.skipif(sys.platform!='linux', reason='counts memory as Linux does')
def test_memory_does_not_grow_with_the_film(tmp_path):
    "1,500 frames are 345 MB; 1,400 more than the first 100 take no more memory than a few frames."
    p = subprocess.run([sys.executable, '-c', GROWTH, Path(__file__).parent, tmp_path, '1500'], capture_output=True, text=True)
    assert p.returncode==0, p.stderr[-2000:]
    assert float(p.stdout)<40, p.stdout

# --- folders of frames

def test_a_folder_of_frames_there_and_back(pair, tmp_path):
    frames,boxes = scene()
    src,before = folder_of(tmp_path/'frames', frames), None
    before = tree(src)
    done = protect_film(src, boxes, pair[0], tmp_path/'out')
    assert done.frames==12 and not done.failed and tree(src)==before
    assert set(tree(tmp_path/'out'))==set(before)|{RECORD, BOXES}
    assert all((a==protect_boxes(f, boxes.at[n], pair[0])).all() for n,(a,f) in enumerate(zip(shots(tmp_path/'out'), frames, strict=True), 1))
    recover_film(tmp_path/'out', pair[1], tmp_path/'back')
    assert all((a==recover_boxes(f, boxes.at[n], pair[1])).all() for n,(a,f) in enumerate(zip(shots(tmp_path/'back'), shots(tmp_path/'out'), strict=True), 1))
    assert all(stat.S_IMODE(p.stat().st_mode)==(0o700 if p.is_dir() else 0o600) for p in (tmp_path/'back').rglob('*'))
    with pytest.raises(ValueError, match='protected twice'): protect_film(tmp_path/'out', boxes, pair[0], tmp_path/'no')
    other = net_of(Recovery, '1'*32)
    with pytest.raises(ValueError, match='cannot bring'): recover_film(tmp_path/'out', other, tmp_path/'no')
    assert not (tmp_path/'no').exists()

def test_a_folder_goes_on_and_gives_the_same(pair, tmp_path, monkeypatch):
    frames,boxes = scene(20)
    src = folder_of(tmp_path/'frames', frames)
    protect_film(src, boxes, pair[0], tmp_path/'whole')
    class Dies(Negative):
        calls = 0
        def forward(self, x):
            Dies.calls += 1
            if Dies.calls==4: raise KeyboardInterrupt
            return -x
    with pytest.raises(KeyboardInterrupt): protect_film(src, boxes, Anonymizer(Dies(), '0'*32, 'w/o U', torch.device('cpu'), 8), tmp_path/'out')
    with pytest.raises(FileExistsError, match='another command'): protect_film(src, boxes, pair[0], tmp_path/'out', margin=.1)   # other boxes, another job
    protect_film(src, boxes, pair[0], tmp_path/'out')
    assert tree(tmp_path/'out')==tree(tmp_path/'whole')

def test_a_broken_frame_is_named_and_not_written(pair, tmp_path):
    frames,boxes = scene()
    src = folder_of(tmp_path/'frames', frames)
    (src/'000004.png').write_bytes(b'nothing')
    done = protect_film(src, boxes, pair[0], tmp_path/'out')
    assert list(done.failed)==['000004.png'] and done.frames==11 and '1 NOT done' in str(done) and not (tmp_path/'out'/'000004.png').exists()
    recover_film(tmp_path/'out', pair[1], tmp_path/'back')
    assert all((a==recover_boxes(protect_boxes(frames[n-1], boxes.at[n], pair[0]), boxes.at[n], pair[1])).all() for n,a in read_frames(tmp_path/'back'))   # none has moved

@pytest.mark.parametrize('names, want', [(['3.png', '1.png', '10.png'], {1: '1.png', 3: '3.png', 10: '10.png'}), (['cam2_f7.jpg'], {7: 'cam2_f7.jpg'}), (['b.png', 'a.png'], {1: 'a.png', 2: 'b.png'}), (['x000012_left.png'], {12: 'x000012_left.png'})])
def test_numbers_of_frames(names, want): assert frame_numbers(names)==want

def test_numbers_that_cannot_be(one_line):
    for names,lost in ((['a/1.png', 'b/1.png'], 0), (['01.png', '1.png'], 0), (['a.png'], 1), (['1.png', '10.png', 'cover.png'], 0)):
        with pytest.raises(ValueError) as e: frame_numbers(names, lost)
        one_line(e.value)

def test_videos_are_known_by_their_names():
    assert is_video('a/B.MP4') and is_video(Path('x.mkv')) and not is_video('x.png') and not is_video('folder')

# --- the command

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run folder with two networks of no particular value."
    from dataclasses import asdict
    from privreid.arms import Arm
    from privreid.records import save_arm
    from privreid.folder import write_json
    from privreid.config import preset
    from privreid.training import agw_of
    from privreid.pix2pix import UNetGenerator
    folder,cfg = tmp_path_factory.mktemp('film')/'run', preset('demo', ngf=4)
    write_json(asdict(cfg)|dict(run=dict(arms=['w/o U'], identities=9)), folder/'config.json')
    save_arm(Arm('w/o U', agw_of(cfg, 9), UNetGenerator(cfg.size, 4), UNetGenerator(cfg.size, 4)), folder)
    return folder

def say(capsys, *words)->tuple[int,str]:
    from privreid.cli import main
    code = main([*map(str, words)])
    seen = capsys.readouterr()
    return code, seen.out+seen.err

@needs_av
def test_the_command(run, tmp_path, capsys):
    frames,boxes = scene(4)
    source = save(tmp_path/'in.mkv', frames)
    (tmp_path/'det.txt').write_text(''.join(f'{n},{r[4]:.0f},{r[0]},{r[1]},{r[2]-r[0]},{r[3]-r[1]},1\n' for n,rows in boxes.at.items() for r in rows))
    a = 'protect', source, '--boxes', tmp_path/'det.txt', '--with', run, '--device', 'cpu'
    code,text = say(capsys, *a, '--out', tmp_path/'out.mkv', '--exact', tmp_path/'keys'/'MASTER', '--verify')
    assert code==0 and '4 frames' in text and 'as it was meant' in text and 'master key is new' in text, text
    code,text = say(capsys, 'recover', tmp_path/'out.mkv', '--key', run, '--out', tmp_path/'back.mkv', '--device', 'cpu')
    assert code==0 and len(shots(tmp_path/'back.mkv'))==4, text
    code,text = say(capsys, 'recover', tmp_path/'out.mkv', '--key', run, '--track', 1, 2, '--out', tmp_path/'two.mp4', '--device', 'cpu')
    assert code==0, text
    code,text = say(capsys, 'recover', tmp_path/'out.mkv', '--exact', tmp_path/'keys'/'MASTER', '--out', tmp_path/'all.mkv')
    assert code==0 and all((x==y).all() for x,y in zip(shots(tmp_path/'all.mkv'), frames, strict=True)), text
    code,text = say(capsys, 'recover', tmp_path/'out.mkv', '--exact', tmp_path/'keys'/'MASTER', '--track', 1, '--grant', '--out', tmp_path/'KEY')
    assert code==0 and (tmp_path/'KEY').is_file(), text
    code,text = say(capsys, 'recover', tmp_path/'out.mkv', '--exact', tmp_path/'KEY', '--out', tmp_path/'one.mkv')
    assert code==0, text
    folder_of(tmp_path/'frames', frames)
    code,text = say(capsys, 'protect', tmp_path/'frames', '--boxes', tmp_path/'det.txt', '--with', run, '--device', 'cpu', '--out', tmp_path/'out')
    assert code==0, text
    assert say(capsys, 'recover', tmp_path/'out', '--key', run, '--out', tmp_path/'back', '--device', 'cpu')[0]==0 and len(shots(tmp_path/'back'))==4
    for words in (['protect', source, '--with', run, '--out', tmp_path/'no.mkv'], [*a[:4], '--out', tmp_path/'no.mkv'], [*a, '--out', tmp_path/'no.mkv', '--size', 'network'], [*a, '--out', tmp_path/'no.mkv', '--bare', 'x'], [*a, '--out', tmp_path/'no'],
                  ['recover', tmp_path/'out.mkv', '--out', tmp_path/'no.mkv'], ['recover', tmp_path/'out.mkv', '--grant', '--out', tmp_path/'no'], ['recover', tmp_path/'out.mkv', '--exact', tmp_path/'KEY', '--track', 2, '--out', tmp_path/'no.mkv'],
                  ['recover', tmp_path/'out.mkv', '--exact', tmp_path/'keys'/'MASTER', '--grant', '--out', tmp_path/'no'], ['recover', tmp_path/'frames', '--out', tmp_path/'no']):
        code,text = say(capsys, *words)
        assert code==2 and text.count('\n')==1 and text.startswith('privreid: '), (words, text)
    assert nothing_left(tmp_path)

def test_filling_vouches_for_those_it_fills_only(one_line):
    "Track 1 has a gap that is filled, track 2 ends before it: where person 2 is in frame 2 nobody has said."
    one,two = [0, 0, 4, 4, 1], [4, 4, 8, 8, 2]
    with pytest.raises(ValueError) as e: agreed_boxes({1: [one, two], 3: [one]}, [1, 2, 3], 'refuse', 1)
    one_line(e.value, 'frame 2')
    boxes,black,_ = agreed_boxes({1: [one, two], 3: [one]}, [1, 2, 3], 'black', 1)
    assert black=={2}
    boxes,black,_ = agreed_boxes({1: [one, two], 3: [one, two]}, [1, 2, 3], 'refuse', 1)
    assert not black and len(boxes.at[2])==2

def test_boxes_without_end_are_refused(monkeypatch, one_line):
    monkeypatch.setattr('privreid.filmed.MOST', 10)
    with pytest.raises(ValueError) as e: agreed_boxes({1: [[0, 0, 4, 4, 1]], 20: [[0, 0, 4, 4, 1]]}, range(1, 21), 'refuse', 30)
    one_line(e.value, '10')

@needs_av
@pytest.mark.parametrize('ending, codec, pixels', [('.mkv', 'ffv1', 'bgr0'), ('.mp4', 'libx264rgb', 'rgb24')])
def test_frames_that_are_too_large_are_not_even_decoded(tmp_path, monkeypatch, one_line, ending, codec, pixels):
    source = save(tmp_path/f'in{ending}', scene(3)[0], codec=codec, pixels=pixels)
    Film(source)
    monkeypatch.setattr(films, 'PIXELS', 60*90-1)
    monkeypatch.setattr(Film, '_upright', lambda *_: pytest.fail('it was decoded'))
    with pytest.raises(ValueError) as e: Film(source)
    one_line(e.value, source, '90 x 60')

@needs_av
def test_a_film_that_is_larger_than_it_says_is_not_decoded(tmp_path, monkeypatch, one_line):
    "What stands in the file's head is not believed: the decoder has the limit, too."
    source = save(tmp_path/'in.mp4', scene(3)[0], codec='libx264rgb', pixels='rgb24')
    monkeypatch.setattr(films, 'PIXELS', 2000)
    monkeypatch.setattr(Film, '_fits', lambda *_: None)
    monkeypatch.setattr(Film, '_upright', lambda *_: pytest.fail('it was decoded'))
    with pytest.raises(ValueError) as e: Film(source)
    one_line(e.value, source)
