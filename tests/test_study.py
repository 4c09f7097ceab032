"Rater pages in a real browser: no answer is lost, none is sent anywhere; and studies that cannot be made."
import base64, io, json, random, re, stat
from dataclasses import asdict
import pandas as pd, pytest, torch
from PIL import Image
from playwright.sync_api import Error, expect
from privreid.agw import AGW
from privreid.arms import Arm, Experiment
from privreid.cli import main
from privreid.config import preset
from privreid.datasets import save_split
from privreid.folder import write_json
from privreid.pix2pix import UNetGenerator
from privreid.records import save_arm
from privreid.study import Rating, make_study, rating_page, study_scores
from privreid.verification import read_key

def picture(shade):
    out = io.BytesIO()
    Image.new('RGB', (8, 16), (shade, 90, 120)).save(out, 'png')
    return 'data:image/png;base64,'+base64.b64encode(out.getvalue()).decode()

def write_page(folder, n=300, practice=2, rater=3, study='one'):
    "A page of many small pairs; returns its address and its items."
    items = [[i%13+1, i//13+1, f'images/{i}-left.png', f'images/{i}-right.png', picture(i%256), picture(255-i%256)] for i in range(n)]
    path = folder/f'rater-{study}-{rater}.html'
    path.write_text(rating_page(items, [[True, picture(0), picture(0)], [False, picture(0), picture(9)]][:practice], rater, study), encoding='utf-8')
    return path.as_uri(), items

@pytest.fixture
def context(browser):
    context = browser.new_context(viewport=dict(width=1280, height=800))
    context.set_default_timeout(60_000)
    yield context
    context.close()

def visit(context, address):
    page = context.new_page()
    page.errors,page.sent = [], []
    page.on('console', lambda m: m.type=='error' and page.errors.append(m.text))
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    page.on('request', lambda r: page.sent.append(r.url) if not r.url.startswith(('file:', 'data:', 'blob:')) else None)
    page.goto(address)
    return page

def sheet_of(page, tmp_path):
    with page.expect_download() as found: page.locator('#save').click()
    path = tmp_path/found.value.suggested_filename
    found.value.save_as(path)
    return pd.read_csv(path, keep_default_na=False)

def click_and_kill(context, address, items, clicks, kills, tmp_path):
    "Click at random, kill the tab now and then, and compare what is kept with what was clicked."
    g,want,deaths = random.Random(0), [], set(random.Random(1).sample(range(clicks), kills))
    page = visit(context, address)
    page.locator('#go').click()
    for i in range(clicks):
        do = g.choice(('same', 'different', 'same', 'different', 'undo', 'pause'))
        if do=='pause':
            page.keyboard.press('p')
            page.locator('#go').click()
        elif do=='undo' and want: page.locator('#undo').click(); want.pop()
        elif do in ('same', 'different'): page.locator(f'#{do}').click(); want.append(do)
        if i in deaths:
            try: page.goto('chrome://crash')   # the process that shows the tab is gone, without a goodbye
            except Error: pass
            page.close()
            page = visit(context, address)
            expect(page.locator('#hello')).to_contain_text(f'{len(want)} of {len(items)} answered')
            page.locator('#go').click()
    sheet = sheet_of(page, tmp_path)
    assert sheet.answer.tolist()==want+['']*(len(items)-len(want)) and len(want)>clicks/4
    assert not page.errors and not page.sent
    return sheet

@pytest.mark.full
def test_no_answer_is_lost_when_the_tab_is_killed(context, tmp_path):
    address,items = write_page(tmp_path, practice=0)
    sheet = click_and_kill(context, address, items, 60, 6, tmp_path)
    assert list(sheet)==['group', 'pair', 'rater', 'left', 'right', 'answer', 'seconds'] and sheet[['group', 'pair', 'left', 'right']].values.tolist()==[i[:4] for i in items]
    assert set(sheet.rater)=={3} and all(float(s)>=0 for s,a in zip(sheet.seconds, sheet.answer) if a)

@pytest.mark.full
def test_no_answer_of_a_thousand_is_lost(context, tmp_path):
    address,items = write_page(tmp_path, 900, practice=0)
    click_and_kill(context, address, items, 1000, 40, tmp_path)

def test_practice_keys_pause_and_the_end(context, tmp_path):
    address,items = write_page(tmp_path, 3)
    page = visit(context, address)
    assert 'First 2 for practice' in page.locator('#hello').inner_text() and not page.locator('#two').is_visible()
    page.keyboard.press('s')                                     # before it begins: nothing
    page.keyboard.press('Enter')                                 # the focus is on Begin
    page.keyboard.press('d')
    assert 'No: that was one person' in page.locator('#told').inner_text()
    page.reload()
    page.locator('#go').click()
    assert page.locator('#where').inner_text()=='Practice 2 of 2'
    page.keyboard.press('ArrowRight')
    assert 'Right: those were two people. From here on it counts.' in page.locator('#told').inner_text()
    page.keyboard.press('u')                                     # practice is not taken back
    page.keyboard.press('S')
    page.keyboard.press('Control+d')                             # the browser's
    page.keyboard.press('p')
    assert page.locator('#hello').inner_text()=='Paused. 1 of 3 answered.' and page.locator('#left').get_attribute('src') is None
    page.keyboard.press('d')                                     # in a pause: nothing
    page.keyboard.press('Enter')
    page.keyboard.press('d')
    page.keyboard.press('Backspace')
    page.keyboard.press('ArrowLeft')
    page.keyboard.press('d')
    assert 'Done: 3 of 3' in page.locator('#hello').inner_text() and page.evaluate('document.activeElement.id')=='save'
    assert sheet_of(page, tmp_path).answer.tolist()==['same', 'same', 'different']
    page.keyboard.press('u')                                     # a second thought, at the very end
    assert page.locator('#where').inner_text()=='Pair 3 of 3'
    assert visit(context, write_page(tmp_path, 3, study='two')[0]).locator('#go').inner_text()=='Begin'   # another study, the same browser
    assert not page.errors and not page.sent

def test_a_browser_that_keeps_nothing_says_so(context, tmp_path):
    address,_ = write_page(tmp_path, 3, 0)
    context.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('denied'); }})")
    page = visit(context, address)
    assert page.get_by_role('alert').inner_text().startswith('This browser keeps nothing')
    page.locator('#go').click()
    page.locator('#same').click()
    assert sheet_of(page, tmp_path).answer.tolist()==['same', '', '']

