"The record of `benchmarks/claims.py`: what is kept of each run, in one small file, and the run that can be read from it again."
import base64, json, lzma, re, sys, tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTCOMES = 'outcomes.safetensors'   # what became of each query and picture: what intervals are made of
LISTS = 'runs', 'threads', 'tradeoff', 'real'   # of rows
MOST = 10**6                        # bytes of a record

# -- a run as a row ---------------------------------------------------------------------------------------------------

def columns(rows:list[dict])->dict: # of dictionaries with the same fields
    "Rows as fields and values: each name is written once."
    fields = list(rows[0]) if rows else []
    return dict(fields=fields, rows=[[r[f] for f in fields] for r in rows])

def rows_of(table:dict)->list[dict]: return [dict(zip(table['fields'], r)) for r in table['rows']]

def kept_of(history:list[dict])->dict: # arm -> validations, decisions
    "What is kept of a history: no losses."
    arms = dict.fromkeys(h['arm'] for h in history if h['kind']=='validation')
    def of(arm, kind): return columns([{k: v for k,v in h.items() if k not in ('arm', 'kind')} for h in history if h['arm']==arm and h['kind']==kind])
    return {a: dict(validation=of(a, 'validation'), decision=of(a, 'decision')) for a in arms}

def history_of(kept:dict)->list[dict]:
    "The rows again, decisions after their validations."
    found = []
    for arm,kinds in kept.items():
        rows = [dict(arm=arm, kind=kind)|r for kind,table in kinds.items() for r in rows_of(table)]
        found += sorted(rows, key=lambda r: (r['epoch'], r['kind']=='decision'))
    return found

def packed(data:bytes)->str: return base64.b85encode(lzma.compress(data, preset=9)).decode()
def unpacked(text:str)->bytes: return lzma.decompress(base64.b85decode(text))

def slim(path:Path)->bytes: # safetensors
    "Outcomes with half the digits: of the squared error and the SSIM of a picture three are left, rankings stay as they are."
    from safetensors.numpy import load_file, save
    return save({k: v.astype('float16') if v.dtype=='float32' else v for k,v in load_file(path).items()})

def row_of(folder:Path, note:Path, base:dict, outcomes:bool=True)->dict:
    "What is kept of a finished run; `base` is the configuration that the runs share."
    from privreid.records import load_history, load_run
    cfg,meta = load_run(folder)
    own = json.loads((folder/'results.json').read_text(encoding='utf-8'))
    history,sittings = load_history(folder), json.loads(note.read_text())
    acted = {a: [h['epoch'] for h in history if h['kind']=='decision' and h['action']==a] for a in ('upgrade', 'fall back')}
    seconds = {a: r['seconds'] for a,r in own['arms'].items()}
    row = dict(name=folder.name, seed=cfg.seed, desensitizer=cfg.desensitizer, config={k: v for k,v in json.loads(json.dumps(asdict(cfg))).items() if base.get(k)!=v},
               run=meta, made=sittings, seconds=seconds, upgrades=acted['upgrade'], falls=acted['fall back'], results=own, history=kept_of(history))
    if outcomes and (folder/OUTCOMES).is_file(): row['outcomes'] = packed(slim(folder/OUTCOMES))
    return row

def restored(row:dict, base:dict, folder:Path):
    "Write the folder of a run as its row tells of it, and read it as any run."
    from privreid.verdicts import read_run
    folder.mkdir(parents=True, exist_ok=True)
    def put(name, text): (folder/name).write_text(text, encoding='utf-8')
    put('config.json', json.dumps(base|row['config']|dict(run=row['run'])))
    put('results.json', json.dumps(row['results']))
    put('history.jsonl', ''.join(json.dumps(h)+'\n' for h in history_of(row['history'])))
    if 'outcomes' in row: (folder/OUTCOMES).write_bytes(unpacked(row['outcomes']))
    return read_run(folder)

# -- all of them ------------------------------------------------------------------------------------------------------

def finished(out:Path)->list[tuple[Path,Path]]: # folder, note
    "Runs that are whole, in the order of seeds; Upper's own are in those that took it over."
    found = [p.parent for p in out.glob('runs/*/results.json') if not p.parent.name.endswith('-upper')]
    return [(f, out/'made'/f'{f.name}.json') for f in sorted(found, key=lambda f: (int(re.match(r'seed(\d+)', f.name)[1]), f.name))]

