"""The exercises of the chapter "Dilated convolution"."""

from __future__ import annotations

import itertools
from math import gcd
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from pkg.algos import dilated_convolution as dilated
from pkg.exercises import Exercise, ExerciseSet, Rejected, agrees, equivalent

exercises = ExerciseSet("dilated_convolution")

k, r, m, K, N, p = sp.symbols("k r m K N p", positive=True)


# ---------------------------------------------------------------- 1 padding that keeps the size

exercises.add(
    Exercise(
        "same_padding", "Padding on each side that keeps the size",
        lambda answer: equivalent(r * (k - 1) / 2, answer, [k, r]),
        solution=r * (k - 1) / 2,
        wrong=(
            ((k - 1) / 2, "right for rate 1; the rate is forgotten"),
            (r, "right for three taps only"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 2 WaveNet

exercises.add(
    Exercise(
        "wavenet_field", "The receptive field of a repeated block of doubling rates",
        lambda answer: equivalent(1 + p * (2**m - 1), answer, [p, m]),
        solution=1 + p * (2**m - 1),
        wrong=(
            (p * 2**m, "the fields of the blocks added; their ends overlap by one input"),
            (2 ** (p * m), "as if the rates went on doubling from block to block"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 3 a list that breaks the rule


def _rates(answer: Any, depth: int | None = None) -> list[int]:
    try:
        rates = [int(rate) for rate in answer]
    except (TypeError, ValueError) as error:
        raise Rejected("a list of rates is asked for, such as [1, 2, 5]") from error
    if depth is not None and len(rates) != depth:
        raise Rejected(f"{depth} layers are asked for, not {len(rates)}")
    if len(rates) < 2 or min(rates) < 1:
        raise Rejected("at least two rates are needed, each at least 1")
    return rates


def _check_lax(answer: Any) -> None:
    rates = _rates(answer)
    if gcd(*rates) > 1:
        raise Rejected(f"all rates are divisible by {gcd(*rates)}: the first rule forbids that")
    if dilated.hdc_max_gap(rates) > 3:
        raise Rejected(f"its M2 is {dilated.hdc_max_gap(rates)}, which the rule forbids")
    if not dilated.has_gridding(3, rates):
        raise Rejected("it has no hole")


exercises.add(
    Exercise(
        "rule_too_lax", "Rates that keep the rule and leave a hole", _check_lax,
        solution=[3, 2, 2],
        wrong=(
            ([1, 2, 9], "it has holes, but the rule sees them"),
            ([2, 4, 2], "a common factor, which the first rule forbids"),
            ([1, 2, 3], "the rule is right about lists that begin with 1 and do not fall"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 4 the widest list


def _check_widest(answer: Any) -> None:
    rates = _rates(answer, 3)
    if dilated.has_gridding(5, rates):
        raise Rejected("five taps at these rates leave a hole")
    field = dilated.receptive_field([(5, rate) for rate in rates])
    if field < 125:
        raise Rejected(f"no hole, but the field is {field}; it can be wider")


exercises.add(
    Exercise(
        "widest_of_five", "Three layers of five taps with the widest field without holes",
        _check_widest,
        solution=[1, 5, 25],
        wrong=(
            ([1, 3, 9], "the answer for three taps"),
            ([1, 5, 26], "one too far: an input between two copies is missed"),
            ([5, 25, 125], "the powers begin too late: everything is divisible by 5"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 5 the certificate in code


def leaves_hole(kernel_size: int, rates: list[int]) -> bool:
    """Tell whether a sum of one tap per layer misses an offset of the field."""
    reached = {0}
    for rate in rates:
        reached = {offset + rate * tap for offset in reached for tap in range(kernel_size)}
    return len(reached) <= max(reached)


def common_factor(kernel_size: int, rates: list[int]) -> bool:
    """Look only at the first rule."""
    return gcd(*rates) > 1


def published_rule(kernel_size: int, rates: list[int]) -> bool:
    """Trust the second one."""
    return dilated.hdc_max_gap(rates) > kernel_size


_LISTS = [
    (taps, list(rates))
    for taps in (2, 3, 5)
    for depth in (2, 3)
    for rates in itertools.product(range(1, 6), repeat=depth)
]
exercises.add(
    Exercise(
        "leaves_hole", "Does a stack leave a hole? In code, without `pkg`",
        lambda answer: agrees(answer, _LISTS, dilated.has_gridding),
        solution=leaves_hole,
        wrong=(
            (common_factor, "1, 2, 9 has no common factor and leaves holes"),
            (published_rule, "right for three taps, a first rate of 1 and rates that do not fall"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 6 dilated convolution in code


def convolve(x: Tensor, w: Tensor, rate: int) -> Tensor:
    """Return the convolution of two sequences without padding: one shifted copy per tap."""
    outputs = len(x) - rate * (len(w) - 1)
    return sum(w[tap] * x[tap * rate : tap * rate + outputs] for tap in range(len(w)))  # type: ignore[return-value]


def turned_round(x: Tensor, w: Tensor, rate: int) -> Tensor:
    """Convolve as in signal processing."""
    return convolve(x, w.flip(0), rate)


def every_rth(x: Tensor, w: Tensor, rate: int) -> Tensor:
    """Take every r-th sample of the input, and convolve as usual."""
    return convolve(x[::rate], w, 1)


_SEQUENCES = [
    (torch.arange(9.0), torch.tensor([1.0, 10.0, 100.0]), 2),
    (torch.arange(5.0), torch.tensor([2.0, -1.0]), 1),
    (torch.arange(13.0) ** 2, torch.tensor([1.0, -2.0, 3.0]), 5),
]
exercises.add(
    Exercise(
        "convolve", "Dilated convolution of a sequence, tap by tap",
        lambda answer: agrees(
            answer, _SEQUENCES,
            lambda x, w, rate: dilated.dilated_conv1d(
                x[None, None], w[None, None], dilation=rate
            )[0, 0],
        ),
        solution=convolve,
        wrong=(
            (turned_round, "in deep learning the kernel is not turned round"),
            (every_rth, "that is one of the r parts; the others are lost"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 7 useful taps of ASPP

exercises.add(
    Exercise(
        "useful_share", "The share of useful taps of a 3 x 3 kernel on a square map",
        lambda answer: equivalent((1 - 2 * r / (3 * N)) ** 2, answer, [r, N]),
        solution=(1 - 2 * r / (3 * N)) ** 2,
        wrong=(
            ((1 - 2 * r / N) ** 2, "the share of the places where all nine are useful"),
            (1 - 2 * r / (3 * N), "one axis; the map has two"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 8 the variance

exercises.add(
    Exercise(
        "field_variance", "The variance of the field of equal layers",
        lambda answer: equivalent(m * r**2 * (K**2 - 1) / 12, answer, [m, K, r]),
        solution=m * r**2 * (K**2 - 1) / 12,
        wrong=(
            (m**2 * r**2 * (K**2 - 1) / 12, "standard deviations added; it is variances that add"),
            (m * r * (K**2 - 1) / 12, "a factor of r on positions is r squared on the variance"),
        ),
    )
)  # fmt: skip
