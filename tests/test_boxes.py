"Whoever stands in a box is hidden, nobody else is touched, and a file of boxes may be anything."
import json, os, random
from types import SimpleNamespace
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from negative import pair_of
from privreid.boxes import CROWD, FARTHEST, Boxes, boxes_of, boxes_within, closed, doubt, gaps, in_front, painted_film, placed, protect_boxes, protect_frames, read_boxes, recover_boxes, recover_frames, rows_of, shut_for

@pytest.fixture(scope='module')
def pair(): return pair_of()

def noise(h, w, seed=0): return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)

def edges(far=90):
    number = st.floats(-far, far, allow_nan=False)
    return st.tuples(number, number, st.floats(0, far), st.floats(0, far)).map(lambda b: (b[0], b[1], b[0]+b[2], b[1]+b[3]))
sets = st.lists(edges(), max_size=6)
sides = st.tuples(st.integers(1, 60), st.integers(1, 70))

# --- where a box lies

@given(sets, sides, st.floats(0, 1))
def test_a_box_covers_every_pixel_it_touches_and_stays_inside(boxes, size, margin):
    at = placed(rows_of(boxes), size, margin)
    h,w = size
    assert ((at[:,:2]>=0)&(at[:,2:4]<=(w, h))&(at[:,2:4]>at[:,:2])).all()
    covered,touched = shut_for(at, (), size), np.zeros(size, bool)
    for y in range(h):
        for x in range(w): touched[y,x] = any(l<x+1 and x<r and t<y+1 and y<b for l,t,r,b in boxes)   # a pixel is a square
    assert not (touched&~covered).any()
    again = placed(rows_of(at.astype(float)), size)
    assert (again==at).all()

@given(sets, st.integers(1, 50), st.integers(1, 50))
def test_a_larger_margin_hides_more(boxes, h, w):
    rows = rows_of(boxes)
    small,large = (shut_for(placed(rows, (h, w), m), (), (h, w)) for m in (.1, .4))
    assert not (small&~large).any()

@pytest.mark.parametrize('box, at', [((3, 4, 3, 4), (3, 4, 4, 5)), ((3.5, 4.5, 3.5, 4.5), (3, 4, 4, 5)), ((-9, -9, 2, 2), (0, 0, 2, 2)), ((8, 8, 99, 99), (8, 8, 10, 10)),
                                     ((0, 0, 10, 10), (0, 0, 10, 10)), ((-5, -5, 50, 50), (0, 0, 10, 10)), ((9.99, 9.99, 9.999, 9.999), (9, 9, 10, 10)), ((0, 0, 0, 0), (0, 0, 1, 1))])
def test_odd_boxes(box, at): assert placed(rows_of([box]), (10, 10))[0,:4].tolist()==list(at)

@pytest.mark.parametrize('box', [(10, 0, 12, 5), (-5, 0, -1, 5), (0, 10, 5, 11), (10, 10, 10, 10)])
def test_boxes_outside_are_left_out_and_a_frame_of_such_is_refused(box, one_line):
    assert not len(placed(rows_of([box]), (10, 10)))
    with pytest.raises(ValueError, match='another size') as e: boxes_within(rows_of([box]), (10, 10))
    one_line(e.value)
    assert len(boxes_within(rows_of([box, (1, 1, 2, 2)]), (10, 10)))==1 and not len(boxes_within(rows_of([]), (10, 10)))

# --- what comes as boxes

def test_what_detectors_hand_out():
    want = np.array([[1, 2, 3, 4, 7], [0, 0, 5, 5, 9]], float)
    at,tracks = want[:,:4], want[:,4].astype(int)
    for given in (want, want.tolist(), torch.tensor(want), SimpleNamespace(xyxy=at, tracker_id=tracks), SimpleNamespace(xyxy=torch.tensor(at), id=torch.tensor(tracks)), SimpleNamespace(xyxy=at.astype(np.float32), tracker_id=tracks.tolist())):
        assert (rows_of(given)==want).all()
    for given in (at, SimpleNamespace(xyxy=at), SimpleNamespace(xyxy=at, tracker_id=None)): assert (rows_of(given)[:,4]==-1).all()
    for empty in ([], np.empty((0, 4)), SimpleNamespace(xyxy=np.empty((0, 4)), tracker_id=np.array([]))): assert rows_of(empty).shape==(0, 5)

