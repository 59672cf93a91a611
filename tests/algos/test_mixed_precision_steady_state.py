"""The random walk of a loss scale, and the share of time it spends at each level."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pkg.algos.mixed_precision import LossScaler, scale_steady_state


def by_linear_algebra(overflow, interval):
    """Stationary distribution of the full chain over (level, clean iterations so far)."""
    levels = len(overflow)
    states = list(itertools.product(range(levels), range(interval)))
    index = {state: i for i, state in enumerate(states)}
    matrix = torch.zeros(len(states), len(states), dtype=torch.float64)
    for (level, clean), i in index.items():
        p = overflow[level]
        matrix[i, index[max(level - 1, 0), 0]] += p
        grown = (min(level + 1, levels - 1), 0) if clean + 1 == interval else (level, clean + 1)
        matrix[i, index[grown]] += 1 - p
    identity = torch.eye(len(states), dtype=torch.float64)
    system = torch.cat([(matrix.T - identity), torch.ones(1, len(states), dtype=torch.float64)])
    goal = torch.zeros(len(states) + 1, dtype=torch.float64)
    goal[-1] = 1
    share = torch.linalg.lstsq(system, goal.unsqueeze(1)).solution
    return share.view(levels, interval).sum(1)


@pytest.mark.parametrize("interval", [1, 2, 7])
@pytest.mark.parametrize(
    "overflow", [[0.0, 1.0], [0.0, 0.2, 0.9, 1.0], [0.3, 0.1, 0.6], [0.5], [0.0], [0.01, 0.05, 0.9, 1]],
)  # fmt: skip
def test_the_steady_state_is_that_of_the_full_chain(overflow, interval):
    found = scale_steady_state(torch.tensor(overflow, dtype=torch.float64), interval)
    # Least squares in float64 on a few dozen states.
    torch.testing.assert_close(found, by_linear_algebra(overflow, interval), rtol=0, atol=1e-12)


def test_a_scaler_walks_as_the_steady_state_says():
    """Gradients of 1 overflow float16 from the scale 65,536 on: a saw with a period of N + 1."""
    scaler, param = LossScaler(2.0**15, growth_interval=5), torch.nn.Parameter(torch.zeros(1))
    optimizer, spent = torch.optim.SGD([param], lr=0.0), {15: 0, 16: 0}
    for _ in range(600):
        spent[int(math.log2(scaler.get_scale()))] += 1
        loss = scaler.scale(param.sum())
        param.grad = torch.ones(1) * loss.new_tensor(scaler.get_scale()).half()
        scaler.step(optimizer)
        scaler.update()
    shares = scale_steady_state(torch.tensor([0.0, 1.0]), 5)
    assert [spent[15] / 600, spent[16] / 600] == pytest.approx(shares.tolist(), abs=1e-12)


def test_the_steady_state_of_long_intervals_and_rare_overflows():
    """(1 − p)^N in float64 would be 1 for p = 1e-18, and the balance would divide by 0."""
    shares = scale_steady_state(torch.tensor([0.0, 1e-18, 1e-3, 1.0], dtype=torch.float64), 2000)
    assert bool(shares.isfinite().all())
    assert float(shares.sum()) == pytest.approx(1)
    # Level 1 is left downwards with probability 2e-15, so nearly nothing is spent on level 0.
    assert 0 < float(shares[0]) < 1e-12
    balanced = scale_steady_state(
        torch.full((50,), 1 - 0.5 ** (1 / 2000), dtype=torch.float64), 2000
    )
    torch.testing.assert_close(
        balanced, torch.full((50,), 0.02, dtype=torch.float64), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("bad", [[0.5, 0.0], [0.1, 1.5], [-0.1], [], [[0.5]], [math.nan]])
def test_what_is_no_vector_of_probabilities(bad):
    with pytest.raises(ValueError, match="overflow must be a vector of probabilities"):
        scale_steady_state(torch.tensor(bad), 5)


def test_other_mistakes_about_the_steady_state():
    with pytest.raises(TypeError, match="overflow must be a floating-point tensor"):
        scale_steady_state([0.5], 5)
    with pytest.raises(ValueError, match="growth_interval must be at least 1"):
        scale_steady_state(torch.tensor([0.5]), 0)


def test_visits_that_leave_float64s_range():
    """Each level is visited 10^11 times as often as the one below: 10^440 at the last of them."""
    shares = scale_steady_state(torch.full((41,), 1e-11, dtype=torch.float64), 1)
    assert bool(shares.isfinite().all())
    # All visits but those of the last level and of the one below are less than 10^-11 of them.
    assert shares[-1] == pytest.approx(1.0, abs=1e-10)
