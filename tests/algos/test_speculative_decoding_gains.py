"""What speculation gains, against plain sums over all outcomes and brute force."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pkg.algos.speculative_decoding import (
    best_gamma,
    expected_tokens,
    operations_factor,
    token_distribution,
    walltime_improvement,
)

CHANCES = st.floats(0, 1)


def outcomes(alpha, gamma):
    """Every sequence of accepted (1) and rejected (0): its chance, and the tokens that leave."""
    from itertools import product

    for row in product((0, 1), repeat=gamma):
        chance = Fraction(1)
        for accepted in row:
            chance *= alpha if accepted else 1 - alpha
        yield chance, ([*row, 0].index(0)) + 1


@pytest.mark.parametrize("gamma", [0, 1, 2, 5])
@pytest.mark.parametrize("alpha", [Fraction(0), Fraction(1, 3), Fraction(3, 4), Fraction(1)])
def test_expected_tokens_and_distribution_count_all_outcomes(alpha, gamma):
    law = [sum(c for c, n in outcomes(alpha, gamma) if n == count) for count in range(1, gamma + 2)]
    mean = sum(c * n for c, n in outcomes(alpha, gamma))
    found = token_distribution(float(alpha), gamma)
    torch.testing.assert_close(
        found, torch.tensor([float(x) for x in law], dtype=torch.float64), rtol=0, atol=1e-15
    )
    assert abs(expected_tokens(float(alpha), gamma) - float(mean)) < 1e-14 * (gamma + 1)


def test_expected_tokens_of_the_paper():
    """Leviathan et al. (2023): alpha = 0.75, gamma = 7, c = 0.02."""
    assert round(expected_tokens(0.75, 7), 4) == 3.5995
    assert round(walltime_improvement(0.75, 7, 0.02), 3) == 3.157


def test_expected_tokens_takes_tensors():
    alpha = torch.tensor([[0.0, 0.5], [0.75, 1.0]])
    found = expected_tokens(alpha, 3)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.875], [2.734375, 4.0]]).double())


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 0.98), st.floats(0.003, 1.5))
def test_the_best_gamma_is_that_of_brute_force(alpha, cost):
    found = best_gamma(alpha, cost)
    gains = [walltime_improvement(alpha, gamma, cost) for gamma in range(found + 40)]
    # Equal gains within rounding may be told apart either way.
    assert gains[found] >= max(gains) * (1 - 1e-12)
    assert found == 0 or gains[found] > gains[found - 1] * (1 - 1e-12)
    assert (found > 0) == (alpha > cost) or abs(alpha - cost) < 1e-12


def test_where_longer_is_always_better_the_caller_sets_the_end():
    assert best_gamma(0.5, 0.0, max_gamma=12) == 12
    assert best_gamma(1.0, 0.5, max_gamma=7) == 7
    assert best_gamma(0.0, 0.0) == 0
    assert best_gamma(1.0, 1.0) == 0
    assert best_gamma(0.9, 0.01, max_gamma=3) == 3


@settings(max_examples=50, deadline=None)
@given(CHANCES, st.integers(0, 12), st.floats(0, 2))
def test_work_is_never_saved(alpha, gamma, ratio):
    factor = operations_factor(alpha, gamma, ratio)
    assert factor >= 1 - 1e-12
    assert gamma or factor == 1
    work = Fraction(ratio) * gamma + gamma + 1
    tokens = sum(Fraction(alpha) ** i for i in range(gamma + 1))
    assert abs(factor - float(work / tokens)) <= 1e-13 * factor
