"""What speculation gains: tokens of a step, its time and its work, and how far to look ahead."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

Chance = TypeVar("Chance", float, Tensor)


def expected_tokens(alpha: Chance, gamma: int) -> Chance:
    """Expected number of tokens of a step, if each draft token is accepted with chance alpha.

    Parameters
    ----------
    alpha
        Chance that a draft token is accepted, given that all before it were; a number, or a tensor
        of any shape.
    gamma
        Draft tokens of a step.

    Returns
    -------
    float or Tensor
        1 + alpha + ... + alpha^gamma: between 1 and gamma + 1. A tensor is float64.

    Raises
    ------
    TypeError, ValueError
        If alpha is not in [0, 1], or gamma is negative or no integer.

    Notes
    -----
    Leviathan, Kalman and Matias (2023), equation 1. Ledger: `speculative_decoding:expected_tokens`.

    Examples
    --------
    >>> expected_tokens(0.75, 7)
    3.599...
    """
    chance = _chance(alpha)
    total = torch.zeros_like(chance)
    for _ in range(_steps(gamma) + 1):  # Horner: nothing is divided, so alpha = 1 is no exception
        total = total * chance + 1.0
    return total if isinstance(alpha, Tensor) else float(total)


def token_distribution(alpha: float, gamma: int) -> Tensor:
    """Distribution of the number of tokens of a step, if acceptances are independent.

    Parameters
    ----------
    alpha
        Chance that a draft token is accepted, given that all before it were.
    gamma
        Draft tokens of a step.

    Returns
    -------
    Tensor
        (gamma + 1,), float64: the probabilities of 1, 2, ..., gamma + 1 tokens.

    Raises
    ------
    TypeError, ValueError
        As `expected_tokens`.

    Notes
    -----
    A geometric law, cut off at gamma + 1. Ledger: `speculative_decoding:token_distribution`.

    Examples
    --------
    >>> token_distribution(0.5, 3)
    tensor([0.5000, 0.2500, 0.1250, 0.1250], dtype=torch.float64)
    """
    chance, steps = float(_chance(alpha)), _steps(gamma)
    powers = torch.tensor([chance**i for i in range(steps + 1)], dtype=torch.float64)
    stops = torch.full((steps + 1,), 1 - chance, dtype=torch.float64)
    stops[-1] = 1.0
    return powers * stops


def walltime_improvement(alpha: float, gamma: int, cost_ratio: float) -> float:
    """How many times faster than plain decoding, if a verification costs one step of the target.

    Parameters
    ----------
    alpha
        Chance that a draft token is accepted.
    gamma
        Draft tokens of a step.
    cost_ratio
        Time of one draft token over time of one step of the target.

    Returns
    -------
    float
        Tokens in the time of one plain token; below 1 speculation loses.

    Raises
    ------
    TypeError, ValueError
        As `expected_tokens`, or if the cost ratio is negative or not finite.

    Notes
    -----
    Leviathan, Kalman and Matias (2023), theorem 3.8. Ledger:
    `speculative_decoding:walltime_improvement`.

    Examples
    --------
    >>> round(walltime_improvement(0.75, 7, 0.02), 3)
    3.157
    """
    return expected_tokens(float(_chance(alpha)), gamma) / (gamma * _cost(cost_ratio) + 1)


def operations_factor(alpha: float, gamma: int, operations_ratio: float) -> float:
    """How many times the arithmetic of plain decoding speculation does for a token.

    Parameters
    ----------
    alpha
        Chance that a draft token is accepted.
    gamma
        Draft tokens of a step.
    operations_ratio
        Operations of the draft for a token over operations of the target for a token.

    Returns
    -------
    float
        At least 1 for a draft that is not free of cost or always right.

    Raises
    ------
    TypeError, ValueError
        As `walltime_improvement`.

    Notes
    -----
    Leviathan, Kalman and Matias (2023), theorem 3.11. Ledger:
    `speculative_decoding:operations_factor`.

    Examples
    --------
    >>> round(operations_factor(0.75, 7, 0.02), 3)
    2.261
    """
    work = gamma * _cost(operations_ratio, "operations_ratio") + gamma + 1
    return work / expected_tokens(float(_chance(alpha)), gamma)


def best_gamma(alpha: float, cost_ratio: float, *, max_gamma: int | None = None) -> int:
    """Return the length of draft that is fastest for a chance of acceptance and a cost of drafting.

    Parameters
    ----------
    alpha
        Chance that a draft token is accepted.
    cost_ratio
        Time of one draft token over time of one step of the target.
    max_gamma
        The longest draft to consider. Needed where longer is always faster: a free draft, or one
        that is never rejected.

    Returns
    -------
    int
        0 where no speculation is fastest (cost_ratio >= alpha); the shorter one of two equals.

    Raises
    ------
    TypeError, ValueError
        As `walltime_improvement`; or if there is no longest useful draft and no `max_gamma`.

    Notes
    -----
    The gain rises, then falls: what one more token brings becomes smaller with every token. So the
    first length that is not improved by one more is the best. Ledger:
    `speculative_decoding:best_gamma`.

    Examples
    --------
    >>> best_gamma(0.75, 0.02)
    9
    >>> best_gamma(0.1, 0.2)
    0
    """
    chance, cost = float(_chance(alpha)), _cost(cost_ratio)
    if max_gamma is not None:
        _steps(max_gamma, "max_gamma")
    endless = (cost == 0 and chance > 0) or (chance == 1 and cost < 1)
    if endless:
        if max_gamma is None:
            raise ValueError(
                f"with alpha = {chance:g} and cost_ratio = {cost:g} a longer draft is always faster: "
                "give max_gamma"
            )
        return max_gamma
    gamma, power, tokens = 0, chance, 1.0
    # One more pays if what it adds, alpha^(gamma + 1), exceeds the rate so far times its cost.
    while (max_gamma is None or gamma < max_gamma) and power * (gamma * cost + 1) > tokens * cost:
        gamma, tokens, power = gamma + 1, tokens + power, power * chance
    return gamma


def _chance(alpha: float | Tensor) -> Tensor:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | Tensor):
        raise TypeError(f"alpha must be a number or a tensor, got {type(alpha).__name__}")
    chance = torch.as_tensor(alpha, dtype=torch.float64)
    if not bool(((chance >= 0) & (chance <= 1)).all()):
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    return chance


def _steps(gamma: int, name: str = "gamma") -> int:
    if isinstance(gamma, bool) or not isinstance(gamma, int):
        raise TypeError(f"{name} must be an integer, got {type(gamma).__name__}")
    if gamma < 0:
        raise ValueError(f"{name} must not be negative, got {gamma}")
    return gamma


def _cost(ratio: float, name: str = "cost_ratio") -> float:
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise TypeError(f"{name} must be a number, got {type(ratio).__name__}")
    if not (math.isfinite(ratio) and ratio >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {ratio}")
    return float(ratio)
