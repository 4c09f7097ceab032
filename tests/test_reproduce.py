"The paper's tables and figures: plan, published numbers, pairs, files, and the command from end to end."
import json, re, shutil, stat, subprocess, sys, warnings
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
import numpy as np
import pandas as pd
import pytest, torch
import privreid
from hypothesis import given, strategies as st
from PIL import Image
from torch import nn
from privreid.arms import Arm, Experiment
from privreid.cli import main
from privreid.config import preset
from privreid.data import Split, SyntheticPedestrians, to_float, to_uint8
from privreid.evaluation import PSNR_CEILING, SETTINGS, pooled_psnr
from privreid.experiments import refuse_changes
from privreid.folder import held, write_json
from privreid.jobs import FIGURES, NEEDS, TABLES, Job, duration, expected_times, figure8, how_far, known_times, plan, timetable, train_images
from privreid.records import load_run
from privreid.rows import Study, Trained, table2
from privreid.tables import KEYS, PAPER_DATA, SAVED, as_printed, latex, paper, published, saved_recovery, side_by_side, through_file, write_table
from privreid.verification import GROUPS, best_threshold, count_pairs, draw_key, read_answers, sample_pairs, score_answers, wilson, write_sheets

TINY = ['--preset', 'demo', '--people', '12', '--test-people', '6', '--epochs', '1', '--batch', '16', '--ngf', '4', '--ndf', '4', '--validate-every', '1', '--milestones', '', '--pairs', '4', '--raters', '2']
HIDE = 'blur', 'pixelation', 'noise'

@pytest.fixture
def reproduce(capsys):
    "`privreid reproduce` in this process: exit code, stdout, stderr."
    def run(*words):
        with warnings.catch_warnings(): code = main(['reproduce', *map(str, words)])
        return code, *capsys.readouterr()
    return run

# --- plan

subset = lambda values: st.lists(st.sampled_from(values), min_size=1, unique=True).map(tuple)

@given(subset(TABLES+FIGURES), subset(HIDE), subset((0, 1, 2)), subset(('market1501', 'synthetic')), st.sampled_from(['', 'upper']))
def test_plan_trains_what_is_needed_and_nothing_twice(numbers, hide, seeds, data, weights):
    jobs = plan(preset('paper', weights=weights), numbers, {d: f'root of {d}' for d in data}, hide, seeds)
    trained = [(j.cfg.data, j.cfg.seed, j.desensitizer, a) for j in jobs for a in j.arms]
    assert len(set(trained))==len(trained) and len({j.name for j in jobs})==len(jobs)
    needed = set()
    for d,s,h,n in product(data, seeds, hide, numbers):
        if (n>5 and s!=seeds[0]) or (n==8 and h!=figure8(hide)): continue
        needed |= {(d, s, '–' if a=='Upper' else h, a) for a in NEEDS[n]}
    needed |= {(d, s, h, 'Base') for d,s,h,a in needed if a=='w/ U'}                 # its first rank-1 comes from there
    if weights=='upper': needed |= {(d, s, '–', 'Upper') for d,s in product(data, seeds)}
    assert set(trained)==needed
    assert all(j.cfg.root==str(Path(f'root of {j.cfg.data}').resolve()) for j in jobs)
    for j in jobs: assert j.upper not in jobs or jobs.index(j.upper)<=jobs.index(j)

def test_upper_is_one_job_whatever_the_desensitizer():
    one,other = (plan(preset('paper'), (1,), dict(market1501=''), (h,), (0,))[0] for h in ('noise', 'pixelation'))
    assert one==other and one.arms==('Upper',)

def finished(out, job, seconds):
    "A run folder as a training of so many seconds leaves it."
    quality,found = dict(psnr=20., ssim=.5, mean=20.), dict(rank1=.5, rank5=.5, mAP=.5, mINP=.5, queries=9, skipped=0)
    def row(a, s):
        if a=='Upper': return dict(seconds=s, settings={'raw-raw': found})
        return dict(seconds=s, settings=dict.fromkeys(SETTINGS, found), protected=quality, recovered=quality)
    write_json(asdict(job.cfg)|dict(run=dict(arms=list(job.arms), identities=9)), out/'runs'/job.name/'config.json')
    write_json(dict(arms={a: row(a, s) for a,s in zip(job.arms, seconds)}, unprotected={}, desensitized=quality), out/'runs'/job.name/'results.json')

