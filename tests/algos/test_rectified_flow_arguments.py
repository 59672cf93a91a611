"""The least that each argument may be, what lies just outside, and what is taken if none is given."""

from __future__ import annotations

import math

import pytest
import torch

from pkg.algos.rectified_flow import (
    ContinuousFlow,
    LinearPath,
    LogitNormalTime,
    OptimalTransportPath,
    Solver,
    UniformTime,
    VarianceExplodingPath,
    VariancePreservingPath,
    VelocityMLP,
    divergence,
    draw_probes,
    guided_step,
    hutchinson_variance,
    integrate,
    marginal_velocity,
    minibatch_coupling,
    projections,
    sample_fixed,
    sinkhorn_plan,
    sliced_wasserstein,
    straightness,
    time_features,
    transport_cost,
)
from tests.algos.flow_oracle import randn

X, TIMES = torch.ones(2, 3), torch.tensor([0.0, 0.5, 1.0])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def still(x, t):
    return 0 * x


def network(**changed):
    given = {"features": 2, "hidden": 4, "depth": 2, "frequencies": 2, "classes": 3}
    return VelocityMLP(**{**given, **changed})(torch.zeros(2, given["features"]), TIMES[:2])


@pytest.mark.parametrize(
    ("name", "least", "call"),
    [
        ("count", 1, lambda n: draw_probes(n, X, generator=rng())),
        ("features", 1, lambda n: VelocityMLP(n)(torch.zeros(2, n), TIMES[:2])),
        ("hidden", 1, lambda n: network(hidden=n)),
        ("depth", 1, lambda n: network(depth=n)),
        ("frequencies", 1, lambda n: network(frequencies=n)),
        ("classes", 0, lambda n: network(classes=n)),
        ("frequencies", 1, lambda n: time_features(TIMES, n)),
        ("count", 1, lambda n: projections(n, 3, generator=rng())),
        ("features", 1, lambda n: projections(3, n, generator=rng())),
        ("times", 1, lambda n: sample_fixed(still, X, n, method="euler")),
        ("index", 0, lambda n: guided_step(X, X, times=TIMES, index=n)),
        ("nodes", 1, lambda n: straightness(still, X, nodes=n, solver=Solver("euler", steps=1))),
        ("steps", 1, lambda n: Solver("euler", steps=n)),
        ("count", 0, lambda n: UniformTime().sample(n, generator=rng())),
        ("count", 0, lambda n: LogitNormalTime(mean=0.0, std=1.0).sample(n, generator=rng())),
    ],
)
def test_a_whole_number_has_a_least_value(name, least, call):
    call(least)
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        call(least - 1)
    with pytest.raises(TypeError, match=f"{name} must be an int, got"):
        call(least + 1.0)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("base_std", lambda v: ContinuousFlow(still, base_std=v)),
        ("sigma_min", lambda v: OptimalTransportPath(sigma_min=v)),
        ("sigma_min", lambda v: VarianceExplodingPath(sigma_min=v, sigma_max=2.0)),
        ("sigma_max", lambda v: VarianceExplodingPath(sigma_min=1e-9, sigma_max=v)),
        ("beta_min", lambda v: VariancePreservingPath(beta_min=v)),
        ("beta_max", lambda v: VariancePreservingPath(beta_min=1e-9, beta_max=v)),
        ("rtol", lambda v: Solver(rtol=v)),
        ("atol", lambda v: Solver(atol=v)),
        ("std", lambda v: LogitNormalTime(mean=0.0, std=v)),
        ("regularisation", lambda v: sinkhorn_plan(X, X, regularisation=v)),
    ],
)
def test_a_positive_number_is_above_0_and_finite(name, call):
    call(0.5)
    for value in (0.0, -0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"{name} must be positive and finite"):
            call(value)


