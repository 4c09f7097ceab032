"pix2pix: sizes, wiring, and where gradients may go."
import copy, math, warnings
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import nn
from privreid.pix2pix import PatchGAN, UNetBlock, UNetGenerator, discriminator_loss, gan_loss, init_weights, unet_depth

def count(net): return sum(p.numel() for p in net.parameters())
def rand(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))*2-1

@pytest.fixture
def G():
    torch.manual_seed(0)
    return UNetGenerator((64,32), 8)

@pytest.fixture
def D():
    torch.manual_seed(1)
    return PatchGAN(8)

# --- the networks of the paper, without computing anything (`meta` has shapes only)

def test_sizes_of_the_paper():
    with torch.device('meta'): G,D = UNetGenerator(),PatchGAN()
    assert (count(G), count(D))==(41_828_995, 2_768_705)
    w = [64, 128, 256, 512, 512, 512, 512]
    convs = 16*(3*w[0]+sum(a*b for a,b in zip(w, w[1:])))                                   # down
    convs += 16*(sum(a*b*(1 if b is w[-1] and i==5 else 2) for i,(a,b) in enumerate(zip(w, w[1:])))+2*w[0]*3)+3   # up, skips double what comes in
    norms = 2*(sum(w[1:-1])+sum(w[:-1]))
    assert count(G)==convs+norms

@pytest.mark.parametrize('size', [(256,128), (128,64), (64,32), (32,32), (160,96), (384,128)])
def test_shapes(size):
    with torch.device('meta'):
        x = torch.zeros(2, 3, *size)
        assert UNetGenerator(size, 4)(x).shape==x.shape
        assert PatchGAN(4)(x, x).shape==(2, 1, size[0]//8-2, size[1]//8-2)

@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 8), st.integers(0, 8))
def test_depth_is_how_often_both_sides_halve(a, b, i, j):
    size = a*2**i, b*2**j
    halvings = min(7, *((n & -n).bit_length()-1 for n in size))          # trailing zero bits
    if halvings>=5: assert unet_depth(size)==halvings
    else:
        with pytest.raises(ValueError): unet_depth(size)

@pytest.mark.parametrize('size', [(250,128), (256,100), (16,16)])
def test_bad_size(size, one_line):
    with pytest.raises(ValueError) as e: UNetGenerator(size)
    one_line(e.value, f'{size[0]} x {size[1]}', 'multiples of 32')

def test_one_picture_is_enough_to_train_on(G, D):
    x = rand(1, 3, 64, 32)
    y = G(x)
    assert y.abs().max()<=1 and y.isfinite().all() and D(x, y).isfinite().all()

# --- skip connections

def test_a_block_hands_its_input_up_untouched():
    torch.manual_seed(0)
    block,x = UNetBlock(4, 8, UNetBlock(8, 8)), rand(2, 4, 16, 8)
    before = x.clone()
    out = block(x)
    assert out.shape==(2,8,16,8) and torch.equal(out[:,:4], before) and torch.equal(x, before)   # no activation in place
    assert not torch.allclose(out[:,4:], out[:,:4])

def test_detail_takes_the_skip(G):
    "With everything below the first level silenced, one changed pixel still shows, and only around itself."
    G.eval()
    G.body[1].body.register_forward_hook(lambda m,i,o: torch.zeros_like(o))
    x = rand(1, 3, 64, 32); spot = x.clone(); spot[...,30,16] *= -1
    changed = ((G(spot)-G(x))[0].abs().sum(0)>1e-9).nonzero()
    assert len(changed)
    assert (changed-torch.tensor([30,16])).abs().max()<=4
    block = G.body[1]
    while isinstance(block, UNetBlock):                                  # one level after another, down to the bottom
        width = block.body[1].in_channels
        assert width==block.body[-1].num_features
        block = next((m for m in block.body if isinstance(m, UNetBlock)), None)

def test_the_bottom_sees_the_whole_picture(G):
    "The other way round: through the levels below, every pixel has a say in the middle one."
    x = rand(2, 3, 64, 32).requires_grad_()
    G.eval()(x)[0,0,32,16].backward()
    assert (x.grad[0].abs().sum(0)>0).all() and not x.grad[1].any()

