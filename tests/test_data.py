"Data: the same pictures everywhere, splits and batches that keep their promises, messages of one line."
import os, shutil, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
import privreid.data as D
from privreid.data import (PARTS, PKSampler, ReidData, Split, SyntheticPedestrians, augment, augment_at_once, choose_queries, draw_augmentation,
                           read_data, save_data, show_pictures, split_validation, to_float, to_uint8)
from privreid.files import atomic
from privreid.pictures import read_image

SMALL = dict(train_ids=5, test_ids=2, distractors=3, cameras=2, per_camera=3, size=(64,32))

def same(a, b):
    "Two data sets, tensor for tensor and name for name."
    assert a.name==b.name
    for k in PARTS:
        for f in ('images', 'pids', 'cams'):
            x,y = getattr(getattr(a, k), f), getattr(getattr(b, k), f)
            assert x.dtype==y.dtype and torch.equal(x, y), (k, f)
        assert getattr(a, k).names==getattr(b, k).names, k

# --- synthetic pedestrians

DIGEST = '''
import hashlib, sys, torch
from privreid.data import PARTS, SyntheticPedestrians
def digest(**recipe):
    data,h = SyntheticPedestrians(**recipe).draw(), hashlib.sha256()
    for k in PARTS:
        s = getattr(data, k)
        for t in (s.images, s.pids, s.cams): h.update(t.numpy().tobytes())
        h.update(repr(s.names).encode())
    return h.hexdigest()
'''

def test_same_pixels_in_another_process(tmp_path):
    ns = {}; exec(DIGEST, ns)
    here = ns['digest'](**SMALL)
    env = os.environ|dict(PYTHONHASHSEED='4711', OMP_NUM_THREADS='1', PYTHONPATH=str(Path(D.__file__).parents[1]))
    code = DIGEST+f'torch.manual_seed(99); print(digest(**{SMALL!r}))'
    there = subprocess.run([sys.executable, '-c', code], env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert there==here!=ns['digest'](**SMALL|dict(seed=1))

def test_a_person_is_the_same_whatever_counts_are_asked_for():
    def pictures(**counts):
        data = SyntheticPedestrians(**SMALL|counts).draw()
        return {n: im for k in ('train', 'val_query', 'val_gallery') for n,im in zip(getattr(data, k).names, getattr(data, k).images)}
    few,many = pictures(), pictures(train_ids=9, test_ids=1, distractors=0, cameras=3, per_camera=4)
    assert len(few)==5*2*3 and few.keys()<many.keys()
    for name,im in few.items(): assert torch.equal(im, many[name]), name

def test_a_picture_does_not_depend_on_its_batch():
    s,rows = SyntheticPedestrians(size=(64,32)), [(p,p%3,p%2) for p in range(1, 36)]     # more than one batch of 32
    together = s.split(rows).images
    for i in (0, 17, 31, 34): assert torch.equal(s.split([rows[i]]).images[0], together[i])
    assert torch.equal(s.split(rows[::-1]).images.flip(0), together)
    assert len({im.numpy().tobytes() for im in together})==len(rows)

@pytest.mark.parametrize('recipe', [SMALL, SMALL|dict(distractors=0), SMALL|dict(cameras=1)], ids=['small', 'no distractors', 'one camera'])
def test_cached_is_drawn(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'new'/'cache'))
    s = SyntheticPedestrians(**recipe)
    drawn,first = s.draw(), s.load()
    def no(self): raise AssertionError('drawn again')
    monkeypatch.setattr(SyntheticPedestrians, 'draw', no)
    same(first, drawn); same(s.load(), drawn)
    assert len(list((tmp_path/'new'/'cache').iterdir()))==1

def test_another_recipe_is_another_file(monkeypatch, tmp_path):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path))
    base = SyntheticPedestrians(**SMALL).load()
    for other in (dict(seed=1), dict(size=(32,32)), dict(per_camera=2)): SyntheticPedestrians(**SMALL|other).load()
    monkeypatch.setattr(D, 'DRAWING', -1)                                # the painter changed
    SyntheticPedestrians(**SMALL).load()
    assert len(list(tmp_path.iterdir()))==5
    assert not torch.equal(SyntheticPedestrians(**SMALL|dict(seed=1)).load().gallery.images, base.gallery.images)

def test_atomic_leaves_nothing_behind(tmp_path):
    path = tmp_path/'deep'/'file'
    with pytest.raises(KeyError):
        with atomic(path) as tmp: tmp.write_text('half'); raise KeyError
    assert list(path.parent.iterdir())==[]
    with atomic(path) as tmp:
        tmp.write_text('old')
        assert not path.exists() and tmp.parent==path.parent             # the same file system: the move is one step
    with pytest.raises(KeyError):
        with atomic(path) as tmp: tmp.write_text('half'); raise KeyError
    assert path.read_text()=='old' and list(path.parent.iterdir())==[path]

