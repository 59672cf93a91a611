"""ASPP, the stack without holes and the causal stack, against networks built from plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pkg.algos.dilated_convolution import (
    ASPP,
    CausalDilatedStack,
    HybridDilatedStack,
    coverage,
)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- ASPP


def plain_aspp(network, x):
    """The same weights, put together from PyTorch's functions."""

    def branch(layer, value, dilation):
        convolution, norm, _ = layer
        padding = dilation * (convolution.kernel_size[0] // 2)
        value = F.conv2d(value, convolution.weight, padding=padding, dilation=dilation)
        return F.relu(
            F.batch_norm(
                value, norm.running_mean.clone(), norm.running_var.clone(), norm.weight, norm.bias,
                network.training,
            )
        )  # fmt: skip

    found = [branch(network.point, x, 1)]
    for layer, rate in zip(network.pyramid, network.rates, strict=True):
        found.append(branch(layer, x, rate))
    if network.pooled is not None:
        mean = F.adaptive_avg_pool2d(x, 1)
        mean = F.relu(F.conv2d(mean, network.pooled.weight, network.pooled.bias))
        found.append(F.interpolate(mean, x.shape[2:], mode="bilinear"))
    return branch(network.project, torch.cat(found, 1), 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("pooling", [True, False])
def test_aspp_equals_plain_pytorch(batch, training, pooling):
    torch.manual_seed(0)
    network = ASPP(6, 5, (2, 7, 30), image_pooling=pooling).double().train(training)
    x = drawn(batch, 6, 9, 11)
    expected = plain_aspp(network, x)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)


def test_aspp_trains_on_a_single_image():
    network = ASPP(4, 3, (1, 2)).train()
    network(torch.rand(1, 4, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_published_pooling_fails_on_a_single_image():
    """The bug that this ASPP does not have: the mean of one image, then batch normalisation."""
    branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)).train()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        branch(torch.rand(1, 4, 8, 8))


def test_only_pooling_sees_the_whole_map():
    for pooling in (False, True):
        torch.manual_seed(0)
        network = ASPP(2, 4, (1, 3), image_pooling=pooling).double().eval()
        x = (1 + drawn(1, 2, 21, 21)).requires_grad_()
        (gradient,) = torch.autograd.grad(network(x)[0, :, 10, 10].sum(), x)
        seen = gradient[0].abs().sum(0) > 0
        far = {(i - 10, j - 10) for i, j in seen.nonzero().tolist()}
        if pooling:
            assert len(far) == 21 * 21
        else:
            assert far == {(i, j) for r in (1, 3) for i in (-r, 0, r) for j in (-r, 0, r)}


# ---------------------------------------------------------------- the stack without holes


def test_the_stack_shows_its_coverage():
    for rates in ((1, 2, 5), (2, 2, 2)):
        stack = HybridDilatedStack(1, 1, rates, allow_gridding=True).double().eval()
        for module in stack.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.ones_(module.weight)
        reach = sum(rates)
        x = torch.ones(1, 1, 2 * reach + 1, 2 * reach + 1, dtype=torch.float64, requires_grad=True)
        (seen,) = torch.autograd.grad(stack(x)[0, 0, reach, reach], x)
        counts = coverage((3, 3), list(rates)).double()
        # eps = 1e-5 of three normalisations in evaluation mode
        torch.testing.assert_close(seen[0, 0], counts, rtol=1e-4, atol=0)
        assert torch.equal(seen[0, 0] == 0, counts == 0)


def test_rates_with_holes_are_refused():
    with pytest.raises(ValueError, match=r"rates \(1, 2, 9\).* leave holes: .* offset 7 of 0..24"):
        HybridDilatedStack(3, 4, (1, 2, 9))
    HybridDilatedStack(3, 4, (1, 2, 9), kernel_size=5)
    HybridDilatedStack(3, 4, (1, 2, 9), allow_gridding=True)


# ---------------------------------------------------------------- the causal stack

STACKS = [
    {"rates": (1, 2, 4, 8)},
    {"rates": (1, 2, 4, 1, 2, 4)},
    {"rates": (3, 1, 2), "kernel_size": 3},
    {"rates": (1,), "kernel_size": 5},
]


@pytest.mark.parametrize("arguments", STACKS)
def test_step_by_step_equals_the_whole_sequence(arguments):
    torch.manual_seed(0)
    stack = CausalDilatedStack(3, 4, channels=6, **arguments).double()
    x = drawn(2, 3, 40)
    with torch.no_grad():
        whole = stack(x)
        state = stack.start(2)
        steps = torch.stack([stack.step(x[:, :, t], state) for t in range(40)], 2)
    # the same sums of at most 30 products, in another order
    torch.testing.assert_close(steps, whole, rtol=0, atol=1e-13)
    assert state.step == 40
    lengths = [past.shape[2] for past in state.past]
    kernel = arguments.get("kernel_size", 2)
    assert lengths == [(kernel - 1) * rate for rate in arguments["rates"]]


@pytest.mark.parametrize("arguments", STACKS)
def test_an_output_sees_exactly_its_receptive_field(arguments):
    torch.manual_seed(1)
    stack = CausalDilatedStack(2, 3, channels=8, **arguments).double()
    x = drawn(1, 2, 40).requires_grad_()
    (gradient,) = torch.autograd.grad(stack(x)[0, :, 35].sum(), x)
    seen = [t for t in range(40) if bool((gradient[0, :, t] != 0).any())]
    assert seen[-1] == 35
    assert seen[0] == 35 - stack.receptive_field + 1


def plain_wavenet(stack, x):
    hidden, total = stack.enter(x), 0.0
    for gate, stay, skip, rate in zip(
        stack.gates, stack.stays, stack.skips, stack.rates, strict=True
    ):
        padded = F.pad(hidden, ((stack.kernel_size - 1) * rate, 0))
        both = F.conv1d(padded, gate.weight, gate.bias, dilation=rate)
        passed = both[:, : stack.channels].tanh() * both[:, stack.channels :].sigmoid()
        total, hidden = total + skip(passed), hidden + stay(passed)
    return stack.leave(total)


@pytest.mark.parametrize("arguments", STACKS)
def test_the_causal_stack_equals_plain_pytorch(arguments):
    torch.manual_seed(2)
    stack = CausalDilatedStack(3, 2, channels=5, **arguments).double()
    x = drawn(2, 3, 25)
    torch.testing.assert_close(stack(x), plain_wavenet(stack, x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: ASPP(0, 4), ValueError, "in_channels must be at least 1"),
        (lambda: ASPP(4, 4, (6, 0)), ValueError, r"rates\[1\] must be at least 1"),
        (lambda: ASPP(4, 4)(torch.zeros(1, 3, 5, 5)), ValueError, r"\(batch, 4, height, width\)"),
        (lambda: HybridDilatedStack(3, 0), ValueError, "channels must be at least 1"),
        (lambda: CausalDilatedStack(3, 4, rates=()), ValueError, "rates must have at least one"),
        (lambda: CausalDilatedStack(3, 4, kernel_size=1), ValueError, "kernel_size must be at least"),
        (lambda: CausalDilatedStack(3, 4)(torch.zeros(1, 2, 9)), ValueError, r"\(batch, 3, time\)"),
        (lambda: CausalDilatedStack(3, 4).start(0), ValueError, "batch must be at least 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_a_step_with_another_batch_is_refused():
    stack = CausalDilatedStack(3, 4)
    with pytest.raises(ValueError, match="x must have the state's batch size 2, got 1"):
        stack.step(torch.zeros(1, 3), stack.start(2))
