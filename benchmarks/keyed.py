"""What a key inside the picture is worth: right and wrong keys, and attackers who own the anonymizer but not the secret.

    python benchmarks/keyed.py --out F             # three trainings (no key, signs, pad) and the outsider go into F, the numbers into keyed.json and RESULTS.md
    python benchmarks/keyed.py --out F --only train

One core, about ten minutes at three epochs; the same command goes on where it was stopped. Victims are the run's test people; attackers are trained on people of another street.
"""
import argparse, json, tempfile, time
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from common import publish
from privreid.arms import Experiment
from privreid.codec import Codec
from privreid.config import preset
from privreid.data import SyntheticPedestrians, to_float
from privreid.evaluation import interval, measure, resampled
from privreid.files import strict_json
from privreid.folder import write_json
from privreid.keyed import draw_streams, generators_of, one_bit_off, streams
from privreid.pix2pix import UNetGenerator
from privreid.records import load_weights, save_weights
from privreid.training import JointTraining, ReidTraining, agw_of

WAYS = dict(none='', signs='signs', pad='pad')
RECORD = Path(__file__).with_name('keyed.json')
PNG,SIZE = Codec(), (64, 32)   # the pad is trained for one epoch only: what it opens is there from the first step on

def config(way:str, epochs:int): return preset('demo', epochs=1 if way=='pad' else epochs, batch=8, ndf=8, test_people=48, through='png', keyed=WAYS[way])

class Lean(JointTraining):
    "The joint training without discriminators and without Re-ID on raw pictures: a third of the time, and all arms alike."
    def step(self, x, y, labels):
        p,r,*wrong = self.generate(x, *self.draw(len(x)))
        weight = self.cfg.lambda_l1
        losses = dict(l1_ano=weight*F.l1_loss(p, y), l1_rec=weight*F.l1_loss(r, x), reid_protected=self.reid_loss(p, labels))
        if wrong: losses['l1_wrong'] = weight*F.l1_loss(wrong[0], y)
        self.update(losses, ('G_X', 'G_Y', 'reid', 'center'))
        return losses

def parts_of(exp, way:str):
    "The networks of an arm, untrained."
    return dict(zip(('anonymizer', 'recovery'), generators_of(WAYS[way], exp.cfg.size, exp.cfg.ngf)))|dict(reid=agw_of(exp.cfg, exp.identities))

def trained(folder:Path, way:str, epochs:int):
    "The networks of one arm, trained where they are not there yet."
    exp = Experiment(config(way, epochs), device='cpu')
    at = folder/way
    if not (at/'reid.safetensors').is_file():
        start = time.process_time()
        arm = exp.train('w/o U', Lean)
        at.mkdir(parents=True, exist_ok=True)
        for k in ('anonymizer', 'recovery', 'reid'): save_weights(getattr(arm, k), at/f'{k}.safetensors', secret=k=='recovery')
        write_json(dict(cpu=time.process_time()-start, last=arm.history[-1]), at/'arm.json')
    return exp, {k: load_weights(net, at/f'{k}.safetensors') for k,net in parts_of(exp, way).items()}, json.loads((at/'arm.json').read_bytes())

def outsider(folder:Path, exp):
    "Who has learnt on raw pictures."
    at = folder/'upper.safetensors'
    folder.mkdir(parents=True, exist_ok=True)
    if not at.is_file(): save_weights(exp.train('Upper', ReidTraining, paired=False).reid, at)
    return load_weights(agw_of(exp.cfg, exp.identities), at)

class Dice:
    "Streams that nobody has drawn before."
    def __init__(self, seed:int): self.g = torch.Generator().manual_seed(seed)
    def __call__(self, n:int): return draw_streams(n, SIZE, self.g)
    def secrets(self, n:int)->list[bytes]: return [bytes(torch.randint(0, 256, (32,), generator=self.g).tolist()) for _ in range(n)]
    def bit(self)->int: return int(torch.randint(0, 256, (1,), generator=self.g))

def looked(exp, who:dict, f, settings=('raw-protected',))->dict:
    "What `f` makes of the victims' pictures: how like the raw ones, and whom one finds again in it."
    seen = measure(who, exp.data.query, exp.data.gallery, f, lambda p: p, settings=settings)
    people = np.unique(exp.data.query.pids.numpy()[seen.counted], return_inverse=True)[1]
    found = dict(psnr=seen.recovered.psnr, ssim=seen.recovered.ssim)
    for w,of in seen.queries.items():
        for s,v in of.items():
            low,high = interval(resampled(people, v[:1])[0], len(np.unique(people)))
            found[f'{w} {s}'] = dict(rank1=100*seen.settings[w][s].rank1, mAP=100*seen.settings[w][s].mAP, low=100*low, high=100*high)
    return found

