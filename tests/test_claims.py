"One script records what the documentation states: what it trains, keeps and writes, and whether prose says what was recorded."
import json, os, re, subprocess, sys
from pathlib import Path
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'benchmarks'))
import claims, claims_page, claims_record
from claims_page import Page, grouped, marked
from claims_record import Record, collect, columns, history_of, kept_of, packed, rows_of, unpacked
from privreid.records import load_arm
from privreid.verdicts import claims as judged, read_run

TINY = 'people=12 test_people=6 epochs=1 batch=16 ngf=4 ndf=4 milestones= validate_every=1'.split()
BARE = '''import sys
class Less:
    "A finder that does not find what a bare machine lacks."
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split('.')[0] in ('IPython', 'ipywidgets', 'nbdev', 'execnb', 'ghapi', 'sklearn', 'h5py', 'ipykernel', 'traitlets') else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Less(f) for f in sys.meta_path]
'''
needs_record = pytest.mark.skipif(not claims.RECORD.is_file(), reason='nothing is recorded yet: benchmarks/claims.py')

@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    "Two desensitizers, one seed, in processes that have neither IPython nor nbdev nor ipywidgets."
    out = tmp_path_factory.mktemp('claims')
    bare = out/'bare'
    bare.mkdir()
    (bare/'sitecustomize.py').write_text(BARE)
    env = os.environ|dict(PYTHONPATH=str(bare))
    words = [sys.executable, str(ROOT/'benchmarks'/'claims.py'), 'train', '--out', str(out), '--desensitizer', 'blur', 'pixelation', '--seeds', '3', '--workers', '2', '--preset-changes', *TINY]
    first = subprocess.run(words, env=env, capture_output=True, text=True)
    assert not first.returncode, first.stdout+first.stderr
    return out, first.stdout, lambda: subprocess.run(words, env=env, capture_output=True, text=True)

@pytest.fixture(scope='module')
def record(recorded):
    out,_,_ = recorded
    assert collect(out, out/'claims.json')==0
    return out/'claims.json'

# -- training

@pytest.mark.full
def test_each_run_is_told_once_and_none_is_trained_twice(recorded):
    out,said,again = recorded
    assert [re.sub(r', \d+ s \(\d+ s since the start\)', '', line) for line in sorted(said.splitlines())][0]=='1 of 3: seed3-upper'
    before = {p: p.stat().st_mtime_ns for p in out.glob('runs/*/results.json')}
    assert len(before)==3
    second = again()
    assert not second.returncode and second.stdout.count('finished before')==3
    assert {p: p.stat().st_mtime_ns for p in before}==before

@pytest.mark.full
def test_upper_is_trained_once_a_seed_and_is_what_a_run_of_its_own_trains(recorded):
    out,_,_ = recorded
    one,*runs = (load_arm(out/'runs'/f'seed3-{d}', 'Upper') for d in ('upper', 'blur', 'pixelation'))
    for arm in runs:
        assert arm.history==one.history and all((a==b).all() for a,b in zip(arm.reid.state_dict().values(), one.reid.state_dict().values()))
    from privreid.arms import Experiment
    cfg = read_run(out/'runs'/'seed3-pixelation').cfg
    assert [h['reid_raw'] for h in Experiment(cfg, device='cpu').upper().history]==[h['reid_raw'] for h in one.history]

@pytest.mark.full
def test_what_was_interrupted_goes_on(recorded):
    out,_,again = recorded
    results = out/'runs'/'seed3-blur'/'results.json'
    was = json.loads(results.read_text())
    results.unlink()
    assert '1 of 1: seed3-blur' in again().stdout
    now = json.loads(results.read_text())
    assert now['arms']==was['arms'] and now['unprotected']==was['unprotected']
    made = json.loads((out/'made'/'seed3-blur.json').read_text())
    assert len(made)==2 and {m['code'] for m in made}=={claims.code_state()} and {m['threads'] for m in made}=={1}

@pytest.mark.full
def test_another_setup_is_refused(recorded):
    out,_,_ = recorded
    with pytest.raises(SystemExit, match='begun with another set-up .*epochs: 1 -> 3'): claims.main(['train', '--out', str(out), '--seeds', '3', '--desensitizer', 'blur', '--preset-changes', *TINY, 'epochs=3'])

