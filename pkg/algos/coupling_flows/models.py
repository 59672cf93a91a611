"""Ready flows: NICE, RealNVP and Glow, on data in [0, 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pkg.algos.coupling_flows.arguments import event_shape, samples
from pkg.algos.coupling_flows.compose import Compose, MultiScale
from pkg.algos.coupling_flows.couplings import AdditiveCoupling, AffineCoupling
from pkg.algos.coupling_flows.flow import Flow, StandardLogistic, StandardNormal
from pkg.algos.coupling_flows.linear import ActNorm, Invertible1x1Conv, Scaling, Squeeze
from pkg.algos.coupling_flows.masks import ChannelMask, CheckerboardMask
from pkg.algos.coupling_flows.networks import MLP, ConvNet, ResidualConvNet
from pkg.algos.coupling_flows.pixels import Logit
from pkg.algos.coupling_flows.transform import Transform, per_sample
from pkg.arguments import whole

Generator = torch.Generator | None


class _Flatten(Transform):
    """Lays a sample out as a vector."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        samples(x, self.shape, "flow")
        return x.flatten(1), per_sample(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.reshape(len(z), *self.shape), per_sample(z)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)


class NICE(Flow):
    """Additive couplings on a vector, a scaling, and a logistic base.

    Parameters
    ----------
    shape
        The shape of one sample, at least two numbers; images are laid out as vectors.
    couplings
        How many additive couplings, at least 2; even and odd places take turns.
    hidden
        Widths of the hidden layers of each network.
    generator
        Draws the first weights.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Notes
    -----
    Dinh et al. (2014), section 3. With fewer than three couplings some numbers influence no other:
    `coupling_flows:reach`. Ledger: `coupling_flows:nice`.

    Examples
    --------
    >>> flow = NICE((1, 4, 4), hidden=(8,))
    >>> flow.log_prob(torch.rand(5, 1, 4, 4)).shape
    torch.Size([5])
    """

    def __init__(
        self, shape: int | Sequence[int], *, couplings: int = 4,
        hidden: Sequence[int] = (128, 128), generator: Generator = None,
    ) -> None:  # fmt: skip
        event = event_shape("shape", shape)
        whole("couplings", couplings, 2)
        size = math.prod(event)
        layers: list[Transform] = [_Flatten(event)]
        for number in range(couplings):
            mask = ChannelMask.alternating(size, swap=number % 2 == 1)
            network = MLP(size - mask.changed, mask.changed, hidden, generator=generator)
            layers.append(AdditiveCoupling(mask, network))
        super().__init__(Compose(*layers, Scaling(size)), StandardLogistic(size))


