"""Hide people, bring them back with a key, and still find out who is who.

python micro.py: a few minutes on two CPU cores, without a GPU. It needs torch,
matplotlib and, for its painted people, privreid. Made from nbs/00_tour.ipynb by
docs/micro.py: edit the notebook, not this file.
"""

import copy, math
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from privreid.data import SyntheticPedestrians

torch.manual_seed(0)
H, W = 64, 32                        # pixels
LEARN, VALIDATE, TEST = 48, 16, 32   # people to learn from, decide by, test on
ALONE, BASE, JOINT = 8, 6, 12        # epochs of the three trainings
LAMBDA, RATE = 25, 2e-3              # weight of L1 (paper: 100, see 11), learning rate

# --- People

def photograph(people, shots):
    "Pictures (N,3,H,W) in [-1,1], who is on each (N,), and by which camera (N,)."
    rows = [(who, cam, shot) for who in people for cam in range(4) for shot in shots]
    split = SyntheticPedestrians(size=(H, W)).split(rows)
    return split.images/127.5-1, split.pids, split.cams

def query_and_gallery(who): return photograph(who, [0]), photograph(who, [1, 2])

photos, names, _ = photograph(range(LEARN), [0, 1, 2])
validation = query_and_gallery(range(LEARN, LEARN+VALIDATE))
test = query_and_gallery(range(LEARN+VALIDATE, LEARN+VALIDATE+TEST))

# --- Hide, the old way

def blur(x, radius=3):
    def weights(n):
        i = torch.arange(n)
        return torch.softmax(-.5*((i[:,None]-i)/radius)**2, 1)
    return weights(H)@x@weights(W).T

