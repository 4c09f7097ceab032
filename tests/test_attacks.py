"Each attack beats chance where it must and fails where nothing is left; nobody learns from his victims, and nobody reaches for a key that he does not hold."
import json, os, shutil, stat
from dataclasses import replace
from functools import cache
from pathlib import Path
import numpy as np
import pytest, torch
from torch import nn
from privreid.attacks import APART, ATTACKS, attack_run, chosen_attacks, scene_of
from privreid.config import preset
from privreid.data import Split, SyntheticPedestrians, to_float, to_uint8
from privreid.desensitize import Blur, Desensitizer, GaussianNoise, Pixelate
from privreid.evaluation import psnr
from privreid.experiments import run_experiment
from privreid.inverses import from_pairs, from_pictures, learn_inverse, linear_inverse, undone
from privreid.leaks import auc, probe, recipe_of, roc, similarity_gaps, told_apart, tuned_probe
from privreid.records import read_pictures
from privreid.report import write_report
from privreid.scores import attack_words, load_attacks
from privreid.threats import HOLDINGS, OWNER, THREATS, Effort, Hand, NotHeld, Scene, as_files, painted_scene, refuse_shared, scale_of

TINY = dict(people=12, test_people=6, epochs=1, batch=16, ngf=4, ndf=4, milestones=(), weights='')
FAST = Effort(steps=3, counts=(8,), epochs=1, references=1)

@cache
def people(first, n, size=(64,32), seed=3, shots=2, cameras=3): return SyntheticPedestrians(size=size, seed=seed).split([(p, c, s) for p in range(first, first+n) for c in range(cameras) for s in range(shots)])

class Eyes(nn.Module):
    "Sees pixels as they are: recognises what is equal or alike."
    def forward(self, x): return nn.functional.normalize(x.flatten(1)-x.mean((1, 2, 3))[:,None], dim=1)

def toy(protect, size=(32,32), n=90, **have):
    "Twelve people, each picture twice under two cameras: whoever recovers it finds it."
    some = people(1, 12, size, cameras=2)
    query,gallery = Split(some.images, some.pids, some.cams, some.names), Split(some.images, some.pids, 1+some.cams%2, some.names)
    return Scene(query, gallery, protect, Eyes(), Blur(), replace(preset('demo'), height=size[0], width=size[1]), others=lambda: people(100, n, size), **have)

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('attacks')/'run'
    run_experiment(preset('demo', **TINY), folder, ('Upper', 'w/o U'))
    return folder

@pytest.fixture(scope='module')
def attacked(run): return attack_run(run, 'all', people=8, effort=FAST, device='cpu')

# --- what must be broken, and what cannot be

def best(scene, attack, effort): return {t.name: scene.judge(t)[1][0].mean() for t in ATTACKS[attack](Hand(scene, THREATS[attack]), effort)}

def test_an_anonymizer_that_does_nothing_is_inverted_perfectly():
    scene = toy(nn.Identity())
    linear = list(from_pairs(Hand(scene, THREATS['pairs']), FAST))[-1]
    assert (linear.made.int()-scene.gallery.images.int()).abs().max()<=1 and scene.judge(linear)[1][0].mean()==1

def test_of_a_constant_picture_nothing_is_recovered():
    scene = toy(lambda x: torch.zeros_like(x))
    for t in from_pairs(Hand(scene, THREATS['pairs']), FAST):
        assert (t.made==t.made[:1]).all() and scene.judge(t)[1][0].mean()<=2/12, t.name

def test_a_shuffle_of_pixels_is_undone_by_who_has_pairs_and_hides_from_who_has_none():
    order = torch.randperm(32*32, generator=torch.Generator().manual_seed(0))
    def shuffle(x): return x.flatten(2)[...,order].view_as(x)
    scene = toy(shuffle, street=lambda: people(300, 8, (32,32), seed=8))
    *_,linear = from_pairs(Hand(scene, THREATS['pairs']), FAST)
    assert linear.name.startswith('linear') and (linear.made.int()-scene.gallery.images.int()).abs().max()<=2 and scene.judge(linear)[1][0].mean()==1
    for t in from_pictures(Hand(scene, THREATS['pictures']), FAST): assert scene.judge(t)[1][0].mean()<.5, t.name

