"Write README.md from nbs/index.ipynb. `--check` writes nothing and exits with 1 when README.md is stale."
import argparse, re, sys
from configparser import ConfigParser
from pathlib import Path
import nbformat

ROOT = Path(__file__).resolve().parent.parent
HEAD = '<!-- Generated from nbs/index.ipynb by docs/readme.py: edit the notebook, not this file. -->'

def settings()->dict[str,str]:
    "What settings.ini says, and `doc_url`, which it says in two parts."
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    cfg = dict(ini['DEFAULT'])
    return cfg | {'doc_url': cfg['doc_host']+cfg['doc_baseurl']}

def pages()->list[Path]:
    "All notebooks but the first page."
    return sorted(p for p in (ROOT/'nbs').glob('*.ipynb') if p.stem!='index')

def fill(text:str, cfg:dict[str,str])->str:
    "Put settings in the place of `{name}`. A name that settings.ini lacks is a mistake, so it raises."
    return re.sub(r'\{(\w+)\}', lambda m: cfg[m[1]], text)

def relink(text:str, cfg:dict[str,str])->str:
    "Links that are right inside nbs/, made right for a reader of README.md."
    text = re.sub(r'\]\(([\w-]+)\.(?:ipynb|md)(#[^)]*)?\)', lambda m: f"]({cfg['doc_url']}/{m[1]}.html{m[2] or ''})", text)
    return re.sub(r'\]\(images/', '](nbs/images/', text)

def markdown(cell, cfg:dict[str,str])->str:
    "One notebook cell as Markdown; '' where there is nothing to show."
    if cell.cell_type=='markdown': return relink(fill(cell.source, cfg), cfg)
    if cell.cell_type!='code' or re.search(r'^\s*#\|\s*hide\b', cell.source, flags=re.M): return ''
    code = re.sub(r'^\s*#\|.*\n?', '', cell.source, flags=re.M)
    shown = ''.join(o.get('text') or o.get('data', {}).get('text/plain', '') for o in cell.outputs)
    return '\n\n'.join(f'```{lang}\n{text.strip()}\n```' for lang,text in (('python', code), ('', shown)) if text.strip())

def readme()->str:
    cfg,nb = settings(), nbformat.read(ROOT/'nbs'/'index.ipynb', as_version=4)
    return '\n\n'.join([HEAD]+[m for c in nb.cells if (m := markdown(c, cfg).strip())])+'\n'

def generate(path:Path, text:str, about:str, script:str):
    "The command of a script that generates a file: write it, or with `--check` say that it is stale."
    p = argparse.ArgumentParser(description=about)
    p.add_argument('--check', action='store_true', help='only compare')
    if not p.parse_args().check: path.write_text(text, encoding='utf-8')
    elif not path.exists() or path.read_text(encoding='utf-8')!=text: sys.exit(f'{path.name} is stale: run `python {script}`')

if __name__ == '__main__': generate(ROOT/'README.md', readme(), __doc__, 'docs/readme.py')