def show(**stages):
    "One row of pictures for each stage."
    grid = torch.cat([torch.cat(list(z), 2) for z in stages.values()], 1)
    fig, ax = plt.subplots(figsize=(grid.shape[2]/64, grid.shape[1]/64), dpi=110)
    ax.imshow((grid.permute(1, 2, 0).clamp(-1, 1)+1)/2)
    ax.set(xticks=[], yticks=range(H//2, grid.shape[1], H), yticklabels=stages)

twelve = test[1][0][::len(test[1][0])//12][:12]
show(raw=twelve, desensitized=blur(twelve))

# --- Two generators

def halve(a, b): return nn.Conv2d(a, b, 4, 2, 1, bias=False)

class Level(nn.Module):
    "What comes in (B,a,h,w), and beside it what comes up from below: (B,2a,h,w)."
    def __init__(self, a, b, below=None):
        super().__init__()
        down = [nn.LeakyReLU(.2), halve(a, b)]
        if below: down += [nn.BatchNorm2d(b), below]
        up = nn.ConvTranspose2d(2*b if below else b, a, 4, 2, 1, bias=False)
        self.body = nn.Sequential(*down, nn.ReLU(), up, nn.BatchNorm2d(a))
    def forward(self, x): return torch.cat([x, self.body(x)], 1)

def UNet(n=16):
    "(B,3,H,W) to (B,3,H,W), both in [-1,1]; n channels at the top, 8n at the bottom."
    net = Level(8*n, 8*n)
    for a, b in [(4, 8), (2, 4), (1, 2)]: net = Level(a*n, b*n, net)
    last = nn.ConvTranspose2d(2*n, 3, 4, 2, 1)
    return nn.Sequential(halve(3, n), net, nn.ReLU(), last, nn.Tanh())

# --- Two discriminators, and a game

def PatchGAN(n=8):
    "Two pictures, stacked to (B,6,H,W), to one logit for each patch."
    layers = [nn.Conv2d(6, n, 4, 2, 1), nn.LeakyReLU(.2)]
    for a, b, stride in [(1, 2, 2), (2, 4, 2), (4, 8, 1)]:
        layers.append(nn.Conv2d(a*n, b*n, 4, stride, 1, bias=False))
        layers += [nn.BatchNorm2d(b*n), nn.LeakyReLU(.2)]
    return nn.Sequential(*layers, nn.Conv2d(8*n, 1, 4, 1, 1))

def says(logits, real):
    "What a discriminator pays if it ought to say `real`: 1. or 0."
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

logits = PatchGAN()(torch.cat([twelve, blur(twelve)], 1))
print(tuple(logits.shape[2:]), f'patches; {says(logits, 1.)+says(logits, 0.):.2f}')

# --- A model that recognises

def conv(a, b, size, stride):
    layer = nn.Conv2d(a, b, size, stride, size//2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(b), nn.ReLU())

class AGW(nn.Module):
    "Learning: logits (B,people), pooled (B,F). Testing: features (B,F) of length 1."
    def __init__(self, people, n=16):
        super().__init__()
        self.body = nn.Sequential(conv(3, n, 7, 2), conv(n, n, 3, 1),
            conv(n, 2*n, 3, 2), conv(2*n, 4*n, 3, 2), conv(4*n, 8*n, 3, 1))
        self.p = nn.Parameter(torch.tensor(3.))
        self.neck = nn.BatchNorm1d(8*n)
        self.neck.bias.requires_grad_(False)                # it scales, never shifts
        self.classify = nn.Linear(8*n, people, bias=False)
        nn.init.normal_(self.classify.weight, 0, .001)
        self.centers = nn.Parameter(torch.randn(people, 8*n))
    def forward(self, x):
        v = self.body(x).clamp(min=1e-6)
        pooled = v.pow(self.p).mean((2, 3)).pow(1/self.p)
        f = self.neck(pooled)
        return (self.classify(f), pooled) if self.training else F.normalize(f)

def triplet(f, who):
    d = torch.cdist(f, f)   # (B,B)
    same = who[:,None]==who
    def weights(z, pairs): return z.masked_fill(~pairs, -math.inf).softmax(1)
    far = (weights(d, same)*d).sum(1)
    near = (weights(-d, ~same)*d).sum(1)
    return F.softplus(far-near).mean()

def recognise(reid, x, who):
    "The loss of AGW."
    logits, pooled = reid(x)
    identity = F.cross_entropy(logits, who, label_smoothing=.1)
    centre = (pooled-reid.centers[who]).pow(2).sum(1).mean()
    return identity+.0005*centre+triplet(pooled, who)

# --- One step for five networks

def adam(net, beta):
    weights = [w for name, w in net.named_parameters() if name!='centers']
    return torch.optim.Adam(weights, RATE, (beta, .999), weight_decay=5e-4)

def for_agw(reid):
    "Adam; for the centres SGD at .5, with the .0005 of their loss taken out again."
    return [adam(reid, .9), torch.optim.SGD([reid.centers], .5/.0005)]

def update(optimizers, loss):
    for opt in optimizers: opt.zero_grad()
    loss.backward()
    for opt in optimizers: opt.step()

def joint_step(net, judges, makers, x, y, who):
    p = net.G_X(x)
    r = net.G_Y(p)
    def D_Y(picture): return net.D_Y(torch.cat([x, picture], 1))
    def D_X(protected, picture): return net.D_X(torch.cat([protected, picture], 1))
    p_, r_ = p.detach(), r.detach()
    judged = dict(
        D_Y=says(D_Y(y), 1.)+says(D_Y(p_), 0.),           # (1)
        D_X=says(D_X(p_, x), 1.)+says(D_X(p_, r_), 0.))   # (4)
    update(judges, sum(judged.values()))
    made = dict(
        adv_ano=says(D_Y(p), 1.),
        l1_ano=LAMBDA*F.l1_loss(p, y),                    # (2)
        adv_rec=says(D_X(p, r), 1.),
        l1_rec=LAMBDA*F.l1_loss(r, x),                    # (5)
        reid_raw=recognise(net.reid, x, who),
        reid_protected=recognise(net.reid, p, who))
    update(makers, sum(made.values()))                    # (8)
    return judged|made

# --- Batches

def batches(people=4, each=4):
    "The places of all pictures, 16 at a time, in a new order; 12 in a row are of one."
    own = torch.rand(LEARN, 12).argsort(1)+12*torch.arange(LEARN)[:,None]
    for part in own.split(each, 1):
        for some in part[torch.randperm(LEARN)].split(people): yield some.flatten()

def augment(*pictures):
    flip = torch.rand(len(pictures[0]), 1, 1, 1)<.5
    top, left = torch.randint(H-16, ()), torch.randint(W-12, ())
    flipped = [torch.where(flip, z.flip(3), z) for z in pictures]
    for z in flipped: z[:,:,top:top+16,left:left+12] = 0
    return flipped

# --- Measure

def psnr(a, b): return -10*((a-b)/2).pow(2).mean().log10()

def ssim(a, b):
    g = torch.softmax(-.5*((torch.arange(11)-5)/1.5)**2, 0)
    window = (g[:,None]*g).expand(3, 1, 11, 11)
    def mean(z): return F.conv2d(z, window, groups=3)
    a, b = (a+1)/2, (b+1)/2
    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a*a)-ma**2, mean(b*b)-mb**2, mean(a*b)-ma*mb
    alike = (2*ma*mb+.01**2)*(2*both+.03**2)
    return (alike/((ma**2+mb**2+.01**2)*(va+vb+.03**2))).mean()

def rank1(query_features, gallery_features, query, gallery):
    (_, q_who, q_cam), (_, g_who, g_cam) = query, gallery
    d = torch.cdist(query_features, gallery_features)
    d[(q_who[:,None]==g_who)&(q_cam[:,None]==g_cam)] = math.inf
    return (g_who[d.argmin(1)]==q_who).float().mean().item()

@torch.no_grad()
def four_settings(reid, hide, query, gallery):
    "Rank-1 of raw-raw, raw-protected, protected-raw, protected-protected."
    reid.eval()
    looks = [[reid(x), reid(hide(x))] for x in (query[0], gallery[0])]
    return [rank1(q, g, query, gallery) for q in looks[0] for g in looks[1]]

@torch.no_grad()
def likeness(make, x): return psnr(make(x), x).item(), ssim(make(x), x).item()

# --- Two to compare with

def calm_down(optimizers, *nets):
    for opt in optimizers: opt.param_groups[0]['lr'] = RATE/10
    for net in nets: net.eval().training = True   # BatchNorm rests; AGW gives logits

def train_alone(reid, epochs, *kinds):
    optimizers = for_agw(reid)
    for epoch in range(1, epochs+1):
        reid.train()
        if epoch>2/3*epochs: calm_down(optimizers, reid)
        for some in batches():
            seen = augment(*[kind(photos[some]) for kind in kinds])
            update(optimizers, sum(recognise(reid, z, names[some]) for z in seen))
    return reid

outsider = train_alone(AGW(LEARN), ALONE, nn.Identity())
base = train_alone(copy.deepcopy(outsider), BASE, nn.Identity(), blur)
base_r1 = four_settings(base, blur, *validation)[1]

# --- The pupil becomes the teacher

def decide(protected, blurred, r1, best, upgraded):
    "PSNR and SSIM of both, rank-1, the best so far, who teaches -> action, new best."
    private = protected[0]<blurred[0]+1 and protected[1]<blurred[1]+.05
    if private and r1>best: return 'upgrade', r1
    if upgraded and not private: return 'fall back', best
    return 'keep', best

net = nn.ModuleDict(dict(G_X=UNet(), G_Y=UNet(), D_Y=PatchGAN(), D_X=PatchGAN()))
net.reid = copy.deepcopy(outsider)
judges = [adam(net.D_Y, .5), adam(net.D_X, .5)]
makers = [adam(net.G_X, .5), adam(net.G_Y, .5), *for_agw(net.reid)]
teacher, best = None, base_r1-.05
blurred = likeness(blur, validation[1][0])
print('blurred : %.1f dB, %.3f,' % blurred, f'rank-1 {base_r1:.0%} (Base)')
for epoch in range(1, JOINT+1):
    net.train()
    if epoch>JOINT/2: calm_down(judges+makers, net.G_X, net.G_Y, net.reid)
    for some in batches():
        x, y = augment(photos[some], blur(photos[some]))
        if teacher: y = teacher(x)
        joint_step(net, judges, makers, x, y, names[some])
    net.eval()
    protected = likeness(net.G_X, validation[1][0])
    r1 = four_settings(net.reid, net.G_X, *validation)[1]
    action, best = decide(protected, blurred, r1, best, teacher is not None)
    if action=='upgrade': teacher = copy.deepcopy(net.G_X).requires_grad_(False)
    if action=='fall back': teacher = None
    print(f'epoch {epoch:2}: %.1f dB, %.3f,' % protected, f'rank-1 {r1:.0%}: {action}')

# --- Train, hide, recover, find

def recover(x): return net.G_Y(net.G_X(x))
with torch.no_grad(): p, r = net.G_X(twelve), recover(twelve)
show(raw=twelve, desensitized=blur(twelve), protected=p, recovered=r)

plt.savefig('micro.png')   # a script has no page to show it on

for name, make in dict(blurred=blur, protected=net.G_X, recovered=recover).items():
    print(f'{name:10} PSNR %.1f dB, SSIM %.2f' % likeness(make, test[1][0]))

def row(name, settings): print(f'{name:20}'+''.join(f'{v:12.0%}' for v in settings))
print(f'\nquery-gallery{"raw-raw":>19}{"raw-hid":>12}{"hid-raw":>12}{"hid-hid":>12}')
row('drawn by lot', [6/(8*TEST-2)]*4)
row('outsider, blurred', four_settings(outsider, blur, *test))
row('outsider, protected', four_settings(outsider, net.G_X, *test))
row('Base, blurred', four_settings(base, blur, *test))
row('joint, protected', four_settings(net.reid, net.G_X, *test))

# --- What a few minutes show, and what they do not
