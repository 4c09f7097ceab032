"""Files for `fuzz.py`: pictures, data sets, the files of a run, weights, raters' sheets.

For each kind there is a function of random numbers and an empty folder; it returns a `Case`. Most inputs are made such that the right
answer is known: a table is spelled oddly, and its people are still four. The others are damaged: they may be refused, or read as what
they are.
"""
import csv, io, json, math, os, re, struct, unicodedata, zlib
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable
import numpy as np
import pandas as pd
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save
from scipy.io import savemat
from privreid.agw import AGW, Mini, build_backbone
from privreid.arms import Arm
from privreid.checkpoint import STATE, read_tensors
from privreid.compare import comparison_text, read_runs
from privreid.data import PARTS, SyntheticPedestrians, read_data, save_data
from privreid.datasets import list_data, read_split
from privreid.doctor import examine
from privreid.folder import expect, write_json
from privreid.hindsight import demo_run
from privreid.jobs import Job
from privreid.pictures import read_image
from privreid.pix2pix import UNetGenerator
from privreid.records import load_arm, load_run, load_weights, read_pictures, save_arm, write_pictures
from privreid.report import write_report
from privreid.rows import Study, Trained, table2
from privreid.scores import summary
from privreid.verdicts import read_run
from privreid.verification import read_answers, score_answers, write_sheets
from privreid.widgets import Explorer

@dataclass
class Case:
    "One input, ready to be tried."
    what:str                          # in a few words
    act:Callable                      # called without arguments
    names:tuple=()                    # a refusal names one of them
    right:Callable=lambda result: ''  # what is wrong with the result, '' if nothing is
    must:bool=False                   # it may not be refused

# --- mutators

def damaged(rng, data:bytes)->bytes:
    "Cut, lose, repeat, overwrite and flip, a few times."
    for _ in range(rng.choice((1, 1, 2, 5))):
        i = rng.randrange(len(data)+1)
        j = min(len(data), i+rng.choice((1, 4, 64)))
        part = data[i:j]
        new = rng.choice((b'', part*rng.choice((2, 9, 999)), rng.randbytes(j-i), bytes(j-i), b'\xff'*(j-i),
                          bytes(b^1<<rng.randrange(8) for b in part)))
        data = data[:i]+new+data[j:] if rng.random()<.85 else data[:i]
    return data

DEEP = eval('['*90+']'*90)
ODD = (None, True, False, -1, 0, 0., -.5, 1.5, 1e308, math.nan, math.inf, -math.inf, 2**63, 10**400, '', '0.5', 'nan',
       'ä\n\x1b[31m', '\ud800', 'x'*10_000, [], {}, [1], {'a': 1}, DEEP)

def places(tree, way=())->list[tuple]:
    "Where something can be changed in a value of JSON."
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [p for k,v in items for p in ((*way, k), *places(v, (*way, k)))]

def twisted(rng, tree)->tuple: # the other value, what was done
    "A value of JSON with something odd in one place, or without it."
    if rng.random()<.03: return rng.choice(ODD), 'all of it'
    tree = at = json.loads(json.dumps(tree))
    *way,last = rng.choice(places(tree))
    for k in way: at = at[k]
    if rng.random()<.2: del at[last]; return tree, f'without {[*way, last]}'
    at[last] = value = rng.choice(ODD)
    return tree, f'{[*way, last]} = {str(value)[:20]!r}'

def as_json(rng, tree)->bytes:
    "JSON, now and then in an odd spelling."
    text = json.dumps(tree, indent=rng.choice((None, 1)), ensure_ascii=rng.random()<.5).encode(errors='surrogatepass')
    # the third: every key twice
    odd = (text.decode(errors='replace').encode('utf-16'), b'\xef\xbb\xbf'+text, text[:-1]+b', '+text[1:], b'['*100_000,
           re.sub(rb'\d+', b'9'*5000, text, count=1))
    return rng.choice(odd) if rng.random()<.15 else text

def odds(rng)->tuple[list,Callable]: # what was done, and a function that throws the dice
    "Throw dice, and remember what for."
    done = []
    def maybe(what:str, p:float=.2)->bool:
        if rng.random()<p: done.append(what); return True
        return False
    return done, maybe

# --- pictures

TONE = 40, 130, 220
MODES = {'png': ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'), 'jpeg': ('L', 'RGB', 'CMYK'), 'gif': ('L', 'P', 'RGB'),
         'webp': ('RGB', 'RGBA'), 'bmp': ('1', 'L', 'P', 'RGB'), 'ppm': ('L', 'RGB'),
         'tiff': ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'LAB', 'YCbCr', 'I;16', 'I', 'F')}