# --- weights

def test_init_statistics():
    torch.manual_seed(0)
    for net in (UNetGenerator((64,32), 32), PatchGAN(32)):
        for m in net.modules():
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
                mean,tol = (1. if isinstance(m, nn.BatchNorm2d) else 0.), 5*.02/m.weight.numel()**.5
                assert abs(m.weight.mean()-mean)<tol and abs(m.weight.std()-.02)<tol
                if m.bias is not None: assert not m.bias.any()
    conv = nn.Conv2d(8, 64, 3); init_weights(conv, .3)
    assert abs(conv.weight.std()-.3)<.02

def test_generator_has_bias_only_at_the_end_and_no_dropout(G):
    biased = [m for m in G.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) and m.bias is not None]
    assert biased==[G.body[-2]] and not any(isinstance(m, nn.Dropout) for m in G.modules())

# --- losses

def test_discriminator_is_conditional(D):
    x,y,z = (rand(2, 3, 64, 32, seed=i) for i in range(3))
    D.eval()
    assert not torch.allclose(D(x, y), D(z, y)) and not torch.allclose(D(x, y), D(x, z)) and not torch.allclose(D(x, y), D(y, x))

def test_no_gradient_reaches_the_generators(G, D):
    x,H = rand(2, 3, 64, 32), copy.deepcopy(G)
    p = G(x); r = H(p)                                                   # as in equation (4): condition and fake are both generated
    discriminator_loss(D, p, x, r).backward()
    assert all(q.grad is None for net in (G, H) for q in net.parameters())
    assert all(q.grad is not None and q.grad.any() for q in D.parameters() if q.dim()>1)
    p.sum().backward()                                                   # the graph of the generator is still whole
    assert all(q.grad is not None for q in G.parameters())

def test_discriminator_gradients_are_those_of_bce(D):
    x,y,fake = (rand(3, 3, 64, 32, seed=i) for i in range(3))
    ref,bce = copy.deepcopy(D), nn.BCEWithLogitsLoss()
    loss = discriminator_loss(D, x, y, fake); loss.backward()
    real_logits,fake_logits = ref(x, y), ref(x, fake)
    want = bce(real_logits, torch.ones_like(real_logits))+bce(fake_logits, torch.zeros_like(fake_logits)); want.backward()
    torch.testing.assert_close(loss, want)
    for a,b in zip(D.parameters(), ref.parameters()): torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)

def test_generator_loss_does_not_saturate():
    "A generator that is found out at once still learns: d/dz softplus(-z) = -sigmoid(-z)."
    z = torch.tensor([-30., -2., 0., 5.], requires_grad=True)
    gan_loss(z, True).backward()
    torch.testing.assert_close(z.grad, -torch.sigmoid(-z.detach())/4)
    assert z.grad[0]<-.2499

def test_half_precision_logits_are_summed_in_full():
    z = torch.linspace(-3, 3, 5000).bfloat16()
    loss = gan_loss(z, False)
    assert loss.dtype==torch.float32
    torch.testing.assert_close(loss, F.softplus(z.double()).mean().float())

# --- what is refused, and what is taken

wrong = pytest.mark.parametrize('make, told', [
    (lambda x: ((x+1)*127.5).byte(), 'uint8'), (lambda x: x[0], 'x[None]'), (lambda x: x[:,:1], '(2, 1, 64, 32)'), (lambda x: x.repeat(1, 2, 1, 1), '(2, 6, 64, 32)'),
    (lambda x: x[:0], 'nothing'), (lambda x: x[...,:16,:16], '16 x 16'), (lambda x: x.numpy(), 'ndarray'), (lambda x: x.to('meta'), 'meta')], ids=['uint8', 'one', 'grey', 'six', 'none', 'small', 'numpy', 'device'])
unseen = pytest.mark.parametrize('make, told', [(lambda x: (x+1)*127.5, 'values from'), (lambda x: x/0, 'inf'), (lambda x: x.where(x<.9, math.nan), 'nan')], ids=['255', 'inf', 'nan'])

