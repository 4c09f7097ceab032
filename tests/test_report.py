"The report and the comparison say what the run folders say, in pages that ask nobody for anything."
import json, re, sys
from dataclasses import asdict
from html.parser import HTMLParser
from types import SimpleNamespace
import numpy as np
import pytest, torch
from accelerate import Accelerator
from privreid.cli import main
from privreid.compare import changed, claims_over_seeds, compare, comparison_text, measured, read_runs, same_but_seed, write_comparison
from privreid.config import preset
from privreid.data import to_float
from privreid.evaluation import Outcomes, resampled
from privreid.experiments import Track, run_experiment
from privreid.records import load_outcomes, load_results, read_pictures, means_of, write_outcomes, write_pictures
from privreid.report import limits, write_report
from privreid.scores import summary
from privreid.upgradation import Epsilons
from privreid.verdicts import CLOSE, FAILS, HOLDS, Estimate, claims, judged, pooled_claims, read_run

SETTINGS = 'raw-raw', 'raw-protected', 'protected-raw', 'protected-protected'
RANK1 = {'Upper': .8, 'Base': .4, 'w/o U': .45, 'w/ U': .525}
REASONS = [('keep', 'not private: SSIM 0.43 is not below 0.34', .45), ('upgrade', 'private, and rank-1 60.0% beats 45.0%', .6), ('fall back', 'not private: PSNR 22.00 dB is not below 21.00 dB', .6)]
HOSTILE = '"\'><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>&amp;'

def retrieval(rank1): return dict(rank1=rank1, rank5=rank1+.1, mAP=rank1-.1, mINP=rank1-.2, queries=10, skipped=0, chance=.125)

def make_run(folder, arms=('Upper', 'Base', 'w/o U', 'w/ U'), shift=0., reasons=REASONS, device='2 CPU threads', **changes):
    "A run folder as a training would leave it; `shift` moves every rank-1."
    cfg,results,history = preset('demo', epochs=3, **changes), {}, []
    for arm in arms:
        row = dict(settings={s: retrieval(RANK1[arm]+shift) for s in (SETTINGS[:1] if arm=='Upper' else SETTINGS)}, seconds=60.)
        if arm!='Upper': row['protected'] = dict(psnr=20.5, ssim=.3, mean=21.)
        if arm in ('w/o U', 'w/ U'): row['recovered'] = dict(psnr=25.+shift, ssim=.7, mean=26.)
        results[arm] = row
        for e in (1, 2, 3):
            history.append(dict(arm=arm, kind='epoch', epoch=e, lr=.1, supervision='desensitized', reid_raw=1/e))
            if 'recovered' in row: history.append(dict(arm=arm, kind='validation', epoch=e, psnr_ano=20.+e, ssim_ano=.3, psnr_des=20., ssim_des=.29, r1_raw_ano=.5+e/100, mAP_raw_ano=.4, psnr_rec=24., ssim_rec=.7))
            if arm=='w/ U': history.append(dict(arm=arm, kind='decision', epoch=e, action=reasons[e-1][0], reason=reasons[e-1][1], private=True, better=True, state=dict(best_r1=reasons[e-1][2], upgraded=False)))
    env = dict(device=device, python='3.11', torch='2.4', privreid='0.1.0')
    snooped = {k: {s: retrieval(.8 if s=='raw-raw' else .3) for s in SETTINGS} for k in ('desensitized', 'w/o U', 'w/ U')} if 'Upper' in arms else {}
    folder.mkdir(parents=True)
    (folder/'config.json').write_text(json.dumps(asdict(cfg)|dict(run=dict(arms=list(arms), identities=9, processes=1, environment=env))))
    (folder/'results.json').write_text(json.dumps(dict(arms=results, unprotected=snooped, desensitized=dict(psnr=20., ssim=.29, mean=20.5), base_r1=.5, environment=env)))
    (folder/'history.jsonl').write_text(''.join(json.dumps(h)+'\n' for h in history))
    write_pictures({'raw': torch.zeros(2, 3, 4, 2), f'protected {HOSTILE}': torch.ones(2, 3, 4, 2)}, folder/'pictures.png')
    return folder

PEOPLE = np.arange(10, dtype=np.int32)//2   # ten queries, two of each person

