"""Seconds and memory to score a retrieval: this package against sorting all distances.

    python benchmarks/evaluation.py                     # Market-1501's size; prints a table and appends it to benchmarks/RESULTS.md
    python benchmarks/evaluation.py --size msmt17 --rounds 1   # 5 GB of memory
    python benchmarks/evaluation.py --device cuda       # features and product on the GPU; ranking stays on the CPU

Features are drawn: a centre for each person, and as much noise, not the same for each picture, as gives the figures of a good model; `--noise 99` gives those of chance.
All rivals find the same numbers, which is checked. They run in one process, in turn, and medians count. Memory is what a call needs at its peak beyond features and labels.
"""
import numpy as np, torch
from common import load, options, peak_memory, publish, race, stopwatch
from privreid.evaluation import distances, evaluate_ranking

SIZES = dict(market1501=(3368, 15913, 750, 6), msmt17=(11659, 82161, 3060, 15), tiny=(200, 1000, 50, 6))   # queries, gallery, people, cameras
TOO_BIG = 10**8   # entries: rivals that sort all distances at once are left out

def fabricate(Q:int, N:int, people:int, cameras:int, F:int=2048, noise:float=3.5):
    "Features of queries and gallery, and their labels; a sixth of the gallery are distractors."
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(people+1, F, generator=g)
    def side(n):
        pids,cams = torch.randint(1, people+1, (n,), generator=g), torch.randint(cameras, (n,), generator=g)
        x = torch.randn(n, F, generator=g)
        x *= noise*torch.randn(n, 1, generator=g).mul_(.3).exp_()
        x += centres[pids]
        return torch.nn.functional.normalize(x, out=x), pids, cams
    (q,q_pids,q_cams),(v,g_pids,g_cams) = side(Q), side(N)
    g_pids[::6] = 0
    v[::6] = torch.nn.functional.normalize(torch.randn(len(v[::6]), F, generator=g))
    return q, v, (q_pids, g_pids, q_cams, g_cams)

# --- what one would otherwise write

def per_query(d:np.ndarray, q_pids, g_pids, q_cams, g_cams)->np.ndarray:
    "Sort the gallery for one query after the other."
    found = []
    for row,pid,cam in zip(d, q_pids, q_cams):
        order = row.argsort()
        match = g_pids[order]==pid
        match = match[~(match&(g_cams[order]==cam))]
        if not match.any(): continue
        place = np.flatnonzero(match)+1
        found.append((place[0]<=1, place[0]<=5, (np.arange(1, len(place)+1)/place).mean(), len(place)/place[-1]))
    return np.mean(found, 0)

def all_at_once(d:np.ndarray, q_pids, g_pids, q_cams, g_cams)->np.ndarray:
    "Sort all rows, then gather and accumulate whole matrices."
    order = d.argsort(1)
    match = g_pids[order]==q_pids[:,None]
    own = match&(g_cams[order]==q_cams[:,None])
    match &= ~own
    match,own = match[match.any(1)], own[match.any(1)]
    place = np.cumsum(~own, 1, dtype=np.int32)
    total,first = match.sum(1), place[np.arange(len(place)), match.argmax(1)]
    ap = np.where(match, match.cumsum(1, dtype=np.int32)/np.maximum(place, 1), 0).sum(1)/total
    return np.mean([first<=1, first<=5, ap, total/np.where(match, place, 0).max(1)], 1)

def check(d, q_pids, g_pids, q_cams, g_cams):
    "All find the same (a few distances may be equal, which the rivals leave to chance)."
    n = len(d)
    r = evaluate_ranking(d, q_pids[:n], g_pids, q_cams[:n], g_cams)
    for f in (per_query, all_at_once):
        other = f(d.numpy(), *(t.numpy() for t in (q_pids[:n], g_pids, q_cams[:n], g_cams)))
        assert np.allclose(other, [r.rank1, r.rank5, r.mAP, r.mINP], atol=1e-4), f.__name__

def main():
    p = options(__doc__, rounds=5)
    p.add_argument('--size', choices=SIZES, default='market1501', help='whose numbers of queries and gallery images (default: %(default)s)')
    p.add_argument('--queries', type=int, help='fewer than that, to save time')
    p.add_argument('--device', default='cpu', help='where the features are (default: %(default)s)')
    p.add_argument('--noise', type=float, default=3.5, help='of the features, in units of the distance between people (default: %(default)s)')
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    Q,*others = SIZES[args.size]
    busy,(q,v,labels) = load(), fabricate(args.queries or Q, *others, noise=args.noise)
    q,v = q.to(args.device), v.to(args.device)
    rivals = {'bare product': lambda: q@v.T, 'product and ranking, privreid': lambda: evaluate_ranking(distances(q, v), *labels)}
    if len(q)*len(v)<TOO_BIG:
        d,arrays = torch.cat([c.clone().cpu() for c in distances(q, v)]), [t.numpy() for t in labels]
        slow = {f'ranking, {f.__name__.replace("_", " ")}': lambda f=f: f(d.numpy(), *arrays) for f in (per_query, all_at_once)}
        rivals |= {'ranking, privreid': lambda: evaluate_ranking(d, *labels)}|slow
        check(d[:200], *labels)
    found,memory = evaluate_ranking(distances(q, v), *labels), {k: peak_memory(f) for k,f in rivals.items()}      # warm them up, too
    t = race(rivals, args.rounds, stopwatch(args.clock, torch.cuda.synchronize if args.device.startswith('cuda') else lambda: None), warm=0)
    about = (f'{len(q):,} queries, {len(v):,} gallery images, 2048 features on {args.device}: {found}. Medians of {args.rounds} rounds by the {args.clock} clock, '
             f'rivals in turn; load average {busy:.1f} at the start. {args.note}')
    table = ['| | seconds | in products | peak memory, MB |', '|---|---:|---:|---:|']
    table += [f"| {k} | {t[k]:.2f} | {t[k]/t['bare product']:.2f} | {memory[k]:,.0f} |" for k in rivals]
    publish('Retrieval', 'torch numpy', about, table)

if __name__ == '__main__': main()
