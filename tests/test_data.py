"Data: the same pictures everywhere, splits and batches that keep their promises, messages of one line."
import os, shutil, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
import privreid.data as D
from privreid.data import PARTS, PKSampler, Split, SyntheticPedestrians, augment, augment_at_once, choose_queries, draw_augmentation, read_data, save_data, split_validation
from privreid.files import atomic, read_image

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
    files = list((tmp_path/'new'/'cache').iterdir())
    assert len(files)==1 and files[0].suffix=='.safetensors'

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
