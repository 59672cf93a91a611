"""The fused sampler: against torchdiffeq, diffusers, and plain formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torchdiffeq import odeint

from pkg.algos.rectified_flow.sampler import STAGES, guided_step, sample_fixed
from tests.algos.flow_oracle import randn

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def uneven(steps, dtype=torch.float64):
    """Times from 0 to 1, closer together at one end."""
    return torch.linspace(0, 1, steps + 1, dtype=dtype) ** 1.5


def swirl(x, t):
    """A velocity that is linear in nothing."""
    return torch.sin(2 * x.flip(1) + t.view(-1, 1)) - x * t.view(-1, 1)


# ---------------------------------------------------------------- the methods


@pytest.mark.parametrize(
    ("ours", "theirs"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")]
)
@pytest.mark.parametrize("falling", [False, True])
def test_the_methods_are_those_of_torchdiffeq(ours, theirs, falling):
    x, times = randn(7, 2), uneven(9)
    times = times.flip(0) if falling else times
    wanted = odeint(lambda t, x: swirl(x, t.expand(len(x))), x, times, method=theirs)[-1]
    torch.testing.assert_close(
        sample_fixed(swirl, x, times, method=ours), wanted, rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("method", STAGES)
@pytest.mark.parametrize("z", [-1.7, 0.3, 2.0])
def test_growth_in_one_step_is_the_exponential_series_up_to_the_order(method, z):
    """On x' = z x a method of order p with p slopes gives 1 + z + … + z^p / p!, and nothing else."""
    order = ORDERS[method]
    wanted = sum(z**k / math.factorial(k) for k in range(order + 1))
    found = sample_fixed(
        lambda x, t: z * x, torch.ones(1, 1, dtype=torch.float64), 1, method=method
    )
    assert abs(float(found) - wanted) < 1e-14


@pytest.mark.parametrize("method", STAGES)
def test_the_classical_weights_integrate_polynomials_in_time(method):
    """x' = t^k: exact for k < p, and with Simpson's weights (rk4) for k = 3 but not for 4."""
    times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    exact = {"euler": 0, "midpoint": 1, "heun": 1, "rk4": 3}[method]
    for k in range(exact + 2):
        found = sample_fixed(
            lambda x, t, k=k: t.view(-1, 1).expand_as(x) ** k, torch.zeros(1, 1).double(), times,
            method=method,
        )  # fmt: skip
        assert (abs(float(found) - 1 / (k + 1)) < 1e-14) == (k <= exact)


@pytest.mark.parametrize("method", STAGES)
def test_halving_the_steps_divides_the_error_as_the_order_says(method):
    x = randn(50, 2)
    truth = odeint(
        lambda t, x: swirl(x, t.expand(len(x))), x, torch.tensor([0.0, 1.0]).double(), method="dopri8",
        rtol=1e-12, atol=1e-12,
    )[-1]  # fmt: skip
    steps = (32, 64, 128) if method != "rk4" else (8, 16, 32)
    errors = [float((sample_fixed(swirl, x, n, method=method) - truth).norm()) for n in steps]
    found = [math.log2(a / b) for a, b in pairwise(errors)]
    # The error of the order itself is of relative size h times a constant.
    assert abs(found[-1] - ORDERS[method]) < 0.15
    assert abs(found[-1] - ORDERS[method]) <= abs(found[0] - ORDERS[method]) + 0.02


@pytest.mark.parametrize("method", STAGES)
def test_a_straight_flow_takes_one_step(method):
    x0, x1 = randn(5, 3, 2), randn(5, 3, 2, seed=1)
    found = sample_fixed(lambda x, t: x1 - x0, x0, 1, method=method)
    torch.testing.assert_close(found, x1, rtol=0, atol=1e-14)


def test_the_velocity_is_asked_for_as_often_as_the_method_says():
    for method, stages in STAGES.items():
        seen = []

        def velocity(x, t, seen=seen):
            assert t.shape == (4,)
            seen.append(float(t[0]))
            return x

        sample_fixed(velocity, torch.ones(4, 2), torch.tensor([0.0, 0.5, 1.0]), method=method)
        nodes = [node for node, _, _ in stages]
        assert seen == [0.5 * node for node in nodes] + [0.5 + 0.5 * node for node in nodes]


