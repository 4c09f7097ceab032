"Draw the README's picture row, nbs/images/row.png, from a finished run of the demo: python docs/row.py RUN"
import sys
from pathlib import Path
import torch
from privreid.arms import Experiment
from privreid.data import show_pictures, to_float
from privreid.records import load_arm, load_run

def main(run:str):
    cfg,_ = load_run(run)
    exp,arm = Experiment(cfg), load_arm(run, 'w/ U')
    gallery = exp.data.gallery.images
    x = to_float(gallery[::len(gallery)//12][:12])
    with torch.no_grad():
        p = arm.anonymizer(x)
        fig = show_pictures(n=12, raw=x, desensitized=exp.desensitize(x), protected=p, recovered=arm.recovery(p))
    out = Path(__file__).parent.parent/'nbs'/'images'/'row.png'
    out.parent.mkdir(exist_ok=True)
    fig.savefig(out, dpi=110, bbox_inches='tight')

if __name__=='__main__': main(*sys.argv[1:])
