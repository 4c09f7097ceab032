"Pictures: whatever Pillow opens is read as it is meant, and decoded once."
import os, struct, sys, time, warnings, zlib
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from PIL import Image
import privreid.pictures as pictures
from privreid.cache import cached
from privreid.data import Split, SyntheticPedestrians
from privreid.pictures import decode, how_read, read_image
from test_files import nobody, posix

SIZE = (32,16)

@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    "A cache of its own for every test."
    monkeypatch.setenv('PRIVREID_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'

@pytest.fixture
def photos(tmp_path):
    "A factory of `n` different JPEGs; returns their paths in order of name."
    def make(n=6, size=(40,20)):
        rng,folder = np.random.default_rng(n), tmp_path/'photos'
        folder.mkdir()
        for i in range(n): Image.fromarray(rng.integers(0, 256, (*size,3), dtype=np.uint8)).save(folder/f'{i:03d}.jpg')
        return sorted(folder.iterdir())
    return make

def by_pillow(paths, size=SIZE):
    "The reference: one image after the other."
    return torch.stack([torch.from_numpy(np.array(Image.open(p).convert('RGB').resize(size[::-1], Image.BILINEAR))).permute(2,0,1) for p in paths])

def never(*args): raise AssertionError('decoded again')
def entries(cache): return sorted(p.name for p in cache.iterdir())

@pytest.fixture
def picture():
    im = SyntheticPedestrians(size=(64,32)).split([(3,1,0)]).images[0]
    return Image.fromarray(im.permute(1,2,0).numpy())

# --- which way is up, and what else stands beside the pixels

@pytest.mark.parametrize('orientation, stored', [(1, None), (2, 'FLIP_LEFT_RIGHT'), (3, 'ROTATE_180'), (4, 'FLIP_TOP_BOTTOM'),
                                                 (5, 'TRANSPOSE'), (6, 'ROTATE_90'), (7, 'TRANSVERSE'), (8, 'ROTATE_270')])
@pytest.mark.parametrize('suffix, options', [('png', {}), ('jpg', dict(quality=100, subsampling=0)), ('tif', {}), ('tif', dict(compression='tiff_lzw')), ('webp', dict(lossless=True))])
def test_exif_turns_a_picture_upright(tmp_path, picture, orientation, stored, suffix, options):
    exif = Image.Exif(); exif[0x112] = orientation
    lying = picture.transpose(Image.Transpose[stored]) if stored else picture
    lying.save(tmp_path/f'a.{suffix}', exif=exif, **options)
    off = np.abs(read_image(tmp_path/f'a.{suffix}', (64,32)).astype(int)-np.asarray(picture))
    assert off.max()<=(6 if suffix=='jpg' else 0)

@pytest.mark.parametrize('orientation', [0, 9, 255])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path, picture, orientation):
    exif = Image.Exif(); exif[0x112] = orientation
    picture.save(tmp_path/'a.png', exif=exif)
    assert (read_image(tmp_path/'a.png', (64,32))==np.asarray(picture)).all()

def tiff_note(*entries):
    "EXIF data with these entries (tag, type, count, 4 bytes), whatever they mean."
    return b'Exif\0\0II*\0\x08\0\0\0'+struct.pack('<H', len(entries))+b''.join(struct.pack('<HHI4s', *e) for e in entries)+bytes(4)

@pytest.mark.parametrize('exif, turned', [
    (tiff_note((0x112, 3, 1, b'\3\0\0\0'), (0x11A, 2, 4, b'72\0\0')), True),    # a resolution as text: cannot be packed again
    (tiff_note((0x112, 2, 2, b'3\0\0\0')), False),                              # an orientation as text
    (tiff_note((0x112, 3, 1, b'\3\0\0\0'))[:-12], False), (b'Exif\0\0II*\0\xff\xff\xff\x7f', False), (b'Exif\0\0nonsense', False)],
    ids=['unpackable', 'text', 'cut', 'beyond', 'nonsense'])
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp'])
@pytest.mark.filterwarnings('ignore:Corrupt EXIF')   # Pillow tells, and goes on
def test_damaged_notes_condemn_no_picture(tmp_path, picture, exif, turned, suffix):
    lying = picture.transpose(Image.Transpose.ROTATE_180) if turned else picture
    lying.save(tmp_path/f'a.{suffix}', exif=exif, **dict(jpg=dict(quality=100, subsampling=0), webp=dict(lossless=True)).get(suffix, {}))
    off = np.abs(read_image(tmp_path/f'a.{suffix}', (64,32)).astype(int)-np.asarray(picture))
    assert off.max()<=(6 if suffix=='jpg' else 0)

