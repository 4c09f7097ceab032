"The viewer below its surface: any run, any size, whatever is missing or broken."
import html, io, json, shutil, stat
from dataclasses import asdict
from pathlib import Path
import ipywidgets, pytest, torch
from torch import nn
from privreid import files
from privreid.agw import AGW
from privreid.arms import Arm
from privreid.config import preset
from privreid.data import PARTS, Split
from privreid.datasets import load_data, save_split
from privreid.evaluation import evaluate_ranking
from privreid.folder import look_of, write_json
from privreid.matches import ArmResults
from privreid.pix2pix import UNetGenerator
from privreid.records import save_arm
from privreid.viewer import Panel, rank, view
from privreid.views import Viewer
from test_widgets import rewrite, sentence
def fake(q, n, seed=0, size=(32,16)):
    "Results of random features and pictures, with junk, distractors and queries that nobody can find."
    g = torch.Generator().manual_seed(seed)
    def split(n, low): return Split(torch.randint(0, 256, (n,3,*size), dtype=torch.uint8, generator=g), torch.randint(low, 8, (n,), generator=g), torch.randint(1, 4, (n,), generator=g), [f'{i}.png' for i in range(n)])
    counted = Counting()
    r = ArmResults(Arm('w/ U', nn.Identity(), counted, counted), split(q, 1), split(n, -1), counted)
    r.features = {k: [torch.randint(0, 4, (len(s), 3), generator=g).float() for s in (r.query, r.gallery)] for k in r.sides}
    return r, counted

class Counting(nn.Module):
    "An identity that counts the pictures that pass."
    seen = 0
    def forward(self, x): self.seen += len(x); return x

@pytest.mark.parametrize('seed', range(5))
def test_rankings_and_failures_are_the_protocols(seed):
    r,_ = fake(12, 40, seed)
    q,g = r.features['raw'][0], r.features['protected'][1]
    failed,scored = [], 0
    for i in range(len(r.query)):
        d = ((q[i]-g)**2).sum(1).sqrt().tolist()
        counts = [j for j in range(len(d)) if r.gallery.pids[j]!=-1 and not (r.gallery.pids[j]==r.query.pids[i] and r.gallery.cams[j]==r.query.cams[i])]
        want = sorted(counts, key=lambda j: d[j])[:6]   # Python's sort is stable
        got = r.ranking('raw-protected', i, 6)
        assert [m.index for m in got]==want and [m.distance for m in got]==pytest.approx([d[j] for j in want], abs=1e-3)
        right = [bool(r.gallery.pids[j]==r.query.pids[i]) for j in counts]
        assert [m.right for m in got]==[bool(r.gallery.pids[j]==r.query.pids[i]) for j in want]
        scored += any(right)
        if any(right) and not got[0].right: failed.append(i)
    assert r.failures('raw-protected', chunk=5)==failed
    rank1 = evaluate_ranking(torch.cdist(q, g), r.query.pids, r.gallery.pids, r.query.cams, r.gallery.cams).rank1
    assert 1-len(failed)/scored==pytest.approx(rank1)

def viewer_of(results, per_page=12):
    "A viewer without a run folder behind it."
    v = Viewer.__new__(Viewer)
    v.runs,v.per_page,v.run,v.opened,v.loaded = {'run': Path('run')}, per_page, 'run', {'run': (None, ['w/ U'])}, {('run', 'w/ U'): results}
    v.choose()
    return v

def test_thousands_of_images():
    "However large the test set, a view passes some dozens of pictures through the networks and weighs little."
    r,counted = fake(3000, 20_000)
    v = viewer_of(r)
    assert v.pages==250 and v.shown==list(range(12))
    v.turn(249); v.look(v.shown[-1])
    page = v.to_html()
    assert v.query==2999 and 'query 2999 of 3000' in page
    assert counted.seen<60 and len(page)<300_000
    assert page.count('<img')==4+3+4*9