def test_times_come_from_finished_runs_with_the_same_setup_only(tmp_path):
    cfg = preset('demo')
    jobs = plan(cfg, (5,), dict(synthetic=''), ('blur', 'noise'), (0, 1))
    assert timetable(jobs, tmp_path, {}).seconds.isna().all() and set(timetable(jobs, tmp_path, {}).state)=={'to do'}
    finished(tmp_path, jobs[0], [10.]); finished(tmp_path, jobs[3], [30.])           # Upper with two seeds
    finished(tmp_path, jobs[1], [100., 40., 7.])
    other = plan(replace(cfg, epochs=99), (5,), dict(synthetic=''), ('blur',), (7,))
    finished(tmp_path, other[0], [5000.])                                            # another set-up in the same folder
    known = known_times(cfg, tmp_path)
    table = timetable(jobs, tmp_path, known).set_index('run')
    assert known=={('synthetic', 'Upper'): 20., ('synthetic', 'Base'): 100., ('synthetic', 'w/o U'): 40., ('synthetic', 'w/ U'): 7.}
    assert table.seconds[jobs[4].name]==147
    assert np.isnan(timetable([replace(jobs[4], cfg=replace(cfg, data='market1501'))], tmp_path, known).seconds[0])
    assert table.state.tolist()==['finished', 'finished', 'to do', 'finished', 'to do', 'to do']
    write_json({}, tmp_path/'runs'/jobs[4].name/'base'/'arm.json')                   # one arm of an unfinished run
    assert timetable(jobs, tmp_path, known).seconds[4]==47
    assert expected_times(jobs, tmp_path)==known                                     # nothing is missing

def test_times_that_nobody_knows_are_measured(tmp_path):
    cfg = preset('demo', people=10, epochs=3, batch=16, ngf=4, ndf=4)
    jobs = plan(cfg, (5,), dict(synthetic=''), ('blur', 'noise'), (0,))
    times = expected_times(jobs, tmp_path)
    assert set(times)=={('synthetic', a) for a in ('Upper', 'Base', 'w/o U', 'w/ U')} and all(0<t<600 for t in times.values())
    assert train_images(cfg)==96 and len(SyntheticPedestrians(train_ids=10, size=(32,16)).load().train)==96
    finished(tmp_path, jobs[0], [1000.])
    assert expected_times(jobs, tmp_path)['synthetic', 'Upper']==1000                # what was seen counts more

def test_a_run_with_another_setup_is_refused(tmp_path, one_line):
    job = plan(preset('demo'), (5,), dict(synthetic=''), ('blur',), (0,))[1]
    finished(tmp_path, job, [1., 1., 1.])
    (tmp_path/'runs'/job.name/'results.json').unlink()
    assert how_far(job, tmp_path)=='interrupted'
    assert how_far(Job(replace(job.cfg, root='moved'), job.arms), tmp_path)=='interrupted'
    refuse_changes(tmp_path/'runs'/job.name, asdict(replace(job.cfg, root='moved')))      # and so it can go on
    with pytest.raises(ValueError) as e: how_far(Job(replace(job.cfg, epochs=3, ngf=5), job.arms), tmp_path)
    one_line(e.value, f'epochs {job.cfg.epochs}, not 3', f'ngf {job.cfg.ngf}, not 5', job.name)

@pytest.mark.parametrize('seconds, text', [(0, '0 s'), (99, '99 s'), (100, '2 min'), (5999, '100 min'), (6000, '1.7 h'), (float('nan'), 'unknown')])
def test_duration(seconds, text): assert duration(seconds)==text

# --- published numbers

def test_published_numbers_are_those_of_the_file():
    told = json.loads((Path(privreid.__file__).parent/'tables.json').read_text())
    got = {n: published(n).set_index(['data', *KEYS[n], 'metric']).published for n in KEYS}
    def same(number, cell): return np.isnan(number) if cell is None else number==cell   # null: unreadable
    for data in PAPER_DATA.values():
        for h,arms in told['table5'][data].items():
            for arm,settings in ({'Upper': arms} if h=='Upper' else arms).items():
                for s,row in settings.items():
                    for m,v in row.items(): assert got[5][data, '–' if h=='Upper' else h, arm, s, m]==v
        for h in HIDE:
            for images,row in told['table1'][data][h].items():
                for m,v in row.items(): assert same(got[1][data, h, images, 'protected-protected', m], v)
            for m,v in told['table3'][data][h].items(): assert same(got[3][data, h, 'float', m], v)
        for m,v in told['table1'][data]['raw'].items(): assert got[1][data, '–', 'raw', 'raw-raw', m]==v
        for model,images in told['table4'][data].items():
            for k,row in images.items():
                for m,v in row.items(): assert got[4].xs((data, model, f'{k}-{k}', m), level=('data', 'model', 'setting', 'metric')).tolist()==[v]
    for h,arm,s in GROUPS:
        human,rank1 = told['table2'][arm][s] if arm=='Upper' else told['table2'][h][arm][s]
        assert got[2]['Market-1501', h, arm, s, 'human']==human and got[2]['Market-1501', h, arm, s, 'rank1']==rank1

