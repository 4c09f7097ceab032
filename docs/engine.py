"Fetch what runs networks in a page, onnxruntime-web, into build/engine: one version, three files, each compared with its SHA-256. Without it the site shows figures in the place of the live page."
import shutil, subprocess, sys, tarfile, tempfile
from hashlib import sha256
from pathlib import Path

ENGINE = Path(__file__).resolve().parent.parent/'build'/'engine'
VERSION = '1.30.0'
FILES = {   # of the package's folder dist -> SHA-256
    'ort.wasm.min.mjs': '219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b',
    'ort-wasm-simd-threaded.mjs': 'e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b',
    'ort-wasm-simd-threaded.wasm': '3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2',
}

def whole(folder:Path)->bool:
    "Whether all files are there, and are those that are meant."
    return all((folder/f).is_file() and sha256((folder/f).read_bytes()).hexdigest()==h for f,h in FILES.items())

def fetch(folder:Path=ENGINE)->str: # '' or what went wrong
    "Fetch the files with npm, unless they are there."
    if whole(folder): return ''
    if not shutil.which('npm'): return 'the live page needs npm (of Node.js) to be built, and there is none'
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as tmp:
        try: p = subprocess.run(['npm', 'pack', '--silent', f'onnxruntime-web@{VERSION}'], cwd=tmp, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired: return 'npm did not bring onnxruntime-web within five minutes'
        packed = next(Path(tmp).glob('*.tgz'), None)
        if p.returncode or not packed: return f"npm brings no onnxruntime-web {VERSION} ({(p.stderr.strip().splitlines() or ['it says nothing'])[-1][:120]})"
        new = Path(tmp)/'new'
        new.mkdir()
        with tarfile.open(packed) as tar:
            for f in FILES: (new/f).write_bytes(tar.extractfile(f'package/dist/{f}').read())
        if not whole(new): return f'onnxruntime-web {VERSION} is not what it was: a file has another SHA-256'
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    return ''

if __name__=='__main__':
    wrong = fetch()
    print(f'{wrong}: the site is built with a figure in the place of the live page.' if wrong else f'onnxruntime-web {VERSION} is in {ENGINE.relative_to(Path.cwd()) if ENGINE.is_relative_to(Path.cwd()) else ENGINE}')
    sys.exit(bool(wrong))
