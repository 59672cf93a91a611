"""The continuous flow: against closed-form normals, flow_matching, zuko and autograd."""

from __future__ import annotations

import math

import pytest
import torch
import zuko
from flow_matching.solver import ODESolver
from torch import nn

from pkg.algos.rectified_flow import (
    ContinuousFlow,
    Solver,
    divergence,
    draw_probes,
    hutchinson_variance,
    integrate,
)
from tests.algos.flow_oracle import TIGHT, normal_flow, randn, small_network

# ---------------------------------------------------------------- likelihood


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_log_likelihood_of_a_normal_is_exact(size):
    flow = normal_flow(size)
    x = flow.law().sample((50,))
    got = ContinuousFlow(flow.velocity).log_prob(x, exact=True, solver=TIGHT)
    # the bound; the solver's tolerance of 1e-9 leaves room
    torch.testing.assert_close(got.detach(), flow.law().log_prob(x), rtol=0, atol=1e-6)


def test_rademacher_probes_are_exact_for_a_diagonal_jacobian():
    flow = normal_flow(1)
    x = flow.law().sample((20,))
    rng = torch.Generator().manual_seed(0)
    got = ContinuousFlow(flow.velocity).log_prob(x, solver=TIGHT, generator=rng)
    torch.testing.assert_close(got.detach(), flow.law().log_prob(x), rtol=0, atol=1e-6)


def test_a_wider_base_is_taken_into_account():
    # nothing moves: the density is the base's own
    x = randn(4, 3)
    got = ContinuousFlow(lambda x, t: 0 * x, base_std=5.0).log_prob(x, exact=True)
    base = torch.distributions.Normal(x.new_zeros(()), x.new_tensor(5.0))
    expected = base.log_prob(x).sum(1)
    torch.testing.assert_close(got.detach(), expected, rtol=1e-12, atol=0)


def test_the_likelihood_is_that_of_flow_matching():
    net, x = small_network(), randn(16, 3)
    normal = torch.distributions.Independent(
        torch.distributions.Normal(x.new_zeros(3), x.new_ones(3)), 1
    )
    theirs = ODESolver(velocity_model=lambda x, t: net(x, t.expand(len(x))))
    _, expected = theirs.compute_likelihood(
        x, normal.log_prob, step_size=0.05, method="rk4", exact_divergence=True
    )
    ours = ContinuousFlow(net).log_prob(x, exact=True, solver=Solver("rk4", steps=20))
    torch.testing.assert_close(ours.detach(), expected.detach(), rtol=0, atol=1e-9)


def test_the_likelihood_is_that_of_zuko():
    net, x = small_network(), randn(8, 3)

    class Field(nn.Module):
        def forward(self, t, x):
            return net(x, t.expand(len(x)).to(x))

    # zuko runs data -> noise as its time goes 0 -> 1: our time backwards
    theirs = zuko.transforms.FreeFormJacobianTransform(
        lambda t, x: -net(x, (1 - t).expand(len(x)).to(x)), t0=0.0, t1=1.0,
        phi=tuple(net.parameters()), atol=1e-10, rtol=1e-10, exact=True,
    )  # fmt: skip
    z, ladj = theirs.call_and_ladj(x)
    expected = ContinuousFlow(net).base_log_prob(z) + ladj
    got = ContinuousFlow(net).log_prob(x, exact=True, solver=TIGHT)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)


def test_the_density_is_that_of_the_map():
    # change of variables with the full Jacobian of the solved map, by autograd
    net, x0 = small_network(2), randn(2, seed=5)

    def end(start):
        return integrate(net, start[None], solver=TIGHT)[-1][0]

    jacobian = torch.autograd.functional.jacobian(end, x0)
    x1 = end(x0).detach()[None]
    flow = ContinuousFlow(net)
    expected = flow.base_log_prob(x0[None]) - torch.linalg.slogdet(jacobian).logabsdet
    got = flow.log_prob(x1, exact=True, solver=TIGHT)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("exact", [True, False])