def chunk(kind, data, crc=None): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data) if crc is None else crc)

BOMB = zlib.compress(bytes(70_000_000))
@pytest.mark.parametrize('note', [chunk(b'tEXt', b'Title\0street', 7), chunk(b'zTXt', b'Title\0\0'+BOMB), chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0'+BOMB),
                                  chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0<tiff:Orientation>six'), chunk(b'eXIf', b'nonsense'), chunk(b'iCCP', b'icc\0\0'+BOMB), chunk(b'pHYs', b'1'), chunk(b'xxXx', b'')],
                         ids=['checksum', 'text-bomb', 'xmp-bomb', 'xmp', 'exif', 'icc-bomb', 'cut', 'unknown'])
@pytest.mark.parametrize('late', [False, True])
def test_png_notes_condemn_no_picture(tmp_path, picture, note, late):
    picture.save(tmp_path/'a.png')
    png = (tmp_path/'a.png').read_bytes()
    at = len(png)-12 if late else 33                                        # after the pixels, or right after the header
    (tmp_path/'a.png').write_bytes(png[:at]+note+png[at:])
    assert (read_image(tmp_path/'a.png', (64,32))==np.asarray(picture)).all()

def test_a_noted_picture_is_still_turned(tmp_path, picture):
    exif = Image.Exif(); exif[0x112] = 3
    picture.transpose(Image.Transpose.ROTATE_180).save(tmp_path/'a.png', exif=exif)
    png = (tmp_path/'a.png').read_bytes()
    (tmp_path/'a.png').write_bytes(png[:33]+chunk(b'tEXt', b'Title\0street', 7)+png[33:])
    assert (read_image(tmp_path/'a.png', (64,32))==np.asarray(picture)).all()

# --- how bright a number is

RAMP = np.linspace(0, 1, 256)[None].repeat(4, 0)                            # each 8-bit level once
def read_ramp(path): return read_image(path, (4,256))

@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_whole_numbers_are_scaled_by_their_depth(tmp_path, bits, suffix):
    Image.fromarray((RAMP*(2**bits-1)).round().astype(np.uint16)).save(tmp_path/f'a.{suffix}')
    off = np.abs(read_ramp(tmp_path/f'a.{suffix}').astype(int)-np.arange(256)[None,:,None])
    assert off.max()==0 and how_read(tmp_path/f'a.{suffix}')==f'0..{2**bits-1}'

def test_the_other_byte_order(tmp_path):
    ramp = (RAMP*4095).round().astype('>u2')
    Image.frombytes('I;16B', (256,4), ramp.tobytes()).save(tmp_path/'a.tif')
    assert (read_ramp(tmp_path/'a.tif')==np.arange(256)[None,:,None]).all()

def test_where_zero_is_white(tmp_path):
    Image.fromarray((RAMP*4095).round().astype(np.uint16)).save(tmp_path/'a.tif', tiffinfo={262: 0})
    assert (read_ramp(tmp_path/'a.tif')==255-np.arange(256)[None,:,None]).all()

@pytest.mark.parametrize('values, how', [(RAMP.astype(np.float32), '0..1'), ((RAMP*255).astype(np.float32), '0..255'), ((RAMP*4095).astype(np.float32), '0..4095'),
                                         ((RAMP*65535).astype(np.int32), '0..65535'), ((RAMP*(2**31-1)).astype(np.int32), f'0..{2**31-1}')], ids=['share', '8', '12', 'int16', 'int31'])
def test_floats_and_long_numbers(tmp_path, values, how):
    Image.fromarray(values).save(tmp_path/'a.tif')
    off = np.abs(read_ramp(tmp_path/'a.tif').astype(int)-np.arange(256)[None,:,None])
    assert off.max()<=1 and how_read(tmp_path/'a.tif')==how

@pytest.mark.parametrize('values', [RAMP.astype(np.float32)*.02, RAMP.astype(np.float32)*5, RAMP.astype(np.float32)-1, np.where(RAMP>.5, np.nan, RAMP).astype(np.float32),
                                    np.where(RAMP>.5, np.inf, RAMP).astype(np.float32), (RAMP>.5).astype(np.uint16), (RAMP>.5).astype(np.int32)*3, (RAMP*1000-500).astype(np.int32)],
                         ids=['dim', 'metres', 'around-0', 'nan', 'inf', 'mask', 'labels', 'negative'])
def test_what_has_no_known_range_is_refused(tmp_path, values, one_line):
    Image.fromarray(values).save(tmp_path/'a.tif')
    for f in (read_ramp, how_read):
        with pytest.raises(ValueError) as e: f(tmp_path/'a.tif')
        one_line(e.value, tmp_path/'a.tif', 'Replace or remove')

def test_black_is_black_and_a_hot_pixel_decides_nothing(tmp_path):
    Image.fromarray(np.zeros((8,8), np.uint16)).save(tmp_path/'black.png')
    assert not read_image(tmp_path/'black.png', (8,8)).any()
    hot = (np.random.default_rng(0).random((128,64))*4095).astype(np.uint16)
    right = (hot/4095*255).round()
    hot[5,5] = hot[70,3] = 65535
    Image.fromarray(hot).save(tmp_path/'hot.png')
    assert (read_image(tmp_path/'hot.png', (128,64))[...,0]!=right).sum()<=2

@given(st.integers(8, 16), st.integers(0, 10**6))
def test_the_brightest_value_is_never_nearly_black(bits, seed):
    values = np.random.default_rng(seed).integers(0, 2**bits, (16,16)).astype(np.uint16)
    out,_ = pictures._eight_bits(values)
    assert out.max()>=(64 if values.max()>255 else values.max())
    order = values.ravel().argsort()
    assert (np.diff(out.ravel()[order].astype(int))>=0).all()                # what is brighter stays brighter

def png(colour, values):
    "A PNG with 16 bits a channel, which Pillow does not write."
    h,w,n = values.shape
    rows = b''.join(b'\0'+values[y].astype('>u2').tobytes() for y in range(h))
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 16, colour, 0, 0, 0))+chunk(b'IDAT', zlib.compress(rows))+chunk(b'IEND', b'')