def keep_outcomes(run, seed=0, pictures=20):
    "Give a run outcomes that have its means."
    rng,results = np.random.default_rng(seed), load_results(run)
    def rows(v):
        "Shares of ones; for AP and INP, values near the mean."
        found = np.stack([rng.permutation((np.arange(10)<round(10*v['rank1'])).astype(float)), rng.permutation((np.arange(10)<round(10*v['rank5'])).astype(float)), *(v[k]+rng.permutation(np.linspace(-.05, .05, 10)) for k in ('mAP', 'mINP'))])
        v |= dict(zip(('rank1', 'rank5', 'mAP', 'mINP'), found.mean(1).tolist()))
        return found.astype(np.float16)
    ranked,pictured = means_of(results)
    spread = rng.permutation(np.linspace(-.1, .1, pictures))
    kept = Outcomes(PEOPLE, {k: rows(v) for k,v in ranked.items()}, np.arange(pictures, dtype=np.int32)//2,
                    {k: np.stack([10**(-v['psnr']/10)*(1+spread), v['ssim']+spread/10], 1).astype(np.float32) for k,v in pictured.items()})
    (run/'results.json').write_text(json.dumps(results))
    write_outcomes(kept, run)
    return run

class Page(HTMLParser):
    "Tags with attributes, text, and tables by caption."
    VOID = {'meta', 'img', 'br', 'link', 'input', 'hr'}
    def __init__(self, text):
        super().__init__()
        self.tags,self.open,self.words,self.tables,self.cell = [], [], [], {}, None
        self.feed(text); self.close()
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID: self.open.append(tag)
        if tag=='table': self.rows,self.caption = [], ''
        elif tag=='tr': self.rows.append([])
        elif tag in ('td', 'th', 'caption'): self.cell = ''
    def handle_startendtag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_endtag(self, tag):
        assert self.open.pop()==tag, f'</{tag}> closes something else'
        if tag=='caption': self.caption = self.cell
        elif tag in ('td', 'th'): self.rows[-1].append(self.cell)
        elif tag=='table': self.tables[self.caption] = {r[0]: dict(zip(self.rows[0][1:], r[1:])) for r in self.rows[1:]}
    def handle_data(self, data):
        if 'style' not in self.open[-1:]: self.words.append(data)
        if self.cell is not None: self.cell += data
    @property
    def text(self): return ' '.join(' '.join(self.words).split())
    def all(self, tag): return [a for t,a in self.tags if t==tag]

def assert_self_contained(text):
    page = Page(text)
    assert not page.open
    for tag,attrs in page.tags:
        assert tag not in ('script', 'link', 'iframe', 'object', 'embed', 'base', 'form', 'video', 'audio'), tag
        for k,v in attrs.items():
            assert not k.startswith('on'), (tag, k)
            if k in ('src', 'href', 'xlink:href', 'srcset', 'data', 'action', 'poster'): assert v.startswith(('data:image/png;base64,', '#')), (tag, k, v[:60])
    assert '@import' not in text and not re.search(r'url\((?!#)', text)
    assert any("default-src 'none'" in a.get('content', '') for a in page.all('meta'))
    ids = {a['id'] for _,a in page.tags if 'id' in a}
    assert all(a['href'][1:] in ids for a in page.all('a')) and len(page.all('a'))>=4
    assert all(a.get('alt') for a in page.all('img')) and all(a.get('aria-label') and a['role']=='img' for a in page.all('svg'))
    return page

@pytest.fixture(scope='module')
def page(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp('report')/'run')
    return assert_self_contained(write_report(run).read_text())

# --- one run

def test_differences_are_those_to_base(page):
    rank1 = page.tables['Rank-1, %']
    assert rank1['Base']==dict.fromkeys(SETTINGS, '40.0')
    assert rank1['w/o U']==dict.fromkeys(SETTINGS, '45.0 +5.0') and rank1['w/ U']==dict.fromkeys(SETTINGS, '52.5 +12.5')
    assert list(rank1['Upper'].values())==['80.0 +40.0', '–', '–', '–']
    assert page.tables['mAP, %']['w/ U']['raw-raw']=='42.5 +12.5' and page.tables['mINP, %']['w/o U']['protected-raw']=='25.0 +5.0' and page.tables['Rank-5, %']['Base']['raw-raw']=='50.0'

def test_every_decision_is_there_with_its_reason_in_order(page):
    line = ' '.join(f'epoch {e} {action} {reason}' for e,(action,reason,_) in enumerate(REASONS, 1))
    assert line in page.text

def test_claims_are_counted(page):
    verdicts = re.findall(r'(holds|fails|too close to tell) (?:w/o U|w/ U|An outsider)', page.text)
    assert len(verdicts)==21 and f"claims that hold {verdicts.count('holds')} of 21 {verdicts.count('fails')} fail, 0 too close to tell" in page.text
    assert 'Intervals were not recorded' in page.text

