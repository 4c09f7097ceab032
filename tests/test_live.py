"The live page: its networks against torch, its painter and desensitizers against the package, its controls in Chromium; nothing leaves the page."
import functools, http.server, io, json, shutil, sys, threading
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from privreid.body import CAMERA, PERSON, SHOT, draw_fields
from privreid.desensitize import Blur, Pixelate
from privreid.pedestrians import render
from privreid.pix2pix import UNetGenerator

ROOT = Path(__file__).resolve().parent.parent
STATIC,LIVE = ROOT/'docs'/'_static', ROOT/'docs'/'_static'/'live'
NETS = 'protect', 'demo-key', 'another-key', 'reid', 'outsider'
pytestmark = pytest.mark.flaky(reruns=1)   # a browser on a busy machine may be late
sys.path.insert(0, str(ROOT/'docs'))

def test_what_is_committed():
    "Small files, which say what they are; the key is that of painted people. The recipes are those of the package."
    import live
    onnx = pytest.importorskip('onnx')
    assert sum(p.stat().st_size for p in LIVE.iterdir() if p.is_file())<4e6
    notes = {n: json.loads(onnx.load(LIVE/f'{n}.onnx').metadata_props[0].value) for n in NETS}
    assert {n: notes[n]['role'] for n in NETS}=={'protect': 'protect', 'demo-key': 'recover', 'another-key': 'recover', 'reid': 'reid', 'outsider': 'outsider'}
    assert notes['demo-key']['data']=='synthetic' and notes['demo-key']['pair']==notes['protect']['pair']==notes['reid']['pair']!=notes['another-key']['pair']
    assert notes['another-key']['data']=='synthetic'
    assert json.loads((LIVE/'people.json').read_text())==live.recipes(128)
    for p in LIVE.glob('*.onnx'): assert b'/tmp' not in p.read_bytes() and b'site-packages' not in p.read_bytes()

def test_engine_is_compared(tmp_path):
    "Another file than the pinned one is not taken for it."
    import engine
    for f in engine.FILES: (tmp_path/f).write_bytes(b'something else')
    assert not engine.whole(tmp_path) and not engine.whole(tmp_path/'none')

def generator(name:str)->UNetGenerator:
    "A U-Net of torch with the weights of a file: whole numbers times steps; biases, which were BatchNorm's, are BatchNorm's again."
    onnx = pytest.importorskip('onnx')
    held = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in onnx.load(LIVE/f'{name}.onnx').graph.initializer}
    net = UNetGenerator((64, 32), 16).eval()
    modules = dict(net.named_modules())
    with torch.no_grad():
        for m in modules.values():
            if isinstance(m, torch.nn.BatchNorm2d): m.weight.fill_(1); m.bias.zero_(); m.running_mean.zero_(); m.running_var.fill_(1-m.eps)
        for k,m in modules.items():
            if not isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)): continue
            axis = int(isinstance(m, torch.nn.ConvTranspose2d))
            m.weight.copy_(held[f'{k}.weight_q'].float()*held[f'{k}.weight_step'].view([-1 if d==axis else 1 for d in range(4)]))
            if m.bias is not None: m.bias.copy_(held[f'{k}.bias'])
            elif f'{k}.weight_bias' in held:
                path,_,last = k.rpartition('.')
                modules[f'{path}.{int(last)+1}'].bias.copy_(held[f'{k}.weight_bias'])
    return net

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

HTML = '''<!doctype html><html lang="en"><head><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><title>Live</title>
<link rel="stylesheet" href="_static/live.css"><script defer src="_static/live/start.js?v=1"></script></head>
<body><main><h1>Live</h1><h2>Try it</h2><img src="_images/live.png" alt="a static figure" style="max-width:100%"></main></body></html>'''

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A page with the static figure, served with the engine beside it; its address."
    import engine
    if wrong := engine.fetch(): pytest.skip(wrong)
    root = tmp_path_factory.mktemp('live')
    shutil.copytree(STATIC, root/'_static')
    shutil.copytree(engine.ENGINE, root/'_static'/'live'/'engine')
    (root/'_images').mkdir()
    shutil.copy(ROOT/'nbs'/'images'/'live.png', root/'_images')
    (root/'index.html').write_text(HTML)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

