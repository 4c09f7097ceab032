"""One truth: every number and picture that the documentation states, recorded by one script from one state of the code.

    python benchmarks/claims.py train --out DIR            # 3 desensitizers x 5 seeds, all arms; again: goes on
    python benchmarks/claims.py threads --out DIR          # one seed with one and with two threads
    python benchmarks/claims.py tradeoff --out DIR         # one seed, several weights of the L1 losses: what an outsider finds, and what one finds oneself
    python benchmarks/claims.py long --out DIR             # the longer recording, for the explorer and lesson 07
    python benchmarks/claims.py real --out DIR --root FOLDER   # the preset on photographs, once; numbers are kept, no picture
    python benchmarks/claims.py demo --out DIR             # lesson 08, privreid/demo_run, attacks on it, README's picture, the pages on the explorer
    python benchmarks/claims.py collect --out DIR          # -> benchmarks/claims/claims.json
    python benchmarks/claims.py write                      # -> nbs/claims.md, nbs/images/claims.svg, marked numbers in prose; --check only compares

`train`, `threads`, `tradeoff` and `long` need torch and what `privreid train` needs, and no notebook: they also run on a bare machine with a GPU (`--device cuda --workers 6`).
There, PRIVREID_COMMIT=$(git rev-parse --short=12 HEAD) of the machine that the files come from tells the commit. What was interrupted goes on when the command is given again.
Each training is a process of its own, with as many threads as asked for. Upper has never seen a desensitizer: it is trained once a seed, and the runs of that seed take it over.
`--preset-changes lambda_l1=50 epochs=12` tries another set-up; `collect` writes down what differs from the preset.
"""
import argparse, json, os, platform, re, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, fields, replace
from hashlib import blake2b
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RECORD,TEMPLATE = HERE/'claims'/'claims.json', HERE/'claims'/'claims.template.md'
SHIPPED = 'config.json', 'history.jsonl', 'results.json', 'outcomes.safetensors'   # of a run, with the package
DESENSITIZERS = 'blur', 'pixelation', 'noise'

# -- whose numbers they are ------------------------------------------------------------------------------------------

def code_state()->str:
    "A name for the code that computes: the same wherever the same modules are, with or without git."
    found,package = blake2b(digest_size=8), ROOT/'privreid'
    for path in sorted([*package.glob('*.py'), *package.glob('*.safetensors')]):
        if path.name!='_modidx.py': found.update(path.name.encode()+b'\0'+path.read_bytes())
    return found.hexdigest()

def commit()->str: # '' where nobody knows; ends in + where modules were changed since
    "The commit that is checked out; PRIVREID_COMMIT names it where only the files have come along."
    if named := os.environ.get('PRIVREID_COMMIT'): return named
    def git(*words): return subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True).stdout.strip()
    try: return (name := git('rev-parse', '--short=12', 'HEAD'))+('+' if name and git('status', '--porcelain', '--', 'privreid/*.py') else '')
    except OSError: return ''

def processor()->str:
    "What the processor calls itself."
    cpuinfo = Path('/proc/cpuinfo')
    found = re.search(r'^model name\s*:\s*(.+)$', cpuinfo.read_text(), flags=re.M) if cpuinfo.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()

# -- one training, in a process of its own ---------------------------------------------------------------------------