def test_charts_show_what_there_is(page):
    labels = [a['aria-label'] for a in page.all('svg')]
    assert len(labels)==6+1   # six validation metrics, and the one loss that these runs have
    assert any(l.startswith('PSNR of protected, dB') and 'w/ U: from 21 to 23' in l for l in labels)
    assert any(l.startswith('Re-ID, raw') and all(f'{a}: from 1 to 0.333' in l for a in RANK1) for l in labels)

def test_all_three_limits_are_drawn(tmp_path):
    "Rank-1 to beat, PSNR and SSIM: dotted, in their charts and in no other."
    text = write_report(make_run(tmp_path/'run')).read_text()
    drawn = {re.search(r'aria-label="(.*?) over the epochs', svg)[1]: 'stroke-dasharray' in svg for svg in re.findall(r'<svg.*?</svg>', text, flags=re.S)}
    assert [k for k,dotted in drawn.items() if dotted]==['rank-1, raw-protected', 'PSNR of protected, dB', 'SSIM of protected'] and len(drawn)==7

def test_time_and_machine(page):
    assert page.tables['Training time (w/ U: since it left w/o U)']['w/ U']=={'seconds': '60', 'per epoch': '20.0'}
    assert page.tables['Machine']['device']['made with']=='2 CPU threads'

def test_what_a_rank1_is_a_share_of_stands_beside_it(page, tmp_path):
    share = '10 queries; by chance rank-1 would be 12.5%'
    for before in ('Test people, ', 'Query-gallery, test people, ', 'Base 40.0%; '): assert before+share in page.text
    assert page.text.count(share)==4                                               # claims, four settings, the outsider's table, the card
    run = make_run(tmp_path/'run')
    results = json.loads((run/'results.json').read_text())
    (run/'results.json').write_text(json.dumps(results|dict(validated=dict(queries=7, chance=.25))))
    assert 'validation people (7 queries; by chance rank-1 would be 25.0%)' in Page(write_report(run).read_text()).text
    done = read_run(run)
    text = summary(done.results, done.history, done.eps)
    assert [t.splitlines()[-1].endswith(share) for t in text.split('\n\n') if t.startswith('Rank-1')]==[True, True]

def test_pages_that_show_people_are_their_owners(tmp_path):
    a,b = make_run(tmp_path/'a'), make_run(tmp_path/'b', seed=1)
    for path in (write_report(a), write_comparison(read_runs([a, b]), tmp_path/'out.html')): assert path.stat().st_mode&0o777==0o600

def test_a_run_of_an_older_version_is_read(tmp_path):
    "Likeness was a mean of per-image values then, infinite where a picture was equal, with the pooled one beside it; nobody knew of chance."
    new,old = make_run(tmp_path/'new'), make_run(tmp_path/'old')
    def as_then(q): return {k: v for k,v in q.items() if k!='chance'} if 'rank1' in q else dict(psnr=float('inf'), ssim=q['ssim'], pooled=q['psnr']) if 'mean' in q else q
    (old/'results.json').write_text(json.dumps(json.loads((new/'results.json').read_text(), object_hook=as_then)))
    history = (old/'history.jsonl').read_text()
    (old/'history.jsonl').write_text(history.replace('"psnr_des": 20.0', '"psnr_des": Infinity', 1).replace('"psnr_rec": 24.0', '"psnr_rec": NaN', 1))
    assert 'Infinity' in (old/'results.json').read_text()
    then,now = read_run(old), read_run(new)
    def said(run): return [(c.text, c.numbers, c.verdict) for c in claims(run.results, run.history, run.eps)]
    assert said(then)==said(now)
    assert then.results['desensitized']==dict(psnr=20., ssim=.29, mean=100.)
    page = assert_self_contained(write_report(old).read_text())
    assert '10 queries.' in page.text and 'chance' not in page.text and 'Intervals were not recorded' in page.text

def test_where_nothing_was_hidden_no_claim_of_privacy_holds(tmp_path):
    run = read_run(make_run(tmp_path/'run'))
    run.results['desensitized'] |= dict(psnr=100., ssim=1.)
    assert [c.verdict for c in claims(run.results, run.history, run.eps) if 'privacy constraint' in c.text]==[FAILS, FAILS]

def test_limits_are_what_the_rule_compared_with(tmp_path):
    found = limits(read_run(make_run(tmp_path/'run', eps_r1=.05, eps_psnr=1., eps_ssim=.05)))
    assert np.allclose(found['r1_raw_ano'], [(1, .45), (2, .45), (3, .6)])     # Base's .5 less .05, until the upgrade of epoch 2
    assert np.allclose(found['psnr_ano'], [(e, 21.) for e in (1, 2, 3)]) and np.allclose(found['ssim_ano'], [(e, .34) for e in (1, 2, 3)])