def test_a_failed_run_is_named_and_the_others_go_on(tmp_path, capsys):
    class Job:
        upper = None
        def __init__(self, name): self.name = name
        def finished(self): return False
        def run(self):
            if self.name=='bad': raise RuntimeError('diverged')
            return 1.
    assert claims.work_off([Job('bad'), Job('good')], 2)==1
    said = capsys.readouterr()
    assert 'bad FAILED: diverged' in said.err and ': good, 1 s' in said.out

@pytest.mark.parametrize('words, found', [(['epochs=12'], dict(epochs=12)), (['lr=1e-3', 'milestones=6,8', 'weights='], dict(lr=.001, milestones=(6, 8), weights='')), (['milestones=', 'compile=True'], dict(milestones=(), compile=True))])
def test_changes_are_read_as_the_field_wants(words, found): assert claims.changes(words)==found

@pytest.mark.parametrize('word', ['epochs', 'epoks=3', 'epochs=three', 'compile=yes'])
def test_wrong_changes_are_named(word):
    with pytest.raises(SystemExit, match=re.escape(word.split('=')[0])): claims.changes([word])

# -- the record

@pytest.mark.full
def test_a_run_comes_back_from_the_record(recorded, record):
    out,_,_ = recorded
    kept = Record(record)
    assert [(r.cfg.seed, r.cfg.desensitizer) for r in kept.runs]==[(3, 'blur'), (3, 'pixelation')]
    for run in kept.runs:
        there = read_run(out/'runs'/f'seed3-{run.cfg.desensitizer}')
        assert run.results==there.results and run.cfg==there.cfg and run.meta==there.meta
        ours,theirs = (judged(r.results, r.history, r.eps) for r in (run, there))
        assert [(c.text, c.verdict) for c in ours]==[(c.text, c.verdict) for c in theirs]
        exact = [(c.numbers, d.numbers) for c,d in zip(ours, theirs) if 'PSNR' not in c.numbers]   # pictures have half the digits, so the last one of an interval may differ
        assert exact and all(a==b for a,b in exact)
        for a,b in zip(ours, theirs):
            for m,n in zip(a.margins, b.margins): assert m.by.value==n.by.value and np.allclose(m.by.draws, n.by.draws, atol=.01)
        for kind in ('validation', 'decision'): assert run.rows(kind)==there.rows(kind)
    assert kept['unlike_demo']['people']==12 and 'seed' not in kept['unlike_demo']

def test_columns_and_packing_lose_nothing():
    rows = [dict(epoch=i, value=i/3, told=f'{i}') for i in range(5)]
    assert rows_of(json.loads(json.dumps(columns(rows))))==rows and rows_of(columns([]))==[]
    assert unpacked(packed(bytes(range(256))*9))==bytes(range(256))*9
    history = [dict(arm='w/ U', kind=k, epoch=e, x=e) for e in (1, 2) for k in ('validation', 'decision')]
    assert history_of(kept_of([dict(arm='Base', kind='epoch', epoch=1), *history]))==history

@pytest.mark.full
def test_a_record_of_two_states_of_the_code_is_not_one(recorded, record, capsys, tmp_path):
    out,_,_ = recorded
    note = out/'made'/'seed3-blur.json'
    was = note.read_text()
    note.write_text(was.replace(claims.code_state(), '0'*16))
    try: assert collect(out, tmp_path/'claims.json')==1
    finally: note.write_text(was)
    assert 'states of the code' in capsys.readouterr().err

# -- the page

@pytest.mark.full
def test_the_page_is_made_of_the_record(record):
    page = Page(Record(record))
    text = page.page('# {{ seeds }}\n\n{{ claims_table() }}\n\n{{ details() }}\n<!-- rows -->\n<!-- rows: all | exceed 25 dB -->\nOnly {{ psnr("blur", "recovered") }} dB.\n<!-- end of rows -->\n<!-- if real -->\nNever.\n<!-- end if -->\nEnd.')
    r = page.runs['blur'][0].results
    assert f"Only {r['arms']['w/ U']['recovered']['psnr']:.2f} dB." in text and text.endswith('End.') and not re.search('{{|Never', text)
    assert f"| Base | {100*r['arms']['Base']['settings']['raw-raw']['rank1']:.1f} |" in text
    assert text.count('<details>')==text.count('</details>')==2
    assert not [t for _,t in page.unexplained if '25 dB' in t] and page.unexplained   # one epoch teaches nothing: rows that fail are named
    held = {d: [t for t,v in seen.items() if v==['holds']] for d,seen in page.verdicts.items()}
    for d,t in page.unexplained: assert t not in held[d]
    svg = page.svg()
    assert svg.count('class="good"')-1==sum(map(len, held.values()))   # one in the legend