def snapshots(run, people:int=4, most:int=5):
    "A callback that keeps what the generator paints at each upgrade and each fall back; `most` of them are shown."
    import torch
    from privreid.data import to_float
    from privreid.joint import Callback
    from safetensors.torch import load_file, save_file
    gallery,folder = run.data.val_gallery.images, run.folder.parent.parent/'snapshots'
    x = to_float(gallery[torch.linspace(0, len(gallery)-1, people).long()])
    class Snapshots(Callback):
        def after_validate(self, trainer):
            last = trainer.history[-1]
            if last['kind']!='decision' or last['action']=='keep': return
            net = trainer.nets['G_X']
            was = net.training
            with torch.no_grad(): made = net.eval()(x.to(trainer.device)).float().cpu().contiguous()
            net.train(was)
            folder.mkdir(exist_ok=True)
            save_file({'made': made}, folder/f'{last["epoch"]:05}.safetensors')
        def after_fit(self, trainer):
            told = {h['epoch']: h['action'] for h in trainer.history if h['kind']=='decision'}
            paths = sorted(p for p in folder.glob('*.safetensors') if told.get(int(p.stem), 'keep')!='keep')
            falls = [p for p in paths if told[int(p.stem)]=='fall back'][:2]
            paths = sorted({*falls, *paths[:most-len(falls)-1], *paths[-1:]})[:most]
            self.shown = {'raw': x, 'desensitized': run.desensitize(x.to(run.device)).cpu()}|{f'epoch {int(p.stem)}: {told[int(p.stem)]}': load_file(p)['made'] for p in paths}
    return Snapshots()

def train_one(spec:dict):
    "Train and measure one run: begin it, or go on with it; what it was made with is written down beside it."
    import torch
    from privreid.arms import ARM_FOLDERS
    from privreid.experiments import begin
    from privreid.records import finished_arms, write_pictures
    from privreid.folder import write_json
    from privreid.config import read_config
    folder,note,upper = Path(spec['folder']), Path(spec['note']), spec.get('upper')
    sittings = json.loads(note.read_text()) if note.is_file() else []
    goes_on,start = (folder/'config.json').is_file(), time.time()
    with begin(read_config(spec['config']), folder, tuple(spec['arms']), resume=goes_on, device=spec['device']) as run:
        sittings.append(dict(code=code_state(), commit=spec['commit'], cpu=processor(), cores=os.cpu_count(), threads=torch.get_num_threads(), device=spec['device'] or str(run.device), seconds=None))
        write_json(sittings, note)
        if upper and 'Upper' not in run.finished:
            to = folder/ARM_FOLDERS['Upper']
            shutil.rmtree(to, ignore_errors=True); to.mkdir()
            for name in ('reid.safetensors', 'arm.json'): shutil.copyfile(Path(upper)/ARM_FOLDERS['Upper']/name, to/name)   # arm.json last: it says that the arm is there
            run.finished = set(finished_arms(folder))
        kept = snapshots(run) if spec.get('snapshots') else None
        if kept:
            ordinary = run.trainer
            def trainer(name, *args, **options):
                found = ordinary(name, *args, **options)
                if name=='w/ U': found.callbacks.append(kept)
                return found
            run.trainer = trainer
        results = run.finish()
        if kept and hasattr(kept, 'shown'): write_pictures(kept.shown, folder.parent.parent/'pictures.png')
    sittings[-1]['seconds'] = time.time()-start
    write_json(sittings, note)
    return results

class Job:
    "One process: a run with what must be there before it."
    def __init__(self, name:str, cfg, arms:tuple, out:Path, device:str, threads:int, upper:'Job'=None, **more):
        self.name,self.cfg,self.arms,self.out,self.device,self.threads,self.upper,self.more = name, cfg, arms, out, device, threads, upper, more
        self.folder = out/'runs'/name

    def finished(self)->bool:
        "Whether all of it is there; a folder of another set-up is refused."
        from privreid.checkpoint import difference
        from privreid.records import load_run
        if not (self.folder/'config.json').is_file(): return False
        if changed := difference(asdict(load_run(self.folder)[0]), asdict(self.cfg)): raise SystemExit(f'{self.folder} was begun with another set-up ({changed}): name another folder with --out.')
        return (self.folder/'results.json').is_file()

    def spec(self)->dict:
        return dict(folder=str(self.folder), note=str(self.out/'made'/f'{self.name}.json'), config=asdict(self.cfg), arms=self.arms, device=self.device,
                    commit=commit(), upper=self.upper and str(self.upper.folder))|self.more

    def run(self)->float: # seconds
        "Train in a process of its own; raises with the end of what it said."
        start,log = time.time(), self.out/'logs'/f'{self.name}.txt'
        log.parent.mkdir(parents=True, exist_ok=True)
        for p in (self.out/'runs', self.out/'made'): p.mkdir(parents=True, exist_ok=True)
        env = os.environ|{f'{k}_NUM_THREADS': str(self.threads) for k in ('OMP', 'MKL', 'OPENBLAS')}|dict(PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]), MPLBACKEND='Agg')
        with open(log, 'a') as to: code = subprocess.run([sys.executable, str(HERE/'claims.py'), 'one', json.dumps(self.spec())], env=env, stdout=to, stderr=subprocess.STDOUT).returncode
        if code: raise RuntimeError(f'{self.name} ended with code {code}, see {log}:\n{log.read_text()[-1500:]}')
        return time.time()-start

