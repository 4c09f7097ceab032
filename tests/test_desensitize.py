"Desensitizers: Pillow, loops and closed forms as witnesses."
import copy, math
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFilter
from privreid.data import to_float, to_uint8
from privreid.desensitize import DESENSITIZERS, Blur, GaussianNoise, Pixelate, blur_matrix, box_radius, desensitizer, generator_on

sizes = st.tuples(st.integers(3, 70), st.integers(3, 50))

def picture(size, seed, smooth=False):
    rng = np.random.default_rng(seed)
    if smooth: return np.asarray(Image.fromarray(rng.integers(0, 256, (4,3,3), dtype=np.uint8)).resize(size[::-1], Image.BICUBIC)).copy()
    return rng.integers(0, 256, (*size,3), dtype=np.uint8)

def pillow(im, radius):
    return np.asarray(Image.fromarray(im).filter(ImageFilter.GaussianBlur(radius))).astype(int)

def ours(im, radius):
    return Blur(radius, height=None)(to_float(torch.from_numpy(im)).double().permute(2,0,1)[None])[0].permute(1,2,0)

def fixed_point(im, radius, rounding=True):
    "Pillow's BoxBlur.c in slow motion: three boxes a direction, in 24-bit fixed point, back to whole grey levels after each."
    L = (12*radius**2/3+1)**.5
    l = math.floor((L-1)/2)
    rho = l+(2*l+1)*(l*(l+1)-radius**2)/(6*(radius**2/3-(l+1)**2))
    l = int(rho)
    whole = int(np.float32(2**24)/(np.float32(rho)*2+1))
    part = (2**24-(2*l+1)*whole)//2
    v = im.astype(np.int64 if rounding else float)
    for axis in (1,1,1,0,0,0):
        n,wide = v.shape[axis], np.pad(v, [(l+1,l+1) if i==axis else (0,0) for i in range(3)], mode='edge')
        def at(k): return np.take(wide, np.arange(n)+k, axis)
        total = sum(whole*at(k) for k in range(1, 2*l+2))+part*(at(0)+at(2*l+2))
        v = (total+2**23)>>24 if rounding else total/2**24
    return v

@settings(max_examples=40)
@given(sizes, st.floats(.3, 20), st.integers(0, 99), st.booleans())
def test_blur_is_pillows_but_for_rounding(size, radius, seed, smooth):
    "Pillow rounds six times on the way, we round once: without its rounding the two are the same, with it at most a few levels apart."
    im = picture(size, seed, smooth)
    theirs,mine = pillow(im, radius), ours(im, radius)
    assert (fixed_point(im, radius)==theirs).mean()>.98                  # so this is how Pillow goes about it
    np.testing.assert_allclose((mine.numpy()+1)*127.5, fixed_point(im, radius, rounding=False), atol=.002)
    assert np.abs(to_uint8(mine).numpy()-theirs).max()<=3

@pytest.mark.parametrize('size, radius', [((256,128), 12), ((128,64), 6)])
@pytest.mark.parametrize('smooth', [False, True], ids=['noise', 'smooth'])
def test_blur_is_pillows_within_one_level_at_the_papers_strength(size, radius, smooth):
    for seed in range(8):
        im = picture(size, seed, smooth)
        assert np.abs(to_uint8(ours(im, radius)).numpy()-pillow(im, radius)).max()<=1

@given(st.integers(2, 60), st.floats(.2, 30))
def test_blur_matrix_is_an_average(n, radius):
    m = blur_matrix(n, radius)
    assert (m>=-1e-12).all()
    torch.testing.assert_close(m.sum(1), torch.ones(n, dtype=m.dtype))
    torch.testing.assert_close(m.flip(0, 1), m)                          # left and right are alike
    assert (box_radius(radius)<box_radius(radius*1.1))

def test_a_matrix_made_for_inference_serves_training():
    with torch.inference_mode(): Blur(7.25)(torch.rand(1, 3, 256, 128, dtype=torch.float64))   # float64: used as it was made
    x = torch.rand(1, 3, 256, 128, dtype=torch.float64, requires_grad=True)
    Blur(7.25)(x).sum().backward()
    torch.testing.assert_close(x.grad.sum(), torch.tensor(x.numel()).double())

