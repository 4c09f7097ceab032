"The fuzzer finds what is planted, and a short run of it finds nothing."
import math, os, sys, time, warnings
from pathlib import Path
import pytest
pytest.importorskip('resource', reason='the limits of the fuzzer are those of POSIX systems')
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'benchmarks'))
import fuzz
from fuzz import KINDS, share
from privreid.desensitize import desensitizer
from privreid.files import atomic

def tried(act, n=1, **case): # act(folder)
    return fuzz.try_all('planted', lambda rng, folder: fuzz.Case('planted', lambda: act(folder), **case), range(n))

def raises(e): raise e
def write(path): path.parent.mkdir(exist_ok=True); path.write_text('x')
def natively(path): import ctypes; ctypes.CDLL(None).close(ctypes.CDLL(None).creat(os.fsencode(path), 0o600))

FAULTS = {
    'KeyError': lambda folder: {}['a'],
    'raised by a library': lambda folder: int('x'),
    'line that stumbled': lambda folder: atomic(None).__enter__(),
    'not one line': lambda folder: raises(ValueError('a\nb')),
    '1000 characters': lambda folder: raises(ValueError('a'*1000)),
    'open': lambda folder: write(folder.parent/'home'/'x'),
    'os.mkdir': lambda folder: write(folder/'..'/'new'/'x'),
    'home/y': lambda folder: natively(folder.parent/'home'/'y'),
    'os.remove': lambda folder: Path('/nowhere/x').unlink(missing_ok=True),
    'subprocess.Popen': lambda folder: __import__('subprocess').run(['true']),
    'RuntimeWarning': lambda folder: warnings.warn('overflow', RuntimeWarning),
    'MB': lambda folder: b'x'*(fuzz.MEMORY+100)*10**6,
    'MemoryError': lambda folder: bytearray(10**11),
    'the process died': lambda folder: os._exit(3)}

@pytest.mark.parametrize('said', FAULTS)
def test_a_planted_fault_is_found(said):
    outcome, = tried(FAULTS[said])
    assert outcome.verdict=='fault' and said in outcome.said, outcome

def test_slow_inputs_are_found(monkeypatch):
    monkeypatch.setattr(fuzz, 'SECONDS', .2)
    def work(folder):
        end = time.process_time()+.4
        while time.process_time()<end: pass
    assert tried(work)[0].said=='0 s'
    monkeypatch.setattr(fuzz, 'PATIENCE', 1)
    assert tried(lambda folder: time.sleep(30))[0].said=='no answer within 1 s'

def test_a_wrong_result_is_found():
    def right(x): return '' if math.isfinite(x) else f'{x}'
    assert [tried(lambda folder: x, right=right)[0].verdict for x in (1., math.nan, None)]==['accepted', 'fault', 'fault']

def test_a_refusal_is_one_sentence_that_names_the_file():
    refused, = tried(lambda folder: desensitizer('fog'), names=('fog',))
    assert (refused.verdict, refused.said)==('refused', "desensitizer 'fog' is unknown: choose blur, pixelation, noise.")
    assert tried(lambda folder: desensitizer('fog'), names=('rain',))[0].said.startswith('names none of rain')
    assert tried(lambda folder: desensitizer('fog'), must=True)[0].said.startswith('should not be refused')

def test_an_input_that_kills_costs_one_input():
    def make(rng, folder): return fuzz.Case('', lambda: os._exit(1) if folder.name=='2' else None)
    assert [o.verdict for o in fuzz.try_all('planted', make, range(5))]==['accepted', 'accepted', 'fault', 'accepted', 'accepted']

def test_the_same_seed_draws_the_same_inputs():
    def whats(seed): return [o.what for kind in ('images', 'configs') for o in fuzz.try_all(kind, KINDS[kind], range(2), seed)]
    assert whats(1)==whats(1)!=whats(2)

def test_all_inputs_are_dealt(): assert share(10, ['a', 'b', 'c'])==dict(a=4, b=3, c=3)

@pytest.mark.parametrize('kind', KINDS)
def test_a_short_run_finds_nothing(kind):
    faults = [o for o in fuzz.try_all(kind, KINDS[kind], range(4), seed=1) if o.verdict=='fault']
    assert not faults, '\n'.join(f'{o.number}: {o.what}: {o.said}' for o in faults)
