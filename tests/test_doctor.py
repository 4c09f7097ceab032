"The doctor finds each ailment, and nothing else, in a fabricated patient."
import json, os, shutil, subprocess, sys
from pathlib import Path
from zlib import crc32
import numpy as np, pytest
from PIL import Image
import privreid.doctor as R
from privreid.listings import SPLITS
from privreid.doctor import LEVELS, PUBLISHED, examine, look
from test_datasets import make_msmt, make_release

PRIVREID = str(Path(sys.executable).parent/'privreid')

def put(path, size=(16,32)):
    "A picture of noise, so that no two are the same by accident."
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(crc32(f'{path.parent.name}/{path.name}'.encode()))
    Image.fromarray(rng.integers(0, 256, (size[1],size[0],3), dtype=np.uint8)).save(path)

@pytest.fixture
def well(tmp_path, monkeypatch):
    "A small Market-1501 whose counts are the published ones."
    root = tmp_path/'market'
    for p in (1, 2, 3, 4):
        for c,s in ((1,1), (1,2), (2,1)): put(root/'bounding_box_train'/f'{p:04d}_c{c}s1_{s:06d}_00.jpg')
    for p in (5, 6):
        put(root/'query'/f'{p:04d}_c1s1_000001_00.jpg'); put(root/'bounding_box_test'/f'{p:04d}_c2s1_000001_00.jpg')
    put(root/'bounding_box_test'/'0000_c1s1_000001_00.jpg'); put(root/'bounding_box_test'/'-1_c1s1_000001_00.jpg')
    monkeypatch.setitem(PUBLISHED, 'market1501', dict(train=(12,4), query=(2,2), gallery=(3,2), cameras=2))
    return root

def test_a_healthy_set(well):
    result = examine('market1501', well)
    assert result.findings==[] and result.exit_code==0
    assert 'verdict  fine' in repr(result) and '1 junk' in repr(result)
    d = result.to_dict()
    assert d['parts']['train']==dict(images=12, people=4, cameras=2, images_per_person=[3,3,3]) and d['parts']['gallery']['people']==2 and d['height']==[32,32,32] and d['width']==[16,16,16]

def copy(root, a, b): shutil.copy(root/a, root/b)
TRAIN,QUERY,TEST = 'bounding_box_train/{:04d}_c{}s1_000001_00.jpg', 'query/{:04d}_c{}s1_000001_00.jpg', 'bounding_box_test/{:04d}_c{}s1_000001_00.jpg'
def stored(root, name, **how): Image.open(root/name).convert(how.pop('mode', 'RGB')).save(root/name, **how)
def turn(root): exif = Image.Exif(); exif[0x0112] = 8; stored(root, TRAIN.format(1,1), exif=exif)

