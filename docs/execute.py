"Run notebooks in place, top to bottom, and store what they show. `--flags slow cuda` also runs the cells with those flags."
import argparse, asyncio, base64, io, os, re, sys, time
from pathlib import Path
import nbformat
import numpy as np
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import clean_nb
from nbdev.config import get_config
from execnb.nbio import read_nb, write_nb
from PIL import Image

WIDGET = 'application/vnd.jupyter.widget-view+json'

def left_alone(cell, skip:list[str])->bool:
    "Whether a directive says that a cell is not run."
    directives = re.findall(r'^\s*#\|\s*(.+?)\s*$', cell.source, flags=re.M)
    return any(d in skip or re.fullmatch(r'eval:\s*false', d, re.I) for d in directives)

class Client(NotebookClient):
    "A client that leaves cells alone (recorded outputs included) when a directive says so."
    skip = ()

    async def async_execute_cell(self, cell, *args, **kwargs):
        if left_alone(cell, self.skip): return cell
        return await super().async_execute_cell(cell, *args, **kwargs)

def execute(path:Path, skip:list[str], timeout:int):
    start,nb = time.time(), nbformat.read(path, as_version=4)
    client = Client(nb, timeout=timeout, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}})
    client.skip = skip
    asyncio.run(client.async_execute())
    drop_widgets(nb)
    use_palettes([c for c in nb.cells if not left_alone(c, skip)])   # what was kept has been through it
    tmp = path.with_name(f'.{path.name}.tmp')
    nbformat.write(nb, tmp)
    os.replace(tmp, path)
    clean = read_nb(path)
    clean_nb(clean)
    write_nb(clean, path)
    print(f'{path.name}: {time.time()-start:.0f} s, {path.stat().st_size/1e3:.0f} kB')

def drop_widgets(nb):
    "Widgets (progress bars among them) are nothing but their last, stale state once the kernel is gone."
    nb.metadata.pop('widgets', None)
    for cell in nb.cells:
        if 'outputs' in cell: cell.outputs = [o for o in cell.outputs if WIDGET not in o.get('data', {})]

def with_palette(picture):
    "224 colours for what is solid, and for letters on nothing four colours in eight strengths: the picture and what its palette lets through."
    rgba,solid = np.array(picture), picture.convert('RGB')
    few = solid.quantize(224, method=Image.Quantize.MEDIANCUT, kmeans=2)
    places,faint,letters = np.array(few), rgba[...,3]<255, rgba[rgba[...,3]<255]
    inks = Image.fromarray(letters[letters[:,3]>127][None,:,:3]).quantize(4).getpalette() if (letters[:,3]>127).any() else []
    inks = (inks+[127]*12)[:12]
    near = np.square(letters[:,None,:3].astype(int)-np.reshape(inks, (4, 3))).sum(2).argmin(1)
    places[faint] = 224+8*near+letters[:,3]//32
    out = Image.fromarray(places)
    out.putpalette((few.getpalette()+[0]*672)[:672]+[v for i in range(4) for v in 8*inks[3*i:3*i+3]])
    return out, bytes([255]*224+4*[255*i//7 for i in range(8)])

def use_palettes(cells):
    "Pictures with 256 colours where that makes them smaller by a third: grain compresses badly, and a notebook has a limit."
    for data in (o['data'] for cell in cells for o in cell.get('outputs', []) if 'image/png' in o.get('data', {})):
        raw,few = base64.b64decode(data['image/png']), io.BytesIO()
        picture = Image.open(io.BytesIO(raw)).convert('RGBA')
        if len(raw)<.05*picture.width*picture.height: continue   # a few lines
        small,through = with_palette(picture)
        small.save(few, 'PNG', optimize=True, transparency=through)
        if len(few.getvalue())<2/3*len(raw): data['image/png'] = base64.b64encode(few.getvalue()).decode()

def main():
    os.environ.pop('MPLBACKEND', None)   # the kernel draws inline; another backend would store no picture
    cfg = get_config()
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('notebooks', nargs='*', type=Path, help='default: all in reading order')
    p.add_argument('--flags', nargs='*', default=[], choices=cfg.tst_flags.split(), help='flagged cells to run too')
    p.add_argument('--timeout', type=int, default=1800, help='seconds for one cell (default: %(default)s)')
    args = p.parse_args()
    failed = []
    for path in args.notebooks or sorted(cfg.nbs_path.glob('[!.]*.ipynb')):
        try: execute(path, [f for f in cfg.tst_flags.split() if f not in args.flags], args.timeout)
        except CellExecutionError as e: failed.append(path.name); print(f'{path.name}: {e}', file=sys.stderr)
    if failed: sys.exit(f'failed: {", ".join(failed)}')

if __name__ == '__main__': main()
