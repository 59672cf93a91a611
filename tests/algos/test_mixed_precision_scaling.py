"""Loss scaling, call by call beside `torch.amp.GradScaler`."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.amp import GradScaler

from pkg.algos.mixed_precision.scaler import LossScaler

# ---------------------------------------------------------------- beside GradScaler

# What GradScaler asserts about the order of calls is a RuntimeError here, as its other errors are.
SAME_ERROR = {AssertionError: RuntimeError}


class Side:
    """A scaler with two optimizers, whose gradients are set by hand."""

    def __init__(self, scaler, make=None):
        make = make or (lambda params: torch.optim.SGD(params, lr=0.25, momentum=0.5))
        self.scaler = scaler
        self.params = [torch.nn.Parameter(torch.arange(1.0, 4.0) * 3**i) for i in range(3)]
        self.optimizers = [make(self.params[:2]), make(self.params[2:])]
        self.loss = torch.tensor(1.5)

    def do(self, call, *arguments):
        """Return what a call gives: its result, or the kind of its error."""
        try:
            return getattr(self, call)(*arguments)
        except (AssertionError, RuntimeError, ValueError) as error:
            return SAME_ERROR.get(type(error), type(error))

    def scale(self):
        return self.scaler.scale(self.loss)

    def gradients(self, which, kind):
        scale = self.scaler.state_dict()["scale"]
        for param in self.params[:2] if which == 0 else self.params[2:]:
            param.grad = None if kind is None else torch.tensor([1.0, -0.5, kind]) * scale

    def unscale(self, which):
        self.scaler.unscale_(self.optimizers[which])

    def step(self, which):
        return self.scaler.step(self.optimizers[which])

    def update(self, scale):
        self.scaler.update(scale)

    def seen(self):
        grads = [None if p.grad is None else p.grad.clone() for p in self.params]
        return self.scaler.state_dict(), [p.detach().clone() for p in self.params], grads


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a.nan_to_num(nan=7e7), b.nan_to_num(nan=7e7))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


CALLS = st.one_of(
    st.tuples(st.just("scale")),
    st.tuples(
        st.just("gradients"), st.sampled_from([0, 1]),
        st.sampled_from([2.0, 2.0, 2.0, math.inf, -math.inf, math.nan, None]),
    ),
    st.tuples(st.just("unscale"), st.sampled_from([0, 1])),
    st.tuples(st.just("step"), st.sampled_from([0, 1])),
    st.tuples(st.just("update"), st.sampled_from([None, None, None, 8.0])),
)  # fmt: skip
ARGUMENTS = st.tuples(
    st.sampled_from([1.0, 2.0**16, 3.7]), st.sampled_from([2.0, 1.1]),
    st.sampled_from([0.5, 0.3]), st.sampled_from([1, 2, 3]),
)  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True)
@given(ARGUMENTS, st.lists(CALLS, max_size=40))
def test_any_sequence_of_calls_does_what_gradscaler_does(arguments, calls):
    ours, theirs = Side(LossScaler(*arguments)), Side(GradScaler("cpu", *arguments))
    for call in [("scale",), *calls]:
        assert same(ours.do(*call), theirs.do(*call)), call
        assert same(ours.seen(), theirs.seen()), call


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(CALLS, max_size=8))
def test_before_the_first_loss_too(calls):
    ours, theirs = Side(LossScaler()), Side(GradScaler("cpu"))
    for call in calls:
        assert same(ours.do(*call), theirs.do(*call)), call
        assert same(ours.seen(), theirs.seen()), call


def test_the_hypothesis_tests_reach_every_error():
    """The messages of an iteration in the wrong order; the calls above draw them all."""
    scaler, side = LossScaler(), Side(None)
    optimizer = side.optimizers[0]
    for call in (scaler.unscale_, scaler.step):
        with pytest.raises(RuntimeError, match="needs a scaled loss"):
            call(optimizer)
    with pytest.raises(RuntimeError, match="update needs a scaled loss"):
        scaler.update()
    scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match="No inf checks were recorded prior to update"):
        scaler.update()
    with pytest.raises(RuntimeError, match="No inf checks were recorded for this optimizer"):
        scaler.step(optimizer)
    scaler.update(4.0)
    side.params[0].grad = torch.ones(3)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called on this optimizer"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="being called after step"):
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="step\\(\\) has already been called"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="closure"):
        scaler.step(optimizer, closure=lambda: 0)


def test_an_infinity_skips_its_optimizer_and_not_the_other():
    side = Side(LossScaler(growth_interval=1))
    before = [p.detach().clone() for p in side.params]
    side.scale()
    side.gradients(0, math.inf)
    side.gradients(1, 2.0)
    side.step(0)
    side.step(1)
    side.update(None)
    changed = [not torch.equal(p, q) for p, q in zip(side.params, before, strict=True)]
    assert changed == [False, False, True]
    assert side.scaler.get_scale() == 2.0**15  # shared by both


@pytest.mark.parametrize("kind", [2.0, math.inf])
def test_fused_optimizers_and_sparse_gradients(kind):
    def fused(params):
        return torch.optim.AdamW(params, lr=0.25, fused=True)

    sides = Side(LossScaler(3.7), fused), Side(GradScaler("cpu", 3.7), fused)
    for side in sides:
        side.scale()
        side.gradients(0, kind)
        side.step(0)
        side.update(None)
    for mine, theirs in zip(sides[0].params, sides[1].params, strict=True):
        # GradScaler lets the fused step divide by the scale, we multiply by its inverse: one
        # rounding of the gradient, on which AdamW's first step does not depend but for eps.
        torch.testing.assert_close(mine, theirs, rtol=2e-7, atol=0)
    assert sides[0].scaler.state_dict() == sides[1].scaler.state_dict()

    tables = []
    for scaler in (LossScaler(8.0), GradScaler("cpu", 8.0)):
        table = torch.nn.Embedding.from_pretrained(torch.ones(5, 2), freeze=False, sparse=True)
        optimizer = torch.optim.SGD(table.parameters(), lr=0.5)
        scaler.scale((table(torch.tensor([1, 3, 3])) * kind).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        tables.append((table.weight.detach(), scaler.state_dict()))
    assert torch.equal(tables[0][0], tables[1][0])
    assert tables[0][1] == tables[1][1]
    assert bool((tables[0][0] == 1).all()) == (kind == math.inf)


def test_half_precision_gradients():
    for scaler in (LossScaler(), GradScaler("cpu")):
        param = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
        scaler.scale(param.sum()).backward()
        with pytest.raises(ValueError, match=r"float16|FP16"):
            scaler.step(torch.optim.SGD([param]))
    found = []
    for scaler in (LossScaler(3.7), GradScaler("cpu", 3.7)):
        param = torch.nn.Parameter(torch.linspace(0.1, 5, 99).bfloat16())
        scaler.scale((param.float() ** 2).sum()).backward()
        scaler.unscale_(torch.optim.SGD([param]))
        found.append(param.grad)
    assert torch.equal(*found)


def test_the_scale_stays_within_float32():
    for growth, steps in ((2.0, 3), (1.7, 4)):
        ours, theirs = (
            Side(make) for make in (
                LossScaler(2.0**126, growth, growth_interval=1),
                GradScaler("cpu", 2.0**126, growth, growth_interval=1),
            )
        )  # fmt: skip
        for _ in range(steps):
            for side in (ours, theirs):
                side.scale()
                side.params[0].grad = torch.zeros(3)
                side.step(0)
                side.update(None)
        assert ours.scaler.state_dict() == theirs.scaler.state_dict()
        assert math.isfinite(ours.scaler.get_scale())


def test_states_are_exchanged():
    arguments = (2.0**10, 4.0, 0.25, 3)
    ours, theirs = LossScaler(*arguments), GradScaler("cpu", *arguments)
    for scaler in (ours, theirs):
        side = Side(scaler)
        side.scale()
        side.gradients(0, 2.0)
        side.step(0)
        side.update(None)
    assert ours.state_dict() == theirs.state_dict()
    assert ours.state_dict()["_growth_tracker"] == 1
    a, b = LossScaler(), GradScaler("cpu")
    a.load_state_dict(theirs.state_dict())
    b.load_state_dict(ours.state_dict())
    assert a.state_dict() == b.state_dict() == ours.state_dict()
    with pytest.raises(ValueError, match=r"missing: \['scale', 'growth_factor'"):
        a.load_state_dict({})


def test_a_loaded_scale_is_the_one_in_force():
    scaler = LossScaler(4.0)
    assert scaler.scale(torch.tensor(1.0)) == 4
    scaler.load_state_dict(LossScaler(32.0).state_dict())
    assert scaler.scale(torch.tensor(1.0)) == 32


def test_what_can_be_scaled():
    x, y = torch.tensor(1.5), torch.tensor([2.0, 3.0], dtype=torch.float16)
    for scaler in (LossScaler(8.0), GradScaler("cpu", 8.0)):
        assert same(scaler.scale([x, (y, x)]), [x * 8, (y * 8, x * 8)])
        assert same(list(scaler.scale(part for part in (x, y))), [x * 8, y * 8])
        assert scaler.scale(y).dtype == torch.float16
        # A loss in float16 becomes float32, or 65,536 times 1 would be infinite.
        assert scaler.scale(x.half()).dtype == torch.float32
        with pytest.raises((TypeError, ValueError), match="outputs must be a"):
            scaler.scale(3.0)
        with pytest.raises((TypeError, ValueError), match="outputs must be a"):
            scaler.scale([x, 3.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_scale": 0.0}, "init_scale must be positive"),
        ({"init_scale": math.inf}, "init_scale must be positive and finite"),
        ({"init_scale": 1e39}, "init_scale must be positive and finite in float32, got 1e\\+39"),
        ({"init_scale": 1e-46}, "init_scale must be positive and finite in float32, got 1e-46"),
        ({"growth_factor": 1.0}, "growth_factor must be above 1"),
        ({"backoff_factor": 1.0}, "backoff_factor must be in"),
        ({"backoff_factor": 0.0}, "backoff_factor must be in"),
        ({"growth_interval": 0}, "growth_interval must be at least 1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossScaler(**arguments)


def test_arguments_of_another_type():
    with pytest.raises(TypeError, match=r"growth_interval must be an int, got 2\.5"):
        LossScaler(growth_interval=2.5)
    with pytest.raises(TypeError, match="init_scale must be a number"):
        LossScaler("8")
    scaler = LossScaler()
    scaler.scale(torch.ones(()))
    with pytest.raises(ValueError, match="new_scale must be positive"):
        scaler.update(-1.0)
    with pytest.raises(ValueError, match="new_scale must be one number"):
        scaler.update(torch.ones(2))
    scaler.update(torch.tensor(3.0))
    assert scaler.get_scale() == 3


# ---------------------------------------------------------------- published mistakes


def test_a_scale_below_one_hands_no_infinity_to_the_optimizer():
    """pytorch#99640: the scaled gradient is finite, the gradient is not, and GradScaler steps."""
    after = {}
    for scaler in (LossScaler(2.0**-3), GradScaler("cpu", 2.0**-3)):
        param = torch.nn.Parameter(torch.ones(1))
        scaler.scale(param.sum())
        param.grad = torch.tensor([1e38])  # divided by 1/8: beyond float32
        scaler.step(torch.optim.SGD([param], lr=1.0))
        scaler.update()
        after[type(scaler)] = float(param.detach()), scaler.state_dict()["scale"]
    assert after[GradScaler] == (-math.inf, 2.0**-3)
    assert after[LossScaler] == (1.0, 2.0**-4)