def work_off(jobs:list[Job], workers:int)->int: # number that failed
    "Run jobs at once, each after the one that it needs; jobs come in an order in which no one needs a later one."
    waiting,start,failed = {}, time.time(), 0
    def go(job):
        if job.upper and job.upper in waiting: waiting[job.upper].result()
        return job.run()
    missing = [j for j in jobs if not j.finished()]
    for job in jobs:
        if job not in missing: print(f'{job.name}: finished before', flush=True)
    with ThreadPoolExecutor(workers) as pool:
        for job in missing: waiting[job] = pool.submit(go, job)
        names = {future: job.name for job,future in waiting.items()}
        for i,future in enumerate(as_completed(names), 1):
            try: print(f'{i} of {len(missing)}: {names[future]}, {future.result():.0f} s ({time.time()-start:.0f} s since the start)', flush=True)
            except Exception as e: failed += 1; print(f'{i} of {len(missing)}: {names[future]} FAILED: {e}', file=sys.stderr, flush=True)
    return failed

# -- what to train ---------------------------------------------------------------------------------------------------

def changes(words:list[str])->dict:
    "`field=value …` as a dictionary; a list of numbers has commas, and may be empty."
    from privreid.config import Config
    kinds,found = {f.name: f.type for f in fields(Config)}, {}
    for w in words:
        name,sign,text = w.partition('=')
        if not sign or name not in kinds: raise SystemExit(f'--preset-changes takes field=value with a field of the configuration, not {w}.')
        kind = kinds[name]
        try: found[name] = tuple(int(v) for v in text.split(',') if v) if kind is tuple else {'True': True, 'False': False}[text] if kind is bool else kind(text)
        except (ValueError, KeyError): raise SystemExit(f'--preset-changes: {name} takes a {kind.__name__}, not {text}.') from None
    return found

def set_up(args, **more):
    "The configuration that the options ask for."
    from privreid.config import preset
    try: return preset(args.preset, **more|changes(args.preset_changes))
    except ValueError as e: raise SystemExit(f'--preset-changes: {e}') from None

def jobs_of(args, cfg, seeds, desensitizers, arms, sub:str='', threads:int=None, **more)->list[Job]:
    "Upper of each seed, then the runs that take it over."
    out,threads,jobs = args.out/sub, threads or args.threads, []
    for seed in seeds:
        here = replace(cfg, seed=seed)
        jobs.append(Job(f'seed{seed}-upper', replace(here, desensitizer='blur'), ('Upper',), out, args.device, threads))
    for seed,upper in zip(seeds, jobs[:len(seeds)]):
        jobs += [Job(f'seed{seed}-{d}', replace(cfg, seed=seed, desensitizer=d), arms, out, args.device, threads, upper, **more) for d in desensitizers]
    return jobs

ALL = 'Base', 'Upper', 'w/o U', 'w/ U'

def train(args)->int:
    return work_off(jobs_of(args, set_up(args), args.seeds, args.desensitizer, ALL), args.workers)

def threads(args)->int:
    jobs = [j for n in (1, 2) for j in jobs_of(args, set_up(args), args.seeds[:1], args.desensitizer[:1], ALL, f'threads/{n}', n)]
    return work_off(jobs, args.workers)

