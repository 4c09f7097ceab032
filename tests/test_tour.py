"The tour and its script, micro.py: short, current, and equal to the package in losses, step and decisions."
import ast, json, os, random, re, subprocess, sys
from pathlib import Path
import pytest, torch
from accelerate import Accelerator
from torch import nn
from privreid.agw import AGW, CenterLoss, id_loss, wrt_loss
from privreid.config import preset
from privreid.desensitize import Blur
from privreid.evaluation import evaluate_ranking, pooled_psnr
from privreid.evaluation import ssim as package_ssim
from privreid.pix2pix import PatchGAN, UNetGenerator, gan_loss
from privreid.training import JointTraining
from privreid.upgradation import Epsilons, State, Validation, decide

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT/'micro.py'
TEXT = SCRIPT.read_text(encoding='utf-8')
TREE = ast.parse(TEXT)
PEOPLE = 5

def run(nodes, names:dict)->dict:
    exec(compile(ast.Module(nodes, []), str(SCRIPT), 'exec'), names)
    return names

@pytest.fixture
def micro()->dict:
    "What the script defines, without what it does."
    def constant(n): return isinstance(n, ast.Assign) and ast.unparse(n.targets[0]).strip('()').split(',')[0].isupper()
    return run([n for n in TREE.body if isinstance(n, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)) or constant(n)], {})

@pytest.fixture
def double(monkeypatch):
    "Everything in double precision, the package's single one too: after one step of Adam a rounding would show."
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)

# -- the text

def test_script_is_current():
    p = subprocess.run([sys.executable, ROOT/'docs'/'micro.py', '--check'], capture_output=True, text=True)
    assert p.returncode==0, p.stderr

def test_script_is_short_and_fits_the_page():
    texts = [n for n in ast.walk(TREE) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    words = {i for n in texts for i in range(n.lineno, n.end_lineno+1)}
    code = [l for i,l in enumerate(TEXT.splitlines(), 1) if i not in words and l.strip() and not l.lstrip().startswith('#')]
    assert len(code)<=200 and not [l for l in TEXT.splitlines() if len(l)>88]

def test_script_imports_nothing_but_torch_and_people():
    found = {ast.unparse(n) for n in ast.walk(TREE) if isinstance(n, (ast.Import, ast.ImportFrom))}
    assert found=={'import copy, math', 'import matplotlib.pyplot as plt', 'import torch', 'import torch.nn.functional as F', 'from torch import nn', 'from privreid.data import SyntheticPedestrians'}

# -- the same as the package

class Plain(nn.Module):
    "The tour's five convolutions, in the places of a ResNet's parts."
    def __init__(self, body):
        super().__init__()
        self.conv1,self.bn1,self.relu = body[0]
        self.maxpool,(self.layer1, self.layer2, self.layer3, self.layer4) = nn.Identity(), body[1:]

def lend(theirs, ours):
    "Give a network of the package the weights of one of the tour, which has its layers in the same order."
    state,new = theirs.state_dict(), list(ours.state_dict().values())
    assert [v.shape for v in state.values()]==[v.shape for v in new]
    theirs.load_state_dict(dict(zip(state, new)))

def package_agw(ours)->AGW:
    "The package's AGW around the tour's convolutions, with the tour's weights, on pictures as they are."
    import copy
    theirs = AGW(PEOPLE, 'mini').double()
    theirs.backbone = Plain(copy.deepcopy(ours.body))
    theirs.pool.p.data.copy_(ours.p.data)
    theirs.neck.load_state_dict(ours.neck.state_dict())
    theirs.classifier.load_state_dict(ours.classify.state_dict())
    theirs.mean.zero_(); theirs.std.fill_(1)
    return theirs

def weights_of(ours, theirs):
    "Pairs of tensors that ought to be equal."
    for k in ('G_X', 'G_Y', 'D_Y', 'D_X'): yield from zip(ours[k].state_dict().items(), theirs[k].state_dict().values())
    a,b = ours.reid, theirs['reid']
    yield from zip(a.body.state_dict().items(), b.backbone.state_dict().values())
    yield from zip(a.neck.state_dict().items(), b.neck.state_dict().values())
    yield ('p', a.p), b.pool.p
    yield ('classify', a.classify.weight), b.classifier.weight
    yield ('centers', a.centers), theirs['center'].centers

def test_losses_step_and_weights(micro, double):
    "Two joint steps: six losses, both discriminators' and every weight and statistic after them."
    torch.manual_seed(1)
    outsider = micro['outsider'] = micro['AGW'](PEOPLE, n=12)
    with torch.no_grad():   # or its logits, and what they pull at, would be next to nothing
        for w in (outsider.classify.weight, outsider.centers): w.normal_()
    built = ('net', 'net.reid', 'judges', 'makers')
    run([n for n in TREE.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) in built], micro)
    ours = micro['net'].double().train()
    cfg = preset('demo', weights='', ngf=16, ndf=8, lr=micro['RATE'], lambda_l1=float(micro['LAMBDA']))
    training = JointTraining(cfg, PEOPLE, Accelerator(cpu=True))
    theirs = training.nets.double()
    theirs['reid'] = package_agw(ours.reid)
    for k in ('G_X', 'G_Y', 'D_Y', 'D_X'): lend(theirs[k], ours[k])
    theirs['center'].centers.data.copy_(ours.reid.centers.data)
    training.optimizers = {k: training.optimizer(k) for k in theirs}
    theirs.train()
    before = [t.clone() for _,t in weights_of(ours, theirs)]
    for step in range(2):
        x,who = torch.rand(8, 3, 64, 32, dtype=torch.float64)*2-1, torch.tensor([0, 0, 1, 1, 3, 3, 4, 4])
        y = micro['blur'](x.to(torch.float32)).double()
        a,b = micro['joint_step'](ours, micro['judges'], micro['makers'], x, y, who), training.step(x, y, who)
        assert list(a)==list(b)
        for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-8, msg=lambda m: f'step {step}, {k}: {m}')
    after = list(weights_of(ours, theirs))
    for (name,w),v in after: torch.testing.assert_close(w, v, rtol=1e-4, atol=1e-5, msg=lambda m: f'{name}: {m}')
    moved = sum((v-w).abs().max()>1e-4 for (_,v),w in zip(after, before) if v.is_floating_point())
    assert moved>.8*len(before)   # and the steps were steps

