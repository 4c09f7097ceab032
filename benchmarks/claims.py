"""Which claims of the paper hold in the small? Reads the runs of `privreid reproduce` and prints Markdown.

    privreid reproduce --preset demo --data synthetic --table 1 3 4 5 --seeds 0 1 2 --out claims
    python benchmarks/claims.py claims
"""
import json, sys
from pathlib import Path
import pandas as pd
from privreid.experiments import ARMS
from privreid.report import claims, read_run
from privreid.tables import markdown

def verdicts(run, upper:dict, seen:dict)->dict: # claim -> whether it holds
    "What the report would say, had Upper been trained in the same folder."
    whole = run.results|dict(arms=run.results['arms']|dict(Upper=upper), unprotected={'w/ U': seen['anonymized']})
    return {c.text: c.holds for c in claims(whole, run.history, run.eps)}

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
    return printed(cells.unstack(sort=False).fillna('–'))

def printed(df:pd.DataFrame)->str: return markdown(df.rename_axis(columns=None).rename_axis(' ').reset_index())

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
    print(printed(pd.DataFrame(held).T.groupby(level=0, sort=False).agg(lambda v: f'{sum(v)} of {len(v)}').T))
    for name in ranks:
        print(f'\n## {name.capitalize()}, {len(ranks[name])} seeds\n\nRank-1, %, query-gallery:\n\n{mean_and_spread(ranks[name], 1)}\n\nLikeness to the raw image (PSNR of the pooled error):\n\n{mean_and_spread(likes[name], 2)}')

if __name__=='__main__': main(Path(sys.argv[1]))