LAMBDAS = 5., 10., 50., 100.   # beside the preset's own, which `train` has

def tradeoff(args)->int:
    "Without upgradation, a run for each weight of the L1 losses; Upper is that of `train`."
    cfg = replace(set_up(args), seed=args.seeds[0], desensitizer=args.desensitizer[0])
    upper, = jobs_of(args, cfg, [cfg.seed], (), ())
    jobs = [Job(f'seed{cfg.seed}-{cfg.desensitizer}-l1-{l:g}', replace(cfg, lambda_l1=l), ('Upper', 'w/o U'), args.out/'tradeoff', args.device, args.threads, upper) for l in LAMBDAS]
    return work_off([upper, *jobs], args.workers)

def real(args)->int:
    "One run on photographs."
    cfg = replace(set_up(args, data=args.data, root=str(Path(args.root).expanduser().resolve())), seed=args.seeds[0])
    jobs = [Job(f'seed{cfg.seed}-{d}', replace(cfg, desensitizer=d), ALL, args.out/'real', args.device, args.threads) for d in args.desensitizer]
    return work_off(jobs, args.workers)

LONG = dict(epochs=16, validate_every=1)   # more than half as long again as the demo; what is shipped is of blur and seed 1, in which all three actions happen

def long(args)->int:
    "Base, and with upgradation; many validations, pictures of each decision that changed the teacher."
    cfg = set_up(args, **LONG)
    seed = args.seeds[0]
    cfg = replace(cfg, seed=seed, desensitizer=args.desensitizer[0])
    arms = ('Base', 'Upper', 'w/ U') if cfg.weights=='upper' else ('Base', 'w/ U')
    job = Job(f'seed{seed}-{cfg.desensitizer}', cfg, arms, args.out/'long', args.device, args.threads, snapshots=True)
    if work_off([job], 1): return 1
    return ship_long(job.folder, args.ship)

def ship_long(folder:Path, to:Path)->int: # 1: it is not worth showing
    "Copy what is shipped of the longer recording, and say what happened in it."
    from privreid.records import load_history, read_pictures
    rows = load_history(folder)
    told = [(h['epoch'], h['action']) for h in rows if h['kind']=='decision']
    upgrades,falls = ([e for e,a in told if a==which] for which in ('upgrade', 'fall back'))
    print(f'{len(told)} validations; upgrades after epochs {upgrades}, falls back after {falls}')
    to.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED: shutil.copyfile(folder/name, to/name)
    pictures = folder.parent.parent/'pictures.png'
    shutil.copyfile(pictures if pictures.is_file() else folder/'pictures.png', to/'pictures.png')
    size = sum(p.stat().st_size for p in to.iterdir())
    print(f"{to}: {size/1e3:.0f} kB; pictures: {', '.join(read_pictures(to/'pictures.png'))}")
    if size>=10**6: print('That is too much: at most 1 MB is shipped.', file=sys.stderr)
    dull = len(upgrades)<2 or not falls
    if dull: print('It was to have several upgrades and a fall back: try another --seeds, --desensitizer or --preset-changes.', file=sys.stderr)
    return int(dull or size>=10**6)

ATTACKS = 'pictures', 'keys', 'pairs', 'queries', 'adapted', 'authorised'   # on the demo, for lesson 09 and README