def test_what_others_left_in_the_storage_is_not_taken(context, tmp_path):
    address,items = write_page(tmp_path, 3, 0)
    page = visit(context, address)
    for left in ('{', '{"answers": [["perhaps", 1]]}', json.dumps(dict(answers=[['same', 1]]*9)), '[]', '7'):
        page.evaluate("t => localStorage.setItem('privreid study one, rater 3', t)", left)
        page.reload()
        assert page.locator('#go').inner_text()=='Begin' and not page.errors

@pytest.mark.parametrize('width', [390, 1280])
def test_looks(context, tmp_path, width):
    "Light and dark, phone and desk: all on the screen, large enough, and with contrast."
    from axe_playwright_python.sync_playwright import Axe
    page = visit(context, write_page(tmp_path, 3, 1)[0])
    page.set_viewport_size(dict(width=width, height=844))
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        if page.locator('#go').is_visible(): page.locator('#go').click()
        assert page.evaluate('document.documentElement.scrollWidth')<=width
        boxes = [page.locator(f'#{k}').bounding_box() for k in ('left', 'right', 'same', 'different', 'undo')]
        assert all(b['x']>=0 and b['x']+b['width']<=width and b['y']+b['height']<=844 for b in boxes) and min(b['height'] for b in boxes[2:])>=44
        bad = [v['id'] for v in Axe().run(page).response['violations'] if v['impact'] in ('serious', 'critical')]
        assert not bad, bad

# ---- from a run

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run folder whose networks have learnt nothing."
    folder,cfg = tmp_path_factory.mktemp('study')/'run', preset('demo', people=12, test_people=12, ngf=4)
    exp = Experiment(cfg)
    write_json(asdict(cfg)|dict(run=dict(arms=['Base', 'w/ U'], identities=exp.identities)), folder/'config.json')
    save_split(exp.data, folder/'split.json')
    torch.manual_seed(0)
    reid = AGW(exp.identities, 'mini').eval()
    save_arm(Arm('Base', reid), folder)
    save_arm(Arm('w/ U', reid, *(UNetGenerator(cfg.size, 4).eval() for _ in range(2))), folder)
    return folder

