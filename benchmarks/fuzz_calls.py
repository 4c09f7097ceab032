"""Calls for `fuzz.py`: the command, and public functions with what hypothesis draws for them.

What is right is told by the input: pictures that can be understood have a meaning, and a function gives for them what it gives for their
meaning; rankings are scored again, slowly.
"""
import io, json, math, os, warnings
from contextlib import redirect_stderr
from dataclasses import asdict, fields
from functools import lru_cache
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from PIL import Image
import privreid.cli, privreid.jobs, privreid.joint
from privreid.agw import AGW, BACKBONES, build_backbone, gem, id_loss, wrt_loss
from privreid.config import Config, preset
from privreid.data import PKSampler, Split, SyntheticPedestrians, show_pictures, split_validation, to_float, to_uint8
from privreid.datasets import READERS, list_data, load_data
from privreid.desensitize import Blur, GaussianNoise, Pixelate, box_radius, desensitizer
from privreid.doctor import examine
from privreid.evaluation import distances, evaluate_ranking, mse, psnr, ssim
from privreid.hindsight import demo_run
from privreid.manifest import image_folder
from privreid.pictures import decode, read_image
from privreid.pix2pix import UNetGenerator, unet_depth
from privreid.records import load_arm, load_run
from privreid.upgradation import State, Validation, decide, replay, validations
from privreid.verification import best_threshold, sample_pairs, wilson
from privreid.widgets import Explorer
from fuzz_files import CAMS, Case, lay, no_nan, put

# --- the command

STARTS = (['data', 'check', '--data', 'folder', '--root', 'people'], ['report', 'run7'], ['evaluate', 'run7'], ['demo'],
          ['train', '--data', 'folder', '--root', 'people', '--preset', 'demo'], ['reproduce', '--dry-run', '--preset', 'demo'], [])
OPTIONS = ('--data', '--root', '--out', '--resume', '--json', '--sheet', '--pattern', '--preset', '--epochs', '--batch', '--lr',
           '--seed', '--arms', '--table', '--figure', '--seeds', '--dry-run', '--milestones', '--height', '--weights', '--track',
           '--desensitizer', '--compile', '--no-compile', '--pairs', '--precision', '--device', '--desensitize')
WORDS = ('demo', 'train', 'reproduce', 'evaluate', 'report', 'data', 'check', 'cache', '0', '-1', '1', '2', '7', '1e400', 'nan',
         'inf', '2.5', '9'*30, '', ' ', 'ä', '\x1b[31m', 'a\nb', '../up', '/nowhere/x', '~nobody/x', 'blur', 'all', 'folder',
         'market1501', 'synthetic', 'folder=people', 'Base', 'w/ U', '1,2', '40,x', 'imagenet', 'file', 'people', 'run7',
         'run7/config.json', 'cpu', 'cuda:9', '\udcff')

def told(argv:list[str], folder)->tuple: # exit code, stderr
    "Run the command in `folder`; what would really train stops at its first epoch, as if by Ctrl-C."
    def stop(trainer): raise KeyboardInterrupt
    privreid.joint.Trainer.fit,privreid.jobs.step_time = stop, lambda *_: 1e-3   # this process is ours alone
    os.chdir(folder)
    show,said = warnings.showwarning, io.StringIO()
    with redirect_stderr(said):
        try: code = privreid.cli.main(argv)
        except SystemExit as e: code = e.code
        finally: warnings.showwarning = show
    return code, said.getvalue()

def command(rng, folder)->Case:
    "Words after `privreid`."
    for p,c,i in ((p, c, i) for p in 'abcd' for c in CAMS for i in range(2)): put(folder/'people'/p/f'{c}_{i}.png')
    (folder/'file').write_text('x')
    lay(folder)
    more = [rng.choice(rng.choice((OPTIONS, WORDS))) for _ in range(rng.choice((0, 1, 2, 4)))]
    if rng.random()<.7: more = [x for _ in range(rng.choice((1, 1, 2))) for x in (rng.choice(OPTIONS), rng.choice(WORDS))]
    argv = rng.choice(STARTS)+more
    def right(found):
        code,said = found
        lines = [line.replace(str(folder), '') for line in said.splitlines() if line.strip()]
        if code not in (None, 0, 1, 2, 130): return f'exit code {code}'
        if code==2 and not lines and argv[:2]!=['data', 'check']: return 'exit code 2, and no word why'
        odd = next((line for line in lines if not line.startswith('privreid: ') or len(line)>400 or not line.isprintable()), '')
        return odd and f'it says {odd[:200]!r}'
    return Case(' '.join(map(repr, argv)), lambda: told(argv, folder), (), right)