def test_doubtful_cells_of_table_1():
    "A digit that the source prints twice: one reading, and one cell that cannot be read and stands as a dash."
    cells = published(1).set_index(['data', 'desensitizer', 'metric']).sort_index().published
    assert cells['MSMT17', 'noise', 'mAP'].tolist()==[.1, .1] and cells['CUHK03', 'noise', 'rank1'].isna().all()
    seen = pd.DataFrame([dict(data='cuhk03', desensitizer='noise', images='desensitized', setting='protected-protected', metric='rank1', seed=0, value=1.)])
    row, = as_printed(side_by_side(1, seen)).to_dict('records')
    assert row['rank-1, %: here']=='1.0' and row.get('rank-1, %: paper', '–')=='–'

def test_table4_belongs_to_one_row_of_table5():
    "The two raw rows agree for one desensitizer and for no other."
    for data in PAPER_DATA.values():
        ours = paper()['table4'][data]['ours']['raw']
        same = [h for h in HIDE if all(paper()['table5'][data][h]['w/ U']['raw-raw'][m]==v for m,v in ours.items())]
        assert same==published(4).query('data==@data').desensitizer.unique().tolist()

# --- side by side, three formats

def rows(data, n_seeds, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame([dict(data=data, desensitizer=h, arm=a, setting=s, metric=m, seed=i, value=rng.uniform(0, 100))
                         for i in range(n_seeds) for h in ('blur', 'noise') for a in ('w/ U', 'Base') for s in ('raw-raw', 'protected-raw') for m in ('rank1', 'mAP')])

def test_mean_and_deviation():
    got = rows('market1501', 3)
    for _,r in side_by_side(5, got).iterrows():
        values = got[(got.desensitizer==r.desensitizer)&(got.arm==r.arm)&(got.setting==r.setting)&(got.metric==r.metric)].value
        assert np.isclose(r.obtained, np.mean(values)) and np.isclose(r['std'], np.std(values, ddof=1)) and r.seeds==3
        assert r.published==paper()['table5']['Market-1501'][r.desensitizer][r.arm][r.setting][r.metric]
    assert side_by_side(5, rows('market1501', 1))['std'].isna().all()

def test_order_is_the_papers():
    tidy = side_by_side(5, rows('market1501', 1))
    assert tidy.arm.unique().tolist()==['Base', 'w/ U'] and tidy.setting.unique().tolist()==['raw-raw', 'protected-raw'] and tidy.desensitizer.unique().tolist()==['blur', 'noise']

def test_strange_data_stands_beside_market_and_says_so(tmp_path):
    tidy = side_by_side(5, pd.concat([rows('synthetic', 1), rows('msmt17', 1)]))
    assert tidy.groupby('data').published_on.unique().map(list).to_dict()=={'synthetic': ['Market-1501'], 'msmt17': ['MSMT17']}
    for path in write_table(5, tidy, tmp_path)[1:]: assert 'for orientation' in path.read_text()
    write_table(5, tidy[tidy.data=='msmt17'], tmp_path)
    assert 'orientation' not in (tmp_path/'table5.md').read_text()

def test_rates_have_intervals_over_all_seeds():
    one = dict(data='synthetic', desensitizer='blur', arm='Base', setting='raw-protected', metric='machine', n=100)
    tidy = side_by_side(2, pd.DataFrame([one|dict(seed=0, value=70., right=70), one|dict(seed=1, value=80., right=80)]))
    assert np.allclose(tidy[['low', 'high']], np.array([wilson(150, 200)])*100)
    low,high = (100*v for v in wilson(150, 200))
    assert as_printed(tidy).iloc[0, -1]==f'75.0 ± 7.1 ({low:.1f} to {high:.1f})'

def numbers(cell): return [float(v) for v in re.findall(r'\d+\.\d+', cell)]

def test_three_formats_hold_the_same_numbers(tmp_path):
    tidy = side_by_side(5, pd.concat([rows('market1501', 3), rows('synthetic', 2, 1)]))
    csv,md,tex = write_table(5, tidy, tmp_path)
    back = pd.read_csv(csv)
    pd.testing.assert_frame_equal(back, tidy, check_dtype=False)
    md_rows = [[c.strip() for c in line.strip('|').split('|')] for line in md.read_text().splitlines() if line.startswith('|')]
    tex_rows = [[c.strip() for c in line.removesuffix(r'\\').split('&')] for line in tex.read_text().splitlines() if line.endswith(r'\\')]
    head,body = md_rows[0], md_rows[2:]
    tex_body = [r for r in tex_rows if r[0]!='data']
    assert len(tex_rows)-len(tex_body)==2                                    # a table for each data set, with its head
    assert len(body)==len(tex_body)==len(tidy)/2 and all(len(r)==len(head) for r in md_rows+tex_rows)
    for r,t in zip(body, tex_body, strict=True):
        assert r[:4]==[c.replace('--', '–') for c in t[:4]]
        for column,title in (('rank1', 'rank-1, %'), ('mAP', 'mAP, %')):
            want = tidy[(tidy[['data', 'desensitizer', 'arm', 'setting']]==r[:4]).all(axis=1)&(tidy.metric==column)].iloc[0]
            p,h = head.index(f'{title}: paper'), head.index(f'{title}: here')
            assert numbers(r[p])==numbers(t[p])==[want.published] and numbers(r[h])==numbers(t[h])==[round(want.obtained, 1), round(want['std'], 1)]

def test_latex_escapes_and_is_booktabs():
    text = latex(pd.DataFrame({'a_b, %': ['1 & 2', '–']}), '50 % # $')
    assert r'a\_b, \%' in text and r'1 \& 2' in text and r'\caption{50 \% \# \$}' in text
    assert [text.count(w) for w in (r'\toprule', r'\midrule', r'\bottomrule', r'\end{table}')]==[2, 2, 2, 2]      # a table for each data set
    assert all(part.count('{')==part.count('}') for part in text.split(r'\end{table}'))

# --- human verification

def test_wilson_solves_its_equation():
    "The interval holds the rates p with |k/n - p| <= z sqrt(p(1-p)/n): its ends are the roots."
    z = 1.959964
    for n in (1, 7, 100):
        for k in range(n+1):
            low,high = wilson(k, n)
            assert -1e-12<=low<=k/n+1e-12 and k/n-1e-12<=high<=1+1e-12 and low<high
            for p in (low, high): assert np.isclose((k/n-p)**2, z*z*p*(1-p)/n, atol=1e-12)
    assert all(np.isnan(wilson(0, 0)))

def split(people=4, cameras=3, per_camera=2, odd=()):
    rows = [(p, c) for p in range(1, people+1) for c in range(cameras) for _ in range(per_camera)]+list(odd)
    return Split(torch.zeros(len(rows), 3, 4, 2, dtype=torch.uint8), torch.tensor([p for p,_ in rows]), torch.tensor([c for _,c in rows]), ['']*len(rows))

@pytest.mark.parametrize('n, seed', [(2, 0), (20, 1), (96, 2)])
def test_pairs_are_balanced_different_and_across_cameras(n, seed):
    s = split(odd=[(0, 0), (0, 1), (-1, 2)])                    # distractors and junk are nobody's picture
    pairs = sample_pairs(s, n, seed)
    a,b = (torch.tensor(pairs[k].tolist()) for k in ('left', 'right'))
    assert len(pairs)==n and pairs.same.sum()==n//2
    assert torch.equal(s.pids[a]==s.pids[b], torch.tensor(pairs.same.tolist()))
    assert (s.cams[a]!=s.cams[b]).all() and (s.pids[a]>0).all() and (s.pids[b]>0).all()
    assert len({frozenset(p) for p in zip(a.tolist(), b.tolist())})==n
    assert pairs.equals(sample_pairs(s, n, seed)) and (n==2 or not pairs.equals(sample_pairs(s, n, seed+1)))

def test_every_pair_can_be_drawn():
    "As many as there are: 4 people x 3 camera pairs x 4 = 48 of one person. All of them, then, and not one more."
    s = split()
    assert count_pairs(s)==96 and sample_pairs(s, 96).same.sum()==48
    with pytest.raises(ValueError, match='98 pairs'): sample_pairs(s, 98)
    few = split(people=2, cameras=2, per_camera=1)              # two pairs of one person, two of two people
    assert count_pairs(few)==4 and len(sample_pairs(few, 4))==4
    assert count_pairs(split(cameras=1))==0 and count_pairs(split(people=1))==0

def test_key_and_sheets(tmp_path):
    key = draw_key(split(people=12, cameras=4), pairs=20, raters=10)
    assert key.groupby('group').agg(n=('pair', 'nunique'), same=('same', 'sum')).drop_duplicates().values.tolist()==[[20, 10]]
    assert key.groupby(['group', 'rater']).same.agg(['size', 'sum']).drop_duplicates().values.tolist()==[[2, 1]]
    assert len({frozenset(p) for p in zip(key.left, key.right)})==13*20
    assert [tuple(g) for g in key[['desensitizer', 'arm', 'setting']].drop_duplicates().values]==GROUPS
    assert 5<key[key.group==1].same.values[:10].sum()+5<15 and key.groupby('group').same.first().nunique()==2   # the order tells nothing
    write_sheets(tmp_path, key)
    sheets = pd.concat([pd.read_csv(p, keep_default_na=False) for p in tmp_path.glob('sheet-*.csv')])
    assert list(sheets)==['group', 'pair', 'rater', 'left', 'right', 'answer'] and len(sheets)==len(key) and set(sheets.answer)=={''}
    assert list(pd.read_csv(tmp_path/'key.csv'))==['group', 'pair', 'rater', 'desensitizer', 'arm', 'setting', 'left', 'right', 'same']
    assert sheets.left.nunique()==len(sheets)

def test_scores_count_what_was_answered(tmp_path, one_line):
    key = draw_key(split(people=12, cameras=4), pairs=10, raters=2)
    write_sheets(tmp_path, key)
    for path in tmp_path.glob('sheet-*.csv'):
        sheet = pd.read_csv(path, keep_default_na=False).merge(key[['group', 'pair', 'same']], on=['group', 'pair'])
        truth = np.where(sheet.same, 'Same ', 'different')                       # people type as they like
        sheet['answer'] = np.select([sheet.group==1, sheet.group==2, sheet.pair<=5], [truth, np.where(sheet.same, 'different', 'same'), truth], '')
        sheet.drop(columns='same').to_csv(path, index=False)
    scores = score_answers(read_answers(tmp_path), key)
    assert scores.loc[1, ['right', 'n', 'unanswered']].tolist()==[10, 10, 0] and scores.loc[2, ['right', 'n', 'unanswered']].tolist()==[0, 10, 0]
    assert scores.loc[3:, 'n'].tolist()==[5]*11 and scores.loc[3:, 'unanswered'].tolist()==[5]*11
    assert np.isclose(scores.loc[1, 'low'], wilson(10, 10)[0])
    (tmp_path/'sheet-01.csv').write_text('group,pair,answer\n1,1,same\n1,2,maybe\n')
    with pytest.raises(ValueError) as e: read_answers(tmp_path)
    one_line(e.value, 'sheet-01.csv', 'line 3', 'maybe')

def test_answers_to_another_study_are_found_in_their_sheet(tmp_path, one_line):
    (tmp_path/'sheet-01.csv').write_text('group,pair,answer\n1,1,same\n')
    (tmp_path/'sheet-02.csv').write_text('group,pair,answer\n2,99,same\n')
    key = pd.DataFrame([dict(group=1, pair=1, same=True)])
    with pytest.raises(ValueError) as e: score_answers(read_answers(tmp_path), key)
    one_line(e.value, tmp_path/'sheet-02.csv', 'pair 99 of group 2')
    (tmp_path/'sheet-02.csv').write_text('group,pair,answer\n1,2,\x1b[31myes\n')
    with pytest.raises(ValueError) as e: read_answers(tmp_path)
    one_line(e.value, 'sheet-02.csv', 'line 2', r"'\x1b[31myes'")
    assert str(e.value).isprintable()

@pytest.mark.parametrize('text, named', [('', "column 'group' is missing"), ('group,pair,answer\n\n1,x,same\n', "line 3: the pair 'x'"), ('group,pair,answer\n,2,same\n', "line 2: the group ''"),
                                         ('group,pair,answer\n2,1,same\n', 'pair 1 of group 2 is answered twice (sheet-01.csv, sheet-02.csv)')])
def test_sheets_that_cannot_count(tmp_path, one_line, text, named):
    (tmp_path/'sheet-01.csv').write_text('group,pair,rater,answer\n1,1,1,same\n,,,\n\n2,1,1,different\n')
    assert read_answers(tmp_path).drop(columns='sheet').values.tolist()==[[1, 1, 'same'], [2, 1, 'different']]     # empty rows are a spreadsheet's habit
    (tmp_path/'sheet-02.csv').write_text(text)
    with pytest.raises(ValueError) as e: read_answers(tmp_path)
    one_line(e.value, tmp_path, named)

@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=25))
def test_best_threshold_is_best(told):
    distance,same = torch.tensor([float(d) for d,_ in told]), torch.tensor([s for _,s in told])
    def right(t): return int(((distance<t)==same).sum())
    assert right(best_threshold(distance, same))==max(right(t) for t in np.arange(-.5, 8))

