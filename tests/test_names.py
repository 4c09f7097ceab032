"Names: one key for one person, whatever Pillow opens, tables of any program."
import os, unicodedata
import pytest
from hypothesis import given, strategies as st
from PIL import Image
from privreid.names import Disk, find_images, in_order, look_alikes, plain, read_table, read_text
from test_files import posix

# --- keys

words = st.text(st.characters(exclude_categories=['Cs']), max_size=8)

@given(words)
def test_a_key_is_its_own_key(text):
    assert plain(plain(text))==plain(text) and plain(text)==plain(text).strip()

@given(words, st.sampled_from([' ', '\u00a0', '\u3000', '\t', '\u200b', '\ufeff', '\u00ad']))
def test_spelling_changes_no_key(text, blank):
    for other in (unicodedata.normalize('NFD', text), blank+text, text+blank, text.replace(' ', ' '+blank)): assert plain(other)==plain(text)

@given(st.integers(0, 10**30), st.integers(0, 5))
def test_numbers_keep_their_digits(n, zeros):
    for text in (str(n), '0'*zeros+str(n), f'{n}.0', f'{n},00', f'+{n}'): assert plain(text)==str(n)

@given(st.lists(st.integers(0, 10**25)))
def test_numbers_are_in_order(numbers): assert in_order(map(str, numbers))==[str(n) for n in sorted(set(numbers))]

def test_what_is_not_decided():
    keys = ['Ada', 'ADA', 'person-1', 'person_01', '１', '1', '-1', 'b–c', 'b-c', 'x']
    assert len({plain(k) for k in keys})==len(keys)                        # nobody is merged on a guess
    assert sorted(map(sorted, look_alikes(keys)))==[['1', '１'], ['ADA', 'Ada'], ['b-c', 'b–c'], ['person-1', 'person_01']]

# --- files

def save(path, format='png', mode='RGB'):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8,16)).save(path, format)