def test_from_a_run_to_numbers(run, tmp_path, context, capsys):
    "The command, a page in a browser, its file back in the folder, and the command again."
    out = tmp_path/'new'/'study'
    assert main(['study', str(run), '--out', str(out), '--pairs', '4', '--raters', '2', '--each', '2', '--groups', '3', '13', '--practice', '2'])==0
    said = capsys.readouterr().out
    assert '294 pairs in each group' in said and 'group 13: –, Upper, raw-raw' in said and '--score' in said
    assert {stat.S_IMODE(p.stat().st_mode) for p in out.rglob('*') if p.is_file()}=={0o600} and {stat.S_IMODE(p.stat().st_mode) for p in (out.parent, out, out/'images')}=={0o700}
    key = read_key(out)
    truth = {(g, p): s for g,p,s in zip(key.group, key.pair, key.same)}
    assert len(key)==2*2*4 and set(key.rater)=={1, 2}
    page = visit(context, (out/'rater-02.html').as_uri())
    items = json.loads(page.locator('#study').text_content())['items']
    assert '"same":' not in page.locator('#study').text_content()
    page.locator('#go').click()
    for _ in range(2): page.keyboard.press('s')                  # practice
    for g,p,*_ in items[:-1]: page.keyboard.press('s' if truth[g, p] else 'd')
    back = sheet_of(page, tmp_path)
    back.to_csv(out/'sheet-02.csv', index=False)
    scores = study_scores(out)
    assert scores.right.sum()==scores.n.sum()==7 and scores.unanswered.sum()==9 and set(scores.raters)=={1}
    assert main(['study', str(out), '--score'])==0
    said = capsys.readouterr().out
    assert '100.0%' in said and 'says nothing about other people' in said
    assert 1-1e-9<scores.high.max() and scores.low.max()<.6      # four right answers prove little

@pytest.mark.parametrize('options, says', [
    (['--pairs', '3'], 'even'), (['--groups', '7'], 'needs a run that has those networks'), (['--each', '11'], 'each'), (['--pairs', '4000'], 'add people'), (['--raters', '0'], 'raters'), (['--practice', '-1'], 'practice'),
])
def test_studies_that_cannot_be_made(run, tmp_path, capsys, one_line, options, says):
    assert main(['study', str(run), '--out', str(tmp_path/'s'), *options])==2
    one_line(capsys.readouterr().err.strip(), says)
    assert not any(tmp_path.iterdir())

def test_what_is_there_stays(run, tmp_path, capsys, one_line):
    (tmp_path/'key.csv').write_text('mine')
    assert main(['study', str(run), '--out', str(tmp_path)])==2
    one_line(capsys.readouterr().err.strip(), 'is not empty')
    assert main(['study', str(run)])==2 and '--out DIR' in capsys.readouterr().err
    assert main(['study', str(tmp_path/'nothing'), '--score'])==2 and 'key.csv' in capsys.readouterr().err

def test_answers_of_somebody_else_are_found(run, tmp_path, one_line):
    out = make_study(run, tmp_path/'s', 2, 2, groups=(13,), practice=0)
    sheet = (out/'sheet-01.csv').read_text()
    (out/'sheet-02.csv').write_text(sheet)
    with pytest.raises(ValueError) as e: study_scores(out)
    one_line(e.value, 'twice', 'sheet-01.csv')
    (out/'sheet-02.csv').write_text(re.sub(r'^(\d+),(\d+),1,', r'\1,\2,2,', sheet, flags=re.M))
    with pytest.raises(ValueError) as e: study_scores(out)
    one_line(e.value, 'rater 2', 'another study')

def test_a_notebook_keeps_no_picture_in_a_pause(run, tmp_path):
    r = Rating(make_study(run, tmp_path/'s', 2, 1, groups=(13,), practice=0))
    def kept(): return sum(len(w.get_state()['value']) for w in r.sides)
    assert kept()==0
    r.pause(); assert kept()>0
    r.answer('same'); r.pause(); assert kept()==0
    r.answer('same'); assert len(r.order)==1                     # in a pause: nothing
