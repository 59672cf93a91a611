"""Which routine computes a dilated convolution, and the depthwise one of ours on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pkg.algos.dilated_convolution import depthwise, dilated_conv1d, dilated_conv2d


def drawn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture
def _small_blocks(monkeypatch):
    """So small a block that every call needs several, and the last is not full; nothing too small."""
    monkeypatch.setattr(depthwise, "BLOCK", 16)
    monkeypatch.setattr(depthwise, "LARGE", 0)
    monkeypatch.setattr(depthwise, "SMALL", 0)
    monkeypatch.setattr(depthwise, "ONEDNN", (*depthwise.ONEDNN, torch.float64))


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("size", [(7, 9), (40, 33)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("padding", "dilation"), [(12, 9), (3, 2)])
def test_depthwise_blocks_equal_pytorch(size, stride, padding, dilation):
    x, weight, bias = drawn(3, 17, *size), drawn(17, 1, 3, 3, seed=1), drawn(17, seed=2)
    keywords = {"padding": padding, "dilation": dilation, "stride": stride, "groups": 17}
    expected = F.conv2d(x, weight, bias, **keywords)
    got = dilated_conv2d(x, weight, bias, **keywords)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("padding", "dilation"), [(2, 2), (12, 12), (3, 2), (20, 2), (0, 5)])
@pytest.mark.parametrize("small", [False, True])
def test_depthwise_gradients_are_as_good_as_pytorch(
    dtype, form, stride, padding, dilation, small, request
):
    request.getfixturevalue("_small_blocks") if small else None
    x, weight = drawn(2, 32, 14, 13, dtype=dtype), drawn(32, 1, 3, 3, seed=1, dtype=dtype)
    x = x.contiguous(memory_format=form)
    keywords = {"padding": padding, "dilation": dilation, "stride": stride, "groups": 32}

    def gradients(convolve, kind):
        leaves = [t.to(kind).requires_grad_() for t in (x, weight)]
        output = convolve(*leaves, **keywords)
        upstream = drawn(*output.shape, seed=5, dtype=dtype).to(kind)
        return [g.double() for g in torch.autograd.grad(output, leaves, upstream)]

    exact = gradients(F.conv2d, torch.float64)
    theirs, ours = gradients(F.conv2d, dtype), gradients(dilated_conv2d, dtype)
    for want, plain, got in zip(exact, theirs, ours, strict=True):
        bound = 2 * (plain - want).abs().max() + torch.finfo(dtype).eps * want.abs().max()
        assert (got - want).abs().max() <= bound


@pytest.mark.parametrize("size", range(6))
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 4])
def test_inputs_and_outputs_that_meet(size, stride, outputs):
    for shift in range(-9, 9):
        inputs, met = depthwise._meeting(shift, stride, size, outputs)
        pairs = zip(list(range(size))[inputs], list(range(outputs))[met], strict=True)
        true = [(o * stride + shift, o) for o in range(outputs) if 0 <= o * stride + shift < size]
        assert list(pairs) == true


# ---------------------------------------------------------------- the measured limits

MEBI, LAST = 1 << 20, torch.channels_last


def nothing(*shape, dtype=torch.float32, form=torch.contiguous_format):
    """A tensor without storage: its shape, type and strides are all that is asked of it."""
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=form)


@pytest.mark.parametrize(
    ("x", "padding", "gains"),
    [
        (nothing(1, 2, 9, 9), [0, 0, 7, 7], False),
        (nothing(1, 2, 9, 9), [0, 0, 8, 8], True),
        (nothing(1, 2, 9, 9), [8, 8, 0, 0], True),
        (nothing(1, 2, 9, 9, dtype=torch.bfloat16), [8, 8, 8, 8], True),
        (nothing(1, 2, 9, 9, dtype=torch.float64), [8, 8, 8, 8], False),
        (nothing(1, 2, 9, 9, dtype=torch.float64), [0, 0, 3, 2], True),  # PyTorch pads first, too
        (nothing(1, 2, 9, 9, dtype=torch.float64), [1, 0, 0, 0], True),
        (nothing(1, 3, 1024, 1024), [1] * 4, True),
        (nothing(1, 3, 1024, 1023), [1] * 4, False),
        (nothing(1, 3, 1024, 1024, form=LAST), [1] * 4, False),
        (nothing(1, 3, 1024, 1024, dtype=torch.float16), [1] * 4, False),
    ],
)
def test_where_the_forward_pass_of_ours_gains(x, padding, gains):
    assert depthwise.forward_gains(x, padding) is gains


@pytest.mark.parametrize(
    ("x", "dilation", "gains"),
    [
        (nothing(1, 64, 32, 32), [1, 2], True),
        (nothing(1, 64, 32, 32), [2, 1], True),
        (nothing(1, 64, 32, 32), [1, 1], False),
        (nothing(1, 64, 32, 31), [2, 2], False),
        (nothing(1, 64, 32, 32, dtype=torch.float16), [2, 2], True),
        (nothing(1, 64, 32, 32, dtype=torch.float64), [2, 2], False),
    ],
)
def test_where_the_gradients_of_ours_gain(x, dilation, gains):
    assert depthwise.gradient_gains(x, dilation) is gains


def test_blocks_fill_the_cache_in_whole_vectors():
    assert depthwise._blocks(40, MEBI // 32) == [slice(0, 16), slice(16, 32), slice(32, 48)]
    assert depthwise._blocks(40, MEBI // 64 - 1) == [slice(0, 32), slice(32, 64)]
    assert depthwise._blocks(20, 3 * MEBI) == [slice(0, 16), slice(16, 32)]  # at least one vector
    assert depthwise._blocks(3, MEBI // 4, 1) == [slice(0, 2), slice(2, 4)]
    assert depthwise._blocks(2, MEBI, 1) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize(
    ("shape", "convolutions"), [((64, 128, 128), 1), ((65, 128, 128), 5), ((70, 64, 240), 3)]
)
def test_two_blocks_are_done_at_once_and_more_one_by_one(shape, convolutions):
    x = drawn(1, *shape, dtype=torch.float32)
    weight = drawn(shape[0], 1, 1, 2, dtype=torch.float32)
    with Called() as called:
        depthwise.depthwise_forward(x, weight, None, [1, 1], [0, 0, 8, 8], [1, 9])
    assert called.names.count(PYTORCH) == convolutions


def test_both_memory_formats_at_once_count_as_contiguous():
    assert depthwise.memory_format(nothing(2, 1, 3, 4)) == torch.contiguous_format
    assert depthwise.memory_format(nothing(2, 3, 3, 4, form=LAST)) == LAST
    assert depthwise.memory_format(nothing(2, 3, 3, 4)) == torch.contiguous_format


# ---------------------------------------------------------------- which routine runs


class Called(TorchDispatchMode):
    """Note the names of all operators that are called."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names = [*getattr(self, "names", []), function.name()]
        return function(*args, **(kwargs or {}))


