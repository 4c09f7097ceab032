"Put the first cell into every lesson: install the package where it is missing, say what runs. `--check` writes nothing and exits with 1 when one is stale."
import argparse, re, sys
import nbformat
from readme import fill, pages, settings

START = '#| hide\ntry: import {lib_name}\n'
CELL = START+'''except ModuleNotFoundError:   # on Colab: the release, or where there is none the source
    for source in ('{lib_name}=={version}', 'git+{git_url}@v{version}', 'git+{git_url}'):
        %pip install -q $source
        if not _exit_code: break
import torch
print(f'{torch.cuda.get_device_name()} found, {gpu}.' if torch.cuda.is_available() else 'No GPU here, and none is needed: this whole lesson runs on a CPU.')'''
DEVICE = re.compile(r'\b(?:Experiment|run_experiment|reproduce|main)\(|\b(?:Accelerator|accelerator_on)\(\)')   # these take a GPU where there is one

def uses_gpu(nb)->bool:
    "Whether the lesson itself, and not only what it exports, computes on a GPU."
    return any(DEVICE.search(c.source) for c in nb.cells if c.cell_type=='code' and not re.search(r'^#\|\s*export', c.source, flags=re.M))

def with_cell(nb):
    "The notebook with the current cell as its first code cell."
    cfg = settings()|dict(gpu='and this lesson computes on it' if uses_gpu(nb) else 'but this lesson does not use it')
    old = [c for c in nb.cells if c.source.startswith(fill(START, cfg))]
    new = nbformat.v4.new_code_cell(fill(CELL, cfg), id='first-cell')
    if len(old)==1 and old[0].source==new.source: new = old[0]   # with its output
    rest = [c for c in nb.cells if c not in old]
    first = next((i for i,c in enumerate(rest) if c.cell_type=='code'), len(rest))
    return rest[:first]+[new]+rest[first:]

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--check', action='store_true', help='only compare')
    check,stale = p.parse_args().check, []
    for path in pages():
        nb = nbformat.read(path, as_version=4)
        cells = with_cell(nb)
        if cells==nb.cells: continue
        stale.append(path.name)
        nb.cells = cells
        if not check: nbformat.write(nb, path)
    if check and stale: sys.exit(f'without the current first cell: {", ".join(stale)}. Run `python docs/colab.py`')

if __name__ == '__main__': main()
