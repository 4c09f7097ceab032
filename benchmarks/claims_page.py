"What `benchmarks/claims.py write` makes of the record: nbs/claims.md, its picture, and the marked numbers in other texts."
import json, re, sys
from functools import cached_property
from html import escape
from pathlib import Path
from textwrap import wrap
import numpy as np
import pandas as pd
from claims_record import Record, sources
from privreid.tables import markdown
from privreid.verdicts import CLOSE, CROSSED, FAILS, HOLDS, claims, pooled_claims

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT/'benchmarks'/'claims'/'claims.template.md'
PAGE,PICTURE = ROOT/'nbs'/'claims.md', ROOT/'nbs'/'images'/'claims.svg'
VERDICTS = HOLDS, CLOSE, FAILS
NUMBERS = 'no one two three four five six seven eight nine ten eleven twelve'.split()

def in_words(n:int)->str: return NUMBERS[n] if 0<=n<len(NUMBERS) else str(n)

def listed(words:list[str])->str: return ' and '.join(filter(None, [', '.join(words[:-1]), *words[-1:]]))

def short(text:str)->str:
    "A claim without what stands in parentheses."
    return re.sub(r' \([^)]*\)', '', text)

KINDS = (r'^(w/o U|w/ U): (.+)$', r'^(.+ is above .+), ([a-z]+-[a-z]+)$', r'^(An outsider .+ images of) (w/o U|w/ U) (.+)$')

def grouped(texts:list[str])->dict[str,list[str]]: # what stands for them -> claims
    "Claims that say the same of several arms or settings, together."
    found = {}
    for t in texts:
        m = [re.match(k, short(t)) for k in KINDS]
        if m[0]: key,which = (m[0][2], ''), m[0][1]
        elif m[1]: key,which = (m[1][1], ''), m[1][2]
        elif m[2]: key,which = (m[2][1], m[2][3]), m[2][2]
        else: key,which = (short(t), ''), ''
        found.setdefault(key, []).append((which, t))
    return {f"{before}{' '+listed([w for w,_ in of])+' ' if after else ''}{after}"+(f" ({', '.join(w for w,_ in of)})" if of[0][0] and not after else ''): [t for _,t in of] for (before,after),of in found.items()}

class Names(dict):
    "What a field may name: what a page has, and a few functions."
    def __init__(self, page): super().__init__(in_words=in_words, listed=listed, fold=fold); self.page = page
    def __missing__(self, name):
        if name.startswith('_') or not hasattr(type(self.page), name) and name not in vars(self.page): raise KeyError(name)
        return getattr(self.page, name)