def test_a_crash_while_caching_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path))
    def crash(tensors, path, metadata): Path(path).write_bytes(b'half'); raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(D, 'save_file', crash)
        with pytest.raises(KeyboardInterrupt): SyntheticPedestrians(**SMALL).load()
    assert list(tmp_path.iterdir())==[]
    same(SyntheticPedestrians(**SMALL).load(), SyntheticPedestrians(**SMALL).draw())

def test_cache_that_is_a_file_only_warns(monkeypatch, tmp_path, one_line):
    (tmp_path/'file').write_text('in the way')
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'file'))
    with pytest.warns(UserWarning) as w: data = SyntheticPedestrians(**SMALL).load()
    assert len(w)==1
    one_line(w[0].message, tmp_path/'file', 'PRIVREID_CACHE')
    same(data, SyntheticPedestrians(**SMALL).draw())

@pytest.mark.skipif(os.name!='posix', reason='needs Unix permissions')
def test_read_only_cache_only_warns(monkeypatch, one_line):
    "Here the folder is there and the write itself fails."
    cache = Path(tempfile.mkdtemp(prefix='privreid-read-only-')); cache.chmod(0o555)
    monkeypatch.setenv('PRIVREID_CACHE', str(cache))
    drawn,root = SyntheticPedestrians(**SMALL).draw(), os.geteuid()==0
    try:
        if root: os.seteuid(65534)                                       # root may write anywhere
        with pytest.warns(UserWarning) as w: data = SyntheticPedestrians(**SMALL).load()
    finally:
        if root: os.seteuid(0)
        cache.chmod(0o755); shutil.rmtree(cache)
    one_line(w[0].message, cache, 'PRIVREID_CACHE')
    same(data, drawn)

# --- splits

def fake_split(people): # people: pid -> cameras of its images
    rows = [(p, c) for p,cams in people.items() for c in cams]
    rows = [rows[i] for i in np.random.default_rng(len(rows)).permutation(len(rows))]
    images = torch.arange(len(rows)).view(-1,1,1,1).expand(-1,3,1,1).to(torch.uint8)
    return Split(images, torch.tensor([p for p,_ in rows]), torch.tensor([c for _,c in rows]), [f'{i}' for i in range(len(rows))])

folders = st.dictionaries(st.integers(1, 999), st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=2, max_size=15)

@given(folders, st.integers(0, 99))
def test_split_validation(people, seed):
    whole = fake_split(people)
    train,query,gallery = parts = split_validation(whole, seed)
    ids = [set(s.pids.tolist()) for s in parts]
    assert not ids[0]&(ids[1]|ids[2]) and ids[1]<=ids[2]
    held = len(ids[2])
    assert abs(held-len(people)/5)<=.5 or held==1
    assert sorted(int(n) for s in parts for n in s.names)==list(range(len(whole)))       # every image once
    for s in parts:
        for im,pid,cam,name in zip(s.images, s.pids, s.cams, s.names):                   # the columns stay together
            assert (im==int(name)%256).all() and pid==whole.pids[int(name)] and cam==whole.cams[int(name)]
    for pid,cam in zip(query.pids, query.cams): assert ((gallery.pids==pid)&(gallery.cams!=cam)).any()
    for pid in ids[1]: assert (query.pids==pid).sum()<=round(len(people[pid])/5)
    assert [s.names for s in split_validation(whole, seed)]==[s.names for s in parts]

@given(st.integers(2, 4), st.integers(2, 4), st.integers(5, 12), st.integers(0, 9))
def test_one_image_in_five_becomes_a_query(cameras, per_camera, n, seed):
    "With two images under each of several cameras nothing stands in the way of 4:1."
    whole = fake_split({p: [c for c in range(cameras) for _ in range(per_camera)] for p in range(1, n+1)})
    _,query,gallery = split_validation(whole, seed)
    assert len(query)==round(n/5)*round(cameras*per_camera/5) and len(query)+len(gallery)==round(n/5)*cameras*per_camera

def test_a_validation_without_queries_is_told(one_line):
    for people in ({p: [1]*10 for p in range(1, 11)}, {p: [1,2] for p in range(1, 11)}):     # one camera; two images, of which a fifth is none
        with pytest.warns(UserWarning) as w: _,query,gallery = split_validation(fake_split(people))
        assert len(w)==1 and len(query)==0 and len(gallery)==2*len(people[1])
        one_line(w[0].message, 'no query', '2 of 10')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(split_validation(fake_split({p: [1,1,2,2,2] for p in range(1, 11)}))[1])

def test_validation_depends_on_the_seed():
    whole = fake_split({p: [1,1,1,2,2,2] for p in range(1, 31)})
    assert len({tuple(split_validation(whole, s)[2].pids.unique().tolist()) for s in range(5)})==5

@settings(max_examples=300)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=8), st.integers(0, 5))
def test_choose_queries(cams, n):
    ask = choose_queries(cams, n)
    assert len(ask)==len(set(ask))<=n
    rest = [c for i,c in enumerate(cams) if i not in ask]
    for q in ask: assert any(c!=cams[q] for c in rest)
    if n and len(set(cams))>1: assert ask                                # whoever was seen by two cameras can be asked for

