"AGW: losses against loops and libraries, parameters counted afresh, weights from files that may be anything."
import copy, json, math, pickle, re, subprocess, sys, time, urllib.error, warnings, zipfile
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch, torchvision
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
import privreid.agw, privreid.backbones
from privreid.agw import (AGW, BACKBONES, STREET_SEED, CenterLoss, GeM, Mini, NonLocal, ReidOutput, agw_loss, build_backbone, gem, id_loss,
                          read_weights, torchvision_name, undo_weight, wrt_loss)
from privreid.body import PERSON, draw_fields
from privreid.config import Config, check, preset
from privreid.data import SyntheticPedestrians
from privreid.evaluation import four_settings
from privreid.files import legible
from privreid.machine import accelerator_on
from privreid.training import ReidTraining

def rng(seed): return np.random.default_rng(seed)
def count(net): return sum(p.numel() for p in net.parameters())
def slopes(f, x, h=1e-5):
    "Gradient of `f` at the array `x`, by central differences."
    g = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        e = np.zeros_like(x); e[i] = h
        g[i] = (f(x+e)-f(x-e))/(2*h)
    return g

# --- GeM

def gem_loop(x, p, eps=1e-6):
    return np.array([[np.mean([max(v, eps)**p for v in c.ravel()])**(1/p) for c in im] for im in x])

@given(st.floats(.5, 8), st.integers(0, 99))
def test_gem(p, seed):
    x = rng(seed).normal(.5, 1, (2,3,4,2))                               # negative values count as eps
    np.testing.assert_allclose(gem(torch.from_numpy(x), p).numpy(), gem_loop(x, p), rtol=2e-5)

@pytest.mark.parametrize('p', ['', None, 0, -1., math.nan, True, torch.ones(2, 3), torch.tensor(math.nan), torch.tensor(3)])
def test_exponents_that_are_none(p, one_line):
    with pytest.raises(ValueError) as e: gem(torch.ones(1, 2, 3, 3), p)
    one_line(e.value, 'p must be')

def test_gem_gradients():
    x,pool = rng(0).uniform(.2, 2, (2,3,4,2)), GeM(2.5)
    t = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    pool(t).pow(2).sum().backward()
    np.testing.assert_allclose(t.grad.numpy(), slopes(lambda v: (gem_loop(v, 2.5)**2).sum(), x), rtol=1e-3, atol=1e-5)
    dp = slopes(lambda v: (gem_loop(x, v[0])**2).sum(), np.array([2.5]))
    np.testing.assert_allclose(pool.p.grad.item(), dp[0], rtol=1e-3)

def test_gem_grows_from_mean_to_maximum():
    x = torch.rand(4, 5, 4, 2)+.01
    pooled = [x.mean((2,3))]+[gem(x, p) for p in (1.5, 3., 6., 20.)]+[x.amax((2,3))]
    assert all((a<b).all() for a,b in zip(pooled, pooled[1:]))

# --- non-local block

@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 4), st.sampled_from([None, 1, 3]), st.integers(0, 99))
def test_nonlocal_is_attention_over_all_pairs(c, h, w, inter, seed):
    torch.manual_seed(seed)
    nl,x = NonLocal(c, inter).double().eval(), torch.randn(2, c, h, w, dtype=torch.float64)
    nn.init.normal_(nl.out[1].weight); nn.init.normal_(nl.out[1].bias)
    conv = lambda m,v: np.einsum('oc,bcn->bon', m.weight.detach().numpy()[:,:,0,0], v)+m.bias.detach().numpy()[:,None]
    v = x.flatten(2).numpy()
    theta,phi,g = conv(nl.theta, v), conv(nl.phi, v), conv(nl.g, v)
    f = np.einsum('bci,bcj->bij', theta, phi)/(h*w)                      # (B,N,N), the matrix the fast form never builds
    y = conv(nl.out[0], np.einsum('bij,bcj->bci', f, g))
    bn = nl.out[1]
    y = y/math.sqrt(1+bn.eps)*bn.weight.detach().numpy()[:,None]+bn.bias.detach().numpy()[:,None]
    np.testing.assert_allclose(nl(x).detach().flatten(2).numpy(), v+y, atol=1e-10)

@pytest.mark.parametrize('channels, size', [(512, (32,16)), (1024, (16,8))], ids=['stage 2', 'stage 3'])
def test_nonlocal_multiplies_in_the_cheaper_order(channels, size):
    "Of a ResNet-50 on 256 x 128: in stage 2 there are more places than inner channels, in stage 3 fewer."
    with FlopCounterMode(display=False) as counter: NonLocal(channels).eval()(torch.zeros(1, channels, *size))
    places,inter = size[0]*size[1], channels//2
    assert counter.get_total_flops()==2*(4*channels*inter*places+2*places*inter*min(inter, places))

def test_nonlocal_learns_from_the_first_step():
    "It starts as the identity, but its BatchNorm must not be stuck there."
    nl,x = NonLocal(4), torch.randn(2, 4, 3, 3)
    nl(x).pow(2).sum().backward()
    assert nl.out[1].weight.grad.any()

# --- losses