class RealNVP(Flow):
    """Affine couplings: on vectors with alternating masks, on images at several scales.

    On images each level has three couplings with checkerboard masks, a squeeze, and three with
    channel masks; then half of the channels leave. The last level has four with checkerboard masks.

    Parameters
    ----------
    shape
        (D,) with D at least 2, or (C, H, W).
    levels
        For images: how many levels. Each but the last halves height and width. Vectors have one.
    couplings
        For vectors: how many couplings, at least 2.
    hidden
        Channels of the networks (for vectors the width of two hidden layers).
    alpha
        Of the `Logit` in front; None leaves it out.
    generator
        Draws the first weights.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be, or the images cannot be halved so often.

    Notes
    -----
    Dinh et al. (2017), section 3; batch normalisation is left out. Ledger: `coupling_flows:realnvp`.

    Examples
    --------
    >>> flow = RealNVP((1, 4, 8), hidden=4)
    >>> flow.sample(2, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 4, 8])
    """

    def __init__(
        self, shape: int | Sequence[int], *, levels: int = 2, couplings: int = 6,
        hidden: int = 32, alpha: float | None = 0.05, generator: Generator = None,
    ) -> None:  # fmt: skip
        event = event_shape("shape", shape)
        whole("levels", levels, 1)
        whole("couplings", couplings, 2)
        whole("hidden", hidden, 1)
        first: list[Transform] = [] if alpha is None else [Logit(alpha)]
        if len(event) == 1:
            body = [_vector_coupling(event[0], n, hidden, generator) for n in range(couplings)]
            super().__init__(Compose(*first, *body), StandardNormal(event))
            return
        _check_images(event, levels - 1)
        blocks: list[Transform] = []
        here = event
        for _ in range(levels - 1):
            steps = [_checkerboard(here, n, hidden, generator) for n in range(3)]
            here = Squeeze().output_shape(here)
            steps += [Squeeze(), *(_halves(here, n, hidden, generator) for n in range(3))]
            blocks.append(Compose(*steps))
            here = (here[0] // 2, *here[1:])
        blocks.append(Compose(*(_checkerboard(here, n, hidden, generator) for n in range(4))))
        last = MultiScale(event, blocks) if levels > 1 else Compose(*blocks, _Flatten(event))
        super().__init__(Compose(*first, last), StandardNormal(math.prod(event)))


class Glow(Flow):
    """Steps of ActNorm, 1 × 1 convolution and affine coupling, at several scales.

    Each level is a squeeze and `steps` such steps. Then half of the channels leave, moved by a
    coupling that has seen the other half: the learnt prior.

    Parameters
    ----------
    shape
        (C, H, W); 2^levels must divide H and W.
    levels
        How many levels, at least 1.
    steps
        How many steps in each level, at least 1.
    hidden
        Channels of the networks in the couplings.
    alpha
        Of a `Logit` in front; None, as in Glow, leaves it out.
    generator
        Draws the first weights.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be, or the images cannot be halved so often.

    Notes
    -----
    Kingma and Dhariwal (2018), section 3. Call `initialise` with a batch, or begin to train: the
    first batch sets every ActNorm. Ledger: `coupling_flows:glow`.

    Examples
    --------
    >>> flow = Glow((1, 4, 8), levels=1, steps=2, hidden=4)
    >>> flow.initialise(torch.rand(16, 1, 4, 8))
    >>> flow.log_prob(torch.rand(3, 1, 4, 8)).shape
    torch.Size([3])
    """

    def __init__(
        self, shape: Sequence[int], *, levels: int = 2, steps: int = 4, hidden: int = 64,
        alpha: float | None = None, generator: Generator = None,
    ) -> None:  # fmt: skip
        event = event_shape("shape", shape)
        for name, value in (("levels", levels), ("steps", steps), ("hidden", hidden)):
            whole(name, value, 1)
        _check_images(event, levels)
        first: list[Transform] = [] if alpha is None else [Logit(alpha)]
        blocks, here = [], event
        for level in range(levels):
            here = Squeeze().output_shape(here)
            layers: list[Transform] = [Squeeze()]
            for _ in range(steps):
                layers += [ActNorm(here[0]), Invertible1x1Conv(here[0], generator=generator)]
                layers.append(_glow_coupling(here[0], hidden, generator))
            if level < levels - 1:
                layers.append(_glow_coupling(here[0], hidden, generator))  # the learnt prior
                blocks.append(Compose(*layers))
                here = (here[0] // 2, *here[1:])
            else:
                blocks.append(Compose(*layers))
        last = MultiScale(event, blocks) if levels > 1 else Compose(*blocks, _Flatten(here))
        super().__init__(Compose(*first, last), StandardNormal(math.prod(event)))


def _check_images(event: tuple[int, ...], halvings: int) -> None:
    if len(event) != 3:
        raise ValueError(f"shape must be that of an image, (C, H, W), got {event}")
    if event[1] % 2**halvings or event[2] % 2**halvings:
        raise ValueError(f"height and width must be multiples of {2**halvings}, got {event}")


def _vector_coupling(size: int, number: int, hidden: int, generator: Generator) -> Transform:
    mask = ChannelMask.alternating(size, swap=number % 2 == 1)
    network = MLP(size - mask.changed, 2 * mask.changed, (hidden, hidden), generator=generator)
    return AffineCoupling(mask, network)


def _checkerboard(
    here: tuple[int, ...], number: int, hidden: int, generator: Generator
) -> Transform:
    network = ResidualConvNet(here[0], 2 * here[0], hidden, 1, generator=generator)
    return AffineCoupling(CheckerboardMask(swap=number % 2 == 1), network)


def _halves(here: tuple[int, ...], number: int, hidden: int, generator: Generator) -> Transform:
    mask = ChannelMask.first_half(here[0], swap=number % 2 == 1)
    network: nn.Module = ResidualConvNet(
        here[0] - mask.changed, 2 * mask.changed, hidden, 1, generator=generator
    )
    return AffineCoupling(mask, network)


def _glow_coupling(channels: int, hidden: int, generator: Generator) -> Transform:
    mask = ChannelMask.first_half(channels)
    network = ConvNet(channels - mask.changed, 2 * mask.changed, hidden, generator=generator)
    return AffineCoupling(mask, network)