def test_an_unlucky_choice_is_made_again():
    "Nine in ten were seen by one camera only: whoever can be asked for is chosen, whatever the seed."
    whole = fake_split({p: [1]*6 for p in range(1, 10)}|{10: [1,1,1,2,2,2]})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for seed in range(20):
            _,query,gallery = split_validation(whole, seed)
            assert query.pids.tolist()==[10] and len(gallery.pids.unique())==2
    lucky = fake_split({p: [1,1,1,2,2,2] for p in range(1, 11)})         # and where chance does well, it is left alone
    order = np.random.default_rng((3, 5)).permutation(np.arange(1, 11))
    assert set(split_validation(lucky, 3)[2].pids.tolist())==set(order[:2].tolist())

def test_cameras_in_any_form():
    "Tensors of one number each are all different to a dictionary."
    for cams in (np.array([1,1,2]), torch.tensor([1,1,2]), torch.tensor([1,1,2]).byte(), (1,1,2)): assert choose_queries(cams, 1)==choose_queries([1,1,2], 1)==[0]

four = fake_split({1: [1,2], 7: [1,3]})

@pytest.mark.parametrize('index, places', [
    (2, [2]), (-1, [3]), (np.int64(1), [1]), (torch.tensor(1), [1]), (slice(None, 2), [0,1]), (slice(None, None, -1), [3,2,1,0]), (slice(9, 12), []), ([3,-4], [3,0]), ((0,1), [0,1]), ([], []),
    (np.array([2,2]), [2,2]), (np.array([True,False,False,True]), [0,3]), ([False,True,False,False], [1]), (torch.tensor([True]*4), [0,1,2,3]), (torch.tensor([1,0], dtype=torch.int32), [1,0]), (torch.tensor([], dtype=torch.long), [])], ids=str)
def test_a_split_is_taken_apart_like_a_list(index, places):
    some = four[index]
    assert some.names==[four.names[i] for i in places]
    for k in ('images', 'pids', 'cams'): assert torch.equal(getattr(some, k), getattr(four, k)[places]), k
    assert some.size==four.size

@pytest.mark.parametrize('index, error, told', [
    (4, IndexError, '4 images has none at 4'), (-5, IndexError, 'none at -5'), ([0,9], IndexError, 'none at 9'), ([True,False], IndexError, 'a mask'), (1.5, TypeError, '1.5'), ('a', TypeError, "'a'"), ([[0,1]], TypeError, 'whole numbers'), ([.5], TypeError, '0.5'), (None, TypeError, 'None')], ids=str)
def test_places_that_a_split_has_not(index, error, told, one_line):
    with pytest.raises(error) as e: four[index]
    one_line(e.value)
    assert told.lower() in str(e.value).lower()

def test_a_split_is_gone_through_image_by_image():
    ones = list(four)
    assert [len(o) for o in ones]==[1]*4 and [o.names[0] for o in ones]==four.names
    assert torch.equal(torch.cat([o.images for o in ones]), four.images) and [int(o.pids) for o in ones]==four.pids.tolist()
    assert len(repr(four))<=100 and '\n' not in repr(four) and len({four, four[:2]})==2

images = torch.zeros(2, 3, 4, 2, dtype=torch.uint8)

@pytest.mark.parametrize('parts, told', [
    ((images.float(), [1,2], [1,1], ['a','b']), 'float32'), ((images[0], [1,2], [1,1], ['a','b']), '(3, 4, 2)'), ((images[:,:1], [1,2], [1,1], ['a','b']), '(2, 1, 4, 2)'), ((None, [1,2], [1,1], ['a','b']), 'NoneType'),
    ((images, [1], [1,1], ['a','b']), 'pids'), ((images, [1,2], [1,1,1], ['a','b']), 'cams'), ((images, [1,2], [1,1], ['a']), '2 images'), ((images, [1.,2.], [1,1], ['a','b']), 'pids'),
    ((images, [1,2], ['x','y'], ['a','b']), 'cams'), ((images, [1,2], [[1],[1]], ['a','b']), 'cams'), ((images, [1,2], [1,1], 'ab'), 'names'), ((images, [1,2], [1,1], ['a',2]), 'names')])
def test_what_is_no_split(parts, told, one_line):
    with pytest.raises((TypeError, ValueError)) as e: Split(*parts)
    one_line(e.value, 'Split', told)

def test_a_split_takes_numbers_in_any_form():
    for pids in ([1,2], np.array([1,2], np.int32), torch.tensor([1,2]).to(torch.int16)):
        s = Split(images, pids, pids, ('a','b'))
        assert s.pids.dtype==s.cams.dtype==torch.int64 and s.pids.tolist()==[1,2] and s.names==['a','b']
    assert len(Split(images[:0], [], [], []))==0

