"Metrics against trusted libraries, and the protocol's corners."
import json, math, time
from dataclasses import asdict, astuple
from types import SimpleNamespace
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as tm_psnr
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate
from privreid.agw import AGW
from privreid.data import Split, SyntheticPedestrians, to_float
from privreid.desensitize import DESENSITIZERS, Blur, GaussianNoise, Pixelate, desensitizer
from privreid.evaluation import (PSNR_CEILING, SETTINGS, Outcomes, Quality, Validate, apply, distances, evaluate_ranking, four_settings, image_likeness, image_quality, interval, match_places, measure, mse,
                                 outcomes_of, over_seeds, pooled_psnr, psnr, quality_of, resampled, seed_interval, squared_norms, ssim, summary_of)
from privreid.tables import SAVED, recovered_reid, saved_recovery, through_file
from privreid.upgradation import Epsilons, State, Validation, decide, is_private

def pair(size, seed, scale):
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(3, 3, *size, generator=g)*2-1
    return a, (a+scale*torch.randn(a.shape, generator=g)).clamp(-1, 1)

@pytest.mark.parametrize('size', [(11,11), (64,32), (97,53), (256,128)])
@pytest.mark.parametrize('scale', [.01, .3, 2.])
def test_psnr_and_ssim_equal_scikit_image(size, scale):
    a,b = pair(size, 1, scale)
    for i in range(3):
        x,y = (((t[i]+1)/2).double().numpy() for t in (a, b))
        assert psnr(a, b)[i].item()==pytest.approx(peak_signal_noise_ratio(x, y, data_range=1), abs=1e-4)
        want = structural_similarity(x, y, channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        assert ssim(a, b)[i].item()==pytest.approx(want, abs=1e-6)

def test_flat_images_do_not_break_ssim():
    a = torch.full((1,3,64,32), .3)
    assert ssim(a, a).item()==pytest.approx(1, abs=1e-6)
    assert psnr(a, a).tolist()==[PSNR_CEILING]==[pooled_psnr(a, a).item()]

@pytest.mark.parametrize('tile', [1, 7, 54, 1000])
def test_tiles_leave_no_window_out(tile):
    a,b = pair((64,32), 3, .5)
    torch.testing.assert_close(ssim(a, b, tile), ssim(a, b), atol=1e-7, rtol=0)

def test_hard_edges_do_not_eat_digits():
    "Black and white within one tile: the tile's mean is far from both."
    board = ((torch.arange(96)[:,None]//20+torch.arange(70)//20)%2*2.-1).expand(3, -1, -1)
    for a,b in ((board, board*.5), (board, board.roll(7, -1)), (board, -board), (board, board*0)):
        x,y = (((t+1)/2).double().numpy() for t in (a, b))
        want = structural_similarity(x, y, channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        assert ssim(a[None], b[None]).item()==pytest.approx(want, abs=5e-6)

def test_half_precision_around_it_changes_nothing():
    a,b = pair((64,32), 5, .5)
    with torch.autocast('cpu', torch.bfloat16): half = ssim(a, b), psnr(a, b)
    assert torch.equal(half[0], ssim(a, b)) and torch.equal(half[1], psnr(a, b))

def test_ssim_trains_after_inference_and_wants_windows():
    with torch.inference_mode(): ssim(torch.zeros(1,3,20,19), torch.zeros(1,3,20,19))
    a,b = (t[:1,:,:20,:19].clone().requires_grad_() for t in pair((20,19), 4, .5))
    ssim(a, b).sum().backward()
    assert a.grad.abs().sum()>0 and b.grad.isfinite().all()
    for size in ((10,30), (30,10)):
        with pytest.raises(ValueError, match='at least 11'): ssim(torch.zeros(1,3,*size), torch.zeros(1,3,*size))

def test_pooled_psnr_equals_torchmetrics():
    a,b = pair((64,32), 2, .4)
    assert pooled_psnr(a, b).item()==pytest.approx(tm_psnr((b+1)/2, (a+1)/2, data_range=1.).item(), abs=1e-4)

def test_psnr_equals_a_loop_over_pixels():
    a,b = pair((5,4), 3, .5)
    errors = [[((a[i,c,y,x]-b[i,c,y,x]).item()/2)**2 for c in range(3) for y in range(5) for x in range(4)] for i in range(3)]
    assert psnr(a, b).tolist()==pytest.approx([10*np.log10(1/np.mean(e)) for e in errors], abs=1e-4)
    assert pooled_psnr(a, b).item()==pytest.approx(10*np.log10(1/np.mean(errors)), abs=1e-4)

def test_average_precision_and_ranks_equal_torchmetrics():
    g = torch.Generator().manual_seed(0)
    d = torch.rand(30, 200, generator=g)
    qp,gp = torch.randint(1, 9, (30,), generator=g), torch.randint(0, 9, (200,), generator=g)
    qc,gc = torch.zeros(30, dtype=torch.long), torch.ones(200, dtype=torch.long)          # no same-camera entries
    want = np.mean([retrieval_average_precision(1-d[i], gp==qp[i]).item() for i in range(30)])
    found = evaluate_ranking(d, qp, gp, qc, gc)
    assert found.mAP==pytest.approx(want, abs=1e-6)
    for k,got in ((1, found.rank1), (5, found.rank5)):
        assert got==pytest.approx(np.mean([retrieval_hit_rate(1-d[i], gp==qp[i], top_k=k).item() for i in range(30)]), abs=1e-6)

def slow(d, qp, gp, qc, gc):
    "The protocol in words: sort, strike out, walk down the list."
    d,qp,gp,qc,gc = (t.tolist() for t in (d, qp, gp, qc, gc))
    found = []
    for row,pid,cam in zip(d, qp, qc):
        ranked = sorted(range(len(row)), key=row.__getitem__)                # Python's sort is stable
        ranked = [gp[j] for j in ranked if gp[j]!=-1 and (gp[j],gc[j])!=(pid,cam)]
        at = [n for n,p in enumerate(ranked, 1) if p==pid]
        if at: found.append([at[0]<=1, at[0]<=5, sum(k/n for k,n in enumerate(at, 1))/len(at), len(at)/at[-1], len(at)/len(ranked)])
    if not found: return None
    *metrics,chance = np.mean(found, 0).tolist()
    return *metrics, len(found), len(d)-len(found), chance

def same(got, want): assert astuple(got)==pytest.approx(want, abs=1e-12)

def labels(g, Q, N, people, cams):
    "Identities from -1 in the gallery; among the queries, some of nobody (-1), and one more person that the gallery lacks."
    def draw(low, high, n): return torch.randint(low, high, (n,), generator=g)
    return draw(-1, people+2, Q), draw(-1, people+1, N), draw(0, cams, Q), draw(0, cams, N)

searches = dict(seed=st.integers(0, 10**6), Q=st.integers(1, 12), N=st.integers(1, 60), people=st.integers(1, 5), cams=st.integers(1, 4))

@settings(max_examples=80)
@given(levels=st.sampled_from([1, 2, 7, 10**6]), dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8]), **searches)
def test_ranking_equals_the_slow_loop(seed, Q, N, people, cams, levels, dtype):
    "Many ties, tiny galleries, a single camera, queries without a match, other kinds of numbers."
    g = torch.Generator().manual_seed(seed)
    d = torch.randint(levels, (Q,N), generator=g).to(dtype)
    if dtype.is_floating_point: d = d-3                                        # below zero too; infinite ones in float16
    before = d.clone()
    search = d, *labels(g, Q, N, people, cams)
    want = slow(*search)
    if want is None:
        with pytest.raises(ValueError, match='under another camera'): evaluate_ranking(*search)
    else: same(evaluate_ranking(*search), want)
    assert torch.equal(d, before)                                              # yours stay as they are

@given(levels=st.integers(1, 3), chunk=st.integers(1, 13), **searches)
def test_features_are_ranked_the_same_in_any_chunks(seed, Q, N, people, cams, levels, chunk):
    "Whole numbers, so that distances are exact, and few of them, so that many are equal."
    g = torch.Generator().manual_seed(seed)
    q,v = (torch.randint(-levels, levels+1, (n,6), generator=g).float() for n in (Q, N))
    labelled = labels(g, Q, N, people, cams)
    want = slow(((q[:,None].long()-v.long())**2).sum(-1), *labelled)
    if want is None: return
    same(evaluate_ranking(distances(q, v, chunk=chunk), *labelled), want)

@pytest.mark.parametrize('levels', [3, 1000, 10**6])
@pytest.mark.parametrize('far', [False, True], ids=['anywhere', 'last'])
def test_long_rankings(levels, far):
    "Thousands of entries, much junk, ties; and matches at the very end, where nothing is spared."
    g = torch.Generator().manual_seed(levels)
    d,qp,gp,qc,gc = torch.randint(levels, (6,5000), generator=g).float(), *labels(g, 6, 5000, 30, 3)
    if far: d[gp==qp[:,None]] += levels
    same(evaluate_ranking(d, qp, gp, qc, gc), slow(d, qp, gp, qc, gc))

def test_infinitely_far_is_far_but_counts():
    i,one = float('inf'), torch.tensor([1])
    gallery,cams = torch.tensor([1,-1,2,1,1]), torch.tensor([1,1,1,0,1])        # match, junk, other, own camera, match
    search = torch.tensor([[i,i,i,-i,i]]), one, gallery, one*0, cams
    same(evaluate_ranking(*search), (1, 1, (1+2/3)/2, 2/3, 1, 0, 2/3))
    same(evaluate_ranking(*search), slow(*search))

def test_distances_are_euclidean_but_for_the_query():
    g = torch.Generator().manual_seed(1)
    q,v = torch.randn(9, 33, generator=g, dtype=torch.float64), torch.randn(14, 33, generator=g, dtype=torch.float64)
    def parts(*norms): return [d.clone() for d in distances(q.requires_grad_(), v, *norms, chunk=4)]
    assert [len(p) for p in parts()]==[4,4,1]
    torch.testing.assert_close(torch.cat(parts())+(q.detach()**2).sum(1)[:,None], torch.cdist(q.detach(), v)**2)
    assert torch.equal(torch.cat(parts()), torch.cat(parts(squared_norms(v))))
    assert len({d.data_ptr() for d in distances(q, v, chunk=4)})==1                              # no more memory than one chunk

def test_four_settings_are_four_searches():
    "Every side meets every other once, with the right roles."
    street = SyntheticPedestrians(train_ids=4, test_ids=6, distractors=2, size=(32,16)).load()
    reid = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((4,2)), torch.nn.Flatten())
    def protect(x): return (3*x.flip(-1)).clamp(-1, 1)*x[:,:1]
    got = four_settings(reid, protect, street.query, street.gallery)
    assert list(got)==['raw-raw', 'raw-protected', 'protected-raw', 'protected-protected'] and len(set(got.values()))==4
    for k,r in got.items():
        q,v = (reid((protect if side=='protected' else lambda x: x)(to_float(s.images))).double() for side,s in zip(k.split('-'), (street.query, street.gallery)))
        same(r, slow(torch.cdist(q, v, compute_mode='donot_use_mm_for_euclid_dist'), street.query.pids, street.gallery.pids, street.query.cams, street.gallery.cams))
    assert four_settings(reid, None, street.query, street.gallery)=={'raw-raw': got['raw-raw']}

class Projection(torch.nn.Module):
    "A Re-ID model that is quick, and counts the images that it sees."
    def __init__(self): super().__init__(); self.weight,self.seen = torch.randn(96, 20, generator=torch.Generator().manual_seed(0)), 0
    def forward(self, x):
        self.seen += len(x)
        return torch.nn.functional.adaptive_avg_pool2d(x, (8,4)).flatten(1)@self.weight

@pytest.mark.parametrize('protect', [GaussianNoise(.05), Blur()], ids=['noise', 'blur'])
def test_fewer_settings_are_cheaper_and_the_same(protect):
    "Noise, too: the gallery's must not depend on whether the protected queries were wanted."
    street = SyntheticPedestrians(train_ids=4, test_ids=16, distractors=2, size=(32,16)).load()
    def found(*settings):
        reid = Projection()
        return four_settings(reid, protect, street.query, street.gallery, settings=settings or SETTINGS), reid.seen
    q,g = len(street.query), len(street.gallery)
    every,seen = found()
    assert seen==2*(q+g) and len({r.mAP for r in every.values()})==4
    for s in SETTINGS: assert found(s)==({s: every[s]}, q+g)
    assert found('raw-raw', 'protected-raw')==({s: every[s] for s in ('raw-raw', 'protected-raw')}, 2*q+g)

class Shade(torch.nn.Module):
    "A generator that counts the images that it sees, and shows by another colour that it is still training."
    def __init__(self, factor): super().__init__(); self.factor,self.seen = factor, 0
    def forward(self, x):
        self.seen += len(x)
        return (x*self.factor+.2*x.flip(-1)+.5*self.training).clamp(-1, 1)

def test_validation_sees_each_image_once():
    "And says what the slow way says, each number by itself."
    street = SyntheticPedestrians(train_ids=40, test_ids=2, distractors=2, size=(32,16)).load()
    q,g = street.val_query, street.val_gallery
    nets = torch.nn.ModuleDict(dict(G_X=Shade(.5), G_Y=Shade(1.7), reid=Projection())).train()
    trainer = SimpleNamespace(nets=nets, supervision=SimpleNamespace(desensitize=GaussianNoise(.05)), device=torch.device('cpu'), epoch=3)
    got = Validate(street).measure(trainer)
    assert {k: n.seen for k,n in nets.items()}==dict(G_X=len(g), G_Y=len(g), reid=len(q)+len(g))
    assert all(n.training for n in nets.modules())           # as they were
    nets.eval()
    ano,rec,des = (image_quality(f, g) for f in (nets['G_X'], lambda x: nets['G_Y'](nets['G_X'](x)), GaussianNoise(.05)))
    found = four_settings(nets['reid'], nets['G_X'], q, g)['raw-protected']
    assert astuple(got)==pytest.approx((3, ano.psnr, ano.ssim, des.psnr, des.ssim, found.rank1, found.mAP, rec.psnr, rec.ssim), rel=1e-6)

def search(d, q, g): return lambda: evaluate_ranking(d, torch.ones(q).long(), torch.ones(g).long(), torch.zeros(q), torch.ones(g))

@pytest.mark.parametrize('make, say', [
    (search(torch.full((2,3), float('nan')), 2, 3), 'not a number'),
    (search(torch.zeros(2,3), 3, 2), '2 queries to 3 gallery images'),
    (search([torch.zeros(2,3), torch.zeros(2,3)], 3, 3), '4 queries'),
    (search([torch.zeros(2,3), torch.zeros(2,3)], 5, 3), '4 queries do not fit 5'),
    (search(torch.zeros(0,3), 0, 3), 'None of the 0')])
def test_messages(make, say, one_line):
    with pytest.raises(ValueError, match=say) as e: make()
    one_line(e.value)

@pytest.mark.parametrize('wrong', [None, 'abc', 3, {}, torch.zeros(2, 3, device='meta'), [None, None], ['a', 'b']], ids=str)
@pytest.mark.parametrize('at', range(5))
def test_what_is_no_ranking_is_one_sentence(at, wrong, one_line):
    args = [torch.zeros(2, 3), *(torch.ones(n) for n in (2, 3, 2, 3))]
    args[at] = wrong
    with pytest.raises((TypeError, ValueError)) as e: evaluate_ranking(*args)
    one_line(e.value, ('Distances', 'q_pids', 'g_pids', 'q_cams', 'g_cams')[at])

def test_batch_size_does_not_change_quality_of_noise():
    people = SyntheticPedestrians(size=(64,32)).split([(1, c, 0) for c in range(4)])
    noise = GaussianNoise()
    assert image_quality(noise, people)==image_quality(noise, people)
    assert apply(Blur(), people.images, batch=1).allclose(apply(Blur(), people.images, batch=4), atol=1e-6)

# --- one look for all

def test_one_look_says_what_all_the_others_say():
    "Each network sees each image once; numbers, the noise's too, are those of the single measurements."
    street = SyntheticPedestrians(train_ids=4, test_ids=16, distractors=2, size=(32,16)).load()
    q,g,G_X,G_Y = street.query, street.gallery, Shade(.5).eval(), Shade(1.7).eval()
    own,outsider = Projection(), Projection()
    outsider.weight = outsider.weight.flip(0)
    known = measure({'outsider': outsider}, q, g).raw
    seen = measure({'own': own, 'outsider': outsider}, q, g, G_X, G_Y, known=known, title='measuring')
    both = len(q)+len(g)
    assert (G_X.seen, G_Y.seen, own.seen, outsider.seen)==(both, len(g), 2*both, 2*both)
    for net,name in ((own, 'own'), (outsider, 'outsider')): assert seen.settings[name]==four_settings(net, G_X, q, g)
    assert asdict(seen.protected)==pytest.approx(asdict(image_quality(G_X, g)), rel=1e-6)
    assert asdict(seen.recovered)==pytest.approx(asdict(image_quality(lambda x: G_Y(G_X(x)), g)), rel=1e-6)
    noise = GaussianNoise(.05)
    alone = four_settings(own, noise, q, g)
    assert measure({'own': own, 'outsider': outsider}, q, g, noise, known=known).settings['own']==alone

def test_measuring_leaves_networks_as_they_were():
    street = SyntheticPedestrians(train_ids=4, test_ids=4, distractors=2, size=(32,16)).load()
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.Tanh()).train()
    net[1].eval()                                               # as with `freeze_bn`
    measure({'': Projection()}, street.query, street.gallery, net, net)
    image_quality(net, street.gallery); apply(net, street.gallery.images)
    assert [m.training for m in net.modules()]==[True, True, False, True]