def test_features(micro, double):
    "What a tested AGW says."
    ours = micro['AGW'](PEOPLE, n=12).double()
    theirs,x = package_agw(ours).eval(), torch.rand(3, 3, 64, 32, dtype=torch.float64)*2-1
    torch.testing.assert_close(ours.eval()(x), theirs(x))

def test_decisions(micro):
    "Random histories, in which things stand at the limits, too."
    dice,seen = random.Random(0), set()
    for _ in range(300):
        base = dice.choice((.3, .5))
        ours,theirs = (base-.05, False), State(base-.05)
        for epoch in range(1, 9):
            blurred = dice.choice((18., 20.)), dice.choice((.3, .4))
            protected = blurred[0]+dice.choice((-1, .5, 1, 2)), blurred[1]+dice.choice((-.1, 0, .05, .1))
            r1 = dice.choice((.2, .25, .3, .45, .5, .6, .7, .8))
            d = decide(Validation(epoch, *protected, *blurred, r1), theirs, Epsilons())
            best,upgraded = ours
            action,best = micro['decide'](protected, blurred, r1, best, upgraded)
            assert (action, best)==(d.action, d.state.best_r1)
            upgraded = action=='upgrade' or upgraded and action!='fall back'
            assert upgraded==d.state.upgraded
            ours,theirs = (best, upgraded), d.state
            seen.add(action)
    assert seen=={'upgrade', 'keep', 'fall back'}

def test_measures(micro):
    torch.manual_seed(0)
    x = torch.rand(6, 3, 64, 32)*2-1
    y = (x+.4*torch.randn_like(x)).clamp(-1, 1)
    torch.testing.assert_close(micro['psnr'](y, x), pooled_psnr(y, x))
    torch.testing.assert_close(micro['ssim'](y, x), package_ssim(y, x).mean(), rtol=1e-4, atol=1e-4)
    inside = (..., slice(16, 48), slice(12, 20))   # at the border ours takes what there is, the package repeats the last pixel
    smooth = nn.functional.avg_pool2d(x, 5, 1, 2)
    assert (micro['blur'](smooth)-Blur()(smooth))[inside].abs().max()<.05

