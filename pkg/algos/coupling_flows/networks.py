"""The networks inside couplings. They need not be invertible, so any network will do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pkg.arguments import whole


def draw_weights(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw the weights of every layer anew, uniform with variance 2 / inputs; biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            inputs = layer.weight[0].numel()
            edge = math.sqrt(6 / inputs)
            with torch.no_grad():
                layer.weight.uniform_(-edge, edge, generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()


class _Conditioner(nn.Module):
    """Layers whose last one begins at 0, so that a coupling begins as the identity."""

    def __init__(self, layers: Sequence[nn.Module], generator: torch.Generator | None) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        draw_weights(self, generator)
        last = layers[-1]
        assert isinstance(last, nn.Linear | nn.Conv2d), "the last layer has weights"
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the parameters of the coupling for what it keeps."""
        return self.layers(x)


class MLP(_Conditioner):
    """Linear layers with ReLU between them: (N, inputs) to (N, outputs)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (64, 64),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = [inputs, *hidden, outputs]
        for size in sizes:
            whole("size", size, 1)
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(layers[:-1], generator)


class ConvNet(_Conditioner):
    """Convolutions of 3 × 3, 1 × 1 and 3 × 3: (N, inputs, H, W) to (N, outputs, H, W), as in Glow."""

    def __init__(
        self, inputs: int, outputs: int, hidden: int = 64,
        *, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        for size in (inputs, outputs, hidden):
            whole("size", size, 1)
        layers = [
            nn.Conv2d(inputs, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 3, padding=1),
        ]
        super().__init__(layers, generator)


class ResidualConvNet(_Conditioner):
    """A convolution, residual blocks of two, and a last convolution, as in RealNVP."""

    def __init__(
        self, inputs: int, outputs: int, hidden: int = 32, blocks: int = 2,
        *, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        for size in (inputs, outputs, hidden, blocks):
            whole("size", size, 1)
        inside = [_Residual(hidden) for _ in range(blocks)]
        first = nn.Conv2d(inputs, hidden, 3, padding=1)
        last = nn.Conv2d(hidden, outputs, 1)
        super().__init__([first, *inside, nn.ReLU(), last], generator)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
