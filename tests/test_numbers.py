"Numbers in the prose of the course are those of its cells: none is typed that no output, no code and no table of the paper has."
import json, re
from functools import cache
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted(p.stem for p in (ROOT/'nbs').glob('[0-9]*.ipynb'))
NUMBER = re.compile(r'(?<![\w.±])(?<!± )(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?!\w)')

# What no cell says: of the paper, of its authors' code, of theory, or measured where the page says so.
GIVEN = {
    '*': {'.05': 'the rule\'s SSIM and rank-1', '1.386': '2 log 2', '.0005': 'the centre loss', '41.8': 'million weights of the paper\'s U-Net', '26.8': 'the paper, recovered', '.92': 'the paper, recovered'},
    '00_tour': {'.355': '.305 + .05'},
    '01_people': {'1.19': 'authors: (1 - .406)/.5', '.97': 'authors: .485/.5', '14.3': 'an exercise: 14 of 98', '.73': 'authors: 1.5 times .485', '.68': 'authors: 1.5 times .456', '.61': 'authors: 1.5 times .406'},
    '03_measure': {'90': 'somebody\'s claim', '.01': 'an exercise: .1 squared', '3.2': 'a section of the page', '3.3': 'a section of the page'},
    '04_translate': {'.5': 'a guess'},
    '05_recognise': {'1.72': 'in the figure', '4.61': 'in the figure', '2.39': 'in the figure', '3.32': 'in the figure', '90': 'one minus a tenth', '92.5': '.9 + .1/4', '70': 'a guess', '4.16': 'log 64',
                     '1.005': 'once, elsewhere', '9.82': 'once, elsewhere', '79': 'once, elsewhere', '52': 'once, elsewhere', '38': 'once, elsewhere', '67': 'once, elsewhere', '51': 'once, elsewhere', '66': 'once, elsewhere'},
    '06_together': {'4.16': '3.47 + .69', '.65': 'the entropy of a smoothed target of 32'},
    '07_upgrade': {'3.5': 'a section of the paper', '10.3': 'once, elsewhere', '11.9': 'once, elsewhere', '12.6': 'once, elsewhere', '150': 'an example', '.53': 'an exercise', '.54': 'an exercise', '.51': 'an exercise'},
    '10_use': {'20.83': 'once, elsewhere', '20.87': 'once, elsewhere', '1.03': 'a difference of two printed', '1.59': 'a difference of two printed', '.87': 'a difference of two printed', '.27': 'a difference of two printed', '3.5': 'a difference of two printed', '.21': 'a difference of two printed', '40': 'Wilson\'s interval of 5 of 24'}}

def numbers(text:str)->list[tuple[float,int]]: # value, digits behind the point
    return [(float((whole or '0').replace(',', '')+(rest or '')), len(rest)-1 if rest else 0) for whole,rest in NUMBER.findall(text) if whole or rest]

def prose(text:str)->str:
    "Without code, formulas and addresses."
    for what in (r'```.*?```', r'\$\$.*?\$\$', r'\$[^$]*\$', r'`[^`]*`'): text = re.sub(what, ' ', text, flags=re.S)
    return re.sub(r'https?://\S+', ' ', re.sub(r'\]\([^)]*\)', ']', text))

def stated(text:str)->list[tuple[str,float,int]]: # as written, value, digits: fractions, percentages and decibels; other whole numbers are counts
    found = []
    for m in NUMBER.finditer(prose(text)):
        whole,rest = m.groups()
        if rest or whole and re.match(r'\s?(%|dB)', m.string[m.end():]): found.append((m[0], *numbers(m[0])[0]))
    return found

@cache
def cells(name:str)->list[dict]: return json.loads((ROOT/'nbs'/f'{name}.ipynb').read_text(encoding='utf-8'))['cells']

@cache
def known(name:str)->list[float]:
    "Everything that code and outputs of a lesson say, and the paper's tables; shares count as percentages, too."
    said = []
    for c in cells(name):
        if c['cell_type']!='code': continue
        said.append(''.join(c['source']))
        for o in c['outputs']:
            said.append(''.join(o.get('text', '')))
            said += [re.sub(r'<[^>]*>', ' ', ''.join(v)) for k,v in o.get('data', {}).items() if k.startswith('text') or 'svg' in k]
    said.append((ROOT/'privreid'/'tables.json').read_text(encoding='utf-8'))
    found = [v for v,_ in numbers('\n'.join(said))]
    return found+[100*v for v in found if v<=1]

def unknown(name:str, texts:list[str])->list[str]:
    "Numbers that nothing accounts for."
    there,given = known(name), {float(k) for k in (*GIVEN['*'], *GIVEN.get(name, {}))}
    def accounted(v, digits): return v in given or any(abs(t-v)<=.5*10**-digits+1e-9 for t in there)
    return [written for text in texts for written,v,digits in stated(text) if not accounted(v, digits)]

@pytest.mark.parametrize('name', LESSONS)
def test_no_number_is_typed(name):
    assert not unknown(name, [''.join(c['source']) for c in cells(name) if c['cell_type']=='markdown'])

def test_a_number_that_has_moved_is_noticed():
    "Each fraction of the prose, moved by three in its last digit: are most noticed? The others meet another number of the page."
    moved = noticed = 0
    for name in LESSONS:
        for c in cells(name):
            if c['cell_type']!='markdown': continue
            for written,v,digits in stated(''.join(c['source'])):
                if not digits: continue
                moved += 1
                noticed += bool(unknown(name, [f'It is {v+3*10**-digits:.{digits}f} here.']))
    assert moved>150 and noticed>.5*moved, (noticed, moved)

def test_what_is_given_is_needed():
    "An excuse that nobody needs any more is none."
    for name,those in GIVEN.items():
        texts = [''.join(c['source']) for n in (LESSONS if name=='*' else [name]) for c in cells(n) if c['cell_type']=='markdown']
        written = {v for t in texts for _,v,_ in stated(t)}
        assert not [k for k in those if float(k) not in written], name