def test_log_prob_is_differentiable(exact):
    net, x = small_network(2), randn(3, 2).requires_grad_()
    flow, parameter = ContinuousFlow(net), net.last.bias

    def value():
        rng = None if exact else torch.Generator().manual_seed(3)
        solver = Solver("rk4", steps=6)
        return flow.log_prob(x, exact=exact, generator=rng, solver=solver).sum()

    by_x, by_bias = torch.autograd.grad(value(), (x, parameter))
    step = 1e-5
    for tensor, gradient in ((x, by_x), (parameter, by_bias)):
        for place in range(tensor.numel()):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    tensor.view(-1)[place] += sign * step
                ends.append(float(value().detach()))
                with torch.no_grad():
                    tensor.view(-1)[place] -= sign * step
            # central difference: step² times a third derivative of order 1
            assert abs((ends[0] - ends[1]) / (2 * step) - float(gradient.view(-1)[place])) < 1e-7


def test_the_adjoint_gives_the_same_gradient():
    net, x = small_network(2), randn(4, 2)
    gradients = []
    for adjoint in (False, True):
        solver = Solver(rtol=1e-9, atol=1e-9, adjoint=adjoint)
        loss = -ContinuousFlow(net).log_prob(x, exact=True, solver=solver).mean()
        gradients.append(torch.autograd.grad(loss, tuple(net.parameters())))
    for direct, adjoint in zip(*gradients, strict=True):
        # two ways that share only the tolerance, 1e-9 a step
        torch.testing.assert_close(adjoint, direct, rtol=1e-5, atol=1e-6)