AILMENTS = {  # name: (what happens, level, words of the finding, an example that it names); counts are not looked at
    'truncated':   (lambda r: (r/TRAIN.format(1,1)).write_bytes((r/TRAIN.format(1,1)).read_bytes()[:400]), 'fatal', 'cannot be read', TRAIN.format(1,1)),
    'zero bytes':  (lambda r: (r/QUERY.format(5,1)).write_bytes(b''), 'fatal', 'cannot be read', QUERY.format(5,1)),
    'a text':      (lambda r: (r/TEST.format(5,2)).write_text('404 not found'), 'fatal', 'cannot be read', TEST.format(5,2)),
    'CMYK':        (lambda r: stored(r, TRAIN.format(1,1), mode='CMYK'), 'note', 'not stored as RGB', TRAIN.format(1,1)),
    'EXIF':        (turn, 'note', 'EXIF', TRAIN.format(1,1)),
    'one pixel':   (lambda r: put(r/TRAIN.format(1,1), size=(1,1)), 'warning', 'smaller than 16', TRAIN.format(1,1)),
    'leak':        (lambda r: copy(r, QUERY.format(5,1), TRAIN.format(1,1)), 'warning', 'both in training and in the test', f'{TRAIN.format(1,1)} = {QUERY.format(5,1)}'),
    'clash':       (lambda r: copy(r, TRAIN.format(2,1), TRAIN.format(1,1)), 'warning', 'more than one identity', f'{TRAIN.format(1,1)} = {TRAIN.format(2,1)}'),
    'query again': (lambda r: copy(r, QUERY.format(5,1), TEST.format(5,1)), 'warning', 'in the gallery too', QUERY.format(5,1)),
    'copy':        (lambda r: copy(r, TRAIN.format(1,2), TRAIN.format(1,1)), 'note', 'more than once in their part', TRAIN.format(1,1)),
    'shared':      (lambda r: put(r/TEST.format(3,1)), 'warning', 'both in training and in the test', TRAIN.format(3,1)),
    'lonely':      (lambda r: [f.unlink() for f in (r/TRAIN.format(2,1)).parent.glob('0002*') if f.name!=Path(TRAIN.format(2,1)).name], 'warning', 'single training image', TRAIN.format(2,1)),
    'no match':    (lambda r: (r/TEST.format(5,2)).rename(r/TEST.format(5,1)), 'warning', 'without a match', QUERY.format(5,1)),
    'foreign':     (lambda r: (r/'query'/'Thumbs.db').touch(), 'note', 'no images', 'query/Thumbs.db'),
    'Mac':         (lambda r: (r/'query'/'._0005_c1s1_000001_00.jpg').touch(), 'note', 'no images', 'query/._0005_c1s1_000001_00.jpg'),
    'double':      (lambda r: (r/TEST.format(5,2)).rename(r/(TEST.format(5,2)+'.jpg')), 'note', 'double ending', TEST.format(5,2)+'.jpg'),
    'one colour':  (lambda r: Image.new('RGB', (16,32), (9,9,9)).save(r/TRAIN.format(1,1)), 'warning', 'single colour', TRAIN.format(1,1)),
    'lens cap':    (lambda r: Image.fromarray((np.random.default_rng(0).random((32,16,3))*12).astype(np.uint8)).save(r/TRAIN.format(1,1)), 'warning', 'single colour', TRAIN.format(1,1)),
    'telephone':   (lambda r: (r/'query'/'0005_c1s1_000009_00.heic').write_bytes(b'?'), 'warning', 'Pillow cannot open', 'query/0005_c1s1_000009_00.heic'),
    'person 0':    (lambda r: put(r/TRAIN.format(0,1)), 'warning', 'distractors 0', TRAIN.format(0,1)),
    'capital':     (lambda r: [put(r/'bounding_box_train'/f'{who}_c{c}s1_{i}.png') for who in ('Ada', 'ada') for c in (1,2) for i in (1,2)], 'warning', 'look like one', 'Ada, ada'),
    'spelling':    (lambda r: put(r/TRAIN.format(1,1).replace('0001', '01')), 'warning', 'written in several ways', "'0001' = '01'"),
    'invisible':   (lambda r: put(r/TRAIN.format(1,1).replace('0001', '0001\u200b')), 'note', 'written in several ways', "'0001' = '0001\\u200b'"),
    '12 bits':     (lambda r: Image.fromarray(np.random.default_rng(0).integers(0, 4096, (32,16)).astype(np.uint16)).save(r/TRAIN.format(1,1).replace('.jpg', '.png')), 'note', '0..4095', TRAIN.format(1,1).replace('.jpg', '.png')),
    'misnamed':    (lambda r: put(r/'query'/'holiday.jpg'), 'warning', 'names are not understood', 'query/holiday.jpg')}

@pytest.mark.filterwarnings("ignore:.*left out", "ignore:.*both in training")
@pytest.mark.parametrize('ailment', AILMENTS)
def test_each_ailment_is_found_alone(well, monkeypatch, ailment):
    happens,level,words,example = AILMENTS[ailment]
    happens(well)
    monkeypatch.delitem(PUBLISHED, 'market1501')
    result = examine('market1501', well)
    assert [(f.level, f.count) for f in result.findings]==[(level, 1)], result
    assert words in result.findings[0].what and example in result.findings[0].where[0] and result.findings[0].todo
    assert result.exit_code==LEVELS.index(level)
    if level!='fatal': assert len(result.listing.load((32,16)).val_query)  # what is not fatal trains
    else:
        with pytest.raises(ValueError): result.listing.load((32,16))

