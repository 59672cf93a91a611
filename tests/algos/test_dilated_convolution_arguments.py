"""Every argument may be its least value and no less; and what else is refused at the door."""

from __future__ import annotations

import pytest
import torch

from pkg.algos.dilated_convolution import (
    ASPP,
    CausalDilatedStack,
    HybridDilatedStack,
    coverage,
    dilated_conv1d,
    dilated_conv2d,
    effective_kernel_size,
    field_moments,
    gathered_conv1d,
    gathered_conv2d,
    has_gridding,
    hdc_max_gap,
    hole_free_rates,
    input_sizes,
    output_size,
    receptive_field,
    space_to_batch_conv2d,
    useful_taps,
)

LINE, IMAGE = torch.ones(1, 1, 5), torch.ones(1, 1, 5, 4)
TAP, PIXEL = torch.ones(1, 1, 1), torch.ones(1, 1, 1, 1)

# What is called with the value, its name in the message, and the least value that it may have.
LEAST = [
    (lambda v: effective_kernel_size(v, 3), "kernel_size", 1),
    (lambda v: effective_kernel_size(3, v), "dilation", 1),
    (lambda v: output_size(v, 3, padding=3), "size", 0),
    (lambda v: output_size(9, v), "kernel_size", 1),
    (lambda v: output_size(9, 3, dilation=v), "dilation", 1),
    (lambda v: output_size(9, 3, stride=v), "stride", 1),
    (lambda v: output_size(9, 3, padding=v), "padding", 0),
    (lambda v: output_size(9, 3, padding=(v, 5)), "padding", 0),
    (lambda v: output_size(9, 3, padding=(5, v)), "padding", 0),
    (lambda v: input_sizes(v, 3), "outputs", 1),
    (lambda v: input_sizes(9, v), "kernel_size", 1),
    (lambda v: input_sizes(9, 3, dilation=v), "dilation", 1),
    (lambda v: input_sizes(9, 3, stride=v), "stride", 1),
    (lambda v: input_sizes(9, 3, padding=v), "padding", 0),
    (lambda v: receptive_field([(3, 2, 2), (v,)]), r"kernel_size of layers\[1\]", 1),
    (lambda v: receptive_field([(3, v)]), r"dilation of layers\[0\]", 1),
    (lambda v: receptive_field([(3, 2, v)]), r"stride of layers\[0\]", 1),
    (lambda v: coverage(v, [1, 2]), "kernel_size", 1),
    (lambda v: coverage((2, v), [1, 2]), "kernel_size", 1),
    (lambda v: coverage(3, [1, v]), r"rates\[1\]", 1),
    (lambda v: coverage((3, 3), [(1, v)]), r"rates\[0\]", 1),
    (lambda v: coverage(3, [1, 1], strides=[v, 1]), r"strides\[0\]", 1),
    (lambda v: has_gridding(v, [1, 2]), "kernel_size", 1),
    (lambda v: has_gridding(3, [1, 1], strides=[1, v]), r"strides\[1\]", 1),
    (lambda v: field_moments(v, [1, 2]), "kernel_size", 1),
    (lambda v: field_moments(3, [v, 2]), r"rates\[0\]", 1),
    (lambda v: useful_taps(v, 3, 2), "size", 1),
    (lambda v: useful_taps(5, v, 2), "kernel_size", 1),
    (lambda v: useful_taps(5, 3, v), "dilation", 1),
    (lambda v: hdc_max_gap([v, 2]), r"rates\[0\]", 1),
    (lambda v: hdc_max_gap([2, v]), r"rates\[1\]", 1),
    (lambda v: hole_free_rates(v, 2, 2), "kernel_size", 2),
    (lambda v: hole_free_rates(2, v, 2), "depth", 1),
    (lambda v: hole_free_rates(2, 2, v), "max_rate", 1),
    (lambda v: ASPP(v, 4), "in_channels", 1),
    (lambda v: ASPP(4, v), "out_channels", 1),
    (lambda v: ASPP(4, 4, (2, v)), r"rates\[1\]", 1),
    (lambda v: HybridDilatedStack(v, 4), "in_channels", 1),
    (lambda v: HybridDilatedStack(3, v), "channels", 1),
    (lambda v: HybridDilatedStack(3, 4, (1, 1), kernel_size=v), "kernel_size", 1),
    (lambda v: CausalDilatedStack(v, 4), "in_channels", 1),
    (lambda v: CausalDilatedStack(3, v), "out_channels", 1),
    (lambda v: CausalDilatedStack(3, 4, channels=v), "channels", 1),
    (lambda v: CausalDilatedStack(3, 4, kernel_size=v), "kernel_size", 2),
    (lambda v: CausalDilatedStack(3, 4, rates=(2, v)), r"rates\[1\]", 1),
    (lambda v: CausalDilatedStack(3, 4, channels=1, rates=(1,)).start(v), "batch", 1),
]
for form in (dilated_conv1d, gathered_conv1d):
    LEAST += [
        (lambda v, form=form: form(LINE, TAP, dilation=v), "dilation", 1),
        (lambda v, form=form: form(LINE, TAP, stride=v), "stride", 1),
        (lambda v, form=form: form(LINE, TAP, padding=v), "padding", 0),
        (lambda v, form=form: form(LINE, TAP, padding=(2, v)), "padding", 0),
        (lambda v, form=form: form(LINE, TAP, groups=v), "groups", 1),
    ]