def test_id_loss_gradient_is_softmax_minus_target():
    logits,labels = torch.randn(6, 9, requires_grad=True), torch.tensor([0,8,3,3,1,0])
    id_loss(logits, labels, .2).backward()
    target = torch.full((6,9), .2/9); target[torch.arange(6), labels] += .8
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1)-target)/6)

def test_id_loss_is_kl_to_the_smoothed_target():
    logits,labels = torch.randn(6, 9, dtype=torch.float64)*3, torch.tensor([0,8,3,3,1,0])
    target = torch.full((6,9), .1/9, dtype=torch.float64); target[torch.arange(6), labels] += .9
    kl = nn.KLDivLoss(reduction='batchmean')(logits.log_softmax(1), target)
    entropy = -(target*target.log()).sum(1).mean()
    torch.testing.assert_close(id_loss(logits, labels).double(), kl+entropy, rtol=1e-5, atol=0)

@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 8), st.integers(0, 99))
def test_center_loss(ids, features, n, seed):
    r = rng(seed)
    f,labels,center = r.normal(size=(n,features)), r.integers(0, ids, n), CenterLoss(ids, features)
    c = center.centers.detach().double().numpy()
    t = torch.tensor(f, dtype=torch.float32, requires_grad=True)
    loss = center(t, torch.from_numpy(labels)); loss.backward()
    value,df,dc = 0., np.zeros_like(f), np.zeros_like(c)
    for i,l in enumerate(labels):
        value += ((f[i]-c[l])**2).sum()/n
        df[i] = 2*(f[i]-c[l])/n; dc[l] -= 2*(f[i]-c[l])/n
    np.testing.assert_allclose(loss.item(), value, rtol=1e-4)
    np.testing.assert_allclose(loss.item(), F.mse_loss(t, center.centers[labels], reduction='sum').item()/n, rtol=1e-4)
    np.testing.assert_allclose(t.grad.numpy(), df, atol=1e-5)
    np.testing.assert_allclose(center.centers.grad.numpy(), dc, atol=1e-5)

def test_centres_without_weight_stay():
    center = CenterLoss(4, 3)
    (0*center(torch.randn(6, 3), torch.tensor([0,0,1,2,2,2]))).backward()
    undo_weight(center, 0.)
    assert not center.centers.grad.any()             # and no 0/0

@pytest.mark.parametrize('weight', [.0005, .1])
def test_centres_step_as_if_their_loss_had_no_weight(weight):
    torch.manual_seed(0)
    center,f,labels = CenterLoss(4, 3), torch.randn(6, 3), torch.tensor([0,0,1,2,2,2])
    start = center.centers.detach().clone()
    grad, = torch.autograd.grad(center(f, labels), center.centers)
    opt = torch.optim.SGD(center.parameters(), lr=.5)
    (weight*center(f, labels)).backward()
    undo_weight(center, weight); opt.step()
    torch.testing.assert_close(center.centers.detach(), start-.5*grad, rtol=1e-4, atol=1e-5)
    assert torch.equal(center.centers[3], start[3])                      # nobody of this identity was there

def wrt_numpy(f, labels):
    "Equations (7) and (8) of Ye et al., anchor by anchor; the anchor is among its positives, at distance 0."
    total = 0.
    for i in range(len(f)):
        d = np.linalg.norm(f-f[i], axis=1)
        P,N = d[labels==labels[i]], d[labels!=labels[i]]
        wp,wn = np.exp(P-P.max()), np.exp(N.min()-N)
        total += np.logaddexp(0, (wp*P).sum()/wp.sum()-(wn*N).sum()/wn.sum())
    return total/len(f)

@settings(max_examples=40)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(1, 6), st.floats(.1, 10), st.integers(0, 999))
def test_wrt(p, k, features, scale, seed):
    r = rng(seed)
    labels = r.permutation(np.repeat(np.arange(p)*7, k))
    f = r.normal(size=(p*k,features))*scale
    t = torch.tensor(f, dtype=torch.float32, requires_grad=True)
    loss = wrt_loss(t, torch.from_numpy(labels)); loss.backward()
    np.testing.assert_allclose(loss.item(), wrt_numpy(f, labels), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(t.grad.numpy(), slopes(lambda v: wrt_numpy(v, labels), f), rtol=2e-2, atol=2e-3)

def test_wrt_of_two_strangers_is_a_soft_margin():
    "Positive: the anchor itself at 0. Negative: the other. That is SoftMarginLoss of the distance."
    f = torch.tensor([[0.,0.],[3.,4.]])
    torch.testing.assert_close(wrt_loss(f, torch.tensor([0,1])), nn.SoftMarginLoss()(torch.tensor([5.]), torch.tensor([1.])), atol=1e-5, rtol=0)

def test_wrt_of_one_pair():
    "Anchor with one positive and one negative: soft-margin triplet, the positive weighted against the anchor at 0."
    f,labels = torch.tensor([[0.,0.],[2.,0.],[0.,3.]]), torch.tensor([0,0,1])
    s = lambda z: math.log1p(math.exp(z))
    ap,an0,an1 = 2., 3., math.sqrt(13)
    wp = math.exp(ap)/(math.exp(ap)+1)
    w0 = math.exp(-an0)/(math.exp(-an0)+math.exp(-an1))
    want = (s(wp*ap-an0)+s(wp*ap-an1)+s(0-(w0*an0+(1-w0)*an1)))/3
    assert wrt_loss(f, labels).item()==pytest.approx(want, rel=1e-4)

def test_wrt_far_apart_is_the_librarys_batch_hard_soft_triplet():
    "At large distances the weights pick the farthest positive and the nearest negative."
    labels = torch.arange(4).repeat_interleave(4)
    for seed in range(5):
        f = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))*400
        lp = LpDistance(normalize_embeddings=False)
        theirs = TripletMarginLoss(margin=0, smooth_loss=True, distance=lp)
        want = theirs(f, labels, BatchHardMiner(distance=lp)(f, labels))
        assert wrt_loss(f, labels).item()==pytest.approx(want.item(), rel=5e-3)

