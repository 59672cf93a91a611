"""Dilated convolution against loops, against PyTorch's own, and against its own gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pkg.algos.dilated_convolution import (
    dilated_conv1d,
    dilated_conv2d,
    gathered_conv1d,
    gathered_conv2d,
    space_to_batch_conv2d,
)

FORMS_2D = (dilated_conv2d, gathered_conv2d)
FORMS_1D = (dilated_conv1d, gathered_conv1d)


def drawn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def by_loops(x, weight, bias, stride, padding, dilation, groups):
    """Every output pixel, every tap, in Python numbers; taps outside the image are skipped."""
    top, bottom, left, right = padding
    batch, _, height, width = x.shape
    outputs, per_group, k_h, k_w = weight.shape
    rows = len(range(0, height + top + bottom - (k_h - 1) * dilation[0], stride[0]))
    columns = len(range(0, width + left + right - (k_w - 1) * dilation[1], stride[1]))
    result = torch.zeros(batch, outputs, rows, columns, dtype=torch.float64)
    a, w = x.tolist(), weight.tolist()
    places = itertools.product(range(batch), range(outputs), range(rows), range(columns))
    for n, o, p, q in places:
        first = o // (outputs // groups) * per_group
        total = 0.0 if bias is None else float(bias[o])
        for c, i, j in itertools.product(range(per_group), range(k_h), range(k_w)):
            r = p * stride[0] + i * dilation[0] - top
            s = q * stride[1] + j * dilation[1] - left
            if 0 <= r < height and 0 <= s < width:
                total += a[n][first + c][r][s] * w[o][c][i][j]
        result[n, o, p, q] = total
    return result


# Height and width differ, and so do the two rates, strides and paddings.
LAYERS = [
    # channels, outputs, kernel, stride, padding, dilation, groups
    (3, 4, (3, 3), (1, 1), (0, 0), (1, 1), 1),
    (4, 6, (3, 2), (1, 2), (3, 1), (2, 3), 2),
    (4, 4, (3, 3), (1, 1), (2, 2), (2, 2), 4),
    (4, 4, (3, 3), (2, 1), (12, 3), (6, 3), 4),  # depthwise, padding past PyTorch's fast path
    (3, 3, (2, 3), (1, 1), (8, 9), (8, 9), 3),
    (2, 6, (3, 3), (1, 1), (9, 9), (3, 3), 2),  # three outputs per channel: not depthwise
    (5, 1, (1, 1), (3, 2), (0, 1), (7, 5), 1),
    (1, 2, (1, 4), (1, 1), (0, 5), (1, 2), 1),
]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("form", FORMS_2D)
def test_two_dimensions_equal_the_loops(form, layer):
    channels, outputs, kernel, stride, padding, dilation, groups = layer
    x = drawn(2, channels, 7, 9)
    weight, bias = drawn(outputs, channels // groups, *kernel, seed=1), drawn(outputs, seed=2)
    sides = (padding[0], padding[0], padding[1], padding[1])
    keywords = {"dilation": dilation, "stride": stride, "padding": padding, "groups": groups}
    for one in (bias, None):
        expected = by_loops(x, weight, one, stride, sides, dilation, groups)
        # float64: 40 products of size 1, each rounded to 1e-16
        torch.testing.assert_close(form(x, weight, one, **keywords), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", FORMS_1D)
@pytest.mark.parametrize("padding", [0, 4, (4, 0), (0, 3), (1, 6), "same"])
@pytest.mark.parametrize("groups", [1, 4])
def test_one_dimension_equals_the_loops_for_every_kind_of_padding(form, padding, groups):
    x, weight = drawn(2, 4, 11), drawn(4, 4 // groups, 4, seed=1)
    sides = {0: (0, 0), 4: (4, 4), "same": (4, 5)}.get(padding, padding)
    expected = by_loops(
        x[:, :, None], weight[:, :, None], None, (1, 1), (0, 0, *sides), (1, 3), groups
    )[:, :, 0]
    got = form(x, weight, dilation=3, padding=padding, groups=groups)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_layer_equals_pytorch(data):
    def pick(low, high):
        return data.draw(st.integers(low, high))

    groups = data.draw(st.sampled_from([1, 2, 4]))
    kernel, dilation = (pick(1, 4), pick(1, 4)), (pick(1, 5), pick(1, 5))
    stride, padding = (pick(1, 3), pick(1, 3)), (pick(0, 10), pick(0, 10))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [max(pick(1, 9), r - 2 * p) for r, p in zip(reach, padding, strict=True)]
    x = drawn(pick(0, 3), 4, *size, seed=pick(0, 99))
    weight, bias = drawn(4, 4 // groups, *kernel, seed=1), drawn(4, seed=2)
    keywords = {"dilation": dilation, "stride": stride, "padding": padding, "groups": groups}
    expected = F.conv2d(x, weight, bias, **keywords)
    for form in FORMS_2D:
        got = form(x, weight, bias, **keywords)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_same_padding_is_that_of_pytorch_also_where_it_is_odd():
    x, weight = drawn(2, 3, 8, 9), drawn(5, 3, 2, 4, seed=1)
    for dilation in ((1, 1), (3, 1), (5, 3)):
        expected = F.conv2d(x, weight, padding="same", dilation=dilation)
        for form in FORMS_2D:
            got = form(x, weight, padding="same", dilation=dilation)
            assert got.shape[2:] == x.shape[2:]
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", LAYERS)
def test_narrow_types_are_as_good_as_plain_pytorch(dtype, layer):
    channels, outputs, kernel, stride, padding, dilation, groups = layer
    x = drawn(2, channels, 7, 9).to(dtype)
    weight = drawn(outputs, channels // groups, *kernel, seed=1).to(dtype)
    keywords = {"dilation": dilation, "stride": stride, "padding": padding, "groups": groups}
    exact = F.conv2d(x.double(), weight.double(), **keywords)
    theirs = (F.conv2d(x, weight, **keywords).double() - exact).abs().max()
    for form in FORMS_2D:
        got = form(x, weight, **keywords)
        assert got.dtype == dtype
        error = (got.double() - exact).abs().max()
        # the rule of the project: twice plain PyTorch's error, plus one rounding
        assert error <= 2 * theirs + torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool])
def test_integers_are_summed_as_int64(dtype):
    x = (torch.arange(60) % 2 * 125).view(1, 2, 30).to(dtype)
    weight = torch.full((3, 2, 5), 120).to(dtype)
    expected = by_loops(
        x[:, :, None].long(), weight[:, :, None].long(), None, (1, 2), (0, 0, 4, 4), (1, 2), 1
    )[:, :, 0]
    for form in FORMS_1D:
        got = form(x, weight, dilation=2, stride=2, padding=4)
        assert got.dtype == torch.int64
        assert got.tolist() == expected.tolist()  # an int8 sum would have wrapped around


def test_complex_numbers_are_not_conjugated():
    x, weight = torch.complex(drawn(1, 2, 9), drawn(1, 2, 9, seed=3)), torch.complex(
        drawn(1, 2, 3, seed=4), drawn(1, 2, 3, seed=5)
    )  # fmt: skip
    got = dilated_conv1d(x, weight, dilation=3)
    parts = [
        F.conv1d(getattr(x, a), getattr(weight, b), dilation=3)
        for a, b in itertools.product(("real", "imag"), repeat=2)
    ]
    expected = torch.complex(parts[0] - parts[3], parts[1] + parts[2])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_strided_and_transposed_inputs_give_the_same():
    x, weight = drawn(2, 8, 10, 12), drawn(4, 4, 3, 3, seed=1)
    views = [
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.to(memory_format=torch.channels_last),
    ]
    views.append(torch.stack((x, -x), -1)[..., 0])
    expected = F.conv2d(x, weight, dilation=2, groups=2)
    for view in views:
        assert not view.is_contiguous()
        torch.testing.assert_close(
            dilated_conv2d(view, weight, dilation=2, groups=2), expected, rtol=0, atol=1e-12
        )
    wide = drawn(8, 1, 3, 3, seed=2)
    expected = F.conv2d(x, wide, dilation=9, padding=9, groups=8)
    for view in views:
        got = dilated_conv2d(view, wide, dilation=9, padding=9, groups=8)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_nan_reaches_only_the_outputs_whose_taps_see_it():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = torch.nan
    for form in FORMS_2D:
        seen = form(x, torch.ones(1, 1, 3, 3), dilation=3, padding=3).isnan()[0, 0]
        assert sorted(map(tuple, seen.nonzero().tolist())) == [
            (i, j) for i in (1, 4, 7) for j in (1, 4, 7)
        ]


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("layer", LAYERS)
def test_first_and_second_gradients(layer):
    channels, outputs, kernel, stride, padding, dilation, groups = layer
    tensors = (
        drawn(2, channels, 5, 6), drawn(outputs, channels // groups, *kernel, seed=1),
        drawn(outputs, seed=2),
    )  # fmt: skip
    leaves = [t.requires_grad_() for t in tensors]

    def convolve(x, weight, bias):
        return dilated_conv2d(
            x, weight, bias, dilation=dilation, stride=stride, padding=padding, groups=groups
        )

    assert torch.autograd.gradcheck(convolve, leaves)
    assert torch.autograd.gradgradcheck(convolve, leaves)


@pytest.mark.parametrize("padding", ["same", (4, 0), (0, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_with_uneven_padding(padding, groups):
    leaves = [
        drawn(2, 2, 9).requires_grad_(),
        drawn(2, 2 // groups, 4, seed=1).requires_grad_(),
    ]

    def convolve(x, weight):
        return dilated_conv1d(x, weight, dilation=3, padding=padding, groups=groups)

    assert torch.autograd.gradcheck(convolve, leaves)
    assert torch.autograd.gradgradcheck(convolve, leaves)


def test_the_gradient_by_the_input_is_the_transposed_convolution():
    x, weight = drawn(2, 4, 9, 8).requires_grad_(), drawn(6, 2, 3, 3, seed=1)
    output = dilated_conv2d(x, weight, dilation=2, stride=2, padding=1, groups=2)
    upstream = drawn(*output.shape, seed=2)
    (got,) = torch.autograd.grad(output, x, upstream)
    expected = F.conv_transpose2d(
        upstream, weight, stride=2, padding=1, dilation=2, groups=2, output_padding=(0, 1)
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- space to batch


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 11), st.integers(1, 11),
    st.sampled_from([0, 1, 5, (2, 7), "same"]), st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_space_to_batch_is_the_same_function(r_h, r_w, height, width, padding, groups):
    pads = {"same": (r_h, r_w)}.get(padding, padding) if isinstance(padding, str) else padding
    pair = pads if isinstance(pads, tuple) else (pads, pads)
    height = max(height, 2 * r_h + 1 - 2 * pair[0])
    width = max(width, 2 * r_w + 1 - 2 * pair[1])
    x, weight, bias = drawn(2, 4, height, width), drawn(4, 4 // groups, 3, 3, seed=1), drawn(4)
    expected = F.conv2d(x, weight, bias, padding=pair, dilation=(r_h, r_w), groups=groups)
    got = space_to_batch_conv2d(
        x, weight, bias, dilation=(r_h, r_w), padding=padding, groups=groups
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- the door

X, W = torch.zeros(2, 4, 9, 9), torch.zeros(6, 4, 3, 3)


@pytest.mark.parametrize("form", [*FORMS_2D, space_to_batch_conv2d])
@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "says"),
    [
        ((X.numpy(), W), {}, TypeError, "x must be a torch.Tensor, got ndarray"),
        ((X[0], W), {}, ValueError, r"x must have shape \(batch, in_channels, height, width\)"),
        ((X, W[0]), {}, ValueError, r"weight must have shape \(out_channels, in_channels / groups"),
        ((X, W), {"groups": 3}, ValueError, "groups must divide in_channels 4 and out_channels 6"),
        ((X, W), {"groups": 2}, ValueError, "weight must take in_channels / groups = 2 channels"),
        ((X, W, torch.zeros(5)), {}, ValueError, r"bias must have shape \(6,\), got \(5,\)"),
        ((X, W, 0.0), {}, TypeError, "bias must be a torch.Tensor or None, got float"),
        ((X, W.double()), {}, TypeError, "weight must have x's dtype torch.float32"),
        ((X, W), {"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ((X, W), {"dilation": 1.5}, TypeError, "dilation must be an int or 2 ints"),
        ((X, W), {"dilation": (1, 2, 3)}, TypeError, "dilation must be an int or 2 ints"),
        ((X, W), {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ((X, W), {"padding": "valid"}, ValueError, 'padding must be an int, a pair or "same"'),
        ((X, W), {"dilation": 5}, ValueError, "size 9 with padding .0, 0. is shorter than the kernel"),
        ((X, W), {"groups": True}, TypeError, "groups must be an int, got True"),
        ((X[:, :0], W[:, :0]), {}, ValueError, "at least one channel and one tap"),
        ((X, W[:, :, :0]), {}, ValueError, "at least one channel and one tap"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(form, arguments, keywords, error, says):
    with pytest.raises(error, match=says):
        form(*arguments, **keywords)


@pytest.mark.parametrize("form", FORMS_2D)
def test_same_padding_needs_stride_one(form):
    with pytest.raises(ValueError, match=r'padding "same" needs stride 1, got stride \(2, 1\)'):
        form(X, W, padding="same", stride=(2, 1))


@pytest.mark.parametrize("form", FORMS_1D)
def test_one_dimension_names_its_own_shapes(form):
    with pytest.raises(ValueError, match=r"x must have shape \(batch, in_channels, length\)"):
        form(X, W)
    with pytest.raises(ValueError, match=r"weight must have shape \(out_channels, .* groups, k\)"):
        form(X[:, :, 0], W)
    with pytest.raises(TypeError, match="padding must be an int or 2 ints"):
        form(X[:, :, 0], W[:, :, 0], padding=(1, 2, 3))
