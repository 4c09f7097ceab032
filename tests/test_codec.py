"Forward the file's own pixels, backward as if there were none."
import io
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from privreid.codec import THROUGH, WAYS, Codec, straight_through, via_file
from privreid.data import to_float, to_uint8
from privreid.outlet import encoded

KINDS = st.builds(Codec, st.sampled_from(['png', 'jpeg', 'webp']), st.integers(1, 100), st.sampled_from(['4:4:4', '4:2:0']), st.sampled_from([1., .5, .75, 2.]))

def pictures(n, h, w, seed): return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed))*2.4-1.2   # some beyond white

def from_pillow(c:Codec, im:np.ndarray)->np.ndarray:
    "The same way, written anew."
    picture,file,(h,w) = Image.fromarray(im), io.BytesIO(), im.shape[:2]
    if c.scale!=1: picture = picture.resize((max(1, round(w*c.scale)), max(1, round(h*c.scale))), Image.BILINEAR)
    if c.format=='png': picture.save(file, 'PNG')
    elif c.format=='webp': picture.save(file, 'WEBP', quality=c.quality)
    else: picture.save(file, 'JPEG', quality=c.quality, subsampling=c.colours)
    picture = Image.open(file).convert('RGB')
    return np.asarray(picture if c.scale==1 else picture.resize((w, h), Image.BICUBIC))

@settings(max_examples=40)
@given(KINDS, st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_forward_is_the_file_and_backward_is_nothing(c, n, h, w, seed):
    x = pictures(n, h, w, seed).requires_grad_()
    y = straight_through(x, c)
    for i,im in enumerate(to_uint8(x.detach()).permute(0,2,3,1).numpy()): assert (to_uint8(y.detach())[i].permute(1,2,0).numpy()==from_pillow(c, im)).all()
    assert torch.equal(y, to_float(to_uint8(y.detach())))   # whole pixels, to the bit
    weight = pictures(n, h, w, seed+1)
    assert torch.equal(torch.autograd.grad((y*weight).sum(), x)[0], weight)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('name', THROUGH[1:])
def test_other_precisions(dtype, name):
    x = pictures(2, 16, 8, 0).to(dtype).requires_grad_()
    y = via_file(x, name)
    assert torch.equal(y.float(), to_float(to_uint8(y.detach().float())))
    y.sum().backward()
    assert x.grad.dtype==dtype and (x.grad==1).all()

def test_the_usual_line_is_off_by_a_rounding():
    x = pictures(2, 32, 32, 0)
    c = Codec('jpeg', 75)
    assert not torch.equal(x+(c(x)-x), c(x)) and torch.equal(straight_through(x, c), c(x))

def test_nothing_is_nothing():
    x = pictures(2, 8, 8, 0)
    assert via_file(x) is x and via_file(x, '') is x
    assert Codec('jpeg')(x[:0]).shape==(0, 3, 8, 8)
    with pytest.raises(KeyError): via_file(x, 'gif')

def test_it_is_what_folders_are_written_with():
    im = to_uint8(pictures(1, 40, 30, 3))[0].permute(1,2,0).contiguous().numpy()
    def read(b): return np.asarray(Image.open(io.BytesIO(b)))
    assert (read(encoded(im))==Codec().pixels(im)).all() and (read(encoded(im, 'jpeg', 80))==Codec('jpeg', 80, '4:4:4').pixels(im)).all()

@pytest.mark.parametrize('wrong', [dict(format='gif'), dict(quality=0), dict(quality=101), dict(quality=9.5), dict(colours='4:1:1'), dict(scale=0), dict(scale=float('nan'))], ids=str)
def test_what_is_no_codec(wrong, one_line):
    with pytest.raises((ValueError, TypeError)) as e: Codec(**wrong)
    one_line(e.value)

def test_ways_get_worse():
    "On smooth pictures, as protected ones are: each way that keeps less is further from the original."
    x = torch.nn.functional.interpolate(pictures(4, 8, 4, 0).clamp(-1, 1), scale_factor=8, mode='bicubic').clamp(-1, 1)
    off = {k: 0. if c is None else (c(x)-x).square().mean().item() for k,c in WAYS.items()}
    assert off['no file: float']<off['PNG']<off['JPEG 95, 4:4:4']<=off['JPEG 95']<off['JPEG 90']<off['JPEG 75']
    assert off['resized to 3/4 and back']<off['resized to 1/2 and back']

@pytest.mark.full
def test_translated_networks_go_through_files_too():
    "torch.compile steps aside where the file is."
    net = torch.nn.Conv2d(3, 3, 1)
    def step(x, name): return via_file(net(x).tanh(), name)
    fast = torch.compile(step, backend='eager', dynamic=False)
    for name in THROUGH:
        x = pictures(2, 16, 16, 0)
        (a,ga),(b,gb) = ((y, torch.autograd.grad(y.sum(), net.weight)[0]) for y in (step(x, name), fast(x, name)))
        assert torch.equal(a, b) and torch.equal(ga, gb)