class Page:
    "What the fields of the template can ask for. Names of arms, settings and desensitizers are those of the lessons."
    def __init__(self, record:Record, part:str='runs'): # part: of the record; all numbers below are of it
        self.record,self.part,self.runs = record, part, {}
        for r in getattr(record, part): self.runs.setdefault(r.cfg.desensitizer, []).append(r)
        self.unexplained,self.missing = [], []   # rows that do not hold and have no block; fields of other texts that have no value

    @cached_property
    def real(self)->'Page': return Page(self.record, 'real')

    # -- numbers

    @property
    def desensitizers(self)->list[str]: return list(self.runs)
    @property
    def seeds(self)->int: return max(map(len, self.runs.values()))
    @cached_property
    def claims(self)->dict: # desensitizer -> claims of each seed
        return {d: [claims(r.results, r.history, r.eps) for r in runs] for d,runs in self.runs.items()}
    @cached_property
    def verdicts(self)->dict: # desensitizer -> claim -> verdicts, a seed each
        return {d: {c.text: [found[i].verdict for found in seen] for i,c in enumerate(seen[0])} for d,seen in self.claims.items()}
    @cached_property
    def together(self)->dict: # desensitizer -> claim -> that of all seeds as one
        return {d: {c.text: c for c in pooled_claims(seen, same_people=self.runs[d][0].cfg.data!='synthetic')} for d,seen in self.claims.items()}
    @property
    def rows(self)->list[str]: return list(dict.fromkeys(t for seen in self.verdicts.values() for t in seen))

    def always(self, d:str)->list[str]: return [t for t,v in self.verdicts[d].items() if set(v)=={HOLDS}]
    def not_always(self, d:str)->list[str]: return [t for t in self.verdicts[d] if t not in self.always(d)]
    def held(self, d:str, part:str)->str:
        "In how many seeds the claims with `part` in them hold, at least."
        return f"{min(v.count(HOLDS) for t,v in self.verdicts[d].items() if part in t)} of {len(self.runs[d])}"

    def over(self, d:str, f)->pd.Series: return pd.Series([f(r) for r in self.runs[d]], dtype=float)
    def said(self, values:pd.Series, digits:int=1)->str:
        return f'{values.mean():.{digits}f}'+(f' ± {values.std():.{digits}f}' if len(values)>1 else '')
    def metric(self, d:str, who:str, setting:str, name:str='rank1')->pd.Series:
        "Percent, a seed each; `who` is an arm, or 'outsider on …' desensitized images or an arm's."
        def of(r): return r.results['unprotected'][who[12:]] if who.startswith('outsider on ') else r.results['arms'][who]['settings']
        return self.over(d, lambda r: 100*of(r)[setting][name])
    def rank1(self, d, who, setting, spread=False)->str: v = self.metric(d, who, setting); return self.said(v) if spread else f'{v.mean():.1f}'
    def mAP(self, d, who, setting, spread=False)->str: v = self.metric(d, who, setting, 'mAP'); return self.said(v) if spread else f'{v.mean():.1f}'
    def quality(self, d:str, stage:str, name:str, arm:str='w/ U')->pd.Series:
        return self.over(d, lambda r: (r.results['desensitized'] if stage=='desensitized' else r.results['arms'][arm][stage])[name])
    def psnr(self, d, stage, arm='w/ U', spread=False)->str: v = self.quality(d, stage, 'psnr', arm); return self.said(v, 2) if spread else f'{v.mean():.2f}'
    def ssim(self, d, stage, arm='w/ U', spread=False)->str: v = self.quality(d, stage, 'ssim', arm); return self.said(v, 2) if spread else f'{v.mean():.2f}'
    def gain(self, d, low, high, setting, name='rank1', spread=True)->str:
        v = self.metric(d, high, setting, name)-self.metric(d, low, setting, name)
        return f'{v.mean():+.1f}'+(f' ± {v.std():.1f}' if spread and len(v)>1 else '')
    def upgrades(self, d:str)->str:
        "After which epochs the teacher changed, a seed each."
        told = {r['seed']: r for r in self.record[self.part] if r['desensitizer']==d}
        def one(r): return ', '.join(map(str, sorted([*r['upgrades'], *r['falls']], key=int))) or 'never'
        return '; '.join(one(r) for _,r in sorted(told.items()))
    def unchanged(self, d:str)->int: return sum(not r['upgrades'] and not r['falls'] for r in self.record[self.part] if r['desensitizer']==d)   # seeds
    def first_upgrade(self, d:str)->str:
        found = [r['upgrades'][0] for r in self.record[self.part] if r['desensitizer']==d and r['upgrades']]
        return f'{min(found)} to {max(found)}' if found and min(found)<max(found) else str(found[0]) if found else 'none'
    def epochs(self)->int: return self.record['config']['epochs']
    def queries(self)->int: return next(iter(getattr(self.record, self.part)[0].results['arms'].values()))['settings']['raw-raw']['queries']
    def chance(self)->str:
        found = next(iter(getattr(self.record, self.part)[0].results['arms'].values()))['settings']['raw-raw'].get('chance')
        return 'unknown' if found is None else f'{100*found:.1f}'
    def minutes(self)->str:
        "Of one run, all arms: the mean."
        return f"{np.mean([sum(r['seconds'].values()) for r in self.record[self.part]])/60:.0f}"
    def identities(self)->str: return str(getattr(self.record, self.part)[0].meta['identities'])

    @property
    def demo(self): return self._shipped('demo_run')
    @property
    def long(self): return self._shipped('long_run')
    def _shipped(self, name):
        from privreid.verdicts import read_run
        return read_run(ROOT/'privreid'/name)
    def demo_rank1(self, who, setting)->str: return f"{100*self.demo.results['arms'][who]['settings'][setting]['rank1']:.1f}"
    def demo_upgrades(self)->str: return in_words(sum(h['kind']=='decision' and h['action']=='upgrade' for h in self.demo.history))
    def demo_minutes(self)->str: return in_words(max(1, round(self.record['demo']['seconds']/60)))
    def demo_seconds(self)->str: return str(self.record['demo']['seconds'])
    def attacked(self, name)->str:
        "Rank-1 of the outsider, in whole percent, in what an attack on the recorded demo has made of its protected pictures."
        from privreid.scores import load_attacks
        rows = load_attacks(ROOT/'privreid'/'demo_run')['arms']['w/ U']['rows']
        return f"{100*next(r['rank1'] for r in rows if r['name']==name):.0f}"
    def weaker(self, radius:int, who:str)->str:
        "How many points more one finds with w/ U than Base behind a blur of that radius, or an outsider in its pictures."
        row, = (r for r in json.loads((ROOT/'benchmarks'/'weaker.json').read_text(encoding='utf-8'))['rows'] if r['radius']==radius)
        return ', '.join('{:+.1f} [{:+.1f}, {:+.1f}]'.format(*v) for k,v in row.items() if k.startswith(f'{who}, w/ U above'))
    def long_count(self, action)->str: return in_words(sum(h['kind']=='decision' and h['action']==action for h in self.long.history))
    def long_validations(self)->str: return str(sum(h['kind']=='decision' for h in self.long.history))

    # -- parts of the page

    def machine(self)->str:
        "Where and with which code the runs were made."
        made = [m for r in self.record[self.part] for m in r['made']]
        def all_of(k): return sorted({str(m[k]) for m in made if m[k]})
        env = {f"torch {e['torch']}, Python {e['python']}" for r in getattr(self.record, self.part) for e in [r.results['environment']]}
        where = sorted({r.results['environment']['device'] for r in getattr(self.record, self.part)})
        where = listed([w.replace('1 CPU threads', '1 CPU thread') for w in where])
        return f"{where} ({listed(all_of('cpu'))}, {listed(all_of('cores'))} cores), {listed(sorted(env))}"+(f", commit {listed(commits)}" if (commits := all_of('commit')) else '')+f"; code {listed(sorted(sources(self.record.raw)))}"

    def summary(self)->str:
        "What holds and what fails, in one paragraph."
        parts = []
        for d in self.desensitizers:
            n,good,bad = len(self.verdicts[d]), len(self.always(d)), self.not_always(d)
            never = [t for t in bad if set(self.verdicts[d][t])=={FAILS}]
            several = len(self.runs[d])>1
            said = f"**{d.capitalize()}**: {f'all {n}' if good==n else f'{good} of {n}'} rows hold{' in every seed' if several else ''}"
            for which,what in ((never, 'in no seed' if several else 'not'), ([t for t in bad if t not in never], 'not in all of them, or too close to tell' if several else 'too close to tell')):
                if which: said += f"; {what}: {'; '.join(grouped(which))}"
            whole = [c.verdict for c in self.together[d].values()]
            if several: said += f"; all seeds taken together, {whole.count(HOLDS)} hold, {whole.count(CLOSE)} are too close to tell and {whole.count(FAILS)} fail"
            parts.append(said+'.')
        return ' '.join(parts)

    def counted(self, verdicts:list[str])->str:
        n = len(verdicts)
        if set(verdicts)=={HOLDS}: return f'{n} of {n}'
        return f"{verdicts.count(HOLDS)} of {n}"+''.join(f', {verdicts.count(v)} {name}' for v,name in ((CLOSE, 'too close'), (FAILS, 'fail')) if v in verdicts)

    def picture(self)->str:
        "The picture, with what it shows for those who do not see it."
        alt = '; '.join(f'{d}: {len(self.always(d))} of {len(self.verdicts[d])} claims hold in all {len(self.runs[d])} seeds' for d in self.desensitizers)
        return f'![A row for each claim, a group of dots for each desensitizer, a dot for each seed. {alt}](images/claims.svg)'

    def claims_table(self)->str:
        found = pd.DataFrame({d: {t: self.counted(v) for t,v in seen.items()} for d,seen in self.verdicts.items()}).reindex(self.rows).fillna('–')
        return printed(found)

    def pooled_table(self)->str:
        "All seeds of a desensitizer as one, with intervals."
        found = pd.DataFrame({d: {t: f"{c.verdict}: {c.numbers.split('; by themselves')[0]}" for t,c in seen.items()} for d,seen in self.together.items()}).reindex(self.rows).fillna('–')
        return printed(found)

    def retrieval(self, d:str, name:str='rank1')->str:
        "Mean ± standard deviation over seeds, percent."
        who = ['Base', 'w/o U', 'w/ U', 'Upper']+[f'outsider on {k}' for k in self.runs[d][0].results['unprotected']]
        def cell(w, s):
            try: return self.said(self.metric(d, w, s, name))
            except KeyError: return '–'
        return printed(pd.DataFrame({s: {w: cell(w, s) if s!='raw-raw' or not w.startswith('outsider') else '–' for w in who} for s in ('raw-raw', *CROSSED)}))

    def likeness(self, d:str)->str:
        rows = {'desensitized': ('desensitized', 'w/ U')}|{f'{stage}, {a}': (stage, a) for a in ('w/o U', 'w/ U') for stage in ('protected', 'recovered')}
        return printed(pd.DataFrame({title: {k: self.said(self.quality(d, stage, name, a), 2) for k,(stage,a) in rows.items()} for name,title in (('psnr', 'PSNR, dB'), ('ssim', 'SSIM'))}))

    def gains(self)->str:
        "What upgradation adds, in points, with intervals over seeds and people."
        def cell(d, s, what): return next((str(m) for m in self.together[d][f'w/ U is above w/o U, {s}'].margins if m.what==what), '–')
        return printed(pd.DataFrame({d: {f'{what}, {s}': cell(d, s, what) for what in ('rank-1', 'mAP') for s in CROSSED} for d in self.desensitizers}))

    def when(self)->str:
        return printed(pd.DataFrame({'teacher changed after epoch, a seed each': {d: self.upgrades(d) for d in self.desensitizers}}))

    def details(self)->str:
        "All tables, folded."
        return '\n\n'.join(fold(f'{d.capitalize()}: rank-1, mAP, likeness',
            f'Rank-1, %, query-gallery, {len(self.runs[d])} seeds:\n\n{self.retrieval(d)}\n\nmAP, %:\n\n{self.retrieval(d, "mAP")}\n\nLikeness to the raw image:\n\n{self.likeness(d)}') for d in self.desensitizers)

    def threads(self)->str:
        "The same run with one thread and with two, side by side."
        if len(self.record.threads)!=2: return 'Not measured yet.'
        one,two = self.record.threads
        def numbers(r): return {f'{m} of {a}, {s}, %': 100*v[k] for a,row in r.results['arms'].items() for s,v in row['settings'].items() for k,m in (('rank1', 'rank-1'), ('mAP', 'mAP'))}|{
            f'{m} of {stage}, {a}': row[stage][k] for a,row in r.results['arms'].items() for stage in ('protected', 'recovered') if stage in row for k,m in (('psnr', 'PSNR, dB,'), ('ssim', 'SSIM'))}
        apart = (pd.Series(numbers(two))-pd.Series(numbers(one))).abs()
        luck = pd.DataFrame([numbers(r) for r in self.runs.get(one.cfg.desensitizer, [])]).std()
        def most(kind, digits):
            v,w = (x[x.index.str.startswith(kind)] for x in (apart, luck))
            return f'{v.max():.{digits}f} (median {v.median():.{digits}f}; standard deviation between seeds {w.median():.{digits}f})'
        def acted(r): return [h['epoch'] for h in r.history if h['kind']=='decision' and h['action']!='keep']
        names = [m['made'][-1]['threads'] for m in self.record['threads']]
        same = 'The teacher changed after the same epochs' if acted(one)==acted(two) else f'The teacher changed after epochs {listed(list(map(str, acted(one)))) or "none"} with {names[0]} and {listed(list(map(str, acted(two)))) or "none"} with {names[1]}'
        return (f"{one.cfg.desensitizer.capitalize()}, seed {one.cfg.seed}, with {names[0]} and with {names[1]} threads. Rank-1, in points, differs by at most {most('rank-1 of', 1)}, mAP by {most('mAP of', 1)}, "
                f"PSNR, in dB, by {most('PSNR, dB, of', 2)}, SSIM by {most('SSIM of', 3)}. {same}. Threads add up sums in another order, a rounding apart, and a training makes more of it: numbers are compared within one count of threads only.")

    def explained(self, text:str)->str:
        "The blocks `<!-- rows: blur, noise | words of a claim -->` that are still needed, each with its rows; rows without one are named."
        blocks = re.split(r'^<!-- rows: (.+?) \| (.+?) -->\n', text, flags=re.M)
        left = [(d, t) for t in self.rows for d in self.desensitizers if d in self.verdicts and t in self.verdicts[d] and set(self.verdicts[d][t])!={HOLDS}]
        out,done = [blocks[0]] if blocks[0].strip() else [], set()
        for of,words,prose in zip(blocks[1::3], blocks[2::3], blocks[3::3]):
            ours = [(d, t) for d,t in left if (of=='all' or d in of.split(', ')) and words in t and (d, t) not in done]
            done |= set(ours)
            if ours: out.append(self._rows(ours)+f'\n\n{self.fill(prose.strip())}')
        self.unexplained = [x for x in left if x not in done]
        if self.unexplained: out.append('Not explained yet:\n\n'+self._rows(self.unexplained))
        return '\n\n'.join(out) if left else 'There is none.'

    def _rows(self, cells:list[tuple])->str: # (desensitizer, claim), …
        "A line for each desensitizer and kind of claim."
        out = []
        for d in dict.fromkeys(d for d,_ in cells):
            for name,texts in grouped([t for of,t in cells if of==d]).items():
                one = [self.counted(self.verdicts[d][t])+(f' ({margins})' if (margins := ', '.join(f'{m.what} {m}' for m in self.together[d][t].margins)) else '') for t in texts]
                out.append(f"- **{d}: {name}**: {one[0] if len(set(one))==1 else '; '.join(one)}")
        return '\n'.join(out)

    # -- the template

    def ask(self, expression:str)->str:
        "The value of a field: an expression over the names of this class."
        try: return str(eval(expression, dict(__builtins__=dict(str=str, len=len, round=round)), Names(self)))
        except Exception as e: raise SystemExit(f'The field {{{{ {expression} }}}} has no value: {type(e).__name__}: {e}') from e

    def fill(self, text:str)->str: return re.sub(r'\{\{\s*(.+?)\s*\}\}', lambda m: self.ask(m[1]), text)

    def page(self, template:str)->str:
        "The page. What stands between `<!-- if threads -->` and `<!-- end if -->` needs that part of the record. What follows the line `<!-- rows -->` explains rows, up to `<!-- end of rows -->`."
        template = re.sub(r'<!-- if (\w+) -->\n(.*?)<!-- end if -->\n', lambda m: m[2] if self.record.get(m[1]) else '', template, flags=re.S)
        before,_,rest = template.partition('<!-- rows -->\n')
        rows,_,after = rest.partition('<!-- end of rows -->\n')
        return self.fill(before)+(self.explained(rows)+'\n'+self.fill(after) if rest else '')

    def svg(self)->str:
        "Claims down, desensitizers across, a dot for each seed; on a card of its own, so that any page will do."
        left,step,gap = 398, 15, 26
        width = left+len(self.runs)*(self.seeds*step+gap)
        out,y = [], 34
        for i,d in enumerate(self.desensitizers): out.append(f'<text class="head" x="{left+i*(self.seeds*step+gap)}" y="22">{escape(d)}</text>')
        for t in self.rows:
            lines = wrap(short(t), 56)[:2]
            high,middle = 8+14*len(lines), y+4+7*len(lines)
            out.append(f'<path class="line" d="M12 {y}H{width-12}"/>')
            for k,line in enumerate(lines): out.append(f'<text x="12" y="{y+15+14*k}">{escape(line)}</text>')
            for i,d in enumerate(self.desensitizers):
                for k,v in enumerate(self.verdicts[d].get(t, [])): out.append(mark(v, left+6+i*(self.seeds*step+gap)+k*step, middle))
            y += high
        x,y,key = 12, y+6, []
        for v in VERDICTS: key.append(mark(v, x+5, y+8)+f'<text x="{x+16}" y="{y+12}">{v}</text>'); x += 40+7*len(v)
        key.append(f'<text x="{x}" y="{y+12}">one dot a seed</text>')
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y+26}" width="{width}" height="{y+26}" role="img" aria-label="Which claims hold, by desensitizer and seed">\n'
                f'<style>{STYLE}</style>\n<rect class="card" width="{width}" height="{y+26}" rx="8"/>\n'+'\n'.join(out+key)+'\n</svg>\n')

