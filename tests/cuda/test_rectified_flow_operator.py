"""The operators of rectified flow on the CPU: schema, gradients, compiled, and where calls go."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.library import opcheck

from pkg.algos.rectified_flow.fused import draw_path
from pkg.algos.rectified_flow.operator import flow_draw, flow_path, flow_times
from pkg.algos.rectified_flow.paths import (
    LinearPath,
    OptimalTransportPath,
    VariancePreservingPath,
)
from pkg.algos.rectified_flow.sampler import STAGES, guided_step, sample_fixed
from pkg.algos.rectified_flow.steps import stage_operator, step_operator
from pkg.algos.rectified_flow.times import LogitNormalTime, UniformTime
from tests.cuda.calls import Calls

SEED = torch.tensor(12345)
LAW = ("logit_normal", 0.5, 1.25)
TIMES = torch.tensor([0.0, 0.3, 0.4, 1.0], dtype=torch.float64)


def numbers(*shape, dtype=torch.float64, start=0):
    generator = torch.Generator().manual_seed(start)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def learnt(*shape, start=0, dtype=torch.float64):
    return numbers(*shape, start=start, dtype=dtype).requires_grad_()


# ---------------------------------------------------------------- schema


@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_the_paths(dtype, draw):
    x0 = None if draw else learnt(4, 3, 2, start=1, dtype=dtype)
    x1 = learnt(4, 3, 2, dtype=dtype)
    opcheck(flow_draw, (x0, x1, *LAW, 0.9, SEED))
    opcheck(flow_draw, (x0, numbers(6, 4, dtype=dtype).T[:, :3], *LAW, 0.9, SEED)
            if draw else (x0, x1, "uniform", 0.0, 1.0, 1.0, SEED))  # fmt: skip
    coefficients = [learnt(4, start=2 + i, dtype=torch.float32) for i in range(4)]
    opcheck(flow_path, (x0, x1, *coefficients, SEED if draw else None))
    opcheck(flow_times, (x1.detach(), *LAW, SEED))


@pytest.mark.parametrize("guidance", ["none", "one", "each"])
@pytest.mark.parametrize("slopes", [torch.float32, torch.bfloat16])
def test_opcheck_of_the_steps(slopes, guidance):
    x, base = (learnt(3, 5, start=i, dtype=torch.float32) for i in range(2))
    c, u = (learnt(3, 5, start=2 + i, dtype=slopes) for i in range(2))
    w = {"none": None, "one": torch.tensor(2.5), "each": numbers(3, dtype=torch.float32)}[guidance]
    u = None if guidance == "none" else u
    opcheck(step_operator, (base, c, u, w, TIMES, 1, 0.5))
    opcheck(stage_operator, (x, base, c, u, w, TIMES, 1, 0.5, 0.25, slopes))


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("draw", [False, True])
def test_gradients_of_the_paths_are_those_of_their_numbers(draw):
    x1, x0 = learnt(3, 4), None if draw else learnt(3, 4, start=1)
    leaves = (x1,) if draw else (x0, x1)
    coefficients = [learnt(3, start=2 + i) for i in range(4)]

    def linear(*leaves):
        noise = None if draw else leaves[0]
        return flow_draw(noise, leaves[-1], *LAW, 0.9, SEED)[1:3]

    def affine(*given):
        noise = None if draw else given[0]
        return flow_path(noise, given[-5], *given[-4:], SEED if draw else None)[1:]

    assert torch.autograd.gradcheck(linear, leaves)
    assert torch.autograd.gradgradcheck(linear, leaves)
    assert torch.autograd.gradcheck(affine, (*leaves, *coefficients))
    assert torch.autograd.gradgradcheck(affine, (*leaves, *coefficients))


@pytest.mark.parametrize(
    "guidance", [None, torch.tensor(2.5), numbers(3)], ids=["none", "one", "each"]
)
def test_gradients_of_the_steps_are_those_of_their_numbers(guidance):
    x, base, c, u = (learnt(3, 4, start=i) for i in range(4))
    w = None if guidance is None else guidance.double()

    def move(base, c, u):
        return step_operator(base, c, None if w is None else u, w, TIMES, 1, 0.5)

    def ahead(x, base, c, u):
        return stage_operator(
            x, base, c, None if w is None else u, w, TIMES, 1, 0.5, 0.25, torch.float64
        )

    given = (base, c) if w is None else (base, c, u)
    assert torch.autograd.gradcheck(lambda *z: move(*z, *(u,) * (3 - len(z))), given)
    given = (x, base, c) if w is None else (x, base, c, u)
    assert torch.autograd.gradcheck(lambda *z: ahead(*z, *(u,) * (4 - len(z))), given)
    assert torch.autograd.gradgradcheck(lambda *z: ahead(*z, *(u,) * (4 - len(z))), given)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("method", STAGES)
def test_the_gradient_through_the_sampler_is_that_of_plain_code(method, guided):
    weight = learnt(4, 4)

    def velocity(x, t, label):
        return torch.tanh(x @ weight) * label.view(-1, 1) + t.view(-1, 1)

    x, label = learnt(3, 4, start=1), numbers(3, start=2)
    extra = {"guidance": 1.5, "unconditional": {"label": 0 * label}} if guided else {}

    def fused(x):
        return sample_fixed(velocity, x, TIMES, method=method, label=label, **extra).square().sum()

    def plain(x):
        def v(x, t):
            c = velocity(x, t.expand(3), label)
            u = velocity(x, t.expand(3), 0 * label)
            return u + 1.5 * (c - u) if guided else c

        for t, h in zip(TIMES[:-1], TIMES.diff(), strict=True):
            k = [v(x, t)]
            if method == "midpoint":
                k = [v(x + h / 2 * k[0], t + h / 2)]
            if method == "heun":
                k = [(k[0] + v(x + h * k[0], t + h)) / 2]
            if method == "rk4":
                k.append(v(x + h / 2 * k[0], t + h / 2))
                k.append(v(x + h / 2 * k[1], t + h / 2))
                k.append(v(x + h * k[2], t + h))
                k = [(k[0] + 2 * k[1] + 2 * k[2] + k[3]) / 6]
            x = x + h * k[0]
        return x.square().sum()

    found, wanted = (torch.autograd.grad(f(x), (x, weight)) for f in (fused, plain))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-12, atol=1e-12
        )  # some hundred roundings of float64


def test_times_and_drawn_noise_give_no_gradient_and_take_none():
    x1 = learnt(3, 4)
    drawn = draw_path(
        x1, path=LinearPath(), time=UniformTime(), generator=torch.Generator().manual_seed(0)
    )
    (gradient,) = torch.autograd.grad(drawn.t.sum() + drawn.x0.sum(), x1, allow_unused=True)
    assert gradient is None or not bool(gradient.any())


# ---------------------------------------------------------------- compiled


@pytest.mark.parametrize("dynamic", [False, True])
def test_each_compiles_into_one_graph(dynamic):
    x1, x0 = learnt(5, 3), numbers(5, 3, start=1)
    c, u, w = numbers(5, 3, start=2), numbers(5, 3, start=3), torch.tensor(2.5)
    coefficients = [numbers(5, start=4 + i) for i in range(4)]

    def drawn(x1):
        _, xt, velocity, t = flow_draw(None, x1 * 2, *LAW, 0.9, SEED)
        return (xt * t[:, None] + velocity).sum()

    def given(x1):
        _, xt, velocity = flow_path(x0, x1 * 2, *coefficients, None)
        return (xt * velocity).sum()

    def moved(x1):
        point, total = stage_operator(x1, x1 * 2, c, u, w, TIMES, 1, 0.5, 0.25, torch.float64)
        return (step_operator(total, point[:5], None, None, TIMES, 2, 1.0) * x0).sum()

    for function in (drawn, given, moved):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        torch.testing.assert_close(compiled(x1), function(x1), rtol=0, atol=0)
        (found,), (wanted,) = (torch.autograd.grad(f(x1), x1) for f in (compiled, function))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("method", STAGES)
def test_the_whole_sampler_compiles_into_one_graph(method):
    def run(x, w):
        return sample_fixed(
            lambda x, t, label: torch.sin(x) * label[:, None] * t[:, None], x, 3, method=method,
            guidance=w, unconditional={"label": torch.zeros(4)}, label=torch.ones(4),
        )  # fmt: skip

    x, w = numbers(4, 6, dtype=torch.float32), torch.tensor(2.0)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w), run(x, w), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- where calls go


def test_a_compiler_sees_the_operators_and_not_their_cpu_forms():
    """On a GPU the CPU form would be wrong; what is traced must not depend on where it was traced."""
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def run(x):
        return sample_fixed(lambda x, t: torch.sin(x), x, TIMES, method="heun")

    torch.compile(run, fullgraph=True, backend=backend)(numbers(3, 4))
    assert {name for name in seen if "checked" in name} == {
        "checked.flow_stage.default", "checked.flow_step.default",
    }  # fmt: skip


def test_tensors_of_a_device_reach_the_operators_and_nothing_waits_for_their_values():
    """On tensors without values: whoever asked for one, as `item` does, would get an error."""
    x, times, label = (torch.empty(*shape, device="meta") for shape in ((3, 5), (4,), (3,)))
    with Calls() as calls:
        y = sample_fixed(
            lambda x, t, label: x * label[:, None], x, times, method="heun", guidance=3.0,
            unconditional={"label": label}, label=label,
        )  # fmt: skip
        guided_step(x, y, times=times, index=0)
        for path in (LinearPath(), OptimalTransportPath(sigma_min=0.1)):
            draw_path(x, path=path, time=UniformTime(), generator=torch.Generator())
        law = LogitNormalTime(mean=0.0, std=1.0)
        path = VariancePreservingPath(beta_min=0.1, beta_max=20.0)
        draw_path(x, path=path, time=law, generator=torch.Generator())
    assert y.shape == (3, 5)
    ours = [name.split(".")[1] for name in calls.names if name.startswith("checked")]
    assert {name: ours.count(name) for name in set(ours)} == {
        "flow_stage": 5,  # two a step, but for the last
        "flow_step": 2, "flow_draw": 2, "flow_times": 1, "flow_path": 1,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="meta"):
        float(y.sum())


def test_cuda_tensors_reach_the_operators():
    """On tensors that say they are on a GPU and hold nothing, as a compiler sees them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, times = torch.empty(3, 5, device="cuda"), torch.empty(4, device="cuda")
        with Calls() as calls:
            y = guided_step(x, x, times=times, index=0)
            drawn = draw_path(x, path=LinearPath(), time=UniformTime(), generator=torch.Generator())
        for found in (y, drawn.xt, drawn.velocity, drawn.x0, drawn.t):
            assert found.device.type == "cuda"
    assert {"checked.flow_step.default", "checked.flow_draw.default"} <= set(calls.names)


def test_the_kernels_are_not_imported_for_cpu_tensors():
    script = (
        "import sys, torch; from pkg.algos.rectified_flow.fused import draw_path;"
        "from pkg.algos.rectified_flow.sampler import sample_fixed;"
        "from pkg.algos.rectified_flow import LinearPath, UniformTime;"
        "x = draw_path(torch.ones(3, 2), path=LinearPath(), time=UniformTime(),"
        " generator=torch.Generator()).xt;"
        "sample_fixed(lambda x, t: x, x.requires_grad_(), 2, method='rk4');"
        "assert not [m for m in sys.modules if m.startswith('pkg.cuda')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