def test_wrt_survives_repeated_images():
    "The sampler repeats images of people who have few."
    f = torch.randn(4, 2048).repeat_interleave(4, 0).requires_grad_()
    loss = wrt_loss(f, torch.arange(4).repeat_interleave(4)); loss.backward()
    assert loss.isfinite() and f.grad.isfinite().all()

def test_wrt_of_a_single_person_is_not_nan(one_line):
    "Two training identities leave one after the validation split. A number or a clear refusal, not a silent NaN."
    f = torch.randn(4, 8, requires_grad=True)
    try: loss = wrt_loss(f, torch.zeros(4, dtype=torch.long))
    except ValueError as e: return one_line(e)
    loss.backward()
    assert loss.isfinite() and f.grad.isfinite().all()

def test_wrt_is_exact_under_autocast():
    "Differences of large squares need float32: mixed precision must not reach them."
    f = (torch.rand(16, 512, generator=torch.Generator().manual_seed(0))+2)
    labels = torch.arange(4).repeat_interleave(4)
    want = wrt_numpy(f.double().numpy(), labels.numpy())
    with torch.autocast('cpu', torch.bfloat16): got = wrt_loss(f, labels).item()
    assert got==pytest.approx(want, rel=1e-3)

def test_agw_loss_is_its_three_parts():
    torch.manual_seed(0)
    out,labels,center = ReidOutput(torch.randn(4,3), torch.randn(4,5)), torch.tensor([0,0,2,2]), CenterLoss(3, 5)
    want = nn.CrossEntropyLoss(label_smoothing=.1)(out.logits, labels)+.0005*((out.pooled-center.centers[labels])**2).sum(1).mean()+wrt_numpy(out.pooled.numpy(), labels.numpy())
    torch.testing.assert_close(agw_loss(out, labels, center), want.float(), rtol=1e-4, atol=0)

# --- the model

def non_local(c, inter): return 3*(c*inter+inter)+inter*c+c+2*c           # theta, phi, g; out; its BatchNorm

@pytest.mark.parametrize('inter', [None, 1])
def test_resnet50_parameters_part_by_part(inter):
    with torch.device('meta'): agw,ref = AGW(751, inter_channels=inter), torchvision.models.resnet50()
    assert count(ref)-count(ref.fc)==23_508_032
    extra = dict(layer2=2*non_local(512, inter or 256), layer3=3*non_local(1024, inter or 512))
    for name,part in ref.named_children():
        if name!='fc': assert count(getattr(agw.backbone, name))==count(part)+extra.get(name, 0), name
    assert (count(agw.pool), count(agw.neck), count(agw.classifier))==(1, 2*2048, 751*2048)
    assert count(agw)==23_508_032+sum(extra.values())+1+2*2048+751*2048
    assert not agw.neck.bias.requires_grad and agw.classifier.bias is None

@pytest.mark.parametrize('backbone, size, features', [('resnet50', (256,128), (2048,16,8)), ('resnet18', (256,128), (512,16,8)), ('mini', (64,32), (8*Mini().conv1.out_channels,8,4))])
def test_feature_map(backbone, size, features):
    seen = []
    with torch.device('meta'):
        agw = AGW(5, backbone)
        agw.backbone.layer4.register_forward_hook(lambda m,i,o: seen.append(tuple(o.shape[1:])))
        out = agw(torch.zeros(2, 3, *size))
    assert seen==[features] and out.pooled.shape==(2,features[0]) and out.logits.shape==(2,5)

def randomize(state, seed=0):
    "Other values in every tensor, all of them harmless (variances stay positive)."
    g = torch.Generator().manual_seed(seed)
    return {k: (v+(torch.rand(v.shape, generator=g)-.5)*v.std(correction=0).clamp(min=.1) if v.is_floating_point() else v) for k,v in state.items()}