def test_tables_show_each_network_each_image_once():
    street = SyntheticPedestrians(train_ids=4, test_ids=8, distractors=2, size=(32,16)).load()
    exp,n,N = SimpleNamespace(data=street, device='cpu'), len(street.query), len(street.gallery)
    upper,arm = (SimpleNamespace(name=k, reid=Projection(), anonymizer=Shade(.5).eval(), recovery=Shade(1.7).eval()) for k in ('Upper', 'w/ U'))
    found = saved_recovery(exp, arm)
    assert (arm.anonymizer.seen, arm.recovery.seen)==(N, len(SAVED)*N)
    for k in ('float', 'png'):
        def recover(x): p = arm.anonymizer(x); return arm.recovery(through_file(p, **SAVED[k]) if SAVED[k] else p)
        assert found[k]==pytest.approx(asdict(image_quality(recover, street.gallery)), rel=1e-6)
    arm.anonymizer.seen = arm.recovery.seen = 0
    rows = recovered_reid(exp, upper, arm)
    assert (arm.anonymizer.seen, arm.recovery.seen, upper.reid.seen)==(n+N, n+N, 2*(n+N))
    want = four_settings(arm.reid, lambda x: arm.recovery(arm.anonymizer(x)), street.query, street.gallery)
    assert rows['ours']=={k.replace('protected', 'recovered'): asdict(v) for k,v in want.items()}

