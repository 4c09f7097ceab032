"The site, built offline and visited with Chromium: on a desk and on a phone, by day and by night."
import importlib.util, re, sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urljoin, urlsplit
import pytest

pytestmark = [pytest.mark.full, pytest.mark.flaky(reruns=2)]   # a browser on a busy machine may be late; a fault of a page stays one

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'docs'))
from readme import pages, settings

CFG = settings()
LESSONS = [p.stem for p in pages()]
PAGES = sorted({'index', *LESSONS, *(p.stem for p in (ROOT/'nbs').glob('[!_]*.md'))})
each_lesson,each_page = (pytest.mark.parametrize('name', n) for n in (LESSONS, PAGES))

# -- what is written on the pages -------------------------------------------------------------------------------------

class Page(HTMLParser):
    "Ids, links, pictures and loaded files of one page."
    def __init__(self, path:Path):
        super().__init__()
        self.ids,self.links,self.images,self.loads = set(), [], [], []
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.add(a['id'])
        if tag=='a' and a.get('href'): self.links.append(a['href'])
        if tag=='img': self.images.append(a)
        if tag in ('script', 'img', 'iframe', 'source') and a.get('src'): self.loads.append(a['src'])
        if tag=='link' and 'stylesheet' in a.get('rel', ''): self.loads.append(a['href'])

@pytest.fixture(scope='session')
def pages(site)->dict[str,Page]: return {p.name: Page(p) for p in site.glob('*.html')}

@pytest.fixture(scope='session')
def built(pages):
    assert set(pages)>={f'{p}.html' for p in PAGES}|{'search.html', 'genindex.html'}
    return pages

def test_links_and_anchors(site, built):
    for name,page in built.items():
        for href in page.links:
            to = urlsplit(urljoin(f'http://site/{name}', href))
            if to.netloc!='site': continue
            path,anchor = unquote(to.path.lstrip('/')) or 'index.html', unquote(to.fragment)
            assert (site/path).is_file(), f'{name}: {href}'
            if anchor and path in built: assert anchor in built[path].ids, f'{name}: {href}'

def test_nothing_is_loaded_from_elsewhere(built):
    assert not [(n, s) for n,p in built.items() for s in p.loads if urlsplit(s).netloc]

def test_pictures_have_a_text(built):
    images = [(n, i) for n,p in built.items() for i in p.images if i['src'].startswith('_images/')]   # the others are the theme's
    assert len(images)>len(LESSONS)
    assert not [(n, i) for n,i in images if len((i.get('alt') or '').split())<3]

@each_lesson
def test_colab_and_download(site, built, name):
    page = built[f'{name}.html']
    assert f"https://colab.research.google.com/github/{CFG['user']}/{CFG['repo']}/blob/{CFG['branch']}/nbs/{name}.ipynb" in page.links
    download = next(l for l in page.links if l.startswith('_downloads') and l.endswith(f'/{name}.ipynb'))
    assert (site/download).read_bytes()==(ROOT/'nbs'/f'{name}.ipynb').read_bytes()

@each_lesson
def test_one_leads_to_the_next(built, name):
    at = LESSONS.index(name)
    for neighbour in LESSONS[max(0, at-1):at]+LESSONS[at+1:at+2]: assert f'{neighbour}.html' in built[f'{name}.html'].links

def test_reference(site, built):
    "Public names have an entry with what docments say; prose and overview lead to it."
    agw = (site/'behind_agw.html').read_text(encoding='utf-8')
    assert {'privreid.agw.wrt_loss', 'privreid.agw.AGW', 'privreid.data.PKSampler.epoch'}<=built['behind_agw.html'].ids|built['behind_data.html'].ids
    start = agw.index('id="privreid.agw.wrt_loss"')
    entry = agw[start:agw.index('</table>', start)]
    assert '(B,F), not normalised' in entry and 'privreid.agw._insert_non_local' not in built['behind_agw.html'].ids
    assert 'behind_data.html#privreid.data.PKSampler' in built['06_together.html'].links+built['glossary.html'].links
    assert 'behind_agw.html#privreid.agw.wrt_loss' in built['reference.html'].links