@pytest.mark.parametrize('wrong', [None, 'boxes', 3, [1, 2, 3, 4], [[1, 2, 3]], [[1]*6], [[0, 0, 1, 1, .5]], [[0, 0, 1, 1, -2]], [[0, 0, 1, 1, 2**40]], [[0, 0, np.nan, 1]], [[0, 0, np.inf, 1]],
                                   [[5, 0, 4, 1]], [[0, 5, 1, 4]], [[0, 0, FARTHEST+1, 1]], [[0, 0, 1, 1]]*(CROWD+1), [[0, 0, 10**400, 1]], [['a']*4], [[1, 2, 3, 4], [1]], {'x': 1},
                                   SimpleNamespace(xyxy=None), SimpleNamespace(xyxy=[[0, 0, 1, 1]], tracker_id=[1, 2]), SimpleNamespace(xyxy=[[0, 0, 1, 1]], tracker_id=['a']), SimpleNamespace(xyxy=[[0, 0, 1, 1]], tracker_id=[None])], ids=range(23))
def test_what_are_no_boxes(pair, wrong, one_line):
    with pytest.raises(ValueError) as e: protect_boxes(noise(9, 9), wrong, pair[0])
    one_line(e.value)
    assert len(str(e.value))<300

@pytest.mark.parametrize('wrong', [None, 3, np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8), torch.zeros(3, 4, 4)], ids=range(7))
def test_what_is_no_frame(pair, wrong, one_line):
    with pytest.raises(TypeError) as e: protect_boxes(wrong, [], pair[0])
    one_line(e.value)

# --- protect and recover

@settings(max_examples=60)
@given(st.integers(0, 99), st.lists(edges(60), min_size=1, max_size=5), st.integers(20, 70), st.integers(20, 70), st.randoms())
def test_everything_in_a_box_changes_hands_and_nothing_else_does(pair, seed, boxes, h, w, rnd):
    frame,before = noise(h, w, seed), noise(h, w, seed)
    at = placed(rows_of(boxes), (h, w))
    if not len(at): return
    out = protect_boxes(frame, boxes, pair[0])
    assert (frame==before).all() and out.shape==frame.shape
    shut = shut_for(at, (), (h, w))
    assert (out[~shut]==frame[~shut]).all()
    want = frame.copy()   # the slow way: from the original, once for each box, feet decide
    for l,t,r,b,_ in sorted(at.tolist(), key=lambda a: (a[3], -(a[2]-a[0])*(a[3]-a[1]), a[0], a[1])): want[t:b,l:r] = pair[0].unfit(255-pair[0].fit(frame[t:b,l:r]), (b-t, r-l))
    assert (out==want).all()
    other = boxes[:]; rnd.shuffle(other)
    assert (protect_boxes(frame, other, pair[0])==out).all()   # their order means nothing

@settings(max_examples=40)
@given(st.integers(0, 99), st.lists(edges(60), min_size=1, max_size=5), st.integers(30, 90), st.integers(30, 90))
def test_who_stands_in_front_is_recovered_as_if_alone(pair, seed, boxes, h, w):
    frame,(hides,shows) = noise(h, w, seed), pair
    at = placed(rows_of(boxes), (h, w))
    if not len(at): return
    back = recover_boxes(protect_boxes(frame, boxes, hides), boxes, shows)
    l,t,r,b,_ = at[in_front(at)[-1]]
    alone = recover_boxes(protect_boxes(frame, [[l, t, r, b]], hides), [[l, t, r, b]], shows)
    assert (back[t:b,l:r]==alone[t:b,l:r]).all()
    if b-t>=16 and r-l>=8: assert (back[t:b,l:r]==shows.unfit(hides.fit(frame[t:b,l:r]), (b-t, r-l))).all()   # all that the network was given comes back
    shut = shut_for(at, (), (h, w))
    assert (back[~shut]==frame[~shut]).all()

@given(st.lists(st.tuples(edges(60), st.integers(0, 3)), min_size=1, max_size=6), st.sets(st.integers(0, 3)))
def test_only_those_who_were_asked_for_are_shown(pair, boxes, tracks):
    frame,rows = noise(60, 60), rows_of([(*b, k) for b,k in boxes])
    at = placed(rows, (60, 60))
    if not len(at): return
    safe = protect_boxes(frame, rows, pair[0])
    back = recover_boxes(safe, rows, pair[1], tracks=tracks)
    mine = np.zeros((60, 60), bool)
    for l,t,r,b,k in at:
        if k in tracks: mine[t:b,l:r] = True
    others = shut_for(at, tracks, (60, 60))
    assert (back[others|~mine]==safe[others|~mine]).all()
    if set(at[:,4])<=tracks: assert (back==recover_boxes(safe, rows, pair[1])).all()

