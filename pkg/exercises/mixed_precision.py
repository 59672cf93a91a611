"""The exercises of the chapter "Mixed precision"."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import sympy as sp
import torch

from pkg.algos.mixed_precision import BF16, FP16, quantize
from pkg.exercises import Exercise, ExerciseSet, Rejected, agrees, equivalent

exercises = ExerciseSet("mixed_precision")

w, m, f = sp.symbols("w m f", positive=True)


def _number(answer: Any) -> float:
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise Rejected(f"a number is asked for, not {answer!r}")
    if not math.isfinite(answer):
        raise Rejected("a finite number is asked for")
    return float(answer)


# ---------------------------------------------------------------- 1 the largest number

_LARGEST = (2 - 2**-m) * 2 ** (2 ** (w - 1) - 1)

exercises.add(
    Exercise(
        "largest_number", "The largest number of a format",
        lambda answer: equivalent(_LARGEST, answer, [w, m]),
        solution=_LARGEST,
        wrong=(
            ((2 - 2**-m) * 2 ** (2 ** (w - 1)), "the exponent of all ones is taken for a number"),
            (2 ** (2 ** (w - 1) - 1), "the power of two below it: no fraction bit is set"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 2 the first missing integer

exercises.add(
    Exercise(
        "first_missing_integer", "The first integer that is missing",
        lambda answer: equivalent(2 ** (m + 1) + 1, answer, [m]),
        solution=2 ** (m + 1) + 1,
        wrong=(
            (2**m + 1, "the hidden bit is forgotten: 1,025 is a number of FP16"),
            (2 ** (m + 1), "a power of two is never missing"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 3 rounding integers


def round_off(X: int, s: int) -> int:
    """Cut off the last s bits, to nearest, ties to even."""
    if s == 0:
        return X
    odd = (X >> s) & 1
    return (X + (1 << (s - 1)) - 1 + odd) >> s


def half_up(X: int, s: int) -> int:
    """Add half and cut: ties always go up."""
    return (2 * X + (1 << s)) >> (s + 1)


def cut_off(X: int, s: int) -> int:
    """Cut without a look at what is lost."""
    return X >> s


def by_floats(X: int, s: int) -> int:
    """Let a float divide: right until X has more than 53 bits."""
    return round(float(X) / 2**s)


def _integers() -> list[tuple[int, int]]:
    small = [(X, s) for s in range(5) for X in range(2 ** (s + 2))]
    large = 3 << 60
    return [*small, (large + (1 << 5), 6), (large + (1 << 5) + 1, 6), (large + 96, 6)]


def _rounded(X: int, s: int) -> int:
    return round(Fraction(X, 2**s))  # Python rounds fractions to nearest even


exercises.add(
    Exercise(
        "round_off", "Round an integer to nearest even",
        lambda answer: agrees(answer, _integers(), _rounded, tolerance=0),
        solution=round_off,
        wrong=(
            (half_up, "every tie goes up"),
            (cut_off, "that is rounding toward zero"),
            (by_floats, "the division itself rounds once before"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 4 two roundings


def _check_two_roundings(answer: Any) -> None:
    x = torch.tensor(_number(answer), dtype=torch.float64)
    once, twice = float(quantize(x, BF16)), float(quantize(x.float(), BF16))
    if once == twice:
        raise Rejected(f"both ways give {once!r}")


exercises.add(
    Exercise(
        "two_roundings", "A number that two roundings send astray", _check_two_roundings,
        solution=1 + 2.0**-8 + 2.0**-30,
        wrong=(
            (1 + 2.0**-8, "a true tie: to even both times"),
            (1 + 2.0**-8 + 2.0**-20, "float32 still holds what decides"),
            (1 + 2.0**-7 + 2.0**-30, "almost a number, not almost a tie"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 5 a loss scale


def _check_scale(answer: Any) -> None:
    scale = _number(answer)
    if scale <= 0 or math.frexp(scale)[0] != 0.5:
        raise Rejected(f"{scale:g} is no power of two: multiplying by it would round")
    ends = torch.tensor([2.0**-34, 3.0], dtype=torch.float64) * scale
    low, high = quantize(ends, FP16).tolist()
    if low == 0:
        raise Rejected("the smallest gradient still becomes 0")
    if math.isinf(high):
        raise Rejected("the largest gradient overflows")


exercises.add(
    Exercise(
        "loss_scale", "A loss scale for FP16", _check_scale,
        solution=2.0**12,
        wrong=(
            (1.0, "no scale: 2^-34 is far below 2^-25"),
            (2.0**16, "PyTorch's first scale: 3 times 65,536 is too much"),
            (5000.0, "in the window, but every gradient is rounded once more"),
            (2.0**9, "sends the smallest to the tie at 2^-25, and ties go to the even 0"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 6 the order of a sum


def _half(value: float) -> float:
    return float(quantize(torch.tensor(value, dtype=torch.float64), FP16))


def _check_order(answer: Any) -> None:
    if not isinstance(answer, list | tuple) or len(answer) != 3:
        raise Rejected("three numbers are asked for")
    a, b, c = (_number(part) for part in answer)
    for part in (a, b, c):
        if _half(part) != part:
            raise Rejected(f"{part!r} is not a number of FP16")
    left, right = _half(_half(a + b) + c), _half(a + _half(b + c))
    if left == right:
        raise Rejected(f"both orders give {left!r}")


exercises.add(
    Exercise(
        "order_matters", "Three numbers whose order matters", _check_order,
        solution=[2048.0, 1.0, 1.0],
        wrong=(
            ([1.0, 2.0, 3.0], "small integers are added exactly"),
            ([2048.0, 2.0, 2.0], "2 is the spacing at 2,048: nothing is lost"),
            ([0.1, 0.2, 0.3], "the decimals of the famous example are no FP16 numbers"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 7 the price of chance

exercises.add(
    Exercise(
        "price_of_chance", "Mean squared error: stochastic over nearest",
        lambda answer: equivalent((1 - f) / f, answer, [f], below=1 / 2),
        solution=(1 - f) / f,
        wrong=(
            (f * (1 - f), "that is the squared error itself"),
            (sp.Integer(2), "the largest errors are as 2 to 1; the mean squares are not"),
            ((1 - f) ** 2 / f**2, "the worse of the two outcomes, as if it always happened"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 8 a compensated sum


def compensated(terms: list[float]) -> float:
    """Kahan's sum."""
    total = lost = 0.0
    for term in terms:
        corrected = term - lost
        following = total + corrected
        lost = (following - total) - corrected
        total = following
    return total