def plain(mode:str, size=(12,20))->tuple[Image.Image,tuple]:
    "A picture of one colour, and that colour in RGB."
    g,of = TONE[1], partial(np.full, size[::-1])
    if mode=='1': return Image.new('1', size, 1), (255,)*3
    if mode in ('L', 'LA'): return Image.new('L', size, g).convert(mode), (g,)*3
    if mode=='LAB': return (im := Image.new('LAB', size, (140, 128, 128))), im.convert('RGB').getpixel((0,0))
    if mode=='P': return Image.new('RGB', size, TONE).quantize(4), TONE
    scaled = {'I;16': of(g*257, np.uint16), 'I': of(g*257, np.int32), 'F': of(g/255, np.float32)}
    return (Image.fromarray(scaled[mode]), (g,)*3) if mode in scaled else (Image.new('RGB', size, TONE).convert(mode), TONE)

def exif(rng)->bytes:
    "EXIF as cameras and editors write it, often damaged."
    tags = Image.Exif()
    tags[0x0112] = rng.choice((0, 1, 2, 3, 6, 8, 9, 255))
    if rng.random()<.5: tags[0x010e] = rng.choice(('a', 'ä'*99, '\0'))
    if rng.random()<.5: tags[0x011a] = rng.choice((72., 1/3))
    return b'Exif\0\0'+damaged(rng, tags.tobytes()) if rng.random()<.7 else tags.tobytes()

def bomb(rng)->tuple[str,bytes]:
    "A small file that says it is huge."
    w,h = (rng.choice((1, 4000, 20_000, 65_535)) for _ in 'wh')
    def chunk(kind, body): return struct.pack('>I', len(body))+kind+body+struct.pack('>I', zlib.crc32(kind+body))
    png = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))+chunk(b'IDAT', zlib.compress(bytes(9999)))+chunk(b'IEND', b'')
    gif = b'GIF89a'+struct.pack('<HH', w, h)+picture('gif')[10:]
    return rng.choice(((f'png of {w} x {h}', b'\x89PNG\r\n\x1a\n'+png), (f'gif of {w} x {h}', gif)))

@lru_cache
def picture(kind:str='png')->bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (8,16), (90, 120, 150)).save(buffer, kind)
    return buffer.getvalue()

def images(rng, folder)->Case:
    "A picture of one colour in some format and mode, sometimes with odd EXIF, sometimes damaged."
    kind = rng.choice(tuple(MODES))
    mode,buffer,done,maybe = rng.choice(MODES[kind]), io.BytesIO(), *odds(rng)
    im,colour = plain(mode)
    im.save(buffer, kind, **(dict(exif=exif(rng)) if kind in ('jpeg', 'png', 'webp') and maybe('EXIF', .5) else {}))
    data,what = buffer.getvalue(), f'{kind} {mode}'
    if maybe('damaged', .5): data = damaged(rng, data)
    elif maybe('damaged', .05): what,data = bomb(rng)
    path = folder/rng.choice(('a.jpg', f'a.{kind}', 'ä b.JPG'))
    path.write_bytes(data)
    def right(seen):
        if seen.shape!=(16,8,3) or seen.dtype!=np.uint8: return f'{seen.shape} {seen.dtype}'
        off = 0 if 'damaged' in done else np.abs(seen.astype(int)-colour).max()
        return f'colour {seen[0,0].tolist()} for {colour}' if off>9 else ''
    return Case(', '.join([what, *done]), lambda: read_image(path, (16,8)), (path,), right,
                must='damaged' not in done and mode not in ('I', 'F'))

# --- data sets

def put(path:Path):
    "A picture that differs from all others."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture()+os.fsencode(path))

def use(name:str, root:Path, **options): # of `examine`
    "Examine a data set; where that finds nothing fatal, load it too."
    listing = list_data(name, root, **options)
    found = examine(name, root, **options)
    if found.exit_code<2: listing.load((16,8))
    json.dumps(found.to_dict(), allow_nan=False); str(found)
    return found

SPLITS = 'train', 'query', 'gallery'
HIDDEN = '.', '-1_', '-0001_', 'Thumbs.db'   # what may be left out without a warning: names that begin so

def below(root:Path, name:str)->list[str]:
    "A file, or the files in a folder that was left out as a whole."
    if not (root/name).is_dir() or (root/name).is_symlink(): return [name]
    return [str(p.relative_to(root)) for p in (root/name).rglob('*') if p.is_file()]