def test_frames_together_are_as_one_by_one(pair):
    frames,boxes = painted_film(6, (60, 90), height=32)
    ats = [placed(boxes.at[k+1], f.shape[:2]) for k,f in enumerate(frames)]
    together = protect_frames(frames, ats, pair[0])
    assert all((a==protect_boxes(f, boxes.at[k+1], pair[0])).all() for k,(a,f) in enumerate(zip(together, frames)))
    back = recover_frames(together, ats, pair[1])
    assert all((a==recover_boxes(f, boxes.at[k+1], pair[1])).all() for k,(a,f) in enumerate(zip(back, together)))

def test_the_same_kind_comes_back(pair):
    im = Image.fromarray(noise(40, 30))
    made = protect_boxes(im, [[0, 0, 9, 20]], pair[0])
    assert isinstance(made, Image.Image) and made.size==im.size and (np.asarray(made)==protect_boxes(noise(40, 30), [[0, 0, 9, 20]], pair[0])).all()
    assert (protect_boxes(noise(40, 30), [], pair[0])==noise(40, 30)).all()
    with pytest.raises(ValueError, match='missing'): protect_boxes(noise(40, 30), None, pair[0])

# --- frames that are not let through

def test_what_is_not_known_is_doubted():
    one = [[0, 0, 5, 5, 1]]
    boxes = boxes_of({1: one, 2: [], 3: one, 5: [], 60: [], 90: one, 91: []})
    assert [bool(doubt(boxes, n)) for n in (1, 2, 3, 4, 5, 60, 90, 91, 92)]==[False, True, False, True, False, False, False, False, True]
    assert not doubt(boxes_of([[], [], []]), 2)   # nobody is there at all
    assert doubt(boxes, 60, near=60)

@given(st.dictionaries(st.integers(1, 30), st.lists(st.tuples(edges(), st.integers(-1, 2)).map(lambda b: (*b[0], b[1])), max_size=3), min_size=1), st.integers(0, 8))
def test_closing_gaps_adds_and_takes_nothing(at, most):
    boxes = boxes_of(at)
    more = closed(boxes, most)
    for n,rows in boxes.at.items(): assert (more.at[n][:len(rows)]==rows).all()
    assert sum(map(len, more.at.values()))==sum(map(len, boxes.at.values()))+gaps(boxes, most)
    assert gaps(more, most)==0
    for rows in more.at.values(): rows_of(rows)

def test_a_gap_is_closed_on_a_straight_line():
    boxes = boxes_of({1: [[0, 0, 10, 10, 7]], 5: [[8, 4, 18, 14, 7]], 9: [[0, 0, 1, 1, 8]]})
    assert [closed(boxes, 3).at[n][0,:4].tolist() for n in (2, 3, 4)]==[[2, 1, 12, 11], [4, 2, 14, 12], [6, 3, 16, 13]]
    assert 2 not in closed(boxes, 2).at and gaps(boxes, 3)==3

# --- files

def test_files_of_every_kind(tmp_path):
    want = {1: [[10, 20, 50, 120, 7], [60.5, 20, 90.5, 110, -1]], 3: [[12, 20, 52, 120, 7]]}
    mot = '1,7,10,20,40,100,0.9,-1,-1,-1\n1,-1,60.5,20,30,90,0.0\n\n3,7.0,12,20,40,100\r\n'
    texts = dict(mot=mot, header='frame,id,bb_left,bb_top,bb_width,bb_height,conf\n'+mot, own=json.dumps(dict(frames=want)), bom='\ufeff'+json.dumps(dict(frames=want)),
                 things=json.dumps([dict(frame=n, box=r[:4], track=r[4]) for n,rows in want.items() for r in rows]),
                 coco=json.dumps([dict(frame=n, bbox=[r[0], r[1], r[2]-r[0], r[3]-r[1]], id=r[4], score=.1) for n,rows in want.items() for r in rows]))
    for name,text in texts.items():
        (tmp_path/name).write_text(text)
        found = read_boxes(tmp_path/name)
        assert found.at.keys()==want.keys() and all((found.at[n]==rows).all() for n,rows in want.items()), name
    assert boxes_of(str(tmp_path/'mot')).tracks()==[7] and str(found)=='Boxes: 3 in 2 frames, 1 tracks'
    (tmp_path/'e').write_text('{"frames": {"1": [], "2": []}}')
    assert set(read_boxes(tmp_path/'e').at)=={1, 2}