@pytest.mark.parametrize('arms', [('Upper',), ('Base',), ('Upper', 'w/o U'), ('Base', 'w/ U')])
def test_a_run_of_some_arms_has_a_report(tmp_path, arms):
    page = assert_self_contained(write_report(make_run(tmp_path/'run', arms, weights='')).read_text())
    assert list(page.tables['Rank-1, %'])==sorted(arms, key=('Base', 'w/o U', 'w/ U', 'Upper').index)
    assert ('What was decided' in page.text)==('w/ U' in arms)

def test_hostile_strings_stay_text(tmp_path):
    run = make_run(tmp_path/'<b onclick=x>run', reasons=[(HOSTILE, HOSTILE, .4)]*3, device=HOSTILE, root=HOSTILE, pattern=HOSTILE)
    (run/'history.jsonl').write_text((run/'history.jsonl').read_text().replace(f'"action": {json.dumps(HOSTILE)}', '"action": "keep"'))
    page = assert_self_contained(write_report(run).read_text())
    assert page.text.count(HOSTILE)>=3+1+2+1 and '<b onclick=x>run' in page.text     # reasons, device, root and pattern, a row of pictures
    other = make_run(tmp_path/'<i>other', root='/elsewhere')
    page = assert_self_contained(write_comparison(read_runs([run, other]), tmp_path).read_text())
    assert HOSTILE in page.text and '<i>other' in page.text

def test_a_claim_needs_more_than_a_draw(tmp_path):
    run = read_run(make_run(tmp_path/'run'))
    def verdict(text): return {c.text: c.verdict==HOLDS for c in claims(run.results, run.history, Epsilons(psnr=1., ssim=.05))}[text]
    assert verdict('w/ U is above w/o U, raw-protected') and verdict('w/ U: the supervision was upgraded at least once')
    run.results['arms']['w/o U']['settings']['raw-protected']['rank1'] = run.results['arms']['w/ U']['settings']['raw-protected']['rank1']
    assert not verdict('w/ U is above w/o U, raw-protected')
    private = 'w/ U: protected images meet the privacy constraint on the test people'
    assert verdict(private)
    run.results['arms']['w/ U']['protected']['psnr'] = 21.
    assert not verdict(private)
    assert verdict('w/ U: recovered images are recognisable') and not verdict('w/ U: recovered images exceed 25 dB')
    run.results['arms']['w/ U']['recovered'] = run.results['arms']['w/ U']['protected']           # a key that opens nothing
    assert not verdict('w/ U: recovered images are recognisable')
    small = 'w/ U loses at most 5 points of raw-raw rank-1 against Upper'
    run.results['arms']['Upper']['settings']['raw-raw']['rank1'] = run.results['arms']['w/ U']['settings']['raw-raw']['rank1']+.049
    assert verdict(small)
    run.results['arms']['Upper']['settings']['raw-raw']['rank1'] += .002
    assert not verdict(small)

# --- intervals

def number(values, people=PEOPLE): return Estimate(float(np.mean(values)), resampled(people, [values])[0], len(set(people)))

def test_a_verdict_is_that_of_the_interval():
    people = np.arange(40)//2
    sure,mixed = np.ones(40), np.where(people%2, 1., -1.)
    assert [number(v, people).verdict for v in (sure, -sure, mixed, 0*sure)]==[HOLDS, FAILS, CLOSE, CLOSE]
    assert number(sure, 0*people).verdict==CLOSE and number(sure, 0*people).interval is None          # a single person
    low,high = number(mixed+.2, people).interval
    assert low<0<high and judged('x', ('', 'rank-1', number(sure, people), 1), ('', 'mAP', number(mixed, people), 1)).verdict==CLOSE
    assert judged('x', ('', 'rank-1', number(mixed, people), 1), ('', 'mAP', number(-sure, people), 1)).verdict==FAILS

@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    "A run with outcomes."
    return keep_outcomes(make_run(tmp_path_factory.mktemp('kept')/'run'))

