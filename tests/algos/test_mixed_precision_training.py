"""Small updates that survive: master weights, stochastic casts, and AdamW without a master copy."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from pkg.algos.mixed_precision.casts import TARGETS, stochastic_round
from pkg.algos.mixed_precision.master_weights import MasterWeights
from pkg.algos.mixed_precision.scaler import LossScaler

BF16_ULP = 2.0**-7  # the spacing of bfloat16 between 1 and 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(*dtypes, seed=0):
    drawn = generator(seed)
    return [nn.Parameter(torch.randn(5, 3, generator=drawn).to(dtype)) for dtype in dtypes]


def gradients(params, step):
    drawn = generator(100 + step)
    return [torch.randn(p.shape, generator=drawn).to(p.dtype) for p in params]


# ---------------------------------------------------------------- master weights

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "groups": lambda p: torch.optim.Adam([{"params": p[:1], "lr": 0.1}, {"params": p[1:]}]),
}
MIXED = (torch.float16, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_optimizer_on_float32_copies(name):
    params = parameters(*MIXED)
    twins = [nn.Parameter(p.detach().float()) for p in params]
    master, twin = MasterWeights(OPTIMIZERS[name](params)), OPTIMIZERS[name](twins)
    for step in range(5):
        master.zero_grad()
        for param, other, grad in zip(params, twins, gradients(params, step), strict=True):
            param.grad, other.grad = grad, grad.float()
        master.step()
        twin.step()
        for param, other, copy in zip(params, twins, master.parameters(), strict=True):
            assert torch.equal(copy, other)
            assert torch.equal(param, other.to(param.dtype))


def test_an_optimizer_that_has_stepped_keeps_its_state_in_float32():
    params = parameters(torch.bfloat16)
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    params[0].grad = torch.ones(5, 3, dtype=torch.bfloat16)
    optimizer.step()
    master = MasterWeights(optimizer)
    (entry,) = master.state.values()
    assert entry["momentum_buffer"].dtype == torch.float32
    assert bool((entry["momentum_buffer"] == 1).all())


@pytest.mark.parametrize(
    "make", [LossScaler, lambda s: GradScaler("cpu", s)], ids=["ours", "torch"]
)
def test_both_scalers_work_on_it(make):
    """Half-precision gradients are unscaled in float32, checked, and clipped there."""
    params = parameters(torch.float16, torch.float32)
    start = [p.detach().clone() for p in params]
    master, scaler = MasterWeights(torch.optim.SGD(params, lr=1.0)), make(2.0**10)
    for gradient, moves in ((2.0**-20, True), (65504.0, False)):
        before = [p.detach().clone() for p in master.parameters()]
        master.zero_grad()
        scaler.scale(sum((p.float() * gradient).sum() for p in params)).backward()
        scaler.unscale_(master)
        grads = [p.grad for p in master.parameters()]
        assert all(g.dtype == torch.float32 for g in grads)
        if moves:
            assert all(bool((g == gradient).all()) for g in grads)
            torch.nn.utils.clip_grad_norm_(master.parameters(), 2.0**-21)
        scaler.step(master)
        scaler.update()
        changed = [not torch.equal(p, b) for p, b in zip(master.parameters(), before, strict=True)]
        assert changed == [moves, moves]
    assert torch.equal(params[0], start[0])  # 2⁻²³ is far below float16's spacing; the copy has it
    assert scaler.get_scale() == 2.0**9


def test_gradients_of_several_passes_add_up_in_float32():
    (param,) = parameters(torch.float16)
    master = MasterWeights(torch.optim.SGD([param], lr=1.0))
    for part in (1024.0, 0.25, 0.25):  # float16 has no room for 1024.5 but for 1025 or 1024
        param.grad = torch.full_like(param, part)
        (copy,) = master.parameters()
    assert param.grad is None
    assert bool((copy.grad == 1024.5).all())
    master.zero_grad()
    assert copy.grad is None


def test_small_updates_are_absorbed_without_it():
    ends = {}
    for wrapped in (False, True):
        param = nn.Parameter(torch.ones(1, dtype=torch.float16))
        plain = torch.optim.SGD([param], lr=2.0**-12)
        optimizer = MasterWeights(plain) if wrapped else plain
        for _ in range(2048):
            optimizer.zero_grad()
            param.grad = torch.ones_like(param)
            optimizer.step()
        ends[wrapped] = param.item()
    assert ends == {False: 1.0, True: 0.5}


def test_a_closure_sees_the_weights_of_the_copies():
    """LBFGS evaluates the loss several times a step, each time at other weights."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        param = nn.Parameter(torch.tensor([3.0, -2.0], dtype=dtype))
        optimizer = torch.optim.LBFGS([param], lr=0.5, max_iter=20)
        stepper = MasterWeights(optimizer) if dtype == torch.bfloat16 else optimizer

        def closure(param=param, stepper=stepper):
            stepper.zero_grad()
            loss = ((param.float() - 1) ** 2).sum()
            loss.backward()
            return loss

        first = stepper.step(closure)
        found.append((float(first.detach()), param.detach().float()))
    assert found[0][0] == found[1][0] == 13.0
    torch.testing.assert_close(found[0][1], torch.ones(2), rtol=0, atol=BF16_ULP)


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_state_goes_through_a_file(name):
    params = parameters(*MIXED)
    master = MasterWeights(OPTIMIZERS[name](params))
    saved = None
    for step in range(6):
        if step == 3:
            file = io.BytesIO()
            torch.save(
                {"model": [p.detach() for p in params], "optimizer": master.state_dict()}, file
            )
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        master.zero_grad()
        for param, grad in zip(params, gradients(params, step), strict=True):
            param.grad = grad
        master.step()
    again = [nn.Parameter(p) for p in saved["model"]]
    other = MasterWeights(OPTIMIZERS[name](again))
    other.load_state_dict(saved["optimizer"])
    for step in range(3, 6):
        other.zero_grad()
        for param, grad in zip(again, gradients(again, step), strict=True):
            param.grad = grad
        other.step()
    for mine, theirs in zip(other.parameters(), master.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(again, params, strict=True):
        assert torch.equal(mine, theirs)


def test_a_parameter_that_somebody_changed_is_not_overwritten():
    params = parameters(torch.float16)
    master = MasterWeights(torch.optim.SGD(params, lr=1.0))
    with torch.no_grad():
        params[0].fill_(7.0)
    params[0].grad = torch.ones_like(params[0])
    with pytest.raises(RuntimeError, match="call adopt"):
        master.step()
    master.adopt()
    master.step()
    assert bool((params[0] == 6).all())


def test_mistakes_about_master_weights():
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got list"):
        MasterWeights([])
    with pytest.raises(ValueError, match="optimizer must have a float16 or bfloat16 parameter"):
        MasterWeights(torch.optim.SGD(parameters(torch.float32)))
    master = MasterWeights(torch.optim.SGD(parameters(torch.float16)))
    state = master.state_dict()
    state["master_weights"] = [torch.ones(2)]
    with pytest.raises(ValueError, match=r"shapes \[\(5, 3\)\], got \[\(2,\)\]"):
        master.load_state_dict(state)


# ---------------------------------------------------------------- the stochastic cast


def surprise(ups, count, share):
    """How many standard deviations a number of ups is from the expected one.

    The tests allow 5: by chance that happens once in 1.7 million. With a million draws, a share that
    is wrong by 0.005 is seen with probability above 0.999999 (10 deviations away, or more).
    """
    return abs(ups - count * share) / math.sqrt(count * share * (1 - share))


COUNT = 10**6


@pytest.mark.parametrize("share", [1 / 8, 1 / 3, 0.9])
@pytest.mark.parametrize("where", ["normal", "subnormal", "smallest"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_it_rounds_up_as_often_as_it_should(target, sign, where, share):
    """StochasticRounding.jl#62: in the subnormal range a popular implementation did not."""
    fmt = TARGETS[target]
    low, spacing = {
        "normal": (1.0, fmt.eps),
        "subnormal": (fmt.smallest_normal / 2, fmt.smallest_subnormal),
        "smallest": (0.0, fmt.smallest_subnormal),
    }[where]
    value = torch.tensor(low + share * spacing, dtype=torch.float64)
    x = sign * value.float().expand(COUNT)
    share = (float(x[0].abs()) - low) / spacing  # as float32 has it
    y = stochastic_round(x, target, generator=generator(1)).double().abs()
    assert set(y.unique().tolist()) == {low, low + spacing}
    assert surprise(int((y > low).sum()), COUNT, share) < 5


def test_nearest_rounding_and_fewer_random_bits_are_caught():
    """What the test above is made to see: no randomness, and a share cut to 5 bits."""
    x = torch.full((COUNT,), 1 + BF16_ULP / 3)
    assert surprise(int((x.bfloat16() > 1).sum()), COUNT, 1 / 3) > 100
    random = torch.randint(2**5, (COUNT,), generator=generator(), dtype=torch.int32) << 11
    few = ((x.view(torch.int32) + random) >> 16 << 16).view(torch.float32)
    assert surprise(int((few > 1).sum()), COUNT, 1 / 3) > 5


def test_neighbours_and_repetitions_are_independent():
    """A correlation of independent draws is within 5 / √n, at the same level as above."""
    x = torch.full((COUNT,), 1 + BF16_ULP / 2)
    drawn = generator(2)
    first, second = (
        (stochastic_round(x, torch.bfloat16, generator=drawn) > 1).double() - 0.5 for _ in range(2)
    )
    for a, b in [(first, second)] + [(first[lag:], first[:-lag]) for lag in (1, 2, 4, 2**16)]:
        assert abs(float((a * b).mean()) * 4) < 5 / math.sqrt(len(a))


@pytest.mark.parametrize("source", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_values_of_the_type_stay(target, source):
    bits = 8 * target.itemsize
    patterns = torch.arange(2**bits, dtype=torch.int32)
    values = patterns.to(torch.uint8 if bits == 8 else torch.int16).view(target)
    found = stochastic_round(values.to(source), target, generator=generator())
    lost = values.float().isnan()
    assert torch.equal(found.float().isnan(), lost)
    integer = torch.uint8 if bits == 8 else torch.int16
    assert torch.equal(found.view(integer)[~lost], values.view(integer)[~lost])


def test_every_nan_stays_a_nan_which_torchao_s_cast_does_not_promise():
    """A NaN whose set bits are cut off becomes an infinity there; with all bits set, −0."""
    payloads = torch.cat([torch.arange(1, 2**16, 7), torch.tensor([2**23 - 1])]).int()
    x = torch.cat([payloads + 0x7F800000, payloads - 0x00800000]).view(torch.float32)
    assert bool(x.isnan().all())
    assert bool(stochastic_round(x, torch.bfloat16, generator=generator()).isnan().all())
    peer = pytest.importorskip("torchao.optim.quant_utils")
    torch.manual_seed(0)
    assert not bool(peer._fp32_to_bf16_sr(x).isnan().all())


def test_beyond_the_largest_value():
    x = torch.tensor([3.4e38, -3.4e38, torch.inf, -torch.inf])
    ends = {
        torch.bfloat16: (torch.inf, 3.3895313892515355e38), torch.float16: (torch.inf, 65504.0),
        torch.float8_e4m3fn: (torch.nan, 448.0), torch.float8_e5m2: (torch.inf, 57344.0),
    }  # fmt: skip
    for target, (beyond, largest) in ends.items():
        free = stochastic_round(x, target, generator=generator()).double()
        held = stochastic_round(x, target, generator=generator(), saturate=True).double()
        kept = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        if target != torch.bfloat16:  # whose largest value is near 3.4e38: up or down by chance
            torch.testing.assert_close(free, beyond * kept, equal_nan=True)
        torch.testing.assert_close(free[2:], beyond * kept[2:], equal_nan=True)
        assert torch.equal(held, largest * kept)


def test_seeds_strides_and_pieces():
    x = torch.randn(300, 700, generator=generator())
    first = stochastic_round(x, torch.bfloat16, generator=generator(5))
    assert torch.equal(first, stochastic_round(x, torch.bfloat16, generator=generator(5)))
    assert not torch.equal(first, stochastic_round(x, torch.bfloat16, generator=generator(6)))
    assert torch.equal(
        first, stochastic_round(x.T.clone().T, torch.bfloat16, generator=generator(5))
    )
    assert bool(((first.float() - x).abs() <= x.abs() * BF16_ULP).all())
    for shape in ((), (0,), (3, 0), (1,)):
        assert (
            stochastic_round(torch.zeros(shape), torch.float16, generator=generator()).shape
            == shape
        )


def test_the_gradient_passes_straight_through():
    x = torch.randn(9, generator=generator()).requires_grad_()
    (stochastic_round(x, torch.bfloat16, generator=generator()).float() * 3).sum().backward()
    assert torch.equal(x.grad, torch.full((9,), 3.0))


def test_mistakes_about_the_cast():
    x = torch.ones(3)
    with pytest.raises(TypeError, match=r"x must be a float32 or float64 tensor, got torch\.int64"):
        stochastic_round(torch.ones(3, dtype=torch.int64), torch.bfloat16, generator=generator())
    with pytest.raises(TypeError, match="dtype must be one of bfloat16, float16"):
        stochastic_round(x, torch.float32, generator=generator())
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got int"):
        stochastic_round(x, torch.bfloat16, generator=0)