# --- nobody moves the limit

@pytest.fixture(scope='module')
def crowd(): return SyntheticPedestrians(size=(64,32)).split([(p, p%4, 0) for p in range(1, 53)])

def spoiled(crowd, make, n=1):
    "The same pictures, but for the first `n`."
    images = crowd.images.clone()
    for i in range(n): images[i] = make(images[i])
    return Split(images, crowd.pids, crowd.cams, crowd.names)

RED = torch.tensor([200, 30, 60], dtype=torch.uint8)[:,None,None]
WAYS = dict(black=lambda im: 0, white=lambda im: 255, colour=lambda im: RED, hiccup=lambda im: im//64, dim=lambda im: im//32+100,
            grain=lambda im: torch.randint(0, 30, im.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8))

@pytest.mark.parametrize('name', DESENSITIZERS)
@pytest.mark.parametrize('way', WAYS)
def test_one_picture_does_not_move_the_limit(crowd, name, way):
    "51 pictures, and one more: at most 10 log10(52/51) = .084 dB, and the SSIM that a perfect copy would add."
    f = desensitizer(name)
    before,after = image_quality(f, crowd[torch.arange(1, 52)]), image_quality(f, spoiled(crowd, WAYS[way]))
    assert abs(after.psnr-before.psnr)<.1 and -1/52<after.ssim-before.ssim<=(1-before.ssim)/52

