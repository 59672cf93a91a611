"""Sizes, receptive fields, coverage and the rule for rates, against brute force over sets."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pkg.algos.dilated_convolution import (
    coverage,
    effective_kernel_size,
    field_moments,
    has_gridding,
    hdc_max_gap,
    hole_free_rates,
    input_sizes,
    output_size,
    receptive_field,
    useful_taps,
)

small = st.integers(1, 6)


def paths(kernel, rates, strides=None):
    """Count the sums of one tap per layer, by going through all of them."""
    jumps = [1, *itertools.accumulate(strides or [1] * len(rates), lambda a, b: a * b)]
    steps = [rate * jump for rate, jump in zip(rates, jumps, strict=False)]
    choices = itertools.product(range(kernel), repeat=len(rates))
    return Counter(sum(a * b for a, b in zip(taps, steps, strict=True)) for taps in choices)


# ---------------------------------------------------------------- sizes


@given(small, small)
def test_the_effective_kernel_is_the_span_of_its_taps(kernel, dilation):
    taps = [dilation * k for k in range(kernel)]
    assert effective_kernel_size(kernel, dilation) == max(taps) - min(taps) + 1


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40), small, small, small, st.integers(0, 6), st.integers(0, 6))
def test_output_size_counts_the_places_where_the_kernel_fits(size, k, d, s, before, after):
    padded = size + before + after
    places = [i for i in range(0, padded, s) if i + d * (k - 1) < padded]
    if not places:
        with pytest.raises(ValueError, match="is shorter than the kernel"):
            output_size(size, k, dilation=d, stride=s, padding=(before, after))
        return
    got = output_size(size, k, dilation=d, stride=s, padding=(before, after))
    assert got == len(places)
    x = torch.zeros(1, 1, padded)
    assert got == F.conv1d(x, torch.zeros(1, 1, k), dilation=d, stride=s).shape[2]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), small, small, small, st.integers(0, 6), st.integers(0, 6))
def test_input_sizes_are_all_that_give_the_output(outputs, k, d, s, before, after):
    found = []
    for size in range(120):
        try:
            if output_size(size, k, dilation=d, stride=s, padding=(before, after)) == outputs:
                found.append(size)
        except ValueError:
            continue
    assert found == list(input_sizes(outputs, k, dilation=d, stride=s, padding=(before, after)))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)), max_size=4))
def test_receptive_field_is_the_span_of_what_reaches_the_output(layers):
    reached, jump = {0}, 1
    for kernel, dilation, stride in layers:
        reached = {a + jump * dilation * k for a in reached for k in range(kernel)}
        jump *= stride
    assert receptive_field(layers) == max(reached) - min(reached) + 1


def test_receptive_fields_of_the_literature():
    assert receptive_field([(3,)] * 3) == 7  # VGG: three 3 x 3 layers see 7 x 7
    context = [1, 1, 2, 4, 8, 16, 1, 1]  # Yu and Koltun, table 1 (its last layer is 1 x 1)
    fields = [receptive_field([(3, r) for r in context[:n]]) for n in range(1, 9)]
    assert fields == [3, 5, 9, 17, 33, 65, 67, 69]
    assert receptive_field([(3, r) for r in context[:7]] + [(1, 1)]) == 67
    for depth in range(1, 12):
        doubling = [(3, 2**i) for i in range(depth)]
        assert receptive_field(doubling) == 2 ** (depth + 1) - 1
        assert receptive_field([(2, 2**i) for i in range(depth)]) == 2**depth


# ---------------------------------------------------------------- coverage


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 5), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_coverage_counts_the_paths(data, kernel, rates):
    strides = data.draw(st.lists(st.integers(1, 3), min_size=len(rates), max_size=len(rates)))
    for given_strides in (None, strides):
        expected = paths(kernel, rates, given_strides)
        counts = coverage(kernel, rates, strides=given_strides).tolist()
        assert {s: c for s, c in enumerate(counts) if c} == dict(expected)
        assert has_gridding(kernel, rates, strides=given_strides) == (0 in counts)
        jumps = given_strides or [1] * len(rates)
        layers = [(kernel, r, s) for r, s in zip(rates, jumps, strict=True)]
        assert len(counts) == receptive_field(layers)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
)
def test_coverage_of_an_image_counts_the_paths_of_both_axes(kernel, rates):
    expected = Counter()
    taps = list(itertools.product(range(kernel[0]), range(kernel[1])))
    for chosen in itertools.product(taps, repeat=len(rates)):
        pairs = list(zip(chosen, rates, strict=True))
        expected[sum(t[0] * r[0] for t, r in pairs), sum(t[1] * r[1] for t, r in pairs)] += 1
    counts = coverage(kernel, rates)
    found = {tuple(place): int(counts[tuple(place)]) for place in counts.nonzero().tolist()}
    assert found == dict(expected)
    assert has_gridding(kernel, rates) == bool((counts == 0).any())


@pytest.mark.parametrize("rates", [[1, 2, 5], [2, 2, 2], [1, 3, 9], [4, 3]])
def test_coverage_is_the_gradient_of_a_stack_of_ones(rates):
    x = torch.zeros(1, 1, 61, 61, dtype=torch.float64, requires_grad=True)
    y = x
    for rate in rates:
        y = F.conv2d(y, torch.ones(1, 1, 3, 3, dtype=torch.float64), padding=rate, dilation=rate)
    (seen,) = torch.autograd.grad(y[0, 0, 30, 30], x)
    reach = sum(rates)
    window = seen[0, 0, 30 - reach : 31 + reach, 30 - reach : 31 + reach]
    assert window.tolist() == coverage((3, 3), rates).tolist()


def test_large_counts_are_exact_or_refused():
    assert int(coverage(3, [1] * 39).max()) < 3**39
    assert sum(coverage(3, [1] * 39).tolist()) == 3**39
    with pytest.raises(ValueError, match="63 bits"):
        coverage(3, [27] * 60)
    assert not has_gridding(3, [1] * 60)  # the yes or no has no limit


def test_strides_can_open_and_close_holes():
    assert not has_gridding(2, [1, 1], strides=[2, 1])
    assert has_gridding(2, [1, 1], strides=[3, 1])
    assert has_gridding(3, [1, 2], strides=[2, 1])  # without the stride there is none
    assert not has_gridding(3, [1, 2])


# ---------------------------------------------------------------- moments


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_moments_are_those_of_the_counted_paths(kernel, rates):
    strides = [2] + [1] * (len(rates) - 1)
    for given_strides in (None, strides):
        counted = paths(kernel, rates, given_strides)
        offsets = np.array([s for s, c in counted.items() for _ in range(c)])
        mean, variance = field_moments(kernel, rates, strides=given_strides)
        # sums of at most 625 small integers in float64
        assert math.isclose(mean, offsets.mean(), rel_tol=1e-12, abs_tol=1e-12)
        assert math.isclose(variance, offsets.var(), rel_tol=1e-12, abs_tol=1e-12)


# ---------------------------------------------------------------- useful taps


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 45))
def test_useful_taps_counts_ones_under_zero_padding(size, kernel, dilation):
    taps = F.conv1d(
        torch.ones(1, 1, size), torch.ones(1, 1, kernel), padding="same", dilation=dilation
    )
    assert useful_taps(size, kernel, dilation).tolist() == taps[0, 0].int().tolist()


def test_aspp_on_a_map_of_65_pixels():
    for rate in (6, 12, 18, 24):
        both = (useful_taps(65, 3, rate) == 3).sum()
        assert int(both) ** 2 == (65 - 2 * rate) ** 2


# ---------------------------------------------------------------- HDC's rule


def rises(rates):
    return all(a <= b for a, b in itertools.pairwise(rates))


def stacks(kernel, lengths, largest):
    """Every list with r_1 = 1: (rates, the rule's verdict, the fact by sets)."""
    for depth in lengths:
        for rest in itertools.product(range(1, largest + 1), repeat=depth - 1):
            rates = (1, *rest)
            reached = set(paths(kernel, rates))
            yield rates, hdc_max_gap(rates) <= kernel, len(reached) == max(reached) + 1


def test_for_three_taps_and_rising_rates_the_rule_is_right():
    rising = [case for case in stacks(3, (2, 3, 4), 12) if rises(case[0])]
    assert len(rising) == 454
    assert all(rule == fact for _, rule, fact in rising)


def test_in_any_order_the_rule_is_enough_and_asks_too_much():
    everything = [
        case for depth, top in ((2, 10), (3, 10), (4, 6)) for case in stacks(3, (depth,), top)
    ]
    assert len(everything) == 326
    assert all(fact for _, rule, fact in everything if rule)
    failing = [rates for rates, rule, fact in everything if fact and not rule]
    assert len(failing) == 121
    assert min(failing, key=lambda rates: (len(rates), max(rates), rates)) == (1, 3, 1)


def test_for_two_taps_the_rule_is_not_enough():
    rising = [case for case in stacks(2, (2, 3, 4), 12) if rises(case[0])]
    lax = [rates for rates, rule, fact in rising if rule and not fact]
    assert len(lax) == 49
    assert lax[0] == (1, 1, 4)


def test_for_five_taps_the_rule_asks_too_much():
    rising = [case for case in stacks(5, (2, 3, 4), 12) if rises(case[0])]
    wrong = [rates for rates, rule, fact in rising if rule != fact]
    assert len(rising) == 454
    assert (1, 1, 8) in wrong
    assert all(fact for _, rule, fact in rising if rule)
    assert len(wrong) == 26


def test_without_rate_one_the_rule_is_not_enough():
    for rates, missing in (((2, 3), 4), ((2, 2, 3), 6)):
        assert hdc_max_gap(rates) <= 3
        assert math.gcd(*rates) == 1
        middle = sum(rates)
        reached = {s - middle for s in paths(3, rates)}
        assert missing not in reached
        assert -missing not in reached


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=6))
def test_the_recursion_is_the_published_one(rates):
    def m(i):  # M_i, counting from 1
        r = rates[i - 1]
        return r if i == len(rates) else max(m(i + 1) - 2 * r, m(i + 1) - 2 * (m(i + 1) - r), r)

    assert hdc_max_gap(rates) == m(2)