def accounted(files:int=None, people:int=None, cameras:int=None)->Callable: # None: not known
    "All files are listed or left out, pictures with a warning; people and cameras are as many as were made, or a warning says why not."
    def right(found):
        listing,left = found.listing, [f for names in found.listing.left_out.values() for x in names for f in below(found.listing.root, x)]
        records = [r for part in SPLITS for r in getattr(listing, part)]
        if files is not None and len(records)+len(left)!=files:
            return f'{files} files, of which {len(records)} are listed and {len(left)} left out'
        if found.exit_code: return ''
        dropped = [x for x in left if (listing.root/x).is_file() and not any(p.startswith(HIDDEN) for p in x.split('/'))]
        if dropped and 'unlisted' not in listing.left_out:
            return f'{len(dropped)} pictures left out without a warning, such as {dropped[0]!r}'
        for made,seen,what in ((people, {r.pid for r in records}-{0}, 'people'), (cameras, {r.cam for r in records}, 'cameras')):
            if made is not None and len(seen)!=made: return f'{made} {what} became {len(seen)} without a warning'
        return ''
    return right

WHO,CAMS = ('Ada', 'Zoë', '7', 'd e'), ('1', '2')

def spelled(rng, word:str)->str:
    "The same word as another program writes it."
    return rng.choice([word]*3+[f' {word}', f'{word} ', unicodedata.normalize('NFD', word)]+[f'{word}.0']*word.isdigit())

def manifest(rng, folder)->Case:
    "A table of one's own pictures: four people under two cameras."
    rows,head = [[f'{p}/{c}_{i}.png', WHO[p], c] for p in range(4) for c in CAMS for i in range(2)], ['path', 'identity', 'camera']
    for path,*_ in rows: put(folder/path)
    files,(done,maybe) = len(rows), odds(rng)
    if maybe('a file that is not listed'): put(folder/'extra.png'); files += 1
    if maybe('spelling'): rows = [[p, spelled(rng, who), spelled(rng, c)] for p,who,c in rows]
    if maybe('header'): head = rng.choice((['Path', 'Identity', 'Camera'], [' path', 'identity ', 'camera'],
                                           ['path', 'identity', 'identity'], ['path', 'identity', 'camera', '']))
    if maybe('backslashes'): rows = [[p.replace('/', '\\'), *r] for p,*r in rows]
    if maybe('./'): rows = [[rng.choice(('./', '', f'{folder}/'))+p, *r] for p,*r in rows]
    if maybe('blank rows'): rows[3:3] = [[], ['', '', '']]
    if maybe('other order'): head[:3],rows = head[2::-1], [r[::-1] for r in rows]
    if maybe('one more field', .1): rows[2] = rows[2]+['x']
    if maybe('a row twice', .1): rows.append(rows[0])
    elsewhere = '../out.png', '/etc/hostname', '0/\0.png', '', '0', 'x'*5000
    if maybe('a path elsewhere', .1): rows[0] = [c.replace('0/1_0.png', rng.choice(elsewhere)) for c in rows[0]]
    text,delimiter,encoding = io.StringIO(), rng.choice(',,,;\t|'), rng.choice(('utf-8', 'utf-8', 'utf-8-sig', 'cp1252', 'utf-16'))
    csv.writer(text, delimiter=delimiter, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
               lineterminator=rng.choice(('\n', '\r\n', '\r'))).writerows([head, *rows])
    data = text.getvalue().encode(encoding, 'replace')
    path = folder/'manifest.csv'
    path.write_bytes(damaged(rng, data) if maybe('damaged', .25) else data)
    certain = not {'damaged', 'a path elsewhere', 'one more field', 'a row twice'}&set(done)
    usual = delimiter==',' and encoding.startswith('utf-8') and set(done)<={'other order', 'a file that is not listed'}
    return Case(f'{delimiter!r} {encoding}, {", ".join(done) or "plain"}', lambda: use('folder', rng.choice((path, folder))),
                (folder,), accounted(files, 4, 2) if certain else accounted(), must=usual)

LINES = '{0} -5', '{0} 1e3', '{0} '+'9'*30, '{0} ٣', '{0}', '../{0} 0', 'x 1', '{0} 99', '0000/a_b_c_d.jpg 0', '{0} 0.0'

def lists(rng, folder)->Case:
    "MSMT17 with odd lists."
    def name(pid, cam, i): return f'{pid:04d}/{pid:04d}_{i:03d}_{cam:02d}_0303morning_{i:04d}_0.jpg'
    parts = dict(train=('train', [(p, c, 0) for p in range(4) for c in (1, 2)]), val=('train', [(p, 1, 1) for p in range(4)]),
                 query=('test', [(p, 1, 0) for p in range(2)]), gallery=('test', [(p, c, 1) for p in range(2) for c in (1, 2)]))
    odd = rng.choice(('plain', 'damaged', 'spelling', 'values', 'unlisted'))
    for part,(where,rows) in parts.items():
        for row in rows: put(folder/where/name(*row))
        lines = [f'{name(*row)} {row[0]}' for row in rows]
        if odd=='spelling': lines = [rng.choice((l, l, f' {l} ', l.replace(' ', '  '), l.replace(' ', '\t'), f'./{l}',
                                                 l.replace('/', '\\'), f'{l}\r', f'\n{l}')) for l in lines]
        if odd=='values' and rng.random()<.5: lines[-1] = rng.choice(LINES).format(name(*rows[-1]))
        data = '\n'.join(lines).encode()
        (folder/f'list_{part}.txt').write_bytes(damaged(rng, data) if odd=='damaged' and rng.random()<.5 else data)
    if odd=='unlisted': put(folder/'train'/'9999'/'extra.jpg')
    known = (18+(odd=='unlisted'), 6, 2) if odd not in ('damaged', 'values') else (18,)
    return Case(odd, lambda: use('msmt17', folder), (folder,), accounted(*known), must=odd=='plain')

