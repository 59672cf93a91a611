"""Solvers, sampling and the network: against flows in closed form, and the solvers' own promises."""

from __future__ import annotations

import math

import pytest
import torch

from pkg.algos.rectified_flow import ContinuousFlow, Solver, VelocityMLP, integrate, time_features
from tests.algos.flow_oracle import TIGHT, normal_flow, randn, small_network

# ---------------------------------------------------------------- sampling and solvers


def test_samples_of_a_normal_flow_are_the_known_map():
    flow = normal_flow(2)
    got = ContinuousFlow(flow.velocity).sample(
        5, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64, solver=TIGHT
    )
    torch.testing.assert_close(got, flow.place(randn(5, 2, seed=4), 1.0), rtol=0, atol=1e-7)


def test_there_and_back_again():
    net, x = small_network(), randn(6, 3)
    states = integrate(net, x, (0.0, 0.3, 1.0), solver=TIGHT)
    assert torch.equal(states[0], x)
    back = integrate(net, states[-1], (1.0, 0.3, 0.0), solver=TIGHT)
    torch.testing.assert_close(back[1], states[1], rtol=0, atol=1e-7)
    torch.testing.assert_close(back[2], x, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("method", "calls"), [("euler", 1), ("heun2", 2), ("rk4", 4)])
@pytest.mark.parametrize("steps", [1, 3, 10, 49])
def test_a_fixed_method_makes_exactly_its_steps(method, calls, steps):
    seen = []

    def velocity(x, t):
        seen.append(float(t[0]))
        return torch.ones_like(x)

    end = integrate(velocity, torch.zeros(1, 1), solver=Solver(method, steps=steps))[-1]
    assert len(seen) == calls * steps
    assert abs(float(end) - 1) < 1e-5  # steps additions in float32
    assert min(seen) == 0.0


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
@pytest.mark.parametrize("times", [(0.0, 0.4, 1.0), (1.0, 0.4, 0.0)])
def test_no_solver_looks_beyond_the_ends(method, times):
    seen = []

    def velocity(x, t):
        seen.append(float(t[0]))
        return 0.1 * x  # so smooth that a solver is tempted to step far

    integrate(velocity, randn(3, 2), times, solver=Solver(method, rtol=1e-3, atol=1e-3))
    assert min(seen) >= 0
    assert max(seen) <= 1


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun2", 2), ("rk4", 4)])
def test_the_order_of_a_method_shows(method, order):
    flow, x = normal_flow(2), randn(8, 2)
    errors = [
        float((integrate(flow.velocity, x, solver=Solver(method, steps=n))[-1] - flow.place(x, 1.0))
        .abs().max())
        for n in (40, 80)
    ]  # fmt: skip
    # twice the steps: 2^order less; a quarter away from any other order's share
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.25


def test_conditions_reach_the_velocity():
    def velocity(x, t, *, push):
        return push[:, None].expand_as(x)

    x, push = torch.zeros(2, 1), torch.tensor([1.0, -2.0])
    end = integrate(velocity, x, solver=Solver("euler", steps=2), push=push)[-1]
    torch.testing.assert_close(end[:, 0], push)
    flow = ContinuousFlow(velocity)
    log_prob = flow.log_prob(x, exact=True, push=push)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(-push)
    torch.testing.assert_close(log_prob.detach(), expected, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- the network


def test_the_network_knows_time_and_label():
    torch.manual_seed(0)
    net = VelocityMLP(2, hidden=8, depth=3, frequencies=2, classes=3)
    x, t = randn(4, 2, dtype=torch.float32), torch.full((4,), 0.5)
    label = torch.tensor([0, 1, 2, 3])
    assert not torch.allclose(net(x, t), net(x, t + 0.25))
    labelled, bare = net(x, t, label=label), net(x, t)
    assert torch.equal(labelled[3], bare[3])  # label 3 is "none"
    assert not torch.allclose(labelled[0], bare[0])
    with pytest.raises(ValueError, match="label must be None"):
        VelocityMLP(2)(x, t, label=label)


def test_time_features_are_waves_of_half_turns():
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    waves = time_features(t, 2)
    expected = [[1, 1, 0, 0], [0, -1, 1, 0], [-1, 1, 0, 0]]
    torch.testing.assert_close(waves, torch.tensor(expected).double(), rtol=0, atol=1e-15)


X, T = torch.zeros(2, 3), torch.zeros(2)
RNG = torch.Generator()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ContinuousFlow(lambda x, t: x).sample(5, generator=RNG),
            ValueError,
            "shape must be",
        ),
        (
            lambda: ContinuousFlow(lambda x, t: x).sample(5, 2, generator=0),
            TypeError,
            "generator must be",
        ),
        (lambda: Solver("rk45"), ValueError, "method must be one of"),
        (lambda: Solver("euler"), ValueError, "steps must be given"),
        (lambda: Solver("dopri5", steps=3), ValueError, "steps must be None"),
        (lambda: Solver("euler", steps=0), ValueError, "steps must be at least 1"),
        (lambda: Solver(rtol=0.0), ValueError, "rtol must be positive"),
        (lambda: integrate(lambda x, t: x, X, (0.0,)), ValueError, "times must be at least two"),
        (lambda: integrate(lambda x, t: x, X, (0.0, 1.0, 0.5)), ValueError, "times must be"),
        (lambda: time_features(X, 2), ValueError, "t must have shape"),
        (lambda: time_features(T, 0), ValueError, "frequencies must be at least 1"),
        (lambda: VelocityMLP(2)(X, T), ValueError, r"x must have shape \(batch, 2\)"),
        (lambda: VelocityMLP(0), ValueError, "features must be at least 1"),
    ],
)
def test_a_wrong_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