def test_a_scale_halved_to_nothing_skips_every_step():
    """GradScaler's scale of 0 makes NaN of finite gradients after it has checked them."""
    after = {}
    for scaler in (LossScaler(2.0**-149), GradScaler("cpu", 2.0**-149)):
        param = torch.nn.Parameter(torch.ones(1))
        for gradient in (math.inf, 0.0):
            scaler.scale(param.sum())
            param.grad = torch.tensor([gradient])
            # Weight decay moves the weight even without a gradient.
            scaler.step(torch.optim.SGD([param], lr=1.0, weight_decay=0.5))
            scaler.update()
        after[type(scaler)] = float(param.detach())
    assert math.isnan(after[GradScaler])
    assert after[LossScaler] == 1.0


def test_clipping_before_unscaling_clips_nearly_everything_away():
    """Pytorch-UNet#468: the norm that is clipped is the scale times the gradient's."""
    steps = {}
    for order in ("unscale, clip", "clip"):
        param = torch.nn.Parameter(torch.zeros(4))
        optimizer, scaler = torch.optim.SGD([param], lr=1.0), LossScaler(2.0**10)
        scaler.scale(param.sum() / 4).backward()
        if order == "unscale, clip":
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([param], 1.0)
        scaler.step(optimizer)
        steps[order] = float(param.detach().norm())
    assert steps["unscale, clip"] == 0.5  # below the limit: not clipped
    assert steps["clip"] == pytest.approx(2.0**-10, rel=1e-5)  # eps in PyTorch's clipping is 1e-6


def test_scaling_saves_gradients_that_underflow():
    """A product of float16 numbers of 2⁻¹³ is 0 as half precision, and a scale of 2¹⁰ carries it."""
    found = {}
    for scale in (1.0, 2.0**10):
        weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
        scaler = LossScaler(scale)
        loss = ((weight * 2.0**-13).float() * 2.0**-13).sum()
        scaler.scale(loss).backward()
        found[scale] = weight.grad.float() / scale
    assert torch.equal(found[1.0], torch.zeros(3))
    assert torch.equal(found[2.0**10], torch.full((3,), 2.0**-26))