for form in (dilated_conv2d, gathered_conv2d, space_to_batch_conv2d):
    LEAST += [
        (lambda v, form=form: form(IMAGE, PIXEL, dilation=(2, v)), "dilation", 1),
        (lambda v, form=form: form(IMAGE, PIXEL, padding=(2, v)), "padding", 0),
        (lambda v, form=form: form(IMAGE, PIXEL, groups=v), "groups", 1),
    ]


@pytest.mark.parametrize(("call", "name", "least"), LEAST)
def test_an_argument_may_be_its_least_value_and_no_less(call, name, least):
    call(least)
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        call(least - 1)
    for wrong in (float(least), None, True):
        with pytest.raises(TypeError, match=name.split(" ")[0].split(chr(92))[0]):
            call(wrong)


@pytest.mark.parametrize("layer", [(), (3, 1, 1, 1), 3, None])
def test_a_layer_has_one_to_three_numbers(layer):
    with pytest.raises(TypeError, match=r"layers\[0\] must be \(kernel_size, dilation, stride\)"):
        receptive_field([layer])
    assert [receptive_field([some]) for some in ((3,), (3, 2), [3, 2, 5])] == [3, 5, 5]
    assert receptive_field([]) == 1


def test_what_is_left_out_is_an_ordinary_convolution():
    x = torch.arange(40.0).view(1, 2, 4, 5)
    weight = torch.arange(24.0).view(2, 2, 2, 3)
    expected = torch.nn.functional.conv2d(x, weight)
    for form in (dilated_conv2d, gathered_conv2d, space_to_batch_conv2d):
        assert torch.equal(form(x, weight), expected)
    line, kernel = x.flatten(2), weight.flatten(2)
    for form in (dilated_conv1d, gathered_conv1d):
        assert torch.equal(form(line, kernel), torch.nn.functional.conv1d(line, kernel))
    assert output_size(9, 3) == 7
    assert list(input_sizes(7, 3)) == [9]