@pytest.fixture
def visit(browser, home):
    "A function that opens the page; `problems` are requests to elsewhere and errors."
    contexts = []
    def visit(prepare=lambda page: None, **context):
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.problems = []
        page.on('request', lambda r: r.url.startswith((home, 'data:', 'blob:')) or page.problems.append(f'leaves the machine: {r.url}'))
        page.on('console', lambda m: m.type=='error' and page.problems.append(m.text))
        page.on('pageerror', lambda e: page.problems.append(str(e)))
        prepare(page)
        page.goto(home)
        return page
    yield visit
    for c in contexts: c.close()

def start(page):
    page.get_by_role('button', name='Try it live').focus()
    page.keyboard.press('Enter')
    page.wait_for_selector('.live')
    return page

def settled(page, act):
    "Do something, and wait until the page has shown what comes of it."
    turn = page.evaluate("document.querySelector('.live').live.state.turn")
    act()
    page.wait_for_function(f"document.querySelector('.live').live.state.turn>{turn}")

STATE = """(() => { const {state} = document.querySelector('.live').live, list = v => Array.from(v);
  return {stages: Object.fromEntries(Object.entries(state.stages).map(([k, v]) => [k, list(v)])), mate: state.mate && list(state.mate), order: state.order,
          features: Object.fromEntries(Object.entries(state.found).map(([k, v]) => [k, v.map(list)])), ms: state.milliseconds}; })()"""

def pictures(values): return torch.tensor(values).view(-1, 3, 64, 32)
def grey_levels(a, b): return (torch.as_tensor(a)-torch.as_tensor(b)).abs().max().item()*255

@torch.no_grad()
def test_numbers_are_those_of_python(visit):
    "Painter, desensitizers, both generators, features and rankings; started, and moved, by keyboard alone."
    runtime = pytest.importorskip('onnxruntime')
    page = start(visit())
    assert page.evaluate("document.activeElement.id")=='live-upper' and not page.locator('img').is_visible()
    rows = [(draw_fields(PERSON, 5, 1, i), draw_fields(CAMERA, 5, 2, i)|dict(noise=0.), draw_fields(SHOT, 5, 3, i)) for i in range(40)]
    painted = page.evaluate("async rows => { const {render} = await import('/_static/live/paint.mjs'); return rows.map(r => Array.from(render(...r))); }", rows)
    assert grey_levels(pictures(painted), render(*zip(*rows), 64, 32)/255)<1.01
    X,Y = generator('protect'), generator('demo-key')
    def check(hide):
        s = page.evaluate(STATE)
        raw,hidden,p,r = (pictures(s['stages'][k]) for k in ('raw', 'desensitized', 'protected', 'recovered'))
        if hide: assert grey_levels(hidden, (hide(2*raw-1)+1)/2)<.01
        assert grey_levels(p, (X(2*raw-1)+1)/2)<1 and grey_levels(r, (Y(2*p-1)+1)/2)<1
        return s, raw, hidden, p
    s,raw,hidden,p = check(Blur(12))
    for net in ('reid', 'outsider'):   # the query is raw, the gallery protected
        run = runtime.InferenceSession(LIVE/f'{net}.onnx', providers=['CPUExecutionProvider'])
        y, = run.run(None, {'x': 2*torch.cat([raw, pictures(s['mate'])]).numpy()-1})
        assert np.abs(y-np.array(s['features'][net])).max()<1e-3 and abs(np.linalg.norm(y[0])-1)<1e-4
        places = [i for i,_ in s['order'][net]]
        assert sorted(places)==list(range(24)) and abs(dict(map(tuple, s['order'][net]))[0]-np.linalg.norm(y[0]-y[1]))<1e-3
        said = page.locator(f'#live-{net}-found').inner_text()
        assert ('1st' if places[0]==0 else f'number {places.index(0)+1} of') in said
        assert page.locator(f'#live-{net}-order li').count()==8
    for key in ('ArrowRight', 'Home'):   # another shirt, another picture
        before = page.locator('#live-upper-said').inner_text()
        settled(page, lambda: page.keyboard.press(key))
        assert page.locator('#live-upper-said').inner_text()!=before
        assert not torch.equal(check(Blur(12))[1], raw)
    page.locator('#live-method').focus()
    settled(page, lambda: page.keyboard.press('p'))
    assert page.locator('#live-strength-said').inner_text()=='blocks of 24 pixels of 256'
    check(Pixelate(24))
    page.locator('#live-strength').focus()
    settled(page, lambda: page.keyboard.press('ArrowRight'))
    check(Pixelate(32))
    settled(page, lambda: page.locator('#live-gallery').select_option('desensitized'))
    settled(page, lambda: page.locator('#live-method').select_option('noise'))
    _,raw,hidden,_ = check(None)
    assert .2<(hidden-raw).std()<.5 and hidden.min()>=0 and hidden.max()<=1
    settled(page, lambda: page.locator('#live-gallery').select_option('recovered'))
    settled(page, lambda: page.locator('#live-key').select_option('of another run'))
    s = page.evaluate(STATE)
    raw,p,r = (pictures(s['stages'][k]) for k in ('raw', 'protected', 'recovered'))
    Z = generator('another-key')
    assert grey_levels(r, (Z(2*p-1)+1)/2)<1 and torch.nn.functional.mse_loss(r, raw)>torch.nn.functional.mse_loss((Y(2*p-1)+1)/2, raw)
    assert sorted(i for i,_ in s['order']['reid'])==list(range(24))
    fastest = min(page.evaluate("async () => { const {net, state} = document.querySelector('.live').live, ms = []; for (let i = 0; i < 12; i++) { const t = performance.now(), [p] = await net.run('protect', [state.stages.raw]); await net.run('recover', [p]); ms.push(performance.now()-t); } return ms; }"))
    assert fastest<100, f'{fastest:.0f} ms to hide and recover a picture'
    assert not page.problems