def test_album_shows_lost_queries_first():
    "Half of them are lost where there are so many; each once; what is looked at stays."
    r,_ = fake(40, 200)
    v = viewer_of(r)
    v.look(7)
    lost = r.failures('raw-protected')
    chosen = v.worth_a_look(8)
    assert len(set(chosen))==8 and [i in lost for i in chosen]==[True]*4+[False]*4
    page = v.album(8, matches=3)
    assert v.query==7 and page.count('<section')==page.count('type="radio"')==8 and page.count('checked>')==1
    assert [f'aria-label="query {i}"' in page for i in range(40)]==[i in chosen for i in range(40)]
    assert page.count('first matches, ')==8*4 and page.count('<img')==8*(1+4+3+4*4) and 'outsider' not in page   # there is no Upper
    r.kept['raw-protected'] = []
    assert len(v.worth_a_look(8))==8 and sorted(v.worth_a_look(99))==list(range(40))
    r.kept['raw-protected'] = list(range(40))
    assert len(v.worth_a_look(8))==8
    with pytest.raises(ValueError, match='n must be'): v.album(0)

def test_nothing_failed_is_said():
    r,_ = fake(5, 20)
    r.kept['raw-protected'] = []
    v = viewer_of(r)
    v.choose(order='false first match')
    assert v.query is None and v.pages==1 and v.shown==[] and 'no first match' in v.to_html()

@pytest.fixture
def market_run(tiny_market, tmp_path):
    "A run of two arms on pictures of Market-1501's layout, whose networks have learned nothing; returns folder and root of the pictures."
    root,run = tiny_market(), tmp_path/'run'
    cfg = preset('demo', data='market1501', root=str(root), ngf=4)
    data = load_data(cfg.data, cfg.root, cfg.size, cfg.seed)
    people = len(data.train.pids.unique())
    write_json(asdict(cfg)|dict(run=dict(arms=['Base', 'w/o U', 'w/ U'], identities=people)), run/'config.json')
    save_split(data, run/'split.json', looks={p: look_of(getattr(data, p)) for p in PARTS})
    for name,nets in {'Base': 0, 'w/o U': 2}.items(): save_arm(Arm(name, AGW(people, 'mini'), *(UNetGenerator(cfg.size, 4) for _ in range(nets))), run)
    return run, root

def test_missing_pictures_and_weights_are_sentences(market_run, tmp_path):
    run,root = market_run
    assert not isinstance(view(run), ipywidgets.HTML)
    (run/'without-u'/'recovery.safetensors').rename(tmp_path/'away')
    assert 'recovery.safetensors is missing' in sentence(view(run))
    (tmp_path/'away').rename(run/'without-u'/'recovery.safetensors')
    sorted((root/'bounding_box_test').glob('00*_c2*.jpg'))[0].unlink()
    assert 'gallery: names' in sentence(view(run))
    shutil.rmtree(root)
    assert str(root) in sentence(view(run))

def test_only_finished_arms_are_offered(market_run):
    "A killed run can be looked at as far as it came."
    run,_ = market_run
    v = Viewer(run)
    assert (v.arms, v.arm)==(['Base', 'w/o U'], 'w/o U')
    for folder in ('base', 'without-u'): (run/folder/'arm.json').unlink()
    assert 'no finished arm yet' in sentence(view(run))

def test_an_order_that_an_arm_lacks(market_run):
    "It gives way when the arm changes; asked for, it is refused."
    v = Viewer(market_run[0])
    for order,after in (('worst recovery', 'all queries'), ('false first match', 'false first match')):
        v.choose(arm='w/o U', order=order)
        v.choose(arm='Base')
        assert (v.arm, v.order)==('Base', after)
    with pytest.raises(ValueError, match='recovers nothing'): v.choose(order='worst recovery')
    assert v.order=='false first match'

@pytest.mark.parametrize('spoil, says', [
    (lambda run: (run/'without-u'/'arm.json').write_text('[]'), 'arm.json'),
    (lambda run: rewrite(run/'config.json', run=dict(identities=4)), 'config.json'),
    (lambda run: rewrite(run/'config.json', run=dict(identities=4, arms=['w/ V'])), 'w/ V'),
], ids=['arm a list', 'no arms', 'unknown arm'])
def test_a_broken_run_folder_is_a_sentence_in_the_viewer(market_run, spoil, says):
    run,_ = market_run
    spoil(run)
    assert says in html.unescape(sentence(view(run)))