def ways_to_look(X, Y, keyed:bool)->dict:
    "Raw pictures -> what somebody sees who has the file and, in between, some key or none."
    if not keyed:
        return dict(protected=lambda x: PNG(X(x)), right=lambda x: PNG(Y(PNG(X(x)))))
    def with_(stream_a, stream_b=lambda k, n: k):
        def f(x):
            k = stream_a(len(x))
            return PNG(Y(PNG(X(x, k)), stream_b(k, len(x))))
        return f
    dice,other = Dice(1), Dice(2)
    def bit_off(x):
        s = dice.secrets(len(x))
        return PNG(Y(PNG(X(x, streams(s, SIZE))), streams([one_bit_off(k, dice.bit()) for k in s], SIZE)))
    def without(x): return PNG(Y.forget()(PNG(X(x, dice(len(x))))))
    return dict(protected=lambda x: PNG(X(x, dice(len(x)))), right=with_(dice), wrong=with_(dice, lambda k, n: other(n)), one_bit_off=bit_off, none=without)

# -- the attacker who owns the anonymizer

def street(people:int, seed:int=4242)->torch.Tensor: # uint8 (N,3,H,W)
    "Pictures of the attacker's own people: another seed than the run's, so other people under other cameras."
    return SyntheticPedestrians(size=SIZE, seed=seed).split([(p, c, s) for p in range(1, people+1) for c in range(4) for s in range(2)]).images

def inverter(pictures:torch.Tensor, protect, steps:int, seed:int=0):
    "A U-Net that learns to undo `protect`, which takes a raw batch."
    torch.manual_seed(seed)
    net,g = UNetGenerator(SIZE, 16), torch.Generator().manual_seed(seed)
    opt = torch.optim.Adam(net.parameters(), 2e-3, betas=(.5, .999))
    plan = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min(1, 2*(1-i/steps)))
    for _ in range(steps):
        x = to_float(pictures[torch.randint(0, len(pictures), (8,), generator=g)])
        flip = torch.rand(8, generator=g)<.5
        x[flip] = x[flip].flip(-1)
        with torch.no_grad(): p = protect(x)
        loss = F.l1_loss(net(p), x)
        opt.zero_grad(); loss.backward(); opt.step(); plan.step()
    return net.eval()

def of_some(X, k:int, seed:int):
    "The anonymizer under `k` keys of the attacker: what protects a raw batch."
    own,g = Dice(seed)(k), torch.Generator().manual_seed(seed)
    return lambda x: PNG(X(x, own[torch.randint(0, k, (len(x),), generator=g)]))

@torch.enable_grad()
def solved_signs(X, x:torch.Tensor, p:torch.Tensor, steps:int=150)->torch.Tensor: # uint8 (3,H,W)
    "The signs under which `x` became `p`, from the outside: by descent through the anonymizer."
    with torch.no_grad():
        h = X.body[:3](x)
        base,f = X.body[3](h), X.hides(h)
    torch.manual_seed(0)
    s = (.01*torch.randn(1, *f.shape[1:])).requires_grad_()
    opt = torch.optim.Adam([s], .1)
    for _ in range(steps):
        loss = F.mse_loss((base+X.writes(s.tanh()*f)).tanh(), p)
        opt.zero_grad(); loss.backward(); opt.step()
    return F.pixel_shuffle((s.detach()>0).to(torch.uint8), 2)[0]