def test_more_pairs_do_not_harm_a_linear_inverse():
    raw,blur = people(100, 90, (32,32)).images, Blur(12)
    seen,test = as_files(blur, raw), people(1, 12, (32,32), cameras=2).images
    def found(n): return psnr(linear_inverse(seen[:n], raw[:n])(to_float(as_files(blur, test))), to_float(test)).mean().item()
    few,some,many = (found(n) for n in (8, 60, 540))
    assert few<some+.1<many+.2 and many>few+1

@pytest.mark.full
def test_more_pairs_do_not_harm_a_trained_inverse():
    raw,blur = people(1, 48).images, Blur(6)
    seen,test = as_files(blur, raw), people(200, 8).images
    def found(n): return psnr(to_float(as_files(learn_inverse(seen[:n], raw[:n], Effort(steps=150), 8), as_files(blur, test))), to_float(test)).mean().item()
    few,many = found(8), found(288)
    assert many>few+.2

@pytest.mark.parametrize('method', [Blur(), Pixelate(), GaussianNoise(.2)], ids=['blur', 'pixelation', 'noise'])
def test_undoing_without_a_network(method):
    raw = people(1, 4).images
    what,made = undone(as_files(method, raw), method)
    assert made.dtype==torch.uint8 and made.shape==raw.shape and what
    if isinstance(method, (GaussianNoise, Pixelate)): assert psnr(to_float(made), to_float(raw)).mean()>psnr(to_float(as_files(method, raw)), to_float(raw)).mean()

def test_what_nobody_can_undo_is_named():
    class Odd(Desensitizer):
        def hide(self, x): return x
    with pytest.raises(NotHeld, match='Odd'): undone(people(1, 1).images, Odd(1))

# --- who learns from whom

def test_nobody_learns_from_his_victims(run):
    scene = scene_of(run, people=8, device='cpu')
    victims = {im.numpy().tobytes() for s in (scene.query, scene.gallery) for im in s.images}
    known = set(scene.query.pids.tolist()+scene.gallery.pids.tolist())
    suspects = scene.fetch('suspects')
    members = set(suspects['members'].pids.tolist())
    for item in ('street', 'others', 'references'):
        theirs = scene.fetch(item)
        assert not set(theirs.pids.tolist())&known and not any(im.numpy().tobytes() in victims for im in theirs.images), item
        assert not set(theirs.pids.tolist())&members and not set(theirs.pids.tolist())&set(suspects['others'].pids.tolist()), item
    assert not members&set(suspects['others'].pids.tolist()) and not members&known and not set(suspects['others'].pids.tolist())&known
    street,others = scene.fetch('street'), scene.fetch('others')
    assert not {im.numpy().tobytes() for im in street.images}&{im.numpy().tobytes() for im in others.images}

def test_a_shared_face_is_refused(one_line):
    victims = people(1, 4)
    with pytest.raises(ValueError) as e: refuse_shared(people(4, 2), (victims,))
    one_line(e.value, '1 identities', '6 pictures')
    renamed = Split(victims.images[:2], [900, 901], [1, 1], ['a', 'b'])       # by their pictures, too
    with pytest.raises(ValueError, match='0 identities and 2 pictures'): refuse_shared(renamed, (victims,))
    scene = toy(Blur(), street=lambda: people(3, 2, (32,32)))
    with pytest.raises(ValueError, match='learns from his victims'): list(from_pictures(Hand(scene, THREATS['pictures']), FAST))