def test_rank1(micro):
    torch.manual_seed(0)
    who,cams = torch.arange(40)//8+1, torch.arange(40)%4
    q,g = torch.randn(12, 4), torch.randn(40, 4)
    at = torch.randperm(40)[:12]
    ours = micro['rank1'](q, g, (None, who[at], cams[at]), (None, who, cams))
    theirs = evaluate_ranking(torch.cdist(q, g), who[at], who, cams[at], cams).rank1
    assert ours==pytest.approx(theirs) and 0<ours<1

def test_single_losses(micro):
    torch.manual_seed(0)
    logits,f,who = torch.randn(8, 5), torch.randn(8, 6)*3, torch.arange(8)//2
    for real in (True, False): torch.testing.assert_close(micro['says'](logits, float(real)), gan_loss(logits, real))
    torch.testing.assert_close(micro['triplet'](f, who), wrt_loss(f, who), rtol=1e-4, atol=1e-5)
    center = CenterLoss(5, 6)
    def reid(x): return logits, x
    reid.centers = center.centers
    expected = id_loss(logits, who)+.0005*center(f, who)+wrt_loss(f, who)
    torch.testing.assert_close(micro['recognise'](reid, f, who), expected, rtol=1e-4, atol=1e-5)

def test_batches(micro):
    "Four of each of four people, and every picture once."
    some = list(micro['batches']())
    assert torch.cat(some).sort()[0].tolist()==list(range(12*micro['LEARN']))
    for b in some: assert (b//12).unique(return_counts=True)[1].tolist()==[4]*4

def test_pictures_are_augmented_alike(micro):
    x = torch.rand(4, 3, 64, 32)
    a,b = micro['augment'](x, -x)
    assert torch.equal(a, -b) and not torch.equal(a, x)

# -- it runs alone

def test_script_runs(tmp_path):
    "All of it, on few people; it prints what the page prints and leaves its picture."
    small = re.sub(r'^(LEARN, .*?) = [\d, ]+', r'\1 = 8, 3, 3 ', re.sub(r'^(ALONE, .*?) = [\d, ]+', r'\1 = 1, 1, 2 ', TEXT, flags=re.M), flags=re.M)
    assert small!=TEXT
    (tmp_path/'micro.py').write_text(small, encoding='utf-8')
    said = alone(tmp_path)
    for line in ('blurred : ', 'epoch  2: ', 'drawn by lot ', 'outsider, blurred ', 'outsider, protected ', 'Base, blurred ', 'joint, protected '): assert line in said

def alone(folder:Path)->str:
    "What the script prints, run in a folder that holds nothing else."
    env = os.environ|dict(MPLBACKEND='Agg', PYTHONPATH=str(ROOT))
    p = subprocess.run([sys.executable, folder/'micro.py'], cwd=folder, env=env, capture_output=True, text=True, timeout=1800)
    assert p.returncode==0 and (folder/'micro.png').stat().st_size>5000, p.stderr[-2000:]
    return p.stdout

def test_the_page_shows_what_it_promises():
    "Its committed outputs: people found in protected pictures far more often than by lot, and more often than by an outsider."
    cells = json.loads((ROOT/'nbs'/'00_tour.ipynb').read_text(encoding='utf-8'))['cells']
    said = ''.join(''.join(o.get('text', '')) for c in cells for o in c.get('outputs', []))
    rows = {m[1].strip(): [float(v) for v in m[2].split('%')[:4]] for m in re.finditer(r'^([^\d\n]+?)((?: +\d+%){4})$', said, flags=re.M)}
    lot,outsider,joint = rows['drawn by lot'], rows['outsider, protected'], rows['joint, protected']
    assert min(joint)>5*lot[0] and all(j>s for j,s in zip(joint[1:], outsider[1:]))
