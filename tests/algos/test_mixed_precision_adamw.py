"""AdamW on bfloat16 weights, rounded stochastically, beside `torch.optim.AdamW`."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from pkg.algos.mixed_precision.optimizers import StochasticRoundingAdamW

BF16, F32 = torch.bfloat16, torch.float32
SETTINGS = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def adamw(params, moments=F32, seed=0, **keywords):
    keywords = {**SETTINGS, **keywords}
    return StochasticRoundingAdamW(params, moments=moments, generator=generator(seed), **keywords)


def draw(shape, step, dtype=F32):
    return torch.randn(shape, generator=generator(100 + step)).to(dtype)


@pytest.mark.parametrize("shape", [(), (1,), (7, 11), (300, 301)])
def test_on_float32_it_is_pytorch_s(shape):
    mine, fused, loop = (nn.Parameter(draw(shape, -1)) for _ in range(3))
    ours = adamw([mine])
    theirs = torch.optim.AdamW([fused], fused=True, **SETTINGS)
    other = torch.optim.AdamW([loop], foreach=False, **SETTINGS)
    for step in range(6):
        for param, optimizer in ((mine, ours), (fused, theirs), (loop, other)):
            param.grad = draw(shape, step)
            optimizer.step()
        assert torch.equal(mine, fused)
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(ours.state[mine][name], theirs.state[fused][name])
    # PyTorch's own two forms order the operations differently: a few roundings in each of 6 steps.
    torch.testing.assert_close(mine, loop, rtol=6 * 4 * 2**-24, atol=6 * 4 * 2**-24)


@pytest.mark.parametrize("moments", [BF16, F32])
def test_a_weight_goes_to_a_neighbour_of_the_float32_result(moments):
    param = nn.Parameter(draw((300, 301), -1, BF16))
    optimizer = adamw([param], moments)
    wide = torch.zeros_like(param, dtype=F32), torch.zeros_like(param, dtype=F32)
    for step in range(4):
        twin = nn.Parameter(param.detach().float())
        reference = torch.optim.AdamW([twin], fused=True, **SETTINGS)
        reference.state[twin] = {"step": torch.tensor(float(step)), "exp_avg": wide[0].clone(),
                                 "exp_avg_sq": wide[1].clone()}  # fmt: skip
        param.grad = draw(param.shape, step, BF16)
        twin.grad = param.grad.float()
        optimizer.step()
        reference.step()
        state = optimizer.state[param]
        wide = state["exp_avg"].float(), state["exp_avg_sq"].float()
        assert state["exp_avg"].dtype == moments
        results = reference.state[twin]
        pairs = [(param.detach(), twin.detach())]
        pairs += [(state[name], results[name]) for name in ("exp_avg", "exp_avg_sq")]
        for got, exact in pairs:
            if got.dtype == F32:
                assert torch.equal(got, exact)
                continue
            spacing = torch.exp2(exact.abs().log2().floor()) * 2**-7
            assert bool(((got.float() - exact).abs() < spacing).all())
            moved = (got != exact.bfloat16()).double().mean()
            assert 0.15 < moved < 0.35  # a quarter of all differ from rounding to nearest


@pytest.mark.parametrize("moments", [BF16, F32])
def test_the_expected_weight_is_the_float32_one(moments):
    """A million equal weights, one step: their mean is the float32 result within 5 deviations.

    A deviation is √(share · (1 − share) / n) spacings; that level is passed by chance once in 1.7
    million. Rounding to nearest, off by a third of a spacing, is 600 deviations away.
    """
    count, spacing = 10**6, 2.0**-7
    lr = spacing / 3
    param = nn.Parameter(torch.full((count,), 1.0 + spacing, dtype=BF16))
    optimizer = adamw([param], moments, lr=lr, weight_decay=0.0, eps=0.0)
    param.grad = torch.ones_like(param)
    optimizer.step()  # the first step of AdamW is lr, whatever the gradient
    share = 2 / 3
    mean = float((param.detach().double() - 1).mean()) / spacing
    assert abs(mean - share) < 5 * math.sqrt(share * (1 - share) / count)
    for name, exact in (("exp_avg", 0.2), ("exp_avg_sq", 0.05)) if moments == BF16 else ():
        found = optimizer.state[param][name].double()
        step = 2.0 ** (math.floor(math.log2(exact)) - 7)
        share = exact / step % 1
        deviation = step * math.sqrt(share * (1 - share) / count)
        # And the float32 rounding of the coefficients 1 − β, about 1e-8 of the moment.
        assert abs(float(found.mean()) - exact) < 5 * deviation + 1e-7 * exact


def test_updates_too_small_for_bfloat16_add_up():
    ends = {}
    for name in ("nearest", "stochastic"):
        param = nn.Parameter(torch.ones(10_000, dtype=BF16))
        keywords = {"lr": 2.0**-13, "weight_decay": 0.0}
        make = {"nearest": lambda p, k=keywords: torch.optim.AdamW([p], **k),
                "stochastic": lambda p, k=keywords: adamw([p], **k)}[name]  # fmt: skip
        optimizer = make(param)
        for _ in range(512):
            param.grad = torch.ones_like(param)
            optimizer.step()
        ends[name] = float(param.detach().double().mean())
    assert ends["nearest"] == 1.0
    # 512 steps of 2⁻¹³: 1/16. Of each step the rounding has a deviation below half a spacing (2⁻⁸
    # below 1), so of the mean of 10,000 weights after 512 steps below 2⁻⁹ · √(512 / 10,000).
    assert abs(ends["stochastic"] - (1 - 1 / 16)) < 5 * 2**-9 * math.sqrt(512 / 10_000)


def test_the_second_moment_can_fall():
    """Rounded to nearest, as torchao keeps it, it stays at 1 for ever once the gradient is gone."""
    param = nn.Parameter(torch.ones(10_000, dtype=BF16))
    optimizer = adamw([param], BF16, betas=(0.9, 0.999), lr=0.0)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.state[param]["exp_avg_sq"].fill_(1.0)
    for _ in range(1000):
        optimizer.step()
    mean = float(optimizer.state[param]["exp_avg_sq"].double().mean())
    # Each step's rounding has a deviation below half a spacing (2⁻⁹ of the value).
    assert abs(mean - 0.999**1000) < 5 * 2**-9 * math.sqrt(1000 / 10_000)

    peer = pytest.importorskip("torchao.optim.adam")
    p, m, v, g = (torch.ones(4, dtype=BF16) * s for s in (1.0, 0.0, 1.0, 0.0))
    for step in range(1, 1001):
        peer.single_param_adam(p, g, torch.tensor(float(step)), m, v, None, torch.tensor(0.0),
                               0.9, 0.999, 0.0, 1e-8, True, True)  # fmt: skip
    assert bool((v == 1).all())


def test_the_digits_are_learned_in_bfloat16_only_with_stochastic_rounding():
    """Small steps from a good start: rounded to nearest they are lost, by chance they are not."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=F32), torch.tensor(labels)
    losses = {}
    for name in ("float32", "nearest", "stochastic"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
        model = model if name == "float32" else model.to(BF16)
        keywords = {"lr": 1e-4, "weight_decay": 0.0}
        if name == "stochastic":
            optimizer = adamw(model.parameters(), BF16, betas=(0.9, 0.999), eps=1e-8, **keywords)
        else:
            optimizer = torch.optim.AdamW(model.parameters(), **keywords)
        inputs = x.to(next(model.parameters()).dtype)
        for _ in range(300):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs).float(), y)
            loss.backward()
            optimizer.step()
        losses[name] = float(loss.detach())
    learned = {name: 2.35 - loss for name, loss in losses.items()}
    assert learned["stochastic"] > 0.95 * learned["float32"]
    assert learned["nearest"] < 0.8 * learned["float32"]