def test_a_data_set_fits_together(one_line):
    other = Split(torch.zeros(1, 3, 8, 2, dtype=torch.uint8), [1], [1], ['a'])
    with pytest.raises(ValueError) as e: ReidData('mine', four, four, other, four, four)
    one_line(e.value, 'val_gallery 8 x 2', 'train 1 x 1')
    with pytest.raises(TypeError) as e: ReidData('mine', four, four, images, four, four)
    one_line(e.value, 'val_gallery', 'Tensor')
    data = ReidData('a name that is far too long for anybody to want to read', *[four]*5)
    assert '\n' not in repr(data) and len(repr(data))<=100 and len(str(data).split('\n'))==6

def test_names_of_any_kind_survive(tmp_path):
    names = ['a\nb.png', 'Zoë\u2028.jpg', '', 'x\x1c']
    data = ReidData('mine', *(Split(four.images.clone(), four.pids.clone(), four.cams.clone(), names) for _ in PARTS))
    save_data(data, tmp_path/'d.safetensors')
    same(read_data(tmp_path/'d.safetensors'), data)

def test_a_file_that_is_no_data_set(tmp_path, one_line):
    from safetensors.torch import save_file
    save_file({'a': torch.zeros(2)}, tmp_path/'other.safetensors')
    (tmp_path/'text.safetensors').write_text('hello, I am text')
    for name in ('other.safetensors', 'text.safetensors', 'none.safetensors'):
        with pytest.raises((ValueError, OSError)) as e: read_data(tmp_path/name)
        one_line(e.value, name)
    with pytest.raises(TypeError) as e: split_validation(images)
    one_line(e.value, 'Split', 'Tensor')

@pytest.mark.parametrize('wrong, told', [
    (dict(train_ids=0), 'train_ids'), (dict(train_ids=-3), 'train_ids'), (dict(train_ids=2.5), 'train_ids'), (dict(test_ids=0), 'test_ids'), (dict(distractors=-1), 'distractors'), (dict(cameras=0), 'cameras'),
    (dict(per_camera=1), 'per_camera'), (dict(seed=-1), 'seed'), (dict(seed='1'), 'seed'), (dict(size=64), 'size'), (dict(size=(64,)), 'size'), (dict(size=(0,32)), 'height'), (dict(size=(64,10**6)), 'width'),
    (dict(train_ids=10**12), 'GB'), (dict(train_ids=float('nan')), 'train_ids'), (dict(cameras=True), 'cameras')], ids=str)
def test_recipes_that_make_no_street(wrong, told, one_line):
    with pytest.raises(ValueError) as e: SyntheticPedestrians(**SMALL|wrong)
    one_line(e.value, told)

@pytest.mark.parametrize('size', [(1,1), (3,3), (7,200)])
def test_pictures_of_odd_sizes_are_drawn(size):
    s = SyntheticPedestrians(size=size).split([(1,0,0), (2,1,0)])
    assert s.size==size and len(s)==2 and SyntheticPedestrians(size=size).split([]).size==size

def test_rows_that_nobody_can_draw(one_line):
    s = SyntheticPedestrians(size=(8,4))
    with pytest.raises(ValueError) as e: s.split([(1,-1,0)])
    one_line(e.value, 'camera', '-1')
    with pytest.raises(ValueError) as e: s.split([(1,0,0), (2,0,0)], [1])
    one_line(e.value, 'SyntheticPedestrians.split', '2 labels')

# --- whatever people have

array = np.random.default_rng(0).integers(0, 256, (6,4,3), dtype=np.uint8)
want = to_float(torch.from_numpy(array).permute(2,0,1)[None])

def test_a_picture_in_any_form(tmp_path):
    im = Image.fromarray(array); im.save(path := tmp_path/'Zoë 1.png')
    forms = [array, array[None], array.transpose(2,0,1), array[:,::-1][:,::-1], im, im.convert('RGBA'), path, str(path), [array], [im], (path,), [torch.from_numpy(array).permute(2,0,1)], Split(torch.from_numpy(array).permute(2,0,1)[None], [1], [1], ['a'])]
    for form in forms: assert torch.equal(to_float(form), want), type(form)
    assert torch.equal(to_float([array, im, path]), want.expand(3, -1, -1, -1))
    assert to_float(torch.arange(256).byte()).shape==(256,) and to_float(torch.from_numpy(array)).shape==(6,4,3)   # a tensor keeps its shape

@pytest.mark.parametrize('low, high', [(0, 1), (-1, 1), (0, 255), (-.5, .5)])
@pytest.mark.parametrize('form', [lambda a: a, lambda a: a.astype(np.float32), lambda a: a.astype('>f8'), torch.from_numpy, lambda a: [a], lambda a: torch.from_numpy(a).requires_grad_()], ids=['double', 'single', 'big-endian', 'tensor', 'list', 'grad'])
def test_floats_where_their_range_is_told(low, high, form):
    x = to_float(form(low+array/255*(high-low)), range=(low, high)).detach()
    if x.dim()==3: x = x.permute(2,0,1)[None]
    torch.testing.assert_close(x, want, atol=1e-5, rtol=0)
    assert x.dtype==torch.float32
    assert torch.equal(to_uint8(form(low+array/255*(high-low)), range=(low, high)).flatten().sort()[0], torch.from_numpy(array).flatten().sort()[0])

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_other_precision(dtype):
    assert torch.equal(to_float(want.to(dtype), range=(-1, 1)), want.to(dtype).float()-0.) or (to_float(want.to(dtype), range=(-1, 1))-want).abs().max()<.01
    assert (to_uint8(want.to(dtype)).int()-to_uint8(want).int()).abs().max()<=1