def test_whatever_pillow_opens(tmp_path):
    "Each ending in small and capital letters, and the usual formats without one."
    Image.init()
    endings = {e for e in ('.jpg', '.jpe', '.jfif', '.jp2', '.j2k', '.gif', '.png', '.apng', '.bmp', '.dib', '.tif', '.webp', '.ppm', '.pcx', '.tga', '.sgi', '.avif', '.ico') if Image.registered_extensions().get(e) in Image.SAVE}
    for e in endings:
        for name in (f'a{e}', f'B{e.upper()}'): save(tmp_path/name, Image.registered_extensions()[e])
    usual = ['JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'JPEG2000']
    for f in usual: save(tmp_path/f'none{f}', f)
    save(tmp_path/'odd.jpg_large', 'jpeg')
    images,others = find_images(tmp_path)
    assert sorted(images)==sorted([f'a{e}' for e in endings]+[f'B{e.upper()}' for e in endings]+[f'none{f}' for f in usual]+['odd.jpg_large']) and not any(others.values())
    assert {'.jfif', '.jp2', '.gif'}<=endings

def test_pictures_that_do_not_open_are_named(tmp_path):
    heic = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic'
    save(tmp_path/'telephone.nef', 'tiff')                                # what Pillow would see is the preview
    for name,content in (('a.HEIC', heic), ('without', heic), ('b.jxl', b'?'), ('c.cr2', b'II*\0'), ('Thumbs.db', b'\xd0\xcf\x11\xe0'), ('.DS_Store', b'?'), ('a.xmp', b'<x/>'), ('notes', b'BM is not a bitmap'), ('empty', b'')): (tmp_path/name).write_bytes(content)
    images,others = find_images(tmp_path)
    assert images==[] and others==dict(unopened=['a.HEIC', 'b.jxl', 'c.cr2', 'telephone.nef', 'without'], foreign=['.DS_Store', 'Thumbs.db', 'a.xmp', 'empty', 'notes'])

@posix
def test_what_is_no_file_does_not_stop_us(tmp_path):
    os.mkfifo(tmp_path/'pipe.jpg'); os.mkfifo(tmp_path/'pipe')            # opening one would wait for ever
    for folder in ('.thumbnails', '@eaDir', '__MACOSX'): save(tmp_path/folder/'1_a.png')
    assert find_images(tmp_path)==([], dict(foreign=['.thumbnails/', '@eaDir/', '__MACOSX/', 'pipe', 'pipe.jpg'], unopened=[]))

def test_a_folder_that_may_not_be_entered(tmp_path, monkeypatch, one_line):
    save(tmp_path/'a'/'1.png')
    scandir = os.scandir
    def refuse(folder): return scandir(folder) if os.path.basename(str(folder).rstrip('/'))!='a' else os.open(tmp_path, os.O_WRONLY)   # an OSError of the system
    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(OSError) as e: find_images(tmp_path)
    one_line(e.value, tmp_path/'a', 'cannot be looked into', 'ask its owner')

def test_the_disk_decides_what_a_file_is_called(tmp_path):
    nfd = unicodedata.normalize('NFD', 'Zoë')
    save(tmp_path/'set'/nfd/'1 a.JPG', 'jpeg'); save(tmp_path/'set'/'b'/'x.png'); save(tmp_path/'set'/'b'/'X.PNG'); save(tmp_path/'else'/'y.png')
    disk = Disk(tmp_path/'set')
    for typed in ('Zoë/1 a.JPG', 'zoë\\1 A.jpg', '.\\Zoë\\\\1 a.JPG', f'{tmp_path}/set/Zoë/1 a.JPG', f'{tmp_path}/else/../set/Zoë/1\u00a0a.JPG'): assert disk.find(typed)==f'{nfd}/1 a.JPG', typed
    assert disk.find('b/x.png')=='b/x.png' and disk.find('b/X.png') is None   # two that differ in case: neither is guessed
    assert disk.find('../else/y.png')==disk.find(str(tmp_path/'else'/'y.png'))==str(tmp_path/'else'/'y.png')
    (tmp_path/'link').symlink_to(tmp_path/'set')
    assert disk.find(f'{tmp_path}/link/b/x.png')=='b/x.png'
    for nothing in ('', ' ', 'b', 'b/', 'none.png', 'a\0b', 'x'*5000, '/'): assert disk.find(nothing) is None

# --- tables

COLUMNS = dict(path=('file', 'filename', 'image'), identity=('pid', 'person', 'id'), camera=('cam', 'camid'), split=())
ROWS = [dict(path='Zoë/1.jpg', identity='Zoë; née "B"', camera='1'), dict(path='x y/2.jpg', identity='0002', camera='2,5')]

def table(separator, header, index, end):
    quote = lambda text: '"'+text.replace('"', '""')+'"'
    lines = [[f' {h} ' for h in header], *([quote(row[c]) for c in ('path', 'identity', 'camera')] for row in ROWS)]
    if index: lines = [['' if i==0 else str(i), *line] for i,line in enumerate(lines)]
    return end.join([*map(separator.join, lines), separator*3, '', '  ', ''])

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'cp1252', 'latin-1'])
@pytest.mark.parametrize('separator', [',', ';', '\t', '|'], ids=['comma', 'semicolon', 'tab', 'bar'])
def test_tables_of_any_program(tmp_path, encoding, separator):
    for header in (('path', 'identity', 'camera'), ('File Name', 'PID', 'Cam_ID'), ('IMAGE', 'Person', 'CAM')):
        for index in (False, True):
            for end in ('\n', '\r\n', '\r'):
                (tmp_path/'t.csv').write_bytes(table(separator, header, index, end).encode(encoding))
                assert [row for _,row in read_table(tmp_path/'t.csv', COLUMNS, ('split',))]==ROWS, (header, index, end)

def test_a_table_counts_its_lines(tmp_path):
    (tmp_path/'t.csv').write_text('sep=;\npath;id;pid;camera\n\na;7;1;2\n;;;\n"b\nc";8;1;2\n')
    assert list(read_table(tmp_path/'t.csv', COLUMNS, ('split',)))==[(4, dict(path='a', identity='1', camera='2')), (7, dict(path='b\nc', identity='1', camera='2'))]   # `pid` is meant, `id` numbers the lines

@pytest.mark.parametrize('content,named', [(b'', "'path'"), (b'\xff\xfea', 'UTF-16'), (b'path,identity\n', "'camera' (or cam, camid)"), (b'path,identity,camera\na\0,1,2,3', 'line 2'), (b'x'*300_000, 'line 1')])
def test_mistakes_in_tables(tmp_path, one_line, content, named):
    (tmp_path/'t.csv').write_bytes(content)
    with pytest.raises(ValueError) as e: list(read_table(tmp_path/'t.csv', COLUMNS, ('split',)))
    one_line(e.value, tmp_path/'t.csv', named)

@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp()/'any.csv'
    path.write_bytes(data)
    try: read_text(path), list(read_table(path, COLUMNS, ('split',)))
    except ValueError as e: assert str(path) in str(e) and '\n' not in str(e)