# --- files

@pytest.mark.parametrize('kind', [k for k in SAVED if k!='float'])
def test_files_are_those_that_pillow_writes(tmp_path, kind):
    x = to_float(SyntheticPedestrians(size=(64,32)).split([(1, 0, 0)]).images)*.9
    path = tmp_path/'x'
    Image.fromarray(to_uint8(x)[0].permute(1,2,0).numpy()).save(path, **SAVED[kind])
    want = to_float(torch.from_numpy(np.array(Image.open(path))).permute(2,0,1))[None]
    assert torch.equal(through_file(x, **SAVED[kind]), want)

def test_recovery_from_files_loses_what_the_file_loses():
    "With networks that change nothing, the loss is the file's alone."
    exp = Experiment(preset('demo', people=8, test_people=3, height=128, width=64))
    arm = Arm('w/ U', nn.Identity(), nn.Identity(), nn.Identity())
    found = saved_recovery(exp, arm)
    assert list(found)==list(SAVED) and found['float']['psnr']==PSNR_CEILING and found['png']['psnr']>=100-1e-6     # the test images are 8-bit
    order = [found[k]['psnr'] for k in ('png', 'jpeg 95', 'jpeg 90', 'jpeg 75')]
    assert order==sorted(order, reverse=True) and order[3]<order[1]-1
    x = to_float(exp.data.gallery.images)
    assert np.isclose(found['jpeg 75']['psnr'], pooled_psnr(through_file(x, **SAVED['jpeg 75']), x), atol=1e-3)