def test_backbone_is_torchvisions_with_last_stride_1(tmp_path):
    ref = torchvision.models.resnet18(num_classes=7).eval()
    ref.load_state_dict(randomize(ref.state_dict()))
    torch.save(ref.state_dict(), tmp_path/'w.pth')
    with pytest.warns(UserWarning, match='2 tensors .* stay behind, such as fc.weight'): agw = AGW(3, 'resnet18', str(tmp_path/'w.pth')).eval()
    ref.layer4[0].conv1.stride = ref.layer4[0].downsample[0].stride = (1,1)
    x = torch.rand(2, 3, 64, 32)
    mean,std = (torch.tensor(v)[:,None,None] for v in ((.485, .456, .406), (.229, .224, .225)))
    with torch.no_grad():
        maps = nn.Sequential(*list(ref.children())[:-2])((x-mean)/std)
        want = nn.functional.normalize(maps.clamp(min=1e-6).pow(3).mean((2,3)).pow(1/3), dim=1)
        agw.neck.running_var.fill_(1-agw.neck.eps)                        # a neck that does nothing
        torch.testing.assert_close(agw(x*2-1), want, rtol=1e-3, atol=1e-5)

def test_stem_relu():
    seen = []
    x = torch.rand(4, 3, 64, 32)*2-1
    torch.manual_seed(0); on = AGW(3, 'mini')
    off = AGW(3, 'mini', stem_relu=False); off.load_state_dict(on.state_dict())
    for net in (on, off): net.backbone.maxpool.register_forward_hook(lambda m,i,o: seen.append(o.min().item()))
    a,b = on(x),off(x)
    assert seen[0]>=0>seen[1] and not torch.allclose(a.pooled, b.pooled)
    assert isinstance(off.backbone.layer1[0].relu, nn.ReLU)               # only the stem's