@pytest.mark.parametrize('size', [(256,128), (200,9), (65,300)])
@pytest.mark.parametrize('radius', [.5, 12, 40])
def test_blur_leaves_no_weight_out(size, radius):
    "Taken in bands, the product is the whole product."
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    whole = blur_matrix(size[0], radius)@x@blur_matrix(size[1], radius).T
    torch.testing.assert_close(Blur(radius, height=None)(x), whole, atol=1e-12, rtol=0)

@given(sizes, st.integers(1, 80), st.booleans(), st.integers(0, 99))
def test_pixelation_is_a_loop(size, block, corner, seed):
    x = torch.from_numpy(picture(size, seed)).permute(2,0,1)[None].double()/127.5-1
    slow = x.numpy().copy()
    for i in range(0, size[0], block):
        for j in range(0, size[1], block):
            tile = x[:,:,i:i+block,j:j+block].numpy()
            slow[:,:,i:i+block,j:j+block] = tile[:,:,:1,:1] if corner else tile.mean((2,3), keepdims=True)
    np.testing.assert_allclose(Pixelate(block, height=None, corner=corner)(x).numpy(), slow, atol=1e-12)

@pytest.mark.parametrize('d, same', [(Blur(12), Blur(3, None)), (Pixelate(24), Pixelate(6, None))])
def test_a_length_is_stated_for_256_rows(d, same):
    x = torch.rand(2, 3, 64, 32)*2-1
    assert torch.equal(d(x), same(x))
    assert not torch.equal(d(x), type(d)(d.strength, None)(x))

@pytest.mark.parametrize('size', [(256,128), (128,64), (64,32)])
def test_noise_is_as_strong_in_small_pictures(size):
    "A deviation is no length: 0.5 at every size, as `clipped` has it."
    out = GaussianNoise()(torch.zeros(8, 3, *size))
    assert out.std().item()==pytest.approx(clipped(0, 1)[1], rel=.02)

@pytest.mark.parametrize('d', [Blur(), Pixelate(), Pixelate(corner=True)], ids=['blur', 'pixelation', 'corner'])
def test_an_image_does_not_depend_on_its_batch(d):
    x = torch.rand(5, 3, 64, 32)*2-1
    together = d(x)
    for i in range(5): torch.testing.assert_close(d(x[i:i+1])[0], together[i], atol=1e-6, rtol=0)
    other = x.clone(); other[1:] = -1; other[0,1:] = 1                   # other pictures, other channels
    torch.testing.assert_close(d(other)[0,0], together[0,0], atol=1e-6, rtol=0)

@pytest.mark.parametrize('d', [Blur(), Pixelate()], ids=['blur', 'pixelation'])
@pytest.mark.parametrize('value', [-1., .25, 1.])
def test_a_plain_picture_stays(d, value):
    x = torch.full((1,3,48,40), value)
    torch.testing.assert_close(d(x), x, atol=1e-6, rtol=0)

@pytest.mark.parametrize('d', [Blur(2., None), Pixelate(3, None), Pixelate(3, None, corner=True)], ids=['blur', 'pixelation', 'corner'])
def test_gradients_flow(d):
    x = torch.rand(1, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(d, x)
    g, = torch.autograd.grad(d(x).sum(), x)
    assert torch.allclose(g.sum(), torch.tensor(105.).double()) and g.abs().max()>0   # each output pixel is an average of input pixels

@pytest.mark.parametrize('name', ['blur', 'pixelation', 'noise'])
def test_precision(name):
    x = torch.rand(2, 3, 64, 32, dtype=torch.float64)*2-1
    out = desensitizer(name)(x)
    assert out.dtype==torch.float64 and desensitizer(name)(x.float()).dtype==torch.float32 and out.shape==x.shape
    assert out.min()>=-1 and out.max()<=1
    if name!='noise': torch.testing.assert_close(desensitizer(name)(x.float()), out.float(), atol=2e-6, rtol=0)
    if name=='blur': torch.testing.assert_close(Blur()(x/x), x/x, atol=1e-13, rtol=0)   # really computed in double

def clipped(mean, std):
    "Mean and deviation of N(mean, std) clipped to [-1,1], by quadrature."
    z = np.linspace(-9, 9, 200_001)
    w = np.exp(-z*z/2); w /= w.sum()
    v = np.clip(mean+std*z, -1, 1)
    m = (w*v).sum()
    return m, ((w*v*v).sum()-m*m)**.5

@pytest.mark.parametrize('grey', [-1., 0., .6])
@pytest.mark.parametrize('std', [.1, .5])
def test_noise_has_the_statistics_of_clipped_noise(grey, std):
    out = GaussianNoise(std, seed=5)(torch.full((8,3,64,64), grey))
    mean,dev = clipped(grey, 2*std)                                      # [0,1] to [-1,1] doubles it
    n = out.numel()
    assert abs(out.mean()-mean)<5*dev/n**.5 and abs(out.std()-dev)<.01*dev+5*dev/n**.5
    if grey==0: assert abs(out.mean())<.01                               # mid-grey stays mid-grey
    if grey==0 and std==.5: assert abs((out.abs()==1).float().mean()-math.erfc(2**-.5))<.01

def test_noise_is_independent_everywhere():
    noise = GaussianNoise(.05)(torch.zeros(4, 3, 64, 64))
    for other in (noise.roll(1, 0), noise.roll(2, 0), noise.roll(1, 1), noise.roll(1, 2), noise.roll(1, 3)):
        assert abs(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0,1])<.02