@pytest.mark.full
def test_real_people_are_split_in_the_same_way(tiny_market, tmp_path):
    root = tiny_market(train=8, test=4, cameras=2)
    run_experiment(preset('demo', **(TINY|dict(data='market1501', root=str(root), batch=8))), tmp_path/'run', ('Upper', 'w/o U'))
    found = attack_run(tmp_path/'run', ('pairs', 'membership', 'attributes'), effort=FAST, device='cpu')
    assert 'attributes' in found['skipped'] and found['membership'] and [r for r in found['rows'] if r['attack']=='pairs']

# --- who holds what

def test_a_hand_reaches_no_further_than_its_threat_model(one_line):
    scene = toy(Blur(), key=lambda: pytest.fail('somebody has taken the key'), reid=Eyes(), anonymizer=Blur())
    for threat in THREATS.values():
        assert 'key' not in threat.holds and set(threat.holds)<=set(HOLDINGS)
        for item in set(HOLDINGS)-set(threat.holds):
            with pytest.raises(PermissionError) as e: Hand(scene, threat)(item)
            one_line(e.value, threat.name)
    assert 'key' in OWNER.holds and set(ATTACKS)==set(THREATS)
    assert [t.name for t,h in ((t, t.holds) for t in THREATS.values()) if 'reid' in h]==['authorised', 'membership']
    assert [t.name for t in THREATS.values() if 'anonymizer' in t.holds]==['queries']

def without_time(found): return [{k: v for k,v in r.items() if k not in ('seconds', 'over_key')} for r in found['rows'] if r['name']!='recovered with the key']

@pytest.mark.full
@pytest.mark.parametrize('how', ['gone', 'garbage'])
def test_no_attack_reads_the_key(run, attacked, tmp_path, how):
    "The same numbers without it: this is also the test of seeds."
    other = Path(shutil.copytree(run, tmp_path/'run', ignore=shutil.ignore_patterns('attacks.*')))
    key = other/'without-u'/'recovery.safetensors'
    key.unlink()
    if how=='garbage': key.mkdir()      # whoever opens it, fails
    names = [a for a in ATTACKS if a!='keys'] if how=='gone' else ['pictures', 'queries', 'authorised']
    found = attack_run(other, names, people=8, effort=FAST, device='cpu')
    assert without_time(found)==[r for r in without_time(attacked) if r['attack'] in ('scale', *names)]
    assert not [r for r in found['rows'] if r['name']=='recovered with the key'] and all(r['over_key'] is None for r in found['rows'])
    if how=='gone': assert found['membership']==attacked['membership'] and found['attributes']==attacked['attributes']

def test_a_scene_without_a_run_takes_an_anonymizer_and_what_is_held():
    scene = painted_scene(torch.zeros_like, anonymizer=nn.Identity())
    assert len(scene.have['published'].unique())==1 and isinstance(scene.fetch('anonymizer'), nn.Identity)
    assert set(scene.query.pids.tolist())==set(scene.gallery.pids.tolist()) and not set(scene.query.names)&set(scene.gallery.names)

def test_another_seed_is_another_attacker():
    raw = people(1, 8).images
    nets = [learn_inverse(raw, raw, replace(FAST, seed=s), 4) for s in (0, 0, 1)]
    before = torch.random.get_rng_state()
    learn_inverse(raw, raw, FAST, 4)
    a,b,c = (next(n.parameters()) for n in nets)
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(before, torch.random.get_rng_state())

# --- membership

def test_a_curve_that_can_be_measured():
    whose,rng = np.repeat(np.arange(50), 4), np.random.default_rng(0)
    others = rng.normal(0, 1, 200)
    perfect,nothing = told_apart(others+10, others, whose, whose), told_apart(others, others, whose, whose)
    assert perfect['auc']==1 and perfect['true']==1 and abs(nothing['auc']-.5)<1e-9 and nothing['auc_interval'][0]<=.5<=nothing['auc_interval'][1]
    for found in (perfect, nothing):
        assert min(f for f,_ in found['roc'])>=1/200-1e-12 and found['false']>=1/200
        assert found['roc']==sorted(found['roc'])
    few = told_apart(others[:20]+10, others[:20], whose[:20], whose[:20])   # 1 % cannot be measured with 20
    assert few['false']==1/20
    same = told_apart(np.ones(8), np.ones(8), whose[:8], whose[:8])
    assert same['auc']==.5 and same['false']==1 and roc(np.ones(3), np.ones(3)).tolist()==[[1, 1]]
    assert auc(np.array([2., 3]), np.array([0., 1]), np.zeros(2), np.zeros(2))==(1., None)   # one person says nothing