def test_counts_name_what_differs(well):
    put(well/'bounding_box_train'/'0009_c3s1_000001_00.jpg'); put(well/'bounding_box_train'/'0009_c3s1_000002_00.jpg')
    [f] = examine('market1501', well).findings
    assert f.level=='warning' and 'train: 14 images of 5 people instead of 12 of 4' in f.what and '3 cameras instead of 2' in f.what and 'query' not in f.what

def test_published_numbers():
    "Against the totals that the papers state."
    m,s,d = PUBLISHED['market1501'], PUBLISHED['msmt17'], PUBLISHED['cuhk03 detected']
    assert m['train'][1]+m['query'][1]==1501 and m['train'][0]+m['query'][0]+m['gallery'][0]+3819-2798-3368==32668-2798   # 32,668 boxes: training, true matches and junk
    assert s['train'][1]+s['query'][1]==4101 and sum(s[k][0] for k in SPLITS)==126441
    for k in ('cuhk03 detected', 'cuhk03 labeled'): assert PUBLISHED[k]['train'][1]+PUBLISHED[k]['query'][1]==1467
    assert sum(d[k][0] for k in SPLITS)==14097 and sum(PUBLISHED['cuhk03 labeled'][k][0] for k in SPLITS)==14096

def test_fatal_people(well, monkeypatch):
    monkeypatch.delitem(PUBLISHED, 'market1501')
    for f in (well/'bounding_box_train').glob('*_c2*'): f.unlink()
    levels = {f.what: f.level for f in examine('market1501', well).findings}
    assert levels['Training is seen by a single camera, so nothing can be validated']=='fatal'
    for f in (well/'bounding_box_train').glob('000[234]*'): f.unlink()
    (well/TEST.format(5,2)).unlink(); (well/TEST.format(6,2)).unlink()
    levels = {f.what: f.level for f in examine('market1501', well).findings}
    assert levels['Fewer than three people to train on']=='fatal' and levels['The test is seen by a single camera, so there is nothing to score']=='fatal'

def test_many_names_are_all_kept_and_three_are_shown(well):
    for i in range(50): (well/'query'/f'{i}.txt').touch()
    result = examine('market1501', well)
    [f] = result.to_dict()['findings']
    assert f['count']==50 and sorted(f['where'])==sorted(f'query/{i}.txt' for i in range(50))
    assert repr(result).count('.txt')==3 and 'query/10.txt, ...\n' in repr(result)

def test_gravest_first_and_exit_code_2(well):
    for ailment in ('foreign', 'no match', 'CMYK', 'zero bytes'): AILMENTS[ailment][0](well)
    result = examine('market1501', well)
    ranks = [LEVELS.index(f.level) for f in result.findings]
    assert ranks==sorted(ranks, reverse=True) and set(ranks)=={0, 1, 2} and result.exit_code==2 and 'not usable' in repr(result)

@pytest.mark.parametrize('root', ['nowhere', 'braces {x} {', 'empty'])
def test_what_cannot_be_listed_is_fatal(tmp_path, root):
    (tmp_path/'empty').mkdir()
    result = examine('market1501', tmp_path/root)
    assert result.exit_code==2 and str(tmp_path/root) in result.findings[0].what and json.dumps(result.to_dict()) and 'zheng-lab' in repr(result)

def test_a_file_that_is_listed_twice_is_fatal(tmp_path):
    "Once in training and once, as somebody else, in the gallery: no hash is needed to refuse it."
    for who in 'abcde':
        for name in ('1_a', '1_b', '2_a'): put(tmp_path/who/f'{name}.png')
    rows = [f'{p.relative_to(tmp_path).as_posix()},{p.parent.name},{p.name[0]},{"train" if p.parent.name<"d" else "gallery" if p.name[0]=="2" else "query"}' for p in sorted(tmp_path.rglob('*.png'))]
    for more,code in (([], 0), (['a/1_a.png,e,1,gallery'], 2)):
        (tmp_path/'manifest.csv').write_text('\n'.join(['path,identity,camera,split', *rows, *more]))
        result = examine('folder', tmp_path)
        assert result.exit_code==code and (not more or 'a/1_a.png is listed 2 times' in result.findings[0].what), result

