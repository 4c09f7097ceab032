"Data sets: every layout with its oddities, one's own pictures, one door; messages of one line."
import csv, json, os, re, signal, struct, subprocess, sys, time, tracemalloc, warnings, zlib
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy.io import savemat
import privreid.public as S
from privreid import distrust, listings
from privreid.data import PARTS, PKSampler, ReidData, Split, SyntheticPedestrians
from privreid.datasets import list_data, load_data, read_split, save_split
from privreid.listings import SPLITS, Listing, Record, divide, one_query_per_camera, people_of, refuse_unusable
from privreid.manifest import MARKET_PATTERN, image_folder
from privreid.names import find_images
from privreid.public import cuhk03, market1501, msmt17
from test_data import SMALL, same
from test_files import nobody, posix

SIZE = 16,8

def put(path, colour=(90,120,150), size=(8,16), mode='RGB', **how):
    "Save a flat picture, `size` is (W,H)."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **how)

def colours(split): return [tuple(im.float().mean((1,2)).round().int().tolist()) for im in split.images]

# --- files

def test_files_are_found_once_and_in_order(tmp_path):
    for name in ('b/2.JPG', 'a/deep/er/1.png', 'Übergröße 1.jpeg', 'z.jpg.jpg', '.hidden.jpg', 'Thumbs.db', 'notes.txt'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True); (tmp_path/name).touch()
    assert find_images(tmp_path)==(['a/deep/er/1.png', 'b/2.JPG', 'z.jpg.jpg', 'Übergröße 1.jpeg'], dict(foreign=['.hidden.jpg', 'Thumbs.db', 'notes.txt'], unopened=[]))
    assert find_images(tmp_path, 'a')==(['a/deep/er/1.png'], dict(foreign=[], unopened=[])) and find_images(tmp_path, 'a', deep=False)[0]==[]

def test_links_do_not_lead_in_circles(tmp_path):
    put(tmp_path/'p'/'c_1.png')
    (tmp_path/'p'/'up').symlink_to(tmp_path)
    (tmp_path/'self').symlink_to(tmp_path/'self')
    (tmp_path/'gone.png').symlink_to(tmp_path/'nothing')
    elsewhere = tmp_path.with_name(tmp_path.name+'-elsewhere'); put(elsewhere/'c_2.png')
    (tmp_path/'q').symlink_to(elsewhere)                                  # a link that leads somewhere new is followed
    images,others = find_images(tmp_path)
    assert [i for i in images if 'gone' not in i]==['p/c_1.png', 'q/c_2.png'] and others['foreign']==['self']

