"benchmarks/gpu.sh must work at its first try, on a machine that is rented by the minute: here it runs at toy size on a CPU."
import csv, os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent

def gpu(out, *args):
    env = os.environ|dict(OUT=str(out), OMP_NUM_THREADS='1', PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    return subprocess.run([ROOT/'benchmarks'/'gpu.sh', '--device', 'cpu', '--toy', *args], env=env, capture_output=True, text=True)

def measured(out):
    "part -> {what: value}"
    found = {}
    for part,what,value,_ in list(csv.reader(open(out/'gpu.csv', encoding='utf-8')))[2:]: found.setdefault(part, {})[what] = float(value)
    return found

def test_a_part_leaves_its_numbers_at_once(tmp_path):
    done = gpu(tmp_path, 'pipeline')
    assert not done.returncode, done.stdout+done.stderr
    assert set(measured(tmp_path)['pipeline'])=={'blur', 'pixelation', 'noise', 'augmentation of a pair', 'SSIM'}
    assert '(pipeline: done' in (tmp_path/'gpu.md').read_text()

@pytest.mark.full
def test_what_finds_no_time_is_named(tmp_path):
    done = gpu(tmp_path, '--minutes', '0', 'step', 'colab')
    assert done.returncode==1 and 'step, colab: not measured' in done.stderr and 'step: no time left' in done.stdout

@pytest.mark.full
def test_a_strange_part_is_refused(tmp_path):
    done = gpu(tmp_path, 'stepp')
    assert done.returncode==2 and 'no part is called stepp: choose step' in done.stderr

@pytest.mark.full
def test_every_part_runs(tmp_path):
    parts = 'step', 'parity', 'whole', 'retrieval', 'settings', 'paper', 'colab'   # compiled: tests/test_speed.py compiles
    done = gpu(tmp_path, *parts)
    assert not done.returncode, done.stdout+done.stderr
    found = measured(tmp_path)
    assert set(found)==set(parts) and all(found.values())
    assert found['parity']['paper: losses']<1e-3 and found['parity']['demo: update of G_X, cosine']>.99
    assert found['step']['privreid']>0 and found['whole']['sum']>=found['whole']['step']
    assert (tmp_path/'report-colab.html').is_file() and (tmp_path/'run-paper'/'results.json').is_file()
