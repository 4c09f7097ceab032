"Metrics against trusted libraries, and the protocol's corners."
from dataclasses import astuple
from types import SimpleNamespace
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as tm_psnr
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate
from privreid.data import SyntheticPedestrians, to_float
from privreid.desensitize import Blur, GaussianNoise
from privreid.evaluation import SETTINGS, Validate, apply, distances, evaluate_ranking, four_settings, image_quality, pooled_psnr, psnr, squared_norms, ssim

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
    assert torch.isinf(psnr(a, a)).all()

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
    a,b = (t[:1,:1,:20,:19].clone().requires_grad_() for t in pair((20,19), 4, .5))
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
        if at: found.append([at[0]<=1, at[0]<=5, sum(k/n for k,n in enumerate(at, 1))/len(at), len(at)/at[-1]])
    return (*np.mean(found, 0).tolist(), len(found), len(d)-len(found)) if found else None

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
    same(evaluate_ranking(*search), (1, 1, (1+2/3)/2, 2/3, 1, 0))
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
        return x*self.factor+.2*x.flip(-1)+.5*self.training

def test_validation_sees_each_image_once():
    "And says what the slow way says, each number by itself."
    street = SyntheticPedestrians(train_ids=40, test_ids=2, distractors=2, size=(32,16)).load()
    q,g = street.val_query, street.val_gallery
    nets = torch.nn.ModuleDict(dict(G_X=Shade(.5), G_Y=Shade(1.7), reid=Projection())).train()
    trainer = SimpleNamespace(nets=nets, supervision=SimpleNamespace(desensitize=GaussianNoise(.05)), device=torch.device('cpu'), epoch=3)
    got = Validate(street).measure(trainer)
    assert {k: n.seen for k,n in nets.items()}==dict(G_X=len(g), G_Y=len(g), reid=len(q)+len(g))
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

def test_batch_size_does_not_change_quality_of_noise():
    people = SyntheticPedestrians(size=(64,32)).split([(1, c, 0) for c in range(4)])
    noise = GaussianNoise()
    assert image_quality(noise, people)==image_quality(noise, people)
    assert apply(Blur(), people.images, batch=1).allclose(apply(Blur(), people.images, batch=4), atol=1e-6)