@pytest.mark.parametrize('way', ['black', 'white', 'colour'])
def test_not_even_half_the_pictures_move_it_if_nobody_is_in_them(crowd, way):
    "The pictures that count are those with somebody in them."
    for f in (Blur(), Pixelate()):
        few = crowd[torch.arange(26, 52)]
        got,want = image_quality(f, spoiled(crowd, WAYS[way], 26)), image_quality(f, few)
        assert asdict(got)==pytest.approx(asdict(want), rel=1e-6)

def validated(split, G_X):
    "What `Validate` finds, with blur as the limit."
    street = SimpleNamespace(val_query=split, val_gallery=Split(split.images, split.pids, split.cams+1, split.names))
    nets = torch.nn.ModuleDict(dict(G_X=G_X, G_Y=torch.nn.Identity(), reid=Projection()))
    return Validate(street).measure(SimpleNamespace(nets=nets, supervision=SimpleNamespace(desensitize=Blur()), device=torch.device('cpu'), epoch=1))

class Revealing(torch.nn.Module):
    "Blurs too little, by some dB, and turns one picture of the split into its negative."
    def __init__(self, dB, fails): super().__init__(); self.dB,self.fails = dB, fails
    def forward(self, x):
        z = x+(Blur()(x)-x)*10**(-self.dB/20)
        if self.fails: z[-1] = -x[-1].sign()
        return z

