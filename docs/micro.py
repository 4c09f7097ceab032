"Write micro.py, the tour as one script, from the code cells of nbs/00_tour.ipynb. `--check` writes nothing and exits with 1 when micro.py is stale."
import re
import nbformat
from readme import ROOT, generate

HEAD = '''"""Hide people, bring them back with a key, and still find out who is who.

python micro.py: a few minutes on two CPU cores, without a GPU. It needs torch,
matplotlib and, for its painted people, privreid. Made from nbs/00_tour.ipynb by
docs/micro.py: edit the notebook, not this file.
"""'''

def script()->str:
    "All code of the tour but Colab's first cell, each part under its heading."
    parts = [HEAD]
    for c in nbformat.read(ROOT/'nbs'/'00_tour.ipynb', as_version=4).cells:
        heading = re.search(r'^## (.+)$', c.source, flags=re.M)
        if c.cell_type=='markdown' and heading: parts.append(f'# --- {heading[1]}')
        if c.cell_type=='code' and c.id!='first-cell':
            parts.append(re.sub(r'^#\|.*\n', '', c.source, flags=re.M).strip())
    return '\n\n'.join(parts)+'\n'

if __name__ == '__main__': generate(ROOT/'micro.py', script(), __doc__, 'docs/micro.py')