@wrong
@pytest.mark.parametrize('mode', [True, False], ids=['training', 'eval'])
def test_what_does_not_fit_is_refused(G, D, make, told, mode, one_line):
    x = rand(2, 3, 64, 32)
    G.train(mode); D.train(mode)
    for name,call in dict(UNetGenerator=lambda: G(make(x)), PatchGAN=lambda: D(x, make(x))).items():
        with pytest.raises((TypeError, ValueError)) as e: call()
        one_line(e.value, name, told)

@unseen
def test_values_are_looked_at_where_nothing_is_trained(G, D, make, told, one_line):
    x = rand(2, 3, 64, 32)
    G(make(x)); D(x, make(x))                                            # the loop that trains names batch and epoch
    for name,call in dict(UNetGenerator=lambda: G.eval()(make(x)), PatchGAN=lambda: D.eval()(x, make(x))).items():
        with pytest.raises(ValueError) as e: call()
        one_line(e.value, name, told)

def test_another_size_than_the_generators(G, one_line):
    for size in ((128,64), (32,64), (64,64)):
        with pytest.raises(ValueError) as e: G(rand(1, 3, *size))
        one_line(e.value, f'{size[0]} x {size[1]}', '64 x 32')

def test_condition_and_picture_belong_together(D, one_line):
    "PyTorch would broadcast neither, and says so in words of its own."
    for other in ((1,3,64,32), (2,3,32,32)):
        with pytest.raises(ValueError) as e: D(rand(2, 3, 64, 32), rand(*other))
        one_line(e.value, 'condition', 'picture', other, (2,3,64,32))

@pytest.mark.parametrize('make, name', [
    (lambda: UNetGenerator((64,32), 0), 'ngf'), (lambda: UNetGenerator((64,32), 2.5), 'ngf'), (lambda: PatchGAN(-1), 'ndf'), (lambda: PatchGAN(8, 0), 'n_layers'),
    (lambda: UNetGenerator((0,32)), 'height'), (lambda: UNetGenerator((64,-32)), 'width'), (lambda: UNetGenerator((64.,32)), 'height'), (lambda: unet_depth(('64',32)), 'height')])
def test_numbers_that_make_no_network(make, name, one_line):
    with pytest.raises(ValueError) as e: make()
    one_line(e.value, name, 'must be')

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_brought_to_the_weights(G, D, dtype):
    x = rand(2, 3, 64, 32)
    out = G.eval()(x.to(dtype))
    assert out.dtype==torch.float32 and torch.equal(out, G(x.to(dtype).float()))
    assert torch.equal(D.eval()(x.to(dtype), x), D(x.to(dtype).float(), x))
    half = copy.deepcopy(G).to(torch.bfloat16)
    assert half(x).dtype==torch.bfloat16

def test_translations_and_copies_do_the_same(G, D):
    x = rand(2, 3, 64, 32)
    for net,args in ((G.eval(), (x,)), (D.eval(), (x, -x))):
        want = net(*args)
        with warnings.catch_warnings():
            warnings.simplefilter('error', torch.jit.TracerWarning)
            traced = torch.jit.trace(net, args)
        for other in (traced, torch.export.export(net, args).module(), copy.deepcopy(net), torch.compile(net, fullgraph=True, backend='eager')):
            torch.testing.assert_close(other(*args), want)

def test_no_logits_no_loss(one_line):
    with pytest.raises(ValueError) as e: gan_loss(torch.zeros(0, 1, 6, 2), True)
    one_line(e.value, 'gan_loss')

def test_reprs_fit_a_line(G, D): assert (repr(G), repr(D))==('UNetGenerator(size=(64, 32), ngf=8)', 'PatchGAN(ndf=8)')

@pytest.mark.parametrize('size', [(), .5, 64, (64,), 'ab', (64, 32, 3), (64., 32), None])
def test_sizes_that_are_none(size, one_line):
    for call in (lambda: unet_depth(size), lambda: UNetGenerator(size, 1)):
        with pytest.raises(ValueError) as e: call()
        one_line(e.value, 'height')