def test_every_comparison_of_arms_has_its_interval(kept):
    page,done = assert_self_contained(write_report(kept).read_text()), read_run(kept)
    found = claims(done.results, done.history, done.eps)
    brackets = r'\([+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]\)'
    for c in found: assert len(re.findall(brackets, c.numbers))==len(c.margins), c.numbers
    assert sum(not c.margins for c in found)==1                                                       # upgrades are counted
    assert {c.verdict for c in found}<={HOLDS, FAILS, CLOSE} and CLOSE in {c.verdict for c in found}
    for title in ('Rank-1, %', 'mAP, %', 'Rank-5, %', 'mINP, %'):
        for arm in ('w/o U', 'w/ U'):
            for cell in page.tables[title][arm].values(): assert re.fullmatch(r'[\d.]+ [+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]', cell), cell
    assert '95% interval of 2,000 draws of the 5 people' in page.text and 'not recorded' not in page.text

def test_an_interval_is_of_the_same_draws_for_both(kept):
    "An arm compared with itself has no luck; with another, that of the difference."
    run = read_run(kept)
    run.results.outcomes.ranked['arms/Base/raw-protected'] = run.results.outcomes.ranked['arms/w/ U/raw-protected']
    run.results['arms']['Base']['settings']['raw-protected'] = run.results['arms']['w/ U']['settings']['raw-protected']
    c = next(c for c in claims(run.results, run.history, run.eps) if c.text=='w/ U is above Base, raw-protected')
    assert [m.by.interval for m in c.margins]==[(0., 0.)]*2 and c.verdict==CLOSE

def test_the_outsider_is_compared_with_desensitized_images_too(kept):
    def found(shift):
        run = read_run(kept)
        for s in ('raw-protected', 'protected-raw'): run.results['unprotected']['w/ U'][s]['rank1'] = .3+shift
        run.results.outcomes = None
        return next(c for c in claims(run.results, run.history, run.eps) if 'w/ U hardly more often' in c.text)
    assert [found(v).verdict for v in (0., .04, .06)]==[HOLDS, HOLDS, FAILS] and '34.0% against 30.0%, +4.0' in found(.04).numbers
    c = next(c for c in claims(*(getattr(read_run(kept), k) for k in ('results', 'history', 'eps'))) if 'w/ U hardly more often' in c.text)
    low,high = c.margins[0].by.interval
    assert low<=5.<=high and f'[{low:+.1f}, {high:+.1f}]' in c.numbers                                # 30 against 30 %, at most 5 more

def test_outcomes_of_another_test_are_refused(kept, tmp_path, one_line):
    "Cut, of other people, of other arms, or with another mean."
    import shutil
    from safetensors.torch import load_file, save_file
    whole = load_file(kept/'outcomes.safetensors')
    def ruined(name, change):
        run = shutil.copytree(kept, tmp_path/name)
        path = run/'outcomes.safetensors'
        t = change(dict(whole))
        path.write_bytes(t) if isinstance(t, bytes) else save_file(t, path)
        with pytest.raises(ValueError) as e: read_run(run)
        one_line(e.value, path, 'results.json', 'Remove it')
        path.unlink()
        assert read_run(run).results.outcomes is None
    key = 'ranked/arms/w/ U/raw-raw'
    ruined('cut', lambda t: (kept/'outcomes.safetensors').read_bytes()[:-7])
    ruined('fewer', lambda t: {k: v for k,v in t.items() if k!=key})
    ruined('other', lambda t: t|{'pictured/protected/Base': t['pictured/desensitized'].clone()})
    ruined('mean', lambda t: t|{key: 1-t[key]})
    ruined('nan', lambda t: t|{key: t[key]*float('nan')})
    ruined('people', lambda t: t|{'people': t['people'][1:].clone()})
    ruined('no people', lambda t: {k: v for k,v in t.items() if k!='people'})
    ruined('stranger', lambda t: t|{'else': t['people'].clone()})
    ruined('likeness', lambda t: t|{'pictured/desensitized': t['pictured/desensitized']+.01})

def test_a_run_keeps_what_became_of_each_query(tmp_path):
    "What is read back has the means of the results, at a thirtieth of their table's size and without anybody's number."
    cfg = preset('demo', people=8, test_people=4, epochs=1, batch=16, ngf=4, ndf=4, milestones=(), data='synthetic')
    results = run_experiment(cfg, tmp_path/'run', ('Upper', 'Base', 'w/o U'))
    kept,now = load_outcomes(tmp_path/'run', load_results(tmp_path/'run')), results.outcomes
    for part in ('ranked', 'pictured'):
        assert getattr(kept, part).keys()==getattr(now, part).keys()==means_of(results)[part=='pictured'].keys()
        for k,v in getattr(kept, part).items(): assert np.array_equal(v, getattr(now, part)[k])
    for k,v in means_of(results)[0].items(): assert kept.ranked[k].astype(float).mean(1)==pytest.approx([v[m] for m in ('rank1', 'rank5', 'mAP', 'mINP')], abs=1e-3)
    assert kept.identities==4 and set(np.unique(kept.people))==set(range(4)) and (tmp_path/'run'/'outcomes.safetensors').stat().st_size<30_000
    assert results['validated']['queries']>0 and 0<results['validated']['chance']<1
    capture = summary(results, [], read_run(tmp_path/'run').eps)
    assert 'draws of the 4 people' in capture