@pytest.mark.parametrize('names', [20_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_many_names(tmp_path, names):
    for folder in range(50):
        (tmp_path/f'{folder:02d}').mkdir()
        for i in range(names//50): os.close(os.open(tmp_path/f'{folder:02d}'/f'c{i%4}_{i}.jpg', os.O_CREAT))
    start = time.process_time(); listing = image_folder(tmp_path); seconds = time.process_time()-start
    assert sum(len(getattr(listing, k)) for k in SPLITS)==names
    tracemalloc.start(); image_folder(tmp_path); peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    print(f'{seconds:.1f} s, {peak/1e6:.0f} MB')
    assert seconds<names*3e-4 and peak<names*1500                         # seconds of this process: usually a fifteenth of that

def test_no_file_is_asked_for_its_state(tmp_path, monkeypatch):
    for i in range(30): put(tmp_path/f'{i%6}'/f'c{i%5}_{i}.png')
    asked,stat = [], os.stat
    monkeypatch.setattr(os, 'stat', lambda p, **k: asked.append(p) or stat(p, **k))
    image_folder(tmp_path)
    assert not [p for p in asked if str(p).endswith('.png')]

# --- pictures as they come

def pictures(tmp_path, **how):
    "A folder with six plain people, of whom each has one odd picture."
    for i,who in enumerate(('Ada', 'Zoë van Dyk', 'name with spaces', '李', '5', '007')):
        for cam in ('in', 'out'): put(tmp_path/who/f'{cam}_0.png')
        put(tmp_path/who/'in_odd.jpg' if how.get('format')=='jpeg' else tmp_path/who/'in_odd.png', **how)
    return tmp_path

@pytest.mark.parametrize('how,expected', [(dict(mode='CMYK', colour=(0,255,255,0), format='jpeg', quality=100), (255,0,0)), (dict(mode='I;16', colour=120*257), (120,)*3), (dict(mode='L', colour=77), (77,)*3),
                                          (dict(mode='RGBA', colour=(9,8,7,255)), (9,8,7)), (dict(size=(1,1), colour=(1,2,3)), (1,2,3))], ids=['CMYK', '16 bit', 'grey', 'RGBA', '1 pixel'])
def test_unusual_pictures_keep_their_colour(tmp_path, how, expected):
    listing = image_folder(pictures(tmp_path, **how))
    split = listing.read('train', SIZE)
    odd = [c for c,n in zip(colours(split), split.names) if 'odd' in n]
    assert odd and all(np.abs(np.subtract(c, expected)).max()<=2 for c in odd), odd

def test_exif_is_obeyed(tmp_path):
    upright = Image.fromarray(np.concatenate([np.full((8,8,3), 250, np.uint8), np.full((8,8,3), 5, np.uint8)]))      # bright above, dark below
    exif = Image.Exif(); exif[0x0112] = 6                                                                            # "turn me clockwise"
    for who in 'abcd':
        for cam in (1, 2): (tmp_path/who).mkdir(exist_ok=True); upright.rotate(90, expand=True).save(tmp_path/who/f'{cam}_x.jpg', exif=exif, quality=95)
    for im in image_folder(tmp_path).read('train', SIZE).images: assert im[:,:6].min()>200 and im[:,-6:].max()<60

# --- Market-1501

def test_market_reads_what_its_names_say(tiny_market):
    root = tiny_market()
    data = market1501(root).load((64,32))
    train = data.train, data.val_query, data.val_gallery
    assert sum(map(len, train))==5*2*3 and len(data.query)==3*2 and len(data.gallery)==3*2*2+1+1
    assert sorted(data.gallery.pids.unique().tolist())==[0, 6, 7, 8] and data.gallery.names==sorted(data.gallery.names)
    for split in (*train, data.query, data.gallery):
        for im,pid,cam,name in zip(split.images, split.pids, split.cams, split.names):
            assert name.rpartition('/')[2].startswith(f'{int(pid):04d}_c{int(cam)}')
            if pid==0: continue
            drawn = SyntheticPedestrians(size=(64,32), seed=7).split([(int(pid), int(cam)-1, int(name.split('_')[-2]))]).images[0]
            assert (im.float()-drawn.float()).abs().mean()<6              # JPEG, nothing worse: the picture belongs to its name
    same(market1501(str(root)).load((64,32)), data)
    assert market1501(root).read('query', (32,24)).images.shape==(6,3,32,24)

def test_market_leaves_out_what_it_should(tiny_market):
    listing = market1501(tiny_market())
    assert listing.left_out['junk']==['bounding_box_test/-1_c1s1_000001_00.jpg'] and len(listing.left_out['foreign'])==2 and not listing.left_out.get('misnamed')
    assert any(r.name.endswith('.jpg.jpg') for r in listing.gallery)
    assert '1 junk' in repr(listing) and '2 foreign' in repr(listing)

def test_missing_and_empty_folders(tiny_market, tmp_path, one_line):
    with pytest.raises(FileNotFoundError) as e: market1501(tmp_path/'nowhere')
    one_line(e.value, tmp_path/'nowhere')
    root = tiny_market()
    for f in (root/'query').iterdir(): f.unlink()
    with pytest.raises(ValueError) as e: market1501(root).load((64,32))
    one_line(e.value, root/'query')
    (root/'query').rmdir()
    with pytest.raises(FileNotFoundError) as e: market1501(root).load((64,32))
    one_line(e.value, root/'query')

def test_truncated_image(tiny_market, one_line):
    root = tiny_market()
    bad = sorted((root/'bounding_box_train').glob('*.jpg'))[4]
    bad.write_bytes(bad.read_bytes()[:-200])
    with pytest.raises(ValueError) as e: market1501(root).load((64,32))
    one_line(e.value, bad)


def test_strange_names_are_counted(tiny_market, one_line):
    root = tiny_market()
    for name in ('holiday.jpg', 'x_cat.jpg'): next((root/'query').glob('*.jpg')).rename(root/'query'/name)
    with pytest.warns(UserWarning) as w: data = market1501(root).load((64,32))
    assert len(w)==1 and len(data.query)==4
    one_line(w[0].message, root/'query', '2 images')


def test_people_in_training_and_test_are_reported(tiny_market, tmp_path, one_line):
    root,again = tiny_market(), '0003_c1s1_000077_00.jpg'
    put(root/'query'/again)                                               # person 3 trains; distractors and junk are nobody
    with pytest.warns(UserWarning) as w: market1501(root).load((64,32))
    assert len(w)==1
    one_line(w[0].message, 'share 1 of their people', root/'bounding_box_train'/'0003_c1s1_000000_00.jpg', 'memory')
    rows = [f'{who}{c}{k}.png,{who},{c},{part}' for who,part,k in (('a', 'train', 0), ('b', 'train', 0), ('c', 'train', 0), ('a', 'gallery', 1), ('b', 'query', 1), ('b', 'gallery', 2)) for c in (1, 2)]
    rows += [f'{who}{c}5.png,{who},{c},train' for who in 'abc' for c in (1, 2)]
    for row in rows: put(tmp_path/'own'/row.split(',')[0])
    (tmp_path/'own'/'manifest.csv').write_text('\n'.join(['path,identity,camera,split', *rows]))
    with pytest.warns(UserWarning, match='share 2 of their people'): image_folder(tmp_path/'own').load(SIZE)

@pytest.mark.parametrize('train', [1, 2])   # of two, one validates, and one alone has nobody to be told from
def test_too_few_people_to_train_on(tiny_market, one_line, train):
    root = tiny_market(train=train)
    with pytest.raises(ValueError) as e: market1501(root).load((64,32))
    one_line(e.value, 'fewer than three people', 'at least 3', root)

def test_the_folder_one_level_down_is_proposed(tiny_market, one_line):
    root = tiny_market(name='outer/Market-1501-v15.09.15')
    with pytest.raises(FileNotFoundError) as e: market1501(root.parent)
    one_line(e.value, f'Did you mean {root}?', 'zheng-lab')

# --- MSMT17

def make_msmt(root, train='train', test='test', people=6):
    "Fabricate MSMT17: everybody under cameras 1, 1, 2 and 15; the last is validation or gallery. Test people are grey."
    lists = {k: [] for k in ('train', 'val', 'query', 'gallery')}
    for pid in range(people):
        for i,cam in enumerate((1, 1, 2, 15)):
            name = f'{pid:04d}/{pid:04d}_{i:03d}_{cam:02d}_0303morning_0008_{i}.jpg'
            for folder,part,colour in ((train, 'val' if i==3 else 'train', (200,20,20)), (test, 'gallery' if i else 'query', (60,60,60))):
                put(root/folder/name, colour); lists[part].append(f'{name} {pid}')
    for part,lines in lists.items(): (root/f'list_{part}.txt').write_text('\n'.join(lines)+'\n')
    return root

@pytest.mark.parametrize('version,folders', [('V1', ()), ('V2', ('mask_train_v2', 'mask_test_v2'))])
def test_msmt(tmp_path, version, folders):
    listing = msmt17(make_msmt(tmp_path, *folders))
    assert version in listing.name
    assert len(listing.train)==24 and {r.pid for r in listing.train}==set(range(1, 7)) and {r.cam for r in listing.train}=={1, 2, 15}   # val belongs to training
    assert len(listing.query)==6 and len(listing.gallery)==18 and {r.pid for r in listing.query}=={r.pid for r in listing.gallery}==set(range(7, 13))
    for r in listing.query: assert r.pid-7==int(r.name.split('/')[1])      # in the order of the lists
    data = listing.load(SIZE)
    assert data.name==listing.name and all(abs(c[0]-60)<4 for c in colours(data.query)) and all(c[0]>190 for c in colours(data.train))

def test_msmt_versions_do_not_mix(tmp_path, one_line):
    make_msmt(tmp_path); (tmp_path/'mask_test_v2').mkdir()
    with pytest.raises(ValueError) as e: msmt17(tmp_path)
    one_line(e.value, tmp_path, 'V1', 'V2', 'mask_test_v2')
    (tmp_path/'test').rename(tmp_path/'gone'); (tmp_path/'train').rename(tmp_path/'gone too')
    with pytest.raises(FileNotFoundError) as e: msmt17(tmp_path)
    one_line(e.value, tmp_path/'mask_train_v2')

@pytest.mark.parametrize('line', ['0000/0000_000_01_0303morning_0008_0.jpg', '0000/0000.jpg 0', '0000/0000_000_xx_0.jpg 0', '0000/0000_000_01_0.jpg -1'])
def test_msmt_lists_are_checked(tmp_path, one_line, line):
    path = make_msmt(tmp_path)/'list_query.txt'
    path.write_text(path.read_text()+'\n'+line+'\n')
    with pytest.raises(ValueError) as e: msmt17(tmp_path)
    one_line(e.value, path, 'line 8', line)

def test_msmt_files_and_lists_must_agree(tmp_path, one_line):
    root = make_msmt(tmp_path); put(root/'test'/'0000'/'0000_099_01_0303morning_0008_0.jpg')
    assert msmt17(root).left_out['unlisted']==['test/0000/0000_099_01_0303morning_0008_0.jpg']
    gone = root/'train'/'0003'/'0003_002_02_0303morning_0008_2.jpg'; gone.unlink()
    with pytest.raises(FileNotFoundError) as e: msmt17(root)
    one_line(e.value, '1 images', gone.name)

def test_msmt_list_with_a_line_twice(tmp_path, one_line):
    path = make_msmt(tmp_path)/'list_gallery.txt'
    path.write_text(path.read_text()+path.read_text().splitlines()[0]+'\n')
    with pytest.raises(ValueError) as e: msmt17(tmp_path)
    one_line(e.value, tmp_path, 'test/0000/0000_001_01_0303morning_0008_1.jpg', 'listed 2 times (gallery as person 7, gallery as person 7)')

def test_msmt_without_root(tmp_path, one_line):
    for root,missing in ((tmp_path/'none', 'none'), (tmp_path, 'train')):
        with pytest.raises(FileNotFoundError) as e: msmt17(root)
        one_line(e.value, tmp_path/missing, 'Wei et al.', 'list_query.txt')

# --- CUHK03

CUHK = [(pair, person, view) for pair in (1, 2) for person in (1, 2, 3) for view in (0, 1, 5, 6)]   # two pictures under each of two cameras

def cuhk_name(pair, person, view): return f'{pair}_{person:03d}_{1+view//5}_{view+1:02d}.png'
def cuhk_picture(pair, person, view, h=16, w=8):
    "(h,w,3), every pixel its own: an axis in the wrong place shows."
    return np.stack([np.add.outer(np.arange(h)*9, np.arange(w)), np.full((h,w), 40*pair+person), np.full((h,w), 10*view)], 2).astype(np.uint8)

def make_protocol(root, variant='detected'):
    "Persons 1-3 of pair 1 train, those of pair 2 are tested: the first picture of each camera asks. MATLAB's columns, and indices from 1."
    column = lambda x: np.array(x)[:,None]
    places = {k: [i+1 for i,(pair,_,view) in enumerate(CUHK) if which(pair, view)] for k,which in
              dict(train=lambda p,v: p==1, query=lambda p,v: p==2 and v in (0,5), gallery=lambda p,v: p==2 and v in (1,6)).items()}
    names = np.empty((len(CUHK), 1), object); names[:,0] = [cuhk_name(*x) for x in CUHK]
    root.mkdir(parents=True, exist_ok=True)
    savemat(root/f'cuhk03_new_protocol_config_{variant}.mat', dict(filelist=names, labels=column([3*(pair-1)+person for pair,person,_ in CUHK]).astype(np.uint16),
            camId=column([1+v//5 for *_,v in CUHK]).astype(np.uint8), **{f'{k}_idx': column(v).astype(np.float64) for k,v in places.items()}))
    return root

def make_extracted(root, variant='detected'):
    (root/f'images_{variant}').mkdir(parents=True)
    for x in CUHK: Image.fromarray(cuhk_picture(*x)).save(root/f'images_{variant}'/cuhk_name(*x))
    return make_protocol(root, variant)

def make_release(root, variant='detected'):
    "The raw release as MATLAB writes it: cells are references, axes are reversed, an empty cell is a tiny vector with a mark."
    h5py = pytest.importorskip('h5py')
    make_protocol(root, variant)
    with h5py.File(root/'cuhk-03.mat', 'w') as f:
        refs = f.create_group('#refs#')
        empty = refs.create_dataset('empty', data=np.zeros(2, np.uint64)); empty.attrs['MATLAB_empty'] = 1
        cells = f.create_dataset(variant, (1,2), h5py.ref_dtype)                                # 2 pairs x 1 in MATLAB
        for pair in (1, 2):
            people = refs.create_dataset(f'pair{pair}', (10,3), h5py.ref_dtype)                 # 3 people x 10 views in MATLAB
            for person in (1, 2, 3):
                for view in range(10):
                    here = (pair, person, view) in CUHK
                    people[view,person-1] = (refs.create_dataset(f'{pair}-{person}-{view}', data=cuhk_picture(pair, person, view).transpose(2,1,0)) if here else empty).ref
            cells[0,pair-1] = people.ref
    return root

def check_cuhk(listing):
    assert [len(getattr(listing, k)) for k in SPLITS]==[12, 6, 6]
    assert {r.pid for r in listing.train}=={1, 2, 3} and {r.pid for r in listing.query}=={r.pid for r in listing.gallery}=={4, 5, 6}
    for part in SPLITS:
        split = listing.read(part, SIZE)
        for im,r in zip(split.images, getattr(listing, part)):
            pair,person,view,index = map(int, re.findall(r'\d+', r.name))
            assert r.cam==view and r.pid==3*(pair-1)+person
            assert torch.equal(im, torch.from_numpy(cuhk_picture(pair, person, index-1)).permute(2,0,1))

@pytest.mark.parametrize('variant', ['detected', 'labeled'])
@pytest.mark.parametrize('make', [make_extracted, make_release], ids=['extracted', 'raw'])
def test_cuhk(tmp_path, monkeypatch, make, variant):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    root = make(tmp_path/'cuhk', variant)
    before = sorted(root.rglob('*'))
    listing = cuhk03(root, variant)
    assert listing.name==f'cuhk03 {variant}'
    check_cuhk(listing)
    assert sorted(root.rglob('*'))==before                                # nothing is written beside the data
    name = 'cuhk03' if variant=='detected' else 'cuhk03-labeled'
    assert list_data(name, root)==listing

def test_cuhk_is_extracted_once_and_whole(tmp_path, monkeypatch, one_line):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    root = make_release(tmp_path/'cuhk')
    with monkeypatch.context() as m:
        def crash(steps, *a, **k): next(steps); raise KeyboardInterrupt
        m.setattr(S, 'progress', crash)
        with pytest.raises(KeyboardInterrupt): cuhk03(root)
    assert list((tmp_path/'cache').iterdir())==[]
    folder = cuhk03(root).root
    monkeypatch.setattr(S, 'extract_pictures', None)                      # a second extraction would fail
    assert cuhk03(root).root==folder and list((tmp_path/'cache').iterdir())==[folder.parent]

def test_cuhk_lost_race_uses_the_winner(tmp_path, monkeypatch):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    root,replace = make_release(tmp_path/'cuhk'), os.replace
    def slower(mine, target):
        if Path(mine).is_dir(): replace(mine, target); Path(mine).mkdir(); (Path(mine)/'mine').touch()   # the other was here a moment ago
        replace(mine, target)
    monkeypatch.setattr(os, 'replace', slower)
    check_cuhk(cuhk03(root))
    assert len([p for p in (tmp_path/'cache').iterdir() if 'cuhk03' in p.name])==1

KILLED = '''
import os, signal, sys
import privreid.public as S
def deadly(steps, *args, **how): next(steps); os.kill(os.getpid(), signal.SIGKILL)
S.progress = deadly
S.cuhk03(sys.argv[1])
'''

@posix
def test_cuhk_killed_half_way(tmp_path, monkeypatch):
    cache = tmp_path/'cache'
    monkeypatch.setenv('PRIVREID_CACHE', str(cache)); monkeypatch.setenv('PYTHONPATH', str(Path(S.__file__).parents[1]))
    root = make_release(tmp_path/'cuhk')
    assert subprocess.run([sys.executable, '-c', KILLED, root]).returncode==-signal.SIGKILL
    left, = cache.iterdir()
    assert left.name.startswith('.cuhk03-') and list(left.rglob('*.png'))
    time.sleep(1)                                                         # who wrote there has nobody to tell, and ends
    check_cuhk(cuhk03(root))
    assert left.exists()                                                  # its writer may be alive
    for p in (left, *left.rglob('*')): os.utime(p, (time.time()-3700,)*2)
    check_cuhk(cuhk03(make_release(tmp_path/'again')))
    assert not left.exists() and not list(cache.glob('.*'))

@posix
def test_cuhk_needs_a_cache_that_can_be_written(tmp_path, monkeypatch, one_line):
    root,cache = make_release(tmp_path/'cuhk'), tmp_path/'cache'
    cache.mkdir(0o555)
    monkeypatch.setattr(S, '_apart', lambda work, *args, **how: work(*args))   # nobody may not even start Python, where it is root's
    with nobody(monkeypatch, cache), pytest.warns(UserWarning) as w: check_cuhk(cuhk03(root))   # for as long as the process runs
    one_line(w[0].message, cache, 'Set PRIVREID_CACHE')
    assert not list(cache.iterdir())

@posix
def test_cuhk_is_kept_from_others_and_made_again_where_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    root = make_release(tmp_path/'cuhk')
    folder = cuhk03(root).root
    assert all(p.stat().st_mode&0o77==0 for p in (tmp_path/'cache').rglob('*'))
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(b''), lambda p: p.write_bytes(bytes(len(p.read_bytes())))):
        damage(sorted(folder.glob('*.png'))[3])
        check_cuhk(cuhk03(root))

def test_cuhk_needs_h5py_for_the_release_only(tmp_path, monkeypatch, one_line):
    root = make_release(tmp_path/'raw'); extracted = make_extracted(tmp_path/'extracted')
    monkeypatch.setitem(__import__('sys').modules, 'h5py', None)
    with pytest.raises(ValueError) as e: cuhk03(root)
    one_line(e.value, root/'cuhk-03.mat', 'privreid[cuhk03]')
    check_cuhk(cuhk03(extracted))

def test_cuhk_release_in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    root = make_release(tmp_path/'cuhk'); (root/'cuhk03_release').mkdir()
    (root/'cuhk-03.mat').rename(root/'cuhk03_release'/'cuhk-03.mat')
    check_cuhk(cuhk03(root))

def test_cuhk_mistakes(tmp_path, monkeypatch, one_line):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    with pytest.raises(ValueError) as e: cuhk03(tmp_path, 'labelled')
    one_line(e.value, 'labelled', 'labeled')
    root,config = tmp_path/'a', 'cuhk03_new_protocol_config_detected.mat'
    root.mkdir()
    with pytest.raises(FileNotFoundError) as e: cuhk03(root)
    one_line(e.value, root/config, 'person-re-ranking')
    make_protocol(root)
    with pytest.raises(FileNotFoundError) as e: cuhk03(root)
    one_line(e.value, root/'images_detected', 'cuhk-03.mat')
    (root/'cuhk-03.mat').write_bytes(b'not HDF5')
    with pytest.raises(ValueError) as e: cuhk03(root)
    one_line(e.value, root/'cuhk-03.mat')
    make_extracted(tmp_path/'b'); gone = tmp_path/'b'/'images_detected'/cuhk_name(*CUHK[5]); gone.unlink()
    with pytest.raises(FileNotFoundError) as e: cuhk03(tmp_path/'b')
    one_line(e.value, '1 images', gone.name)

@pytest.mark.parametrize('change', [dict(train_idx=[[0]]), dict(query_idx=[[99]]), dict(camId=[[1],[2]]), dict(filelist=None), dict(labels=[[float('nan')]]*24), dict(camId=[[1.5]]*24), *(dict(gallery_idx=[[x]]) for x in (float('nan'), float('inf'), 1e300, 1.5, 1+2j, 'a')), None])
def test_cuhk_damaged_protocol(tmp_path, one_line, change):
    from scipy.io import loadmat
    root = make_extracted(tmp_path/'cuhk'); path = root/'cuhk03_new_protocol_config_detected.mat'
    if change is None: path.write_bytes(path.read_bytes()[:300])
    else: savemat(path, {k: v for k,v in (loadmat(path)|change).items() if v is not None and k[0]!='_'})
    with warnings.catch_warnings(), pytest.raises(ValueError) as e: warnings.simplefilter('error'); cuhk03(root)
    one_line(e.value, path, 'Get it again from https://')
    assert 'Warning' not in str(e.value)                                  # none that NumPy gives on the way to a wrong number

def element(kind, data): return struct.pack('<II', kind, len(data))+data+bytes(-len(data)%8)
def variable(name=b'labels', what=6, dims=(1, 1), content=element(2, b'1'), flags=0):
    return element(14, element(6, struct.pack('<II', what|flags, 0))+element(5, struct.pack(f'<{len(dims)}i', *dims))+element(1, name)+content)
HEAD = b'MATLAB 5.0 MAT-file'.ljust(124)+b'\0\1IM'
def packed(data): data = zlib.compress(data, 9); return struct.pack('<II', 15, len(data))+data

@pytest.mark.parametrize('data,named', [
    (HEAD+variable(dims=(10**9, 1)), 'labels claims 1000000000x1 entries'),            # eight gigabytes, as numbers of MATLAB
    (HEAD+variable(b'filelist', 1, (10**9, 1), b''), 'filelist claims 1000000000x1 entries'),
    (HEAD+variable(b'filelist', 1, (10**6, 1), b''), 'filelist is no list of 1,000,000 texts'),
    (HEAD+variable(b'filelist', 4, (1, 2**31-1), element(4, b'a\0')), 'filelist claims 1x2147483647 entries'),
    (HEAD+variable(dims=(-1, 1)), 'labels claims -1x1 entries'), (HEAD+variable(dims=()), 'labels claims  entries'), (HEAD+variable(dims=(2, 2), content=element(2, b'1111')), 'labels is a table of 2x2'),
    (HEAD+struct.pack('<II', 14, 2**32-1), 'a part claims 4,294,967,295 bytes where 0 are left'), (HEAD+variable(content=struct.pack('<II', 9, 2**31)), 'a part claims 2,147,483,648 bytes'),
    (HEAD+variable(content=element(9, bytes(7))), 'cannot be read'), (HEAD+variable(dims=(2, 1)), 'labels claims 2 numbers and has 1'), (HEAD+variable(flags=0x800), 'labels holds neither text nor real numbers'),
    (HEAD+packed(bytes(2**26)), 'it holds more than 32 MB'), (HEAD+packed(element(14, bytes(2**24)))*3, 'it holds more than 32 MB'), (HEAD+packed(variable())[:-3], 'a part claims'), (HEAD+packed(variable())[:-3].replace(struct.pack('<I', len(packed(variable()))-8), struct.pack('<I', len(packed(variable()))-11)), 'a compressed part is cut off'), (HEAD+element(15, b'x'*24), 'a compressed part is damaged'),
    (HEAD+variable()[:-3], 'a part claims'), (HEAD+b'abc', 'it is cut off'), (HEAD+variable(), 'it holds no filelist'), (HEAD, 'it holds no filelist'), (b'', 'no MAT-file of version 5'), (HEAD[:126]+b'XY', 'no MAT-file of version 5'),
    (b'MATLAB 7.3 MAT-file'.ljust(124)+b'\0\2IM', 'save -v7'), (bytes(2**25+1), 'it has more than 32 MB')], ids=range(25))
def test_a_protocol_that_lies_costs_nothing(tmp_path, one_line, data, named):
    "What a file claims is held against what is there before anything is taken."
    path = make_protocol(tmp_path)/'cuhk03_new_protocol_config_detected.mat'
    path.write_bytes(data)
    tracemalloc.start(); start = time.process_time()
    with pytest.raises(ValueError) as e: S.read_protocol(path)
    peak,seconds = tracemalloc.get_traced_memory()[1], time.process_time()-start; tracemalloc.stop()
    one_line(e.value, path, named, 'https://github.com/zhunzhong07/person-re-ranking')
    assert peak<2.2*2**25 and seconds<2

@pytest.mark.parametrize('compressed', [False, True])
@pytest.mark.parametrize('kind', ['u1', 'i1', 'u2', 'i2', 'u4', 'i4', 'u8', 'i8', 'f4', 'f8'])
def test_a_protocol_is_read_as_scipy_reads_it(tmp_path, kind, compressed):
    from scipy.io import loadmat
    path,names = tmp_path/'p.mat', ['a.png', 'ä b', '李.png', ' x ', *('y'*k for k in range(1, 9))]
    n,beside = len(names), dict(table=np.eye(3), struct=dict(a=1, b='x'), complex=np.array([1+2j]), empty=np.zeros((0, 0)), cell=np.array([np.eye(2), 'a'], object))
    for files in (np.array(names, object), np.array(names, object)[:,None], np.array(names[:1]+['b.png']*(n-1))):   # a row, a column, a block of letters
        column = (lambda x: np.array(x, kind)[:,None]) if files.ndim==2 else lambda x: np.array(x, kind)
        savemat(path, dict(beside, filelist=files, labels=column(range(n)), camId=column([1, 2]*(n//2)), train_idx=column([1, 2, n]), query_idx=column([4]), gallery_idx=column([5, 6])), do_compression=compressed)
        mat = {k: np.atleast_1d(v) for k,v in loadmat(path, squeeze_me=True).items() if k[0]!='_'}
        images = [(str(f).strip(), str(int(p)), str(int(c))) for f,p,c in zip(mat['filelist'], mat['labels'], mat['camId'], strict=True)]
        assert S.read_protocol(path)==[(*images[int(i)-1], part) for part in SPLITS for i in mat[f'{part}_idx']]

def test_a_protocol_of_the_other_byte_order(tmp_path):
    def element(kind, data): return (struct.pack('>HH', len(data), kind)+data.ljust(4, b'\0') if 0<len(data)<5 else struct.pack('>II', kind, len(data))+data+bytes(-len(data)%8))
    def variable(name, what, dims, content): return element(14, element(6, struct.pack('>II', what, 0))+element(5, struct.pack('>2i', *dims))+element(1, name)+content)
    names = b''.join(variable(b'', 4, (1, 5), element(4, f'{k}.png'.encode('utf-16-be'))) for k in 'abc')
    def numbers(name, *x): return variable(name, 6, (len(x), 1), element(3, struct.pack(f'>{len(x)}h', *x)))
    (tmp_path/'p.mat').write_bytes(HEAD[:124]+b'\1\0MI'+variable(b'filelist', 1, (3, 1), names)+numbers(b'labels', 300, 7, 8)+numbers(b'camId', 1, 2, 1)+numbers(b'train_idx', 1)+numbers(b'query_idx', 2)+numbers(b'gallery_idx', 3))
    assert S.read_protocol(tmp_path/'p.mat')==[('a.png', '300', '1', 'train'), ('b.png', '7', '2', 'query'), ('c.png', '8', '1', 'gallery')]

# what a library of C reads, it reads in a process of its own; the functions stand here, as their source is what runs
def dies(number): import os; yield 'begun'; os.kill(os.getpid(), number)
def ends(): import os; yield 1; os._exit(3)
def hungry(): yield len(bytearray(10**10))
def takes(n): import time; x = b'x'*n; yield len(x); time.sleep(60)
def hangs(): import time; yield 1; time.sleep(60)
def slow():
    import time
    for i in range(6): time.sleep(.4); yield i
def fails(): yield 1; raise KeyError('no such thing')
def echo(*args): yield from args
def modules(): import sys; yield sorted(sys.modules)

@pytest.mark.parametrize('work,args,named', [pytest.param(dies, [int(signal.SIGSEGV)], 'its reader died of SIGSEGV', marks=posix), pytest.param(dies, [int(getattr(signal, 'SIGKILL', 9))], 'its reader died of SIGKILL', marks=posix),
                                             (ends, (), 'its reader died of code 3'), (hungry, (), 'it asks for more than 256 MB of memory'), (hangs, (), 'nothing was heard of its reader for 2 s'), (fails, (), 'no such thing')], ids=lambda x: getattr(x, '__name__', None))
def test_a_decoder_that_is_kept_apart_takes_nobody_with_it(work, args, named):
    start = time.perf_counter()
    with pytest.raises(ValueError) as e: list(distrust.apart(work, *args, patience=2))
    assert str(e.value)==named and time.perf_counter()-start<30

@posix
def test_memory_is_watched_where_the_system_sets_no_limit(monkeypatch):
    monkeypatch.setattr(distrust, '_CHILD', distrust._CHILD.replace('psutil, resource', 'nothing_of_the_kind'))
    with pytest.raises(ValueError, match='more than 256 MB of memory'): list(distrust.apart(takes, 4*10**8))

def test_a_process_apart_is_light_and_patient():
    odd = ['ä\n', '\udcff', None, 1.5, [1, {'a': 'b'}]]
    assert list(distrust.apart(echo, *odd))==odd
    assert list(distrust.apart(slow, patience=2))==[*range(6)]                  # it tells something all the time
    assert not {'torch', 'numpy', 'privreid', 'scipy'}&set(next(distrust.apart(modules)))
    with pytest.raises(ImportError): list(distrust.apart(echo, needs=('no_such_module_here',)))
    steps = distrust.apart(hangs); next(steps); start = time.perf_counter(); steps.close()
    assert time.perf_counter()-start<5                                    # nobody listens: it is ended

def test_a_release_that_kills_its_reader(tmp_path, monkeypatch, one_line):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    root = make_release(tmp_path/'cuhk')
    for work,named in ((ends, 'its reader died of code 3'), (fails, 'no such thing')):
        monkeypatch.setattr(S, '_write_pictures', lambda *a: None)
        monkeypatch.setattr(S, '_apart', lambda _, *a, apart=S._apart, work=work, **k: apart(work))
        with pytest.raises(ValueError) as e: cuhk03(root)
        monkeypatch.undo(); monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
        one_line(e.value, root/'cuhk-03.mat', f'cannot be extracted: {named}. Unpack the data set again.')
        assert not list((tmp_path/'cache').iterdir())
    check_cuhk(cuhk03(root))

def test_a_release_that_claims_too_much(tmp_path, monkeypatch, one_line):
    h5py = pytest.importorskip('h5py')
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    root = make_release(tmp_path/'cuhk')
    for shape in ((3, 8000, 8000), (3, 2**40, 2**40)):
        with h5py.File(root/'cuhk-03.mat', 'r+') as f:
            if 'huge' in f: del f['huge']
            huge = f.create_dataset('huge', shape, 'u1', chunks=(1, 64, 64))   # nothing of it is there
            f['#refs#/pair1'][0,0] = huge.ref
        with pytest.raises(ValueError) as e: cuhk03(root)
        one_line(e.value, root/'cuhk-03.mat', f'picture 1 of person 1_001 claims {shape[0]*shape[1]*shape[2]:,} bytes')
    with h5py.File(root/'cuhk-03.mat', 'r+') as f:
        del f['huge'], f['detected']
        f.create_dataset('detected', (10**6, 10**6), h5py.ref_dtype, chunks=(9, 9))
    with pytest.raises(ValueError) as e: cuhk03(root)
    one_line(e.value, root/'cuhk-03.mat', 'memory' if os.name=='posix' else '')

# --- one's own pictures

WHO = 'Ada', 'Zoë', 'van Dyk, A.', '李', '7', '12', '0', '-1'

@pytest.fixture
def own(tmp_path):
    for who in WHO:
        for cam in ('yard', 'door'):
            for i in range(3): put(tmp_path/'own'/who/('deeper' if i else '')/f'{cam}_{i}.png')
    return tmp_path/'own'

def as_rows(listing): return {part: sorted(r.name for r in getattr(listing, part)) for part in SPLITS}

def test_folders(own):
    listing = image_folder(own)
    assert {r.name.split('/')[0]: r.pid for part in SPLITS for r in getattr(listing, part)}=={who: i for i,who in enumerate(('0', '7', '12', '-1', 'Ada', 'Zoë', 'van Dyk, A.', '李'), 1)}   # '0' and '-1' are people like others
    assert {r.name.rpartition('/')[2][:4]: r.cam for r in listing.train}=={'door': 1, 'yard': 2}
    assert [len({r.pid for r in getattr(listing, part)}) for part in SPLITS]==[4, 4, 4] and len(listing.query)==8
    for q in listing.query: assert any(g.pid==q.pid and g.cam!=q.cam for g in listing.gallery)
    (own/'Ada'/'nocamera.png').touch(); (own/'stray.png').touch(); (own/'Ada'/'Thumbs.db').touch()
    assert image_folder(own).left_out==dict(misnamed=['Ada/nocamera.png', 'stray.png'], foreign=['Ada/Thumbs.db'], unopened=[])
    with pytest.warns(UserWarning, match='2 images are left out'): image_folder(own).load(SIZE)

def test_three_ways_to_say_the_same(own):
    listing = image_folder(own)
    assert as_rows(image_folder(own, r'^(?P<identity>[^/]+)/.*?(?P<camera>yard|door)_'))==as_rows(listing)
    with (own/'manifest.csv').open('w', newline='', encoding='utf-8-sig') as f:
        rows = csv.writer(f); rows.writerow(['camera', 'path', 'identity', 'remark'])
        for p in own.rglob('*.png'): rows.writerow([p.name[:4], p.relative_to(own).as_posix(), p.relative_to(own).parts[0], 'x, "y"'])
    for root in (own, own/'manifest.csv'): assert as_rows(image_folder(root))==as_rows(listing)
    assert not {r.pid for r in listing.train}&{r.pid for r in listing.gallery+listing.query}

def test_given_splits_are_kept(tmp_path):
    for part in SPLITS:
        for who in 'ab': put(tmp_path/part/f'{who}_1.png'); put(tmp_path/part/f'{who}_2.png')
    pattern = r'(?P<split>\w+)/(?P<identity>\w)_(?P<camera>\d)'
    by_pattern = image_folder(tmp_path, pattern)
    assert as_rows(by_pattern)=={part: [f'{part}/{who}_{c}.png' for who in 'ab' for c in '12'] for part in SPLITS}
    (tmp_path/'m.csv').write_text('path,identity,camera,split\n'+''.join(f'{n},{n.split("/")[1][0]},{n[-5]},{part}\n' for part,names in as_rows(by_pattern).items() for n in names))
    assert as_rows(image_folder(tmp_path/'m.csv'))==as_rows(by_pattern)
    (tmp_path/'query').rename(tmp_path/'ask')
    with pytest.raises(ValueError) as e: image_folder(tmp_path, pattern)
    assert "split 'ask' is unknown" in str(e.value)

@pytest.mark.parametrize('text,named', [('path,identity\na.png,x\n', ['line 1', "'camera'"]), ('', ['line 1', "'path'"]), ('path,identity,camera\na.png,x,1\n\nb.png,x,1\n', ['line 4', 'b.png']),
    ('path,identity,camera,split\na.png,x,1,train\na.png,x,1,validation\n', ['line 3', "'validation'", 'query']), ('path,identity,camera,split\na.png,x,1\n', ['line 2', 'split']),
    ('path,identity,camera\na.png,,1\n', ['line 2', 'empty']), ('path,identity,camera\na.png\n', ['line 2', 'empty']), ('name;identity;camera\na.png;x;1\n', ['line 1', "'path'", "'name'"]), ('path,Path,identity,camera\na.png,a.png,x,1\n', ['line 1', '2 columns', 'path']), ('path,identity,camera\na,b.png,x,1\n', ['line 2', '4 values in 3 columns', 'quotes']),
    ('path,identity,camera\n"a.png",x,1\n"b\nc.png",x,1\n', ['line 4']), ('path,identity,camera\n', ['identity']),
    ('path,identity,camera\na.png,x,1\n"a.png,x,1\n'+'a.png,x,1\n'*20_000, ['line 3', 'field limit', 'quote']), ('path,identity,camera,remark\na.png,x,1,"well\na.png,y,1,\n', ['line 2', 'quote']),
    ('path,identity,"camera\na.png,x,1\n', ['line 1', 'quote']), ('path,identity,camera\n"a.png"b,x,1\n', ['line 2', 'quote'])])
def test_manifest_mistakes(tmp_path, one_line, text, named):
    put(tmp_path/'a.png'); (tmp_path/'m.csv').write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as e: image_folder(tmp_path/'m.csv')
    if 'c.png' in text: assert 'line 4' in str(e.value)                   # the name itself has two lines
    else: one_line(e.value, tmp_path, *named)

@pytest.mark.parametrize('again,named', [('a1.png,b,1,gallery', 'train as person 1, gallery as person 2'), ('a1.png,b,1,train', 'train as person 1, train as person 2'), ('q2.png,q,2,query', 'query as person 3, gallery as person 3')])
def test_a_picture_is_listed_once(tmp_path, one_line, again, named):
    "Twice would be a leak, a contradiction or a gift; the doctor agrees."
    rows = [f'{who}{c}.png,{who},{c},{part}' for who,parts in (('a', ['train']*2), ('b', ['train']*2), ('q', ['query', 'gallery'])) for c,part in enumerate(parts, 1)]
    for row in rows: put(tmp_path/row.split(',')[0])
    (tmp_path/'manifest.csv').write_text('\n'.join(['path,identity,camera,split', *rows]))
    assert len(image_folder(tmp_path).train)==4
    (tmp_path/'manifest.csv').write_text('\n'.join(['path,identity,camera,split', *rows, again]))
    with pytest.raises(ValueError) as e: image_folder(tmp_path)
    one_line(e.value, tmp_path, again.split(',')[0], f'listed 2 times ({named})', 'keep one line')

@pytest.mark.parametrize('start,named', [(b'PK\x03\x04', 'spreadsheet or an archive'), (b'\xd0\xcf\x11\xe0', 'a spreadsheet'), (b'\x89PNG', 'a picture')])
def test_manifest_that_is_no_text(tmp_path, one_line, start, named):
    (tmp_path/'m.csv').write_bytes(start+bytes(range(256)))
    with pytest.raises(ValueError) as e: image_folder(tmp_path/'m.csv')
    one_line(e.value, tmp_path/'m.csv', named, 'CSV')

@pytest.mark.parametrize('pattern,named', [(r'(\w+)/(\d)', 'identity'), (r'(?P<identity>\w+)/\d', 'camera'), (r'(?P<identity>\w+', 'not a regular expression'), (r'(?P<identity>q)(?P<camera>z)', 'no image')])
def test_pattern_mistakes(own, one_line, pattern, named):
    with pytest.raises(ValueError) as e: image_folder(own, pattern)
    one_line(e.value, named)

@pytest.mark.parametrize('cams', [1, 2])
def test_too_little_to_divide(tmp_path, one_line, cams):
    "One camera leaves no query; two people leave one to train on."
    for who in 'abcd'[:4 if cams==1 else 2]:
        for cam in range(cams): put(tmp_path/who/f'{cam}_0.png'); put(tmp_path/who/f'{cam}_1.png')
    with pytest.raises(ValueError) as e: image_folder(tmp_path).load(SIZE)
    one_line(e.value, tmp_path, 'query' if cams==1 else 'fewer than three people')

people_and_cameras = st.dictionaries(st.text(st.characters(exclude_categories=['Cs', 'Cc'], exclude_characters='/'), min_size=1, max_size=5), st.lists(st.integers(1, 4), min_size=1, max_size=9), min_size=1, max_size=9)

@settings(max_examples=200)
@given(people_and_cameras, st.randoms())
def test_divide(people, random):
    names = {i: who for i,who in enumerate(sorted(people), 1)}
    records = [Record(f'{who}/{c}_{j}.png', i, c) for i,who in names.items() for j,c in enumerate(people[who])]
    train,query,gallery = divide(records, names)
    assert sorted(train+query+gallery)==sorted(records)                   # exhaustive, nothing twice
    learners,tested = {r.pid for r in train}, {r.pid for r in query+gallery}
    assert not learners&tested and len(learners)-len(tested) in (0, 1)
    for q in query: assert any(g.pid==q.pid and g.cam!=q.cam for g in gallery)
    assert len({(q.pid, q.cam) for q in query})==len(query)               # one for each person and camera
    for pid in tested: assert any(q.pid==pid for q in query)==(len({r.cam for r in records if r.pid==pid})>1)
    random.shuffle(records)
    assert divide(records, names)==(train, query, gallery)                # whatever the order on disk
    more = divide(records, names|{99: 'newcomer!'}) if 'newcomer!' not in people else (train,)
    assert len(learners^{r.pid for r in more[0]})<=1                      # a newcomer moves nobody but the one in the middle

@settings(max_examples=200)
@given(st.lists(st.integers(1, 4), max_size=10))
def test_one_query_per_camera(cams):
    ask = one_query_per_camera(cams)
    rest = [c for i,c in enumerate(cams) if i not in ask]
    assert len({cams[i] for i in ask})==len(ask)
    for i in ask: assert cams.index(cams[i])==i and any(c!=cams[i] for c in rest)
    if cams and min(cams.count(c) for c in cams)>1 and len(set(cams))>1: assert len(ask)==len(set(cams))   # everybody can ask

@settings(max_examples=20)
@given(st.integers(5, 30), st.integers(0, 5))
def test_validation_of_a_listing(n, seed):
    "4:1 within one identity, through a listing: nobody is decoded for it."
    records = [Record(f'{p}_{c}_{j}', p, c) for p in range(1, n+1) for c in (1, 2) for j in range(5)]
    listing = Listing('x', Path('nowhere'), records, [Record('q', n+1, 1)], [Record('g', n+1, 2)])
    listing.read = lambda part, size: Split(torch.zeros(len(getattr(listing, part)), 3, 1, 1, dtype=torch.uint8), torch.tensor([r.pid for r in getattr(listing, part)]), torch.tensor([r.cam for r in getattr(listing, part)]), [r.name for r in getattr(listing, part)])
    data,again = listing.load(SIZE, seed), listing.load(SIZE, seed)
    held = data.val_gallery.pids.unique().tolist()
    assert len(held)==round(n/5) and len(data.val_query)==2*len(held) and len(data.val_gallery)==8*len(held)
    assert sorted(data.train.names+data.val_query.names+data.val_gallery.names)==sorted(r.name for r in records)
    assert [getattr(data, k).names for k in PARTS]==[getattr(again, k).names for k in PARTS]

# --- data as people have them

TWICE = ('0001', '1'), ('Zoë', 'Zoe\u0308'), ('b', 'b '), ('c d', 'c\u00a0d'), ('7.0', '07'), ('e\u200b', 'e')   # one person, two spellings

def make_spelled(root, how):
    "Six people whom their files spell in two ways, under two cameras that are spelled in two ways, too."
    rows = [(f'{who}/{cam}_{i}.png', who, cam) for pair in TWICE for who,cams in zip(pair, (('1', '2'), ('01', '2.0'))) for cam in cams for i in (1, 2)]
    for name,*_ in rows: put(root/name)
    if how=='table': (root/'manifest.csv').write_text('\n'.join(['path;person;cam', *(f'{name};"{who}";{cam}' for name,who,cam in rows)]), encoding='utf-8')
    return image_folder(root, r'^(?P<identity>.+)/(?P<camera>[^_]+)_' if how=='pattern' else None)

@pytest.mark.parametrize('how', ['folders', 'pattern', 'table'])
def test_one_person_is_one_however_spelled(tmp_path, how):
    listing = make_spelled(tmp_path, how)
    records = [r for part in SPLITS for r in getattr(listing, part)]
    assert len(records)==48 and {r.pid for r in records}==set(range(1, 7)) and {r.cam for r in records}=={1, 2}
    assert not people_of(listing.train)&people_of(listing.query+listing.gallery)
    assert len(listing.load(SIZE).query)==6

def test_one_person_is_one_in_lists_and_in_market_names(tmp_path):
    root = make_msmt(tmp_path/'msmt')
    for k in ('train', 'query'):
        path = root/f'list_{k}.txt'
        path.write_bytes(('\ufeff'+path.read_text().replace(' 3\n', ' 0003 \n').replace('0001/', '.\\0001\\', 1)).encode('utf-16-le'))
    assert msmt17(root)==msmt17(make_msmt(tmp_path/'plain')) or [msmt17(root).train, msmt17(root).query]==[msmt17(tmp_path/'plain').train, msmt17(tmp_path/'plain').query]
    for folder,name in (('bounding_box_train', '0001_c1s1_1.png'), ('bounding_box_train', '1_c01s1_2.png'), ('bounding_box_train', '01_C2S1_3.png'), ('query', '5_c1_1.png'), ('bounding_box_test', '0005_c2_1.png')): put(tmp_path/'market'/folder/name)
    listing = market1501(tmp_path/'market')
    assert {(r.pid, r.cam) for r in listing.train}=={(1, 1), (1, 2)} and listing.query[0].pid==listing.gallery[0].pid==5

def make_market(root, train, test):
    "People by name, in Market-1501's layout: two images under each of two cameras."
    for folder,people,shots in (('bounding_box_train', train, (1, 2)), ('query', test, (1,)), ('bounding_box_test', test, (2,))):
        for who in people:
            for cam in (1, 2):
                for shot in shots: put(root/folder/f'{who}_c{cam}s1_{shot:06d}_00.jpg', (10*len(who)%256, 50*cam, 90*shot))
    return root

def test_identities_of_any_length_and_kind_train(tmp_path):
    long = ['1'+'0'*20, '1'+'0'*19+'1', '9'*40]
    train = [*long, 'person-A', 'person_B', '0007', 'Zoë']
    data = load_data('market1501', make_market(tmp_path/'market', train, ['12', '7'*21, 'Ada']), SIZE)
    pids = data.train.pids.tolist()+data.val_gallery.pids.tolist()
    assert len(set(pids))==7 and 7 in pids and min(pids)==7 and max(pids)<100 and sorted(data.query.pids.unique().tolist())[0]==12
    assert int(data.train.labels().max())+1==len(set(data.train.pids.tolist())) and len(PKSampler(data.train.pids, 2, 2).epoch(0))
    for who in train: put(tmp_path/'own'/who/'1_1.png'); put(tmp_path/'own'/who/'1_2.png'); put(tmp_path/'own'/who/'2_1.png')
    assert len(load_data('folder', tmp_path/'own', SIZE).query)

def test_person_0_of_market_names_is_not_lost_in_silence(tmp_path, one_line):
    root = make_market(tmp_path/'market', ['0000', '0001', '0002', '0003'], ['-1', '0004', '0005'])
    with pytest.warns(UserWarning) as w: data = market1501(root).load(SIZE)
    one_line(w[0].message, '6 images are left out', '0000_c1s1_000001_00.jpg', 'number people from 1', '--pattern')
    assert len(w)==1 and len(data.query)==4 and market1501(root).left_out['junk']==['bounding_box_test/-1_c1s1_000002_00.jpg', 'bounding_box_test/-1_c2s1_000002_00.jpg']

def test_pictures_that_cannot_be_opened_are_told_when_training(own, one_line):
    (own/'Ada'/'door_9.heic').write_bytes(b'?')
    with pytest.warns(UserWarning) as w: image_folder(own).load(SIZE)
    one_line(w[0].message, '1 images are left out', 'door_9.heic', 'JPEG')

def test_layouts_of_others_are_named(tmp_path, one_line):
    "A folder for each person with Market's names (layumi's), its parent, Market itself, and a flat folder."
    for part,people in (('train', '1234'), ('query', '56'), ('gallery', '56')):
        for who in people:
            for cam in (1, 2): put(tmp_path/'pytorch'/part/f'000{who}'/f'000{who}_c{cam}s1_{part}_00.jpg'); put(tmp_path/'flat'/f'000{who}_c{cam}s1_{part}_00.jpg')
    for root,named in (('pytorch/train', ["'0001' was taken for the identity and '0001' for the camera", MARKET_PATTERN]), ('pytorch', ['gallery, query, train were taken for people', '(?P<split>']), ('flat', ['nothing was understood', MARKET_PATTERN])):
        with pytest.raises(ValueError) as e: image_folder(tmp_path/root)
        one_line(e.value, tmp_path/root, '--pattern', *named)
    assert len(people_of_all(image_folder(tmp_path/'flat', MARKET_PATTERN)))==len(people_of_all(image_folder(tmp_path/'pytorch', MARKET_PATTERN)))==6   # the way out is one
    listing = image_folder(tmp_path/'pytorch', '^(?P<split>train|query|gallery)/.*'+MARKET_PATTERN)
    assert [len(getattr(listing, part)) for part in SPLITS]==[8, 4, 4]

def people_of_all(listing): return {r.pid for part in SPLITS for r in getattr(listing, part)}

@pytest.mark.parametrize('name', ['market1501', 'msmt17', 'cuhk03', 'folder'])
def test_roots_that_are_none(tmp_path, one_line, name):
    (tmp_path/'set.zip').write_bytes(b'PK\3\4'); (tmp_path/'a.jpg').write_bytes(b'\xff\xd8'); (tmp_path/'empty').mkdir()
    for root,named in (('none', 'is not there'), ('set.zip', 'is an archive: unpack it'), ('a.jpg', 'a picture' if name=='folder' else 'is a file: give the folder'), ('empty', 'not there' if name!='folder' else 'no image')):
        with pytest.raises((ValueError, OSError)) as e: list_data(name, tmp_path/root)
        one_line(e.value, tmp_path/root, named)
        assert 'yourself' not in str(e.value)

def test_the_folder_one_level_up_is_proposed(tiny_market, one_line):
    root = tiny_market()
    with pytest.raises(FileNotFoundError) as e: market1501(root/'query')
    one_line(e.value, f'Did you mean {root}?')

def test_roots_are_kept_in_full(own, monkeypatch, tiny_market):
    monkeypatch.chdir(own.parent)
    assert image_folder('own').root==image_folder('./own/../own').root==own and list_data('market1501', tiny_market(name='own2').relative_to(own.parent)).root==own.parent/'own2'
    monkeypatch.setenv('HOME', str(own.parent))
    assert image_folder('~/own').root==own

def test_tables_point_to_files_as_people_write_them(own, tmp_path, one_line):
    "Backslashes, ./, absolute paths below and outside of the root: the same listing. A second spelling of a file is the same file."
    names = sorted(p.relative_to(own).as_posix() for p in own.rglob('*.png'))
    def rows(write): return '\n'.join(['Path\tID\tCam\tPID', *(f'{write(n)}\t{i}\t{n.rpartition("/")[2][:4]}\t"{n.split("/")[0]}"' for i,n in enumerate(names))])
    listing = image_folder(own)
    for write in (lambda n: n.replace('/', '\\'), lambda n: './'+n, lambda n: f'{own}/{n}', lambda n: n.replace('/', '//')):
        (own/'list.tsv').write_text(rows(write), encoding='utf-16')
        assert as_rows(image_folder(own/'list.tsv'))==as_rows(listing)
    (tmp_path/'beside').mkdir(); (tmp_path/'beside'/'list.csv').write_text(rows(lambda n: f'../own/{n}'))
    outside = image_folder(tmp_path/'beside'/'list.csv')
    assert outside.paths('query')==listing.paths('query') and len(outside.load(SIZE).query)==len(listing.query)
    (own/'list.tsv').write_text(rows(str)+f'\n./{names[0]}\t99\tyard\tsomebody else')
    with pytest.raises(ValueError) as e: image_folder(own/'list.tsv')
    one_line(e.value, names[0], 'listed 2 times')

def test_a_table_that_leaves_images_out_is_told(own, one_line):
    names = sorted(p.relative_to(own).as_posix() for p in own.rglob('*.png'))
    (own/'Manifest.CSV').write_text('\n'.join(['file,person,cam', *(f'"{n}","{n.split("/")[0]}",{n.rpartition("/")[2][:4]}' for n in names[:-1])]))
    listing = image_folder(own)
    assert listing.left_out==dict(unlisted=names[-1:], foreign=[], unopened=[])
    with pytest.warns(UserWarning, match='1 images are left out: they are in no list'): listing.load(SIZE)

@pytest.mark.parametrize('damage,named', [(lambda r: [p.unlink() for p in (r/'bounding_box_train').glob('*_c2*')], 'training is seen by a single camera'), (lambda r: [p.unlink() for p in r.glob('[qb]*[yt]/*_c2*')], 'the test is seen by a single camera'),
    (lambda r: [p.rename(p.with_name('9'+p.name[1:])) for p in (r/'query').glob('*')], 'no query has a match'), (lambda r: [p.unlink() for k in '234' for p in r.glob(f'*/000{k}*')], 'fewer than three people'),
    (lambda r: [p.unlink() for p in r.glob('bounding_box_train/*2_00.jpg')], 'nobody in training has three images')])
def test_what_cannot_work_is_refused_before_a_pixel_is_read(tmp_path, monkeypatch, one_line, damage, named):
    root = make_market(tmp_path/'market', ['0001', '0002', '0003', '0004'], ['0011', '0012'])
    listing,data = market1501(root), market1501(root).load(SIZE)
    refuse_unusable(listing); refuse_unusable(data)
    damage(root)
    monkeypatch.setattr(listings, 'decode', None)                         # a pixel would be an error
    with pytest.raises(ValueError) as e: load_data('market1501', root, SIZE)
    one_line(e.value, root, named)
    hurt = market1501(root)
    def split(records): return Split(torch.zeros(len(records), 3, 2, 2, dtype=torch.uint8), torch.tensor([r.pid for r in records]), torch.tensor([r.cam for r in records]), [r.name for r in records])
    with pytest.raises(ValueError) as e: refuse_unusable(ReidData('by hand', split(hurt.train[1:]), split(hurt.train[:1]), split(hurt.train[:0]), split(hurt.query), split(hurt.gallery)))
    one_line(e.value, 'by hand', named)

def test_data_without_a_validation_query_are_refused(tmp_path, one_line):
    data = market1501(make_market(tmp_path/'market', ['0001', '0002', '0003', '0004'], ['0011', '0012'])).load(SIZE)
    data.val_query = data.val_query[torch.zeros(0, dtype=torch.long)]
    with pytest.raises(ValueError) as e: refuse_unusable(data)
    one_line(e.value, 'validation has no query')

# --- what is listed lies below the root

@pytest.mark.parametrize('elsewhere', ['{0}/outside.png', '../outside.png', '/etc/hostname'])
def test_lists_of_others_lead_nowhere_else(tmp_path, one_line, elsewhere):
    from scipy.io import loadmat
    elsewhere = elsewhere.format(tmp_path); put(tmp_path/'outside.png')
    root = make_extracted(tmp_path/'cuhk'); put(root/'outside.png')       # `../` of its images
    mat = loadmat(path := root/'cuhk03_new_protocol_config_detected.mat'); mat['filelist'][0,0] = elsewhere
    savemat(path, {k: v for k,v in mat.items() if k[0]!='_'})
    with pytest.raises(FileNotFoundError) as e: cuhk03(root)
    one_line(e.value, path, '1 images that are not in', f"'{elsewhere}'")

@pytest.mark.parametrize('elsewhere', ['{0}/0_0_01_0.png', '../../0_0_01_0.png'])
def test_msmt_lists_lead_nowhere_else(tmp_path, one_line, elsewhere):
    put(tmp_path/'0_0_01_0.png')
    path = make_msmt(tmp_path/'msmt')/'list_query.txt'
    path.write_text(f'{elsewhere.format(tmp_path)} 0\n')
    with pytest.raises(FileNotFoundError) as e: msmt17(tmp_path/'msmt')
    one_line(e.value, '1 images that are not in', '0_0_01_0.png')

def test_a_table_may_name_pictures_elsewhere_and_the_doctor_notes_it(own, tmp_path):
    from privreid.doctor import examine
    for how in (lambda p: p, lambda p: Path('..')/p.relative_to(tmp_path)):
        (tmp_path/'lists').mkdir(exist_ok=True)
        (tmp_path/'lists'/'t.csv').write_text('\n'.join(['path,identity,camera', *(f'"{how(p)}","{p.relative_to(own).parts[0]}",{p.name[:4]}' for p in sorted(own.rglob('*.png')))]))
        listing = image_folder(tmp_path/'lists'/'t.csv')
        assert len(listing.paths('train')+listing.paths('query')+listing.paths('gallery'))==48 and not any(listing.left_out.values())
        note, = [f for f in examine('folder', tmp_path/'lists'/'t.csv').findings if 'outside of the folder' in f.what]
        assert note.level=='note' and note.count==48

def test_what_a_table_forgets_is_told_wherever_it_lies(own):
    names = sorted(p.relative_to(own).as_posix() for p in own.rglob('*.png') if '李' not in p.parts)
    (own/'manifest.csv').write_text('\n'.join(['path,identity,camera', *(f'"{n}","{n.split("/")[0]}",{n.rpartition("/")[2][:4]}' for n in names)]))
    put(own/'beside.png')
    left_out = image_folder(own).left_out
    assert len(left_out['unlisted'])==7 and left_out['unlisted'][0]=='beside.png' and left_out['unlisted'][1].startswith('李/') and not left_out['foreign']
    with pytest.warns(UserWarning, match='7 images are left out: they are in no list'): image_folder(own).load(SIZE)

# --- whatever is quoted, a message is one visible line, and short

ODD = 'a\nb\x1b[31m\0\u202e', 'x'*100_000, '\udcff\t'

def short(error, *named):
    text = str(error)
    assert text.isprintable() and len(text)<700, text[:2000]
    for n in named: assert str(n) in text, (n, text)

@pytest.mark.parametrize('odd', ODD, ids=['invisible', 'long', 'no text'])
def test_whatever_is_quoted_is_seen_and_short(tmp_path, own, odd):
    table,cell = tmp_path/'own'/'manifest.csv', '"'+odd[:90_000].replace('\udcff', '\xff')+'"'
    for text in (f'path,identity,camera\n{cell},x,1\n', f'{cell},identity,camera\na,b,c\n', f'path,identity,camera,split\nAda/yard_0.png,x,1,{cell}\n', f'path\tidentity\tcamera\n"a"b{cell}\tx\t1\n'):
        table.write_bytes(text.encode())
        with pytest.raises((ValueError, OSError)) as e: image_folder(table)
        short(e.value, table)
    table.unlink()
    for pattern in ('('+odd, '(?P<identity>x)'+odd):
        with pytest.raises(ValueError) as e: image_folder(own, pattern)
        short(e.value, 'pattern')
    for root in (odd, own/odd):
        with pytest.raises((ValueError, OSError)) as e: list_data('folder', root)
        short(e.value)
        with pytest.raises(ValueError) as e: listings.decode([root], SIZE)
        short(e.value)
    path = make_msmt(tmp_path/'msmt')/'list_query.txt'
    for line in (odd, f'{odd} 0', f'0_0_1_{odd} 0'):
        path.write_bytes(line.replace('\n', '').encode('utf-8', 'replace'))
        with pytest.raises((ValueError, OSError)) as e: msmt17(tmp_path/'msmt')
        short(e.value, tmp_path)
    with pytest.raises(ValueError) as e: list_data(odd, own)
    short(e.value, 'market1501')
    with pytest.raises(ValueError) as e: load_data('folder', own, **{odd: 1})
    short(e.value, 'no option')

def test_a_picture_that_is_listed_very_often(tmp_path):
    path = make_msmt(tmp_path)/'list_gallery.txt'
    path.write_text((path.read_text().splitlines()[0]+'\n')*10_000)
    with pytest.raises(ValueError) as e: msmt17(tmp_path)
    short(e.value, 'is listed 10000 times (gallery as person 7, gallery as person 7, gallery as person 7, ...)')

@pytest.mark.parametrize('value', [None, 7, b'\0', [], (1, 'a'), {}, 1e300, float('nan'), len], ids=repr)
def test_arguments_of_odd_types(own, value):
    for act in (lambda: list_data(value, own), lambda: list_data('folder', value), lambda: image_folder(own, () if value is None else value), lambda: load_data(value), lambda: image_folder(own).load(value), lambda: cuhk03(own, value)):
        with pytest.raises((ValueError, TypeError, OSError)) as e: act()
        short(e.value)
        assert 'raise ' in str(e.traceback[-1].statement)                 # it was refused, nothing stumbled

# --- one door

def test_unknown_data(one_line):
    with pytest.raises(ValueError) as e: load_data('market15')
    one_line(e.value, 'market15', 'synthetic', 'market1501')
    with pytest.raises(ValueError) as e: load_data('market1501')
    one_line(e.value, 'market1501', 'root')

def test_load_data_is_its_two_readers(tiny_market):
    root = tiny_market(train=11)
    same(load_data('market1501', str(root), [64,32], seed=3), market1501(root).load((64,32), seed=3))
    assert load_data('market1501', str(root), (64,32), seed=1).val_gallery.names!=load_data('market1501', str(root), (64,32), seed=3).val_gallery.names
    same(load_data(**SMALL), SyntheticPedestrians(**SMALL).draw())


@pytest.mark.parametrize('given,named', [(dict(name='market1501', train_ids=3), 'train_ids'), (dict(name='market1501', pattern='x'), 'pattern'), (dict(name='folder', variant='labeled'), 'pattern'),
    (dict(train_idz=3), 'train_ids'), (dict(train_ids=0), 'train_ids'), (dict(cameras=2.5), 'cameras'), (dict(distractors=-1), 'distractors'), (dict(root='/some/where'), '/some/where')])
def test_options_are_refused_not_ignored(tiny_market, one_line, given, named):
    with pytest.raises(ValueError) as e: load_data(**dict(root=tiny_market() if 'name' in given else '')|given)
    one_line(e.value, named)

def test_folder_through_the_door(own):
    data = load_data('folder', str(own), [16,8], seed=2, pattern=r'^(?P<identity>[^/]+)/.*?(?P<camera>yard|door)_')
    same(data, image_folder(own).load((16,8), seed=2))

def test_a_split_is_kept(tmp_path, own, one_line):
    data = load_data('folder', own, SIZE)
    save_split(data, tmp_path/'run'/'split.json')
    assert read_split(tmp_path/'run'/'split.json')=={k: getattr(data, k).names for k in PARTS}
    save_split(data, tmp_path/'run'/'split.json', pixels={'train': 'ab'})
    assert read_split(tmp_path/'run'/'split.json')['pixels']=={'train': 'ab'}
    for text in ('{', '[]', '{"train": []}', '['*100_000, json.dumps({k: [1] for k in PARTS}), json.dumps(dict.fromkeys(PARTS, 'abc'))):
        (tmp_path/'bad.json').write_text(text)
        with pytest.raises(ValueError) as e: read_split(tmp_path/'bad.json')
        one_line(e.value, tmp_path/'bad.json')

def test_names_that_are_not_text(tmp_path):
    "Linux allows any bytes in a name; the split must survive them."
    name = os.fsdecode(b'a\xff')
    try: put(tmp_path/name/'1_0.png')
    except OSError: pytest.skip('this file system wants text')
    for who in (name, *'bcdef'):
        for cam in (1, 2): put(tmp_path/who/f'{cam}_0.png'); put(tmp_path/who/f'{cam}_1.png')
    data = load_data('folder', tmp_path, SIZE)
    save_split(data, tmp_path/'split.json')
    assert read_split(tmp_path/'split.json')['gallery']==data.gallery.names

# --- a small real set, where it is at hand

REAL = Path(os.environ.get('PRIVREID_TEST_MARKET') or Path(__file__).resolve().parents[2]/'shared'/'data'/'pku_reid_32ids')

@pytest.mark.skipif(not REAL.is_dir(), reason='no real data set here; set PRIVREID_TEST_MARKET')
def test_real_set():
    data = market1501(REAL).load((64,32))
    held = len(data.val_gallery.pids.unique())
    train = len(data.train)+len(data.val_query)+len(data.val_gallery)
    ids = len(data.train.pids.unique())+held
    assert held==round(ids/5) and not set(data.train.pids.tolist())&set(data.val_gallery.pids.tolist())
    for part in (data.query, data.val_query):
        gallery = data.gallery if part is data.query else data.val_gallery
        assert len(part) and all(((gallery.pids==p)&(gallery.cams!=c)).any() for p,c in zip(part.pids, part.cams))
    raw = np.asarray(Image.open(REAL/data.query.names[0]).convert('RGB')).mean((0,1))
    assert np.abs(data.query.images[0].float().mean((1,2)).numpy()-raw).max()<3
    if REAL.name=='pku_reid_32ids': assert (train, len(data.query), len(data.gallery), ids)==(256, 32, 224, 16)