@pytest.mark.parametrize('colour, channels', [(2, 3), (4, 2), (6, 4)])
def test_colours_with_sixteen_bits(tmp_path, colour, channels, one_line):
    full = (RAMP*65535).round()[...,None].repeat(channels, 2)
    (tmp_path/'a.png').write_bytes(png(colour, full))
    assert (read_ramp(tmp_path/'a.png')==np.arange(256)[None,:,None]).all()
    for bits in (8, 10, 12, 14):                                              # Pillow keeps the upper byte only
        (tmp_path/'a.png').write_bytes(png(colour, full//2**(16-bits)))
        with pytest.raises(ValueError) as e: read_ramp(tmp_path/'a.png')
        one_line(e.value, tmp_path/'a.png', 'save it with 8 bits')

# --- other kinds of pictures

@pytest.mark.parametrize('mode, suffix, most', [
    ('1', 'png', 0), ('L', 'png', 0), ('LA', 'png', 0), ('P', 'gif', 0), ('P', 'png', 0), ('RGBA', 'png', 0), ('RGBX', 'tif', 0), ('CMYK', 'tif', 0), ('CMYK', 'jpg', 2),
    ('RGB', 'bmp', 0), ('RGB', 'ppm', 0), ('RGB', 'tga', 0), ('RGB', 'jfif', 10), ('RGB', 'jp2', 1), ('RGB', 'webp', 12)])
def test_modes_and_formats(tmp_path, picture, mode, suffix, most):
    path,stored = tmp_path/f'a.{suffix}', picture.convert(mode)
    stored.save(path, **dict(quality=100) if suffix=='jpg' else {})
    off = np.abs(read_image(path, (64,32)).astype(int)-np.asarray(stored.convert('RGB')))
    assert off.mean()<=most and how_read(path)==''

def test_lab(tmp_path, picture):
    ImageCms = pytest.importorskip('PIL.ImageCms')
    to_lab = ImageCms.buildTransform(ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB')
    ImageCms.applyTransform(picture, to_lab).save(tmp_path/'a.tif')
    assert np.abs(read_image(tmp_path/'a.tif', (64,32)).astype(int)-np.asarray(picture)).mean()<3

def test_what_is_open_already(tmp_path, picture):
    exif = Image.Exif(); exif[0x112] = 6
    picture.save(tmp_path/'a.png', exif=exif)
    for given in (tmp_path/'a.png', Image.open(tmp_path/'a.png')):
        assert (read_image(given)==np.rot90(np.asarray(picture), -1)).all() and read_image(given, SIZE).shape==(*SIZE, 3) and how_read(given)==''
    with pytest.raises(ValueError, match='not known'): read_image(Image.fromarray(RAMP.astype(np.float32)*5))

@pytest.mark.parametrize('mode', ['PA', 'HSV', 'YCbCr', 'La', 'RGBa', 'F', 'I'])
def test_modes_that_few_files_have(picture, mode):
    few = picture.quantize(16).convert('RGB')
    between = dict(La='LA', RGBa='RGBA', PA='P').get(mode, 'L' if mode in 'FI' else 'RGB')
    want = few.convert('L').convert('RGB') if mode in ('La', 'F', 'I') else few.convert('P').convert('RGB') if mode=='PA' else few
    assert np.abs(read_image(few.convert(between).convert(mode)).astype(int)-np.asarray(want)).mean()<4

def test_the_suffix_is_not_asked(tmp_path, picture):
    for name in ('a.jfif', 'a.txt', 'a', 'b.PNG.bak'):
        picture.save(tmp_path/name, format='png')
        assert (read_image(tmp_path/name, (64,32))==np.asarray(picture)).all()

def test_transparency_is_ignored(tmp_path, picture):
    few = picture.quantize(16)
    few.save(tmp_path/'p.png', transparency=bytes([0]*8+[128]*8))
    picture.putalpha(0); picture.save(tmp_path/'rgba.png')
    with warnings.catch_warnings():
        warnings.simplefilter('error')                                   # Pillow warns of palettes with transparency
        assert (read_image(tmp_path/'p.png', (64,32))==np.asarray(few.convert('RGB'))).all()
        assert (read_image(tmp_path/'rgba.png', (64,32))==np.asarray(picture)[...,:3]).all()

def test_the_first_of_an_animation(tmp_path, picture):
    picture.save(tmp_path/'a.webp', save_all=True, append_images=[Image.new('RGB', picture.size)], lossless=True)
    assert (read_image(tmp_path/'a.webp', (64,32))==np.asarray(picture)).all()

def test_one_pixel(tmp_path):
    Image.new('RGB', (1,1), (7,80,255)).save(tmp_path/'a.png')
    assert (read_image(tmp_path/'a.png', SIZE)==[7,80,255]).all()

# --- what cannot be read

@pytest.mark.parametrize('spoil, why', [(lambda p: p.write_bytes(b''), 'empty'), (lambda p: p.write_bytes(p.read_bytes()[:-100]), 'truncated'), (lambda p: p.write_bytes(b'text, not a picture'), 'no format that Pillow knows'),
                                        (lambda p: (p.unlink(), p.mkdir()), 'Is a directory'), (lambda p: p.unlink(), 'No such file')], ids=['empty', 'truncated', 'text', 'folder', 'missing'])
def test_a_bad_file_is_named_and_nothing_is_kept(photos, cache, one_line, spoil, why):
    paths = photos(6)
    spoil(paths[3])
    with warnings.catch_warnings():
        warnings.simplefilter('error')                                   # the cache is not to blame
        with pytest.raises(ValueError) as e: decode(paths, SIZE)
        one_line(e.value, paths[3], 'cannot be read', 'Replace or remove')
        with pytest.raises(ValueError) as e: read_image(paths[3], SIZE)
        one_line(e.value, paths[3], why, 'Replace or remove')
    assert not cache.exists() or entries(cache)==[]

@pytest.mark.parametrize('side', [7072, 9500, 14_000, 60_000])            # above our limit, above Pillow's warning, above its error
def test_a_bomb_is_not_unpacked(tmp_path, one_line, side, monkeypatch):
    "A file of some hundred bytes says that it is a picture of gigabytes."
    (tmp_path/'a.png').write_bytes(b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))+chunk(b'IDAT', zlib.compress(bytes(100_000)))+chunk(b'IEND', b''))
    monkeypatch.setattr(Image.Image, 'convert', never)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        with pytest.raises(ValueError) as e: read_image(tmp_path/'a.png', SIZE)
    one_line(e.value, tmp_path/'a.png', '50,000,000 pixels', 'smaller')

def test_a_large_file_that_is_no_picture_is_not_read(tmp_path, one_line):
    with open(tmp_path/'film.png', 'wb') as f: f.truncate(1<<40)               # a terabyte of holes
    with pytest.raises(ValueError) as e: read_image(tmp_path/'film.png', SIZE)
    one_line(e.value, 'film.png')

@pytest.mark.parametrize('size', [64, (64,), (64,32,3), (0,5), (-1,5), (1.5,2), '64', (True, 'a'), (10**6, 10**6), ('64','32')])
def test_a_wrong_size_is_the_arguments_fault(photos, one_line, size):
    paths = photos(1)
    for f in (lambda: read_image(paths[0], size), lambda: decode(paths, size)):
        with pytest.raises(ValueError) as e: f()
        one_line(e.value, 'size is to be (height, width)'); assert paths[0].name not in str(e.value)

def test_many_pictures_want_a_size(photos):
    with pytest.raises(ValueError, match='size is to be'): decode(photos(1), None)

def test_wrong_paths_are_the_arguments_fault(photos, one_line):
    path, = photos(1)
    for one in (path, str(path), os.fsencode(path)):
        with pytest.raises(TypeError) as e: decode(one, SIZE)
        one_line(e.value, 'a list of files')
        assert (read_image(one, SIZE)==read_image(path, SIZE)).all()
    for wrong in (5, None, [path], np.zeros((4,4,3), np.uint8)):
        with pytest.raises(TypeError) as e: read_image(wrong, SIZE)
        one_line(e.value, 'the name of one file')
    for wrong in (5, None, [5], [None], [Image.new('L', (2,2))]):
        with pytest.raises(TypeError) as e: decode(wrong, SIZE)
        one_line(e.value, 'file')

# --- many images

def test_decode_is_pillow_in_order(photos, cache):
    paths = photos(9)
    images = decode(paths, SIZE)
    assert images.dtype==torch.uint8 and images.shape==(9,3,*SIZE) and images.is_contiguous()
    assert torch.equal(images, by_pillow(paths)) and len(entries(cache))==1
    assert torch.equal(decode([str(p) for p in paths], list(SIZE)), images) and len(entries(cache))==1
    for other in (paths[::-1], paths[:4], [paths[0]]*3): assert torch.equal(decode(other, SIZE), by_pillow(other))
    assert torch.equal(decode(paths, (16,32)), by_pillow(paths, (16,32)))
    assert len(entries(cache))==5 and f'9 pictures of 32 x 16, from {paths[0].parent}' in [c.what for c in cached()]

def test_nothing_to_decode(cache): assert decode([], SIZE).shape==(0,3,*SIZE) and not cache.exists()

def test_the_second_call_decodes_nothing(photos, monkeypatch):
    paths = photos()
    first = decode(paths, SIZE)
    monkeypatch.setattr(pictures, 'read_image', never)
    assert torch.equal(decode(paths, SIZE), first)

def test_a_changed_file_is_decoded_again_in_its_place(photos, cache, monkeypatch):
    paths = photos()
    decode(paths, SIZE)
    when = paths[2].stat().st_mtime_ns
    for colour,ns in (((255,0,0), when), ((0,255,0), when+1), ((0,0,255), when+1)):   # other bytes at the same time; as many, a nanosecond later; as many at the same time
        Image.new('RGB', (20,40), colour).save(paths[2], 'bmp'); os.utime(paths[2], ns=(ns, ns))
        assert torch.equal(decode(paths, SIZE), by_pillow(paths))
    other = paths[2].with_name('other')
    Image.new('RGB', (20,40), (9,9,9)).save(other, 'bmp'); os.utime(other, ns=(when+1, when+1))
    os.replace(other, paths[2])                                            # another file of the same name, size and time
    assert torch.equal(decode(paths, SIZE), by_pillow(paths)) and len(entries(cache))==1
    monkeypatch.setattr(pictures, 'FORMAT', -1); monkeypatch.setattr(pictures, 'read_image', never)
    with pytest.raises(AssertionError, match='again'): decode(paths, SIZE)

@pytest.mark.parametrize('damage', [lambda b: b'', lambda b: bytes(len(b)), lambda b: b[:-1]], ids=['empty', 'zeros', 'cut'])
def test_damaged_pixels_are_decoded_again(photos, cache, damage):
    paths = photos()
    decode(paths, SIZE)
    content, = cache.glob('*/content')
    content.write_bytes(damage(content.read_bytes()))
    assert torch.equal(decode(paths, SIZE), by_pillow(paths)) and torch.equal(decode(paths, SIZE), by_pillow(paths))

def test_off_decodes_into_memory_and_writes_nothing(photos, cache, monkeypatch, tmp_path):
    paths = photos()
    monkeypatch.setenv('PRIVREID_CACHE', 'off'); monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        a,b = decode(paths, SIZE), decode(paths, SIZE)                       # two users of the same pictures
    a.zero_()
    assert torch.equal(b, by_pillow(paths)) and sorted(tmp_path.rglob('*'))==before

def test_the_result_cannot_alter_the_cache(photos, cache):
    paths = photos()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        images = decode(paths, SIZE)
        content, = cache.glob('*/content')
        before = content.read_bytes()
        images.zero_(); images.numpy()[:] = 7
    assert content.read_bytes()==before
    assert torch.equal(decode(paths, SIZE), by_pillow(paths)) and (images==7).all()

def test_the_result_outlives_its_entry(photos, cache):
    "Cleared, damaged or replaced: who has mapped the pixels keeps them."
    from privreid.cache import clear_cache
    paths = photos()
    images = decode(paths, SIZE)
    assert len(clear_cache())==1 and torch.equal(images, by_pillow(paths))

def test_the_result_serves_a_split(photos):
    paths = photos()
    split = Split(decode(paths, SIZE), torch.arange(6), torch.ones(6).long(), [p.name for p in paths])
    assert torch.equal(split[torch.tensor([4,1])].images, by_pillow([paths[4], paths[1]]))
    assert torch.equal(split.images.to('cpu', torch.float32), by_pillow(paths).float()) and split.size==SIZE

def test_threads_do_not_run_away_from_a_slow_disk(monkeypatch):
    "However long the writer pauses, only so many images wait for it in memory."
    n,begun,most = 3*pictures.AHEAD+1, [], 0
    monkeypatch.setattr(pictures, 'read_image', lambda path, size: begun.append(path) or np.full((*size,3), path, np.uint8))
    for taken,im in enumerate(pictures._decoded([i%251 for i in range(n)], (2,1)), 1):
        if taken%100==1: time.sleep(.1)
        most = max(most, len(begun)-taken)
        assert (im==(taken-1)%251).all()
    assert taken==len(begun)==n and 0<most<pictures.AHEAD

def test_a_bar_when_there_is_much_to_do(photos, capsys, monkeypatch):
    path, = photos(1, (2,2))
    monkeypatch.setattr(pictures, 'read_image', lambda path, size: np.zeros((*size,3), np.uint8))
    def said(n):
        decode([path]*n, (2,2))
        return capsys.readouterr().err
    assert 'decoding' not in said(1000)                                  # nobody looks
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    assert 'decoding' not in said(999) and 'decoding' in said(1001)

@posix
def test_a_cache_that_cannot_be_written(photos, cache, one_line, monkeypatch):
    paths = photos()
    cache.mkdir(0o555)
    with nobody(monkeypatch, cache), pytest.warns(UserWarning) as w: images = decode(paths, SIZE)
    assert len(w)==1 and torch.equal(images, by_pillow(paths)) and entries(cache)==[]
    one_line(w[0].message, cache, 'PRIVREID_CACHE')

@pytest.mark.parametrize('name', ['\x15\x1b[31m', 'a\nb\u202e', 'x'*5000, 'a\0', '\udcff'], ids=ascii)
def test_odd_names_are_told_visibly(name):
    with pytest.raises(ValueError) as e: read_image(name)
    assert str(e.value).isprintable() and len(str(e.value))<450 and 'cannot be read as an image' in str(e.value)