@pytest.mark.parametrize('call, told', [
    (lambda: to_float(array/255), 'range=(0, 1)'), (lambda: to_float(want), 'float32'), (lambda: to_float(array.astype(float), range=(0, 1)), 'values go from'), (lambda: to_float(want*np.nan, range=(-1, 1)), 'nan'),
    (lambda: to_float(array, range=(0, 1)), 'uint8'), (lambda: to_float(array.astype(int)), 'int64'), (lambda: to_float(torch.arange(3)), 'int64'), (lambda: to_float(array>9), 'bool'), (lambda: to_float(array[...,0]), '(6, 4)'),
    (lambda: to_float(np.zeros((6,4,4), np.uint8)), '(6, 4, 4)'), (lambda: to_float([]), '[]'), (lambda: to_float(None), 'None'), (lambda: to_float(7), '7'), (lambda: to_float({}), '{}'), (lambda: to_float('no/such.png'), 'no/such.png'),
    (lambda: to_float([array, array[:3]]), 'privreid.pictures.decode'), (lambda: to_float([array, want[0]]), 'uint8'), (lambda: to_float(array/255, range=1), 'range'), (lambda: to_float(array/255, range=(1, 0)), 'range'),
    (lambda: to_float(array/255, range=(0, 0)), 'range'), (lambda: to_float(array/255, range=(0, np.nan)), 'range'), (lambda: to_float(array/255, range='0..1'), 'range'),
    (lambda: to_uint8(torch.zeros(3, dtype=torch.uint8)), 'needs no change'), (lambda: to_uint8(torch.zeros(3).long()), 'int64'), (lambda: to_uint8(want*np.nan), 'NaN'), (lambda: to_uint8(want/0), 'infinite'), (lambda: to_uint8(want*255), 'say the range'), (lambda: to_uint8('x'), 'x')])
def test_what_is_no_picture_is_refused(call, told, one_line):
    with pytest.raises((TypeError, ValueError, OSError)) as e: call()
    one_line(e.value, told)

def test_pictures_are_shown_in_any_form(one_line):
    im = Image.fromarray(array)
    split = Split(torch.from_numpy(array).permute(2,0,1)[None], [1], [1], ['a'])
    fig = show_pictures(want, array, im, split, [im, array], want[0], want.bfloat16(), want.requires_grad_(), a_title=torch.from_numpy(array).permute(2,0,1))
    axes = np.array(fig.axes).reshape(9, 1)
    assert [a.get_ylabel() for a in axes[:,0]]==['']*8+['a title']
    for ax in axes[:,0]: assert np.abs(ax.images[0].get_array().astype(int)-array).max()<=1
    assert np.array_equal(show_pictures(array/255, range=(0, 1)).axes[0].images[0].get_array(), array)
    for call,told in ((lambda: show_pictures(), 'raw=x'), (lambda: show_pictures(want[:0]), '(0, 3, 6, 4)'), (lambda: show_pictures(want[:,:1]), '(1, 1, 6, 4)'), (lambda: show_pictures(want, n=0), 'n must be'), (lambda: show_pictures(want, scale=0), 'scale')):
        with pytest.raises(ValueError) as e: call()
        one_line(e.value, told)

# --- batches

groups = st.lists(st.integers(1, 9), min_size=1, max_size=6)

def sampler_of(counts, p, k, seed=0):
    pids = torch.tensor([10*i+3 for i,n in enumerate(counts) for _ in range(n)])
    pids = pids[torch.from_numpy(np.random.default_rng(3).permutation(len(pids)))]
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); return pids, PKSampler(pids, p, k, seed)

@given(groups, st.integers(1, 6), st.integers(1, 5), st.integers(0, 9), st.integers(0, 9))
def test_batches_are_p_people_times_k_images(counts, p, k, seed, epoch):
    pids,sampler = sampler_of(counts, p, k, seed)
    batches,p = sampler.epoch(epoch), min(p, len(counts))
    assert batches
    for b in batches:
        who = pids[b].view(p, k)
        assert (who==who[:,:1]).all() and len(who[:,0].unique())==p
        for row,person in zip(b.view(p, k), who[:,0]):
            n = (pids==person).sum()
            if n%k==0: assert len(row.unique())==k                       # nobody is shown twice without need
            elif n<k: assert len(row.unique())==n                        # all there is
    np.random.seed(0); torch.manual_seed(0)                              # global dice play no part
    again = sampler_of(counts, p, k, seed)[1].epoch(epoch)
    assert [b.tolist() for b in again]==[b.tolist() for b in batches]