@pytest.mark.parametrize("moments", [BF16, F32])
def test_a_run_that_was_stopped_goes_on_exactly(moments):
    def run(param, optimizer, steps):
        for step in steps:
            param.grad = draw(param.shape, step, BF16)
            optimizer.step()

    param = nn.Parameter(draw((40, 50), -1, BF16))
    optimizer = adamw([param], moments)
    run(param, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"param": param.detach(), "optimizer": optimizer.state_dict(),
                "generator": optimizer.generator.get_state()}, file)  # fmt: skip
    run(param, optimizer, range(3, 6))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = nn.Parameter(saved["param"])
    other = adamw([again], moments, seed=9)
    other.load_state_dict(saved["optimizer"])
    other.generator.set_state(saved["generator"])
    before = saved["optimizer"]["state"][0]["exp_avg"].clone()
    run(again, other, range(3, 6))
    assert torch.equal(saved["optimizer"]["state"][0]["exp_avg"], before)  # a copy was taken up
    assert torch.equal(again, param)
    for name in ("exp_avg", "exp_avg_sq"):
        assert other.state[again][name].dtype == moments
        assert torch.equal(other.state[again][name], optimizer.state[param][name])
    assert other.state[again]["step"] == 6


def test_strided_parameters_groups_and_missing_gradients():
    base = draw((6, 40), -1, BF16)
    strided, plain, idle = (nn.Parameter(x) for x in (base.T, base.T.contiguous(), base.clone()))
    optimizers = [adamw([{"params": [p, idle], "lr": 0.5}]) for p in (strided, plain)]
    for param, optimizer in zip((strided, plain), optimizers, strict=True):
        param.grad = torch.ones_like(param)
        assert optimizer.step(lambda: 3.5) == 3.5
    assert torch.equal(strided, plain)
    assert not torch.equal(strided, draw((6, 40), -1, BF16).T)
    assert torch.equal(idle, draw((6, 40), -1, BF16))