@pytest.mark.parametrize('way', [None, 'black', 'colour', 'grain'])
@pytest.mark.parametrize('fails', [False, True])
def test_a_generator_that_reveals_too_much_is_not_upgraded(crowd, way, fails):
    "4 dB above the blur, 3 above the limit; and a picture on which it fails does not hide that."
    split = spoiled(crowd, WAYS[way]) if way else crowd
    v = validated(split, Revealing(4., fails))
    generous = decide(v, State(0.), Epsilons(psnr=1., ssim=9.))                  # PSNR alone
    assert not generous.private and generous.action=='keep' and 'PSNR' in generous.reason and v.r1_raw_ano>0
    assert decide(validated(split, Revealing(.5, fails)), State(0.), Epsilons(psnr=1., ssim=9.)).action=='upgrade'

def test_a_plain_mean_or_pool_would_have_opened(crowd):
    "Both ways that this replaces: the mean by a black picture, the plain pool by a failed one."
    black = to_float(spoiled(crowd, WAYS['black']).images)
    limit = psnr(Blur()(black), black).mean()
    assert limit-psnr(Blur()(black[1:]), black[1:]).mean()>1                            # 100 dB at most; it was infinite
    x = to_float(crowd.images)
    z = Revealing(4., True)(x)
    assert pooled_psnr(z, x)<pooled_psnr(Blur()(x), x)+1<image_quality(Revealing(4., True), crowd).psnr

def test_where_nothing_is_hidden_nothing_is_private(crowd):
    plain = spoiled(crowd, WAYS['colour'], 52)
    for split,f in ((plain, Pixelate()), (plain, Blur()), (crowd, torch.nn.Identity())):
        hidden = image_quality(f, split)
        assert json.loads(json.dumps(asdict(hidden), allow_nan=False))==asdict(hidden)
        for g in (torch.nn.Identity(), Blur()):
            seen = image_quality(g, split)
            assert all(map(math.isfinite, asdict(seen).values())) and not is_private(Validation(1, seen.psnr, seen.ssim, hidden.psnr, hidden.ssim, 1.))