@given(st.lists(st.integers(5, 9), min_size=2, max_size=4), st.integers(0, 9))
def test_nobody_with_enough_images_is_shown_twice_in_a_batch(counts, epoch):
    _,sampler = sampler_of(counts, 2, 4)
    for b in sampler.epoch(epoch): assert len(b.unique())==len(b)

@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_an_epoch_shows_every_image_once_where_counts_divide(n, k, stacks, epoch):
    pids,sampler = sampler_of([k*stacks]*n, n, k)
    assert torch.cat(sampler.epoch(epoch)).sort()[0].tolist()==list(range(len(pids)))

@settings(max_examples=15)
@given(groups, st.integers(1, 6), st.integers(1, 5))
def test_every_image_is_seen_sooner_or_later(counts, p, k):
    pids,sampler = sampler_of(counts, p, k)
    seen = {i for e in range(150) for b in sampler.epoch(e) for i in b.tolist()}
    assert seen==set(range(len(pids)))

def dealt_slowly(pids, p, k, seed, epoch):
    "Identity after identity looked up in all images, and those with groups left looked up for each batch."
    groups = [(pids==i).nonzero()[:,0].numpy() for i in pids.unique()]
    p,rng,stacks,batches = min(p, len(groups)), np.random.default_rng((seed, 6, epoch)), [], []
    for g in groups:
        g = rng.permutation(g)
        whole = g[:len(g)//k*k]
        fill = rng.choice(whole if len(whole) else g, -len(g)%k, replace=not len(whole))
        stacks.append(list(np.concatenate([g, fill]).reshape(-1, k)))
    while len(left := [s for s in stacks if s])>=p: batches.append(np.concatenate([left[i].pop() for i in rng.choice(len(left), p, replace=False)]).tolist())
    return batches

@settings(max_examples=100)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 5), st.integers(0, 9), st.integers(0, 9))
def test_batches_are_those_of_a_slow_dealer(counts, p, k, seed, epoch):
    "Recorded runs depend on every draw."
    pids,sampler = sampler_of(counts, p, k, seed)
    assert [b.tolist() for b in sampler.epoch(epoch)]==dealt_slowly(pids, p, k, seed, epoch)

def test_many_people_are_no_trouble():
    "Processor time; looking through all images for each of them would take a minute."
    start = time.process_time()
    sampler = PKSampler(torch.arange(200_000)%100_000, 16, 2)
    assert len(sampler.groups)==100_000 and sampler.groups[-1].tolist()==[99_999, 199_999] and time.process_time()-start<5

def test_epochs_and_seeds_differ():
    def batches(seed, epoch): return str([b.tolist() for b in sampler_of([8]*6, 3, 4, seed)[1].epoch(epoch)])
    assert len({batches(s, e) for s in range(3) for e in range(4)})==12

@pytest.mark.parametrize('wrong, told', [(dict(p=0), 'p must be'), (dict(k=0), 'k must be'), (dict(k=2.5), 'k must be'), (dict(seed=-1), 'seed'), (dict(pids=torch.tensor([.5])), 'Identities'), (dict(pids=torch.zeros(2, 2).long()), 'Identities'), (dict(pids='ab'), 'Identities')], ids=str)
def test_batches_that_cannot_be(wrong, told, one_line):
    with pytest.raises((TypeError, ValueError)) as e: PKSampler(**dict(pids=torch.tensor([1,1,2,2]))|wrong)
    one_line(e.value, told)

def test_identities_in_any_form():
    want = str(PKSampler(torch.tensor([1,1,2,2]), 2, 2).epoch(1))
    for pids in ([1,1,2,2], np.array([1,1,2,2], np.int16), torch.tensor([1,1,2,2]).byte()): assert str(PKSampler(pids, 2, 2).epoch(1))==want
    assert repr(PKSampler([1,1,2,2], 16, 4))=='PKSampler of 2 identities: 2 x 4 images a batch'
    with pytest.raises(ValueError, match='epoch must be'): PKSampler([1,1,2,2], 2, 2).epoch(-1)

def test_no_images_no_batches(one_line):
    with pytest.raises(ValueError) as e: PKSampler(torch.zeros(0, dtype=torch.long))
    one_line(e.value, 'no images', 'training')

# --- augmentation