def test_it_works_with_a_scaler_and_a_schedule():
    from pkg.algos.mixed_precision.scaler import LossScaler

    param = nn.Parameter(torch.ones(8, dtype=BF16))
    optimizer, scaler = adamw([param]), LossScaler(4.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for gradient, moves in ((1.0, True), (math.inf, False)):
        before = param.detach().clone()
        optimizer.zero_grad()
        scaler.scale((param.float() * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        assert (not torch.equal(param, before)) == moves
    assert optimizer.param_groups[0]["lr"] == 0.0025


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (
            {"moments": torch.float16},
            TypeError,
            r"moments must be torch\.bfloat16 or torch\.float32",
        ),
        ({"lr": -1.0}, ValueError, "lr must be at least 0, got -1"),
        ({"lr": math.nan}, ValueError, "lr must be at least 0, got nan"),
        ({"lr": torch.tensor(0.1)}, TypeError, "lr must be a number, got a tensor"),
        ({"eps": -1.0}, ValueError, "eps must be at least 0"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be at least 0"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas must be two numbers in \[0, 1\)"),
    ],
)
def test_arguments_out_of_range(keywords, error, message):
    with pytest.raises(error, match=message):
        adamw([nn.Parameter(torch.ones(2))], **keywords)


def test_the_defaults_are_pytorch_s():
    param = nn.Parameter(torch.ones(2))
    mine = StochasticRoundingAdamW([param], moments=F32, generator=generator()).param_groups[0]
    theirs = torch.optim.AdamW([param]).param_groups[0]
    assert {name: mine[name] for name in SETTINGS} == {name: theirs[name] for name in SETTINGS}


def test_settings_at_the_edge_are_taken():
    param = nn.Parameter(torch.ones(2))
    optimizer = adamw([param], lr=0.0, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0)
    param.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(param, torch.ones(2))
    for betas in ((-0.1, 0.9), (0.9, -0.1), (1.0, 0.9)):
        with pytest.raises(ValueError, match="betas must be two numbers"):
            adamw([param], betas=betas)


def test_other_mistakes():
    with pytest.raises(TypeError, match=r"params must be bfloat16 or float32, got torch\.float16"):
        adamw([nn.Parameter(torch.ones(2, dtype=torch.float16))])
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got int"):
        StochasticRoundingAdamW([nn.Parameter(torch.ones(2))], moments=F32, generator=3)
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = adamw(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="params must have dense gradients"):
        optimizer.step()