def test_hidden_cells_stay_hidden(site):
    for name in LESSONS: assert 'default_exp' not in (site/f'{name}.html').read_text(encoding='utf-8'), name

# -- what a visitor meets ---------------------------------------------------------------------------------------------

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='session')
def visit(site, browser):
    "A function that opens a page in Chromium; the page's `problems` are requests to elsewhere or in vain, and errors on the console."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site))
    Thread(target=server.serve_forever, daemon=True).start()
    home = f'http://127.0.0.1:{server.server_port}/'
    plain = browser.new_context(reduced_motion='reduce')   # of most pages: what they share is loaded once
    def visit(name:str, width:int=1280, **context):
        page = (browser.new_context(reduced_motion='reduce', **context) if context else plain).new_page()
        page.set_viewport_size(dict(width=width, height=900))
        page.set_default_timeout(120_000)   # a busy machine is no fault of the site
        page.problems = []
        page.on('request', lambda r: r.url.startswith((home, 'data:', 'blob:')) or page.problems.append(f'leaves the machine: {r.url}'))
        page.on('response', lambda r: r.status>=400 and page.problems.append(f'{r.status}: {r.url}'))
        page.on('console', lambda m: m.type=='error' and page.problems.append(m.text))
        page.on('pageerror', lambda e: page.problems.append(str(e)))
        page.goto(home+name)
        page.add_style_tag(content='*,*::before,*::after{transition:none!important}')   # a colour on its way is no colour to judge
        return page
    yield visit
    server.shutdown()

def faults(page, within:str='html', **options)->list:
    "Serious accessibility faults that axe-core finds."
    from axe_playwright_python.sync_playwright import Axe
    found = Axe().run(page, within, options=dict(resultTypes=['violations'], preload=False, **options)).response['violations']
    return [(v['id'], v['help'], [n['html'][:200] for n in v['nodes'][:3]]) for v in found if v['impact'] in ('serious', 'critical')]

OF_ONE_STYLE = 'behind_agw', 'behind_widgets', 'behind_study'   # the other pages behind the scenes have no colours of their own, and axe takes longest for them
DARK = "document.documentElement.dataset.theme = document.documentElement.dataset.mode = 'dark'"

@each_page
def test_page(visit, name):
    page = visit(f'{name}.html')
    wanted = page.locator('.math').count()
    assert wanted or name not in ('05_recognise', 'glossary')   # they have mathematics
    if wanted:
        page.evaluate('MathJax.startup.promise')
        assert page.locator('.math mjx-container').count()>=wanted and not page.locator('mjx-merror').count()
    assert page.locator('article h1').count()==1
    page.evaluate("document.querySelectorAll('.highlight pre').forEach(code => code.textContent = code.textContent)")   # axe takes minutes for thousands of coloured words, see test_code_can_be_read
    colours = not name.startswith('behind_') or name in OF_ONE_STYLE
    within = 'html' if name in ('index', '05_recognise', *OF_ONE_STYLE) else 'article'   # what stands around it is the same on every page
    assert not faults(page, within, rules={'color-contrast': dict(enabled=colours)})
    if colours:
        page.evaluate(DARK)
        assert not faults(page, within, runOnly=['color-contrast'])
    page.set_viewport_size(dict(width=390, height=844))
    page.wait_for_function('document.documentElement.scrollWidth<=390')   # once it has settled
    assert not page.problems
    page.close()