def test_msmt_versions(tmp_path):
    for version,folders in (('V1', ()), ('V2', ('mask_train_v2', 'mask_test_v2'))):
        result = examine('msmt17', make_msmt(tmp_path/version, *folders))
        assert [f.what for f in result.findings if version in f.what and f.level=='note'] and result.exit_code==1
    (tmp_path/'V1'/'mask_train_v2').mkdir()
    result = examine('msmt17', tmp_path/'V1')
    assert result.exit_code==2 and 'mixes MSMT17 V1' in result.findings[0].what

def test_other_layouts(tmp_path, monkeypatch):
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    result = examine('cuhk03', make_release(tmp_path/'cuhk'))
    assert result.listing and '7365' in result.findings[0].what
    for who in 'abcdef':
        for name in ('1_a', '1_b', '2_a'): put(tmp_path/'own'/who/f'{name}.png')
    assert examine('folder', tmp_path/'own').exit_code==0
    assert examine('folder', tmp_path/'own', pattern=r'(?P<identity>\w)/(?P<camera>\d)').listing
    for name,why in (('synthetic', 'no files to check'), ('markt', "Did you mean 'market1501'")):
        with pytest.raises(ValueError, match=why): examine(name, tmp_path)

def test_look_agrees_with_the_reader(tmp_path):
    put(tmp_path/'a.png', size=(20,30))
    seen = look(tmp_path/'a.png')
    assert seen.size==(30,20) and seen.mode=='RGB' and not seen.turned and len(seen.digest)==16
    shutil.copy(tmp_path/'a.png', tmp_path/'b.jpg'); assert look(tmp_path/'b.jpg')==seen
    for nothing in ('none.png', ''): assert look(tmp_path/nothing)._replace(trouble='')==R.Look() and str(tmp_path/nothing) in look(tmp_path/nothing).trouble

def own(tmp_path, names):
    for name in names: put(tmp_path/name)
    return examine('folder', tmp_path)

def test_a_camera_that_is_none(tmp_path):
    "Numbers of the pictures in front of their names; a camera of one's own for each person."
    result = own(tmp_path/'a', [f'{who}/{k}{i}_front.png' for k,who in enumerate('abcdef', 1) for i in range(4)])
    assert result.exit_code==1 and [f.what for f in result.findings]==['Nearly every image has a camera of its own (24 cameras, 24 images)']
    first = result.listing.train[0].name
    taken = f"Of {first}, '{first[0]}' was taken for the identity and '{first[2:4]}' for the camera."
    assert result.to_dict()['taken']==taken and taken in repr(result) and taken in result.findings[0].todo and '--pattern' in result.findings[0].todo
    result = own(tmp_path/'b', [f'{who}/{who}-{c}_{i}.png' for who in 'abcdef' for c in (1, 2) for i in range(2)])
    assert [f.what for f in result.findings]==['No camera has seen two people'] and result.exit_code==1

def test_identities_that_are_conventions(tmp_path):
    result = own(tmp_path, [f'{who}/{c}_{i}.png' for who in ('-1', '1.23E+20', '1', '2', '3', '4', '5') for c in (1, 2) for i in range(2)])
    assert sorted(f.what for f in result.findings)==['Identities that a spreadsheet has rounded', 'Identity -1 counts as a person'] and result.exit_code==1

@pytest.mark.parametrize('damage', [[], ['*_c2*'], ['query/*_c1*'], ['bounding_box_test/*5_*', 'bounding_box_test/*6_*'], ['bounding_box_train/000[234]*'], ['bounding_box_train/*c1s1_000002*']])
def test_what_is_fatal_is_what_training_refuses(well, monkeypatch, damage):
    monkeypatch.delitem(PUBLISHED, 'market1501')
    for pattern in damage:
        for p in well.glob(pattern if '/' in pattern else f'*/{pattern}'): p.unlink()
    try: R.list_data('market1501', well).load((32,16)); refused = ''
    except ValueError as e: refused = str(e)
    result = examine('market1501', well)
    assert (result.exit_code==2)==bool(refused)==bool(damage)
    if refused: assert result.findings[0].what.lower()[:30] in refused.lower() and len(refused.splitlines())==1

