"""The same parameters in nflows and zuko give the same numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from nflows.distributions.normal import StandardNormal as TheirNormal
from nflows.flows.base import Flow as TheirFlow
from nflows.transforms import AdditiveCouplingTransform, AffineCouplingTransform, ReversePermutation
from nflows.transforms.base import CompositeTransform
from nflows.transforms.coupling import PiecewiseRationalQuadraticCouplingTransform
from nflows.transforms.nonlinearities import Logit as TheirLogit
from nflows.transforms.reshape import SqueezeTransform
from scipy import stats
from torch import nn
from zuko.transforms import CouplingTransform, MonotonicAffineTransform

from pkg.algos.coupling_flows import (
    AdditiveCoupling,
    AffineCoupling,
    ChannelMask,
    Compose,
    Flow,
    Logit,
    Permutation,
    RationalQuadraticCoupling,
    Squeeze,
    StandardLogistic,
    StandardNormal,
)
from pkg.algos.coupling_flows.networks import MLP, ConvNet

# Both sides do the same arithmetic in another order, in float64.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def agree(ours, theirs, x):
    """Compare both directions; theirs returns (output, log|det|) in `forward` and `inverse`."""
    z, log_det = ours(x)
    their_z, their_log_det = theirs(x)
    torch.testing.assert_close(z, their_z, **CLOSE)
    torch.testing.assert_close(log_det, their_log_det, **CLOSE)
    back, log_det_back = ours.inverse(z)
    their_back, their_log_det_back = theirs.inverse(z)
    torch.testing.assert_close(back, their_back, rtol=1e-9, atol=1e-9)  # a quadratic was solved
    torch.testing.assert_close(log_det_back, their_log_det_back, rtol=1e-9, atol=1e-9)


def draw(*shape, seed=0):
    return 2 * torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def random_network(inputs, outputs, images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kind, hidden = (ConvNet, 6) if images else (MLP, (6,))
    network = kind(inputs, outputs, hidden, generator=generator).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network


class Ordered(nn.Module):
    """Gives the parts of a network's output in another order, for the peer that wants it so."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x, context=None):
        return self.change(self.network(x))


@pytest.mark.parametrize("shape", [(2,), (5,), (7,), (3, 2, 4)])
def test_additive_coupling_is_nflows(shape):
    mask = ChannelMask.alternating(shape[0])
    network = random_network(shape[0] - mask.changed, mask.changed, len(shape) == 3)
    ours = AdditiveCoupling(mask, network)
    theirs = AdditiveCouplingTransform(
        (~mask.kept).int(), lambda a, b: Ordered(network, lambda p: p)
    )
    agree(ours, theirs, draw(4, *shape))


@pytest.mark.parametrize("shape", [(2,), (5,), (7,), (3, 2, 4)])
def test_affine_coupling_is_nflows(shape):
    """Theirs has the scale sigmoid(u + 2) + 1e-3 and the shift in front."""
    mask = ChannelMask.first_half(shape[0])
    network = random_network(shape[0] - mask.changed, 2 * mask.changed, len(shape) == 3)
    theirs = AffineCouplingTransform((~mask.kept).int(), lambda a, b: Ordered(network, lambda p: p))

    def ours_of(p):
        u, shift = p[:, mask.changed :], p[:, : mask.changed]
        return torch.cat(((torch.sigmoid(u + 2) + 1e-3).log(), shift), 1)

    agree(AffineCoupling(mask, Ordered(network, ours_of), bound=None), theirs, draw(4, *shape))


