"""Bad input is refused with a sentence that names it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pkg.algos import coupling_flows as cf
from pkg.algos.coupling_flows import (
    NICE,
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ChannelMask,
    CheckerboardMask,
    Compose,
    Flow,
    Glow,
    Invertible1x1Conv,
    Logit,
    MultiScale,
    Permutation,
    RationalQuadraticCoupling,
    RealNVP,
    Scaling,
    Squeeze,
    StandardNormal,
    VariationalDequantisation,
    bits_per_dim,
    dequantise,
    log_scale_bound,
)
from pkg.algos.coupling_flows.networks import MLP, ConvNet, ResidualConvNet

X = torch.zeros(2, 4)
IMAGES = torch.zeros(2, 3, 4, 6)
SINGULAR = torch.tensor([[1.0, 2.0], [2.0, 4.0]])


class Silent(nn.Module):
    """A base that knows its density, and draws no samples."""

    def log_prob(self, z):
        return z.sum(1)


class Undoes:
    """Has an inverse, but is no module."""

    def inverse(self, z):
        return z, z.sum(1)


def thirds():
    """A matrix that is singular in exact arithmetic, and not quite in that of computers."""
    a = torch.tensor([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9], [0.0, 0.0, 0.0]])
    a[2] = a[0] + a[1]
    return a


REFUSED = {
    "a mask that keeps nothing": (
        lambda: ChannelMask([False, False]), ValueError, "leaves nothing to keep"),
    "a mask that changes nothing": (
        lambda: ChannelMask([True]), ValueError, "leaves nothing to change"),
    "an empty mask": (lambda: ChannelMask([]), ValueError, "nothing to keep"),
    "a mask of numbers": (lambda: ChannelMask([1, 0]), TypeError, r"kept\[0\] must be a bool"),
    "half of one": (lambda: ChannelMask.first_half(1), ValueError, "channels must be at least 2"),
    "a checkerboard of one square": (
        lambda: CheckerboardMask().split(torch.zeros(1, 3, 1, 1)), ValueError, "at least two pixels"),
    "a checkerboard of a vector": (
        lambda: CheckerboardMask()(X), ValueError, r"shape \(N, C, H, W\), got \(2, 4\)"),
    "other channels": (
        lambda: ChannelMask.first_half(3).split(X), ValueError, "must have 3 channels"),
    "a mask that is none": (
        lambda: AffineCoupling(torch.ones(3), nn.Linear(1, 1)), TypeError, "mask must be a"),
    "a network that is none": (
        lambda: AdditiveCoupling(ChannelMask.first_half(2), torch.sin), TypeError, "network must be"),
    "a network with too few outputs": (
        lambda: AffineCoupling(ChannelMask.first_half(4), MLP(2, 2))(X), ValueError,
        r"2 numbers for each changed channel, shape \(2, 4\), got \(2, 2\)"),
    "a bound of 0": (
        lambda: AffineCoupling(ChannelMask.first_half(4), MLP(2, 4), bound=0.0), ValueError, "bound"),
    "one bin": (
        lambda: RationalQuadraticCoupling(ChannelMask.first_half(4), MLP(2, 4), bins=1), ValueError,
        "bins must be at least 2"),
    "bins that do not fit": (
        lambda: RationalQuadraticCoupling(ChannelMask.first_half(4), MLP(2, 4), bins=1001),
        ValueError, "at most 1000"),
    "too few ulps": (lambda: log_scale_bound(5), ValueError, "ulps must be above 5"),
    "ulps of words": (lambda: log_scale_bound("16"), TypeError, "ulps must be a number"),
    "integers": (lambda: ActNorm(4)(X.long()), TypeError, "dequantise counts first"),
    "a list": (lambda: ActNorm(4)([[0.0]]), TypeError, "x must be a tensor"),
    "a single vector": (lambda: ActNorm(4)(X[0]), ValueError, r"shape \(N, D\)"),
    "a constant channel": (
        lambda: ActNorm(4).initialise(X), ValueError, "channel 0 has standard deviation 0"),
    "a batch of one vector": (
        lambda: ActNorm(4)(torch.rand(1, 4)), ValueError, "must vary and be finite"),
    "a singular weight": (
        lambda: Invertible1x1Conv.from_weight(SINGULAR), ValueError, "singular: rank 1 of 2"),
    "a weight singular but for rounding": (
        lambda: Invertible1x1Conv.from_weight(thirds(), decomposed=False), ValueError,
        "singular: rank 2 of 3"),
    "a weight of NaN": (
        lambda: Invertible1x1Conv.from_weight(SINGULAR * math.nan), ValueError, "finite"),
    "a weight with one infinity": (
        lambda: Invertible1x1Conv.from_weight(torch.tensor([[1.0, 2.0], [math.inf, 1.0]])),
        ValueError, "must be finite"),
    "a weight that is not square": (
        lambda: Invertible1x1Conv.from_weight(torch.ones(2, 3)), ValueError, r"shape \(C, C\)"),
    "no permutation": (lambda: Permutation([0, 2]), ValueError, "each of 0..C-1 once"),
    "an odd height": (
        lambda: Squeeze()(torch.zeros(1, 1, 3, 4)), ValueError, r"height and width 2 divides"),
    "an odd width": (lambda: Squeeze()(torch.zeros(1, 1, 4, 3)), ValueError, "2 divides"),
    "a vector to squeeze": (lambda: Squeeze()(X), ValueError, "2 divides"),
    "channels to unsqueeze": (
        lambda: Squeeze().inverse(IMAGES), ValueError, "C a multiple of 4"),
    "a factor of 1": (lambda: Squeeze(1), ValueError, "factor must be at least 2"),
    "another shape": (lambda: Scaling(3)(X), ValueError, r"shape \(N, 3\)"),
    "a shape of 0": (lambda: Scaling((3, 0)), ValueError, r"shape\[1\] must be at least 1"),
    "pixels above 1": (
        lambda: Logit()(torch.full((1, 2), 16.0)), ValueError, r"\[0, 1\], got 16"),
    "NaN pixels": (lambda: Logit()(torch.full((1, 2), math.nan)), ValueError, "got nan"),
    "the logit of 0": (lambda: Logit(0.0)(X), ValueError, "strictly between 0 and 1"),
    "alpha of a half": (lambda: Logit(0.5), ValueError, "below 1/2"),
    "nothing to compose": (lambda: Compose(), ValueError, "at least one transform"),
    "what cannot be undone": (
        lambda: Compose(Scaling(2), nn.Linear(2, 2)), TypeError, r"transforms\[1\] must be"),
    "a single level": (lambda: MultiScale(4, [Scaling(4)]), ValueError, "at least two"),
    "a level of one channel": (
        lambda: MultiScale((1, 2, 2), [Scaling((1, 2, 2)), ActNorm(1)]), ValueError,
        "level 0 has a single channel"),
    "a flow without base": (
        lambda: Flow(Scaling(2), nn.Identity()), TypeError, "base must have log_prob"),
    "a negative temperature": (
        lambda: StandardNormal(2).sample(1, temperature=-1.0), ValueError, "at least 0"),
    "half a sample": (lambda: StandardNormal(2).sample(0.5), TypeError, "n must be an int"),
    "a seed for a generator": (
        lambda: StandardNormal(2).sample(1, generator=0), TypeError, "torch.Generator"),
    "a seed for noise": (
        lambda: dequantise(X.long(), bins=17, generator=0), TypeError, "torch.Generator"),
    "a seed for learnt noise": (
        lambda: VariationalDequantisation(MLP(4, 8), bins=17)(X.long(), generator=0), TypeError,
        "torch.Generator"),
    "latents of another shape": (
        lambda: StandardNormal(3).log_prob(X), ValueError, r"z must have shape \(N, 3\)"),
    "counts to bits": (
        lambda: Flow(Scaling(4), StandardNormal(4)).bits_per_dim(X + 16, bins=17), ValueError,
        "scale counts by 1 / bins"),
    "one value": (lambda: bits_per_dim(torch.zeros(1), 4, 1), ValueError, "bins must be at least"),
    "no dims": (lambda: bits_per_dim(torch.zeros(1), 0, 4), ValueError, "dims must be at least"),
    "counts that are floats": (lambda: dequantise(X, bins=17), TypeError, "tensor of integers"),
    "counts that are too large": (
        lambda: dequantise(X.long() + 17, bins=17), ValueError, r"0..16, got 17..17"),
    "half precision": (
        lambda: dequantise(X.long(), bins=17, dtype=torch.float16), TypeError, "float32 or float64"),
    "noise for other bins": (
        lambda: VariationalDequantisation(MLP(4, 8), bins=17)(X.long() + 17), ValueError, "0..16"),
    "one number": (lambda: NICE(1), ValueError, "channels must be at least 2"),
    "one coupling": (lambda: NICE(4, couplings=1), ValueError, "couplings must be at least 2"),
    "an odd image": (lambda: Glow((1, 6, 6)), ValueError, "multiples of 4"),
    "an odd image for RealNVP": (lambda: RealNVP((1, 3, 4)), ValueError, "multiples of 2"),
    "a vector for Glow": (lambda: Glow((4,)), ValueError, "that of an image"),
    "a shape of words": (lambda: NICE("digits"), TypeError, "shape of one sample"),
    "a shape of truth": (lambda: StandardNormal(True), TypeError, "shape of one sample"),
    "an empty shape": (lambda: StandardNormal(()), TypeError, "shape of one sample"),
    "one pixel above 1": (
        lambda: Logit()(torch.tensor([[0.5, 16.0, -3.0]])), ValueError, r"\[0, 1\], got 16"),
    "the logit of 1": (lambda: Logit(0.0)(X + 1), ValueError, "strictly between 0 and 1"),
    "a negative alpha": (lambda: Logit(-0.1), ValueError, "at least 0"),
    "alpha of truth": (lambda: Logit(False), TypeError, "alpha must be a number"),
    "alpha of words": (lambda: Logit("0.05"), TypeError, "alpha must be a number"),
    "an empty permutation": (lambda: Permutation([]), ValueError, "each of 0..C-1 once"),
    "a vector to unsqueeze": (
        lambda: Squeeze().inverse(X), ValueError, "C a multiple of 4, got"),
    "a constant second channel": (
        lambda: ActNorm(2).initialise(torch.tensor([[1.0, 3.0], [2.0, 3.0]])), ValueError,
        "channel 1 has standard deviation 0"),
    "a weight of integers": (
        lambda: Invertible1x1Conv.from_weight(SINGULAR.long()), TypeError, "floating-point tensor"),
    "a weight that is a list": (
        lambda: Invertible1x1Conv.from_weight([[1.0]]), TypeError, "floating-point tensor"),
    "a weight of no channels": (
        lambda: Invertible1x1Conv.from_weight(torch.zeros(0, 0)), ValueError, r"shape \(C, C\)"),
    "three axes of a weight": (
        lambda: Invertible1x1Conv.from_weight(torch.ones(2, 2, 2)), ValueError, r"shape \(C, C\)"),
    "negative counts": (
        lambda: dequantise(X.long() - 1, bins=17), ValueError, r"0..16, got -1..-1"),
    "complex counts": (lambda: dequantise(X + 0j, bins=17), TypeError, "tensor of integers"),
    "a list of counts": (lambda: dequantise([1], bins=17), TypeError, "integers, got list"),
    "learnt noise without a bound": (
        lambda: VariationalDequantisation(MLP(4, 8), bins=17, bound=0.0), ValueError, "bound"),
    "an infinite temperature": (
        lambda: StandardNormal(2).sample(1, temperature=math.inf), ValueError, "finite"),
    "a true temperature": (
        lambda: StandardNormal(2).sample(1, temperature=True), TypeError, "temperature"),
    "a base that draws nothing": (
        lambda: Flow(Scaling(2), Silent()), TypeError, "base must have sample"),
    "no levels": (lambda: RealNVP((1, 4, 4), levels=0), ValueError, "levels must be at least 1"),
    "one coupling of RealNVP": (lambda: RealNVP(4, couplings=1), ValueError, "couplings"),
    "no hidden units": (lambda: RealNVP(4, hidden=0), ValueError, "hidden must be at least 1"),
    "no steps": (lambda: Glow((1, 4, 4), steps=0), ValueError, "steps must be at least 1"),
    "no levels of Glow": (lambda: Glow((1, 4, 4), levels=0), ValueError, "levels must be"),
    "an odd width of Glow": (lambda: Glow((1, 8, 6)), ValueError, "multiples of 4, got"),
    "a network without inputs": (lambda: MLP(0, 2), ValueError, "size must be at least 1"),
    "convolutions of nothing": (lambda: ConvNet(1, 1, 0), ValueError, "size must be at least 1"),
    "no residual blocks": (
        lambda: ResidualConvNet(1, 1, 2, 0), ValueError, "size must be at least 1"),
    "what can be undone, and is no module": (
        lambda: Compose(Undoes()), TypeError, r"transforms\[0\] must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name):
    call, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        call()


def test_a_weight_that_became_singular_is_noticed():
    layer = Invertible1x1Conv(2, decomposed=False)
    with torch.no_grad():
        layer.full.copy_(SINGULAR)
    for call in (layer, layer.inverse):
        with pytest.raises(ValueError, match="singular: rank 1 of 2"):
            call(torch.zeros(1, 2))


def test_a_weight_that_became_nan_is_noticed():
    layer = Invertible1x1Conv(2, decomposed=False)
    with torch.no_grad():
        layer.full.fill_(torch.nan)
    with pytest.raises(ValueError, match="finite"):
        layer(torch.zeros(1, 2))


def test_the_last_values_that_are_allowed():
    """One further in each direction is refused above."""
    RationalQuadraticCoupling(ChannelMask.first_half(2), nn.Linear(1, 2999), bins=1000)
    assert Logit(0.0)(X + 0.5)[0].tolist() == X.tolist()
    for shape in ((1, 2), (2, 1)):
        assert CheckerboardMask()(torch.zeros(1, 1, *shape)).sum() == 1
    assert dequantise(torch.zeros(0, 3, dtype=torch.int64), bins=2).shape == (0, 3)
    assert log_scale_bound(5.5) == math.log(1.5)
    assert StandardNormal(2).sample(1, temperature=0.0).tolist() == [[0.0, 0.0]]
    for smallest in (NICE(2, couplings=2), RealNVP(2, couplings=2, hidden=1, alpha=None)):
        assert smallest.log_prob(torch.rand(3, 2)).shape == (3,)
    one = Glow((1, 2, 2), levels=1, steps=1, hidden=1)
    assert one.sample(2).shape == (2, 1, 2, 2)
    assert VariationalDequantisation(MLP(4, 8), bins=2)(X.long() + 1)[1].shape == (2,)


def test_every_public_name_is_there():
    assert sorted(cf.__all__) == sorted(set(cf.__all__))
    assert all(hasattr(cf, name) for name in cf.__all__)