# ---------------------------------------------------------------- guidance


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, 4.5])
@pytest.mark.parametrize("index", [0, 3])
def test_a_guided_step_is_that_of_diffusers(weight, index):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    x, c, u = (randn(2, 3, 4, seed=i, dtype=torch.float32) for i in range(3))
    scheduler.set_begin_index(index)
    v = u + weight * (c - u)
    wanted = scheduler.step(v, scheduler.timesteps[index], x, return_dict=False)[0]
    given = {"unconditional": u, "guidance": weight}
    found = guided_step(x, c, times=scheduler.sigmas, index=index, **given)
    # Noise is at 1 there and times fall: the same step. A handful of roundings on either side.
    torch.testing.assert_close(found, wanted, rtol=0, atol=8 * 2.0**-24 * (1 + 2 * weight) * 4)
    if weight == 1.0:
        assert torch.equal(found, guided_step(x, c, times=scheduler.sigmas, index=index))


@pytest.mark.parametrize("method", STAGES)
def test_guidance_in_the_sampler_is_guidance_of_the_velocity(method):
    def velocity(x, t, label, scale):
        return swirl(x, t) * label.view(-1, 1) + scale.view(-1, 1)

    x, label, scale = randn(6, 2), randn(6, seed=1), randn(6, seed=2)
    none = {"label": torch.zeros_like(label), "scale": -torch.ones_like(scale)}
    weights = torch.linspace(-1, 5, 6, dtype=torch.float64)
    for weight in (2.5, torch.tensor(2.5), weights):
        factor = weight.view(-1, 1) if isinstance(weight, torch.Tensor) and weight.ndim else weight

        def plain(x, t, factor=factor):
            u = velocity(x, t, **none)
            return u + factor * (velocity(x, t, label, scale) - u)

        found = sample_fixed(
            velocity, x, uneven(5), method=method, guidance=weight, unconditional=none,
            label=label, scale=scale,
        )  # fmt: skip
        wanted = sample_fixed(plain, x, uneven(5), method=method)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_guidance_asks_once_for_both_halves_the_conditional_first():
    seen = []

    def velocity(x, t, label):
        seen.append((x.shape, t.shape, label.tolist()))
        assert torch.equal(x[:2], x[2:])
        return x

    sample_fixed(
        velocity, torch.ones(2, 3), 2, method="euler", guidance=3.0,
        unconditional={"label": torch.tensor([9, 9])}, label=torch.tensor([1, 2]),
    )  # fmt: skip
    assert seen == [((4, 3), (4,), [1, 2, 9, 9])] * 2


# ---------------------------------------------------------------- types