def test_noise_has_dice_of_its_own():
    x = torch.zeros(2, 3, 16, 16)
    torch.manual_seed(1); state = torch.get_rng_state()
    a = GaussianNoise(seed=3)(x)
    assert torch.equal(torch.get_rng_state(), state)                     # takes nothing from the global dice
    torch.manual_seed(2)
    assert torch.equal(GaussianNoise(seed=3)(x), a) and not torch.equal(GaussianNoise(seed=4)(x), a)

def test_noise_does_not_depend_on_threads_nor_on_batches():
    x = torch.zeros(7, 3, 16, 16)
    together = GaussianNoise()(x)
    noise = GaussianNoise()
    assert torch.equal(torch.cat([noise(x[:1]), noise(x[1:5]), noise(x[5:])]), together)
    torch.set_num_threads(3)
    try: assert torch.equal(GaussianNoise()(x), together)
    finally: torch.set_num_threads(1)

def test_noise_in_any_mode():
    x = torch.zeros(2, 3, 16, 16)
    with torch.inference_mode(): a = GaussianNoise()(x)
    with torch.no_grad(): b = GaussianNoise()(x)
    assert torch.equal(a, b) and torch.equal(a, GaussianNoise()(x))

def test_noise_passes_gradients_where_it_does_not_clip():
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    out = GaussianNoise(.5)(x); out.sum().backward()
    assert torch.equal(x.grad, (out.abs()<1).float()) and 0<x.grad.mean()<1

# --- what is refused, and what is taken

each = pytest.mark.parametrize('name', DESENSITIZERS)
pictures = torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))*2-1

@each
@pytest.mark.parametrize('wrong, told', [
    (to_uint8(pictures), 'uint8'), ((pictures+1)*127.5, 'values from'), (pictures[0], 'x[None]'), (pictures[:,:1], '(2, 1, 16, 8)'), (torch.zeros(2, 4, 16, 8), '(2, 4, 16, 8)'),
    (pictures[:0], 'nothing'), (pictures.where(pictures<.9, math.nan), 'nan'), (pictures/0, 'inf'), (pictures.long(), 'int64'), (pictures.numpy(), 'ndarray'), ('a.png', 'str')], ids=lambda v: v if isinstance(v, str) else '')
def test_what_is_no_batch_of_pictures_is_refused(name, wrong, told, one_line):
    with pytest.raises((TypeError, ValueError)) as e: desensitizer(name)(wrong)
    one_line(e.value, DESENSITIZERS[name].__name__, '(B,3,H,W)', told)

@each
@pytest.mark.parametrize('strength', [0, -1, math.nan, math.inf, 1e300, '12', None, True])
def test_strengths_that_mean_nothing(name, strength, one_line):
    with pytest.raises(ValueError) as e: DESENSITIZERS[name](strength)
    one_line(e.value, DESENSITIZERS[name].__name__, 'strength', repr(strength))

@pytest.mark.parametrize('name', ['blur', 'pixelation'])
@pytest.mark.parametrize('height', [0, -256, 2.5, math.nan, '256'])
def test_heights_that_mean_nothing(name, height, one_line):
    with pytest.raises(ValueError) as e: DESENSITIZERS[name](1, height)
    one_line(e.value, 'height', repr(height))