CUHK03 = [f'{p}_{v:03d}_{c}_{i:02d}.png' for p in (1, 2) for v in (1, 2) for c in (1, 2) for i in (c*5-4, c*5-3)]

def protocol_of(names:list[str])->dict:
    return dict(filelist=np.array(names, object), labels=np.repeat(np.arange(1, 5), 4), camId=np.tile([1, 1, 2, 2], 4),
                train_idx=np.arange(1, 9), query_idx=np.array([9, 11, 13, 15]), gallery_idx=np.array([10, 12, 14, 16]))

def protocol(rng, folder)->Case:
    "CUHK03 with an odd protocol."
    names = list(CUHK03)
    for name in names: put(folder/'images_detected'/name)
    mat = protocol_of(names)
    odd,key = rng.choice(('plain', 'damaged', 'values', 'values', 'missing', 'types')), rng.choice(tuple(mat))
    if odd=='missing': del mat[key]
    if odd=='types': mat[key] = rng.choice((np.array('abc'), np.zeros((0, 0)), np.array([[1+2j]]), dict(a=1),
                                            mat[key].astype(str), np.array([[0, 1]]), np.full((1, 10**5), 1.)))
    if odd=='values':
        if key!='filelist': mat[key] = mat[key].astype(float)
        values = (0, -1, 1.5, 99, 1e300, math.nan, math.inf, 2**40, 1, 3)
        if key=='filelist': values = ('../x.png', '', names[1], '/etc/hostname', 'ä.png')
        mat[key][rng.randrange(len(mat[key]))] = rng.choice(values)
    path,buffer = folder/'cuhk03_new_protocol_config_detected.mat', io.BytesIO()
    savemat(buffer, mat, do_compression=rng.random()<.5)
    path.write_bytes(damaged(rng, buffer.getvalue()) if odd=='damaged' else buffer.getvalue())
    return Case(f'{odd} {key}', lambda: use('cuhk03', folder), (folder,), accounted(16, *((4, 2) if odd=='plain' else ())),
                must=odd=='plain')

@lru_cache
def cuhk03_release()->bytes:
    "As MATLAB writes it, of version 7.3."
    import h5py
    file = io.BytesIO()
    with h5py.File(file, 'w', userblock_size=512) as f:
        refs = f.create_group('#refs#')
        empty = refs.create_dataset('empty', data=np.zeros(2, np.uint64)).ref
        pairs = f.create_dataset('detected', (1, 2), h5py.ref_dtype)
        for pair in (1, 2):
            views = refs.create_dataset(f'{pair}', (10, 2), h5py.ref_dtype)
            for person,view in ((p, v) for p in (1, 2) for v in range(10)):
                name,pixels = f'{pair}_{person:03d}_{1+view//5}_{view+1:02d}.png', np.full((3, 4, 8), 20*view+person, np.uint8)
                views[view,person-1] = refs.create_dataset(name, data=pixels, compression='gzip').ref if name in CUHK03 else empty
            pairs[0,pair-1] = views.ref
    return file.getvalue()

def release(rng, folder)->Case:
    "The pictures of CUHK03 as they are published, damaged."
    what,data = rng.choice(('plain', 'damaged', 'damaged', *['bytes']*7)), cuhk03_release()
    if what=='damaged': data = damaged(rng, data)
    if what=='bytes':   # one of another length is not even opened
        data = bytearray(data)
        for _ in range(rng.choice((1, 5, 25, 99))): data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
    savemat(folder/'cuhk03_new_protocol_config_detected.mat', protocol_of(CUHK03))
    (folder/'cuhk-03.mat').write_bytes(data)
    return Case(what, lambda: use('cuhk03', folder), (folder,), accounted(16, *((4, 2) if what=='plain' else ())), must=what=='plain')

ENDINGS = '.JPG', '.jfif', '.jpg.jpg', '.png', '.webp', '.jpe', '.tif', '.avif', '.jp2', '.txt', '', '.jpg~', '.gif', '.ppm', '.bmp.'