# --- pictures

def drawn(strategy, rng):
    "A value that hypothesis draws."
    found = []
    @seed(rng.getrandbits(64))
    @settings(max_examples=4, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def take(value): found.append(value)
    take()
    return found[-1]   # the first is always the simplest

SIDE = 32
def as_bytes(x): return ((x.float()+1)*127.5).round().to(torch.uint8)
def but_one(x, value): return x.flatten().index_fill(0, torch.tensor(3), value).view_as(x)
FILLS = dict(  # noise in [0,1] -> pictures; the first two are such in [-1,1]
    good=lambda x: x*2-1, flat=lambda x: x*0-1, bright=lambda x: x*255, huge=lambda x: x*1e30,
    nan=lambda x: but_one(x, math.nan), infinite=lambda x: but_one(x, math.inf))
TYPES = ('float32',)*3+('uint8',)*3+('float16', 'bfloat16', 'float64', 'int64', 'bool', 'complex64')
def keep(f): return lambda x, m: (f(x), m)                              # the same pictures, held in another way
def both(f): return lambda x, m: (f(x), None if m is None else f(m))    # other pictures, or numbers that are no pictures any more
def none(f): return lambda x, m: (f(x), None)                           # nothing that has a meaning
FORMS = dict(
    tensor=keep(lambda x: x), numpy=keep(lambda x: (x.float() if x.dtype==torch.bfloat16 else x).numpy()),
    memory=keep(lambda x: x.contiguous(memory_format=torch.channels_last)),
    gradient=keep(lambda x: x.clone().requires_grad_() if x.is_floating_point() else x), one=both(lambda x: x[0]),
    turned=both(lambda x: x.flip(-1).transpose(-1, -2)),
    PIL=lambda x, m: (x, m) if m is None else (Image.fromarray(as_bytes(m)[0].permute(1, 2, 0).numpy()), as_bytes(m)[:1]/127.5-1),
    list=none(lambda x: [1, 2]), none=none(lambda x: None), text=none(lambda x: 'picture.png'),
    meta=none(lambda x: x.to('meta')), grey=both(lambda x: x[:,:1]), RGBA=both(lambda x: torch.cat([x, x[:,:1]], 1)),
    empty=both(lambda x: x[:0]), line=both(lambda x: x.flatten()), tiny=both(lambda x: x[...,:1,:1]),
    channels_last=both(lambda x: x.permute(0, 2, 3, 1)), five=both(lambda x: x[None]))

@st.composite
def shown(draw, n:int=2): # in words, value, what it means: float32 in [-1,1], or None
    "Pictures, as somebody may hold them."
    noise = torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    fill,kind,form = (draw(st.sampled_from(options)) for options in (('good',)*4+tuple(FILLS), TYPES, ('tensor',)*6+tuple(FORMS)))
    x = as_bytes(noise*2-1) if kind=='uint8' else FILLS[fill](noise).to(getattr(torch, kind))
    meaning = to_float(x) if kind=='uint8' else x.float() if fill in ('good', 'flat') and x.is_floating_point() else None
    return f'{fill} {kind} {form}', *FORMS[form](x, meaning)

@lru_cache
def functions()->dict: # name -> function, of one or two meanings the right result (None: the function's own), difference that is allowed
    torch.manual_seed(0)
    def error(a, b): return ((a.double()-b.double())/2).square().flatten(1).mean(1)
    def noise(x): return GaussianNoise()(x)
    return dict(to_float=(to_float, lambda m: m, 1e-3), to_uint8=(to_uint8, lambda m: (m.double()+1)*127.5, 1),
                Blur=(Blur(), None, .01), Pixelate=(Pixelate(), None, .01), GaussianNoise=(noise, None, .02),
                UNetGenerator=(UNetGenerator((SIDE,SIDE), 1).eval(), None, .02), AGW=(AGW(3, 'mini').eval(), None, .02),
                mse=(mse, error, 1e-3), ssim=(ssim, None, .02),
                # equal pictures: infinite, or a ceiling
                psnr=(lambda a, b: psnr(a, b).clamp(max=100), lambda a, b: (-10*error(a, b).log10()).clamp(max=100), .05))

def on_pictures(rng, folder)->Case:
    "A function of pictures, or of two batches."
    name = rng.choice(tuple(functions()))
    f,true,slack = functions()[name]
    batches = (shown(), shown(rng.choice((2, 2, 2, 1, 3)))) if name in ('mse', 'ssim', 'psnr') else (shown(),)
    whats,given,meant = zip(*drawn(st.tuples(*batches), rng))
    if len(given)==2 and rng.random()<.3: whats,given,meant = whats[:1]*2, given[:1]*2, meant[:1]*2
    if name not in ('to_float', 'to_uint8'): meant = [m if m is None or m.ndim!=3 else m[None] for m in meant]   # one picture is a batch
    numbers = all(m is not None for m in meant) and len({m.shape for m in meant})==1
    pictures = numbers and (name in ('to_float', 'to_uint8') or meant[0].shape[1:]==(3,SIDE,SIDE))
    either = any(w.endswith(('meta', 'tiny', 'empty')) for w in whats)   # a dry run, one pixel and no picture may be accepted
    @torch.no_grad()
    def right(result):
        if either and (not pictures or not len(meant[0])): return ''
        if not pictures: return 'accepted, though these are no pictures in [-1,1] that fit'
        result,wanted = (torch.as_tensor(r).detach().double() for r in (result, (true or f)(*meant)))
        if result.numel()!=wanted.numel(): return f'shape {tuple(result.shape)} for {tuple(wanted.shape)}'
        off = (result.flatten()-wanted.flatten()).abs().max().item()
        return '' if off<=slack else f'off by {off:.3g}'
    usual = all(w.endswith(('tensor', 'memory', 'gradient', 'turned')) and 'float32' in w for w in whats)
    must = name!='to_float' and pictures and not either and usual
    return Case(f'{name}({"; ".join(whats)})', torch.no_grad()(lambda: f(*given)), (), right, must)

# --- rankings

def score(distance, q_pids, g_pids, q_cams, g_cams)->tuple|None: # rank-1, mAP; None: there is nothing to score
    "Retrieval, slowly and obviously."
    first,precision = [], []
    for d,p,c in zip(distance, q_pids, q_cams):
        order = [i for i in np.argsort(d, kind='stable') if g_pids[i]!=-1 and not (g_pids[i]==p and g_cams[i]==c)]
        hits = [g_pids[i]==p for i in order]
        if any(hits): first.append(hits[0]); precision.append(np.mean([sum(hits[:k+1])/(k+1) for k,h in enumerate(hits) if h]))
    return (np.mean(first), np.mean(precision)) if first else None

HOLD = dict(tensor=torch.tensor, numpy=lambda x: x, list=lambda x: x.tolist(),
            int32=lambda x: torch.tensor(x).int() if x.dtype.kind=='i' else torch.tensor(x).float(),
            bfloat16=lambda x: torch.tensor(x).bfloat16(), float=lambda x: torch.tensor(x).float())

@st.composite
def ranked(draw): # in words, arguments, what is right or None
    "Distances and labels, as somebody may hold them."
    q,g = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    what = draw(st.sampled_from(('good',)*4+('nan', 'inf', '-inf', 'negative', 'short', 'three', 'none', 'text')))
    how,rng = [draw(st.sampled_from(('tensor',)+tuple(HOLD))) for _ in range(5)], np.random.default_rng(draw(st.integers(0, 999)))
    d = rng.random((q, g)).round(draw(st.sampled_from((1, 6))))
    labels = [rng.integers(low, 3, n) for low,n in ((1, q), (-1, g), (1, q), (1, g))]
    if what=='negative': d = d-5
    at,(q_pids,g_pids,q_cams,g_cams) = draw(st.integers(0, g-1)), labels
    if what in ('nan', 'inf', '-inf'): d[0, at] = float(what)
    own = (g_pids==q_pids[0])&(g_cams==q_cams[0])
    # junk, the query's own camera, or a query that has no match
    ignored = own[at] or g_pids[at]==-1 or not ((g_pids==q_pids[0])&~own).any()
    if how[0]=='bfloat16': d = torch.tensor(d).bfloat16().double().numpy()
    wanted = score(d, *labels) if what in ('good', 'negative') else None
    if what=='short': labels[draw(st.integers(0, 3))] = np.arange(1, 12)
    if what=='three': d = np.stack([d, d])
    args = [HOLD[h](x) for h,x in zip(how, (d, *labels))]
    if what in ('none', 'text'): args[draw(st.integers(0, 4))] = None if what=='none' else 'abc'
    return f'{what}: {", ".join(how)}', args, wanted, what in ('inf', '-inf') or what=='nan' and ignored

def ranking(rng, folder)->Case:
    "Distances and labels of some queries."
    what,args,wanted,either = drawn(ranked(), rng)
    def right(found):
        if wanted is None: return '' if either else f'accepted, though it cannot be scored: {found}'
        return '' if np.allclose((found.rank1, found.mAP), wanted, atol=1e-6) else f'{found} instead of {wanted}'
    return Case(what, lambda: evaluate_ranking(*args), (), right, must=wanted is not None)

# --- configurations

NUMBERS = (2**63, 10**30, math.nan, math.inf, -math.inf, 1e-300, 1e300, .5, 2.5, np.float32(.5), np.int64(4), 32, 64, True, torch.tensor(3))
SOME = *NUMBERS, '', 'x', 'demo', 'blur', 'no', 'fp16', (), (1,), [], {}, (1, 'a'), b'x', (6, 8), [1.5]
ANY = st.one_of(st.none(), st.integers(-3, 300), st.sampled_from(SOME), st.floats(), st.text(max_size=5))

def is_a(kind:type, v)->bool:
    "Whether a field that takes `kind` may hold `v`."
    if kind is tuple: return isinstance(v, tuple) and all(is_a(int, x) for x in v)
    numbers = {int: (int, np.integer), float: (int, float, np.number)}
    if kind in numbers: return not isinstance(v, bool) and isinstance(v, numbers[kind]) and math.isfinite(v)
    return isinstance(v, kind)

def configs(rng, folder)->Case:
    "A preset with odd fields."
    kinds,start = {f.name: f.type for f in fields(Config)}, rng.choice(('demo', 'colab', 'paper'))
    changes = {k: drawn(ANY, rng) for k in drawn(st.lists(st.sampled_from(tuple(kinds)), min_size=1, max_size=3, unique=True), rng)}
    def right(cfg):
        if odd := [f'{k}={v!r}' for k,v in vars(cfg).items() if not is_a(kinds[k], v)]: return ', '.join(odd)[:300]
        odd = [f'{k}={getattr(cfg, k)!r}' for k,most in dict(eps_psnr=100, eps_ssim=2, eps_r1=1).items() if abs(getattr(cfg, k))>most]
        odd += [f'{k}={getattr(cfg, k)!r}' for k,known in dict(backbone=BACKBONES, data=('synthetic', *READERS)).items()
                if getattr(cfg, k) not in known]
        if cfg.freeze_bn>cfg.epochs: odd.append(f'freeze_bn={cfg.freeze_bn} of {cfg.epochs} epochs')
        json.dumps(asdict(cfg), allow_nan=False)
        return ', '.join(odd)[:300]
    return Case(f'{start}, {changes!r}'[:200], lambda: preset(start, **changes), tuple(changes), right)

# --- everything else

@lru_cache
def split()->Split: return SyntheticPedestrians(size=(16,8)).split([(p, c, i) for p in (1, 2, 3) for c in (0, 1) for i in (0, 1)])

def validation(**changes)->Validation:
    return Validation(**dict(epoch=1, psnr_ano=10., ssim_ano=.2, psnr_des=10., ssim_des=.2, r1_raw_ano=.5)|changes)
def finite(x)->str: return '' if torch.as_tensor(x).isfinite().all() else f'{x}'
def rates(x)->str: return '' if all(0<=t<=1 or t!=t for t in x) else f'{x}'
def strong(x)->str: return '' if is_a(float, x.strength) and x.strength>0 else f'strength {x.strength!r}'
def whole(x)->str:
    one = not isinstance(x, Split) or len({len(x.images), len(x.pids), len(x.cams), len(x.names)})==1
    return '' if one else 'a split whose parts are of several lengths'
def reasonable(d)->str: return no_nan(d.reason)
def anything(x)->str: return ''
def few(x): return min(x, 9) if isinstance(x, int) else x   # people are drawn, which takes its time

CALLS = {  # name -> function of one odd value, what is wrong with its result
    'Blur': (Blur, strong),
    'Pixelate': (Pixelate, strong),
    'GaussianNoise': (GaussianNoise, strong),
    'GaussianNoise(seed)': (lambda x: GaussianNoise(seed=x)(torch.zeros(1, 3, 16, 8)), finite),
    'desensitizer': (desensitizer, anything),
    'box_radius': (box_radius, finite),
    'preset': (preset, anything),
    'unet_depth': (unet_depth, anything),
    'UNetGenerator(size)': (lambda x: UNetGenerator(x, 1), anything),
    'build_backbone': (build_backbone, anything),
    'AGW(identities)': (lambda x: AGW(x, 'mini'), anything),
    'Split[]': (lambda x: split()[x], whole),
    'PKSampler(pids)': (lambda x: PKSampler(x).epoch(0), anything),
    'PKSampler(p)': (lambda x: PKSampler(split().pids, x).epoch(0), anything),
    'PKSampler(k)': (lambda x: PKSampler(split().pids, 2, x).epoch(0), anything),
    'split_validation(seed)': (lambda x: split_validation(split(), x), anything),
    'split_validation': (split_validation, anything),
    'SyntheticPedestrians(size)': (lambda x: SyntheticPedestrians(size=x).split([(1, 0, 0)]), whole),
    'SyntheticPedestrians(seed)': (lambda x: SyntheticPedestrians(seed=x, size=(16,8)).split([(1, 0, 0)]), whole),
    'SyntheticPedestrians.split': (lambda x: SyntheticPedestrians(size=(16,8)).split(x), whole),
    'load_data': (load_data, anything),
    'load_data(seed)': (lambda x: load_data('synthetic', size=(32,32), train_ids=2, test_ids=2, distractors=0, seed=x), anything),
    'load_data(train_ids)': (lambda x: load_data('synthetic', size=(32,32), train_ids=few(x), test_ids=2, distractors=0), anything),
    'read_image': (lambda x: read_image(x, (16,8)), anything),
    'decode': (lambda x: decode(x, (16,8)), anything),
    'list_data': (lambda x: list_data('folder', x), anything),
    'examine': (lambda x: examine('folder', x), anything),
    'image_folder(pattern)': (lambda x: image_folder('.', x), anything),
    'show_pictures': (lambda x: show_pictures(raw=x), anything),
    'load_run': (load_run, anything),
    'load_arm': (lambda x: load_arm(demo_run(), x), anything),
    'decide(psnr_des)': (lambda x: decide(validation(psnr_des=x), State(.1)), reasonable),
    'decide(r1)': (lambda x: decide(validation(r1_raw_ano=x), State(.1)), reasonable),
    'replay(base_r1)': (lambda x: replay([validation()], x), anything),
    'validations': (validations, anything),
    'Explorer(base_r1)': (lambda x: Explorer([validation()], x)._repr_html_(), no_nan),
    'wilson(right)': (lambda x: wilson(x, 5), rates),
    'wilson(n)': (lambda x: wilson(1, x), rates),
    'sample_pairs(n)': (lambda x: sample_pairs(split(), x), anything),
    'best_threshold': (lambda x: best_threshold(x, torch.tensor([True, False])), finite),
    'distances(q)': (lambda x: next(iter(distances(x, torch.eye(3)))), finite),
    'gem(p)': (lambda x: gem(torch.ones(1, 2, 3, 3), x), finite),
    'id_loss(labels)': (lambda x: id_loss(torch.zeros(2, 3), x), finite),
    'wrt_loss(labels)': (lambda x: wrt_loss(torch.eye(4), x), finite),
}

TENSORS = (torch.zeros(0), torch.zeros(2, 3), torch.full((2, 3), math.nan), torch.tensor([1, 2]), torch.tensor([0, 1, 0, 1]),
           torch.tensor([0, 0, 0, 0]), torch.tensor([9, 9]), torch.tensor([True, False]), torch.eye(3).double(), torch.eye(3).bfloat16(),
           torch.zeros(2, 3, device='meta'), np.eye(3), [[1., 2., 3.]], torch.tensor([1.5, math.inf]), torch.zeros(1, 3, 8, 8),
           [0, 1, 0, 1], slice(0, 2), 99, (64, 32), (32, 32), (0, 0), (33, 32), (-32, 32), (1e9, 32))

def values(rng, folder)->Case:
    "A function, and an odd value."
    name,value = drawn(st.tuples(st.sampled_from(tuple(CALLS)), st.one_of(ANY, st.sampled_from(TENSORS))), rng)
    f,right = CALLS[name]
    return Case(f'{name}: {str(value)[:60]!r} ({type(value).__name__})', lambda: f(value), (), right)

KINDS = dict(command=command, on_pictures=on_pictures, ranking=ranking, configs=configs, values=values)