def known_pairs(exp, who, X, Y, way:str, n:int)->dict:
    "One stream for all victims, and the attacker knows `n` of them as they are."
    k = Dice(5)(1)
    x = to_float(exp.data.query.images[:n])
    p = PNG(X(x, k))
    if way=='signs':
        found = solved_signs(X, x, p)
        right = ((found&1)==(k[0]&1)).float().mean().item()
    else:
        levels = lambda v: ((v+1)*127.5).round().to(torch.int16)
        found = ((levels(p[0])%8-levels(x[0])//32)%8).to(torch.uint8)
        right = (found==k[0]%8).float().mean().item()
    return dict(pairs=n, right=right)|looked(exp, who, lambda v: PNG(Y(PNG(X(v, k)), found[None])))

def file_sizes(exp, f)->float: # bytes
    "Of a PNG, on average."
    p = ((f(to_float(exp.data.gallery.images[:128])).clamp(-1, 1)+1)*127.5).round().to(torch.uint8)
    return float(np.mean([len(PNG.write(im)) for im in p.permute(0,2,3,1).numpy()]))

# -- everything

@torch.no_grad()
def measured(folder:Path, epochs:int, steps:int)->dict:
    "All numbers; what is there already is not measured again."
    kept,start = folder/'measured.json', time.process_time()
    rows = json.loads(kept.read_bytes()) if kept.is_file() else {}
    def row(name:str, make):
        if name in rows: return
        begun = time.process_time()
        rows[name] = make()|dict(seconds=round(time.process_time()-begun, 1))
        write_json(rows, kept)
        print(name, {k: (round(v['rank1'], 1) if isinstance(v, dict) else round(v, 3)) for k,v in rows[name].items() if not isinstance(v, str)}, flush=True)
    exp = Experiment(config('none', epochs), device='cpu')
    upper,pool = outsider(folder, exp), street(64)
    who = dict(outsider=upper)
    def attacked(name, protect, test, keys=None):
        def make():
            with torch.enable_grad(): net = inverter(pool, protect, steps)
            return looked(exp, who, lambda x: PNG(net(test(x))))|(dict() if keys is None else dict(keys=keys))
        row(name, make)
    des = lambda x: PNG(exp.desensitize(x))
    row('raw', lambda: looked(exp, who, lambda x: x)|dict(bytes=file_sizes(exp, lambda x: x)))
    row('desensitized', lambda: looked(exp, who, des)|dict(bytes=file_sizes(exp, des)))
    attacked('desensitized/inverter', des, des)
    arms = {way: trained(folder, way, epochs)[1:] for way in WAYS}
    looks = {way: ways_to_look(nets['anonymizer'], nets['recovery'], bool(WAYS[way])) for way,(nets,_) in arms.items()}
    for way,(nets,about) in arms.items():
        row(f'{way}/training', lambda: dict(cpu=about['cpu']))
        own = who|dict(own=nets['reid'])
        row(f'{way}/protected', lambda: looked(exp, own, looks[way]['protected'], ('raw-protected', 'protected-protected'))|dict(bytes=file_sizes(exp, looks[way]['protected'])))
        for name in list(looks[way])[1:]: row(f'{way}/{name}', lambda: looked(exp, who, looks[way][name]))
    def owner(way, k): attacked(f'{way}/inverter of {k} keys', of_some(arms[way][0]['anonymizer'], k, 11), looks[way]['protected'], k)
    def bystander(way, n): row(f'{way}/{n} known pairs', lambda: known_pairs(exp, who, arms[way][0]['anonymizer'], arms[way][0]['recovery'], way, n))
    attacked('none/inverter', looks['none']['protected'], looks['none']['protected'])
    for k in (64, 1): owner('signs', k)   # both ends first
    bystander('signs', 1), bystander('pad', 1), owner('pad', 64), bystander('signs', 4)
    for k in (4, 16): owner('signs', k)
    owner('pad', 1)
    return rows

def main(folder:Path, epochs:int, steps:int, note:str):
    rows = measured(folder, epochs, steps)
    exp = Experiment(config('none', epochs), device='cpu')
    about = dict(preset='demo', epochs=epochs, through='png', people=len(exp.data.query.pids.unique()), gallery=len(exp.data.gallery), steps=steps, pairs=512, torch=torch.__version__)
    RECORD.write_text(strict_json(dict(about=about, rows=rows), 1)+'\n', encoding='utf-8')
    table = ['| what is looked at | PSNR, dB | SSIM | outsider rank-1 (interval) |', '|:--|--:|--:|--:|']
    for k,v in rows.items():
        if 'psnr' in v: o = v['outsider raw-protected']; table.append(f"| {k} | {'' if k=='raw' else format(v['psnr'], '.2f')} | {v['ssim']:.3f} | {o['rank1']:.1f} ({o['low']:.1f} to {o['high']:.1f}) |")
    publish('A key in the picture', 'torch privreid', f"Preset demo, {epochs} epochs (pad: 1) of batches of 8, blur, through png; L1 terms and Re-ID on protected pictures only, no discriminators. {about['people']} victims, {about['gallery']} gallery pictures; attackers learn on 512 pictures of 64 other people, {steps} steps. {note}".strip(), table)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--epochs', type=int, default=3, help='of a training (default: %(default)s)')
    p.add_argument('--steps', type=int, default=150, help='of an attacker (default: %(default)s)')
    p.add_argument('--out', type=Path, help='where trainings and numbers stay (default: nowhere)')
    p.add_argument('--only', choices=['train'], help='do no more than this')
    p.add_argument('--note', default='', help='to stand above the table')
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        folder = a.out or Path(tmp)
        if a.only:
            outsider(folder, Experiment(config('none', a.epochs), device='cpu'))
            for way in WAYS: trained(folder, way, a.epochs)
        else: main(folder, a.epochs, a.steps, a.note)