def test_a_likeness_of_an_older_run_is_read():
    assert quality_of(dict(psnr=float('inf'), ssim=.5, pooled=20.))==Quality(20., .5, PSNR_CEILING)
    assert quality_of(dict(psnr=19., ssim=.5, mean=20.))==Quality(19., .5, 20.)

# --- what is not a number is refused by name

class Lost(torch.nn.Module):
    "Something that goes wrong on the image whose first pixel is red."
    def __init__(self, inner, value): super().__init__(); self.inner,self.value = inner, value
    def forward(self, x):
        z = self.inner(x)
        z[(x[:,0,0,0]>.99)&(x[:,1,0,0]<-.99)&(x[:,2,0,0]>.99)] = self.value
        return z

@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('who, side, says', [('reid', 'query', 'In the queries, the feature that me sees in the raw image of {}'), ('reid', 'gallery', 'In the gallery, the feature'),
                                             ('protect', 'gallery', 'In the gallery, '), ('recover', 'gallery', 'In the gallery, the recovered image of {}')])
def test_broken_numbers_are_named(who, side, says, value, one_line):
    street = SyntheticPedestrians(train_ids=4, test_ids=6, distractors=2, size=(32,16)).load()
    split = getattr(street, side)
    split.images = split.images.clone(); split.images[2,:,0,0] = torch.tensor([255, 0, 255])
    made = dict(reid=Projection(), protect=torch.nn.Identity(), recover=torch.nn.Identity())
    made[who] = Lost(made[who], value) if who!='protect' else Lost(Shade(1.), value).eval()
    with pytest.raises(FloatingPointError) as e: measure({'me': made['reid']}, street.query, street.gallery, made['protect'], made['recover'])
    one_line(e.value, says.format(split.names[2]), split.names[2])

def test_a_distance_that_is_not_a_number_counts_for_nobody(one_line):
    "NaN distractors used to lift mAP: they stood behind everything. Junk may be anything; infinity is far."
    d = torch.tensor([[.1, .2, .3, .4, .5]]).repeat(2, 1)
    search = [1, 1], [0, 0, 1, -1, 1], [0, 0], [1, 1, 1, 1, 1]
    for j,value in ((0, math.nan), (4, math.nan)):
        broken = d.clone(); broken[1,j] = value
        with pytest.raises(ValueError) as e: evaluate_ranking(broken, *search)
        one_line(e.value, 'Query 1', f'gallery image {j}', 'not a number')
    junk,far = d.clone(), d.clone()
    junk[:,3] = math.nan; far[:,0] = math.inf
    assert evaluate_ranking(junk, *search)==evaluate_ranking(d, *search)
    assert evaluate_ranking(far, *search).mAP==pytest.approx((1/2+2/3)/2)
    with pytest.raises(ValueError, match='gallery image 1 '): match_places(np.array([1, np.nan, 2.]), np.array([2]), np.array([0]))

@pytest.mark.parametrize('side', ['queries', 'gallery'])
def test_a_broken_feature_is_named(side, one_line):
    q,g = torch.ones(3, 4), torch.ones(5, 4)
    (q if side=='queries' else g)[2,1] = math.nan
    with pytest.raises(FloatingPointError) as e: distances(q, g)
    one_line(e.value, f'Feature 2 of the {side}')

# --- what people bring

def test_lists_arrays_and_half_precision_rank_the_same():
    g = torch.Generator().manual_seed(4)
    q,v = (torch.randint(-2, 3, (n,6), generator=g).float() for n in (9, 40))
    labelled = labels(g, 9, 40, 5, 3)
    want = evaluate_ranking(distances(q, v), *labelled)
    for kind in (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.bfloat16, torch.Tensor.half, torch.Tensor.double):
        assert evaluate_ranking(distances(kind(q), kind(v)), *map(kind, labelled))==want
        d = torch.cat([d.clone() for d in distances(q, v)])
        assert evaluate_ranking(kind(d), *labelled)==want and evaluate_ranking(list(kind(d)), *map(kind, labelled))==want
    assert evaluate_ranking(distances(q.double(), v), *labelled)==want

images = torch.zeros(2, 3, 16, 16)
def labelled(**changes): return lambda: evaluate_ranking(torch.zeros(2, 3), **dict(q_pids=[1, 2], g_pids=[1, 2, 0], q_cams=[0, 0], g_cams=[1, 1, 1])|changes)