def test_progress_where_it_takes_a_while(monkeypatch):
    "A bar for a big gallery, raw and protected; none for a small one."
    bars = []
    class Bar(files.tqdm):
        def __init__(self, *args, **kwargs): super().__init__(*args, **kwargs|dict(file=io.StringIO())); bars.append((self, not self.disable))   # closed, it is disabled
    monkeypatch.setattr(files, 'tqdm', Bar)
    monkeypatch.setenv('TQDM_DISABLE', '0')
    for q,n in ((5, 20), (100, 1200)):
        r,_ = fake(q, n)
        del r.features
        r.arm.reid = lambda x: x.flatten(1)[:,:3]
        assert r.features['raw'][0].shape==(q,3)
    assert [bar.n for bar,shown in bars if shown]==[10, 10]            # batches of the big gallery, raw and protected

# ---- what is refused

def test_weights_of_nan_rank_nobody(one_line):
    "A ranking by distances that are not numbers would look like any other."
    r,_ = fake(3, 8)
    del r.features
    r.arm.reid = lambda x: x.flatten(1)[:,:3]/0
    with pytest.raises((ValueError, FloatingPointError)) as e: r.ranking('raw-raw', 0)
    one_line(e.value, 'w/ U', 'NaN')

@pytest.mark.parametrize('ask, named', [
    (lambda r: r.ranking('raw-recovered', 0), "'raw-recovered'"), (lambda r: r.failures('raw'), "'raw'"), (lambda r: r.ranking('raw-raw', 12), '12'),
    (lambda r: r.ranking('raw-raw', -1), '-1'), (lambda r: r.stages(1.5), '1.5'), (lambda r: r.stages(99), '99'),
], ids=['setting', 'half', 'beyond', 'negative', 'fraction', 'stages'])
def test_what_is_not_there_is_not_shown(one_line, ask, named):
    with pytest.raises(ValueError) as e: ask(fake(12, 40)[0])
    one_line(e.value, named)

@pytest.mark.parametrize('given, named', [((), 'no run'), ((['a', 'b'],), 'list'), ((None,), 'NoneType'), ((7,), 'int'), (('nowhere',), 'nowhere'), (('~nobody-here/run',), 'run')])
def test_a_wrong_folder_is_a_sentence(tmp_path, monkeypatch, given, named):
    monkeypatch.chdir(tmp_path)
    assert named in html.unescape(sentence(view(*given)))

@pytest.mark.parametrize('spoil', [
    lambda run: (run/'split.json').write_text('{'), lambda run: (run/'split.json').unlink(), lambda run: (run/'without-u'/'reid.safetensors').write_bytes(b'x'*99),
    lambda run: shutil.copy(run/'without-u'/'reid.safetensors', run/'without-u'/'anonymizer.safetensors'), lambda run: rewrite(run/'without-u'/'arm.json', history=7, beside=1),
    lambda run: rewrite(run/'config.json', run=dict(identities='four', arms=['Base', 'w/o U'])), lambda run: (run/'config.json').write_text('[]'), lambda run: (run/'config.json').write_bytes(b'\xff\xfe'),
    lambda run: rewrite(run/'config.json', height='tall'), lambda run: rewrite(run/'config.json', ngf=8),
], ids=['split cut', 'no split', 'weights cut', 'other weights', 'other arm', 'identities', 'a list', 'no text', 'height', 'width of a net'])
def test_a_damaged_folder_is_a_sentence(market_run, spoil):
    spoil(market_run[0])
    sentence(view(market_run[0]))

