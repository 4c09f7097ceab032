"""The backbone that all arms start from at `weights='street'`: `mini`, taught to recognise the painted people of another street.

    python benchmarks/street.py            # writes privreid/street.safetensors and prints its SHA-256, which stands in nbs/behind_backbones.ipynb
    python benchmarks/street.py --judge    # what the file that is there is good for, in a table that goes into benchmarks/RESULTS.md

It is what ImageNet is to the paper's ResNet-50: something to begin with that has seen none of the people, and is the same for all. Its seed draws other identities and other cameras than an experiment's seed does.
Non-local blocks are left out while it learns; in an AGW they start as the identity, as on ImageNet's ResNet. One thread, so that the same machine makes the same file.
"""
import argparse, hashlib, json, platform
from pathlib import Path
from tempfile import TemporaryDirectory
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from common import publish
from privreid import __version__
from privreid.agw import STREET_SEED, AGW
from privreid.arms import Experiment
from privreid.config import Config, preset
from privreid.data import SyntheticPedestrians, to_float
from privreid.evaluation import four_settings
from privreid.training import ReidTraining

RECIPE = Config(data='synthetic', people=400, test_people=64, height=64, width=32, backbone='mini', weights='', epochs=20, batch=32,
                lr=2e-3, warmup=0, milestones=(14, 18), seed=STREET_SEED)
FILE = Path(__file__).resolve().parent.parent/'privreid'/'street.safetensors'

def score(reid, data)->dict: # in %
    "Of an AGW on raw test people."
    found = four_settings(reid.eval(), None, data.query, data.gallery, settings=('raw-raw',))['raw-raw']
    return dict(rank1=round(100*found.rank1, 1), mAP=round(100*found.mAP, 1), queries=found.queries, chance=round(100*found.chance, 2))

def teach(cfg:Config)->tuple[dict,dict]: # state dict of the backbone, what its AGW scores on test people of its own street
    "Train an AGW without non-local blocks on raw images."
    exp = Experiment(cfg, device='cpu', threads=1)
    trainer = exp.trainer('street', ReidTraining, paired=False)
    net = trainer.nets['reid'].backbone
    for stage in (net.layer2, net.layer3): stage[0] = stage[0][0]
    trainer.fit()
    return net.state_dict(), score(trainer.nets['reid'], exp.data)

def untouched(file:Path, seed:int=0)->dict:
    "What the backbone recognises before it has learnt anything about the street of an experiment."
    return score(AGW(1, 'mini', str(file)), SyntheticPedestrians(test_ids=64, size=(64, 32), seed=seed).load())

@torch.no_grad()
def acquainted(file:Path, seed:int=0)->dict:
    "What it recognises with BatchNorm statistics of the new street's raw training images, and without a label."
    data,reid = SyntheticPedestrians(test_ids=64, size=(64, 32), seed=seed).load(), AGW(1, 'mini', str(file)).eval()
    for m in reid.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm): m.train(); m.reset_running_stats(); m.momentum = None   # None: the mean over all batches
    order = torch.randperm(len(data.train.images), generator=torch.Generator().manual_seed(seed))
    for i in order.split(128): reid(to_float(data.train.images[i]))
    return score(reid, data)

def write(file:Path, cfg:Config=RECIPE):
    "Teach a backbone and keep it in half precision, with how it came about."
    state,own = teach(cfg)
    state = {k: v.half().contiguous() for k,v in state.items() if not k.endswith('num_batches_tracked')}
    with TemporaryDirectory() as tmp:
        save_file(state, trial := Path(tmp)/'street.safetensors')
        found = untouched(trial)
    made = dict(what="backbone mini for weights='street': AGW without non-local blocks, on raw images of painted people", recipe=repr(cfg),
                privreid=__version__, torch=torch.__version__, machine=f'{platform.machine()}, 1 thread', own_test_people=own, untouched_on_seed_0=found)
    save_file(state, file, metadata=dict(made=json.dumps(made)))   # one entry: their order would be left to chance
    file.chmod(0o644)   # for everybody, also where a package is built from here

def tell(file:Path):
    with safe_open(file, 'pt') as f: print(json.dumps(json.loads(f.metadata()['made']), indent=1))
    print(f'{file.stat().st_size:,} bytes, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}')

def judge(file:Path, epochs:tuple=(9, 12), seed:int=0):
    "Publish rank-1 and mAP of raw test people: of Uppers, and of Bases (blur), that start from this backbone and from random weights."
    data,found,seen = None, untouched(file, seed), acquainted(file, seed)
    table = ['| starts from | trained | raw-raw, rank-1 (mAP), % | raw-protected | protected-raw | protected-protected |', '|:--|:--|--:|--:|--:|--:|',
             f"| street | not at all | {found['rank1']} ({found['mAP']}) | | | |", f"| street | BatchNorm statistics only | {seen['rank1']} ({seen['mAP']}) | | | |"]
    for name,weights in dict(street=str(file), random='').items():
        for arm,n in [('Upper', n) for n in epochs]+[('Base', min(epochs))]:
            exp = Experiment(preset('demo', seed=seed, weights=weights, epochs=n), data, device='cpu', threads=1)
            data,reid = exp.data, exp.train(arm, ReidTraining, paired=arm=='Base').reid
            cells = [f'{100*r.rank1:.1f} ({100*r.mAP:.1f})' for r in four_settings(reid, exp.desensitize, data.query, data.gallery).values()]
            table.append(f"| {name} | {arm}, {n} epochs | {' | '.join(cells)} |")
            print(table[-1], flush=True)
    publish('One start for all', 'torch privreid', f"Preset demo, seed {seed}: {found['queries']} queries, {found['chance']} % by chance; protected is blurred.", table)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--judge', action='store_true', help='measure the file that is there')
    p.add_argument('--file', type=Path, default=FILE)
    a = p.parse_args()
    if not a.judge: write(a.file)
    tell(a.file)
    if a.judge: judge(a.file)