@pytest.mark.parametrize('make, says', [
    *((lambda f=f: f(images.to(torch.uint8), images), 'uint8') for f in (mse, psnr, pooled_psnr, ssim)),
    *((lambda f=f: f(images[0], images[0]), 'one picture') for f in (psnr, ssim)),
    *((lambda f=f: f(images, images[:1]), 'one shape') for f in (psnr, ssim)),
    *((lambda f=f: f(images[:0], images[:0]), 'nothing in it') for f in (psnr, ssim)),
    *((lambda f=f: f(images+127, images), 'values from 127') for f in (psnr, ssim)),
    *((lambda f=f: f(images*math.nan, images), 'nan') for f in (psnr, ssim)),
    *((lambda f=f: f(images.numpy(), images), 'ndarray') for f in (psnr, ssim)),
    (lambda: psnr(images, images.to('meta')), 'one device'),
    (lambda: ssim(images, images, 0), 'tile must be'),
    (labelled(q_cams=[0]), 'q_cams has the shape (1,): 2 numbers'),
    (labelled(g_cams=[0, 1]), 'g_cams has the shape (2,): 3 numbers'),
    (labelled(g_pids=torch.ones(3, 1)), 'g_pids has the shape (3, 1)'),
    (labelled(q_pids=['0001', '0002']), 'q_pids must be whole numbers'),
    (labelled(q_pids=[1.5, 2.]), 'q_pids must be whole numbers'),
    (labelled(q_pids=torch.tensor([1, 600]).bfloat16()), 'at most 256'),
    (lambda: evaluate_ranking(torch.zeros(2), [1, 1], [1, 1], [0, 0], [1, 1]), 'Distances of 1 queries do not fit 2'),
    (lambda: evaluate_ranking(torch.zeros(1, 2, 3), [1], [1, 1], [0], [1, 1]), '(1, 2, 3)'),
    (lambda: distances(torch.zeros(2, 3), torch.zeros(2, 4)), '3 numbers on cpu and 4'),
    (lambda: distances(torch.zeros(2, 3), torch.zeros(3)), 'Features of the gallery'),
    (lambda: distances(torch.zeros(2, 3), torch.zeros(2, 3), chunk=0), 'chunk must be'),
    (lambda: apply(lambda x: x, images), 'uint8'),
    (lambda: apply(lambda x: x, images.to(torch.uint8)[:0]), 'no image'),
    (lambda: apply(lambda x: x[:1], images.to(torch.uint8)), '2 images became 1'),
    (lambda: measure({}, None, None, Blur(), settings='raw-blurred'), "['raw-blurred'] is not what can be measured"),
    (lambda: measure({}, None, None, Blur(), settings=()), 'no setting'),
    (lambda: image_quality(lambda x: x*127, SyntheticPedestrians(size=(64,32)).split([(1, 0, 0)])), 'values from')])
def test_mistakes_cost_one_sentence(make, says, one_line):
    with pytest.raises((ValueError, TypeError)) as e: make()
    one_line(e.value, says)

def test_other_ranges_are_told():
    a,b = pair((32,16), 3, .4)
    for f,tolerance in ((psnr, 1e-3), (pooled_psnr, 1e-3), (ssim, 1e-5), (mse, 1e-5)):
        assert f((a+1)/2, (b+1)/2, range=(0, 1)).tolist()==pytest.approx(f(a, b).tolist(), abs=tolerance)
        assert f((a+1)*127.5, (b+1)*127.5, range=(0, 255)).tolist()==pytest.approx(f(a, b).tolist(), abs=tolerance)

def test_reprs_fit_a_line():
    street = SyntheticPedestrians(train_ids=4, test_ids=4, distractors=2, size=(32,16)).load()
    seen = measure({'AGW': Projection()}, street.query, street.gallery, Shade(.5).eval(), Shade(1.5).eval())
    for thing in (seen, seen.protected, seen.settings['AGW']['raw-raw'], Validation(1, *[.123456789]*8)): assert len(repr(thing))<200 and '\n' not in repr(thing)

# --- intervals

def test_resampling_by_hand():
    "Two people, of one query and of three: four equally likely crowds, with ratios of sums."
    got = resampled(np.array([7, 3, 3, 3]), np.array([[1., 0, 0, 0], [1., 2, 3, 4]]), n=4000)
    assert set(got[0])=={0., .25, 1.}                                     # nobody of 7; one of each, 1 of 4 queries; 7 twice
    shares = [np.mean(got[0]==v) for v in (0., .25, 1.)]
    assert shares==pytest.approx([.25, .5, .25], abs=.03)
    assert set(got[1])=={3., 10/4, 1.} and np.array_equal(got[1]==1., got[0]==1.)   # all rows of the same crowds
    assert np.array_equal(got, resampled(np.array([7, 3, 3, 3]), np.array([[1., 0, 0, 0], [1., 2, 3, 4]]), n=4000))

def test_the_deviation_is_that_of_a_mean_of_people():
    g = np.random.default_rng(0)
    each,people = g.normal(0, 1, 60), np.arange(60).repeat(3)
    draws = resampled(people, [each[people]])[0]
    assert draws.mean()==pytest.approx(each.mean(), abs=.02) and draws.std()==pytest.approx(each.std()/60**.5, rel=.06)

def agreeing(rng, P=16, per=4):
    "Two arms that are equally good; the queries of a person agree in who finds them."
    taste = rng.normal(0, 1, (2, P)).repeat(per, 1)
    a,b = (taste+rng.normal(0, .7, (2, P*per))>0).astype(float)
    return b-a, np.arange(P).repeat(per)