def test_eval_features_have_length_one():
    torch.manual_seed(0)
    net,x = AGW(4, 'mini'), torch.rand(6, 3, 64, 32)*2-1
    for _ in range(3): net(x)                                            # statistics of their own
    f = net.eval()(x)
    torch.testing.assert_close(f.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(net(x[2:3])[0], f[2], rtol=1e-4, atol=1e-5)   # a batch of one
    assert (f[0]-f[1]).norm()>1e-3

def test_training_gives_the_losses_what_they_need():
    net,x = AGW(4, 'mini'), torch.rand(4, 3, 64, 32)*2-1
    out = net(x)
    torch.testing.assert_close(out.logits, net.neck(out.pooled)@net.classifier.weight.T)
    (out.logits.sum()+out.pooled.sum()).backward()
    assert net.pool.p.grad.abs()>0 and net.neck.bias.grad is None and not {'mean', 'std'}&set(net.state_dict())

# --- weights

def test_agw_offers_what_backbones_has():
    for name in privreid.backbones.__all__: assert getattr(privreid.agw, name) is getattr(privreid.backbones, name), name

@pytest.fixture
def state(): return randomize(Mini().state_dict())

def test_weights_from_either_file(state, tmp_path):
    save_file(state, tmp_path/'w.safetensors'); torch.save(state, tmp_path/'w.pth')
    for name in ('w.safetensors', 'w.pth'):
        got = build_backbone('mini', str(tmp_path/name))[0].state_dict()
        assert got.keys()==state.keys() and all(torch.equal(got[k], state[k]) for k in state)
    agw = AGW(3, 'mini', str(tmp_path/'w.pth'))
    assert torch.equal(agw.backbone.conv1.weight, state['conv1.weight']) and torch.equal(agw.backbone.layer4[0].bn2.running_var, state['layer4.0.bn2.running_var'])

def test_weights_without_batch_counters(state, tmp_path):
    "ImageNet files from before PyTorch 0.4.1 have no `num_batches_tracked`; PyTorch loads them, so do we."
    torch.save({k: v for k,v in state.items() if 'num_batches' not in k}, tmp_path/'old.pth')
    got = build_backbone('mini', str(tmp_path/'old.pth'))[0].state_dict()
    assert torch.equal(got['conv1.weight'], state['conv1.weight'])

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.mkdir, (self.path,)

@pytest.mark.parametrize('how', ['torch', 'pickle', 'beside tensors'])
def test_code_in_a_pickle_is_refused(tmp_path, how, state, one_line):
    path,trace = tmp_path/'w.pth', tmp_path/'it-ran'
    if how=='pickle': path.write_bytes(pickle.dumps(Evil(trace), protocol=2))
    else: torch.save(Evil(trace) if how=='torch' else state|dict(extra=Evil(trace)), path)
    with pytest.raises(ValueError) as e: AGW(3, 'mini', str(path))
    assert not trace.exists()
    one_line(e.value, path)
    torch.load(path, weights_only=False) if how!='pickle' else pickle.loads(path.read_bytes())
    assert trace.exists()                                                # the trap works: it was refused, not broken

def test_wrong_files(state, tmp_path, one_line):
    def refused(make, *names, error=ValueError):
        path = tmp_path/'w.pth'
        make(path)
        with pytest.raises(error) as e: build_backbone('mini', str(path))
        one_line(e.value, path, *names)
    refused(lambda p: torch.save(randomize(Mini(8).state_dict()), p), 'mini', 'conv1.weight')          # other width
    refused(lambda p: torch.save({k: v for k,v in state.items() if k!='bn1.bias'}, p), 'bn1.bias', '64 of its 65')
    refused(lambda p: torch.save({'net': {'other': torch.zeros(3)}}, p), 'mini', '0 of its 65', 'conv1.weight')
    refused(lambda p: torch.save({}, p), 'mini', '0 of its 65')
    refused(lambda p: torch.save({k: v.where(v<v.max(), math.nan) if k=='layer2.0.conv1.weight' else v for k,v in state.items()}, p), 'layer2.0.conv1.weight', 'NaN')
    refused(lambda p: torch.save(torch.zeros(3), p))                                                   # not even a dict
    refused(lambda p: torch.save(state|{'conv1.weight': 3}, p), 'conv1.weight')                        # not even a tensor
    refused(lambda p: p.write_bytes(b'\x80\x04 nonsense'))
    refused(lambda p: p.write_bytes(b''))
    (tmp_path/'w.safetensors').write_bytes(b'\x10\0\0\0\0\0\0\0{"a":')
    with pytest.raises(ValueError) as e: build_backbone('mini', str(tmp_path/'w.safetensors'))
    one_line(e.value, tmp_path/'w.safetensors')
    with pytest.raises(FileNotFoundError) as e: build_backbone('mini', str(tmp_path/'none.pth'))
    one_line(e.value, tmp_path/'none.pth')

HEAD = {'classifier.weight': torch.zeros(1041, 96), 'bottleneck.running_mean': torch.zeros(96)}

@pytest.mark.parametrize('wrap', [
    lambda s: {f'module.{k}': v for k,v in s.items()}, lambda s: {f'backbone.{k}': v for k,v in s.items()}, lambda s: {f'base.{k}': v for k,v in s.items()}, lambda s: {f'model.{k}': v for k,v in s.items()},
    lambda s: {'state_dict': s}, lambda s: {'model': s, 'optimizer': {'state': {0: {'exp_avg': torch.zeros(12, 3, 7, 7)}}}, 'epoch': 3}, lambda s: {'net': {f'module.base.{k}': v for k,v in s.items()}},
    lambda s: {'checkpoint': {'model': {'state_dict': {f'module.encoder.{k}': v for k,v in s.items()}}}}, lambda s: {k: v.half() for k,v in s.items()}],
    ids=['module', 'backbone', 'base', 'model', 'state_dict', 'trainer', 'net', 'deep', 'half'])
@pytest.mark.parametrize('head', [{}, HEAD], ids=['bare', 'head'])
def test_foreign_checkpoints(state, tmp_path, wrap, head, one_line):
    torch.save(wrap(state|head), tmp_path/'w.pth')
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always'); got = build_backbone('mini', tmp_path/'w.pth')[0].state_dict()
    for k in state: torch.testing.assert_close(got[k], state[k], atol=1e-3, rtol=1e-3)
    told = [str(x.message) for x in w if x.category is UserWarning]
    assert len(told)==bool(head or 'optimizer' in wrap(state))
    for t in told: one_line(t, tmp_path/'w.pth', 'stay behind')

@pytest.mark.parametrize('name', ['mini', 'resnet18'])
def test_a_runs_own_network_is_weights(name, tmp_path):
    "With its non-local blocks, which stand between torchvision's; only the head of other people stays behind."
    torch.manual_seed(0)
    theirs = AGW(5, name)
    theirs.load_state_dict(randomize(theirs.state_dict()))
    save_file(theirs.state_dict(), tmp_path/'reid.safetensors')
    with pytest.warns(UserWarning, match='stay behind'): ours = AGW(9, name, tmp_path/'reid.safetensors')
    assert sum(isinstance(m, NonLocal) for m in ours.modules())>=2
    for k,v in theirs.backbone.state_dict().items(): assert torch.equal(ours.backbone.state_dict()[k], v), k
    with pytest.warns(UserWarning): bare = build_backbone(name, tmp_path/'reid.safetensors')[0]
    assert torch.equal(bare.layer3[-1].conv1.weight, theirs.backbone.layer3[-1][0].conv1.weight)

def test_weights_of_another_network(tmp_path, one_line):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path/'w.pth')
    with pytest.raises(ValueError) as e: build_backbone('mini', tmp_path/'w.pth')
    one_line(e.value, 'mini', 'of its 65', 'conv1.weight')