def plain(terms: list[float]) -> float:
    """From left to right."""
    total = 0.0
    for term in terms:
        total += term
    return total


def wrong_sign(terms: list[float]) -> float:
    """The correction is added where it should be taken off."""
    total = lost = 0.0
    for term in terms:
        corrected = term + lost
        following = total + corrected
        lost = (following - total) - corrected
        total = following
    return total


def _check_compensated(answer: Callable[[list[float]], float]) -> None:
    if not callable(answer):
        raise Rejected(f"a function is asked for, not {answer!r}")
    cases = [[1.0, *[2.0**-53] * 1000], [0.1] * 1000, [1e16, *[1.0] * 100], [3.0], []]
    for terms in cases:
        exact = sum(map(Fraction, terms), Fraction(0))
        got = answer(list(terms))
        if not isinstance(got, float | int) or not math.isfinite(got):
            raise Rejected(f"it returns {got!r} for {len(terms)} numbers")
        # 3 u, see the chapter's bound, on positive terms
        if abs(Fraction(got) - exact) > 3 * Fraction(2) ** -53 * exact:
            shown = f"{terms[0]:g} and {len(terms) - 1} more" if terms else "no numbers"
            raise Rejected(f"for {shown} it is off by {float(abs(Fraction(got) - exact)):.2g}")


exercises.add(
    Exercise(
        "compensated", "A sum that carries its errors along", _check_compensated,
        solution=compensated,
        wrong=(
            (plain, "every small term is lost beside a large sum"),
            (wrong_sign, "the correction with the wrong sign doubles the error"),
        ),
    )
)  # fmt: skip