def market(rng, folder)->Case:
    "Odd names in the layout of Market-1501."
    odd,files = rng.choice(('plain', 'people', 'cameras', 'endings', 'names', 'folders', 'links', 'from 0', 'long')), 0
    def name(p, c, i):
        who,cam,end = f'{p:04d}', str(c), '.jpg'
        if odd=='people' and rng.random()<.3: who = rng.choice(('-1', '0000', '-2', '+5', ' 7', '007', '٣', '1.0', '', 'x',
                                                                '-0001', '00000'))
        if odd=='cameras' and rng.random()<.3: cam = rng.choice(('0', '01', '12', '9'*25, '-1', '', 'x', '٣'))
        if odd=='endings': end = rng.choice(ENDINGS)
        if odd=='long': who = f'{p+10**20}'
        return f'{who}_c{cam}s1_{i:06d}_00{end}'
    first = 0 if odd=='from 0' else 1
    parts = dict(bounding_box_train=[(p, c, i) for p in range(first, first+4) for c in (1, 2) for i in (0, 1)],
                 query=[(p, c, 0) for p in (5, 6) for c in (1, 2)],
                 bounding_box_test=[(p, c, 1) for p in (5, 6) for c in (1, 2)]+[(0, 1, 5)])
    for path,row in ((folder/part/name(*row), row) for part,rows in parts.items() for row in rows):
        if odd=='folders': path = path.parent/rng.choice((f'{row[0]:04d}', '.hidden', 'a b', ''))/path.name
        if odd=='names' and rng.random()<.2: path = path.with_name(rng.choice(('a\nb', '\x1b[31m', 'ä', os.fsdecode(b'\xff'),
                                                                               '.x', 'Thumbs.db', ' '))+path.name)
        if not path.exists(): put(path); files += 1
    for link,target in (('up', '..'), ('self', 'self'), ('gone.jpg', 'nothing'), ('0005_c1s1_9_9.jpg', 'nothing')) if odd=='links' else ():
        if rng.random()<.5: (folder/'query'/link).symlink_to(target)
    known = {'plain': (files, 6, 2), 'long': (files, 6, 2), 'from 0': (files, 6), 'links': ()}.get(odd, (files,))
    return Case(odd, lambda: use('market1501', folder), (folder,), accounted(*known), must=odd=='plain')

PEOPLE = ('Ada', 'Zoë', '李', 'a b', "O'Brien", '007', '😀', 'a\nb', os.fsdecode(b'\xff\xfe'), '.hid', '-1', '0', 'x'*120,
          '\x1b[31mred', '%s{}', 'con', '"q"', 'ı', ' lead', 'trail ')
PATTERNS = ('(', '(?P<identity>x)', r'(?P<identity>.*)(?P<camera>)', r'^(?P<identity>[^/]+)/(?P<camera>\d)',
            '(?P<identity>.)(?P<camera>.)(?P<split>.)', '', '[', '\0', r'(?P<identity>[^/]+)/(?P<camera>\d)_(?P<split>\d)')

def tree(rng, folder)->Case:
    "A folder of one's own: four people under two cameras, named oddly."
    who,files,twice = rng.sample(PEOPLE, 4), 0, rng.random()<.3
    if twice and 'Zoë' not in who: who[0] = 'Zoë'
    odd,options = rng.choice(('plain', 'links', 'strays', 'deep', 'empty file', 'pattern')), {}
    for p,c,i in ((p, c, i) for p in who for c in CAMS for i in range(2)):
        if twice and p=='Zoë' and i: p = rng.choice((unicodedata.normalize('NFD', p), f'{p} '))
        put(folder/p/f'{c}_{i}{rng.choice((".png", ".png", ".jpg", ".PNG", ".jfif", ".png.png", ".tif"))}'); files += 1
    if odd=='links':
        for link,target in (('up', folder), ('3_gone.png', 'nothing'), ('self', 'self')): (folder/who[1]/link).symlink_to(target)
    if odd=='strays': put(folder/'loose.png'); put(folder/who[1]/'nocamera.png'); (folder/'Thumbs.db').touch(); files += 3
    if odd=='deep': put(folder/who[1]/'/'.join('d'*50)/'1_x.png'); files += 1
    if odd=='empty file': (folder/who[1]/'1_e.png').touch(); files += 1
    if odd=='pattern': options['pattern'] = rng.choice(PATTERNS)
    known = dict(plain=(files, 4, 2), deep=(files, 4, 2), links=()).get(odd, (files,))
    return Case(f'{odd}{", one person in two spellings" if twice else ""}, {who}', lambda: use('folder', folder, **options),
                (folder, *map(repr, options.values())), accounted(*known))

# --- the files of a run

