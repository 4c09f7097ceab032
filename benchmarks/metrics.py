"""Images per second of the image metrics and the desensitizers, against the libraries one would otherwise use.

    python benchmarks/metrics.py                  # prints a table and appends it to benchmarks/RESULTS.md
    python benchmarks/metrics.py --threads 1      # one core each: scikit-image and Pillow use one

Every rival gets images as it likes them best, ready in memory: Pillow its own images, the libraries for batches a batch. Kornia and torchmetrics are compared where they are installed.
All run in one process, in turn, and medians count; that they agree is checked.
"""
import importlib.util
import numpy as np, torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from common import load, options, publish, race, stopwatch
from data import RIVALS, SIZE
from privreid.data import SyntheticPedestrians, to_float, to_uint8
from privreid.desensitize import DESENSITIZERS, desensitizer
from privreid.evaluation import psnr, ssim

def scikit(f, a:torch.Tensor, b:torch.Tensor, **kw): # (B,3,H,W) in [0,1], float64
    return lambda: torch.tensor([f(x, y, data_range=1, **kw) for x,y in zip(a.numpy(), b.numpy())])

def metric_rivals(a, b)->dict[str,dict]: # (B,3,H,W) in [-1,1]
    "For each metric its rivals, the first one the judge."
    a1,b1 = (a+1)/2, (b+1)/2
    a2,b2 = a1.double(), b1.double()
    window = dict(channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    rivals = dict(SSIM={'scikit-image': scikit(structural_similarity, a2, b2, **window)}, PSNR={'scikit-image': scikit(peak_signal_noise_ratio, a2, b2)})
    if importlib.util.find_spec('kornia'):
        from kornia.metrics import psnr as kornia_psnr, ssim as kornia_ssim
        def cropped(x, y): return kornia_ssim(x, y, 11, padding='valid').mean((1,2,3))
        rivals['SSIM'] |= {'kornia': lambda: cropped(a1, b1), 'kornia, float64': lambda: cropped(a2, b2)}
        rivals['PSNR'] |= {'kornia (of the batch)': lambda: kornia_psnr(a1, b1, 1.)}
    if importlib.util.find_spec('torchmetrics'):
        from torchmetrics.functional.image import peak_signal_noise_ratio as tm_psnr, structural_similarity_index_measure as tm_ssim
        rivals['SSIM'] |= {'torchmetrics': lambda: tm_ssim(a1, b1, data_range=1., reduction='none')}
        rivals['PSNR'] |= {'torchmetrics': lambda: tm_psnr(a1, b1, data_range=1., dim=(1,2,3), reduction='none')}
    rivals['SSIM']['privreid'] = lambda: ssim(a, b)
    rivals['PSNR']['privreid'] = lambda: psnr(a, b)
    return rivals

def check(rivals:dict):
    for metric,tolerance in dict(SSIM=1e-6, PSNR=1e-4).items():
        judge,ours = (rivals[metric][k]() for k in ('scikit-image', 'privreid'))
        assert (judge-ours).abs().max()<=tolerance, (metric, (judge-ours).abs().max())

def pixelation_at_once(a:np.ndarray, b:int=24)->np.ndarray: # uint8 (B,H,W,3)
    "The whole batch in NumPy; of blocks that reach over the edge, only what is inside counts."
    h,w = a.shape[1:3]
    rows,cols = -(-h//b), -(-w//b)
    def total(x):
        lines = np.pad(x, ((0, 0), (0, rows*b-h), (0, cols*b-w), (0, 0))).reshape(len(x), rows, b, -1).sum(2, dtype=np.uint16)   # whole lines first: they lie together
        return lines.reshape(len(x), rows, cols, b, -1).sum(3, dtype=np.uint32)
    means = (total(a)/total(np.ones((1,h,w,1), np.uint8))).round().astype(np.uint8)
    return means.repeat(b, 1).repeat(b, 2)[:,:h,:w]

def desensitizer_rivals(x:torch.Tensor)->dict[str,dict]: # (B,3,H,W) in [-1,1]
    rng,pictures = np.random.default_rng(0), [Image.fromarray(im.permute(1,2,0).numpy()) for im in to_uint8(x)]
    rivals = {name: {f.__name__.replace('_', ' '): lambda f=f: [f(im, rng) for im in pictures] for f in RIVALS[name]} for name in DESENSITIZERS}
    for name in DESENSITIZERS:
        d = desensitizer(name)
        if name!='noise':
            want = np.stack(next(iter(rivals[name].values()))())
            assert np.abs(to_uint8(d(x)).permute(0,2,3,1).numpy().astype(int)-want).max()<=1, name
        if name=='pixelation':
            batch = np.stack(pictures)
            rivals[name]['NumPy, whole batch'] = lambda: pixelation_at_once(batch)
            assert np.abs(pixelation_at_once(batch).astype(int)-want).max()<=1
        rivals[name]['privreid'] = lambda d=d: d(x)
    return rivals

def main():
    p = options(__doc__, rounds=9)
    p.add_argument('--images', type=int, default=64, help='in a batch (default: %(default)s)')
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    busy = load()
    a = to_float(SyntheticPedestrians(size=SIZE).split([(i//4+1, i%4, 0) for i in range(args.images)]).images)
    b = desensitizer('blur')(a)
    rivals = metric_rivals(a, b)
    check(rivals)
    table = ['| | rival | images/s | privreid | ratio |', '|---|---|---:|---:|---:|']
    with torch.no_grad():
        for what,some in (rivals|desensitizer_rivals(a)).items():
            t = race(some, args.rounds, stopwatch(args.clock))
            ours = t.pop('privreid')
            table += [f'| {what} | {k} | {args.images/s:,.0f} | {args.images/ours:,.0f} | {s/ours:.1f} |' for k,s in t.items()]
    missing = [p for p in ('kornia', 'torchmetrics') if not importlib.util.find_spec(p)]
    if missing: table += ['', *(f'{p}: not installed, so not compared.' for p in missing)]
    packages = ' '.join(p for p in 'torch numpy scikit-image Pillow kornia torchmetrics'.split() if p not in missing)
    publish('Metrics and desensitizers', packages, f'{args.images} images of {SIZE[0]} x {SIZE[1]}; medians of {args.rounds} rounds by the {args.clock} clock, rivals in turn; load average {busy:.1f} at the start. {args.note}', table)

if __name__ == '__main__': main()