OURS, PYTORCH = "checked::dilated_conv2d_forward", "aten::convolution"


LEARNS, FREE = True, False


@pytest.mark.parametrize(
    ("channels", "outputs", "groups", "rate", "learns", "dtype", "name"),
    [
        (64, 64, 1, 4, LEARNS, torch.float32, PYTORCH),  # dense: oneDNN skips the gaps
        (64, 64, 1, 12, LEARNS, torch.float32, PYTORCH),
        (64, 64, 64, 1, LEARNS, torch.float32, PYTORCH),  # no gaps, no gain
        (64, 64, 64, 4, FREE, torch.float32, PYTORCH),  # forward, it skips them here too
        (64, 64, 64, 4, LEARNS, torch.float32, OURS),  # but not in the gradients
        (64, 64, 64, 12, LEARNS, torch.bfloat16, OURS),
        (64, 64, 64, 12, LEARNS, torch.float64, PYTORCH),  # it has no fast path for these
        (16, 16, 16, 4, LEARNS, torch.float32, PYTORCH),  # too small
        (16, 16, 16, 12, LEARNS, torch.float32, PYTORCH),
        (64, 128, 64, 4, LEARNS, torch.float32, PYTORCH),  # a multiplier: not depthwise
    ],
)
def test_the_faster_routine_is_called_on_the_cpu(
    channels, outputs, groups, rate, learns, dtype, name
):
    x = drawn(1, channels, 40, 40, dtype=dtype)
    weight = drawn(outputs, channels // groups, 3, 3, dtype=dtype).requires_grad_(learns)
    with Called() as called:
        dilated_conv2d(x, weight, dilation=rate, padding=rate, groups=groups)
    assert {OURS, PYTORCH} & set(called.names) == {name}


@pytest.mark.parametrize(
    ("rate", "dtype", "calls"),
    [
        (4, torch.float32, [PYTORCH]),
        (12, torch.float32, ["aten::constant_pad_nd", PYTORCH]),  # the zeros are written first
        (12, torch.float64, [PYTORCH]),
    ],
)
def test_no_operator_is_called_where_nothing_learns(rate, dtype, calls):
    x, weight = drawn(1, 16, 30, 40, dtype=dtype), drawn(16, 1, 3, 3, dtype=dtype)
    with Called() as called:
        output = dilated_conv2d(x, weight, dilation=rate, padding=rate, groups=16)
    assert called.names == calls
    exact = F.conv2d(x.double(), weight.double(), None, 1, rate, rate, 16)
    # nine products of numbers around 1, in float32 or better
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate", [2, 12])
def test_a_compiled_depthwise_layer_and_one_under_autocast(rate):
    x, weight = drawn(2, 64, 30, 35, dtype=torch.float32), drawn(64, 1, 3, 3, dtype=torch.float32)

    def layer(x, weight):
        return dilated_conv2d(x, weight, dilation=rate, padding=rate, groups=64)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    narrow = layer(x.bfloat16(), weight.bfloat16())
    for learns in (False, True):
        weight.requires_grad_(learns)
        torch.testing.assert_close(compiled(x, weight), layer(x, weight))
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x, weight)
        assert output.dtype == torch.bfloat16
        # one rounding to bfloat16 more or less
        torch.testing.assert_close(output.float(), narrow.float(), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("form", [dilated_conv1d, dilated_conv2d])
def test_float64_on_cuda_is_left_to_pytorch(groups, form):
    """Dispatch alone: the tensors are fakes, as a compiler uses them, and need no device."""
    axes = 1 if form is dilated_conv1d else 2
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        with FakeTensorMode(), Called() as called:
            x = torch.empty(2, 8, *[20] * axes, dtype=dtype, device="cuda")
            weight = torch.empty(8, 8 // groups, *[3] * axes, dtype=dtype, device="cuda")
            output = form(x, weight, dilation=9, padding="same", groups=groups)
        assert (output.shape, output.device.type, output.dtype) == (x.shape, "cuda", dtype)
        want = PYTORCH if dtype == torch.float64 else OURS
        assert {OURS, PYTORCH} & set(called.names) == {want}


def same_with_threads(threads, form, inference):
    """Compare with PyTorch, and look that nothing of PyTorch's state was changed."""
    torch.set_num_threads(threads)
    x = drawn(2, 32, 129, 130, dtype=torch.float32).contiguous(memory_format=form)  # several blocks
    weight = drawn(32, 1, 3, 3, seed=1, dtype=torch.float32).requires_grad_(not inference)
    with torch.inference_mode(inference):
        output = dilated_conv2d(x, weight, dilation=9, padding=9, groups=32)
    assert output.requires_grad != inference
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert output.is_contiguous(memory_format=form)
    exact = F.conv2d(x.double(), weight.double(), None, 1, 9, 9, 32)
    # nine products of numbers around 1, in float32
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=1e-5)
    if not inference:
        by_weight = torch.autograd.grad(output, weight, x)[0].double()
        exact = torch.autograd.grad(exact, weight, x.double())[0].double()
        # sums of 33,540 products, in any order
        assert (by_weight - exact).norm() <= 1e-5 * exact.norm()
        assert torch.get_num_threads() == threads


def test_threads_change_nothing_and_are_not_changed():
    """In a process of its own: a pool of threads would not survive a fork of this one."""
    script = (
        "import itertools, torch; from tests.algos.test_dilated_convolution_routines import *\n"
        "forms = torch.contiguous_format, torch.channels_last\n"
        "for one in itertools.product((1, 2), forms, (False, True)): same_with_threads(*one)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