def test_other_devices_and_types_are_refused():
    x, weight, bias = torch.ones(1, 4, 5), torch.ones(2, 4, 3), torch.ones(2)
    with pytest.raises(ValueError, match="weight must be on x's device cpu, got meta"):
        dilated_conv1d(x, weight.to("meta"))
    with pytest.raises(ValueError, match="bias must be on x's device cpu, got meta"):
        dilated_conv1d(x, weight, bias.to("meta"))
    with pytest.raises(TypeError, match="bias must have x's dtype"):
        dilated_conv1d(x, weight, bias.double())
    with torch.autocast("cpu", torch.bfloat16):
        # Autocast casts floating types to each other, and nothing else.
        assert dilated_conv1d(x, weight.bfloat16(), bias).dtype == torch.bfloat16
        for wrong in (weight.long(), weight.bool()):
            with pytest.raises(TypeError, match="weight must have x's dtype"):
                dilated_conv1d(x, wrong)
        with pytest.raises(TypeError, match="weight must have x's dtype"):
            dilated_conv1d(x.long(), weight)


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_groups_must_divide_both_kinds_of_channels(groups):
    for channels, outputs in ((6, 4), (4, 6)):
        x, weight = torch.ones(1, channels, 5), torch.ones(outputs, channels // groups or 1, 1)
        if channels % groups == outputs % groups == 0:
            assert dilated_conv1d(x, weight, groups=groups).shape == (1, outputs, 5)
            continue
        with pytest.raises(ValueError, match="groups must divide in_channels"):
            dilated_conv1d(x, weight, groups=groups)


def test_a_kernel_that_just_fits_and_one_that_does_not():
    for size, taps, rate in ((5, 3, 2), (7, 3, 3), (1, 1, 9)):
        assert output_size(size, taps, dilation=rate) == 1
        assert (
            dilated_conv1d(torch.ones(1, 1, size), torch.ones(1, 1, taps), dilation=rate).numel()
            == 1
        )
        if size > 1:
            with pytest.raises(ValueError, match="is shorter than the kernel"):
                dilated_conv1d(torch.ones(1, 1, size - 1), torch.ones(1, 1, taps), dilation=rate)


def test_counts_of_63_bits_are_given_and_no_larger_ones():
    largest = int(coverage(2, [1] * 66).max())
    assert 2**62 < largest < 2**63
    with pytest.raises(ValueError, match="63 bits"):
        coverage(2, [1] * 67)
    with pytest.raises(ValueError, match="63 bits"):
        coverage((2, 2), [1] * 35)  # each axis alone would do
    assert int(coverage((2, 2), [1] * 34).max()) > 2**62


def test_lists_are_lists():
    for call in (
        lambda rates: coverage(3, rates),
        lambda rates: has_gridding(3, rates),
        lambda rates: field_moments(3, rates),
        hdc_max_gap,
    ):
        for wrong in ([], (), 3, {1, 2}, None):
            with pytest.raises(TypeError, match="rates must be a list"):
                call(wrong)
    with pytest.raises(TypeError, match="padding must be an int or a pair"):
        output_size(5, 3, padding=(1, 2, 3))


def test_networks_name_the_shapes_that_they_take():
    stack, aspp = CausalDilatedStack(3, 4), ASPP(3, 4)
    for x in (torch.ones(2, 3), torch.ones(2, 2, 9), torch.ones(2, 3, 9, 1)):
        with pytest.raises(ValueError, match=r"x must have shape \(batch, 3, time\)"):
            stack(x)
    for x in (torch.ones(2, 3, 1), torch.ones(2, 2), torch.ones(3)):
        with pytest.raises(ValueError, match=r"x must have shape \(batch, 3\)"):
            stack.step(x, stack.start(2))
    for x in (torch.ones(3, 9, 9), torch.ones(1, 2, 9, 9)):
        with pytest.raises(ValueError, match=r"x must have shape \(batch, 3, height, width\)"):
            aspp(x)


def test_a_step_leaves_no_gradient_behind():
    stack = CausalDilatedStack(3, 4, channels=5)
    state = stack.start(2)
    stack.step(torch.ones(2, 3), state)
    assert state.step == 1
    assert not any(past.requires_grad for past in state.past)
    assert [past.shape for past in state.past] == [(2, 5, rate) for rate in (1, 2, 4, 8)]
    assert all(past[:, :, 0].any() for past in state.past)


def test_defaults_are_those_of_the_papers():
    assert ASPP(2, 3).rates == (6, 12, 18)
    assert HybridDilatedStack(3, 4).rates == (1, 2, 5)
    assert HybridDilatedStack(3, 4).kernel_size == 3
    stack = CausalDilatedStack(3, 4)
    assert (stack.rates, stack.kernel_size, stack.channels) == ((1, 2, 4, 8), 2, 32)
