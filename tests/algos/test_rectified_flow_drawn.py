"""The drawn path: against `sample` at the times and noise that were drawn, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pkg.algos.rectified_flow import LinearPath, LogitNormalTime, UniformTime, draw_path
from tests.algos.flow_oracle import PATHS, randn


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", PATHS)
def test_a_drawn_path_is_the_path_at_the_times_and_noise_that_were_drawn(name, given):
    x1 = randn(40, 3, 5)
    x0 = randn(40, 3, 5, seed=1) if given else None
    generator = torch.Generator().manual_seed(3)
    drawn = draw_path(x1, path=PATHS[name], time=UniformTime(), generator=generator, x0=x0)
    assert drawn.x1 is x1
    assert not given or drawn.x0 is x0
    wanted = PATHS[name].sample(drawn.x0, x1, drawn.t)
    for a, b in ((drawn.xt, wanted.xt), (drawn.velocity, wanted.velocity)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # some roundings of float64


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", PATHS)
def test_a_drawn_path_has_the_gradient_of_its_coefficients(name, given):
    """Once the times of every path but the straight ones stood in the way: they have no gradient."""
    x1 = randn(6, 2).requires_grad_()
    x0 = randn(6, 2, seed=1).requires_grad_() if given else None
    drawn = draw_path(
        x1, path=PATHS[name], time=UniformTime(), generator=torch.Generator().manual_seed(2), x0=x0
    )
    at = PATHS[name].coefficients(drawn.t.detach())
    total = (drawn.xt + 2 * drawn.velocity).sum()
    ends = [(x1, at.alpha + 2 * at.d_alpha), (x0, at.sigma + 2 * at.d_sigma)][: 1 + given]
    found = torch.autograd.grad(total, [end for end, _ in ends])
    for gradient, (_, wanted) in zip(found, ends, strict=True):
        # some roundings of float64
        torch.testing.assert_close(gradient, wanted[:, None].expand(6, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PATHS)
def test_half_precision_is_rounded_once(name, dtype):
    x1, x0 = randn(30, 20, dtype=dtype), randn(30, 20, dtype=dtype, seed=1)
    drawn = draw_path(
        x1, path=PATHS[name], time=LogitNormalTime(mean=0.0, std=1.0),
        generator=torch.Generator().manual_seed(0), x0=x0,
    )  # fmt: skip
    assert drawn.t.dtype == torch.float32
    assert drawn.xt.dtype == drawn.velocity.dtype == dtype
    at = PATHS[name].coefficients(drawn.t)
    for got, a, s in ((drawn.xt, at.alpha, at.sigma), (drawn.velocity, at.d_alpha, at.d_sigma)):
        a, s = a.double()[:, None], s.double()[:, None]
        exact = a * x1.double() + s * x0.double()
        # Half a spacing of the type, and a few roundings of float32 in the terms.
        allowed = torch.finfo(dtype).eps / 2 * exact.abs().clamp(min=torch.finfo(dtype).tiny)
        allowed += (
            4 * 2.0**-23 * ((1 + a.abs()) * x1.double().abs() + (1 + s.abs()) * x0.double().abs())
        )
        assert bool(((got.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize(
    ("law", "transform", "name"),
    [
        (UniformTime(), lambda t: t, "uniform"),
        (LogitNormalTime(mean=0.5, std=0.7), lambda t: (np.log(t / (1 - t)) - 0.5) / 0.7, "norm"),
    ],
)
def test_times_follow_their_law_and_not_the_noise(law, transform, name):
    """On 20,000 times, Kolmogorov and Smirnov see a shift of 0.04 deviations almost surely."""
    drawn = draw_path(
        torch.zeros(20_000, 1),
        path=LinearPath(),
        time=law,
        generator=torch.Generator().manual_seed(1),
    )
    t, noise = drawn.t.double().numpy(), drawn.x0[:, 0].numpy()
    assert stats.kstest(transform(t), name).pvalue > 1e-3
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert abs(stats.spearmanr(t, noise).statistic) < 4 / math.sqrt(20_000)  # four deviations


def test_the_generator_decides_and_moves_on():
    def run(generator):
        return draw_path(
            torch.zeros(3, 2), path=LinearPath(), time=UniformTime(), generator=generator
        )

    first = torch.Generator().manual_seed(5)
    one, two, again = run(first), run(first), run(torch.Generator().manual_seed(5))
    assert torch.equal(one.xt, again.xt)
    assert not torch.equal(one.t, two.t)
    assert not torch.equal(one.x0, two.x0)


def test_uniform_times_are_never_an_end():
    times = [
        draw_path(torch.zeros(50_000, 1), path=LinearPath(), time=UniformTime(),
                  generator=torch.Generator().manual_seed(seed)).t
        for seed in range(4)
    ]  # fmt: skip
    t = torch.cat(times).double()
    assert float(t.min()) >= 2.0**-24
    assert float(t.max()) <= 1 - 2.0**-24
    halves = t * 2**24
    assert bool((halves % 2 == 1).all())  # odd multiples: the middles of 2^23 intervals


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x1": torch.ones(3)}, ValueError, r"x1 must have shape \(batch, ...\)"),
        ({"x1": torch.ones(3, 1).long()}, TypeError, "x1 must have a floating-point dtype"),
        ({"x0": torch.ones(2, 1)}, ValueError, r"x0 must have x1's shape \(3, 1\)"),
        ({"x0": torch.ones(3, 1).double()}, TypeError, "x0 must have x1's dtype"),
        ({"path": "linear"}, TypeError, "path must be a GaussianPath, got str"),
        (
            {"time": "uniform"},
            TypeError,
            "time must be a UniformTime or a LogitNormalTime, got str",
        ),
        ({"generator": 0}, TypeError, "generator must be a torch.Generator, got int"),
    ],
)
def test_bad_arguments_of_a_drawn_path_are_told_by_name(change, error, message):
    given = {"x1": torch.ones(3, 1), "path": LinearPath(), "time": UniformTime(),
             "generator": torch.Generator()}  # fmt: skip
    with pytest.raises(error, match=message):
        draw_path(**{**given, **change})


def test_a_path_that_was_made_of_the_linear_one_is_not_taken_for_it():
    class Bent(LinearPath):
        def coefficients(self, t):
            at = super().coefficients(t)
            return type(at)(at.alpha**2, at.sigma, 2 * at.alpha, at.d_sigma)

    x1 = randn(10, 2)
    drawn = draw_path(
        x1, path=Bent(), time=UniformTime(), generator=torch.Generator().manual_seed(0)
    )
    wanted = drawn.t[:, None] ** 2 * x1 + (1 - drawn.t[:, None]) * drawn.x0
    torch.testing.assert_close(drawn.xt, wanted, rtol=0, atol=1e-14)