def test_images_that_moved_are_found(market_run, tmp_path):
    run,root = market_run
    want = Viewer(run).to_html()
    root.rename(tmp_path/'elsewhere')
    assert str(root) in sentence(view(run))
    assert Viewer(run, root=tmp_path/'elsewhere').to_html()==want
    other = tmp_path/'other'
    shutil.copytree(tmp_path/'elsewhere', other)
    query = sorted((other/'query').iterdir())
    shutil.copy(query[1], query[0])                                    # the same names, another picture
    assert 'query' in sentence(view(run, root=other))

# ---- real people

def test_a_hidden_thumbnail_holds_no_picture(market_run):
    "Jupyter keeps the state of hidden widgets too."
    v = Viewer(market_run[0], per_page=2)
    panel = Panel(v)
    assert [bool(p.value) for p,_ in panel.thumbs]==[True, True] and 'market1501 are real' in panel.notice.value
    v.queries = v.queries[:3]
    panel.act(lambda: v.turn(1))
    assert [bool(p.value) for p,_ in panel.thumbs]==[True, False]
    panel.act(lambda: v.choose(order='all queries'))
    v.queries,v.query = [], None
    panel.show()
    assert not any(p.value for p,_ in panel.thumbs) and 'base64' not in panel.view.value

def test_a_saved_page_is_private(market_run, tmp_path):
    path = Viewer(market_run[0]).save(tmp_path/'new'/'page.html')
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path.parent, path)]==[0o700, 0o600] and '<img' in path.read_text(encoding='utf-8')

def test_reprs_fit_a_line(market_run):
    v = Viewer(market_run[0])
    for x in (v, v.results, v.results.ranking('raw-raw', 0)[0], Panel(v)): assert len(repr(x))<120 and '\n' not in repr(x) and ' object at ' not in repr(x)

def test_an_arm_goes_by_its_folder_too(market_run):
    v = Viewer(market_run[0])
    v.choose(arm='base'); assert v.arm=='Base'
    with pytest.raises(ValueError, match="'w/ V'"): v.choose(arm='w/ V')
    assert v.arm=='Base'

# ---- own features

def test_own_features_are_ranked_as_in_a_run():
    r,_ = fake(6, 30)
    q,g = r.features['raw']
    own = rank(q, g, (r.query, r.gallery))
    for i in range(6): assert [(m.index, m.right) for m in own.results.ranking('own-own', i)]==[(m.index, m.right) for m in r.ranking('raw-raw', i)]
    own.choose(order='false first match')
    assert own.queries==r.failures('raw-raw') and own.to_html().count('<figure')==1

def test_bare_pictures_are_marked_neither_right_nor_wrong():
    r,_ = fake(5, 12)
    q,g = r.features['raw']
    own = rank(q, g, (r.query.images, r.gallery.images), 'mine')
    assert [m.index for m in own.results.ranking('own-own', 2, 12)]==torch.cdist(q, g)[2].argsort(stable=True).tolist()   # nothing is left out
    page = own.to_html()
    assert '✓' not in page and '✕' not in page and 'camera' not in page and 'query 0 of 5' in page
    page = own.album(3)
    assert '✓' not in page and '✕' not in page and 'lost' not in page and page.count('<section')==3
    panel = Panel(own)
    panel.choices['order'].value = 'false first match'
    assert 'not known' in panel.message.value and own.order=='all queries'

@pytest.mark.parametrize('wrong, named', [
    (lambda q, g, s: (q[:, :2], g, s), '(Q,F)'), (lambda q, g, s: (q, g, s.images.float()), 'tensor of bytes'), (lambda q, g, s: (q/0, g, s), 'finite'),
    (lambda q, g, s: (q[:2], g, s), '2 features'), (lambda q, g, s: (q, g, (s, s, s)), '3'), (lambda q, g, s: (q[:0], g, s), '(Q,F)'),
], ids=['width', 'floats', 'nan', 'number', 'three', 'none'])
def test_features_that_cannot_be_ranked(one_line, wrong, named):
    r,_ = fake(8, 8)
    with pytest.raises((ValueError, TypeError)) as e: rank(*wrong(*r.features['raw'], r.gallery))
    one_line(e.value, named)