BAD = ['', '\n\n', 'x', '1,7,10,20,40', '1;7;10;20;40;100', '0,7,1,1,1,1', '-1,7,1,1,1,1', '1.5,7,1,1,1,1', '1e99,7,1,1,1,1', '1,7.5,1,1,1,1', '1,7,nan,1,1,1', '1,7,1,1,-1,1', '1,7,1,1,inf,1', '1,7,1e300,1,1,1',
       'frame\n', '1,7,1,1,1,1\nframe,7,1,1,1,1', '1,7,1,1,1,1\n2', '1,7,1,1,1,1,'+'9'*5000, '\x00', '1,7,1,1,1,1\n\x00\x01', '[', '{', '{}', '[]', 'null', '[1]', '["a"]', '[{}]', '[{"frame": 1}]', '[{"frame": 1, "box": [1, 2]}]',
       '[{"frame": 1, "box": []}]', '[{"frame": 1, "box": [0, 0, 1, 1], "bbox": [0, 0, 1, 1]}]', '[{"frame": 1, "box": [0, 0, 1, 1], "id": 1, "track": 2}]', '[{"frame": 1, "bbox": [0, 0, -1, 1]}]', '[{"frame": 0, "box": [0, 0, 1, 1]}]',
       '[{"frame": 1, "box": [0, 0, 1, "1"]}]', '[{"frame": 1, "box": [0, 0, 1, true]}]', '[{"frame": null, "box": [0, 0, 1, 1]}]', '[{"frame": 1, "box": [5, 0, 1, 1]}]', '{"frames": []}', '{"frames": {}}', '{"frames": {"a": []}}',
       '{"frames": {"1": {}}}', '{"frames": {"1": [[1, 2, 3]]}}', '{"frames": {"1": [[1, 2, 3, 4, 5, 6]]}}', '{"frames": {"1": [], "1": []}}', '{"frames": {"1": [], "01": []}}', '{"frames": {"1": [[0, 0, 1e999, 1]]}}',
       '{"frames": {"1": [[0, 0, NaN, 1]]}}', '{"frames": {"1": [["a", 0, 1, 1]]}}', '{"frames": {"1": [[0, 0, 1, 1, 0.5]]}}', '{"frames": {"1": null}}', '['*10**5, '{"a":'*10**5, '{"frames": {"1": [[0, 0, '+'9'*5000+', 1]]}}', '{"frames": {"1": [[0, 0, '+'9'*400+', 1]]}}']

@pytest.mark.parametrize('text', BAD, ids=range(len(BAD)))
def test_a_bad_file_is_refused_as_a_whole(tmp_path, text, one_line):
    (tmp_path/'b').write_text(text)
    with pytest.raises(ValueError) as e: read_boxes(tmp_path/'b')
    one_line(e.value, tmp_path/'b')
    assert len(str(e.value))<500+len(str(tmp_path))

def test_files_that_are_none(tmp_path, one_line):
    os.mkfifo(tmp_path/'pipe')
    for path in (tmp_path, tmp_path/'nothing', tmp_path/'pipe'):
        with pytest.raises(FileNotFoundError) as e: read_boxes(path)
        one_line(e.value)
    with open(tmp_path/'huge', 'wb') as f: f.truncate(2**40)
    with open(tmp_path/'wide', 'wb') as f: f.write(b'{'); f.truncate(2**26)
    for name in ('huge', 'wide'):
        with pytest.raises(ValueError, match='are the most') as e: read_boxes(tmp_path/name)
        one_line(e.value)

def mangled(rnd:random.Random)->bytes:
    data = bytearray(rnd.choice([b'1,7,10,20,40,100,0.9,-1,-1,-1\n1,-1,60.5,20,30,90,0.0\n3,7,12,20,40,100\n'*3, json.dumps(dict(frames={'1': [[1, 2, 3, 4, 7]], '2': []})).encode(), json.dumps([dict(frame=1, bbox=[1, 2, 3, 4], track=7)]*3).encode()]))
    for _ in range(rnd.randint(1, 6)):
        at = rnd.randrange(len(data)+1)
        match rnd.randrange(4):
            case 0: data[at:at+1] = bytes([rnd.randrange(256)])
            case 1: del data[at:at+rnd.randint(1, 9)]
            case 2: data[at:at] = rnd.choice([b'-', b'e9', b',', b'"', b'}', b']', b'[', b'nan', b'1'*30, b'\0', b'\xff\xfe', b'\n', b'null'])
            case 3: data[at:at] = data[:rnd.randrange(40)]
    return bytes(data)

def hostile(tmp_path, n:int):
    path,refused = tmp_path/'b', 0
    for seed in range(n):
        path.write_bytes(mangled(random.Random(seed)))
        try: found = read_boxes(path)
        except ValueError as e:
            assert '\n' not in str(e) and str(e).isprintable()
            refused += 1
        else:
            for rows in found.at.values(): placed(rows, (50, 50))
    return refused

def test_hostile_files(tmp_path): assert 150<hostile(tmp_path, 300)<300

@pytest.mark.full
def test_ten_thousand_hostile_files(tmp_path): hostile(tmp_path, 10_000)