@pytest.mark.parametrize('people', [6, 16, 40])
def test_an_interval_holds_the_truth_as_often_as_it_says(people):
    "95 of 100 where people are drawn; where single queries are, who agrees is counted four times, and it is too narrow."
    rng,inside = np.random.default_rng(people), np.zeros(2)
    for _ in range(600):
        d,who = agreeing(rng, people)
        for i,groups in enumerate((who, np.arange(len(who)))):
            low,high = interval(resampled(groups, [d], 500)[0], len(set(groups)))
            inside[i] += low<=0<=high
    assert .925<=inside[0]/600<=.98 and inside[1]/600<.87

def test_drawing_people_is_wider_than_drawing_queries_that_agree():
    d,who = agreeing(np.random.default_rng(3), 24)
    def width(groups): low,high = interval(resampled(groups, [d])[0], len(set(groups))); return high-low
    assert width(who)>1.3*width(np.arange(len(who)))
    assert interval(resampled(who*0, [d])[0], 1) is None

@pytest.mark.parametrize('same', [False, True])
@pytest.mark.parametrize('seeds, spread', [(3, 0.), (3, .1), (5, 0.), (5, .1)])
def test_an_interval_over_seeds_holds_the_truth(same, seeds, spread):
    "Seeds differ or do not, people are the same or others: about 95 of 100 hold the truth, 0."
    rng,inside,people = np.random.default_rng(seeds), 0, np.arange(16).repeat(4)
    for _ in range(300):
        crowd = rng.normal(0, .15, 16)
        runs = [(crowd if same else rng.normal(0, .15, 16))[people]+rng.normal(0, .2, 64)+rng.normal(0, spread) for _ in range(seeds)]
        draws = [resampled(people, [d], 500)[0] for d in runs]
        low,high = interval(over_seeds(draws, [16]*seeds, same))
        inside += low<=0<=high
    assert .89<=inside/300<=.99

def test_seed_interval_is_that_of_one_run_or_of_several():
    d,who = agreeing(np.random.default_rng(3), 24)
    mean,low,high = seed_interval([d], [who])
    assert mean==pytest.approx(d.mean()) and (low, high)==interval(resampled(who, [d])[0], 24)
    mean,low,high = seed_interval([d, d+.2, d+.1], [who]*3)
    assert mean==pytest.approx(d.mean()+.1) and low<mean<high
    with pytest.raises(ValueError): seed_interval([d], [who, who])

def test_a_test_leaves_outcomes_with_its_means():
    street = SyntheticPedestrians(train_ids=4, test_ids=5, distractors=3, size=(64,32)).load()
    torch.manual_seed(0); reid,f = AGW(4, 'mini').eval(), Blur()
    seen = measure({'it': reid}, street.query, street.gallery, f, lambda z: z)
    rows = image_likeness(f, street.gallery)
    rows[0,2] = 0.                                                                      # a blank picture
    kept = outcomes_of(street.query, street.gallery, seen.counted, {f'arms/it/{s}': v for s,v in seen.queries['it'].items()}, dict(desensitized=rows))
    for s,v in seen.settings['it'].items(): assert kept.ranked[f'arms/it/{s}'].astype(float).mean(1)==pytest.approx([v.rank1, v.rank5, v.mAP, v.mINP], abs=1e-3)
    assert len(kept.people)==seen.settings['it']['raw-raw'].queries and kept.identities==5
    assert len(kept.shown)==len(street.gallery)-1 and (kept.shown<0).sum()==len(set(kept.shown[kept.shown<0]))==int((street.gallery.pids[1:]<=0).sum())
    q,(db,alike) = summary_of(rows), kept.likeness['desensitized']
    assert db.mean()==pytest.approx(q.psnr, abs=.2) and alike.mean()==pytest.approx(q.ssim, abs=.02) and db.std()>0
    torch.testing.assert_close(seen.pictures['protected'], image_likeness(f, street.gallery))

def test_outcomes_of_the_same_people_are_put_together():
    a,b = (Outcomes(np.array([0, 0, 1]), {k: np.ones((4, 3))}, np.array([0, 1]), {k: np.ones((2, 2))}) for k in 'ab')
    assert set((a|b).ranked)==set((a|b).pictured)=={'a', 'b'}
    with pytest.raises(ValueError, match='other test images'): a|Outcomes(np.array([0, 1, 1]), {}, a.shown, {})

def test_intervals_of_market_1501_take_a_moment():
    "Seven who looked, four settings, rank-1 and mAP of each of 3,368 queries; on a quiet core 0.1 s."
    values,people = np.random.default_rng(0).random((56, 3368)), np.arange(3368)%750
    def seconds(): start = time.perf_counter(); resampled(people, values); return time.perf_counter()-start
    assert min(seconds() for _ in range(3))<.4