# --- the command

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp('reproduce')/'out'
    words = ['--table', 'all', '--figure', '6', '7', '8', '10', '--desensitizer', 'blur', '--out', out, *TINY]
    done = subprocess.run([Path(sys.executable).parent/'privreid', 'reproduce', *map(str, words)], capture_output=True, text=True, timeout=900)
    assert done.returncode==0, done.stderr[-3000:]
    return out, done.stdout

@pytest.mark.full
def test_all_tables_and_figures_are_there(made):
    out,said = made
    assert {p.name for p in (out/'tables').iterdir()}=={f'table{n}.{k}' for n in TABLES for k in ('csv', 'md', 'tex')}
    assert {p.name for p in (out/'figures').iterdir()}=={f'figure{n}-synthetic.{k}' for n in (6, 7, 8, 10) for k in ('png', 'svg')}
    assert 'about ' in said and all(str(p) in said for p in [*(out/'tables').iterdir(), *(out/'figures').iterdir()])
    for p in (out/'figures').glob('*.png'): assert Image.open(p).size[0]>500
    assert 'licence' not in said

@pytest.mark.full
def test_tables_hold_what_the_runs_measured(made):
    out,_ = made
    results = {n: json.loads((out/'runs'/f'synthetic-seed0-{n}'/'results.json').read_text()) for n in ('upper', 'blur')}
    five = pd.read_csv(out/'tables'/'table5.csv').set_index(['desensitizer', 'arm', 'setting', 'metric']).obtained
    for arm,h in (('Upper', '–'), ('Base', 'blur'), ('w/o U', 'blur'), ('w/ U', 'blur')):
        for s,found in results['upper' if arm=='Upper' else 'blur']['arms'][arm]['settings'].items():
            for m in ('rank1', 'rank5', 'mAP', 'mINP'): assert np.isclose(five[h, arm, s, m], 100*found[m])
    assert len(five)==4*(3*4+1)
    three = pd.read_csv(out/'tables'/'table3.csv').set_index(['saved', 'metric']).obtained
    assert np.isclose(three['float', 'psnr'], results['blur']['arms']['w/ U']['recovered']['psnr'], atol=1e-4)
    assert three['png', 'psnr']!=three['float', 'psnr'] and three['jpeg 75', 'psnr']!=three['jpeg 95', 'psnr']
    four = pd.read_csv(out/'tables'/'table4.csv').set_index(['model', 'setting', 'metric']).obtained
    assert four['ours', 'raw-raw', 'rank1']==five['blur', 'w/ U', 'raw-raw', 'rank1'] and four['AGW', 'raw-raw', 'mAP']==five['–', 'Upper', 'raw-raw', 'mAP']
    assert ('AGW', 'recovered-recovered', 'mAP') in four
    one = pd.read_csv(out/'tables'/'table1.csv')
    assert set(zip(one.images, one.setting))=={('raw', 'raw-raw'), *product(('desensitized', 'anonymized'), ('raw-protected', 'protected-raw', 'protected-protected'))}
    two = pd.read_csv(out/'tables'/'table2.csv')
    assert two.groupby('metric').size().to_dict()=={'human': 5, 'machine': 5, 'rank1': 5} and two[two.metric=='human'].obtained.isna().all()
    assert two[two.metric=='machine'].obtained.between(0, 100).all() and (two[two.metric=='machine'].obtained%25==0).all()

