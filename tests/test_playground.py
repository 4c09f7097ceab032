"An own picture is shown, and is nowhere in what a notebook saves."
import base64, importlib.util, io, json
import ipywidgets, numpy as np, pytest, torch
from PIL import Image
from privreid.data import to_float
from privreid.desensitize import Blur
from privreid.playground import LARGEST, PLAY_SCRIPT, STRENGTHS, Playground, Talk, playground
from test_widgets import sentence

def photo(size=(90, 150), kind='jpeg', seed=0):
    "Bytes of a file that nobody else has."
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()

def test_stages_are_those_of_the_package():
    play = Playground()
    play.open(photo())
    play.set('blur', 6)
    want = Blur(6)(to_float(play.raw))
    assert torch.allclose(to_float(play.stages()['desensitized']), want, atol=1/127) and list(play.notes())==['raw', 'desensitized']

@pytest.mark.parametrize('file, says', [(b'', 'no picture'), (b'GIF89a', 'no picture'), (photo()[:400], 'picture'), (bytes(LARGEST+1), 'MB')], ids=['empty', 'a head only', 'cut', 'large'])
def test_bad_pictures_are_answered_in_words(one_line, file, says):
    talk = Talk(Playground())
    before = talk.playground.raw
    answer,pictures = talk.hear(dict(do='open'), [file])
    one_line(answer['message'], says)
    assert talk.playground.raw is before and len(pictures)==2

@pytest.mark.parametrize('wish', [{}, dict(do='rm'), dict(do='open'), dict(do='paint', person=-1), dict(do='paint', person='1; drop'), dict(do='set', method='../x'), dict(do='set', strength='much'), dict(do='set', strength=float('nan')), dict(do=['set'])])
def test_strange_wishes_are_answered_in_words(one_line, wish):
    one_line(Talk(Playground()).hear(wish)[0]['message'])

def test_without_anywidget_or_run_a_sentence(monkeypatch, tmp_path):
    real = importlib.util.find_spec('anywidget')
    monkeypatch.setitem(__import__('sys').modules, 'anywidget', None)   # an import of it fails
    assert "pip install" in sentence(playground())
    monkeypatch.undo()
    if real: assert 'config.json' in sentence(playground(tmp_path))

def test_the_saved_state_holds_no_byte_of_the_picture(monkeypatch):
    "The whole widget state, as Jupyter's own tool collects it, after a picture was opened: what is in it was in it before."
    anywidget = pytest.importorskip('anywidget')
    from ipywidgets.embed import dependency_state
    page = playground()
    sent = []
    monkeypatch.setattr(type(page), 'send', lambda self, content, buffers=None: sent.append((content, buffers)))
    before = json.dumps(dependency_state([page], drop_defaults=False), default=str)
    file = photo()
    page._handle_custom_msg(dict(do='open'), [memoryview(file)])
    (content,pictures), = sent
    assert content['message']=='' and [Image.open(io.BytesIO(p)).size for p in pictures]==[(64, 128)]*2
    assert not any(isinstance(v, (bytes, memoryview)) for v in page.get_state().values())
    after = json.dumps(dependency_state([page], drop_defaults=False), default=str)
    assert after==before and 'png;base64' not in after
    for data in (file, *pictures): assert base64.b64encode(data[40:100]).decode()[2:-4] not in after

def test_the_page_in_a_browser(browser):
    "The page's script with a kernel's answers: each control by keyboard, pictures as Python makes them, nothing sent elsewhere."
    talk,page = Talk(Playground()), browser.new_page()
    page.set_default_timeout(60_000)
    errors,hosts = [], []
    page.on('console', lambda m: m.type=='error' and errors.append(m.text))
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.on('request', lambda r: hosts.append(r.url) if not r.url.startswith(('data:', 'blob:', 'about:')) else None)
    def kernel(wish, buffers):
        answer,pictures = talk.hear(wish, [base64.b64decode(b) for b in buffers])
        return [answer, [base64.b64encode(p).decode() for p in pictures]]
    page.expose_function('kernel', kernel)
    page.set_content('<!doctype html><html lang="en"><body><div id="cell"></div></body></html>')
    page.add_script_tag(content=PLAY_SCRIPT.replace('export default { render };', '')+'''
      const heard = [], text = b => btoa(String.fromCharCode(...new Uint8Array(b))), bytes = t => new DataView(Uint8Array.from(atob(t), c => c.charCodeAt(0)).buffer);
      window.model = {on: (_, f) => heard.push(f), off: () => {}, send: async (wish, _, buffers) => { const [told, pictures] = await kernel(wish, buffers.map(text)); heard.forEach(f => f(told, pictures.map(bytes))); }};
      render({model, el: document.getElementById('cell')});''')
    def pixels(i):
        data = page.locator('img').nth(i).evaluate('async im => { const b = new Uint8Array(await (await fetch(im.src)).arrayBuffer()); return btoa(String.fromCharCode(...b)); }')
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    def same(name, i): return (pixels(i)==talk.playground.stages()[name][0].permute(1, 2, 0).numpy()).all()
    page.locator('img').nth(1).wait_for()
    assert same('raw', 0) and same('desensitized', 1)
    page.locator('[type=file]').set_input_files(dict(name='me.jpg', mimeType='image/jpeg', buffer=photo()))
    page.wait_for_function("document.querySelector('[type=file]').value=='' && performance.now()>0")
    for _ in range(100):
        if talk.playground.raw.float().std()>40 and same('raw', 0): break
        page.wait_for_timeout(50)
    assert same('raw', 0)
    page.locator('select').select_option('pixelation')
    page.wait_for_function("document.querySelector('output').textContent=='24.0'")
    page.locator('[type=range]').focus()
    page.keyboard.press('End')
    page.wait_for_function("document.querySelector('output').textContent=='64.0'")
    assert talk.playground.strength==STRENGTHS['pixelation'][1] and same('desensitized', 1)
    page.locator('[type=file]').set_input_files(dict(name='no.jpg', mimeType='image/jpeg', buffer=b'not a picture'))
    page.wait_for_function("document.querySelector('[role=alert]').textContent.includes('no picture')")
    page.get_by_role('button', name='forget it').press('Enter')
    page.wait_for_function("document.querySelector('[role=alert]').textContent==''")
    assert torch.equal(talk.playground.raw, Playground().raw) and not errors and not hosts
    page.close()
