"""The exercises of the chapter "FlashAttention"."""

from __future__ import annotations

import math
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from pkg.algos.flash_attention import SoftmaxState, attention
from pkg.exercises import Exercise, ExerciseSet, Rejected, agrees, equivalent

exercises = ExerciseSet("flash_attention")

ell, m, x, s, t = sp.symbols("ell m x s t", real=True)
H, G, L, D, N = sp.symbols("H G L D N", positive=True)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- 1 a new maximum

exercises.add(
    Exercise(
        "new_maximum", "The running sum when a new maximum comes",
        lambda answer: equivalent(ell * sp.exp(m - x) + 1, answer, [ell, m, x]),
        solution=ell * sp.exp(m - x) + 1,
        wrong=(
            (ell + 1, "the old sum is kept as it was, made with the old maximum"),
            (ell * sp.exp(x - m) + 1, "the correction goes the wrong way, and overflows"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 2 one sweep, in code


def one_sweep(scores: list[float]) -> list[float]:
    """Return the maximum and the sum of exp(score - maximum), reading each score once."""
    top, total = -math.inf, 0.0
    for score in scores:
        higher = max(top, score)
        total = total * math.exp(top - higher) + math.exp(score - higher)
        top = higher
    return [top, total]


def starts_at_zero(scores: list[float]) -> list[float]:
    """The maximum begins at 0."""
    top, total = 0.0, 0.0
    for score in scores:
        higher = max(top, score)
        total = total * math.exp(top - higher) + math.exp(score - higher)
        top = higher
    return [top, total]


def forgets_to_correct(scores: list[float]) -> list[float]:
    """Old terms are not corrected."""
    top, total = -math.inf, 0.0
    for score in scores:
        top = max(top, score)
        total += math.exp(score - top)
    return [top, total]


def _two_passes(scores: list[float]) -> list[float]:
    return [max(scores), math.fsum(math.exp(score - max(scores)) for score in scores)]


_ROWS = [([1.0, 2.0, 3.0],), ([3.0, 1.0],), ([-5.0, -7.0],), ([800.0, 790.0, 801.0],)]

exercises.add(
    Exercise(
        "one_sweep", "Maximum and sum in one sweep",
        lambda answer: agrees(answer, _ROWS, _two_passes),
        solution=one_sweep,
        wrong=(
            (starts_at_zero, "the maximum begins at 0, which is larger than negative scores"),
            (forgets_to_correct, "terms made with an old maximum stay as they were"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 3 merging, in code


def merge(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> Tensor:
    """Return the output over the keys of both parts; -inf marks a part without keys."""
    lse = torch.stack((lse_a, lse_b))
    if bool((lse == -torch.inf).all()):
        return torch.zeros_like(o_a)
    weights = lse.softmax(0)
    return weights[0] * o_a + weights[1] * o_b


def mean_of_both(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> Tensor:
    """The plain mean."""
    return (o_a + o_b) / 2


def without_a_guard(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> Tensor:
    """No case for two empty parts."""
    weights = torch.stack((lse_a, lse_b)).softmax(0)
    return weights[0] * o_a + weights[1] * o_b


def _merged(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> Tensor:
    return SoftmaxState.from_lse(o_a, lse_a).merge(SoftmaxState.from_lse(o_b, lse_b)).output


def _parts() -> list[tuple[Tensor, ...]]:
    none, zero = torch.tensor(-torch.inf, dtype=torch.float64), torch.zeros(2).double()
    drawn = _random(6, 2), 3 * _random(6, seed=1)
    found = [(drawn[0][i], drawn[1][i], drawn[0][i + 1], drawn[1][i + 1]) for i in range(5)]
    return [*found, (drawn[0][0], drawn[1][0], zero, none), (zero, none, zero, none)]


exercises.add(
    Exercise(
        "merge", "Two parts merged by their log-sum-exp",
        lambda answer: agrees(answer, _parts(), _merged),
        solution=merge,
        wrong=(
            (mean_of_both, "both parts get the same vote, however much they weigh"),
            (without_a_guard, "two empty parts: the softmax of -inf and -inf is NaN"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 4 gradient of the log-sum-exp

exercises.add(
    Exercise(
        "lse_gradient", "The derivative of the log-sum-exp",
        lambda answer: equivalent(1 / (1 + sp.exp(t - s)), answer, [s, t]),
        solution=1 / (1 + sp.exp(t - s)),
        wrong=(
            (sp.exp(s), "the derivative of the exponential alone"),
            (sp.exp(s + t) / (sp.exp(s) + sp.exp(t)) ** 2, "the derivative of the weight, p(1 - p)"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 5 traffic of a decoding step

exercises.add(
    Exercise(
        "decoding_traffic", "What one decoding step reads of the cache",
        lambda answer: equivalent(2 * G * L * D, answer, [H, G, L, D]),
        solution=2 * G * L * D,
        wrong=(
            (2 * H * L * D, "each query head reads its own copy, though heads share keys"),
            (H * L + 2 * G * L * D, "the scores are counted, but they never leave the chip"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 6 who sees whom


def visible(i: int, j: int, queries: int, keys: int) -> bool:
    """Tell whether query i sees key j, both counted from 0, causal and bottom-right."""
    return j <= i + keys - queries


def top_left(i: int, j: int, queries: int, keys: int) -> bool:
    """The other alignment."""
    return j <= i


def not_itself(i: int, j: int, queries: int, keys: int) -> bool:
    """Strictly earlier keys only."""
    return j < i + keys - queries


def _sees(i: int, j: int, queries: int, keys: int) -> bool:
    q, k = torch.zeros(1, 1, queries, keys), torch.zeros(1, 1, keys, keys)
    return bool(attention(q, k, torch.eye(keys)[None, None], causal=True)[0, 0, i, j] > 0)


_PAIRS = [
    (i, j, n, k) for n, k in ((1, 4), (3, 3), (2, 5), (4, 2)) for i in range(n) for j in range(k)
]

exercises.add(
    Exercise(
        "visible", "Causal, aligned bottom-right",
        lambda answer: agrees(answer, _PAIRS, _sees),
        solution=visible,
        wrong=(
            (top_left, "the other alignment: one new token would see the first key alone"),
            (not_itself, "a token sees itself too"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 7 rows that see nothing

exercises.add(
    Exercise(
        "blind_rows", "How many queries see nothing",
        lambda answer: equivalent(N - L, answer, [N, L]),
        solution=N - L,
        wrong=(
            (N - L + 1, "the first query that sees a key is counted too"),
            (sp.Integer(0), "true of the other alignment"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 8 backward through a softmax


def through_softmax(weights: Tensor, arriving: Tensor) -> Tensor:
    """Return the gradient of the scores of one row, shape (keys,)."""
    return weights * (arriving - (weights * arriving).sum())


def no_mean(weights: Tensor, arriving: Tensor) -> Tensor:
    """The weights alone."""
    return weights * arriving


def plain_mean(weights: Tensor, arriving: Tensor) -> Tensor:
    """The mean without weights."""
    return weights * (arriving - arriving.mean())


def _by_autograd(weights: Tensor, arriving: Tensor) -> Tensor:
    scores = weights.log().requires_grad_()
    (found,) = torch.autograd.grad(scores.softmax(0), scores, arriving)
    return found


_ARRIVING = [(_random(n, seed=n).softmax(0), _random(n, seed=10 + n)) for n in (1, 2, 5, 9)]

exercises.add(
    Exercise(
        "through_softmax", "The gradient of the scores, in code",
        lambda answer: agrees(answer, _ARRIVING, _by_autograd),
        solution=through_softmax,
        wrong=(
            (no_mean, "only the diagonal of the Jacobian: the weights' sum could then change"),
            (plain_mean, "the mean must be weighted"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 9 where float16 stops


def _check_stuck(answer: Any) -> None:
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise Rejected(f"a whole number is asked for, not {answer!r}")
    total = torch.tensor(float(answer), dtype=torch.float16)
    if float(total) != answer:
        raise Rejected(f"float16 cannot hold {answer:,}; a sum of ones never gets there")
    if float(total + 1) != answer:
        raise Rejected(f"{answer:,} + 1 is {int(total + 1):,} in float16: the sum goes on")
    before = torch.tensor(float(answer - 1), dtype=torch.float16)
    if float(before) != answer - 1 or float(before + 1) != answer:
        raise Rejected("the sum of ones has stopped before")


exercises.add(
    Exercise(
        "stuck", "Where a float16 sum of ones stops",
        _check_stuck,
        solution=2048,
        wrong=(
            (65504, "the largest number of float16; the sum stops long before"),
            (1024, "one bit too early: the leading one is not stored, and counts"),
        ),
    )
)  # fmt: skip
