"The widgets as a reader meets them: in a page without a kernel, and in JupyterLab; with a keyboard, in a real browser."
import functools, http.server, json, os, random, re, socket, subprocess, sys, threading, time, urllib.request
from dataclasses import asdict, replace
import nbformat, pytest, torch
from playwright.sync_api import expect
from privreid.agw import AGW
from privreid.arms import Arm, Experiment
from privreid.config import preset
from privreid.datasets import save_split
from privreid.drawn import DECIBELS
from privreid.folder import write_json
from privreid.hindsight import demo_run, outcome
from privreid.pix2pix import UNetGenerator
from privreid.records import save_arm
from privreid.upgradation import Epsilons, Validation, replay
from privreid.views import Viewer
from privreid.widgets import RULE, Explorer, to_json

pytestmark = pytest.mark.flaky(reruns=2)   # a browser on a busy machine may be late; a fault of a widget stays one
PATIENCE = 240_000   # milliseconds: JupyterLab on a busy machine starts slowly

@pytest.fixture
def page(browser):
    "A page that keeps what it complains about, and where it sends requests."
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.errors,page.hosts = [], set()
    page.on('console', lambda m: m.type=='error' and page.errors.append(m.text))
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    page.on('request', lambda r: page.hosts.add(r.url.split('/')[2] if r.url.startswith('http') else 'inline'))
    yield page
    page.close()

@pytest.fixture
def serve(tmp_path):
    "Serve a folder; returns its address."
    servers = []
    def start(folder):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args): pass
        servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}'
    yield start
    for s in servers: s.shutdown()

def eventful(eps=Epsilons()):
    "A history in which every kind of decision happens, and a measurement is broken."
    rows = ((19.,.40,.30), (20.5,.52,.50), (20.9,.53,.62), (22.,.50,.70), (20.2,.54,.66), (float('nan'),.50,.80), (20.7,.56,.75), (20.6,.53,.74))
    return Explorer([Validation(5*(i+1), p, s, 20., .5, r) for i,(p,s,r) in enumerate(rows)], .45, eps, title='<i>a hostile & "quoted" name</i>')

def told(explorer, eps): return outcome(explorer.decisions(eps), explorer.actions)

def check_figure(figure, explorer, eps):
    "Picture and numbers are what Python makes of these epsilons."
    want,now = explorer.moving(eps), told(explorer, eps)
    assert figure.locator('td b').all_inner_texts()==list(now.values())
    assert figure.locator('.mark').evaluate_all('ms => ms.map(m => m.dataset.is)')==want['marks']
    assert figure.locator('.bar').evaluate_all('bs => bs.map(b => b.dataset.is)')==want['bars']
    number = lambda path: [float(x) for x in re.findall(r'[\d.]+', path)]
    assert figure.locator('.beyond').all_text_contents()==want['beyond']
    for got,path in zip(figure.locator('.arrow').evaluate_all("ls => ls.map(l => l.getAttribute('d'))"), want['arrows']): assert number(got)==pytest.approx(number(path), abs=.006)
    assert figure.locator('.strip .now').evaluate_all('ls => ls.map(l => +l.dataset.e)')==[min(DECIBELS, key=lambda e: abs(e-eps.psnr))]
    for got,path in zip(figure.locator('.limit').evaluate_all("ls => ls.map(l => l.getAttribute('d'))"), want['limits']): assert number(got)==pytest.approx(number(path), abs=.006)

MOVES = (('ssim', 'ArrowRight', 20, .005), ('psnr', 'ArrowLeft', 22, -.05), ('r1', 'ArrowRight', 40, .005))   # each changes the numbers of the demo run

# ---- a page without a kernel

def test_rule_in_javascript_is_the_rule_in_python(page):
    "Thousands of random histories with ties, limits that are met exactly, and values that are not numbers."
    g = random.Random(0)
    def value(*coarse): return g.choice((*coarse, g.random(), float('nan'), float('inf'), -float('inf')))
    def history(n): return [Validation(i+1, value(19.,20.,20.5,21.,22.), value(.5,.52,.55,.6), value(20.,20.,20.,100.), value(.5,.5,.5), g.choice((.3,.4,.45,.5,.6,.7,value()))) for i in range(n)]
    cases = [(history(g.randint(1, 24)), g.choice((.4,.45,.5)), Epsilons(g.choice((-1.,0.,.5,1.,2.)), g.choice((-.05,0.,.05)), g.choice((-.05,0.,.05,.1)))) for _ in range(3000)]
    sent = to_json([[[asdict(v) for v in vs], base, asdict(eps)] for vs,base,eps in cases])
    answers = page.evaluate("([rule, cases]) => new Function('cases', rule+'; return cases.map(c => replay(...c).map(d => [d.action, d.private, d.better, d.state.upgraded, d.state.best_r1]))')"
                            "(JSON.parse(cases, (k, x) => typeof x=='string' ? Number(x) : x))", [RULE, sent])
    want = [[[d.action, d.private, d.better, d.state.upgraded, d.state.best_r1] for d in replay(*case)] for case in cases]
    assert answers==want
    assert {d[0] for ds in want for d in ds}=={'upgrade', 'keep', 'fall back'}