@lru_cache
def run_files()->dict[str,bytes]: # name -> content
    "The folder of a finished run, with the smallest networks."
    with TemporaryDirectory() as tmp:
        run = Path(tmp)
        config = json.loads((demo_run()/'config.json').read_text())|dict(height=32, width=32, ngf=1)
        write_json(config, run/'config.json')
        for name in ('history.jsonl', 'results.json'): (run/name).write_bytes((demo_run()/name).read_bytes())
        torch.manual_seed(0)
        save_arm(Arm('w/ U', AGW(config['run']['identities'], 'mini'), *(UNetGenerator((32,32), 1) for _ in 'XY'), seconds=1.,
                     history=[]), run)
        write_json({part: [f'{part}{i}.png' for i in range(3)] for part in PARTS}, run/'split.json')
        write_json({MEASUREMENT: {'Base, raw-protected': dict(right=1, n=2, threshold=.5)}}, run/'measurements.json')
        write_pictures({k: torch.zeros(2, 3, 32, 32) for k in ('raw', 'desensitized', 'protected w/ U')}, run/'pictures.png')
        return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob('*') if p.is_file()}

MEASUREMENT = 'machine rater, 2 pairs'

def lay(folder:Path, *names:str)->Path: # names: default: all files
    "The run, in `folder`."
    run = folder/'run7'
    for name in names or run_files():
        (run/name).parent.mkdir(parents=True, exist_ok=True)
        (run/name).write_bytes(run_files()[name])
    return run

def a_page(run:Path)->str:
    "The words of a report."
    html = write_report(run).read_text(encoding='utf-8')
    return re.sub(r'<[^>]*>', ' ', re.sub(r'<(svg|style|img).*?(</\1>|>)', '', html, flags=re.S))

def a_summary(run:Path)->str:
    found = read_run(run)
    return summary(found.results, found.history, found.eps)

def an_explorer(run:Path)->str:
    found = Explorer.of_run(run)
    return f'{found!r} {found.svg(found.eps)} {len(found._repr_html_())}'

def a_comparison(run:Path)->str:
    lay(run.parent/'other', 'config.json', 'history.jsonl', 'results.json')
    return comparison_text(read_runs([run.parent/'other'/run.name, run]))

def a_configuration(run:Path)->str: return str(load_run(run))
def a_split(run:Path)->str: return str(len(''.join(name for part in PARTS for name in read_split(run/'split.json')[part])))
def an_arm(run:Path)->str: return str(load_arm(run, 'w/ U').seconds)

READERS = {'history.jsonl': (an_explorer, a_summary, a_page),
           'config.json': (a_configuration, an_explorer, a_summary, a_comparison),
           'results.json': (a_summary, a_comparison, an_explorer, a_page),
           'split.json': (a_split, a_page), 'with-u/arm.json': (an_arm,)}

def no_nan(text:str)->str:
    "What is wrong with a text that people read."
    text = re.sub(r"'[^']*'", "''", text)   # what is quoted may be a word
    found = re.search(r'\b(nan|-?inf|infinity)\b', text, flags=re.I)
    return f'{text[max(0, found.start()-40):found.end()+20]!r} is told' if found else ''

def run_file(name:str, rng, folder)->Case:
    "A file of a run, damaged or with something odd in one place, and something that reads it."
    run,data,what = lay(folder), run_files()[name], 'damaged'
    if rng.random()<.1: what = 'plain'
    elif rng.random()<.4: data = damaged(rng, data)
    elif name.endswith('.jsonl'):
        rows = [json.loads(line) for line in data.splitlines()]
        i,what = rng.randrange(len(rows)), rng.choice(('odd', 'odd', 'odd', 'twice', 'reversed', 'empty'))
        if what=='odd': rows[i],what = twisted(rng, rows[i])
        elif what=='twice': rows.insert(i, rows[i])
        else: rows = rows[::-1] if what=='reversed' else []
        data,what = b''.join(json.dumps(r).encode()+b'\n' for r in rows), f'row {i}: {what}'
    else:
        value,what = twisted(rng, json.loads(data))
        data = as_json(rng, value)
    (run/name).write_bytes(data)
    read = rng.choice(READERS[name])
    if read is a_page and rng.random()<.8: read = READERS[name][0]   # a page takes its time
    return Case(f'{what}, {read.__name__}', lambda: read(run), (run.name, name), no_nan, must=what=='plain')