STYLE = ('text{font:12px system-ui,sans-serif;fill:#1b1e23}.head{font-weight:600;font-size:13px}.card{fill:#fff}.line{stroke:#e3e6ea}.good{fill:#1d7a46}.close{fill:none;stroke:#9a6b00;stroke-width:2}.bad{stroke:#c22f3d;stroke-width:2.4;fill:none}'
         '@media(prefers-color-scheme:dark){text{fill:#e6e8eb}.card{fill:#1f2227}.line{stroke:#363b43}.good{fill:#5ccf8d}.close{stroke:#e3b341}.bad{stroke:#ff7b86}}')

def mark(verdict:str, x:float, y:float)->str:
    "A full dot, a ring or a cross: told apart without colours, too."
    if verdict==HOLDS: return f'<circle class="good" cx="{x}" cy="{y}" r="5"/>'
    if verdict==FAILS: return f'<path class="bad" d="M{x-4} {y-4}l8 8m0-8l-8 8"/>'
    return f'<circle class="close" cx="{x}" cy="{y}" r="4"/>'

def printed(df:pd.DataFrame)->str: return markdown(df.rename_axis(columns=None).rename_axis(' ').reset_index()).strip()
def fold(title:str, text:str)->str: return f'<details>\n<summary>{escape(title)}</summary>\n\n{text}\n\n</details>'

