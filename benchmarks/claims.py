"""Which claims of the paper hold in the small? Reads the runs of `privreid reproduce` and prints Markdown.

    privreid reproduce --preset demo --data synthetic --table 1 3 4 5 --seeds 0 1 2 --out claims
    python benchmarks/claims.py claims
"""
import json, sys
from pathlib import Path
import pandas as pd
from privreid.experiments import ARMS
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

def rank1(run, upper:dict, seen:dict)->pd.Series: # (who, setting) -> %
    who = {a: row['settings'] for a,row in run.results['arms'].items()}|{'Upper': upper['settings'], 'unprotected AGW on desensitized': seen['desensitized'], 'unprotected AGW on protected, w/ U': seen['anonymized']}
    return pd.Series({(a, s): 100*v['rank1'] for a,found in who.items() for s,v in found.items() if s!='raw-raw' or a in ARMS})

def likeness(run)->pd.Series: # (image, metric)
    rows = {'desensitized': run.results['desensitized'], 'protected, w/ U': run.results['arms']['w/ U']['protected'], 'recovered, w/ U': run.results['arms']['w/ U']['recovered']}
    return pd.Series({(image, metric): q[metric.split(',')[0].lower()] for image,q in rows.items() for metric in ('PSNR, dB', 'SSIM')})

def mean_and_spread(rows:list[pd.Series], digits:int)->str:
    "A Markdown table: first level down, second across; mean ± standard deviation over the seeds."
    table = pd.DataFrame(rows)
    cells = pd.Series([f'{m:.{digits}f} ± {s:.{digits}f}' for m,s in zip(table.mean(), table.std())], index=table.columns)
    return cells.unstack(sort=False).fillna('–').to_markdown()

def main(out:Path):
    held,ranks,likes = {}, {}, {}
    for measured in sorted((out/'runs').glob('synthetic-seed*/measurements.json')):   # runs under way have none
        run = read_run(measured.parent)
        if 'w/ U' not in run.results['arms']: continue
        name,seed = run.cfg.desensitizer, run.cfg.seed
        upper = read_run(out/'runs'/f'synthetic-seed{seed}-upper').results['arms']['Upper']
        seen = json.loads(measured.read_text())['unprotected']
        held[name, seed] = verdicts(run, upper, seen)
        ranks.setdefault(name, []).append(rank1(run, upper, seen))
        likes.setdefault(name, []).append(likeness(run))
    print(pd.DataFrame(held).T.groupby(level=0, sort=False).agg(lambda v: f'{sum(v)} of {len(v)}').T.to_markdown())
    for name in ranks:
        print(f'\n## {name.capitalize()}, {len(ranks[name])} seeds\n\nRank-1, %, query-gallery:\n\n{mean_and_spread(ranks[name], 1)}\n\nLikeness to the raw image:\n\n{mean_and_spread(likes[name], 2)}')

if __name__=='__main__': main(Path(sys.argv[1]))