@pytest.mark.full
def test_a_field_without_a_value_is_named(record):
    with pytest.raises(SystemExit, match='no_such_thing'): Page(Record(record)).ask('no_such_thing()')

@pytest.mark.full
def test_marked_numbers_are_looked_up(record):
    page = Page(Record(record))
    now = f"{page.metric('blur', 'Base', 'raw-raw').mean():.1f}"
    text = "It finds 99.9<!--= rank1('blur', 'Base', 'raw-raw') --> % of two<!--= in_words(seeds) --> seeds."
    assert marked(text, page)==text.replace('99.9', now).replace('two<', 'one<')
    assert marked('99.9 % <!-- a comment -->', page)=='99.9 % <!-- a comment -->' and not page.missing
    assert marked('five<!--= demo_minutes() --> minutes', page)=='five<!--= demo_minutes() --> minutes' and 'demo_minutes' in page.missing[0]   # not recorded here

def test_claims_that_say_the_same_stand_together():
    told = grouped(['w/o U: recovered images exceed 25 dB', 'w/ U: recovered images exceed 25 dB', 'w/ U is above Base, raw-protected', 'w/ U is above Base, protected-raw', 'An outsider recognises images of w/ U far worse than raw ones (less than half)', 'Another'])
    assert list(told)==['recovered images exceed 25 dB (w/o U, w/ U)', 'w/ U is above Base (raw-protected, protected-raw)', 'An outsider recognises images of w/ U far worse than raw ones', 'Another']
    assert [len(v) for v in told.values()]==[2, 2, 1, 1]

# -- what is shipped

def test_no_result_is_typed_into_the_template():
    "A decimal number, and one before % or dB, comes from a field. What the paper claims and how we judge is said in whole words of the claims."
    text = re.sub(r'\{\{.*?\}\}|<!--.*?-->|```.*?```', '', claims.TEMPLATE.read_text(encoding='utf-8'), flags=re.S)
    typed = re.findall(r'(?<![\w.])\d+\.\d+|(?<![\w.])\d+(?= ?(?:dB|%|points))', text)
    assert set(typed)<={'95'}, typed   # of intervals

@needs_record
def test_prose_says_what_was_recorded():
    files,missing = claims_page.made(claims.RECORD)
    stale = [str(p.relative_to(ROOT)) for p,text in files.items() if not p.is_file() or p.read_text(encoding='utf-8')!=text]
    assert not stale, 'python benchmarks/claims.py write; python docs/readme.py'
    assert not missing

@needs_record
def test_the_record_is_small_strict_and_of_one_state_of_the_code():
    text = claims.RECORD.read_text(encoding='utf-8')
    assert len(text.encode())<claims_record.MOST
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))
    assert len(claims_record.sources(record))==1 and not record['unlike_demo']
    seeds = {d: sorted(r['seed'] for r in record['runs'] if r['desensitizer']==d) for d in claims.DESENSITIZERS}
    assert all(len(set(s))>=3 and s==seeds['blur'] for s in seeds.values())
    assert record['demo']['twin'] in [r['name'] for r in record['runs']]   # what is shipped is one of them, to the last digit

@pytest.mark.parametrize('name', ['demo_run', 'long_run'])
def test_shipped_recordings_are_small_and_can_be_read(name):
    folder = ROOT/'privreid'/name
    if not folder.is_dir(): pytest.skip('not recorded yet')
    run = read_run(folder)
    assert sum(p.stat().st_size for p in folder.iterdir())<10**6 and run.rows('decision')
    if name=='long_run':
        acted = [h['action'] for h in run.rows('decision')]
        assert len(acted)>=16 and acted.count('upgrade')>=2 and 'fall back' in acted
