"""Paths, conversions, times: against flow_matching's paths, closed forms and autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler, VPScheduler

from pkg.algos.rectified_flow import (
    GaussianPath,
    LinearPath,
    LogitNormalTime,
    OptimalTransportPath,
    UniformTime,
    VarianceExplodingPath,
    VariancePreservingPath,
    reverse_time,
)
from pkg.algos.rectified_flow.paths import PREDICTIONS
from tests.algos.flow_oracle import PATHS


def points(shape=(7, 2, 3), *, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    x0, x1 = (torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for _ in range(2))
    t = 0.05 + 0.9 * torch.rand(shape[0], generator=rng, dtype=torch.float64)
    return x0, x1, t.to(dtype)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LinearPath(), CondOTScheduler()),
        # theirs names beta's ends the same way, in the same direction of time
        (VariancePreservingPath(beta_min=0.1, beta_max=20.0), VPScheduler(0.1, 20.0)),
    ],
)
def test_places_and_velocities_are_those_of_flow_matching(ours, theirs):
    x0, x1, t = points()
    expected = AffineProbPath(scheduler=theirs).sample(x_0=x0, x_1=x1, t=t)
    got = ours.sample(x0, x1, t)
    # sigma = sqrt(1 - alpha²) of theirs loses digits where alpha is near 1: 1e-16 / (1 - 0.95²)
    torch.testing.assert_close(got.xt, expected.x_t, rtol=0, atol=1e-13)
    torch.testing.assert_close(got.velocity, expected.dx_t, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_the_derivatives_are_those_of_autograd(name):
    _, _, t = points()
    path = PATHS[name]
    at = path.coefficients(t)
    for value, slope in (("alpha", at.d_alpha), ("sigma", at.d_sigma)):
        s = t.clone().requires_grad_()
        # a constant plus nothing has no graph: add 0 * s
        (expected,) = torch.autograd.grad((getattr(path.coefficients(s), value) + 0 * s).sum(), s)
        torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", PATHS)
def test_the_signal_to_noise_ratio_rises(name):
    at = PATHS[name].coefficients(torch.linspace(0, 0.99, 200, dtype=torch.float64))
    assert bool(((at.alpha / at.sigma).diff() > 0).all())


def test_variance_is_preserved_to_the_last_digits_near_the_data():
    t = 1 - torch.logspace(-12, -1, 50, dtype=torch.float64)
    at = VariancePreservingPath(beta_min=0.1, beta_max=20.0).coefficients(t)
    s = 1 - t
    # to first order sigma² = integral of beta; sqrt(1 - alpha²) would be 0 or 100 % off at 1e-12
    integral = 0.1 * s + 19.9 * s**2 / 2
    torch.testing.assert_close(at.sigma**2, -torch.expm1(-integral), rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("given", PREDICTIONS)
@pytest.mark.parametrize("wanted", PREDICTIONS)
def test_every_conversion_gives_the_truth(name, given, wanted):
    path, (x0, x1, t) = PATHS[name], points()
    sample, at = path.sample(x0, x1, t), path.coefficients(t)
    sigma = at.sigma[:, None, None]
    # the score of N(alpha x1, sigma²) at xt, by autograd
    place = sample.xt.clone().requires_grad_()
    mean = at.alpha[:, None, None] * x1
    law = torch.distributions.Normal(mean, sigma)
    (score,) = torch.autograd.grad(law.log_prob(place).sum(), place)
    truth = {"velocity": sample.velocity, "score": score, "epsilon": x0, "x1": x1}
    got = path.convert(truth[given], sample.xt, t, given=given, wanted=wanted)
    # alpha of the VP path is 0.008 at t = 0.05: dividing by it costs two digits, more for the score
    torch.testing.assert_close(got, truth[wanted], rtol=1e-9, atol=1e-9)


def test_conversions_are_linear_in_every_dtype():
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        x0, x1, t = points(dtype=dtype)
        sample = LinearPath().sample(x0, x1, t)
        data = LinearPath().convert(sample.velocity, sample.xt, t, given="velocity", wanted="x1")
        assert data.dtype == dtype
        # two products and two sums, each within one rounding of numbers up to 4
        assert (data - x1).abs().max() <= bound


def test_half_precision_takes_float32_times():
    x0, x1, _ = points(dtype=torch.bfloat16)
    t = torch.rand(7, generator=torch.Generator().manual_seed(1))
    sample = LinearPath().sample(x0, x1, t)
    assert sample.xt.dtype == torch.bfloat16
    exact = LinearPath().sample(x0.double(), x1.double(), t.double())
    # rounded once, to 8 bits: half an ulp of numbers below 4
    assert (sample.xt.double() - exact.xt).abs().max() <= 2**-7


@pytest.mark.parametrize(
    ("given", "wanted", "time", "name"),
    [
        ("epsilon", "x1", 0.0, "alpha"),
        ("score", "velocity", 0.0, "alpha"),
        ("x1", "epsilon", 1.0, "sigma"),
        ("x1", "velocity", 1.0, "sigma"),
        ("velocity", "score", 1.0, "sigma"),
    ],
)
def test_a_conversion_that_divides_by_zero_says_so(given, wanted, time, name):
    x = torch.ones(2, 1)
    with pytest.raises(ValueError, match=f"t must be where {name} is not 0"):
        LinearPath().convert(x, x, torch.tensor(time), given=given, wanted=wanted)


def test_the_velocity_of_the_straight_line_converts_at_both_ends():
    x0, x1, _ = points()
    for time in (0.0, 1.0):
        sample = LinearPath().sample(x0, x1, torch.tensor(time, dtype=torch.float64))
        for wanted, truth in (("x1", x1), ("epsilon", x0)):
            got = LinearPath().convert(
                sample.velocity, sample.xt, sample.t, given="velocity", wanted=wanted
            )
            torch.testing.assert_close(got, truth, rtol=0, atol=1e-14)


def test_optimal_transport_ends_in_a_narrow_normal():
    x0, x1, _ = points()
    end = OptimalTransportPath(sigma_min=0.25).sample(x0, x1, torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(end.xt, x1 + 0.25 * x0, rtol=0, atol=1e-15)


def test_the_vp_path_refuses_its_end():
    x0, x1, _ = points()
    with pytest.raises(ValueError, match=r"coefficients of VariancePreservingPath are finite.*1"):
        VariancePreservingPath().sample(x0, x1, torch.ones(7, dtype=torch.float64))


def test_reversed_samples_and_velocities_agree():
    x0, x1, t = points()
    sample = LinearPath().sample(x0, x1, t)
    other = sample.reversed()
    # as a path in the other direction: data first, and the line is the same
    again = LinearPath().sample(x1, x0, 1 - t)
    torch.testing.assert_close(other.xt, again.xt, rtol=0, atol=1e-14)
    torch.testing.assert_close(other.velocity, again.velocity, rtol=0, atol=0)
    back = other.reversed()
    torch.testing.assert_close(back.t, t, rtol=0, atol=1e-15)
    assert torch.equal(back.velocity, sample.velocity)


def test_reverse_time_is_its_own_inverse_and_hands_on_conditions():
    def velocity(x, t, *, label):
        return x * t[:, None] + label[:, None]

    x, t = (
        torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.0, 0.25, 1]),
    )
    label = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(reverse_time(velocity)(x, t, label=label), -velocity(x, 1 - t, label=label))
    twice = reverse_time(reverse_time(velocity))
    assert torch.equal(twice(x, t, label=label), velocity(x, t, label=label))


@pytest.mark.parametrize("law", [UniformTime(), LogitNormalTime(mean=0.7, std=0.6)])
def test_a_time_law_has_mass_one_and_draws_from_its_density(law):
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    # the midpoint rule on a smooth density (constant, or flat at both ends)
    assert abs(float(law.density(t).mean()) - 1) < 1e-9
    rng = torch.Generator().manual_seed(0)
    drawn = law.sample(4000, generator=rng, dtype=torch.float64).sort().values
    cumulative = law.density(t).cumsum(0) / 200_000
    at = torch.from_numpy(np.interp(drawn.numpy(), t.numpy(), cumulative.numpy()))
    gap = (at - (torch.arange(4000) + 0.5) / 4000).abs().max()
    # Kolmogorov-Smirnov at a level of 1e-6: sqrt(log(2e6) / 2 / 4000)
    assert gap < math.sqrt(math.log(2e6) / 2 / 4000)


def test_the_logit_normal_is_that_of_torch():
    law = LogitNormalTime(mean=0.3, std=1.4)
    t = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    theirs = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(*torch.tensor([0.3, 1.4], dtype=torch.float64)),
        [torch.distributions.SigmoidTransform()],
    )
    torch.testing.assert_close(law.density(t), theirs.log_prob(t).exp(), rtol=1e-10, atol=0)


def test_the_reversed_law_is_the_law_of_one_minus_t():
    law = LogitNormalTime(mean=1.0, std=0.5)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(law.reversed().density(t), law.density(1 - t), rtol=1e-12, atol=0)
    assert law.density(torch.tensor([0.0, 1.0, -1.0, 2.0])).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, t: LinearPath().sample(x, x.long(), t), TypeError, "x1 must have a floating"),
        (lambda x, t: LinearPath().sample(x[:1], x, t), ValueError, "x0 must have x1's shape"),
        (lambda x, t: LinearPath().sample(x.double(), x, t), TypeError, "x0 must have x1's dtype"),
        (
            lambda x, t: LinearPath().sample(x, x, t + 1.5),
            ValueError,
            r"t must lie in \[0, 1\], got 1",
        ),
        (lambda x, t: LinearPath().sample(x, x, t * math.nan), ValueError, "got nan"),
        (lambda x, t: LinearPath().sample(x, x, t[:, None]), ValueError, "t must have shape"),
        (lambda x, t: LinearPath().sample(x, x, t.double()), TypeError, "t must have x1's dtype"),
        (lambda x, t: LinearPath().sample(x, x, 0.5), TypeError, "t must be a tensor"),
        (lambda x, t: LinearPath().sample(x[0, :], x[0, :], t), ValueError, "at least 2 axes"),
        (
            lambda x, t: LinearPath().convert(x, x, t, given="noise", wanted="x1"),
            ValueError,
            "given must be one of",
        ),
        (lambda x, t: OptimalTransportPath(sigma_min=1.0), ValueError, "sigma_min must be below 1"),
        (
            lambda x, t: OptimalTransportPath(sigma_min=0.0),
            ValueError,
            "sigma_min must be positive",
        ),
        (lambda x, t: VariancePreservingPath(beta_min=2.0, beta_max=1.0), ValueError, "beta_max"),
        (lambda x, t: VarianceExplodingPath(sigma_min=1, sigma_max=1), ValueError, "sigma_max"),
        (lambda x, t: GaussianPath(1.0, torch.cos), TypeError, "alpha must be a function"),
        (lambda x, t: LogitNormalTime(mean=math.inf, std=1.0), ValueError, "mean must be a finite"),
        (lambda x, t: LogitNormalTime(mean=0.0, std=0.0), ValueError, "std must be positive"),
        (lambda x, t: UniformTime().sample(3, generator=None), TypeError, "generator must be"),
        (lambda x, t: reverse_time(3), TypeError, "velocity must be callable"),
        (lambda x, t: reverse_time(lambda x, t: x[:1])(x, t), ValueError, "velocity must return"),
    ],
)
def test_a_wrong_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3), torch.zeros(2))