def test_files_that_promise_too_much(tmp_path, one_line):
    "Nothing is set aside for what a header promises."
    (tmp_path/'huge.safetensors').write_bytes((2**60).to_bytes(8, 'little')+b'{"a":')
    with zipfile.ZipFile(tmp_path/'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('archive/data/0', bytes(50_000_000))
    (tmp_path/'folder.pth').mkdir()
    whole = tmp_path/'whole.pth'; torch.save(Mini().state_dict(), whole)
    (tmp_path/'half.pth').write_bytes(whole.read_bytes()[:whole.stat().st_size//2])
    start = time.process_time()
    for name in ('huge.safetensors', 'bomb.pth', 'half.pth', 'folder.pth', 'none\0.pth'):
        with pytest.raises((ValueError, OSError)) as e: read_weights(tmp_path/name)
        one_line(e.value, legible(name))
    assert time.process_time()-start<1
    with pytest.raises(FileNotFoundError) as e: read_weights('~nobody-here/w.pth')
    one_line(e.value, 'nobody-here')

@pytest.mark.parametrize('fault', [urllib.error.URLError('no route to host'), TimeoutError('timed out'), RuntimeError('invalid hash value (expected "f37072fd", got "e3b0c442")')], ids=['offline', 'timeout', 'half a file'])
def test_imagenet_offline(monkeypatch, tmp_path, one_line, fault):
    def fail(*args, **kw): raise fault
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fail)
    with pytest.raises(ConnectionError) as e: build_backbone('resnet18', 'imagenet')
    one_line(e.value, 'resnet18', 'local file')

def test_imagenet_weights_are_used(monkeypatch, tmp_path):
    ref = torchvision.models.resnet18().state_dict()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, dst, *a, **kw: torch.save(ref, dst))
    got = build_backbone('resnet18', 'imagenet')[0].state_dict()
    assert not any(k.startswith('fc') for k in got) and all(torch.equal(v, ref[k]) for k,v in got.items())

# --- weights that come with the package

STREET = Path(privreid.__file__).with_name('street.safetensors')

@pytest.fixture(scope='module')
def made():
    with safe_open(STREET, 'pt') as f: return json.loads(f.metadata()['made'])

def test_all_arms_start_equal():
    "Whatever else was drawn before: other heads, other non-local blocks, the same features."
    x,starts = torch.rand(4, 3, 64, 32)*2-1, []
    for seed,inter in ((0, None), (1, None), (2, 1)):
        torch.manual_seed(seed)
        starts.append(AGW(5, 'mini', 'street', inter_channels=inter))
    kept = load_file(STREET)
    for agw in starts:
        got = {torchvision_name(k): v for k,v in agw.backbone.state_dict().items()}
        assert len(kept)==65 and all(got[k].equal(v.float()) for k,v in kept.items())
    pooled = [agw(x).pooled for agw in starts]
    assert pooled[0].equal(pooled[1]) and pooled[0].equal(pooled[2])
    assert not starts[0].backbone.layer3[0][1].theta.weight.equal(starts[1].backbone.layer3[0][1].theta.weight)

def test_street_is_small_and_says_how_it_was_made(made):
    assert STREET.stat().st_size<500_000 and all(t.dtype==torch.float16 and t.isfinite().all() for t in load_file(STREET).values())
    assert all(part in made['recipe'] for part in (f'seed={STREET_SEED}', 'people=', 'epochs=')) and made['privreid']

def test_street_recognises_what_is_written_down(made):
    "The backbone of the recorded accuracy: on a street that it has not seen it is a start, no more."
    data = SyntheticPedestrians(test_ids=64, size=(64, 32)).load()
    found = four_settings(AGW(1, 'mini', 'street').eval(), None, data.query, data.gallery, settings=('raw-raw',))['raw-raw']
    told = made['untouched_on_seed_0']
    assert (found.rank1, found.mAP)==pytest.approx((told['rank1']/100, told['mAP']/100), abs=.012) and found.queries==told['queries']
    assert found.rank1<.2 and made['own_test_people']['rank1']>90

@pytest.mark.parametrize('backbone', ['resnet18', 'resnet50'])
def test_street_fits_mini_only(backbone, one_line):
    for make in (lambda: AGW(3, backbone, 'street'), lambda: check(Config(backbone=backbone, weights='street'))):
        with pytest.raises(ValueError) as e: make()
        one_line(e.value, "'street'", "'mini'", backbone)

@pytest.mark.parametrize('harm', [lambda b: b[:-1]+bytes([b[-1]^1]), lambda b: b[:-7], lambda b: b'', None], ids=['one bit', 'cut', 'empty', 'gone'])
def test_street_that_is_another_is_refused(harm, monkeypatch, tmp_path, one_line):
    (tmp_path/'privreid').mkdir()
    if harm: (tmp_path/'privreid'/'street.safetensors').write_bytes(harm(STREET.read_bytes()))
    monkeypatch.setattr(privreid.backbones, 'files', lambda name: tmp_path/name)
    with pytest.raises(ValueError) as e: AGW(3, 'mini', 'street')
    one_line(e.value, 'street.safetensors', 'install')

def looks(seed, people):
    "What one can choose of a person; bodies differ beside it by continuous numbers."
    chosen = [k for k,v in PERSON.items() if isinstance(v, int)]
    return {tuple(draw_fields(PERSON, seed, 1, p)[k] for k in chosen) for p in people}

def test_nobody_walks_in_two_streets(made):
    "Keys of different seeds are different, so people are drawn anew; and nobody looks like one of the street by chance."
    people = int(re.search(r'people=(\d+)', made['recipe'])[1])
    known = looks(STREET_SEED, range(1, people+1))
    assert len(known)==people
    for seed in range(5): assert not known&looks(seed, range(1, 1+400+100+32)), seed   # colab's street is the longest of the presets

def test_the_street_of_the_weights_is_no_place_to_test(one_line):
    cfg = preset('demo', weights='street')
    assert cfg.weights=='street' and check(cfg)==cfg
    with pytest.raises(ValueError) as e: check(replace(cfg, seed=STREET_SEED))
    one_line(e.value, f'seed {STREET_SEED}', 'street')
    check(replace(cfg, seed=STREET_SEED, weights='')); check(replace(cfg, seed=STREET_SEED, data='market1501'))

def test_a_training_starts_from_the_street():
    cfg = preset('demo', weights='street', epochs=1)
    for paired in (True, False):
        reid = ReidTraining(cfg, 7, accelerator_on('cpu'), paired=paired).nets['reid']
        assert reid.backbone.conv1.weight.equal(load_file(STREET)['conv1.weight'].float())

def test_the_package_carries_its_data(tmp_path):
    root = STREET.parent.parent
    if not (root/'setup.py').is_file(): pytest.skip('an installed package')
    subprocess.run([sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', tmp_path, 'build_py', '--build-lib', tmp_path/'lib'], cwd=root, check=True, capture_output=True)
    for name in ('street.safetensors', 'tables.json', 'demo_run/results.json'): assert (tmp_path/'lib'/'privreid'/name).read_bytes()==(STREET.parent/name).read_bytes()

def test_unknown_backbone(one_line):
    for name in ('resnet33', 'resnet51', 50, None):
        with pytest.raises(ValueError) as e: AGW(3, name)
        one_line(e.value, repr(name), *BACKBONES)
    with pytest.raises(ValueError) as e: AGW(3, 'resnet51')
    one_line(e.value, "Did you mean 'resnet50'?")
    assert AGW(3, 'Mini').features==AGW(3, 'mini').features==96
    with pytest.raises(ValueError) as e: AGW(3, 'mini', 'imagenet')
    one_line(e.value, 'mini')

# --- what is refused, and what is taken

@pytest.mark.parametrize('make, name', [
    (lambda: AGW(0, 'mini'), 'identities'), (lambda: AGW(2.5, 'mini'), 'identities'), (lambda: AGW('3', 'mini'), 'identities'), (lambda: AGW(3, 'mini', inter_channels=0), 'inter_channels'),
    (lambda: GeM(0), 'p'), (lambda: GeM(3, -1), 'eps'), (lambda: Mini(0), 'width'), (lambda: CenterLoss(0, 3), 'identities'), (lambda: CenterLoss(3, -1), 'features')])
def test_numbers_that_make_no_model(make, name, one_line):
    with pytest.raises(ValueError) as e: make()
    one_line(e.value, name, 'must be')

@pytest.mark.parametrize('make, told', [
    (lambda x: ((x+1)*127.5).byte(), 'uint8'), (lambda x: x[0], 'x[None]'), (lambda x: x[:,:1], '(2, 1, 64, 32)'), (lambda x: x[:0], 'nothing'), (lambda x: x.numpy(), 'ndarray'), (lambda x: x.to('meta'), 'meta'),
    (lambda x: (x+1)*127.5, 'values from'), (lambda x: x/0, 'inf'), (lambda x: x.where(x<.9, math.nan), 'nan')], ids=['uint8', 'one', 'grey', 'none', 'numpy', 'device', '255', 'inf', 'nan'])
def test_what_is_no_batch_of_pictures_is_refused(make, told, one_line):
    net,x = AGW(3, 'mini').eval(), torch.rand(2, 3, 64, 32)*2-1
    with pytest.raises((TypeError, ValueError)) as e: net(make(x))
    one_line(e.value, 'AGW', told)

def test_one_picture_teaches_nothing_but_has_features(one_line):
    net,x = AGW(3, 'mini'), torch.rand(1, 3, 64, 32)*2-1
    with pytest.raises(ValueError) as e: net(x)
    one_line(e.value, 'AGW', '.eval()')
    assert net.eval()(x).shape==(1,96)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_brought_to_the_weights(dtype):
    net,x = AGW(3, 'mini').eval(), (torch.rand(2, 3, 64, 32)*2-1).to(dtype)
    assert torch.equal(net(x), net(x.float()))

def test_translations_and_copies_do_the_same():
    torch.manual_seed(0)
    net,x = AGW(3, 'mini').eval(), torch.rand(2, 3, 64, 32)*2-1
    want = net(x)
    for other in (torch.jit.trace(net, x), torch.export.export(net, (x,)).module(), copy.deepcopy(net), torch.compile(net, fullgraph=True, backend='eager')):
        torch.testing.assert_close(other(x), want)
    assert repr(net)=='AGW(identities=3, features=96)' and repr(CenterLoss(3, 2))=='CenterLoss(identities=3, features=2)'

features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
two = torch.tensor([0,0,1,1])

@pytest.mark.parametrize('labels, told', [(two+2, 'from 2 to 3'), (two-1, 'from -1 to 0'), (two[:3], '4 labels'), (two.float(), 'float32'), (two>0, 'bool'), (two[:,None], '(4, 1)'), ([0,0,1,1], 'list'), (two.to('meta'), 'meta')])
def test_labels_that_fit_nobody(labels, told, one_line):
    for name,call in dict(CenterLoss=lambda: CenterLoss(3, 5)(features, labels), id_loss=lambda: id_loss(features[:,:3], labels)).items():
        with pytest.raises((TypeError, ValueError)) as e: call()
        one_line(e.value, name, told)

@pytest.mark.parametrize('pooled, told', [(features*math.nan, 'finite features, and 20 of 20'), (features/0, 'finite features'), (features[:,:0], '(4, 0)'), (features[0], '(5,)'), (features.expand(2, 4, 5), '(2, 4, 5)')])
def test_features_that_are_none(pooled, told, one_line):
    labels = torch.arange(len(pooled))%2
    for name,call in dict(wrt_loss=lambda: wrt_loss(pooled, labels), CenterLoss=lambda: CenterLoss(3, 5)(pooled, labels)).items():
        with pytest.raises(ValueError) as e: call()
        one_line(e.value, name, told)

def test_features_of_a_training_may_be_nan():
    "The loop that trains sees the loss and names batch and epoch."
    bad = (features*math.nan).requires_grad_()
    assert wrt_loss(bad, two).isnan() and CenterLoss(3, 5)(bad, two).isnan()

def test_labels_of_any_whole_type():
    "As an index, uint8 would be a mask."
    center = CenterLoss(3, 5)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(center(features, two.to(dtype)), center(features, two)) and torch.equal(id_loss(features, two.to(dtype)), id_loss(features, two))

def test_steps_out_of_order(one_line):
    net,labels = AGW(2, 'mini').eval(), torch.tensor([0,1])
    with pytest.raises(TypeError) as e: agw_loss(net(torch.zeros(2, 3, 64, 32)), labels, CenterLoss(2, 96))
    one_line(e.value, '.train()')
    with pytest.raises(ValueError) as e: undo_weight(CenterLoss(2, 3))
    one_line(e.value, 'backward')
    assert GeM(3).p==3. and NonLocal(1)(torch.zeros(1, 1, 2, 2)).shape==(1,1,2,2)

# --- the weights of pairs as AGW's code has them

def slow_weights(z, mask, eps):
    "One row: the maximum counts pairs that take no part as 0; `eps` is added to the sum."
    top = max(v if m else 0. for v,m in zip(z, mask))
    e = [math.exp(v-top) if m else 0. for v,m in zip(z, mask)]
    return [v/(sum(e)+eps) for v in e]

@pytest.mark.parametrize('scale', [.1, 1., 5., 20.])
def test_wrt_with_agws_weights_is_the_slow_loop(scale):
    torch.manual_seed(0)
    f,labels = scale*torch.randn(8, 6, dtype=torch.float64), torch.tensor([0,0,0,1,1,2,2,2])
    d,total = torch.cdist(f, f).tolist(), 0.
    for i in range(8):
        same = [(labels[j]==labels[i]).item() for j in range(8)]
        far = sum(w*v for w,v in zip(slow_weights(d[i], same, 1e-6), d[i]))
        near = sum(w*v for w,v in zip(slow_weights([-v for v in d[i]], [not s for s in same], 1e-6), d[i]))
        total += (math.log1p(math.exp(far-near)))/8
    assert wrt_loss(f, labels, 1e-6).item()==pytest.approx(total, rel=1e-3)

def on_a_line(away): return torch.tensor([[0.], [1.], [.5+away]]), torch.tensor([0,0,1])

def test_agws_weights_vanish_beyond_a_distance_of_14():
    for away,alike in ((5, True), (8, True), (20, False), (50, False)):
        exact,theirs = (wrt_loss(*on_a_line(away), eps).item() for eps in (0., 1e-6))
        assert (abs(theirs-exact)<.01)==alike, away
    f,labels = on_a_line(50.)
    grads = [torch.autograd.grad(wrt_loss(t := f.clone().requires_grad_(), labels, eps), t)[0] for eps in (0., 1e-6)]
    assert grads[1][2].abs()<1e-6                                          # the negative is not there
    assert -math.log(1e-6)==pytest.approx(13.8, abs=.1)                    # where e^-d falls below it

@pytest.mark.parametrize('apart', [43., 80., 100., 1e4])
def test_wrt_does_not_overflow_where_log_of_1_plus_exp_does(apart):
    "A positive far away, a negative near: the loss is the difference of their distances, either way."
    f,labels = torch.tensor([[0.], [apart], [0.], [apart]]), torch.tensor([0,0,1,1])
    for eps in (0., 1e-6):
        t = f.clone().requires_grad_(); loss = wrt_loss(t, labels, eps); loss.backward()
        assert loss.item()==pytest.approx(apart, rel=1e-3) and t.grad.isfinite().all()
    written_out = nn.SoftMarginLoss()(torch.tensor([-apart]), torch.ones(1))
    assert written_out.isinf()==(apart>88.8)

def test_agw_loss_hands_eps_on():
    out,labels,center = ReidOutput(torch.zeros(3, 2), 30*torch.tensor([[0.,0], [1,0], [4,0]])), torch.tensor([0,0,1]), CenterLoss(2, 2)
    exact,theirs = (agw_loss(out, labels, center, 0., wrt_eps=eps).item() for eps in (0., 1e-6))
    assert theirs-exact==pytest.approx((wrt_loss(out.pooled, labels, 1e-6)-wrt_loss(out.pooled, labels)).item(), rel=1e-4)
    assert wrt_loss(out.pooled, labels, 1e-6)>wrt_loss(out.pooled, labels)+1
    for eps in (-1., math.nan, '1'):
        with pytest.raises(ValueError, match='eps'): wrt_loss(out.pooled, labels, eps)