@pytest.mark.parametrize("method", STAGES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_network_does_not_stop_the_state(method, dtype):
    """256 steps of 1/256 from 1: in bfloat16 each is a quarter of what would move a state above 2."""
    seen = []

    def velocity(x, t):
        seen.append((x.dtype, t.dtype))
        return torch.full_like(x, 3.0)

    found = sample_fixed(velocity, torch.ones(1, 1, dtype=dtype), 256, method=method)
    assert found.dtype == dtype
    assert float(found) == 4.0
    assert set(seen) == {(dtype, torch.float32)}


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_step_is_rounded_once(dtype, guided):
    x, c, u = (randn(70, 1000, seed=i, dtype=dtype) for i in range(3))
    given = {"unconditional": u, "guidance": 4.5} if guided else {}
    found = guided_step(x, c, times=torch.tensor([1.0, 0.7]), index=0, **given)
    h = float(torch.tensor(0.7)) - 1.0
    v = u.double() + 4.5 * (c.double() - u.double()) if guided else c.double()
    exact = x.double() + h * v
    # Half a spacing of the type, and four roundings of float32.
    allowed = torch.finfo(dtype).eps / 2 * exact.abs().clamp(min=torch.finfo(dtype).tiny)
    allowed += 2.0**-22 * (x.double().abs() + 5.5 * (c.double().abs() + u.double().abs()))
    assert bool(((found.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize("weight", [None, 4.5])
def test_a_float64_state_is_moved_in_float64_by_velocities_of_float32(weight):
    x = randn(2, 5)
    c, u = (randn(2, 5, seed=i, dtype=torch.float32) for i in (1, 2))
    given = {} if weight is None else {"unconditional": u, "guidance": weight}
    times = torch.tensor([0.0, 0.3], dtype=torch.float64)
    found = guided_step(x, c, times=times, index=0, **given)
    w = 1.0 if weight is None else weight
    exact = x + 0.3 * (u.double() + w * (c.double() - u.double()))
    # Some roundings of float64; in float32 it would be off by 1e-7.
    torch.testing.assert_close(found, exact, rtol=1e-14, atol=1e-14)


def test_shapes_without_elements_and_without_samples():
    for shape in ((0, 3), (3, 0)):
        x = torch.zeros(shape)
        assert sample_fixed(lambda x, t: x, x, 2, method="heun").shape == shape


def test_a_strided_start_is_no_matter():
    x = randn(4, 6).T
    found = sample_fixed(swirl, x[:, :2], 3, method="rk4")
    assert torch.equal(found, sample_fixed(swirl, x[:, :2].contiguous(), 3, method="rk4"))


def test_the_start_is_left_as_it_was():
    x = randn(3, 2)
    before = x.clone()
    sample_fixed(swirl, x, 4, method="heun")
    assert torch.equal(x, before)


X, TIMES = torch.ones(2, 3), torch.tensor([0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"velocity": 3}, TypeError, "velocity must be callable, got int"),
        ({"x": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "x must have a floating-point dtype"),
        ({"x": torch.ones(3)}, ValueError, r"x must have shape \(batch, ...\)"),
        ({"times": 0}, ValueError, "times must be at least 1, got 0"),
        ({"times": 2.0}, TypeError, "times must be an int, got 2.0"),
        ({"times": torch.tensor([0.5])}, ValueError, r"times must have shape \(N \+ 1,\)"),
        ({"times": torch.tensor([0.0, 1.0, 1.0])}, ValueError, "rise or fall throughout"),
        ({"times": torch.tensor([0.0, math.nan])}, ValueError, "rise or fall throughout"),
        ({"times": torch.tensor([0, 1])}, TypeError, "times must have a floating-point dtype"),
        ({"times": TIMES.clone().requires_grad_()}, ValueError, "times must not require a gradient"),
        ({"method": "rk5"}, ValueError, "method must be one of euler, midpoint, heun, rk4, got 'rk5'"),
        ({"guidance": 2.0}, ValueError, "unconditional must be a mapping"),
        ({"guidance": 2.0, "unconditional": {}}, ValueError, r"conditions \['label'\], got \[\]"),
        ({"unconditional": {"label": X}}, ValueError, "guidance must be given where unconditional is"),
        ({"guidance": "2", "unconditional": {"label": X}}, TypeError, "guidance must be a number"),
        ({"guidance": torch.ones(3), "unconditional": {"label": X}}, ValueError, r"shape \(\) or \(2,\)"),
        ({"velocity": lambda x, t, label: x[:1]}, ValueError, r"x's shape \(2, 3\), got \(\(1, 3\)"),
        ({"velocity": lambda x, t, label: None}, ValueError, "got NoneType"),
    ],
)  # fmt: skip
def test_bad_arguments_are_told_by_name(change, error, message):
    given = {
        "velocity": lambda x, t, label: x,
        "x": X,
        "times": TIMES,
        "method": "euler",
        "label": X,
    }
    with pytest.raises(error, match=message):
        sample_fixed(**{**given, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": 2}, ValueError, "index must be below 2, the number of steps, got 2"),
        ({"index": -1}, ValueError, "index must be at least 0"),
        ({"velocity": X[:1]}, ValueError, "velocity must be a floating-point tensor of x's shape"),
        ({"velocity": X.long()}, ValueError, "velocity must be a floating-point tensor"),
        ({"unconditional": X[:1], "guidance": 1.0}, ValueError, "unconditional must be a floating"),
        ({"unconditional": X}, ValueError, "guidance and unconditional must be given together"),
        ({"guidance": 2.0}, ValueError, "guidance and unconditional must be given together"),
    ],
)  # fmt: skip
def test_bad_arguments_of_a_step_are_told_by_name(change, error, message):
    with pytest.raises(error, match=message):
        guided_step(**{"x": X, "velocity": X, "times": TIMES, "index": 0, **change})