def test_ends_that_just_fit_and_just_do_not():
    VariancePreservingPath(beta_min=2.0, beta_max=2.0)
    OptimalTransportPath(sigma_min=math.nextafter(1.0, 0.0))
    assert float(transport_cost(X, X + 1, 1)) == pytest.approx(math.sqrt(3))
    guided_step(X, X, times=TIMES, index=1)
    divergence(lambda x, t: x, X, TIMES[:2], probes=X[None])
    hutchinson_variance(torch.ones(1, 1), kind="gaussian")
    LinearPath().sample(X, X, TIMES[::2])  # both 0 and 1
    integrate(still, X, (0.25, 0.5))
    for call, message in (
        (lambda: transport_cost(X, X, 0.999), "at least 1"),
        (lambda: guided_step(X, X, times=TIMES, index=2), "index must be below 2"),
        (lambda: guided_step(X, X, times=TIMES[:1], index=0), "times must have shape"),
        (lambda: guided_step(X, X, times=TIMES[None], index=0), "times must have shape"),
        (lambda: divergence(still, X, TIMES[:2], probes=X[None][:0]), "count at least 1"),
        (lambda: LinearPath().sample(X, X, torch.tensor([0.5, -1e-6])), "got -1e-06"),
        (lambda: LinearPath().sample(X, X, torch.tensor([1.000001, 0.5])), "t must lie in"),
        (lambda: integrate(still, X, (0.5, 0.5)), "all rising or all falling"),
        (lambda: sliced_wasserstein(X[:0], X[:0], torch.eye(3)), "at least one sample"),
        (lambda: marginal_velocity(LinearPath(), X[:0], X, TIMES[:2]), "at least one point"),
        (lambda: ContinuousFlow(still).sample(3, generator=rng()), "at least 2 axes"),
        (lambda: sinkhorn_plan(X, X[:, :2], regularisation=1.0), "x1 must have x0's shape"),
        (lambda: minibatch_coupling(X, X[:1], regularisation=1.0, generator=rng()), "batch size"),
        (lambda: LogitNormalTime(mean=True, std=1.0), "mean must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# ---------------------------------------------------------------- what is taken if none is given


def test_the_network_has_the_size_that_is_documented():
    def weights(hidden, depth, frequencies, classes):
        waves = 2 * frequencies
        first, middle = (2 + waves + 1) * hidden, (hidden + waves + 1) * hidden
        last = (hidden + 1) * 2
        return first + (depth - 1) * middle + last + (classes + 1) * hidden * (classes > 0)

    for given in ({}, {"classes": 5}, {"hidden": 7, "depth": 4, "frequencies": 1}):
        network = VelocityMLP(2, **given)
        size = {"hidden": 128, "depth": 3, "frequencies": 8, "classes": 0} | given
        assert sum(p.numel() for p in network.parameters()) == weights(**size)


def test_the_solver_that_is_taken_if_none_is_named():
    assert Solver() == Solver("dopri5", None, 1e-5, 1e-5, adjoint=False)
    x = randn(5, 2)
    for given in (None, Solver()):
        assert torch.equal(
            integrate(lambda x, t: torch.sin(x), x, solver=given),
            integrate(lambda x, t: torch.sin(x), x, (0.0, 1.0), solver=Solver("dopri5")),
        )


def test_straightness_looks_at_sixteen_times():
    seen = []

    def velocity(x, t):
        seen.append(float(t[0]))
        return x

    straightness(velocity, X, solver=Solver("euler", steps=1))
    assert len(seen) == 17 + 16  # from node to node, and at each node


def test_densities_take_one_probe_of_signs_and_noise_of_width_1():
    x = randn(4, 3)

    def velocity(x, t):
        return torch.sin(x.flip(1))

    flow, solver = ContinuousFlow(velocity), Solver("rk4", steps=3)
    assert flow.base_std == 1.0
    plain = flow.log_prob(x, generator=rng(3), solver=solver)
    given = {"exact": False, "probes": 1, "kind": "rademacher"}
    assert torch.equal(plain, flow.log_prob(x, generator=rng(3), solver=solver, **given))
    assert torch.equal(
        draw_probes(2, x, generator=rng(1)),
        draw_probes(2, x, kind="rademacher", generator=rng(1)),
    )
    assert flow.sample(2, 3, generator=rng(), solver=solver).dtype == torch.float32


def test_pairs_are_assigned_and_costs_are_squares():
    x0, x1 = randn(6, 2), randn(6, 2, seed=1)
    exact = minibatch_coupling(x0, x1, regularisation=0.0)[1]
    assert torch.equal(minibatch_coupling(x0, x1)[1], exact)
    assert torch.equal(transport_cost(x0, x1), transport_cost(x0, x1, 2.0))


def test_paths_and_laws_take_what_is_documented():
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    plain, named = VariancePreservingPath(), VariancePreservingPath(beta_min=0.1, beta_max=20.0)
    assert torch.equal(plain.coefficients(t).alpha, named.coefficients(t).alpha)
    for law in (UniformTime(), LogitNormalTime(mean=0.0, std=1.0)):
        assert law.sample(3, generator=rng()).dtype == torch.float32
    assert UniformTime().density(torch.tensor([-1e-6, 0.0, 1.0, 1.000001])).tolist() == [0, 1, 1, 0]