def demo(args)->int:
    "Lesson 08 with its slow cells, and from that very run: what is shipped, what attackers find, README's picture, the pages on the explorer."
    kept = args.out/'demo'
    env = os.environ|dict(TMPDIR=str(kept), CUDA_VISIBLE_DEVICES='', PYTHONPATH=str(ROOT))   # a lesson works in a temporary folder: here it is found again; a GPU would take another preset
    env.pop('MPLBACKEND', None)
    def do(*words): print('$ python', *words, flush=True); subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=env, check=True)
    if not args.keep:
        shutil.rmtree(kept, ignore_errors=True); kept.mkdir(parents=True)
        do('docs/execute.py', 'nbs/08_settings.ipynb', '--flags', 'slow')
    found = sorted(kept.glob('*/demo/results.json'))
    if len(found)!=1: raise SystemExit(f'{kept} should hold one demo of lesson 08, and holds {len(found)}.')
    run = found[0].parent
    for name in SHIPPED: shutil.copyfile(run/name, ROOT/'privreid'/'demo_run'/name)
    other = args.out/'runs'/'seed1-blur'   # whose key is tried, too
    do('-m', 'privreid', 'attack', run, '--attack', *ATTACKS, *(('--others', other) if (other/'results.json').is_file() else ()))
    shutil.copyfile(run/'attacks.json', ROOT/'privreid'/'demo_run'/'attacks.json')
    do('docs/row.py', run)
    do('docs/execute.py', *(f'nbs/behind_{name}.ipynb' for name in ('hindsight', 'drawn', 'widgets')))
    (kept/'made.json').write_text(json.dumps(dict(code=code_state(), commit=commit(), cpu=processor(), cores=os.cpu_count()), indent=1)+'\n')
    return 0

# -- the command -----------------------------------------------------------------------------------------------------

def main(words:list[str]=None)->int:
    words = sys.argv[1:] if words is None else words
    if words[:1]==['one']: train_one(json.loads(words[1])); return 0
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest='command', required=True)
    def command(name, what, **options):
        c = commands.add_parser(name, help=what, **options)
        c.add_argument('--out', type=lambda s: Path(s).expanduser().resolve(), required=name!='write', help='folder of the recordings; the same again goes on')
        return c
    for name,what in (('train', 'the runs of the table'), ('threads', 'one run with one thread and with two'), ('tradeoff', 'one run for each of several weights of the L1 losses'), ('long', 'the longer recording'), ('real', 'a run on photographs')):
        c = command(name, what)
        c.add_argument('--desensitizer', nargs='+', default=['all'], help='blur, pixelation, noise or all; threads, tradeoff and long take the first (default: all)')
        c.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4], help='threads, tradeoff, long and real take the first (default: 0 to 4)')
        c.add_argument('--workers', type=int, default=1, help='processes at once; they may share a GPU (default: 1)')
        c.add_argument('--device', default='cpu', help='cpu or cuda (default: cpu)')
        c.add_argument('--threads', type=int, default=1, help='of each process (default: 1)')
        c.add_argument('--preset', default='demo')
        c.add_argument('--preset-changes', nargs='+', default=[], metavar='FIELD=VALUE', help='another set-up, say lambda_l1=50 milestones=6,8')
        if name=='real':
            c.add_argument('--root', required=True, help='folder of the data set')
            c.add_argument('--data', default='market1501')
        if name=='long': c.add_argument('--ship', type=Path, default=ROOT/'privreid'/'long_run', help='where the package keeps it (default: %(default)s)')
    command('demo', 'lesson 08, and what is shipped of its demo').add_argument('--keep', action='store_true', help='the lesson has run already: only copy and draw')
    c = command('collect', 'one small file from all recordings')
    c.add_argument('--record', type=Path, default=RECORD)
    c = command('write', 'pages and pictures from the record')
    c.add_argument('--record', type=Path, default=RECORD)
    c.add_argument('--check', action='store_true', help='write nothing; exit with 1 where something is stale')
    args = p.parse_args(words)
    if getattr(args, 'desensitizer', None):
        args.desensitizer = list(DESENSITIZERS) if 'all' in args.desensitizer else args.desensitizer
    if args.command in ('collect', 'write'):
        import claims_page, claims_record
        if args.command=='collect': return claims_record.collect(args.out, args.record)
        return claims_page.write(args.record, args.check)
    return dict(train=train, threads=threads, tradeoff=tradeoff, long=long, real=real, demo=demo)[args.command](args)

if __name__=='__main__':
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
