"""What a weaker blur alone would give: Base, trained on blurs that hide less, beside the joint training of the shipped demo run.

    python benchmarks/weaker.py                # three trainings of Base and one of Upper, the outsider; the table goes into RESULTS.md and weaker.json
    python benchmarks/weaker.py --folder F     # keep the runs in F; the same command goes on where it was stopped

Joint training finds more people behind pictures that also show a little more. A blur that shows as much is the control: same seed, same people, same first weights, same number of epochs as Base.
The first radius is the preset's own: its numbers must be those of the shipped run. One core, two minutes a training.
"""
import argparse, tempfile
from pathlib import Path
import torch
from common import publish
from privreid.config import preset
from privreid.desensitize import Blur
from privreid.evaluation import image_quality, measure
from privreid.experiments import run_experiment
from privreid.files import strict_json
from privreid.intervals import seed_interval
from privreid.records import load_arm
from privreid.reopen import open_run
from privreid.verdicts import read_run
from privreid.hindsight import demo_run

RADII = 12., 10., 9.   # pixels at a height of 256: the paper's; one that the rule's limits would let pass; one that they would not
SETTINGS = 'raw-protected', 'protected-raw', 'protected-protected'
RECORD = Path(__file__).with_name('weaker.json')

def trained(folder:Path, radius:float)->Path:
    "The folder of a run with Base, and with Upper beside it where the blur is the preset's."
    run,own = folder/f'radius-{radius:g}', {} if radius==RADII[0] else dict(desensitizer=Blur(radius))
    if not (run/'results.json').is_file(): run_experiment(preset('demo'), run, ('Base',) if own else ('Base', 'Upper'), resume=(run/'config.json').is_file(), device='cpu', **own)
    return run

def row(exp, base, outsider, radius:float, joint)->dict:
    "One blur: what it hides, what Base and an outsider find behind it, in %, and how many points more with the pictures and the model of joint training."
    blur,query = Blur(radius), exp.data.query
    seen = measure({'own': base.reid, 'outsider': outsider.reid}, query, exp.data.gallery, blur, settings=SETTINGS)
    hidden,found = image_quality(blur, exp.data.gallery, 'cpu'), {}
    for s in SETTINGS:
        found |= {f'{who} {s}': 100*seen.settings[who][s].rank1 for who in seen.settings}
        for arm in ('w/o U', 'w/ U'):
            for who,key in (('own', f'arms/{arm}/{s}'), ('outsider', f'unprotected/{arm}/{s}')):
                more = seed_interval([joint.ranked[key][0]-seen.queries[who][s][0]], [joint.people])
                found[f'{who}, {arm} above, {s}'] = [round(100*float(v), 1) for v in more]
    return dict(radius=radius, psnr=round(hidden.psnr, 2), ssim=round(hidden.ssim, 3))|{k: round(v, 1) if isinstance(v, float) else v for k,v in found.items()}

def main(folder:Path, note:str):
    shipped,rows = read_run(demo_run()).results, []
    for radius in RADII:
        run = trained(folder, radius)
        outsider = load_arm(folder/f'radius-{RADII[0]:g}', 'Upper')
        exp,_ = open_run(folder/f'radius-{RADII[0]:g}', device='cpu')
        rows.append(row(exp, load_arm(run, 'Base'), outsider, radius, shipped.outcomes))
        print(rows[-1], flush=True)
    base = shipped['arms']['Base']['settings']
    for s in SETTINGS: assert abs(rows[0][f'own {s}']-100*base[s]['rank1'])<.06, f'Base with the preset\'s blur is not the shipped one in {s}: the comparison would be between two trainings'
    pictures = {arm: {k: round(shipped['arms'][arm]['protected'][k], 3) for k in ('psnr', 'ssim')} for arm in ('w/o U', 'w/ U')}
    about = dict(preset='demo', seed=preset('demo').seed, queries=base[SETTINGS[0]]['queries'], torch=torch.__version__, threads=torch.get_num_threads(), protected=pictures)
    RECORD.write_text(strict_json(dict(about=about, rows=rows), 1)+'\n', encoding='utf-8')
    table = ['| radius | PSNR, dB | SSIM | Base\'s rank-1, three settings | an outsider\'s | with w/ U one finds more, points | an outsider finds more |', '|--:|--:|--:|:--|:--|:--|:--|']
    for r in rows:
        def three(who): return ' / '.join(f"{r[f'{who} {s}']:.1f}" for s in SETTINGS)
        def more(who): return ', '.join('{:+.1f} [{:+.1f}, {:+.1f}]'.format(*r[f'{who}, w/ U above, {s}']) for s in SETTINGS)
        table.append(f"| {r['radius']:g} | {r['psnr']:.2f} | {r['ssim']:.3f} | {three('own')} | {three('outsider')} | {more('own')} | {more('outsider')} |")
    publish('A weaker blur alone', 'torch', f"Preset demo, seed {about['seed']}; Base on blurs of several radii (pixels at a height of 256), settings {', '.join(SETTINGS)}; protected pictures of the shipped run: w/ U {pictures['w/ U']['psnr']:.2f} dB, {pictures['w/ U']['ssim']:.3f}. {note}", table)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--folder', type=Path, help='keep the runs here (default: a temporary folder)')
    p.add_argument('--note', default='', help='for the record')
    args = p.parse_args()
    torch.set_num_threads(1)
    if args.folder: main(args.folder, args.note)
    else:
        with tempfile.TemporaryDirectory() as folder: main(Path(folder), args.note)
