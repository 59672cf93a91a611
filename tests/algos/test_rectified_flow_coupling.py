"""Losses, couplings, reflow and distances: against quadrature, enumeration, POT and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from flow_matching.path import CondOTProbPath

from pkg.algos.rectified_flow import (
    ContinuousFlow,
    LinearPath,
    Solver,
    VelocityMLP,
    assignment_coupling,
    conditional_flow_matching_loss,
    flow_matching_loss,
    integrate,
    marginal_velocity,
    minibatch_coupling,
    projections,
    reflow,
    sinkhorn_plan,
    sliced_wasserstein,
    straightness,
    transport_cost,
)
from tests.algos.flow_oracle import (
    PATHS,
    TIGHT,
    TWO_POINT_COST,
    normal_flow,
    randn,
    two_point_velocity,
)

# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_both_losses_have_the_same_gradient(path):
    # Every expectation in full: three data points, and Gauss-Hermite nodes for the noise. The
    # marginal velocity is smooth, so 60 nodes integrate to rounding; a few random ones would not.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    data = torch.tensor([[-1.0], [0.3], [1.2]], dtype=torch.float64)
    noise = torch.from_numpy(nodes)[:, None]
    weight = torch.from_numpy(weights / math.sqrt(2 * math.pi))
    x0, x1 = (pair.reshape(-1, 1) for pair in (noise.repeat(3, 1), data.repeat_interleave(60, 0)))
    every = weight.repeat(3) * len(x0) / 3  # the loss divides by the number of rows
    torch.manual_seed(0)
    net = VelocityMLP(1, hidden=8, depth=2, frequencies=2).double()
    sample = path.sample(x0, x1, torch.tensor(0.4, dtype=torch.float64))
    losses = (
        conditional_flow_matching_loss(net, sample, weight=every),
        flow_matching_loss(net, path, data, sample.xt, sample.t, weight=every),
    )
    gradients = [torch.autograd.grad(loss, tuple(net.parameters())) for loss in losses]
    assert max(float(g.abs().max()) for g in gradients[0]) > 0.01  # there is something to compare
    for conditional, marginal in zip(*gradients, strict=True):
        torch.testing.assert_close(conditional, marginal, rtol=0, atol=1e-6)
    # the losses differ: by the variance of the conditional velocity, whatever the network
    assert float((losses[0] - losses[1]).detach()) > 0.01


def test_the_conditional_loss_is_the_usual_mean():
    x0, x1, t = randn(6, 2, 3), randn(6, 2, 3, seed=1), torch.rand(6).double()
    theirs = CondOTProbPath().sample(x_0=x0, x_1=x1, t=t)
    expected = ((theirs.x_t * 2) - theirs.dx_t).pow(2).mean()
    got = conditional_flow_matching_loss(lambda x, t: 2 * x, LinearPath().sample(x0, x1, t))
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)


def test_weights_and_conditions():
    x0, x1, t = randn(2, 3), randn(2, 3, seed=1), torch.tensor([0.2, 0.7]).double()
    sample = LinearPath().sample(x0, x1, t)
    only_first = conditional_flow_matching_loss(
        lambda x, t, *, k: k * x, sample, weight=torch.tensor([1.0, 0.0]).double(), k=3
    )
    expected = (3 * sample.xt[0] - sample.velocity[0]).square().sum() / 6
    torch.testing.assert_close(only_first, expected)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_marginal_velocity_is_the_weighted_mean(path):
    data, xt, t = randn(5, 2), randn(4, 2, seed=1), torch.tensor([0.1, 0.4, 0.6, 0.8]).double()
    at = path.coefficients(t)
    expected = []
    for b in range(4):  # Bayes, one point at a time
        law = torch.distributions.Normal(at.alpha[b] * data, at.sigma[b])
        weight = law.log_prob(xt[b]).sum(1).softmax(0)
        u = at.d_sigma[b] / at.sigma[b] * (xt[b] - at.alpha[b] * data) + at.d_alpha[b] * data
        expected.append(weight @ u)
    got = marginal_velocity(path, data, xt, t)
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_the_marginal_velocity_of_two_points_is_known():
    data = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    x, t = randn(40, 1), torch.rand(40, generator=torch.Generator().manual_seed(2)).double() * 0.99
    got = marginal_velocity(LinearPath(), data, x, t)
    torch.testing.assert_close(got, two_point_velocity(x, t), rtol=1e-9, atol=1e-9)


def test_far_away_the_weights_do_not_overflow():
    data = torch.tensor([[-1.0], [1.0]])
    got = marginal_velocity(LinearPath(), data, torch.tensor([[50.0]]), torch.tensor([0.999]))
    # all weight on the data point 1: (1 - 50) / 0.001, in float32 with t rounded to 6e-8
    torch.testing.assert_close(got, torch.tensor([[-49_000.0]]), rtol=1e-3, atol=0)


def test_the_marginal_velocity_carries_the_noise_to_the_data():
    data = randn(6, 2)
    flow = ContinuousFlow(lambda x, t: marginal_velocity(LinearPath(), data, x, t))
    x0 = randn(200, 2, seed=3)
    solver = Solver(rtol=1e-6, atol=1e-6)
    end = integrate(flow.velocity, x0, (0.0, 0.999), solver=solver)[-1]
    # at 0.999 what is left of the noise has a deviation of 0.001
    nearest = torch.cdist(end, data).min(1)
    assert float(nearest.values.max()) < 0.01
    assert len(nearest.indices.unique()) == 6


# ---------------------------------------------------------------- couplings


def test_the_assignment_is_the_best_of_all_permutations():
    for seed in range(5):
        x0, x1 = randn(6, 2, seed=seed), randn(6, 2, seed=seed + 100)
        best = min(
            float(transport_cost(x0, x1[list(order)])) for order in itertools.permutations(range(6))
        )
        found = assignment_coupling(x0, x1)
        assert sorted(found.tolist()) == list(range(6))
        assert abs(float(transport_cost(x0, x1[found])) - best) < 1e-12


def test_sinkhorn_has_its_marginals_and_tends_to_the_assignment():
    x0, x1 = randn(8, 2), randn(8, 2, seed=1)
    distances = torch.cdist(x0, x1).square()
    exact = float(transport_cost(*minibatch_coupling(x0, x1)))
    costs = []
    for regularisation in (100.0, 1.0, 0.1):
        plan = sinkhorn_plan(x0, x1, regularisation=regularisation)
        # the bound of the stopping rule
        torch.testing.assert_close(plan.sum(1), torch.full((8,), 1 / 8).double(), rtol=0, atol=1e-9)
        torch.testing.assert_close(plan.sum(0), torch.full((8,), 1 / 8).double(), rtol=0, atol=1e-9)
        costs.append(float((plan * distances).sum()))
    assert costs[0] > costs[1] > costs[2] > exact - 1e-9
    assert costs[2] < exact * 1.05
    # with a heavy price on order everyone goes everywhere
    assert abs(costs[0] / float(distances.mean()) - 1) < 0.1


def test_sinkhorn_is_the_plan_of_its_form():
    # diag(u) K diag(v) with K = exp(-C / reg): the cross ratios of plan and K are equal
    x0, x1, price = randn(5, 2), randn(5, 2, seed=1), 0.7
    plan = sinkhorn_plan(x0, x1, regularisation=price)
    logs = plan.log() + torch.cdist(x0, x1).square() / price
    cross = logs[:-1, :-1] + logs[1:, 1:] - logs[:-1, 1:] - logs[1:, :-1]
    assert float(cross.abs().max()) < 1e-8


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # inside POT
def test_a_plan_that_has_not_converged_is_refused():
    with pytest.raises(ValueError, match="regularisation must be large enough"):
        sinkhorn_plan(randn(8, 2), randn(8, 2, seed=1), regularisation=1e-4)


def test_partners_are_drawn_from_the_plan():
    x0, x1 = randn(4, 1), torch.arange(4.0).double()[:, None]
    plan = sinkhorn_plan(x0, x1, regularisation=4.0)
    rng, rounds = torch.Generator().manual_seed(0), 150
    counts = torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(rounds):
        _, partners = minibatch_coupling(x0, x1, regularisation=4.0, generator=rng)
        counts[torch.arange(4), partners[:, 0].long()] += 1
    expected = plan * 4 * rounds
    chi = ((counts - expected).square() / expected).sum()
    # 12 degrees of freedom: P(chi² > 45) is about 1e-5
    assert float(chi) < 45
    assert float(plan.max() / plan.min()) > 2  # far enough from an even draw to tell


def test_batches_of_images_are_paired_too():
    x0, x1 = randn(5, 1, 2, 2), randn(5, 1, 2, 2, seed=1)
    a, b = minibatch_coupling(x0, x1)
    assert torch.equal(a, x0)
    assert transport_cost(a, b) <= transport_cost(x0, x1)


def test_transport_cost_by_hand():
    x0, x1 = torch.zeros(2, 2).double(), torch.tensor([[3.0, 4.0], [0.0, 0.0]]).double()
    assert float(transport_cost(x0, x1)) == 12.5
    assert float(transport_cost(x0, x1, 1.0)) == 2.5
    assert float(transport_cost(x0, x1, 4.0)) == 312.5
    assert float(transport_cost(x0, x1, lambda d: d.abs().sum(1))) == 3.5


# ---------------------------------------------------------------- rectified flow


def test_reflow_of_a_normal_is_the_optimal_transport():
    flow, x0 = normal_flow(3), randn(30, 3)
    start, end = reflow(flow.velocity, x0, solver=TIGHT)
    assert torch.equal(start, x0)
    root = flow.vectors @ torch.diag(flow.values.sqrt()) @ flow.vectors.T
    torch.testing.assert_close(end, flow.mean + x0 @ root, rtol=0, atol=1e-7)
    # the best pairing of these very points: a linear map with a symmetric positive matrix
    assert assignment_coupling(x0, end).tolist() == list(range(30))


def test_reflow_costs_less_for_every_convex_cost():
    flow, x0 = normal_flow(2, seed=1), randn(4000, 2)
    x1 = flow.law().sample((4000,))
    _, end = reflow(flow.velocity, x0)
    for cost in (1.0, 2.0, 4.0, lambda d: d.abs().amax(1), lambda d: d.clamp_min(0).sum(1)):
        before, after = transport_cost(x0, x1, cost), transport_cost(x0, end, cost)
        assert after < 0.9 * before  # the gap is far above the noise of 4,000 pairs


def test_reflow_to_two_points_by_quadrature():
    nodes = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    x0 = torch.distributions.Normal(0.0, 1.0).icdf(nodes)[:, None]  # quantiles of the noise
    until = 0.9999
    end = integrate(two_point_velocity, x0, (0.0, until), solver=TIGHT)[-1]
    # what is left of the noise at that time: at most (1 - 0.9999) × 3.5
    torch.testing.assert_close(end, x0.sign(), rtol=0, atol=1e-3)
    cost = float(transport_cost(x0, x0.sign()))
    # the quantile rule is off in the tails: by 2e-3 with 2,000 nodes
    assert abs(cost - TWO_POINT_COST) < 2e-3


@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_straightness_of_a_normal_flow_by_quadrature(spread):
    # N(0, 1) to N(0, spread²): x_t = r(t) x0, so the mean over x0 is that of (r(1) - r(0) - r')²
    t = (np.arange(200_000) + 0.5) / 200_000
    r = np.sqrt(t**2 * spread**2 + (1 - t) ** 2)
    slope = (t * spread**2 - (1 - t)) / r
    expected = ((spread - 1 - slope) ** 2).mean()

    def velocity(x, t):
        t = t[:, None]
        return (t * spread**2 - (1 - t)) / (t**2 * spread**2 + (1 - t) ** 2) * x

    x0 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)  # a mean square of 1
    got = straightness(velocity, x0, solver=TIGHT, nodes=40)
    # midpoint rule 1e-10; 40 Gauss nodes converge like 0.7^80 for a pole at distance 0.3
    assert abs(float(got) - expected) < 1e-8


def test_a_straight_flow_has_none_and_needs_one_step():
    # reflowed: x_t = (1 - t + 3 t) x0, whose velocity is 2 x0
    def velocity(x, t):
        return 2 * x / (1 + 2 * t[:, None])

    x0 = randn(10, 2)
    assert float(straightness(velocity, x0, solver=TIGHT)) < 1e-15  # the square of 1e-8
    one_step = x0 + velocity(x0, torch.zeros(10, dtype=torch.float64))
    torch.testing.assert_close(one_step, 3 * x0, rtol=0, atol=1e-14)


def test_straightness_is_the_gap_of_energy_and_displacement():
    flow, x0 = normal_flow(2), randn(20, 2)
    points, weights = np.polynomial.legendre.leggauss(30)
    energy = 0.0
    for p, w in zip((points + 1) / 2, weights / 2, strict=True):
        at = flow.place(x0, float(p))
        energy += w * float(flow.velocity(at, torch.full((20,), float(p)).double()).square().sum())
    way = flow.place(x0, 1.0) - x0
    expected = (energy - float(way.square().sum())) / 20
    got = float(straightness(flow.velocity, x0, solver=TIGHT, nodes=30))
    assert abs(got - expected) < 1e-7


def test_reflow_has_no_graph():
    torch.manual_seed(0)
    net = VelocityMLP(2, hidden=4, depth=1)
    _, end = reflow(net, torch.zeros(3, 2), solver=Solver("euler", steps=2))
    assert not end.requires_grad


# ---------------------------------------------------------------- distance


def test_sliced_wasserstein_is_that_of_pot():
    a, b = randn(50, 3), 0.5 + randn(50, 3, seed=1)
    directions = projections(20, 3, generator=torch.Generator().manual_seed(2))
    expected = ot.sliced_wasserstein_distance(
        a.numpy(), b.numpy(), projections=directions.numpy().T
    )
    got = sliced_wasserstein(a, b, directions)
    assert abs(float(got) - float(expected)) < 1e-12


def test_a_shift_moves_the_distance_by_its_shadow():
    a, shift = randn(30, 2), torch.tensor([3.0, 4.0]).double()
    directions = projections(100, 2, generator=torch.Generator().manual_seed(0))
    expected = (directions @ shift).square().mean().sqrt()
    got = sliced_wasserstein(a, a[torch.randperm(30)] + shift, directions)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_projections_are_even_over_the_circle():
    directions = projections(20_000, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(directions.square().sum(1), torch.ones(20_000).double())
    # E w w' = I / 2 with a deviation of sqrt(1/8 / 20,000) for the diagonal: five of them
    moments = directions.T @ directions / 20_000
    assert float((moments - torch.eye(2) / 2).abs().max()) < 5 * math.sqrt(1 / 8 / 20_000)


X, T = torch.zeros(2, 3), torch.tensor([0.1, 0.2])


def still(x, t):
    return 0 * x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: conditional_flow_matching_loss(still, X),
            TypeError,
            "sample must be a PathSample",
        ),
        (
            lambda: conditional_flow_matching_loss(still, LinearPath().sample(X, X, T), weight=X),
            ValueError,
            "weight must have t's shape",
        ),
        (
            lambda: marginal_velocity(LinearPath(), X[:, :2], X, T),
            ValueError,
            "data must have shape",
        ),
        (lambda: marginal_velocity(LinearPath(), X[:0], X, T), ValueError, "at least one point"),
        (lambda: marginal_velocity(LinearPath(), X, X, T * 0 + 1), ValueError, "sigma is not 0"),
        (
            lambda: marginal_velocity(LinearPath(), X.double(), X, T),
            TypeError,
            "data must have xt's",
        ),
        (lambda: transport_cost(X, X[:1]), ValueError, "x1 must have x0's shape"),
        (lambda: transport_cost(X, X, 0.5), ValueError, "cost must be a power of at least 1"),
        (lambda: transport_cost(X, X, lambda d: d), ValueError, "cost must return one number"),
        (lambda: transport_cost(X[:0], X[:0]), ValueError, "at least one pair"),
        (
            lambda: assignment_coupling(X, X[:1]),
            ValueError,
            "x1 must have x0's batch size 2, got 1",
        ),
        (lambda: assignment_coupling(X, X[:, :1]), ValueError, "x1 must have x0's shape after"),
        (lambda: sinkhorn_plan(X, X, regularisation=0.0), ValueError, "regularisation must be pos"),
        (lambda: minibatch_coupling(X, X, regularisation=1.0), TypeError, "generator must be"),
        (lambda: reflow(lambda x, t: x[:, :1], X), ValueError, "velocity must return"),
        (lambda: straightness(still, X, nodes=0), ValueError, "nodes must be at least 1"),
        (lambda: sliced_wasserstein(X, X[:1], torch.eye(3)), ValueError, "b must have a's shape"),
        (lambda: sliced_wasserstein(X, X, torch.eye(2)), ValueError, "directions must have shape"),
        (lambda: projections(0, 3, generator=torch.Generator()), ValueError, "count must be at"),
    ],
)
def test_a_wrong_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
