"""The operators behind the functions: opcheck, gradients of both orders, one graph, autocast."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import conv2d, pad

from pkg.algos.dilated_convolution import dilated_conv1d, dilated_conv2d
from pkg.algos.dilated_convolution.operator import (
    backward_input_operator,
    backward_weight_operator,
    forward_operator,
)

#: x, weight, stride, padding (top, bottom, left, right), dilation, groups.
LAYERS = {
    "dense": ((2, 3, 6, 7), (4, 3, 3, 2), [1, 1], [2, 2, 1, 1], [2, 1], 1),
    "one side": ((1, 2, 5, 8), (2, 2, 1, 3), [1, 1], [0, 0, 4, 0], [1, 2], 1),
    "stride": ((1, 4, 7, 8), (6, 2, 2, 3), [2, 3], [1, 0, 2, 1], [3, 2], 2),
    "depthwise": ((2, 3, 5, 6), (3, 1, 3, 3), [1, 1], [2, 2, 2, 2], [2, 2], 3),
    "wide": ((1, 3, 4, 5), (3, 1, 3, 3), [1, 1], [9, 9, 9, 9], [9, 9], 3),
    "multiplier": ((1, 2, 5, 6), (4, 1, 3, 2), [2, 1], [3, 1, 2, 2], [2, 3], 2),
}
layers = pytest.mark.parametrize("name", list(LAYERS))


def inputs(name, dtype=torch.float64, gradient=True):
    x, weight, *rest = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.randn(s, generator=generator, dtype=torch.float64) for s in (x, weight, weight[:1])
    ]
    return [t.to(dtype).requires_grad_(gradient) for t in drawn], rest


@layers
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_opcheck_of_the_three_operators(name, dtype, form):
    (x, weight, bias), rest = inputs(name, dtype, gradient=False)
    x = x.contiguous(memory_format=form)
    output = forward_operator(x, weight, bias, *rest).detach()
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(forward_operator, (*leaves, *rest))
    torch.library.opcheck(forward_operator, (*leaves[:2], None, *rest))
    arriving = output.clone().requires_grad_()
    torch.library.opcheck(backward_input_operator, (arriving, leaves[1], *x.shape[2:], *rest))
    torch.library.opcheck(backward_weight_operator, (arriving, leaves[0], *weight.shape[2:], *rest))


@layers
def test_gradients_of_first_and_second_order(name):
    tensors, rest = inputs(name)
    assert torch.autograd.gradcheck(lambda *t: forward_operator(*t, *rest), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: forward_operator(*t, *rest), tensors)


@layers
@pytest.mark.parametrize("learns", [0, 1], ids=["input", "weight"])
def test_second_gradients_where_only_one_of_the_two_learns(name, learns):
    """The gradient of a gradient goes back to what arrived, though the other tensor needs none."""
    tensors, rest = inputs(name, gradient=False)
    leaf = tensors[learns].requires_grad_()
    output = forward_operator(*tensors, *rest)
    arriving = torch.ones_like(output).requires_grad_()
    (first,) = torch.autograd.grad(output, leaf, arriving, create_graph=True)
    (found,) = torch.autograd.grad((first * first).sum(), arriving)
    # The first gradient is linear in what arrived, and 2 first, sent forward, is its gradient.
    sent = [t.detach() for t in tensors[:2]]
    sent[learns] = 2 * first.detach()
    assert torch.allclose(found, forward_operator(*sent, None, *rest), rtol=1e-12, atol=1e-12)


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_error_of_the_cpu_form_is_at_most_twice_pytorchs(name, dtype, form):
    (x, weight, bias), (stride, padding, dilation, groups) = inputs(name, dtype)
    x = x.contiguous(memory_format=form)

    def plain(x, weight, bias):
        top, bottom, left, right = padding
        return conv2d(pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)

    def run(function, kind):
        leaves = [t.detach().to(kind).requires_grad_() for t in (x, weight, bias)]
        output = function(*leaves)
        arriving = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        return [output, *torch.autograd.grad(output, leaves, arriving.to(dtype).to(kind))]

    mine = run(lambda *t: forward_operator(*t, stride, padding, dilation, groups), dtype)
    exact, theirs = run(plain, torch.float64), run(plain, dtype)
    for a, b, c in zip(mine, exact, theirs, strict=True):
        # One rounding of the result more, where PyTorch's error happens to be small.
        floor = torch.finfo(dtype).eps * b.norm()
        assert (a.double() - b).norm() <= 2 * (c.double() - b).norm() + floor


@pytest.mark.parametrize("rate", [1, 9])
@pytest.mark.parametrize("groups", [1, 40])
def test_the_memory_format_of_the_first_argument_is_kept(rate, groups):
    """Also over more channels than a block of the depthwise form has."""
    x = torch.randn(2, 40, 6, 7).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(40, 40 // groups, 3, 3)
    rest = ([1, 1], [rate] * 4, [rate, rate], groups)
    for y in (x, x.contiguous()):
        output = forward_operator(y, weight, None, *rest)
        by_x = backward_input_operator(y, weight, 6, 7, *rest)
        by_weight = backward_weight_operator(y, y, 3, 3, *rest)
        assert output.stride() == y.stride() == by_x.stride()
        assert by_weight.is_contiguous()
        leaves = [t.double().requires_grad_() for t in (x, weight)]
        exact = conv2d(*leaves, None, 1, rate, rate, groups)
        grads = torch.autograd.grad(exact, leaves, x.double())
        # float32 sums of up to 360 products of numbers around 1: 1e-5 of their size.
        for mine, true in zip((output, by_x, by_weight), (exact, *grads), strict=True):
            assert (mine.double() - true).norm() <= 1e-5 * true.norm()


@pytest.mark.parametrize("dynamic", [False, True])
def test_each_function_compiles_into_one_graph(dynamic):
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def image(x, weight, bias, groups):
        return dilated_conv2d(x * 2, weight, bias, dilation=2, padding="same", groups=groups).sin()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def line(x, weight):
        return dilated_conv1d(x * 2, weight, dilation=2, padding=(4, 0)).sin()

    for name in ("dense", "depthwise"):
        (x, weight, bias), (*_, groups) = inputs(name)
        for y in (x, x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()):
            expected = conv2d(y * 2, weight, bias, 1, "same", 2, groups).sin()
            found = image(y, weight, bias, groups)
            torch.testing.assert_close(found, expected)
            leaves = (y, weight, bias)
            grads = [torch.autograd.grad(t.sum(), leaves) for t in (found, expected)]
            for mine, theirs in zip(*grads, strict=True):
                torch.testing.assert_close(mine, theirs)
    x, weight = torch.randn(2, 3, 9), torch.randn(4, 3, 3)
    causal = pad(x * 2, (4, 0))
    expected = torch.nn.functional.conv1d(causal, weight, dilation=2).sin()
    torch.testing.assert_close(line(x, weight), expected)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_casts_to_the_type_in_force(kind):
    x, weight, bias = inputs("dense", torch.float32)[0]
    with torch.autocast("cpu", kind):
        output = dilated_conv2d(x, weight, bias, dilation=2, padding=2)
    assert output.dtype == kind
    narrow = (t.to(kind) for t in (x, weight, bias))
    assert torch.equal(output, dilated_conv2d(*narrow, dilation=2, padding=2))
    output.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_no_kernel_is_imported_for_cpu_tensors():
    script = (
        "import sys, torch; from pkg.algos.dilated_convolution import dilated_conv2d;"
        "x = torch.ones(1, 1, 3, 3, requires_grad=True); dilated_conv2d(x, x).sum().backward();"
        "assert not [m for m in sys.modules if m.startswith('pkg.cuda')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