# -- marked numbers in other texts ------------------------------------------------------------------------------------

MARKED = re.compile(r'([\w.+–-]+)(<!--= (.+?) -->)')

def documents()->list[Path]:
    "Texts that may state results: `71.0<!--= rank1('blur', 'w/ U', 'raw-raw') -->` is looked up, and a reader sees the number only."
    return [*sorted((ROOT/'nbs').glob('[!.]*.ipynb')), *(p for p in sorted((ROOT/'nbs').glob('*.md')) if p!=PAGE), ROOT/'CHANGELOG.md']

def marked(text:str, page:Page)->str:
    "The text with its numbers as they were recorded; a mark that the record has nothing for yet keeps its own, and is named."
    def look(m):
        try: return page.ask(m[3])+m[2]
        except SystemExit as e: page.missing.append(str(e)); return m[0]
    return MARKED.sub(look, text)

def made(record:Path)->tuple[dict[Path,str],list[str]]: # path -> what should stand there; what is missing, in words
    "Everything that the record decides."
    page = Page(Record(record))
    files = {PAGE: page.page(TEMPLATE.read_text(encoding='utf-8')), PICTURE: page.svg()}
    files |= {p: marked(text, page) for p in documents() if '<!--= ' in (text := p.read_text(encoding='utf-8'))}
    return files, [f'{TEMPLATE.name} explains no row like this, which does not hold: {d}: {t}' for d,t in page.unexplained]+page.missing

def write(record:Path, check:bool=False)->int: # 1: something is stale, or missing
    files,missing = made(record)
    stale = [p for p,text in files.items() if not p.is_file() or p.read_text(encoding='utf-8')!=text]
    for p in stale:
        if not check: p.write_text(files[p], encoding='utf-8')
        print(f"{p.relative_to(ROOT)}: {'stale' if check else 'written'}")
    for sentence in missing: print(sentence, file=sys.stderr)
    if stale and not check: print('Now: python docs/readme.py')
    return int(bool(missing or check and stale))