@given(st.sampled_from([(64,32), (32,64), (33,17)]), st.integers(0, 999), st.sampled_from([0, 10, 40]))
def test_both_pictures_get_the_same_dice(size, seed, pad):
    "A coordinate picture tells where each pixel came from: the other one must come from there too."
    n,(h,w) = 4,size
    x = torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed))
    rows,cols = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
    where = torch.stack([rows, cols, torch.full_like(rows, 7)]).float().expand(n, -1, -1, -1)
    before = x.clone()
    dice = draw_augmentation(n, h, w, torch.Generator().manual_seed(seed), pad=pad)
    xa,ya = augment(dice, x, where)
    assert torch.equal(x, before)                                        # what goes in stays as it is
    kept,black = ya[:,2]==7, ya[:,2]==-1
    grey = torch.tensor([.485, .456, .406])*2-1
    for i in range(n):
        r,c = ya[i,:2,kept[i]].long()
        assert torch.equal(xa[i][:,kept[i]], x[i][:,r,c])
        (dy,dx),flip = dice['shift'][i].tolist(), dice['flip'][i]
        assert torch.equal(r, rows[kept[i]]+dy) and torch.equal(w-1-c if flip else c, cols[kept[i]]+dx)   # its own dice, not a neighbour's
        assert (xa[i][:,black[i]]==-1).all()
        rest = ~(kept[i]|black[i])
        torch.testing.assert_close(xa[i][:,rest], grey[:,None].expand(3, int(rest.sum())))
        top,left,bottom,right = dice['box'][i].tolist()
        assert rest.sum()==(bottom-top)*(right-left)

@pytest.mark.parametrize('wrong', [dict(n=0), dict(n=2.5), dict(height=0), dict(width=-1), dict(flip=1.5), dict(erase=-.1), dict(flip=float('nan')), dict(pad=-1), dict(tries=0), dict(erase='half')], ids=str)
def test_dice_that_cannot_be_thrown(wrong, one_line):
    with pytest.raises(ValueError) as e: draw_augmentation(**dict(n=2, height=32, width=16)|wrong)
    one_line(e.value, f'{next(iter(wrong))} must be')

@pytest.mark.parametrize('batches, told', [(lambda x: (), 'at least one'), (lambda x: ((x*255).byte(),), 'uint8'), (lambda x: (x[0],), 'x[None]'), (lambda x: (x[:,:1],), '(3, 1, 32, 16)'), (lambda x: (x, x[:2]), '(2, 3, 32, 16)'), (lambda x: (x, x[...,:8]), '(3, 3, 32, 8)'),
    (lambda x: (x[:2], x[:2]), '3, and there are 2'), (lambda x: (x, x.to('meta')), 'meta')])
def test_pictures_that_do_not_share_an_accident(batches, told, one_line):
    with pytest.raises((TypeError, ValueError)) as e: augment(draw_augmentation(3, 32, 16), *batches(torch.rand(3, 3, 32, 16)))
    one_line(e.value, 'augment', told)

@given(st.integers(16, 90), st.integers(16, 90), st.integers(0, 999))
def test_dice_stay_in_their_bounds(h, w, seed):
    dice = draw_augmentation(64, h, w, torch.Generator().manual_seed(seed), erase=1.)
    top,left,bottom,right = dice['box'].T
    assert (0<=top).all() and (top<bottom).all() and (bottom<=h).all() and (0<=left).all() and (left<right).all() and (right<=w).all()
    bh,bw = (bottom-top).float(), (right-left).float()
    assert (bh*bw<=.4*h*w+bh/2+bw/2+1).all()                             # 40 % before the sides are rounded
    assert dice['shift'].abs().max()<=round(10*h/256)
    again = draw_augmentation(64, h, w, torch.Generator().manual_seed(seed), erase=1.)
    assert all(torch.equal(dice[k], again[k]) for k in dice)

@given(st.sampled_from([(64,32), (33,17)]), st.integers(0, 999), st.sampled_from([0, 10, 300]), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_a_gpus_way_gives_the_same_bits(size, seed, pad, dtype):
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(7, 3, *size, generator=g)*2-1).to(dtype)
    dice = draw_augmentation(7, *size, g, pad=pad)
    for a,b in zip(augment(dice, x, -x.float()), augment_at_once(dice, x, -x.float()), strict=True): assert a.dtype==b.dtype and torch.equal(a, b)

def test_a_gpu_gathers():
    "What runs does not grow with the batch. PyTorch's device without memory stands in for a GPU."
    def operations(n, device):
        dice,x = draw_augmentation(n, 32, 16), torch.zeros(n, 3, 32, 16, device=device)
        with torch.profiler.profile() as seen: augment(dice, x, x)
        return sum(e.name.startswith('aten::') for e in seen.events())
    assert operations(4, 'meta')==operations(16, 'meta') and operations(4, 'cpu')<operations(16, 'cpu')

def test_augmentation_keeps_the_dtype_and_sure_dice_are_sure():
    x = torch.rand(5, 3, 64, 32, dtype=torch.float64)*2-1
    xa,half = augment(draw_augmentation(5, 64, 32, flip=1., pad=0, erase=0.), x, x.bfloat16())
    assert torch.equal(xa, x.flip(-1)) and half.dtype==torch.bfloat16
    assert (draw_augmentation(50, 64, 32, flip=0.)['flip']==False).all()