@pytest.mark.full
def test_sheets_are_written_and_answers_go_into_the_table(made, reproduce):
    out,_ = made
    folder, = (out/'verification').iterdir()
    sheets = sorted(folder.glob('sheet-*.csv'))
    assert len(sheets)==2 and len(list((folder/'images').iterdir()))==2*4*5
    key = pd.read_csv(folder/'key.csv')
    for p in sheets:
        sheet = pd.read_csv(p)
        assert all((folder/f).is_file() for f in [*sheet.left, *sheet.right])
        sheet.merge(key[['group', 'pair', 'same']]).assign(answer=lambda d: np.where(d.same, 'same', 'different')).drop(columns='same').to_csv(p, index=False)
    assert reproduce('--table', '2', '--desensitizer', 'blur', '--out', out, *TINY)[0]==0
    two = pd.read_csv(out/'tables'/'table2.csv').query("metric=='human'")
    assert two.obtained.tolist()==[100.]*5 and np.allclose(two.low, 100*wilson(4, 4)[0])

@pytest.mark.full
def test_answers_belong_to_the_seed_that_was_shown(made):
    "Another first seed is another study, and the interval counts the answers of one seed only: seeds share pairs."
    out,_ = made
    assert [p.name for p in (out/'verification').iterdir()]==['synthetic-blur-seed0-4-pairs-2-raters']
    job = plan(load_run(out/'runs'/'synthetic-seed0-blur')[0], (2,), dict(synthetic=''), ('blur',), (0,))[1]
    study = Study(next((out/'verification').iterdir()), 0, 4, 2)
    assert [m['machine']['n'] for _,m in table2(Trained(job, out), study)]==[4]*4
    assert [m['machine']['n'] for _,m in table2(Trained(job, out), replace(study, seed=1))]==[0]*4