@pytest.mark.parametrize('own', [Epsilons(), Epsilons(.33, .0512), Epsilons(-2.13)], ids=['paper', 'between steps', 'beyond the end'])
def test_sliders_by_keyboard(page, serve, tmp_path, own):
    "Each slider moves picture and numbers as Python says, in one of two copies, and only there. The buttons know the exact values."
    explorer = eventful(own)
    (tmp_path/'index.html').write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>t</title><body>{explorer._repr_html_()}{explorer._repr_html_()}</body></html>', encoding='utf-8')
    address = serve(tmp_path)
    page.goto(address)
    first,second = page.locator('figure.privreid').all()
    expect(first).to_contain_text('<i>a hostile & "quoted" name</i>')
    check_figure(first, explorer, own)
    eps = own
    for key,press,times,step in (('psnr', 'ArrowRight', 60, .05), ('ssim', 'ArrowRight', 5, .005), ('r1', 'ArrowLeft', 30, -.005)):
        page.keyboard.press('Tab')
        if key=='ssim':   # after PSNR comes the strip, which scrolls
            expect(first.locator('.strip')).to_be_focused()
            page.keyboard.press('Tab')
        slider = first.locator(f'input[name={key}]')
        expect(slider).to_be_focused()
        for _ in range(times): page.keyboard.press(press)
        eps = replace(eps, **{key: float(slider.input_value())})
        assert getattr(eps, key)==pytest.approx(getattr(own, key)+times*step, abs=abs(step)/2)   # it starts on the step next to it
        check_figure(first, explorer, eps)
    assert int(list(told(explorer, eps).values())[-1])>0   # the test moves something
    check_figure(second, explorer, own)
    for want in (Epsilons(), own):   # two buttons
        page.keyboard.press('Tab')
        page.keyboard.press('Enter')
        check_figure(first, explorer, want)
        for name,value,digits,unit in (('psnr', want.psnr, 2, ' dB'), ('ssim', want.ssim, 3, ''), ('r1', want.r1, 3, '')):
            assert first.locator(f'label:has([name={name}]) output').inner_text()==f'{value:.{digits}f}{unit}'
    assert page.hosts<={address.split('/')[2], 'inline'}
    assert not page.errors

def test_moved_epsilons_without_a_kernel(page):
    "The script compares with what was decided, as Python does."
    e = eventful()
    e = Explorer(e.validations, e.base_r1, e.eps, e.title, ['keep']*len(e.validations), moved=True)
    page.set_content(e._repr_html_())
    figure = page.locator('figure.privreid')
    expect(figure).to_contain_text('Its epsilons were moved')
    figure.get_by_role('button', name="the run's own").press('Enter')   # the script writes the numbers anew
    check_figure(figure, e, e.eps)
    assert int(list(told(e, e.eps).values())[-1])>0 and not page.errors

def test_light_dark_phone_and_no_script(browser, page, serve, tmp_path):
    (tmp_path/'index.html').write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><title>t</title><body>{eventful()._repr_html_()}</body></html>', encoding='utf-8')
    address = serve(tmp_path)
    page.goto(address)
    background = lambda: page.locator('figure.privreid').evaluate('f => getComputedStyle(f).backgroundColor')
    light = background()
    page.emulate_media(color_scheme='dark')
    dark = background()
    assert light!=dark
    for theme,want in (('light', light), ('dark', dark)):   # the theme's switch outvotes the system, either way
        for system in ('light', 'dark'):
            page.emulate_media(color_scheme=system)
            page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
            assert background()==want
    page.set_viewport_size(dict(width=360, height=740))
    assert page.evaluate('document.documentElement.scrollWidth')<=360
    for width in (360, 390, 480, 640, 900, 1280):   # every text is 12 pixels or more
        page.set_viewport_size(dict(width=width, height=740))
        smallest = page.evaluate('''() => Math.min(...[...document.querySelectorAll('figure.privreid *')].filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType==3 && n.data.trim()) && e.tagName!='STYLE' && e.tagName!='SCRIPT')
            .map(e => parseFloat(getComputedStyle(e).fontSize)*(e.ownerSVGElement ? e.ownerSVGElement.getBoundingClientRect().width/440 : 1)))''')
        assert smallest>=11.99, (width, smallest)
        assert page.evaluate('document.documentElement.scrollWidth')<=width
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(address)
    assert plain.locator('.mark').count()==3*8 and not plain.locator('input').first.is_visible()
    plain.context.close()