@pytest.mark.parametrize("size", [2, 5, 7])
def test_affine_coupling_is_zuko(size):
    """Theirs bends the log-scale by a / (1 + |a / log slope|)."""
    mask = ChannelMask.first_half(size)
    network = random_network(size - mask.changed, 2 * mask.changed, False)

    def meta(seen):
        scale, shift = network(seen).chunk(2, -1)
        return MonotonicAffineTransform(shift, scale)

    theirs = CouplingTransform(lambda seen: Rows(meta(seen)), mask.kept)

    def bent(p):
        a, shift = p.chunk(2, 1)
        return torch.cat((a / (1 + (a / math.log(1e-3)).abs()), shift), 1)

    ours = AffineCoupling(mask, Ordered(network, bent), bound=None)
    x = draw(6, size)
    z, log_det = ours(x)
    their_z, their_log_det = theirs.call_and_ladj(x)
    torch.testing.assert_close(z, their_z, **CLOSE)
    torch.testing.assert_close(log_det, their_log_det, **CLOSE)
    torch.testing.assert_close(ours.inverse(z)[0], theirs.inv(z), **CLOSE)


class Rows:
    """A zuko transform of numbers as one of vectors: its log-determinants are added up."""

    def __init__(self, inner):
        self.inner, self.inv = inner, inner.inv

    def __call__(self, x):
        return self.inner(x)

    def call_and_ladj(self, x):
        y = self.inner(x)
        return y, self.inner.log_abs_det_jacobian(x, y).sum(-1)


@pytest.mark.parametrize("bins", [2, 5, 8])
@pytest.mark.parametrize("shape", [(2,), (5,), (3, 2, 4)])
def test_spline_coupling_is_nflows(shape, bins):
    mask = ChannelMask.first_half(shape[0])
    changed, numbers = mask.changed, 3 * bins - 1
    network = random_network(shape[0] - changed, numbers * changed, len(shape) == 3)

    def theirs_of(p):  # ours: (3K - 1, R) along axis 1; theirs: (R, 3K - 1)
        return p.unflatten(1, (numbers, changed)).transpose(1, 2).flatten(1, 2)

    ours = RationalQuadraticCoupling(mask, network, bins=bins, tail=3.0)
    theirs = PiecewiseRationalQuadraticCouplingTransform(
        (~mask.kept).int(), lambda a, b: Ordered(network, theirs_of), num_bins=bins,
        tails="linear", tail_bound=3.0,
    )  # fmt: skip
    agree(ours, theirs, draw(20, *shape))  # some beyond the tails


def test_squeeze_is_nflows_and_so_is_the_logit():
    x = draw(2, 3, 4, 6)
    agree(Squeeze(), SqueezeTransform(2), x)
    p = torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    agree(Logit(0.0), TheirLogit(eps=0.0), p)


def test_a_whole_flow_is_nflows():
    size, ours, theirs = 6, [], []
    mask = ChannelMask.first_half(size)
    for number in range(4):
        network = random_network(3, 3, False, seed=number)
        ours += [AdditiveCoupling(mask, network), Permutation.reverse(size)]
        peer = AdditiveCouplingTransform(
            (~mask.kept).int(), lambda a, b, n=network: Ordered(n, lambda p: p)
        )
        theirs += [peer, ReversePermutation(size)]
    x = draw(9, size)
    flow = Flow(Compose(*ours), StandardNormal(size))
    peer = TheirFlow(CompositeTransform(theirs), TheirNormal([size])).double()
    torch.testing.assert_close(flow.log_prob(x), peer.log_prob(x), **CLOSE)


def test_the_bases_are_scipys():
    z = draw(5, 3)
    for base, theirs in ((StandardNormal(3), stats.norm), (StandardLogistic(3), stats.logistic)):
        expected = theirs.logpdf(z.numpy()).sum(1)
        np.testing.assert_allclose(base.log_prob(z).numpy(), expected, rtol=1e-13)
        sample = base.sample(20_000, generator=torch.Generator().manual_seed(0)).double().numpy()
        for column in sample.T:
            # the seed is fixed, and a right sampler falls below 1e-5 once in 100,000 columns; a
            # deviation of 2 % in the distribution function would give 1e-7
            assert stats.kstest(column, theirs.cdf).pvalue > 1e-5
