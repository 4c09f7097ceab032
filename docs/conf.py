"Sphinx configuration of the site. Names, versions and links come from settings.ini."
import importlib.util, shutil, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import engine, lessons
from readme import settings

cfg = settings()
project,author,copyright,release = cfg['title'], cfg['author'], cfg['copyright'], cfg['version']

extensions = ['myst_nb', 'sphinx_copybutton', 'sphinx.ext.mathjax']
source_suffix = {'.ipynb': 'myst-nb', '.md': 'myst-nb'}
exclude_patterns = ['.*', '_*', '**.ipynb_checkpoints']
myst_enable_extensions = ['amsmath', 'dollarmath', 'colon_fence']
myst_heading_anchors = 3
nb_execution_mode = 'off'          # a lesson is committed with what it shows
nb_merge_streams = True
nb_render_markdown_format = 'myst'
nb_ipywidgets_js = {}              # no script from elsewhere
nitpicky = True                    # every reference must lead somewhere
add_module_names = False

html_theme = 'sphinx_book_theme'
html_title = project
html_domain_indices = False        # the reference says more than an index of modules
html_static_path,html_css_files,html_favicon = ['_static'], ['site.css', 'live.css'], '_static/favicon.svg'
html_context = dict(default_mode='auto')   # day or night as the system has it
html_theme_options = dict(
    repository_url=cfg['git_url'], repository_branch=cfg['branch'], path_to_docs=cfg['nbs_path'], use_repository_button=True, use_issues_button=True,
    launch_buttons=dict(colab_url='https://colab.research.google.com'), navbar_persistent=[],   # the theme has one search field already
    home_page_in_toc=True, show_toc_level=2, pygments_light_style='a11y-high-contrast-light', pygments_dark_style='a11y-high-contrast-dark')

# MathJax comes from a Python package instead of a CDN; of its many variants the site needs one.
mathjax_path = 'mathjax/tex-chtml.js'
MATHJAX = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent/'static'/'mathjax'

def copy_mathjax(app, exception):
    if exception or app.builder.format!='html': return
    for path in MATHJAX.rglob('*.*'):
        part = path.relative_to(MATHJAX)
        if part.as_posix().startswith(('tex-chtml.js', 'output/chtml/', 'input/tex/extensions/')):
            copy = app.outdir/'_static'/'mathjax'/part
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)

# The live page: what runs its networks is no part of the repository, see engine.py. Where it is missing, figures stay figures.
def copy_engine(app, exception):
    if not exception and app.builder.format=='html' and engine.whole(engine.ENGINE): shutil.copytree(engine.ENGINE, app.outdir/'_static'/'live'/'engine', dirs_exist_ok=True)

def setup(app):
    if engine.whole(engine.ENGINE): app.add_js_file('live/start.js', loading_method='defer')
    app.connect('build-finished', copy_engine)
    app.connect('source-read', lessons.prepare)
    app.connect('build-finished', copy_mathjax)