def test_code_can_be_read(site, visit):
    "The colours of code, by day and by night: a word of each kind that any page has."
    kinds = {k for p in site.glob('*.html') for block in re.findall(r'<div class="highlight"><pre>.*?</pre>', p.read_text(encoding='utf-8'), flags=re.S) for k in re.findall(r'<span class="(\w+)">', block)}
    assert len(kinds)>20
    page = visit('index.html')
    page.evaluate("""kinds => document.querySelector('article').innerHTML = '<div class="highlight-python"><div class="highlight"><pre>' + kinds.map(k => `<span class="${k}">word</span>`).join(' ') + '</pre></div></div>'""", sorted(kinds))
    assert page.locator('.highlight pre span').count()==len(kinds)
    colours = "new Set([...document.querySelectorAll('.highlight pre span')].map(s => getComputedStyle(s).color)).size"
    for _ in ('day', 'night'):
        assert page.evaluate(colours)>4
        assert not faults(page, runOnly=['color-contrast'])
        page.evaluate(DARK)

def test_search(visit):
    page = visit('search.html?q=BNNeck')
    page.wait_for_selector('#search-results li a')
    found = page.eval_on_selector_all('#search-results li a', 'links => links.map(a => a.getAttribute("href"))')
    assert any(f.startswith('glossary.html') for f in found) and any(f.startswith('05_recognise.html') for f in found), found
    assert not page.problems

def test_night(visit):
    "The button changes the colours, and the next page remembers."
    page = visit('index.html', color_scheme='light')
    background = 'getComputedStyle(document.body).backgroundColor'
    dark = f'{background}!={page.evaluate(background)!r}'
    page.locator('.theme-switch-button:visible').first.click()
    page.locator('.theme-change-button[data-mode=dark]:visible').click()
    page.wait_for_function(dark)
    page.goto(page.url.replace('index', 'glossary'))
    page.wait_for_function(dark)
    assert not page.problems

def test_phone(visit):
    "The table of contents opens, and leads to a lesson."
    page = visit('index.html', width=390, has_touch=True, is_mobile=True)
    lesson = page.locator('.bd-sidebar-primary a[href="05_recognise.html"]')
    assert not lesson.is_visible()
    page.locator('.primary-toggle:visible').first.click()
    lesson.click()
    page.wait_for_url('**/05_recognise.html')
    assert not page.problems

def test_queries(visit):
    "The page of twelve queries on a phone, by keyboard and without a script of its own: one is seen at a time, complete."
    page = visit('queries.html', width=390)
    sections,shown = page.locator('figure.album section'), page.locator('figure.album section:visible')
    assert (sections.count(), shown.count())==(12, 1)
    assert page.locator('.album label').all_inner_texts()==['✕ lost']*6+['✓ found']*6
    page.locator('.album input').first.focus()
    seen = [shown.get_attribute('aria-label')]
    for _ in range(11):
        page.keyboard.press('ArrowRight')
        seen.append(shown.get_attribute('aria-label'))
    assert len(set(seen))==12
    page.locator('.album label').nth(3).click()
    assert shown.get_attribute('aria-label')==seen[3]
    assert shown.locator('.stages li').count()==4 and shown.locator('ol').count()==5 and shown.locator('.setting').last.inner_text()=='raw-protected, outsider'
    assert shown.locator('img').evaluate_all('is => is.every(i => i.naturalWidth && i.getBoundingClientRect().right<=390)')
    assert not page.problems
    page.close()

def test_live(site, visit):
    "The live page among the rest of the front page: on a phone, by day and by night. What it computes: test_live.py."
    if not (site/'_static'/'live'/'engine').is_dir(): pytest.skip('the site was built without onnxruntime-web: python docs/engine.py')
    assert all('live/start.js' in (site/f'{name}.html').read_text(encoding='utf-8') for name in ('index', '02_hide', '07_upgrade', '09_private'))
    page = visit('index.html', width=390)
    page.get_by_role('button', name='Try it live').click()
    page.wait_for_selector('.live')
    page.wait_for_function('document.documentElement.scrollWidth<=390')
    page.evaluate("document.querySelector('.live details').open = true")
    assert not faults(page)
    page.evaluate(DARK)
    assert not faults(page, runOnly=['color-contrast'])
    assert not page.problems
    page.close()