def test_the_gap_by_hand():
    f = nn.functional.normalize(torch.tensor([[1., 0], [1, 0], [0, 1], [1, 1]]), dim=1)
    found = similarity_gaps(f, torch.tensor([1, 1, 2, 2]), torch.tensor([1, 2, 1, 2]), near=1)
    assert np.allclose(found, [1-.5**.5, 1-.5**.5, .5**.5-0, .5**.5-.5**.5], atol=1e-6)

# --- attributes

def test_a_probe_reads_what_is_there_and_nothing_else():
    g = torch.Generator().manual_seed(0)
    y,whose = torch.arange(400)%2, torch.arange(400)//4
    x = torch.randn(400, 6, generator=g)
    x[:,2] += 4*y
    assert (probe(x[:300], y[:300], x[300:])==y[300:]).float().mean()>.95 and (tuned_probe(x[:300], y[:300], whose[:300], x[300:])==y[300:]).float().mean()>.95
    blind = torch.randn(400, 6, generator=g)
    assert abs((probe(blind[:300], y[:300], blind[300:])==y[300:]).float().mean()-.5)<.15
    few = (torch.arange(400)%10==0).long()                     # each class weighs the same
    x[:,3] += 4*few
    assert (probe(x[:300], few[:300], x[300:])[few[300:]==1]==1).float().mean()>.9

def test_the_recipe_is_what_was_painted():
    some = people(1, 40, seed=5)
    wears = recipe_of(some.pids, 5)
    garment = to_float(some.images)[:,:,20:30,12:20].mean((1, 2, 3))
    assert garment[wears['light']==1].mean()>garment[wears['light']==0].mean()+.2 and set(wears)=={'light', 'bag', 'hat'}

# --- a run, its file and its report

def test_the_suite_on_a_run(run, attacked):
    names = {r['attack'] for r in attacked['rows']}
    assert names=={'scale', *ATTACKS}-{'keys', *APART} and list(attacked['skipped'])==['keys'] and attacked['membership'] and attacked['attributes']
    scale = {r['name']: r for r in attacked['rows'] if r['attack']=='scale'}
    assert list(scale)==['raw', 'desensitized', 'protected', 'recovered with the key'] and scale['raw']['psnr']==100 and scale['protected']['over_protected'][0]==0
    for r in attacked['rows']:
        assert r['rank1_interval'][0]-1e-9<=r['rank1']<=r['rank1_interval'][1]+1e-9 and r['seconds']>=0
        assert (r['psnr'] is None)==(r['ssim'] is None)
    assert {r['queries'] for r in attacked['rows'] if r['attack']=='queries'}=={8, 96} and {r['pairs'] for r in attacked['rows'] if r['attack']=='pairs'}=={8, 96}
    best = attacked['headline']['best']
    assert best['rank1']==max(r['rank1'] for r in attacked['rows'] if r['attack']!='scale') and 0<=attacked['utility']<=1
    assert json.loads((run/'attacks.json').read_text())==dict(format=1, arms={'w/o U': attacked})==load_attacks(run)
    assert 'recovered with the key' in read_pictures(run/'attacks.png') and (os.name=='nt' or stat.S_IMODE((run/'attacks.png').stat().st_mode)==0o600)