@pytest.mark.full
def test_again_trains_nothing_and_measures_nothing(made, reproduce):
    out,_ = made
    before = {p: p.stat().st_mtime_ns for p in (out/'runs').rglob('*')}
    code,said,_ = reproduce('--table', '1', '3', '4', '5', '--desensitizer', 'blur', '--out', out, *TINY)
    assert code==0 and '0 to train' in said
    assert {p: p.stat().st_mtime_ns for p in (out/'runs').rglob('*')}==before

@pytest.mark.full
def test_an_interrupted_run_goes_on(made, reproduce):
    out,_ = made
    run = out/'runs'/'synthetic-seed0-blur'
    once,upper = json.loads((run/'results.json').read_text())['arms']['w/o U']['settings'], (out/'runs'/'synthetic-seed0-upper'/'results.json').stat().st_mtime_ns
    for name in ('results.json', 'report.html', 'measurements.json'): (run/name).unlink(missing_ok=True)
    code,said,_ = reproduce('--table', '5', '--desensitizer', 'blur', '--out', out, *TINY)
    assert code==0 and '1 to train' in said and 'interrupted' in said
    assert json.loads((run/'results.json').read_text())['arms']['w/o U']['settings']==once
    assert (out/'runs'/'synthetic-seed0-upper'/'results.json').stat().st_mtime_ns==upper

@pytest.mark.full
def test_an_arm_that_a_later_table_needs_is_trained_beside_the_others(made, reproduce, tmp_path):
    out = tmp_path/'out'
    shutil.copytree(made[0]/'runs'/'synthetic-seed0-upper', out/'runs'/'synthetic-seed0-upper')
    def ask(n): return reproduce('--table', n, '--desensitizer', 'blur', '--out', out, *TINY)
    run = out/'runs'/'synthetic-seed0-blur'
    assert ask(3)[0]==0 and not (run/'without-u').exists()
    before,once = {p: p.stat().st_mtime_ns for p in run.glob('*/*.safetensors')}, json.loads((run/'results.json').read_text())['arms']
    code,said,_ = ask(5)
    assert code==0 and '1 to train' in said and 'interrupted' in said
    assert len(before)==4 and {p: p.stat().st_mtime_ns for p in before}==before
    assert list(load_run(run)[1]['arms'])==['Base', 'w/o U', 'w/ U']
    now = json.loads((run/'results.json').read_text())['arms']
    assert set(now)=={'Base', 'w/o U', 'w/ U'} and all(now[a]['settings']==row['settings'] for a,row in once.items())
    assert ask(3)[1].count('0 to train')

@pytest.mark.full
def test_the_folder_is_its_owners_and_held_while_it_is_worked_on(made, reproduce, one_line):
    out,_ = made
    assert stat.S_IMODE(out.stat().st_mode)==0o700
    ask = ['--table', '5', '--desensitizer', 'blur', '--out', out, *TINY]
    with held(out): code,_,err = reproduce(*ask)
    assert code==2
    one_line(err.strip(), out, 'in use by process')
    with held(out): assert reproduce(*ask, '--dry-run')[0]==0      # looking is free

@pytest.mark.full
def test_a_damaged_measurement_is_named(made, reproduce, one_line):
    out,_ = made
    path = out/'runs'/'synthetic-seed0-blur'/'measurements.json'
    whole = path.read_text() if path.is_file() else '{}'
    for text in ('{', '[]', json.dumps(dict(recovered_reid={'ours': 3})), json.dumps(dict(recovered_reid={'ours': {'raw-raw': {}}}))):
        path.write_text(text)
        code,_,err = reproduce('--table', '4', '--desensitizer', 'blur', '--out', out, *TINY)
        assert code==2
        one_line(err.strip(), path)
    path.write_text(whole)

GROUP = 'Base, raw-protected'