def pictures(rng, folder)->Case:
    "A sheet of pictures, damaged, or with an odd note of its rows."
    path,note,rows = folder/'pictures.png', PngInfo(), rng.choice(ODD)
    if rng.random()<.4:
        note.add_text('rows', json.dumps(rows))
        Image.new('RGB', (8, 9)).save(path, pnginfo=note)
    else:
        rows,whole = rng.choice(('damaged', 'damaged', 'damaged', 'plain')), run_files()['pictures.png']
        path.write_bytes(damaged(rng, whole) if rows=='damaged' else whole)
    def right(found):
        whole = found and all(isinstance(k, str) and im.width and im.height for k,im in found.items())
        return '' if whole else f'rows {list(found)}'
    return Case(f'rows: {str(rows)[:30]!r}', lambda: read_pictures(path), (path,), right, must=rows=='plain')

def measurements(rng, folder)->Case:
    "The measurements beside a run that `reproduce` keeps."
    (value,what),whole = twisted(rng, json.loads(run_files()['measurements.json'])), run_files()['measurements.json']
    run = lay(folder/'runs', 'config.json', 'results.json')
    job = Job(load_run(run)[0], ('Base', 'w/ U'))
    run = run.rename(run.with_name(job.name))
    what = rng.choice(('plain', 'damaged', 'damaged', 'damaged', *[what]*6))
    (run/'measurements.json').write_bytes(dict(plain=whole, damaged=damaged(rng, whole)).get(what) or as_json(rng, value))
    trained,found = Trained(job, folder), {'Base, raw-protected': dict(right=1, n=2, threshold=.5)}
    def act():
        # what is missing is measured anew
        for name in ('a new one', MEASUREMENT): trained.measured(name, lambda: found)
        return table2(trained, Study(folder, 1, 2, 1))   # of another seed: people are not asked
    def right(rows): return next((f'{m}' for _,m in rows if not 0<=m['machine']['value']<=100), '')
    return Case(what, act, ('measurements.json',), right, must=what=='plain')

# --- weights

def lying(rng, data:bytes)->tuple[bytes,str]:
    "Safetensors whose header does not tell the truth."
    n, = struct.unpack('<Q', data[:8])
    head,body = json.loads(data[8:8+n]), data[8+n:]
    key,act = rng.choice([k for k in head if k!='__metadata__']), rng.choice(('length', 'offsets', 'type', 'shape', 'odd',
                                                                              'missing', 'metadata', 'twice'))
    if act=='length': return struct.pack('<Q', rng.choice((0, 1, n-1, n+1, 2**31, 2**63, 2**64-1, 10**8)))+data[8:], act
    if act=='offsets': head[key]['data_offsets'] = rng.choice(([0, 10**15], [5, 1], [-1, 4], [0, 0], [2**63, 2**64], [0, len(body)]))
    if act=='type': head[key]['dtype'] = rng.choice(('F64', 'I64', 'BOOL', 'F8_E4M3', 'X', '', 'F16', 'U8', 'C64'))
    if act=='shape': head[key]['shape'] = rng.choice(([], [0], [10**9, 10**9], [-1], [2**63], [1]*80, [3, 3]))
    if act=='odd': head,_ = twisted(rng, head)
    if act=='missing': del head[key]
    if act=='metadata': head['__metadata__'] = rng.choice(({}, {'numbers': 'x'}, {'numbers': '1'}, {'numbers': '{}'},
                                                           {'numbers': '[]'}, {'numbers': '['*10**5}, {'a': 1}, None,
                                                           {'name': 'x', 'train': ''}))
    text = json.dumps(head).encode()
    if act=='twice': text = text[:-1]+b', '+text[1:]
    return struct.pack('<Q', len(text))+text+body, f'{act} {key}'

@lru_cache
def tensors(kind:str)->bytes:
    "A whole file of a kind."
    if kind in ('generator', 'arm'): return run_files()['with-u/anonymizer.safetensors']
    if kind=='backbone': return save(Mini().state_dict())
    if kind=='checkpoint': return save({'nets.a': torch.zeros(3), 'optimizers.G_X.a.exp_avg': torch.ones(3)},
                                       {'numbers': json.dumps(dict(config={}, epoch=3, seconds=1., history=[], scaler={}, callbacks={}))})
    with TemporaryDirectory() as tmp:
        save_data(SyntheticPedestrians(3, 2, 1, 2, 2, (16,8)).draw(), Path(tmp)/'data')
        return (Path(tmp)/'data').read_bytes()

def finite(found:dict)->str:
    bad = (k for k,v in found.items() if v.is_floating_point() and not v.isfinite().all())
    return next((f'{k} holds a NaN or infinity' for k in bad), '')
def of_net(net)->str: return finite(net.state_dict())
def a_checkpoint(path:Path)->tuple:
    "As `Checkpoint.load` reads it."
    tensors,numbers = read_tensors(path)
    return tensors, expect(numbers, STATE, path)
def of_checkpoint(found)->str:
    numbers = '' if isinstance(found[1], dict) and 'epoch' in found[1] else f'{str(found[1])[:50]} for the numbers of a checkpoint'
    return finite(found[0]) or numbers