@pytest.mark.full
def test_explorer_on_the_site(site, page, serve):
    "The lesson's page of the built site, without a kernel."
    address = serve(site)
    page.goto(f'{address}/behind_widgets.html')
    explorer,figure = Explorer.of_run(demo_run()), page.locator('figure.privreid')
    eps = explorer.eps
    check_figure(figure, explorer, eps)
    for key,press,times,step in MOVES:
        figure.locator(f'input[name={key}]').focus()
        for _ in range(times): page.keyboard.press(press)
        eps,before = replace(eps, **{key: float(figure.locator(f'input[name={key}]').input_value())}), eps
        assert getattr(eps, key)==pytest.approx(getattr(before, key)+times*step)
        assert told(explorer, eps)!=told(explorer, before)   # something moves
        check_figure(figure, explorer, eps)
    assert not page.errors and page.hosts<={address.split('/')[2], 'inline'}

# ---- JupyterLab

CELLS = '''from privreid.hindsight import demo_run
from privreid.widgets import explore
explore(demo_run())''', '''import json
from pathlib import Path
from accelerate import Accelerator
from privreid.config import preset
from privreid.data import SyntheticPedestrians
from privreid.desensitize import Blur
from privreid.evaluation import Validate
from privreid.joint import Trainer
from privreid.live import LiveEpsilons, start
from privreid.training import JointTraining, Supervision
from privreid.upgradation import Epsilons, Upgradation
street = SyntheticPedestrians(train_ids=10, test_ids=4, size=(64,32)).draw()
cfg = preset('demo', epochs=10_000, batch=16, validate_every=1, ngf=4, ndf=4)
trainer = Trainer(JointTraining(cfg, 8, Accelerator(cpu=True)), street.train, Supervision(Blur()), [Validate(street), Upgradation(.1, Epsilons(psnr=-2., ssim=-.2)), LiveEpsilons()])
def keep(_): Path('part').write_text(json.dumps(trainer.history)); Path('part').rename('history.json')
start(trainer).add_done_callback(keep)''', '''from privreid.viewer import view
view('small run')'''

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A JupyterLab over a folder of its own; returns folder and address."
    root = tmp_path_factory.mktemp('lab')
    config = root/'.jupyter'
    write_json({'disabledExtensions': {'@jupyterlab/apputils-extension:announcements': True}}, config/'labconfig'/'page_config.json')   # it would ask the network for news
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = os.environ|dict(JUPYTER_CONFIG_DIR=str(config), JUPYTERLAB_SETTINGS_DIR=str(config), JUPYTERLAB_WORKSPACES_DIR=str(config), OMP_NUM_THREADS='1')
    log = open(root/'.log', 'w')
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--expose-app-in-browser', f'--port={port}', '--ServerApp.port_retries=0',
                               '--IdentityProvider.token=', f'--ServerApp.root_dir={root}', '--LabApp.extension_manager=readonly'], env=env, stdout=log, stderr=subprocess.STDOUT)
    address = f'http://127.0.0.1:{port}'
    try:
        for _ in range(240):
            try: urllib.request.urlopen(f'{address}/api').close(); break
            except OSError: time.sleep(.5)
            assert server.poll() is None, (root/'.log').read_text()
        else: pytest.fail(f'JupyterLab does not answer: {(root/".log").read_text()[-2000:]}')
        expect.set_options(timeout=PATIENCE)   # of what a kernel answers
        yield root, address
    finally:
        expect.set_options(timeout=60_000)
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()
        log.close()

def small_run(folder):
    "A run folder whose networks have learned nothing."
    cfg = preset('demo', people=8, test_people=14, ngf=4)
    exp = Experiment(cfg)
    write_json(asdict(cfg)|dict(run=dict(arms=['Base', 'w/o U'], identities=exp.identities)), folder/'config.json')
    save_split(exp.data, folder/'split.json')
    torch.manual_seed(0)
    reid = AGW(exp.identities, 'mini').eval()
    save_arm(Arm('Base', reid), folder)
    save_arm(Arm('w/o U', reid, *(UNetGenerator(cfg.size, 4).eval() for _ in range(2))), folder)

def hear(figure, explorer, eps):
    "Wait for the kernel's answer, then compare."
    for i,path in enumerate(explorer.moving(eps)['limits']): expect(figure.locator('.limit').nth(i)).to_have_attribute('d', path)
    expect(figure.locator('td b')).to_have_text(list(told(explorer, eps).values()))   # a limit outside the picture does not move
    check_figure(figure, explorer, eps)