@pytest.mark.parametrize('answers', [{GROUP: dict(right=0, n=0)}, {GROUP: dict(right=-1, n=2)}, {GROUP: dict(right=3, n=2)}, {GROUP: dict(right=1, n=2, threshold=float('inf'))}, {'Base, raw-protectgd': dict(right=1, n=2)},
                                     {'Base': dict(right=1, n=2)}, {'a\nb': dict(right=1, n=2)}, {GROUP: 3}, 3], ids=str)
def test_answers_of_a_machine_are_looked_at(tmp_path, one_line, answers):
    job = Job(preset('demo'), ('Base', 'w/ U'))
    path = tmp_path/'runs'/job.name/'measurements.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({'machine rater, 2 pairs': answers}))
    for name in ('machine rater, 2 pairs', 'another'):   # a new measurement does not write the damage down again
        with pytest.raises(ValueError) as e: Trained(job, tmp_path).measured(name, dict)
        one_line(e.value, path, 'machine rater, 2 pairs')
    path.write_text(json.dumps({'machine rater, 2 pairs': {GROUP: dict(right=2, n=2, threshold=-.5)}}))
    assert Trained(job, tmp_path).measured('machine rater, 2 pairs', dict)[GROUP]['right']==2

def test_data_sets_are_looked_at_before_the_first_is_trained_on(tmp_path, reproduce, tiny_market, one_line):
    "A good one and one whose test one camera has seen: nothing is trained, nothing is left."
    good,bad = tiny_market(name='good', oddities=False), tiny_market(name='bad', oddities=False)
    for folder in ('query', 'bounding_box_test'):
        for p in (bad/folder).glob('*_c2*'): p.unlink()
    rows = [f'{p.relative_to(bad)},{p.name[:4]},{p.name[6]},{part}' for part,folder in (('train', 'bounding_box_train'), ('query', 'query'), ('gallery', 'bounding_box_test')) for p in sorted((bad/folder).glob('*.jpg'))]
    (bad/'mine.csv').write_text('\n'.join(['path,identity,camera,split', *rows]))
    code,_,err = reproduce('--table', '5', '--desensitizer', 'blur', '--data', f'market1501={good}', f'folder={bad/"mine.csv"}', '--out', tmp_path/'out', *TINY, '--weights', '')
    assert code==2 and not (tmp_path/'out').exists()
    one_line(err.strip().splitlines()[-1], 'camera')

@pytest.mark.full
def test_reprs_fit_a_line(made):
    job = plan(load_run(made[0]/'runs'/'synthetic-seed0-blur')[0], (5,), dict(synthetic=''), ('blur',), (0,))[1]
    assert repr(job)=='Job synthetic-seed0-blur: Base, w/o U, w/ U'
    assert repr(Trained(job, Path('out')))==f"Trained synthetic-seed0-blur in {Path('out')/'runs'/job.name}"

def test_dry_run_trains_nothing(tmp_path, reproduce, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code,said,_ = reproduce('--preset', 'demo', '--seeds', 0, 1, '--dry-run')
    assert code==0 and 'synthetic-seed1-noise' in said and '8 to train (about ' in said and 'unknown' not in said
    assert not list(tmp_path.iterdir())

def test_figure9_without_scikit_learn(tmp_path, reproduce, monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    code,_,said = reproduce('--figure', '9', '--out', tmp_path/'out', *TINY)
    one_line(said.strip(), 'scikit-learn', 'privreid[figures]')
    assert code==2 and not (tmp_path/'out').exists()

@pytest.mark.parametrize('words, named', [(['--table', '6'], "table '6'"), (['--device', 'gpu'], "'gpu'"), (['--data', 'folder=a', 'folder=b'], 'folder twice'), (['--table', 'x'], "table 'x'"), (['--figure', '5'], "figure '5'"), (['--desensitizer', 'fog'], "'fog'"), (['--pairs', '3'], '3 pairs'), (['--table', '2', '--pairs', '100'], '1300 pairs'), (['--raters', '0'], '0 raters'),
                                          (['--data', 'market1501=/no/folder'], '/no/folder'), (['--data', 'nowhere'], 'nowhere'), (['--data', 'market1501'], 'root'), (['--preset', 'dem'], "'dem'"), (['--batch', '30'], 'batch 30')])
def test_a_mistake_costs_one_line_before_anything_is_trained(tmp_path, reproduce, one_line, words, named):
    code,_,said = reproduce('--out', tmp_path/'out', *TINY, *words)
    one_line(said.strip(), named)
    assert code==2 and not (tmp_path/'out').exists()

@pytest.mark.full
def test_real_people_come_with_a_warning(tmp_path, reproduce, tiny_market):
    code,said,_ = reproduce('--figure', '7', '--data', f'market1501={tiny_market(train=6)}', '--desensitizer', 'blur', '--out', tmp_path/'out', *TINY, '--weights', '')
    assert code==0 and 'people of market1501' in said and 'licence' in said
    assert (tmp_path/'out'/'figures'/'figure7-market1501.png').is_file()
