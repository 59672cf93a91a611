"""Putting layers together: one after another, and with parts that leave on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pkg.algos.coupling_flows.arguments import event_shape, samples
from pkg.algos.coupling_flows.transform import Transform, check_transforms


class Compose(Transform):
    """Transforms one after another; their log-determinants add up.

    Parameters
    ----------
    *transforms
        The first is applied to x first. At least one.

    Raises
    ------
    TypeError
        If one of them has no `inverse`.
    ValueError
        If there is none.

    Notes
    -----
    Ledger: `coupling_flows:composition`, `coupling_flows:inverse_log_det`.

    Examples
    --------
    >>> from pkg.algos.coupling_flows import Permutation, Scaling
    >>> Compose(Scaling(2), Permutation([1, 0]))(torch.tensor([[1.0, 2.0]]))[0].tolist()
    [[2.0, 1.0]]
    """

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        found = check_transforms(transforms)
        if not found:
            raise ValueError("transforms must hold at least one transform, got none")
        self.transforms = nn.ModuleList(found)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and the sum of the log-determinants, shape (N,)."""
        first, *others = self.transforms
        x, log_det = first(x)
        for transform in others:
            x, more = transform(x)
            log_det = log_det + more
        return x, log_det

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, the last transform undone first, and the sum of the log-determinants."""
        layers: list[Any] = list(self.transforms)
        z, log_det = layers[-1].inverse(z)
        for transform in reversed(layers[:-1]):
            z, more = transform.inverse(z)
            log_det = log_det + more
        return z, log_det

    def initialise(self, x: Tensor) -> Tensor:
        """Set what depends on data, layer by layer, each on what the layers before it give."""
        for transform in self.transforms:
            x = transform.initialise(x) if isinstance(transform, Transform) else transform(x)[0]
        return x

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one z for the shape of one x."""
        for transform in self.transforms:
            if isinstance(transform, Transform):
                shape = transform.output_shape(shape)
        return shape


class MultiScale(Transform):
    """Levels of a flow; after each but the last, half of the channels leave for good.

    The latent z is flat, (N, D): first what leaves after the first level, then what leaves after the
    second, ..., last what is left. To sample is to draw all of z, the parts that left included.

    Parameters
    ----------
    shape
        The shape of one x, such as (C, H, W).
    levels
        A transform for each level, at least two, such as a `Compose` of a `Squeeze` and couplings.
        A coupling with `ChannelMask.first_half` at the end of a level is a learnt conditional prior: it
        moves what leaves as a function of what stays.

    Raises
    ------
    TypeError
        If a level has no `inverse`.
    ValueError
        If there are fewer than two levels, or a level has a single channel to divide; from
        `forward` and `inverse`, if the shape is another.

    Notes
    -----
    Of C channels the first ⌊C / 2⌋ stay. Dinh et al. (2017), section 3.6. Ledger:
    `coupling_flows:multi_scale`, `coupling_flows:conditional_prior`.

    Examples
    --------
    >>> from pkg.algos.coupling_flows import Permutation, Squeeze
    >>> flow = MultiScale((1, 4, 4), [Squeeze(), Permutation.reverse(2)])
    >>> flow(torch.zeros(3, 1, 4, 4))[0].shape
    torch.Size([3, 16])
    """

    def __init__(self, shape: int | Sequence[int], levels: Sequence[Transform]) -> None:
        super().__init__()
        self.shape = event_shape("shape", shape)
        found = check_transforms(levels, "levels")
        if len(found) < 2:
            raise ValueError(f"levels must be at least two, got {len(found)}; use it as it is")
        self.levels = nn.ModuleList(found)
        self._leaving: list[tuple[int, ...]] = []  # the shape of each part of z
        here = self.shape
        for number, level in enumerate(found):
            here = level.output_shape(here) if isinstance(level, Transform) else here
            if number < len(found) - 1:
                if here[0] < 2:
                    raise ValueError(f"level {number} has a single channel: nothing can leave")
                self._leaving.append((here[0] - here[0] // 2, *here[1:]))
                here = (here[0] // 2, *here[1:])
        self._leaving.append(here)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z, flat, (N, D), and the sum of the levels' log-determinants, shape (N,)."""
        samples(x, self.shape, "MultiScale")
        parts, log_det = [], x.new_zeros(len(x))
        for number, level in enumerate(self.levels):
            x, more = level(x)
            log_det = log_det + more
            x, leaving = self._divide(x, number)
            parts.append(leaving.flatten(1))
        return torch.cat(parts, 1), log_det

    def _divide(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return what stays after a level and what leaves."""
        if level == len(self.levels) - 1:
            return x, x
        stay = x.shape[1] // 2
        return x[:, :stay], x[:, stay:]

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and the sum of the levels' log-determinants, shape (N,)."""
        sizes = [math.prod(shape) for shape in self._leaving]
        samples(z, (sum(sizes),), "MultiScale", "z")
        parts = [
            part.reshape(len(z), *shape)
            for part, shape in zip(z.split(sizes, 1), self._leaving, strict=True)
        ]
        levels: list[Any] = list(self.levels)
        x, log_det = levels[-1].inverse(parts[-1])
        for level, part in zip(reversed(levels[:-1]), reversed(parts[:-1]), strict=True):
            x, more = level.inverse(torch.cat((x, part), 1))
            log_det = log_det + more
        return x, log_det

    def initialise(self, x: Tensor) -> Tensor:
        """Set what depends on data, level by level."""
        for number, level in enumerate(self.levels):
            x = level.initialise(x) if isinstance(level, Transform) else level(x)[0]
            x, _ = self._divide(x, number)
        return x

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (D,)."""
        return (math.prod(shape),)
