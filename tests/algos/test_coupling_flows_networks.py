"""The networks inside couplings: their first weights, and what they compute."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pkg.algos.coupling_flows.networks import MLP, ConvNet, ResidualConvNet


@pytest.mark.parametrize("make", [MLP, ConvNet, ResidualConvNet])
def test_first_weights_have_twice_the_variance_of_a_mean(make):
    """He's rule: uniform, as wide as sqrt(6 / inputs), so that ReLU halves what it is given."""
    hidden = (300, 300) if make is MLP else 60
    net = make(30, 8, hidden, generator=torch.Generator().manual_seed(0))
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    *first, last = layers
    assert len(layers) == {MLP: 3, ConvNet: 3, ResidualConvNet: 6}[make]
    assert not last.weight.any()
    assert not any(layer.bias.any() for layer in layers)
    for layer in first:
        edge = math.sqrt(6 / layer.weight[0].numel())
        # the largest of 3,600 and more even draws is within a 1/100 of the edge but once in 10^15
        assert 0.99 * edge < layer.weight.abs().max() <= edge
        assert layer.weight.std().item() == pytest.approx(edge / math.sqrt(3), rel=0.05)


def test_networks_are_what_they_say():
    generator = torch.Generator().manual_seed(0)
    nets = {
        MLP(3, 2, (5, 4)): (3,), ConvNet(2, 3, 4): (2, 4, 5), ResidualConvNet(2, 3, 4, 2): (2, 4, 5),
    }  # fmt: skip
    for net, shape in nets.items():
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        x = torch.randn(2, *shape, generator=generator)
        weights = [p.detach() for p in net.parameters()]
        if isinstance(net, MLP):
            a, b, c, d, e, f = weights
            expected = torch.relu(torch.relu(x @ a.T + b) @ c.T + d) @ e.T + f
        elif isinstance(net, ConvNet):
            a, b, c, d, e, f = weights
            h = torch.relu(nn.functional.conv2d(x, a, b, padding=1))
            h = torch.relu(nn.functional.conv2d(h, c, d))
            expected = nn.functional.conv2d(h, e, f, padding=1)
        else:
            a, b, *blocks, e, f = weights
            h = nn.functional.conv2d(x, a, b, padding=1)
            for place in (0, 4):
                u, v, w, t = blocks[place : place + 4]
                inner = nn.functional.conv2d(torch.relu(h), u, v, padding=1)
                h = h + nn.functional.conv2d(torch.relu(inner), w, t)
            expected = nn.functional.conv2d(torch.relu(h), e, f)
        assert net(x).shape[2:] == x.shape[2:]
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-4)


def test_residual_networks_have_the_right_shape():
    net = ResidualConvNet(3, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    assert net(torch.zeros(2, 3, 4, 6)).shape == (2, 5, 4, 6)