def test_training_by_likelihood_lowers_it():
    net, x = small_network(1, dtype=torch.float32), 3 + 0.5 * randn(64, 1, dtype=torch.float32)
    flow = ContinuousFlow(net)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = -flow.log_prob(x, exact=True, solver=Solver("heun2", steps=4)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1  # nats; the start is 4 off at a mean of 3


def test_without_gradients_the_value_is_the_same_and_has_no_graph():
    net, x = small_network(), randn(5, 3)
    flow = ContinuousFlow(net)
    with torch.no_grad():
        bare = flow.log_prob(x, exact=True)
    assert not bare.requires_grad
    # the same operations; the order of a sum inside a batched product may differ
    torch.testing.assert_close(bare, flow.log_prob(x, exact=True).detach(), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- divergence


def full_trace(net, x, t):
    jacobians = [
        torch.autograd.functional.jacobian(lambda p, s=s: net(p[None], s[None])[0], p)
        for p, s in zip(x, t, strict=True)
    ]
    return torch.stack(jacobians)


def test_the_exact_divergence_is_the_trace():
    net, x, t = small_network(), randn(6, 3), torch.linspace(0, 1, 6, dtype=torch.float64)
    v, trace = divergence(net, x, t)
    expected = full_trace(net, x, t).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(trace, expected, rtol=0, atol=1e-12)
    assert torch.equal(v, net(x, t))


def test_images_are_taken_as_they_are():
    x = randn(2, 1, 3, 4)
    _, trace = divergence(lambda x, t: x**3, x, x.new_tensor(0.5))
    torch.testing.assert_close(trace.detach(), 3 * x.square().sum((1, 2, 3)))


@pytest.mark.parametrize("velocity", [lambda x, t: torch.ones_like(x), lambda x, t: x * 0 + 1])
def test_a_constant_velocity_has_no_divergence(velocity):
    _, trace = divergence(velocity, randn(3, 2), torch.zeros(3, dtype=torch.float64))
    assert trace.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_mean_of_hutchinson_lies_in_its_derived_interval(kind):
    net, x, t = small_network(), randn(4, 3), torch.full((4,), 0.3, dtype=torch.float64)
    count = 4000
    probes = draw_probes(count, x, kind=kind, generator=torch.Generator().manual_seed(7))
    _, mean = divergence(net, x, t, probes=probes)
    jacobians = full_trace(net, x, t)
    exact = jacobians.diagonal(dim1=1, dim2=2).sum(1)
    variance = hutchinson_variance(jacobians, kind=kind)
    # 5 standard deviations of the mean: four samples fail together once in 400,000 seeds
    assert bool(((mean - exact).abs() <= 5 * (variance / count).sqrt()).all())


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_variance_of_hutchinson_is_the_derived_one(kind):
    matrix, count = randn(4, 4, seed=2), 200_000
    probes = draw_probes(count, matrix[:1], kind=kind, generator=torch.Generator().manual_seed(1))
    z = probes[:, 0]
    values = ((z @ matrix) * z).sum(1)
    expected = float(hutchinson_variance(matrix, kind=kind))
    # the deviation of a sample variance is sqrt(kurtosis - 1) of it over sqrt(count); a quadratic
    # form of normals has a kurtosis of at most 15, so 5 deviations are 4.2 %
    assert abs(float(values.var()) / expected - 1) < 5 * math.sqrt(14 / count)


def test_several_probes_are_averaged_and_not_summed():
    net, x, t = small_network(), randn(4, 3), torch.zeros(4, dtype=torch.float64)
    probes = draw_probes(5, x, generator=torch.Generator().manual_seed(0))
    together = divergence(net, x, t, probes=probes)[1]
    single = torch.stack([divergence(net, x, t, probes=p[None])[1] for p in probes])
    torch.testing.assert_close(together, single.mean(0), rtol=0, atol=1e-12)


def test_rademacher_probes_enumerated_give_the_trace():
    matrix = randn(3, 3)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    values = torch.stack([z @ matrix @ z for z in signs])
    torch.testing.assert_close(values.mean(), matrix.trace(), rtol=0, atol=1e-12)
    expected = hutchinson_variance(matrix, kind="rademacher")
    torch.testing.assert_close(values.var(correction=0), expected, rtol=1e-12, atol=0)


def test_probes_have_two_values_or_a_normal_law():
    rng = torch.Generator().manual_seed(0)
    x = torch.zeros(1000, 10)
    signs = draw_probes(1, x, kind="rademacher", generator=rng)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    normal = draw_probes(1, x, kind="gaussian", generator=rng)
    for z in (signs, normal):  # 10,000 draws: 5 deviations of their mean
        assert abs(float(z.mean())) < 0.05
    assert abs(float(normal.square().mean()) - 1) < 5 * math.sqrt(2 / 10_000)


X, T = torch.zeros(2, 3), torch.zeros(2)
RNG = torch.Generator()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ContinuousFlow(3), TypeError, "velocity must be callable"),
        (lambda: ContinuousFlow(torch.sin, base_std=0.0), ValueError, "base_std must be positive"),
        (lambda: ContinuousFlow(lambda x, t: x).log_prob(X), TypeError, "generator must be"),
        (
            lambda: ContinuousFlow(lambda x, t: x).log_prob(X, exact=True, generator=RNG),
            ValueError,
            "generator must be None",
        ),
        (
            lambda: ContinuousFlow(lambda x, t: x).log_prob(X, probes=0, generator=RNG),
            ValueError,
            "count must be at least 1",
        ),
        (lambda: divergence(lambda x, t: x, X.long(), T), TypeError, "x must have a floating"),
        (lambda: divergence(lambda x, t: x, X, T, probes=X), ValueError, "probes must have shape"),
        (lambda: divergence(lambda x, t: x[:, :1], X, T), ValueError, "velocity must return"),
        (lambda: draw_probes(1, X, kind="cauchy", generator=RNG), ValueError, "kind must be one"),
        (lambda: hutchinson_variance(X, kind="gaussian"), ValueError, "jacobian must have shape"),
        (lambda: hutchinson_variance(X[:, :2], kind="x"), ValueError, "kind must be one of"),
    ],
)
def test_a_wrong_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