def test_the_papers_examples():
    assert (hdc_max_gap([1, 2, 5]), hdc_max_gap([1, 2, 9])) == (2, 5)


@pytest.mark.parametrize(
    ("kernel", "depth", "largest"), [(2, 4, 9), (3, 3, 10), (4, 3, 18), (5, 2, 7)]
)
def test_hole_free_rates_are_all_of_them(kernel, depth, largest):
    rising = itertools.combinations_with_replacement(range(1, largest + 1), depth)
    expected = set()
    for rates in rising:
        reached = set(paths(kernel, rates))
        if len(reached) == max(reached) + 1:
            expected.add(rates)
    found = hole_free_rates(kernel, depth, largest)
    assert len(found) == len(expected)
    assert set(found) == expected
    spans = [sum(rates) for rates in found]
    assert spans == sorted(spans, reverse=True)


def test_powers_of_the_kernel_cover_most_and_each_input_once():
    for kernel, depth in ((2, 5), (3, 4), (5, 3)):
        widest = hole_free_rates(kernel, depth, kernel**depth)[0]
        assert widest == tuple(kernel**i for i in range(depth))
        assert coverage(kernel, widest).tolist() == [1] * kernel**depth


# ---------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: effective_kernel_size(0, 1), ValueError, "kernel_size must be at least 1, got 0"),
        (lambda: effective_kernel_size(3, 1.0), TypeError, "dilation must be an int, got 1.0"),
        (lambda: output_size(5, 3, dilation=3), ValueError, "3 taps at dilation 3 reach over 7"),
        (lambda: output_size(-1, 3), ValueError, "size must be at least 0"),
        (lambda: output_size(5, 3, padding=(1,)), TypeError, "padding must be an int or a pair"),
        (lambda: output_size(5, 3, stride=0), ValueError, "stride must be at least 1"),
        (lambda: input_sizes(0, 3), ValueError, "outputs must be at least 1"),
        (lambda: receptive_field([(3, 0)]), ValueError, r"dilation of layers\[0\] must be at least"),
        (lambda: receptive_field([3]), TypeError, r"layers\[0\] must be \(kernel_size, dilation"),
        (lambda: coverage(3, []), TypeError, "rates must be a list with one entry per layer"),
        (lambda: coverage(3, [1, 0]), ValueError, r"rates\[1\] must be at least 1"),
        (lambda: coverage((3, 3, 3), [1]), TypeError, "kernel_size must be an int or 2 ints"),
        (lambda: coverage(3, [(1, 2)]), TypeError, r"rates\[0\] must be an int or 1 ints"),
        (lambda: has_gridding(3, [1, 2], strides=[1]), ValueError, "strides must have one stride"),
        (lambda: hdc_max_gap([3]), TypeError, "rates must be a list of at least two ints"),
        (lambda: hole_free_rates(1, 2, 3), ValueError, "kernel_size must be at least 2"),
        (lambda: useful_taps(0, 3, 1), ValueError, "size must be at least 1"),
        (lambda: field_moments(0, [1]), ValueError, "kernel_size must be at least 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()