def test_seeds_are_put_together():
    def seed(i, value, spread=1.): return [judged('b', ('', 'rank-1', Estimate(value, np.random.default_rng(i).normal(value, spread, 2000), 30), 1))]
    def verdict(*values): return pooled_claims([seed(i, v) for i,v in enumerate(values)])[0]
    assert [verdict(*v).verdict for v in ((3., 4., 5.), (-6., 1., 9.), (-4., -4.5, -5.))]==[HOLDS, CLOSE, FAILS]
    assert verdict(3., 4., 5.).margins[0].by.value==4. and '3 holds' in verdict(3., 4., 5.).numbers
    low,high = verdict(1., 1., 1.).margins[0].by.interval
    one = seed(0, 1.)[0].margins[0].by.interval
    assert 1.4<(one[1]-one[0])/(high-low)<2.1                                                         # three times the people: sqrt(3)
    same = pooled_claims([seed(0, 1.)]*3, same_people=True)[0].margins[0].by.interval                 # the same people three times: no more people
    assert (same[1]-same[0])/(one[1]-one[0])==pytest.approx(1, abs=.1)
    assert pooled_claims([seed(0, 1.)])[0].text=='b'

def test_pictures_come_back_pixel_by_pixel(tmp_path):
    x = torch.randint(256, (3, 3, 8, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_pictures({'a': to_float(x), 'b': to_float(255-x)}, tmp_path/'p.png')
    for name,want in {'a': x, 'b': 255-x}.items():
        assert np.array_equal(np.asarray(read_pictures(tmp_path/'p.png')[name]), np.concatenate([im.permute(1,2,0).numpy() for im in want], 1))
    (tmp_path/'p.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='p.png is not the sheet'): read_pictures(tmp_path/'p.png')

# --- several runs

@pytest.fixture
def runs(tmp_path):
    "Two seeds, and one with another desensitizer and fewer arms."
    return read_runs([make_run(tmp_path/'a'), make_run(tmp_path/'b', seed=1, shift=.04), make_run(tmp_path/'c', ('Upper', 'Base'), desensitizer='noise', shift=-.1)])

def test_tables_in_latex(runs, tmp_path):
    "The numbers of the report, a line for each run and arm; whatever a run is called stays text."
    from privreid.tables import write_latex
    text = write_latex({'a_1': runs['a'], '\\input{b}': runs['b'], 'c': runs['c']}, tmp_path/'new'/'t.tex').read_text()
    assert text.count(r'\begin{table}')==text.count(r'\end{table}')==4 and not re.search(r'(?<!\\)[_&%$#](?= *[a-z\d])', text.replace(' & ', ' '))
    first = text.split(r'\end{table}')[0]
    want = runs['a'].results['arms']['Base']['settings']
    assert r'synthetic & a\_1 & Base & '+' & '.join(f"{100*want[s]['rank1']:.1f}" for s in ('raw-raw', 'raw-protected', 'protected-raw', 'protected-protected')) in first
    assert r'\textbackslash{}input\{b\}' in first and r'\input{b}' not in text
    assert first.count(' & c & ')==2
    from privreid.cli import main
    assert main(['report', str(runs['a'].folder), '--latex', str(tmp_path/'one.tex'), '--out', str(tmp_path/'r.html')])==0
    assert ' & run & ' not in (tmp_path/'one.tex').read_text() and (tmp_path/'r.html').is_file()

def test_comparison_holds_the_right_numbers(runs, tmp_path):
    page = assert_self_contained(write_comparison(runs, tmp_path/'out.html').read_text())
    table = page.tables['Rank-1, raw-protected, %']
    assert table['a']=={'Base': '40.0', 'w/o U': '45.0', 'w/ U': '52.5'}
    assert table['b']=={'Base': '44.0 +4.0', 'w/o U': '49.0 +4.0', 'w/ U': '56.5 +4.0'}
    assert table['c']=={'Base': '30.0 -10.0', 'w/o U': '–', 'w/ U': '–'}
    assert table['mean of a, b']=={'Base': '42.0 ± 2.8', 'w/o U': '47.0 ± 2.8', 'w/ U': '54.5 ± 2.8'}      # sqrt(2²+2²) = 2.83
    assert page.tables['PSNR of recovered, dB']['b']=={'w/o U': '25.04 +0.04', 'w/ U': '25.04 +0.04'}
    assert page.tables['Rank-1, raw-raw, %']['c']['Upper']=='70.0 -10.0'

def test_what_differs(runs):
    assert {k: list(v) for k,v in changed(runs).T.items()}=={'desensitizer': ['blur', 'blur', 'noise'], 'seed': ['0', '1', '0'], 'arms': [', '.join(RANK1)]*2+['Upper, Base']}

def test_every_measurement_is_in_some_table(runs):
    "Arms, settings and metrics are looked up by their names, one by one."
    tables = compare(runs)
    for name,r in runs.items():
        for arm,row in r.results['arms'].items():
            for s,found in row['settings'].items():
                for m,title in dict(rank1='Rank-1', rank5='Rank-5', mAP='mAP', mINP='mINP').items(): assert tables[f'{title}, {s}, %'].at[name, arm]==100*found[m]
    assert len(tables)==4*4+4 and sum(t.notna().sum().sum() for t in tables.values())==sum(measured(r.results).notna().sum().sum() for r in runs.values())

def test_seeds_speak_together_in_a_comparison(tmp_path):
    runs = read_runs([keep_outcomes(make_run(tmp_path/n, seed=i, shift=.02*i), i) for i,n in enumerate('abc')]+[make_run(tmp_path/'old', seed=3)])
    (group,found), = claims_over_seeds(runs).items()
    assert group=='a, b, c, old' and len(found)==21 and all(m.by.interval for c in found for m in c.margins)
    assert 'Claims, a, b, c, old' in comparison_text(runs) and '10 queries; by chance' in comparison_text(runs)
    page = assert_self_contained(write_comparison(runs, tmp_path).read_text())
    assert 'Claims, a, b, c, old' in page.text and page.text.count('by themselves:')==21
    assert claims_over_seeds({k: v for k,v in runs.items() if k=='a'})=={}

def test_only_the_seed_may_differ_in_a_mean(tmp_path):
    def groups(*folders): return same_but_seed(read_runs(folders))
    a,b = make_run(tmp_path/'a'), make_run(tmp_path/'b', seed=1, root='/elsewhere', checkpoint_every=1)
    assert groups(a, b)==[['a', 'b']]
    assert groups(a, make_run(tmp_path/'again'))==[]                                        # the same seed twice
    assert groups(a, make_run(tmp_path/'lr', seed=1, lr=.5))==[]
    assert groups(a, make_run(tmp_path/'few', ('Upper', 'Base'), seed=1))==[]
    assert groups(a, b, make_run(tmp_path/'n0', desensitizer='noise'), make_run(tmp_path/'n1', seed=5, desensitizer='noise'))==[['a', 'b'], ['n0', 'n1']]

def test_runs_of_the_same_name_are_told_apart(tmp_path):
    x,y = make_run(tmp_path/'x'/'run'), make_run(tmp_path/'y'/'run', seed=1)
    assert list(read_runs([x, y]))==[str(x), str(y)]

# --- the command

def report(capsys, *words):
    code = main(['report', *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err

def test_one_run_gets_its_report_and_several_a_comparison(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a,b = make_run(tmp_path/'a'), make_run(tmp_path/'b', seed=1, shift=.04)
    code,said,_ = report(capsys, a)
    assert code==0 and said.strip()==str(a/'report.html') and 'holds' in (a/'report.html').read_text() and not (tmp_path/'comparison.html').exists()
    code,said,_ = report(capsys, a, b)
    assert code==0 and said.strip().endswith(str(tmp_path/'comparison.html')) and (tmp_path/'comparison.html').is_file() and not (b/'report.html').exists()
    row = next(l for l in said[said.index('Rank-1, raw-protected, %'):].splitlines() if l.startswith('b '))
    assert row.split()==['b', '44.0', '(+4.0)', '49.0', '(+4.0)', '56.5', '(+4.0)'] and '42.0 ± 2.8' in said
    assert report(capsys, a, b, '--out', tmp_path/'elsewhere.html')[0]==0 and (tmp_path/'elsewhere.html').read_text()==(tmp_path/'comparison.html').read_text()

@pytest.mark.parametrize('case', ['no run', 'unfinished', 'cut', 'not a number', 'half a likeness', 'twice', 'no pictures'])
def test_a_mistake_costs_one_line_and_writes_nothing(tmp_path, capsys, one_line, case):
    a,b,out = make_run(tmp_path/'a'), make_run(tmp_path/'b', seed=1), tmp_path/'out.html'
    words,named = [a, b], b
    if case=='no run': words = [a, tmp_path]; named = tmp_path
    elif case=='unfinished': (b/'results.json').unlink()
    elif case=='cut': (b/'results.json').write_text('{"arms": {')
    elif case=='not a number': (b/'results.json').write_text(re.sub(r'"mAP": [\d.]+', '"mAP": NaN', (b/'results.json').read_text(), count=1)); named = "['mAP']"
    elif case=='half a likeness': (b/'results.json').write_text((b/'results.json').read_text().replace('"mean"', '"average"')); named = 'psnr, ssim and mean'
    elif case=='twice': words = [a, b, a]; named = 'a is named twice'
    elif case=='no pictures': words = [b]; (b/'pictures.png').write_bytes(b'')
    code,_,said = report(capsys, *words, '--out', out)
    one_line(said.strip(), 'privreid:', named)
    assert code==2 and not out.exists()

# --- trackers

def curves(folder):
    "What TensorBoard reads back: tag -> (step, value), …"
    event_accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = event_accumulator.EventAccumulator(str(folder), size_guidance=dict(scalars=0, tensors=0)).Reload()
    texts = {t: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(t)] for t in events.Tags()['tensors']}
    return {t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()['scalars']}|texts

def test_tracker_shows_a_resumed_arm_once(tmp_path):
    pytest.importorskip('tensorboard')
    def trainer(history): return SimpleNamespace(accelerator=Accelerator(log_with='tensorboard', project_dir=tmp_path/'tensorboard'), history=history)
    def epoch(e, loss): return dict(kind='epoch', epoch=e, lr=.5, supervision='desensitized', l1_ano=loss)
    killed,track = trainer([]), Track('w/ U')
    track.before_fit(killed)
    for e in (1, 2, 3): killed.history.append(epoch(e, 10.*e)); track.after_epoch(killed)          # killed: no after_fit
    resumed,track = trainer([epoch(1, 10.), epoch(2, 20.)]), Track('w/ U')
    track.before_fit(resumed)
    resumed.history += [epoch(3, 33.), dict(kind='validation', epoch=3, psnr_ano=21.), dict(kind='decision', epoch=3, action='keep', reason='because', state=dict(best_r1=.5, upgraded=False))]
    track.after_epoch(resumed); track.after_fit(resumed)
    found = curves(tmp_path/'tensorboard'/'with-u')
    assert found['losses/l1_ano']==[(1, 10.), (2, 20.), (3, 33.)] and found['losses/lr']==[(1, .5), (2, .5), (3, .5)]
    assert found['validation/psnr_ano']==[(3, 21.)] and found['upgradation/rank-1 to beat']==[(3, .5)] and found['upgradation/upgraded']==[(3, 0.)]
    assert [v for t,v in found.items() if t.startswith('upgradation/decision')]==[[(3, 'keep: because')]]
    track = Track('Upper')                                                                        # the next arm of the same process
    resumed.history = [epoch(1, 7.)]
    track.before_fit(resumed); track.after_fit(resumed)
    assert curves(tmp_path/'tensorboard'/'upper')['losses/l1_ano']==[(1, 7.)] and len(curves(tmp_path/'tensorboard'/'with-u')['losses/l1_ano'])==3

TINY = dict(people=8, test_people=4, epochs=2, batch=16, ngf=4, ndf=4, milestones=())

def test_a_tracked_run_leaves_the_curves_of_its_history(tmp_path):
    pytest.importorskip('tensorboard')
    run_experiment(preset('demo', **TINY), tmp_path/'run', ('Upper',), track='tensorboard')
    history = [json.loads(l) for l in (tmp_path/'run'/'history.jsonl').read_text().splitlines()]
    found = curves(tmp_path/'run'/'tensorboard'/'upper')['losses/reid_raw']
    assert np.allclose(found, [(h['epoch'], h['reid_raw']) for h in history]) and len(found)==2

def test_without_tensorboard(tmp_path, monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, 'tensorboard', None); monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    for name,told in (('tensorboard', "privreid[tensorboard]"), ('tensorbored', "'tensorbored'")):
        with pytest.raises(ValueError) as e: run_experiment(preset('demo', **TINY), tmp_path/'run', ('Upper',), track=name)
        one_line(e.value, told)
    assert not (tmp_path/'run').exists()
    run_experiment(preset('demo', **TINY), tmp_path/'run', ('Upper',))     # nobody asked for it
    assert not (tmp_path/'run'/'tensorboard').exists()