def test_a_picture_of_ones_own(visit, tmp_path):
    "It is what Pillow makes of it, is never sent, and bad ones are answered in words."
    page = start(visit())
    dice = np.random.default_rng(0)
    Image.fromarray(dice.integers(0, 255, (10, 12, 3), dtype=np.uint8)).resize((140, 200)).save(tmp_path/'me.png')
    requests = []
    page.on('request', lambda r: r.url.startswith('blob:') or requests.append(r.url))
    take = lambda name: page.locator('#live-file').set_input_files(tmp_path/name)
    settled(page, lambda: take('me.png'))
    seen = pictures(page.evaluate(STATE)['stages']['raw'])[0]
    wanted = Image.open(tmp_path/'me.png').crop((20, 0, 120, 200)).resize((32, 64), Image.BILINEAR)
    assert grey_levels(seen, torch.from_numpy(np.array(wanted)).permute(2, 0, 1)/255)<1.01
    assert 'nobody here is you' in page.locator('#live-reid-found').inner_text() and page.locator('.live-right').count()==0
    (tmp_path/'text.png').write_text('no picture')
    Image.new('1', (8000, 7000)).save(tmp_path/'huge.png')
    Image.new('RGB', (3, 9)).save(tmp_path/'tiny.png')
    for name,words in (('text.png', 'is no picture that this browser can read'), ('huge.png', '8000 x 7000 pixels, 56 million, and 50 million are the most'), ('tiny.png', '3 x 9 pixels')):
        take(name)
        page.get_by_text(words).wait_for()
    assert torch.equal(pictures(page.evaluate(STATE)['stages']['raw'])[0], seen)   # the good one stays
    settled(page, lambda: page.get_by_role('button', name='Back to the painted person').click())
    assert page.locator('.live-right').count()>=1 and not requests and not page.problems

def test_a_broken_network_is_answered(visit):
    "The figure stays, and one sentence says what is wrong."
    page = visit(lambda page: page.route('**/protect.onnx', lambda r: r.fulfill(body=b'half a file')))
    page.get_by_role('button', name='Try it live').click()
    page.get_by_text('The network protect.onnx could not be read').wait_for()
    assert page.locator('img').is_visible() and page.get_by_role('button', name='Try it live').is_enabled()

def test_without_javascript(visit):
    page = visit(java_script_enabled=False)
    assert page.locator('img').is_visible() and page.locator('button').count()==0
