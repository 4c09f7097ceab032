"Metrics against trusted libraries, and the protocol's corners."
import numpy as np, pytest, torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as tm_psnr
from torchmetrics.functional.retrieval import retrieval_average_precision
from privreid.data import SyntheticPedestrians
from privreid.desensitize import Blur, GaussianNoise
from privreid.evaluation import apply, evaluate_ranking, image_quality, pooled_psnr, psnr, ssim

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
        assert ssim(a, b)[i].item()==pytest.approx(want, abs=1e-5)

def test_flat_images_do_not_break_ssim():
    a = torch.full((1,3,64,32), .3)
    assert ssim(a, a).item()==pytest.approx(1, abs=1e-6)
    assert torch.isinf(psnr(a, a)).all()

def test_pooled_psnr_equals_torchmetrics():
    a,b = pair((64,32), 2, .4)
    assert pooled_psnr(a, b).item()==pytest.approx(tm_psnr((b+1)/2, (a+1)/2, data_range=1.).item(), abs=1e-4)

def test_average_precision_equals_torchmetrics():
    g = torch.Generator().manual_seed(0)
    d = torch.rand(30, 200, generator=g)
    qp,gp = torch.randint(1, 9, (30,), generator=g), torch.randint(0, 9, (200,), generator=g)
    qc,gc = torch.zeros(30, dtype=torch.long), torch.ones(200, dtype=torch.long)          # no same-camera entries
    want = np.mean([retrieval_average_precision(1-d[i], gp==qp[i]).item() for i in range(30)])
    assert evaluate_ranking(d, qp, gp, qc, gc).mAP==pytest.approx(want, abs=1e-6)

def test_ties_keep_the_gallery_order():
    q = torch.tensor([1]); c = torch.tensor([0])
    first  = evaluate_ranking(torch.zeros(1,3), q, torch.tensor([1,2,3]), c, torch.tensor([1,1,1]))
    last   = evaluate_ranking(torch.zeros(1,3), q, torch.tensor([2,3,1]), c, torch.tensor([1,1,1]))
    assert (first.rank1, last.rank1, last.mAP)==(1., 0., pytest.approx(1/3))

def test_query_without_match_is_skipped_and_counted():
    r = evaluate_ranking(torch.tensor([[0.,1.],[0.,1.]]), torch.tensor([1,9]), torch.tensor([1,2]), torch.tensor([0,0]), torch.tensor([1,1]))
    assert (r.queries, r.skipped, r.rank1)==(1, 1, 1.)

def test_chunks_do_not_matter():
    g = torch.Generator().manual_seed(3)
    d = torch.randint(0, 9, (50,80), generator=g).float()
    args = [torch.randint(1, 6, (50,), generator=g), torch.randint(-1, 6, (80,), generator=g), torch.randint(0, 3, (50,), generator=g), torch.randint(0, 3, (80,), generator=g)]
    assert evaluate_ranking(d, *args, chunk=7)==evaluate_ranking(d, *args, chunk=1000)

def test_batch_size_does_not_change_quality_of_noise():
    people = SyntheticPedestrians(size=(64,32)).split([(1, c, 0) for c in range(4)])
    noise = GaussianNoise()
    assert image_quality(noise, people)==image_quality(noise, people)
    assert apply(Blur(), people.images, batch=1).allclose(apply(Blur(), people.images, batch=4), atol=1e-6)
