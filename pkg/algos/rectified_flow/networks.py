"""A small velocity network for vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pkg.algos.rectified_flow.arguments import batch, floating
from pkg.arguments import whole


def time_features(t: Tensor, frequencies: int) -> Tensor:
    """Return times as waves of rising frequency: cosines, then sines.

    Parameters
    ----------
    t
        Times, shape (batch,).
    frequencies
        How many; wave k = 1 ... makes k half turns between t = 0 and t = 1.

    Returns
    -------
    Tensor
        Shape (batch, 2 frequencies).

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Ledger: `rectified_flow:time_features`.

    Examples
    --------
    >>> time_features(torch.tensor([0.0]), 2)
    tensor([[1., 1., 0., 0.]])
    """
    floating("t", t)
    if t.ndim != 1:
        raise ValueError(f"t must have shape (batch,), got {tuple(t.shape)}")
    whole("frequencies", frequencies, 1)
    angle = math.pi * t[:, None] * torch.arange(1, frequencies + 1, device=t.device, dtype=t.dtype)
    return torch.cat([angle.cos(), angle.sin()], 1)


class VelocityMLP(nn.Module):
    """A velocity for vectors: layers that see the place, the time and perhaps a label.

    Parameters
    ----------
    features
        Elements of x.
    hidden, depth
        Width and number of hidden layers; each after the first adds to what came before.
    frequencies
        Waves of `time_features`.
    classes
        0 for no labels; else labels 0 ... classes - 1, and `classes` itself stands for "none", as
        classifier-free guidance needs it.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a whole number in its range; from `forward`, if x does not have shape
        (batch, features), or labels come where there are none.

    Notes
    -----
    Ledger: `rectified_flow:velocity_mlp`.

    Examples
    --------
    >>> network = VelocityMLP(2, hidden=16, depth=2)
    >>> network(torch.zeros(5, 2), torch.zeros(5)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self, features: int, *, hidden: int = 128, depth: int = 3, frequencies: int = 8,
        classes: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        whole("features", features, 1)
        whole("hidden", hidden, 1)
        whole("depth", depth, 1)
        whole("frequencies", frequencies, 1)
        whole("classes", classes, 0)
        self.features, self.frequencies, self.classes = features, frequencies, classes
        self.first = nn.Linear(features + 2 * frequencies, hidden)
        self.middle = nn.ModuleList(
            nn.Linear(hidden + 2 * frequencies, hidden) for _ in range(depth - 1)
        )
        self.last = nn.Linear(hidden, features)
        self.label = nn.Embedding(classes + 1, hidden) if classes else None

    def forward(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
        """Return the velocity (batch, features) at x (batch, features) and t (batch,)."""
        batch("x", x)
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"x must have shape (batch, {self.features}), got {tuple(x.shape)}")
        waves = time_features(t, self.frequencies)
        h = self.first(torch.cat([x, waves], 1))
        if self.label is not None:
            none = torch.full((len(x),), self.classes, device=x.device)
            h = h + self.label(none if label is None else label)
        elif label is not None:
            raise ValueError("label must be None: the network was built with classes=0")
        h = silu(h)
        for layer in self.middle:
            h = h + silu(layer(torch.cat([h, waves], 1)))
        return self.last(h)