@pytest.mark.full
def test_widgets_in_jupyterlab(lab, page):
    root,address = lab
    small_run(root/'small run')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    nbformat.write(nb, root/'widgets.ipynb')
    page.set_viewport_size(dict(width=1280, height=5000))   # JupyterLab makes cells only when they come into view
    page.goto(f'{address}/doc/tree/widgets.ipynb')
    expect(page.locator('.jp-CodeCell')).to_have_count(3)
    page.wait_for_function("window.jupyterapp && jupyterapp.commands.isEnabled('notebook:run-all-cells')")
    expect(page.get_by_role('button', name=re.compile(r'\| Idle$'))).to_be_visible()   # cells that are run before there is a kernel are forgotten
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    cells = page.locator('.jp-CodeCell').all()
    sliders,readouts = (cells[0].locator(f'.widget-{kind}') for kind in ('slider .noUi-handle', 'readout'))

    # explorer: each slider
    explorer,figure = Explorer.of_run(demo_run()), cells[0].locator('figure.privreid')
    expect(figure).to_be_visible(timeout=180_000)
    hear(figure, explorer, explorer.eps)
    eps = explorer.eps
    for key,press,times,step in MOVES:
        i,before,eps = list(asdict(eps)).index(key), eps, replace(eps, **{key: round(getattr(eps, key)+times*step, 3)})
        assert told(explorer, eps)!=told(explorer, before)   # something moves
        sliders.nth(i).focus()
        for _ in range(times): page.keyboard.press(press)
        expect(readouts.nth(i)).to_have_text(f'{getattr(eps, key):.{2 if key=="psnr" else 3}f}'.replace('-', '\N{MINUS SIGN}'))
        hear(figure, explorer, eps)
    for name,want in (("paper's values", Epsilons()), ("the run's own", explorer.eps)):
        sliders.nth(0).focus()
        page.keyboard.press('ArrowRight')
        hear(figure, explorer, replace(eps, psnr=round(eps.psnr+.05, 2)))
        cells[0].get_by_role('button', name=name).focus()
        page.keyboard.press('Enter')
        hear(figure, explorer, want)
        eps = want

    # the rule of a training that goes on
    live = cells[1]
    expect(live).to_contain_text('not private')
    for i in range(2):
        live.locator('.noUi-handle').nth(i).focus()
        page.keyboard.press('End')
    expect(live).to_contain_text(re.compile('(upgrade|keep), private'))
    live.get_by_role('button', name='stop training').focus()
    page.keyboard.press('Enter')
    expect(live).to_contain_text('stopped by hand')
    for _ in range(PATIENCE//100):   # the panel hears of the end first
        if (root/'history.json').exists(): break
        page.wait_for_timeout(100)
    rows = json.loads((root/'history.json').read_text())
    moved = [i for i,h in enumerate(rows) if h['kind']=='epsilons']
    assert (rows[moved[-1]]['psnr'], rows[moved[-1]]['ssim'])==(4., .3)
    private = [h['private'] for h in rows[:moved[0]] if h['kind']=='decision'], [h['private'] for h in rows[moved[-1]:] if h['kind']=='decision']
    assert not any(private[0]) and private[0] and all(private[1]) and private[1]

    # viewer
    seen,viewer = cells[2], Viewer(root/'small run')
    expect(seen.locator('figure.privreid')).to_contain_text('query 0 of')
    viewer.look(viewer.shown[3])
    seen.get_by_role('button', name=str(viewer.query), exact=True).focus()
    page.keyboard.press('Enter')
    expect(seen.locator('figcaption')).to_contain_text(f'query {viewer.query} of')
    want = [f'{"✓" if m.right else "✕"} {m.distance:.2f}' for s in viewer.results.settings for m in viewer.results.ranking(s, viewer.query)]
    assert [t.strip().split('\n')[0] for t in seen.locator('li:is(.right, .wrong)').all_inner_texts()]==want
    zoom,turn = (seen.locator('.widget-slider', has_text=name).locator('.noUi-handle') for name in ('zoom', 'page'))
    stages,thumbs = seen.locator('.stages img'), seen.locator('button.jupyter-button:visible')
    zoom.focus()
    for _ in range(2): page.keyboard.press('ArrowRight')
    want = re.findall(r'width="(\d+)"', viewer.stages_html(4))   # screen pixels of one pixel: 2, and two more
    expect(stages.first).to_have_attribute('width', want[0])
    assert stages.evaluate_all('is => is.map(i => String(i.getBoundingClientRect().width))')==want!=re.findall(r'width="(\d+)"', viewer.stages_html())
    turn.focus()
    page.keyboard.press('ArrowRight')
    viewer.turn(1)
    expect(thumbs.first).to_have_text(str(viewer.shown[0]))
    assert [int(b) for b in thumbs.all_inner_texts()]==viewer.shown and viewer.page==1
    seen.locator('select').nth(1).select_option('Base')
    seen.locator('select').nth(3).select_option('worst recovery')
    expect(seen.get_by_role('alert')).to_contain_text('recovers nothing')
    assert not page.errors