def test_what_cannot_be_read_says_why(well):
    Image.fromarray(np.full((32,16), np.nan, np.float32)).save(well/TRAIN.format(1,1).replace('.jpg', '.tif'))
    [f] = [f for f in examine('market1501', well).findings if f.level=='fatal']
    assert 'NaN' in f.todo and f.where==[TRAIN.format(1,1).replace('.jpg', '.tif')]

def test_the_root_is_kept_in_full(well, monkeypatch):
    monkeypatch.chdir(well)
    assert examine('market1501', '.').root==examine('market1501', '../market/query/..').root==well and examine('market1501', 'query').root==well/'query'

# --- contact sheet

def shown(figure, part): return [np.asarray(ax.images[0].get_array()) for ax in figure.axes[12*SPLITS.index(part):12*SPLITS.index(part)+12]]

def test_the_sheet_hides_every_picture(well):
    result = examine('market1501', well)
    seen = []
    def hide(x): seen.append(x); return x*0+.5
    plain,hidden = result.contact_sheet(), result.contact_sheet(hide)
    assert [len(x) for x in seen]==[12, 2, 3] and all(x.min()>=-1 and x.max()<=1 and x.std()>.2 for x in seen)
    for part,n in zip(SPLITS, (12, 2, 3)):
        for i,(a,b) in enumerate(zip(shown(plain, part), shown(hidden, part))):
            assert (b==(191 if i<n else 255)).all() and (a.std()>20)==(i<n)   # nothing but what `hide` returned, and white

def test_the_sheet_is_for_its_owner(well, tmp_path):
    R.save_sheet(examine('market1501', well).contact_sheet(n=2), tmp_path/'new'/'sheet.png')
    with Image.open(tmp_path/'new'/'sheet.png') as im: assert im.format=='PNG'
    if os.name=='posix': assert (tmp_path/'new'/'sheet.png').stat().st_mode&0o77==0==(tmp_path/'new').stat().st_mode&0o77

def test_the_sheet_does_without_broken_pictures(well):
    AILMENTS['truncated'][0](well)
    assert sum(a.std()>20 for a in shown(examine('market1501', well).contact_sheet(), 'train'))==11

# --- the command

def privreid(*words): return subprocess.run([PRIVREID, *map(str, words)], capture_output=True, text=True, timeout=300)

def test_the_command(tiny_market, tmp_path):
    root = tiny_market(size=(64,32))
    done = privreid('data', 'check', '--data', 'market1501', '--root', root, '--json', tmp_path/'new'/'r.json', '--sheet', tmp_path/'s.png', '--desensitize', 'pixelation')
    assert done.returncode==1 and 'verdict' in done.stdout and done.stderr=='', done.stderr
    d = json.loads((tmp_path/'new'/'r.json').read_text())
    assert d['exit_code']==1 and d['parts']['train']['images']==30 and {f['level'] for f in d['findings']}=={'note', 'warning'}
    with Image.open(tmp_path/'s.png') as im: assert im.format=='PNG' and im.size[0]>500
    assert not list(tmp_path.rglob('*.tmp'))

@pytest.mark.parametrize('words,named', [(['--data', 'market15', '--root', '.'], 'market15'), (['--data', 'market1501', '--root', '.', '--desensitize', 'blur'], '--sheet')])
def test_mistakes_of_the_command(words, named):
    done = privreid('data', 'check', *words)
    assert done.returncode==2 and done.stdout=='' and done.stderr.count('\n')==1 and named in done.stderr

def test_the_command_says_what_is_missing(tmp_path):
    done = privreid('data', 'check', '--data', 'msmt17', '--root', tmp_path/'none', '--json', tmp_path/'r.json')
    assert done.returncode==2 and 'Wei et al.' in done.stdout and json.loads((tmp_path/'r.json').read_text())['exit_code']==2

def test_names_do_not_write_on_the_terminal(well):
    "A file may be called by the signs that clear a screen; the JSON has its true name."
    odd = 'query/0005_c1s1_000002_\x1b[2J\n.txt'
    try: (well/odd).write_text('x')
    except OSError: pytest.skip('this file system has no such names')
    result = examine('market1501', well)
    note, = result.findings
    assert r'\x1b[2J\n.txt' in str(note) and '\x1b' not in repr(result) and note.where==[odd]
