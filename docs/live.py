"Write what the site shows of a finished run of the demo: the live page (docs/_static/live, nbs/images/live.png), which tries the key of another run, too, and twelve queries (nbs/images/queries.html): python docs/live.py RUN OTHER"
import sys, tempfile
from collections import Counter
from pathlib import Path
import pandas as pd
import torch
from privreid.body import CAMERA, PERSON, SHOT, draw_fields
from privreid.bundles import nets_of
from privreid.data import GREY_INK, SyntheticPedestrians, to_float
from privreid.desensitize import Blur
from privreid.export import export_onnx, parity, refuse_unlike, rounded, to_onnx
from privreid.files import strict_json
from privreid.records import load_run
from privreid.views import Viewer

ROOT = Path(__file__).resolve().parent.parent
LIVE = ROOT/'docs'/'_static'/'live'
BITS,SEED = 8, 0

def recipes(first:int)->dict: # `first`: a person whom the networks have not seen
    "What the page paints: twelve people whose clothes the sliders change, four cameras, twelve moments, 23 strangers."
    def row(spec, *key): return {k: round(v, 5) if isinstance(v, float) else v for k,v in draw_fields(spec, SEED, *key).items()}
    moments = [row(SHOT, 3, first+i, i%4, 0)|dict(occluder=9) for i in range(12)]   # nothing stands in front
    gallery = [dict(who=row(PERSON, 1, p), camera=p%4, shot=row(SHOT, 3, p, p%4, 1)) for p in range(first+12, first+35)]
    return dict(people=[row(PERSON, 1, first+i) for i in range(12)], cameras=[row(CAMERA, 2, c) for c in range(4)], moments=moments, gallery=gallery)

@torch.no_grad()
def figure(first, X, Y, reid, outsider):
    "The page as a picture: one person's stages, and who finds them among the protected pictures."
    import matplotlib.pyplot as plt
    people = SyntheticPedestrians(size=X.size, seed=SEED)
    x = to_float(people.split([(first+1, 0, 0), (first+1, 2, 1), *((p, p%4, 1) for p in range(first+12, first+35))]).images)
    p = X(x)
    r = Y(p)
    stages = dict(raw=x[0], desensitized=Blur()(x)[0], protected=p[0], recovered=r[0], difference=3*(x-r)[0].abs()-1)
    fig,axs = plt.subplots(3, 8, figsize=(8, 6.2), dpi=100, gridspec_kw=dict(hspace=.22, wspace=.06, height_ratios=[1.2, 1, 1]))
    def show(ax, picture, title, colour=GREY_INK, right=False):
        ax.imshow(((picture.clamp(-1, 1)+1)/2).permute(1,2,0)); ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=8, color=colour, pad=3)
        for s in ax.spines.values(): s.set(visible=right, color='#2e8b57', linewidth=3)
    for ax in axs[0]: ax.set_visible(False)
    for ax,(k,v) in zip(axs[0], stages.items()): ax.set_visible(True); show(ax, v, k)
    for row,who,net in ((1, 'outsider', outsider), (2, 'authorised', reid)):
        order = torch.cdist(net(x[:1]), net(p[1:]))[0].argsort().tolist()
        for n,(ax,i) in enumerate(zip(axs[row], order)): show(ax, p[1+i], f'{n+1}', right=i==0)
        axs[row,0].set_ylabel(f'{who}: right one\nnumber {order.index(0)+1} of {len(order)}', fontsize=8, color=GREY_INK)
    fig.patch.set_alpha(0)
    out = ROOT/'nbs'/'images'/'live.png'
    fig.savefig(out, bbox_inches='tight', pil_kwargs=dict(optimize=True))
    return out

def counted(viewer)->str: # HTML
    "What holds for all queries, beside the dozen that are shown."
    r,outsider,setting = viewer.results, viewer.outsider(), viewer.setting
    lost,n = set(r.failures(setting)), len(r.query)
    rows = {s: {f'found by {viewer.arm}': n-len(r.failures(s)), 'found by the outsider': n-len(outsider.failures(s)), f'lost in {setting}, and here': len(lost.intersection(r.failures(s)))} for s in r.settings}
    own = sum(r.ranking(setting, i, 1)[0].camera==int(r.query.cams[i]) for i in lost)
    camera,first = Counter(outsider.ranking(setting, i, 1)[0].camera for i in range(n)).most_common(1)[0]
    table = pd.DataFrame(rows).T.to_html(border=0)
    return f"""<p>All {n} queries:</p>{table}
<p>{setting}: of the {len(lost)} wrong first matches of {viewer.arm}, {own} come from the query's own camera (by lot, a quarter). Of the outsider's {n} first matches, {first} come from camera {camera}, which holds {int((r.gallery.cams==camera).sum())} of {len(r.gallery)} gallery pictures.</p>"""

def main(run:str, other:str):
    cfg,_ = load_run(run)
    LIVE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        for source,role,name in ((run, 'protect', 'protect'), (run, 'reid', 'reid'), (run, 'recover', 'demo-key'), (other, 'recover', 'another-key')):
            made = export_onnx(source, role, Path(tmp)/name, bits=BITS, give_away=role=='recover')   # painted people: the keys of the page are for everybody
            (LIVE/f'{name}.onnx').write_bytes(made.read_bytes())
    outsider, = nets_of(run, 'Upper', 'reid')
    whole = to_onnx(outsider, cfg.size, BITS, dict(role='outsider', bits=BITS))
    refuse_unlike(parity(whole, rounded(outsider, BITS), torch.zeros(2, 3, *cfg.size)), 'The outsider')
    (LIVE/'outsider.onnx').write_bytes(whole)
    (LIVE/'people.json').write_text(strict_json(recipes(cfg.people))+'\n', encoding='utf-8')
    viewer = Viewer(run, device='cpu')
    viewer.choose(arm='w/ U', setting='raw-protected')
    (ROOT/'nbs'/'images'/'queries.html').write_text(f'{viewer.album()}\n{counted(viewer)}\n', encoding='utf-8')
    print(figure(cfg.people, *(rounded(n, BITS) for n in nets_of(run, 'w/ U', 'anonymizer', 'recovery', 'reid')), rounded(outsider, BITS)))

if __name__=='__main__': main(*sys.argv[1:])
