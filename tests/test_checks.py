"Checks: what is looked at and where, and that a message is one line whatever was given."
import math
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from privreid.checks import check_alike, check_images, check_labels, check_number, check_size, check_values, choice, shown, symbolic, visible

x = torch.rand(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))*2-1
anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers(), max_size=3), st.complex_numbers(), st.just(10**5000), st.just(torch.zeros(100, 100)), st.just(np.zeros((50,50))), st.just(dict(a='x\ny')), st.just(Exception))

@given(anything)
def test_whatever_is_given_is_one_line(value):
    assert len(shown(value))<=80 and shown(value).isprintable()
    for call in (lambda: choice(value, ['apple', 'pear'], 'fruit'), lambda: check_number(value, 'epochs', least=1e9, most=2e9, whole=True), lambda: check_images(value, 'Blur'), lambda: check_labels(value, 'CenterLoss', 3), lambda: check_size(value, most=0)):
        with pytest.raises((TypeError, ValueError)) as e: call()
        assert '\n' not in str(e.value) and len(str(e.value))<300

def test_an_object_that_paints_is_quoted_plainly():
    "Its text comes from its class, and not from Python."
    class Red:
        def __repr__(self): return '\x1b[31mred\x00'
    assert shown(Red())==r"\x1b[31mred\x00"

def test_height_and_width():
    assert check_size([np.int64(64), 32])==(64, 32) and check_size(torch.Size((4, 4)), most=4)==(4, 4)
    for odd in ((4, 5), (0, 1), (1.5, 2), (True, 2), (1, 2, 3)):
        with pytest.raises(ValueError): check_size(odd, most=4)

@given(st.one_of(st.none(), st.text(), st.binary(min_size=1), st.just([[1], [2, 3]]), st.just(object())))
def test_values_that_are_no_numbers(value):
    with pytest.raises(TypeError, match='as a tensor of numbers'): check_values(value, 'best_threshold', 'distances')

@given(st.one_of(st.integers(-10, 10), st.floats()), st.integers(-5, 5), st.integers(0, 5), st.booleans())
def test_a_number_within_its_limits(value, least, width, whole):
    fine = math.isfinite(value) and least<=value<=least+width and (isinstance(value, int) or not whole)
    if fine: assert check_number(value, 'n', least=least, most=least+width, whole=whole)==value
    else:
        with pytest.raises(ValueError, match='n must be'): check_number(value, 'n', least=least, most=least+width, whole=whole)

def test_numpys_numbers_are_numbers():
    for value in (np.int64(3), np.float32(3), np.uint8(3)): assert check_number(value, 'n', above=2)==3
    for value in (np.bool_(True), np.array([3]), torch.tensor(3), np.float64('nan')):
        with pytest.raises(ValueError): check_number(value, 'n')

def test_a_dry_run_has_shapes_and_devices_but_no_values(one_line):
    "PyTorch plays a GPU without having one."
    with FakeTensorMode():
        weights,on_gpu,here = torch.zeros(3, device='cuda'), torch.zeros(2, 3, 8, 4, device='cuda'), torch.zeros(2, 3, 8, 4)
        assert symbolic(on_gpu) and not visible(here) and check_images(on_gpu, 'G', weights) is on_gpu
        check_values(on_gpu, 'G', 'features'); check_labels(torch.zeros(2, device='cuda').long(), 'G', 2, 1)
        with pytest.raises(ValueError) as e: check_images(here, 'G', weights)
        one_line(e.value, 'cpu', 'cuda:0')
        with pytest.raises(ValueError) as e: check_alike('D', a=on_gpu, b=here)
        one_line(e.value, 'one device', 'cpu', 'cuda:0')
    assert visible(x) and not visible(x.to('meta'))

def test_values_are_not_looked_at_on_a_device():
    "A GPU would make every step wait for the answer."
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            called.append(str(f)); return f(*args, **kwargs or {})
    for batch,looks in ((x, True), (x.to('meta'), False)):
        called = []
        with Watch(): check_images(batch, 'G'); check_values(batch, 'G', 'features')
        assert bool(called)==looks

def test_overshoot_of_a_rounding_is_no_mistake():
    assert check_images(x.sign()*1.005, 'G').abs().max()>1
    with pytest.raises(ValueError, match='values from'): check_images(x.sign()*1.02, 'G')

def test_under_autocast_half_precision_is_left_alone():
    weights,half = torch.zeros(1), x.bfloat16()
    assert check_images(half, 'G', weights).dtype==torch.float32
    with torch.autocast('cpu', torch.bfloat16): assert check_images(half, 'G', weights) is half