@pytest.mark.parametrize('seed', [-1, 2**63, 1.5, '7'])
def test_seeds_that_mean_nothing(seed, one_line):
    with pytest.raises(ValueError) as e: GaussianNoise(seed=seed)
    one_line(e.value, 'seed', repr(seed))

def test_matrices_that_blur_nothing(one_line):
    for call,told in ((lambda: blur_matrix(0, 1.), 'n must be'), (lambda: blur_matrix(2.5, 1.), 'n must be'), (lambda: blur_matrix(9, -1.), 'radius'), (lambda: blur_matrix(9, math.nan), 'radius'), (lambda: blur_matrix(9, 1., 0), 'passes')):
        with pytest.raises(ValueError) as e: call()
        one_line(e.value, told)

def test_a_strength_beyond_the_picture():
    "The whole picture in one block; a blur that sees the repeated borders only, half of each."
    x = pictures[:1]
    torch.testing.assert_close(Pixelate(1e6, None)(x), x.mean((2,3), keepdim=True).expand_as(x))
    torch.testing.assert_close(blur_matrix(5, 1e6), torch.tensor([.5,0,0,0,.5]).double().expand(5, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(Blur(1e6, None)(x), x[...,[0,0,-1,-1],[0,-1,0,-1]].mean(-1)[...,None,None].expand_as(x), atol=1e-4, rtol=0)

@each
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    half = desensitizer(name)(pictures.to(dtype))
    assert half.dtype==dtype and half.isfinite().all()
    if name!='noise': torch.testing.assert_close(half.float(), desensitizer(name)(pictures), atol=.03, rtol=0)

def test_a_name_has_other_words_and_any_case(one_line):
    for name in ('mosaic', 'Pixelate', 'PIXELATION', ' pixelation '): assert type(desensitizer(name)) is Pixelate
    for name,near in (('mosiac', 'pixelation'), ('blurr', 'blur'), ('nois', 'noise')):
        with pytest.raises(ValueError) as e: desensitizer(name)
        one_line(e.value, name, *DESENSITIZERS, f"Did you mean '{near}'?")
    for name in (None, 3, ''):
        with pytest.raises(ValueError) as e: desensitizer(name)
        one_line(e.value, repr(name), *DESENSITIZERS)

# --- copies and translations

def translated(d, x, how):
    if how=='export': return torch.export.export(d, (x,)).module()
    if type(d) is GaussianNoise: return torch.jit.trace(d, x, check_trace=False)
    with pytest.warns(torch.jit.TracerWarning): return torch.jit.trace(d, x, check_trace=False)   # it holds for this size, says PyTorch

@each
@pytest.mark.parametrize('how', ['trace', 'export'])
def test_translations_do_the_same(name, how):
    x = torch.rand(2, 3, 32, 16)*2-1
    other,d = translated(desensitizer(name), x, how), desensitizer(name)
    if name!='noise': return torch.testing.assert_close(other(-x), d(-x))
    a,b = other(0*x),other(0*x)
    assert not torch.equal(a, b) and abs(a.std()/d(0*x).std()-1)<.1      # new noise for each picture, of the same deviation

@pytest.mark.parametrize('n', [37, 41])
def test_a_dry_run_leaves_nothing_behind(n):
    "The matrix of a size that was first asked for in `torch.export`'s dry run had no values ever after."
    x = torch.rand(1, 3, n, n)*2-1
    torch.export.export(Blur(2., None), (x,))
    out = Blur(2., None)(x)
    assert type(out) is torch.Tensor
    torch.testing.assert_close(out, (blur_matrix(n, 2.)@x.double()@blur_matrix(n, 2.).T).float())

@each
def test_a_copy_goes_on_where_the_original_is(name):
    d = desensitizer(name); d(pictures)
    other = copy.deepcopy(d)
    assert torch.equal(other(pictures), d(pictures)) and repr(other)==repr(d) and len(repr(d))<=100

def test_a_device_without_dice_takes_the_cpus():
    "PyTorch's device without memory stands in for one."
    assert generator_on(torch.device('meta'), 3).device.type=='cpu'
    assert torch.equal(torch.rand(3, generator=generator_on(torch.device('meta'), 3)), torch.rand(3, generator=generator_on(torch.device('cpu'), 3)))
    out = GaussianNoise()(torch.zeros(2, 3, 8, 4, device='meta'))
    assert out.device.type=='meta' and out.shape==(2,3,8,4)