@pytest.mark.parametrize('augment', [augment, augment_at_once])
def test_augmentation_passes_gradients_to_the_pixels_that_stay(augment):
    x = torch.rand(6, 3, 32, 16, requires_grad=True)
    dice = draw_augmentation(6, 32, 16, torch.Generator().manual_seed(1), pad=40)
    xa,_ = augment(dice, x, x.detach())
    xa.sum().backward()
    stay, = augment(dice, torch.ones_like(x))
    assert set(x.grad.unique().tolist())=={0., 1.} and x.grad.sum()==(stay==1).sum()

def test_a_shift_out_of_the_picture_leaves_black():
    dice = dict(flip=torch.tensor([False]*3), shift=torch.tensor([[40,0], [0,-99], [-32,16]]), box=torch.zeros(3, 4, dtype=torch.long))
    assert (augment(dice, torch.ones(3, 3, 32, 16))[0]==-1).all()

# --- files

@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', '1', 'I;16'])
def test_any_mode_becomes_rgb(tmp_path, mode):
    im = Image.new(mode, (10,20), 0) if mode!='P' else Image.new('RGB', (10,20)).convert('P')
    im.save(tmp_path/'a.png')
    assert read_image(tmp_path/'a.png', (8,6)).shape==(8,6,3)

def test_shrinking_is_antialiased(tmp_path):
    board = np.indices((64,64)).sum(0)%2*255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path/'a.png')
    assert np.abs(read_image(tmp_path/'a.png', (8,8)).astype(int)-127.5).max()<6

def test_damaged_files_are_named(tmp_path, one_line):
    "Whatever is wrong inside a file, it is read or it is named."
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (160,150,3), dtype=np.uint8))   # large enough for a PNG of several chunks
    refused = 0
    for suffix in ('png', 'jpg', 'bmp'):
        path = tmp_path/f'a.{suffix}'
        noise.save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        seams = [m for m in range(8, len(whole)-4) if bytes(whole[m:m+4])==b'IDAT']
        spots = [*rng.integers(0, 60, 20), *rng.integers(0, len(whole), 15), *seams]
        for spot in spots:
            damaged = whole.copy(); damaged[spot] ^= 0x55
            path.write_bytes(damaged.tobytes())
            try: assert read_image(path, (16,8)).shape==(16,8,3)
            except ValueError as e: one_line(e, path); refused += 1
    assert refused>10

def test_identity_with_one_image(one_line):
    with pytest.warns(UserWarning) as w: sampler = PKSampler(torch.tensor([5,5,41,9,9,77]), p=4, k=2)
    assert len(w)==1
    one_line(w[0].message, 'identities', '41')
    assert any(b.tolist().count(2)==2 for b in sampler.epoch(0))          # repeated, not left out

@pytest.mark.parametrize('rows, pids', [(.5, None), (1e51, None), ('ab', None), (['abc'], None), ([(1, 2)], None), ([(1, 0, -1)], None), ([(1, 0, .5)], None), ([(10**30, 0, 0)], None),
                                        ([(1, 0, 0)], [1, 2]), ([(1, 0, 0)], 'a'), ([(1, 0, 0)], [.5])])
def test_rows_that_cannot_be_drawn(rows, pids, one_line):
    with pytest.raises((TypeError, ValueError)) as e: SyntheticPedestrians(size=(16,8)).split(rows, pids)
    one_line(e.value)
    assert any(word in str(e.value) for word in ('rows of (person, camera, shot)', 'person, camera and shot must be', 'pids are whole numbers', '1 labels'))

# --- where the authors differ

def test_an_erased_rectangle_is_grey():
    "ImageNet's mean. Written into a tensor that was normalised by it, as the authors do, it would come out brighter."
    dice = dict(flip=torch.tensor([False]), shift=torch.zeros(1, 2).long(), box=torch.tensor([[0,0,8,8]]))
    out, = augment(dice, torch.zeros(1, 3, 8, 8))
    mean = torch.tensor([.485, .456, .406])
    torch.testing.assert_close((out[0,:,0,0]+1)/2, mean)
    theirs = mean*.5+mean   # back to [0,1]
    assert [round(v, 2) for v in theirs.tolist()]==[.73, .68, .61]

def test_an_epoch_fills_up_where_the_authors_leave_out():
    "Five people with seven images: nobody's last three are lost, and nobody has more than eight."
    pids = torch.arange(5).repeat_interleave(7)
    seen = torch.cat(PKSampler(pids, p=5, k=4).epoch(0))
    assert len(seen)==40 and len(seen.unique())==35            # left out: 20 images of five groups
    sizes = np.random.default_rng(1).gamma(2.2, 17.2/2.2, 751).round().clip(2, 72).astype(int)   # as many as in Market-1501, or so
    sampler = PKSampler(torch.arange(751).repeat_interleave(torch.from_numpy(sizes)))
    shown = [torch.cat(sampler.epoch(e)) for e in (0, 1)]
    assert all(1.06<len(s)/sizes.sum()<1.09 for s in shown)
    assert len(torch.cat(shown).unique())>.99*sizes.sum()