@pytest.mark.full
def test_one_attack_after_the_other(run, attacked, tmp_path):
    other = Path(shutil.copytree(run, tmp_path/'run', ignore=shutil.ignore_patterns('attacks.*')))
    first = attack_run(other, 'queries', people=8, effort=FAST, device='cpu')
    both = attack_run(other, ('authorised',), people=8, effort=FAST, device='cpu')
    assert [r['attack'] for r in both['rows'] if r['attack']!='scale']==['queries']*2+['authorised'] and [r for r in both['rows'] if r['attack']=='queries']==[r for r in first['rows'] if r['attack']=='queries']
    anew = attack_run(other, ('authorised',), people=8, effort=replace(FAST, seed=1), device='cpu')   # set up otherwise: not beside the others
    assert {r['attack'] for r in anew['rows']}=={'scale', 'authorised'}
    second = Path(shutil.copytree(run, tmp_path/'second'))
    tried = attack_run(other, 'keys', others=(second,), people=8, effort=FAST, device='cpu')
    assert [r['name'] for r in tried['rows'] if r['attack']=='keys']==['key of w/o U, second']

def test_the_report_ends_with_the_headline(run, attacked):
    page = write_report(run).read_text()
    assert '<h2>Attacks</h2>' in page and 'The best attacker finds' in page and 'Who was trained on?' in page and 'a linear probe' in page
    assert f"{100*attacked['headline']['outside']['rank1']:.1f}" in attack_words(attacked) and 'mAP' in attack_words(attacked)
    bare = Path(shutil.copytree(run, run.parent/'bare', ignore=shutil.ignore_patterns('attacks.*')))
    assert load_attacks(bare)=={} and '<h2>Attacks</h2>' not in write_report(bare).read_text()

def test_the_command(run, attacked, tmp_path, capsys):
    from privreid.cli import main
    words = ['attack', str(run), '--attack', 'authorised', '--people', '8', '--device', 'cpu', '--json', str(tmp_path/'found.json')]
    other = Path(shutil.copytree(run, tmp_path/'run', ignore=shutil.ignore_patterns('attacks.*')))
    words[1] = str(other)
    assert main(words)==0
    said = capsys.readouterr().out
    assert 'the authorised model' in said and 'The best attacker' in said and json.loads((tmp_path/'found.json').read_text())==load_attacks(other)['arms']['w/o U']
    for wrong,name in ((['--attack', 'pictres'], 'pictures'), (['--arm', 'Base'], 'Base'), (['--people', '1'], 'people'), (['--steps', '0'], 'steps'), (['--others', str(other)], 'its own key')):
        assert main(['attack', str(other), *(('--attack', 'keys') if '--attack' not in wrong else ()), '--device', 'cpu', *wrong])==2
        said = capsys.readouterr().err
        assert name in said and said.count('\n')==1, said
    assert main(['attack', str(tmp_path/'nowhere')])==2 and 'not a run folder' in capsys.readouterr().err

@pytest.mark.parametrize('harm', ['no JSON', '{"format": 2, "arms": {}}', '{"format": 1, "arms": {"w/o U": {"rows": 3}}}'])
def test_a_damaged_file_is_refused(run, tmp_path, one_line, harm):
    (tmp_path/'attacks.json').write_text(harm)
    with pytest.raises(ValueError) as e: load_attacks(tmp_path)
    one_line(e.value, 'attacks.json')

def test_bad_words(one_line):
    for bad,name in (((), 'no attack'), ('pairz', 'pairs')):
        with pytest.raises(ValueError) as e: chosen_attacks(bad)
        one_line(e.value, name)
    assert chosen_attacks(['queries', 'pictures', 'queries'])==('pictures', 'queries') and chosen_attacks('all')==tuple(ATTACKS)
    for bad in (dict(steps=0), dict(batch=1), dict(counts=(0,)), dict(references=9), dict(seed=-1), dict(epochs=1.5)):
        with pytest.raises((ValueError, TypeError)) as e: Effort(**bad)
        one_line(e.value, next(iter(bad)))
