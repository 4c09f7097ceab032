"""Which claims of the paper hold in the small? Reads the runs of `privreid reproduce` and prints Markdown.

    privreid reproduce --preset demo --data synthetic --table 1 3 4 5 --seeds 0 1 2 --out claims
    python benchmarks/claims.py claims
"""
import json, sys
from pathlib import Path
import pandas as pd
from privreid.report import CROSSED, read_run

def verdicts(run, upper:dict, seen:dict)->dict: # claim -> whether it holds
    arms,des,eps = run.results['arms'], run.results['desensitized'], run.eps
    def above(high, low): return all(arms[high]['settings'][s][m]>arms[low]['settings'][s][m] for s in CROSSED for m in ('rank1', 'mAP'))
    protected,recovered,raw = arms['w/ U']['protected'], arms['w/ U']['recovered'], upper['settings']['raw-raw']['rank1']
    return {
        'w/o U is above Base in all three settings with protected images, rank-1 and mAP': above('w/o U', 'Base'),
        'w/ U is above Base, likewise': above('w/ U', 'Base'),
        'w/ U is above w/o U, likewise': above('w/ U', 'w/o U'),
        'The supervision was upgraded': any(r['action']=='upgrade' for r in run.rows('decision', 'w/ U')),
        'Raw-raw, w/ U is at most 5 points of rank-1 below Upper': arms['w/ U']['settings']['raw-raw']['rank1']>=raw-.05,
        'Test people: PSNR and SSIM keep within the privacy constraint': protected['psnr']<des['psnr']+eps.psnr and protected['ssim']<des['ssim']+eps.ssim,
        'Recovered images exceed 25 dB': recovered['psnr']>25,
        'Recovered images exceed 20 dB': recovered['psnr']>20,
        'An unprotected AGW finds protected images less than half as often as raw ones (raw query)': seen['anonymized']['raw-protected']['rank1']<raw/2}

def numbers(run, seen:dict)->dict: # (arm, what) -> number
    out = {(a, s): 100*v['rank1'] for a,row in run.results['arms'].items() for s,v in row['settings'].items()}
    out |= {(a, f'recovered {k}'): run.results['arms'][a]['recovered'][k] for a in ('w/o U', 'w/ U') for k in ('psnr', 'ssim')}
    out |= {(a, f'protected {k}'): run.results['arms'][a]['protected'][k] for a in ('Base', 'w/o U', 'w/ U') for k in ('psnr', 'ssim')}
    return out|{('unprotected AGW', f'{images}, {s}'): 100*v['rank1'] for images,rows in seen.items() for s,v in rows.items()}

def main(out:Path):
    held,measured = {}, {}
    for folder in sorted((out/'runs').glob('synthetic-seed*')):
        run = read_run(folder)
        if 'w/ U' not in run.results['arms']: continue
        name,seed = run.cfg.desensitizer, run.cfg.seed
        upper = read_run(out/'runs'/f'synthetic-seed{seed}-upper').results['arms']['Upper']
        seen = json.loads((folder/'measurements.json').read_text())['unprotected']
        held[name, seed],measured[name, seed] = verdicts(run, upper, seen), numbers(run, seen)|{('Upper', 'raw-raw'): 100*upper['settings']['raw-raw']['rank1']}
    table = pd.DataFrame(held).T.groupby(level=0).agg(lambda v: f'{sum(v)} of {len(v)}')
    print(table.T.to_markdown(), end='\n\n')
    frame = pd.DataFrame(measured).T.groupby(level=0)
    mean,spread = frame.mean().T, frame.std().T
    print((mean.round(2).astype(str)+' ± '+spread.round(2).astype(str)).to_markdown())

if __name__=='__main__': main(Path(sys.argv[1]))
