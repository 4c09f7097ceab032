"""Images per second from files to training batches: this package against a plain per-image Pillow pipeline.

    python benchmarks/data.py                  # prints a table and appends it to benchmarks/RESULTS.md
    python benchmarks/data.py --threads 1      # one core each: the comparison to quote, best on an idle machine

Both sides make the same thing from the same JPEGs, fabricated from synthetic people at Market-1501's size (128 x 64): pairs of raw and desensitized float tensors of 256 x 128, flipped, shifted and erased alike.
All rivals run in one process, in turn, and the median of the rounds counts. Pillow works on one core; torch on as many as `--threads` says. For what a training needs, see `NEEDS`.
"""
import os, tempfile
from pathlib import Path
import numpy as np
import torch
from common import load, options, publish, race, stopwatch
from PIL import Image, ImageFilter, ImageOps
from privreid.data import SyntheticPedestrians, augment, draw_augmentation, to_float
from privreid.desensitize import DESENSITIZERS, desensitizer
from privreid.pictures import decode

SIZE,BATCH = (256,128), 64
NEEDS = "A training at the paper's size consumes about 2,000 images/s on a fast GPU and 150 on a T4 (derived, not measured); whatever data brings beyond that, nobody waits for."

# --- what one would otherwise write: open, resize, desensitize and augment each image by itself

def blur(im:Image.Image, rng)->Image.Image: return im.filter(ImageFilter.GaussianBlur(12))

def pixelation(im:Image.Image, rng, b:int=24)->Image.Image:
    a = np.array(im)
    for i in range(0, a.shape[0], b):
        for j in range(0, a.shape[1], b): a[i:i+b,j:j+b] = a[i:i+b,j:j+b].mean((0,1)).round()
    return Image.fromarray(a)

def pixelation_by_resize(im:Image.Image, rng, b:int=24)->Image.Image:
    "Faster, and not quite the same: 256 is not a multiple of 24, so the blocks are uneven."
    return im.resize([-(-n//b) for n in im.size], Image.BOX).resize(im.size, Image.NEAREST)

def noise(im:Image.Image, rng)->Image.Image:
    return Image.fromarray((np.asarray(im)+rng.normal(0, 127.5, (*im.size[::-1], 3))).clip(0, 255).round().astype(np.uint8))

RIVALS = dict(blur=[blur], pixelation=[pixelation, pixelation_by_resize], noise=[noise])
GREY = (torch.tensor([.485, .456, .406])*2-1)[:,None,None]

def plain_pair(path:Path, dice:dict, i:int, hide, rng)->list[torch.Tensor]:
    "One image and its supervision, by Pillow; `dice` are the ones of `draw_augmentation`, so both sides do the same work."
    (dy,dx),(top,left,bottom,right) = dice['shift'][i].tolist(), dice['box'][i].tolist()
    with Image.open(path) as im: x = im.convert('RGB').resize(SIZE[::-1], Image.BILINEAR)
    pair = []
    for im in (x, hide(x, rng)):
        if dice['flip'][i]: im = ImageOps.mirror(im)
        im = ImageOps.expand(im, 10).crop((10+dx, 10+dy, 10+dx+SIZE[1], 10+dy+SIZE[0]))
        im = torch.from_numpy(np.array(im)).permute(2,0,1).float()/127.5-1
        im[:,top:bottom,left:right] = GREY
        pair.append(im)
    return pair

def plain_batch(paths:list[Path], index:torch.Tensor, dice:dict, hide, rng)->list[torch.Tensor]:
    pairs = [plain_pair(paths[i], dice, k, hide, rng) for k,i in enumerate(index.tolist())]
    return [torch.stack(x) for x in zip(*pairs)]

# --- this package: from the cached tensor, in batches

def batch(images:torch.Tensor, index:torch.Tensor, dice:dict, d)->list[torch.Tensor]:
    x = to_float(images.index_select(0, index))
    return augment(dice, x, d(x))

def check(paths, images):
    "Both sides yield the same pair, up to 8-bit rounding; noise differs in its draws."
    index,dice = torch.arange(8), draw_augmentation(8, *SIZE, generator=torch.Generator().manual_seed(0))
    for name in ('blur', 'pixelation'):
        for a,b in zip(plain_batch(paths, index, dice, RIVALS[name][0], None), batch(images, index, dice, desensitizer(name))):
            assert (a-b).abs().max()<=1.51/127.5, (name, (a-b).abs().max()*127.5)

def measure(paths:list[Path], folder:Path, rounds:int, clock:str)->list[tuple[str,float,float]]: # what, images/s by Pillow (nan: does not apply), by us
    generator,rng,rows = torch.Generator().manual_seed(0), np.random.default_rng(0), []
    def cold():
        os.environ['PRIVREID_CACHE'] = tempfile.mkdtemp(dir=folder)
        return decode(paths, SIZE)
    def plain():
        for p in paths:
            with Image.open(p) as im: np.asarray(im.convert('RGB').resize(SIZE[::-1], Image.BILINEAR))
    t = race({'plain': plain, 'ours': cold}, rounds, stopwatch(clock))
    rows.append(('open and resize (cold)', len(paths)/t['plain'], len(paths)/t['ours']))
    images = cold()
    check(paths, images)
    def draw(): return torch.randperm(len(paths), generator=generator)[:BATCH], draw_augmentation(BATCH, *SIZE, generator=generator)
    for name in DESENSITIZERS:
        d = desensitizer(name)
        t = race({f.__name__: lambda f=f: plain_batch(paths, *draw(), f, rng) for f in RIVALS[name]} | {'ours': lambda: batch(images, *draw(), d)}, rounds, stopwatch(clock))
        for f in RIVALS[name]: rows.append((f"batch, {f.__name__.replace('_', ' ')}", BATCH/t[f.__name__], BATCH/t['ours']))
    if torch.cuda.is_available():
        there = images.cuda()
        for name in DESENSITIZERS:
            d = desensitizer(name).cuda()
            def on_gpu():
                index,dice = draw()
                return batch(there, index.cuda(), dice, d)
            rows.append((f'batch on the GPU, {name}', float('nan'), BATCH/race({'ours': on_gpu}, rounds, stopwatch(clock, torch.cuda.synchronize))['ours']))
    return rows

def main():
    p = options(__doc__, rounds=9)
    p.add_argument('--images', type=int, default=512, help='JPEGs to fabricate (default: %(default)s)')
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/'images'; folder.mkdir()
        people = SyntheticPedestrians(size=(128,64)).split([(i//16+1, i//4%4, i%4) for i in range(args.images)])
        for i,im in enumerate(people.images): Image.fromarray(im.permute(1,2,0).numpy()).save(folder/f'{i:05d}.jpg', quality=95)
        busy,rows = load(), measure(sorted(folder.iterdir()), Path(tmp), args.rounds, args.clock)
    about = f'{args.images} JPEGs of 128 x 64, brought to {SIZE[0]} x {SIZE[1]}; batches of {BATCH}; medians of {args.rounds} rounds by the {args.clock} clock, rivals in turn; load average {busy:.1f} at the start. {args.note}'
    table = ['| images/s | Pillow, one by one | privreid | ratio |', '|---|---:|---:|---:|']
    table += [f'| {what} | {"–" if a!=a else f"{a:,.0f}"} | {b:,.0f} | {"–" if a!=a else f"{b/a:.1f}"} |' for what,a,b in rows]
    publish('Data', 'torch Pillow numpy', about, table+['']+([] if torch.cuda.is_available() else ['Batches on a GPU: not measured.'])+[NEEDS])

if __name__ == '__main__': main()