def untimed(found): # results
    "Without seconds: what two runs of the same must agree in."
    if isinstance(found, dict): return {k: untimed(v) for k,v in found.items() if k!='seconds'}
    return [untimed(v) for v in found] if isinstance(found, list) else found

def twin(folder:Path, rows:list[dict])->str|None:
    "The recorded run that found the same as this one, to the last digit: then the code that made them is the same where it counts."
    own = untimed(json.loads((folder/'results.json').read_text(encoding='utf-8')))
    return next((r['name'] for r in rows if untimed(r['results'])==own), None)

def sources(record:dict)->set[str]:
    "The states of the code that a record comes from: one, if all is well."
    rows = [r for k in LISTS for r in record.get(k, [])]+[record[k] for k in ('demo', 'long') if k in record and not record[k].get('twin')]
    return {m['code'] for r in rows for m in r['made']}

def demo_seconds()->int:
    "How long the demo took, as lesson 08 shows it."
    cells = json.loads((ROOT/'nbs'/'08_settings.ipynb').read_text(encoding='utf-8'))['cells']
    text = ''.join(''.join(o.get('text', '')) for c in cells for o in c.get('outputs', []))
    return int(re.search(r'(\d+) s on \d+ CPU cores', text)[1])

def collect(out:Path, to:Path)->int: # 1: something is not as it should be
    "Write the record; parts that `out` has nothing of stay as they were."
    from privreid.config import preset
    from privreid.files import strict_json
    from privreid.records import load_run
    runs,old = finished(out), json.loads(to.read_text(encoding='utf-8')) if to.is_file() else {}
    base = json.loads(json.dumps(asdict(load_run(runs[0][0])[0]))) if runs else old.get('config')
    if base is None: raise SystemExit(f'{out} holds no finished run of `claims.py train`: train first.')
    differs = {k: v for k,v in base.items() if k not in ('seed', 'desensitizer') and json.loads(json.dumps(asdict(preset('demo'))))[k]!=v}
    record = old|dict(config=base, unlike_demo=differs)
    if runs: record['runs'] = [row_of(*r, base) for r in runs]
    pairs = [r for n in (1, 2) for r in finished(out/'threads'/str(n))]
    if pairs: record['threads'] = [row_of(*r, base, outcomes=False) for r in pairs]
    curve = finished(out/'tradeoff')
    if curve: record['tradeoff'] = [row_of(*r, base) for r in curve]
    photographs = finished(out/'real')
    if photographs: record['real'] = [row_of(*r, base|dict(root='')) for r in photographs]
    for r in record.get('real', []): r['config'] = {k: v for k,v in r['config'].items() if k!='root'}   # where somebody keeps them
    made = out/'demo'/'made.json'
    if made.is_file(): record['demo'] = dict(made=[json.loads(made.read_text())], seconds=demo_seconds(), twin=twin(ROOT/'privreid'/'demo_run', record.get('runs', [])))
    for folder,note in finished(out/'long'): record['long'] = {k: v for k,v in row_of(folder, note, base, outcomes=False).items() if k in ('config', 'made', 'seconds', 'upgrades', 'falls')}
    head = {k: v for k,v in record.items() if k not in LISTS}
    lists = ''.join(f',\n"{k}": [\n'+',\n'.join(strict_json(r) for r in record[k])+'\n]' for k in LISTS if k in record)   # a run a line
    to.parent.mkdir(exist_ok=True)
    to.write_text(strict_json(head, indent=None)[:-1]+lists+'}\n', encoding='utf-8')
    size,mixed = to.stat().st_size, len(sources(record))
    print(f"{to}: {len(record['runs'])} runs, {size/1e3:.0f} kB")
    if mixed>1: print(f'It comes from {mixed} states of the code: record all of it again from one.', file=sys.stderr)
    if size>=MOST: print(f'That is too much: at most {MOST/1e6:.0f} MB.', file=sys.stderr)
    if differs: print(f'Its set-up is not that of the preset demo: {differs}', file=sys.stderr)
    return int(mixed>1 or size>=MOST)

class Record:
    "A record with its runs as `read_run` gives them."
    def __init__(self, path:Path):
        self.raw = json.loads(Path(path).read_text(encoding='utf-8'))
        self.tmp = tempfile.TemporaryDirectory()   # goes when the record goes
        for name in LISTS: setattr(self, name, [restored(r, self.raw['config'], Path(self.tmp.name)/name/str(i)) for i,r in enumerate(self.raw.get(name, []))])
    def __getitem__(self, key): return self.raw[key]
    def get(self, key, default=None): return self.raw.get(key, default)
