"""The exercises of the chapter "Flow matching and rectified flow"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from pkg.exercises import Exercise, ExerciseSet, Rejected, agrees, equivalent

exercises = ExerciseSet("rectified_flow")

x, x1, v, m = sp.symbols("x x_1 v m", positive=True)
t, s, d, z = sp.symbols("t s d z", positive=True)
a, b, c = sp.symbols("a b c", positive=True)


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- 1 the velocity of a Gaussian path

_SIGMA = 1 - (1 - s) * t

exercises.add(
    Exercise(
        "velocity_at_a_place", "The velocity of the optimal-transport path at a place",
        lambda answer: equivalent((x1 - (1 - s) * x) / _SIGMA, answer, [x, x1, s, t]),
        solution=(x1 - (1 - s) * x) / _SIGMA,
        wrong=(
            (x1 - (1 - s) * x, "the velocity in terms of the noise, with x in the noise's place"),
            ((x1 - x) / (1 - t), "the linear path, which is right only for s = 0"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 2 the score from the velocity

exercises.add(
    Exercise(
        "score_of_velocity", "The score from the velocity, on the linear path",
        lambda answer: equivalent((t * v - x) / (1 - t), answer, [x, v, t]),
        solution=(t * v - x) / (1 - t),
        wrong=(
            ((x - t * v) / (1 - t), "the noise over its deviation: the score points the other way"),
            ((t * v - x) / (1 - t) ** 2, "divided by the variance, as if x - t v were not noise of "
             "deviation 1 already"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 3 the other direction of time


def to_sd3(velocity: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what Stable Diffusion 3 would learn, with noise at time 1, from what we learn."""
    return lambda x, time: -velocity(x, 1 - time)


def forgotten_sign(velocity: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Turn the clock round, but not the motion."""
    return lambda x, time: velocity(x, 1 - time)


def forgotten_clock(velocity: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Turn the motion round, but not the clock."""
    return lambda x, time: -velocity(x, time)


def _check_direction(answer: Any) -> None:
    if not callable(answer):
        raise Rejected(f"a function is asked for, not {answer!r}")
    try:
        turned = answer(lambda x, time: x * (1 + time) ** 2)
    except TypeError as error:
        raise Rejected("it must take one argument, the velocity") from error
    cases = [(_numbers(3, seed=k), 0.1 + 0.3 * k) for k in range(3)]
    agrees(turned, cases, lambda x, time: -x * (2 - time) ** 2)


exercises.add(
    Exercise(
        "direction_of_time", "A velocity in Stable Diffusion 3's direction of time",
        _check_direction,
        solution=to_sd3,
        wrong=(
            (forgotten_sign, "the time is turned, and samples then run away from the data"),
            (forgotten_clock, "the sign is turned, and the network is asked about the wrong time"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 4 Hutchinson's estimator


def trace_estimate(probes: Tensor, products: Tensor) -> Tensor:
    """Estimate tr J from probes z and products J z, both (probes, features)."""
    return (probes * products).sum(1).mean()


def trace_summed(probes: Tensor, products: Tensor) -> Tensor:
    """Add the probes' estimates up."""
    return (probes * products).sum()


def trace_averaged(probes: Tensor, products: Tensor) -> Tensor:
    """Average over everything there is."""
    return (probes * products).mean()


def _trace_cases() -> list[tuple[Tensor, Tensor]]:
    found = []
    for k, (count, features) in enumerate(((1, 4), (5, 3), (2, 2))):
        probes, jacobian = _numbers(count, features, seed=k), _numbers(features, features, seed=9)
        found.append((probes, probes @ jacobian.T))
    return found


exercises.add(
    Exercise(
        "several_probes", "Hutchinson's estimate from several probes",
        lambda answer: agrees(
            answer, _trace_cases(),
            lambda probes, products: sum(
                float(z @ y) for z, y in zip(probes, products, strict=True)
            ) / len(probes),
        ),
        solution=trace_estimate,
        wrong=(
            (trace_summed, "not divided by the number of probes: a published bug, unseen with one"),
            (trace_averaged, "divided by the number of features, too"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 5 its variance

exercises.add(
    Exercise(
        "variance_of_signs", "The variance of Hutchinson's estimate with random signs",
        lambda answer: equivalent(4 * b**2, answer, [a, b, c]),
        solution=4 * b**2,
        wrong=(
            (2 * (a**2 + 2 * b**2 + c**2), "that of Gaussian probes: the squares of signs do not vary"),
            (2 * b**2, "b stands at two places of the matrix, and both meet the same pair of signs"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 6 the straight flow of two normals

_STRAIGHT = m + (s - 1) * (x - t * m) / (1 + t * (s - 1))

exercises.add(
    Exercise(
        "one_step", "The flow between two normals that one Euler step follows exactly",
        lambda answer: equivalent(_STRAIGHT, answer, [x, t, m, s]),
        solution=_STRAIGHT,
        wrong=(
            (m + (t * s**2 - (1 - t)) * (x - t * m) / (t**2 * s**2 + (1 - t) ** 2),
             "the flow of independent pairs: right at t = 0 for no s, and curved"),
            (m + (s - 1) * x, "right where every path begins, but it goes on turning with x"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 7 the order of Heun's method

exercises.add(
    Exercise(
        "error_of_heun", "What one step of Heun's method leaves of the exponential",
        lambda answer: equivalent(z**3 / 6, answer, [z]),
        solution=z**3 / 6,
        wrong=(
            (z**2 / 2, "that is what Euler's method leaves"),
            (z**3 / 3, "the third derivative over 3, not over 3!"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 8 the cost of a coupling

exercises.add(
    Exercise(
        "cost_of_independence", "The transport cost of pairing two points with two at random",
        lambda answer: equivalent(d**2 + sp.Rational(1, 2), answer, [d]),
        solution=d**2 + sp.Rational(1, 2),
        wrong=(
            (d**2, "that is the cost after reflow, when no two paths cross any more"),
            (d**2 + 1, "as if every pair crossed; half of them do"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 9 guidance


def guided(x: Tensor, cond: Tensor, uncond: Tensor, weight: float, h: float) -> Tensor:
    """Take an Euler step of size h with guidance as diffusers writes it."""
    return x + h * (uncond + weight * (cond - uncond))


def guided_as_in_the_paper(
    x: Tensor, cond: Tensor, uncond: Tensor, weight: float, h: float
) -> Tensor:
    """Go on from the conditional velocity: weight 0 is no guidance."""
    return x + h * (cond + weight * (cond - uncond))


def guided_backwards(x: Tensor, cond: Tensor, uncond: Tensor, weight: float, h: float) -> Tensor:
    """Mix the two the wrong way round."""
    return x + h * (cond + weight * (uncond - cond))


_GUIDED = [
    (*(_numbers(2, 3, seed=3 * k + i) for i in range(3)), 0.5 + 2.0 * k, 0.1) for k in range(3)
]
exercises.add(
    Exercise(
        "guidance_of_one", "A guided step in which weight 1 means the conditional velocity",
        lambda answer: agrees(
            answer, _GUIDED,
            lambda x, cond, uncond, weight, h: x + h * (weight * cond + (1 - weight) * uncond),
        ),
        solution=guided,
        wrong=(
            (guided_as_in_the_paper, "Ho & Salimans count from the conditional one: their weight is "
             "one less"),
            (guided_backwards, "weight 1 gives the unconditional velocity"),
        ),
    )
)  # fmt: skip
