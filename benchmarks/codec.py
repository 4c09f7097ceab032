"""What recovery loses where a file lies between it and the protected picture, for a training that has never seen a file and for one that goes through JPEG.

    python benchmarks/codec.py                     # two trainings ('w/o U', and one Upper as the outsider), the table goes into RESULTS.md and codec.json
    python benchmarks/codec.py --epochs 6 --out F  # keep the runs in F; the same command goes on where it was stopped

One core, about five minutes a training at the demo's ten epochs. Test people are the run's own: nothing was decided on them.
"""
import argparse, sys, tempfile
from pathlib import Path
import torch
from common import publish
from privreid.codec import WAYS
from privreid.config import preset
from privreid.evaluation import measure
from privreid.experiments import run_experiment
from privreid.files import strict_json
from privreid.records import load_arm, load_results
from privreid.reopen import open_run

ARM = 'w/o U'
RECORD = Path(__file__).with_name('codec.json')

def trained(folder:Path, through:str, epochs:int, seed:int)->Path:
    "The folder of a run, trained where it is not there yet."
    run = folder/(f'through-{through}' if through else 'through-nothing')
    if not (run/'results.json').is_file():
        arms = (ARM,) if through else ('Upper', ARM)
        run_experiment(preset('demo', epochs=epochs, seed=seed, through=through), run, arms, resume=(run/'config.json').is_file(), device='cpu')
    return run

def row(exp, arm, upper, codec)->dict:
    "One way through a file: recovery, and who is found again, in %."
    def file(x): return x if codec is None else codec(x)
    def protect(x): return file(arm.anonymizer(x))
    def open_again(x): return arm.recovery(protect(x))
    who,sides = {'own': arm.reid, 'outsider': upper.reid}, (exp.data.query, exp.data.gallery)
    seen = measure(who, *sides, protect, arm.recovery, settings=('raw-protected', 'protected-protected'))
    back = measure(who, *sides, open_again, settings=('raw-protected',))
    found = dict(psnr=seen.recovered.psnr, ssim=seen.recovered.ssim)
    for w in who:
        for s,v in seen.settings[w].items(): found[f'{w} {s}'],found[f'{w} {s} mAP'] = 100*v.rank1, 100*v.mAP
        found[f'{w} raw-recovered'] = 100*back.settings[w]['raw-protected'].rank1
    return {k: round(v, 3) for k,v in found.items()}

def main(epochs:int, seed:int, folder:Path, note:str):
    runs = {through: trained(folder, through, epochs, seed) for through in ('', 'jpeg')}
    upper,rows,plain = load_arm(runs[''], 'Upper'), [], {}
    for through,run in runs.items():
        exp,_ = open_run(run, device='cpu')
        arm,none = load_arm(run, ARM), None
        plain[through] = {s: round(100*v['rank1'], 1) for s,v in load_results(run)['arms'][ARM]['settings'].items()}|dict(protected=load_results(run)['arms'][ARM]['protected'])
        for way,codec in WAYS.items():
            found = row(exp, arm, upper, codec)
            none = none or found
            rows.append(dict(through=through, way=way, lost=round(none['psnr']-found['psnr'], 3), **found))
            print(rows[-1], flush=True)
    counted = load_results(runs[''])['arms'][ARM]['settings']['raw-protected']
    about = dict(preset='demo', epochs=epochs, seed=seed, arm=ARM, queries=counted['queries'], chance=round(100*counted['chance'], 2), torch=torch.__version__, trainings=plain)
    RECORD.write_text(strict_json(dict(about=about, rows=rows), 1)+'\n', encoding='utf-8')
    table = ['| trained through | read from | recovered, dB | lost, dB | SSIM | own rank-1 raw-protected (mAP) | own raw-recovered | outsider raw-protected | outsider raw-recovered |', '|:--|:--|--:|--:|--:|--:|--:|--:|--:|']
    for r in rows: table.append(f"| {r['through'] or 'nothing'} | {r['way']} | {r['psnr']:.2f} | {r['lost']:.2f} | {r['ssim']:.3f} | {r['own raw-protected']:.1f} ({r['own raw-protected mAP']:.1f}) | {r['own raw-recovered']:.1f} | {r['outsider raw-protected']:.1f} | {r['outsider raw-recovered']:.1f} |")
    levels = '; '.join(f"trained through {k or 'nothing'}: {v['protected']['psnr']:.2f} dB, SSIM {v['protected']['ssim']:.3f}" for k,v in plain.items())
    publish('Through a file', 'torch Pillow privreid', f"Preset demo, {epochs} epochs, seed {seed}, arm {ARM}, blur; {about['queries']} queries, {about['chance']} % by chance. Protected pictures beside the raw ones: {levels}. JPEG and WebP with Pillow's defaults beside the quality; 4:2:0 unless said. {note}".strip(), table)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--epochs', type=int, default=10, help='of a training (default: %(default)s)')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', type=Path, help='where the runs stay (default: nowhere)')
    p.add_argument('--note', default='', help='to stand above the table')
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp: main(a.epochs, a.seed, a.out or Path(tmp), a.note)