def of_data(data)->str:
    def odd(s): return s.images.dtype!=torch.uint8 or len({len(s.images), len(s.pids), len(s.cams), len(s.names)})>1
    return next((f'{p} is no split' for p,s in vars(data).items() if p!='name' and odd(s)), '')

def weights(rng, folder)->Case:
    "Files of tensors, damaged, lying, or with a NaN."
    kind = rng.choice(('generator', 'arm', 'backbone', 'checkpoint', 'data'))
    path = folder/rng.choice(('w.safetensors', 'ä w.safetensors')+('w.pth',)*(kind=='backbone'))
    if kind=='arm': path = lay(folder)/'with-u'/'anonymizer.safetensors'
    whole,dice = tensors(kind), rng.random()
    if dice<.1: data,what = whole, 'plain'
    elif dice<.2: data,what = whole[:-4]+struct.pack('<f', rng.choice((math.nan, math.inf))), 'no number'
    else: data,what = (damaged(rng, whole), 'damaged') if dice<.5 else lying(rng, whole)
    path.write_bytes(data)
    act,right = dict(generator=(lambda: load_weights(UNetGenerator((32,32), 1), path), of_net),
                     arm=(lambda: load_arm(folder/'run7', 'w/ U').anonymizer, of_net),
                     backbone=(lambda: build_backbone('mini', str(path))[0], of_net),
                     checkpoint=(lambda: a_checkpoint(path), of_checkpoint), data=(lambda: read_data(path), of_data))[kind]
    return Case(f'{kind}, {what}', act, (path,), right, must=what=='plain' and path.suffix!='.pth')

# --- raters

ANSWERS = 'same', 'different', '', 'Same', ' different ', 'SAME'

def sheets(rng, folder)->Case:
    "Sheets of two raters, as spreadsheets save them."
    key = pd.DataFrame([dict(group=g, pair=p, rater=p%2+1, desensitizer='blur', arm='Base', setting='raw-protected', left=0,
                             right=1, same=bool((g+p)%2)) for g in (1, 2) for p in range(1, 5)])
    write_sheets(folder, key)
    (done,maybe),given,good = odds(rng), 0, 0
    for path in sorted(folder.glob('sheet-*.csv')):
        head,*rows = csv.reader(path.read_text(encoding='utf-8').splitlines())
        for r in rows:
            r[5] = rng.choice(ANSWERS)
            if answer := r[5].strip().lower(): given += 1; good += (answer=='same')==bool((int(r[0])+int(r[1]))%2)
        if maybe('no such pair', .1): rows[0][1] = rng.choice(('99', '0', '-1', '1.0', '9'*30, '١', '1e0', ' 1', ''))
        if maybe('odd answer', .1): rows[0][5] = rng.choice(('yes', 'gleich', '1', 'same?', 'nan', 'NA', '=1+1'))
        if maybe('header', .1): head = rng.choice(([h.title() for h in head], [f' {h}' for h in head], head[:3], head+head))
        if maybe('blank rows'): rows[1:1] = [[], ['']*6]
        if maybe('a row twice', .05): rows.append(rows[0])
        text,delimiter,encoding = io.StringIO(), rng.choice(',,,;\t'), rng.choice(('utf-8', 'utf-8-sig', 'cp1252', 'utf-16', 'utf-8'))
        csv.writer(text, delimiter=delimiter, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
                   lineterminator=rng.choice(('\n', '\r\n'))).writerows([head, *rows])
        data = text.getvalue().encode(encoding, 'replace')
        path.write_bytes(damaged(rng, data) if maybe('damaged', .15) else data)
    def act():
        answers = read_answers(folder)
        return answers, score_answers(answers, key)
    def right(found):
        answers,scores = found
        told,scored = int((answers.answer!='').sum()), (int(scores.n.sum()), int(scores.right.sum()))
        if told!=scored[0]: return f'{told} answers, of which {scored[0]} are scored'
        if {'no such pair', 'odd answer', 'a row twice', 'damaged'}&set(done) or scored==(given, good): return ''
        return f'{scored[1]} of {scored[0]} right instead of {good} of {given}'
    return Case(', '.join(done) or 'plain', act, (folder,), right, must=not done)

KINDS = dict(images=images, manifest=manifest, lists=lists, protocol=protocol, market=market, tree=tree,
             history=partial(run_file, 'history.jsonl'), config=partial(run_file, 'config.json'), results=partial(run_file, 'results.json'),
             split=partial(run_file, 'split.json'), arm=partial(run_file, 'with-u/arm.json'), measurements=measurements,
             pictures=pictures, weights=weights, sheets=sheets)
if find_spec('h5py'): KINDS['release'] = release
