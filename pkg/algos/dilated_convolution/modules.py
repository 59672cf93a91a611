"""Networks of dilated layers for images: ASPP, and a stack whose rates leave no hole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from pkg.algos.dilated_convolution.convolution import dilated_conv2d
from pkg.algos.dilated_convolution.coverage import coverage, has_gridding
from pkg.arguments import whole


class _SameConv2d(nn.Conv2d):
    """`nn.Conv2d` with "same" padding, computed by `dilated_conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return dilated_conv2d(
            x, self.weight, self.bias, dilation=self.dilation[0], padding="same", groups=self.groups
        )


def _layer(inputs: int, outputs: int, kernel_size: int, dilation: int) -> nn.Sequential:
    convolution = _SameConv2d(inputs, outputs, kernel_size, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the same features at several rates, side by side.

    A 1 × 1 convolution, one 3 × 3 convolution per rate, and the mean of the whole map, each with
    `out_channels` channels; all of them together go through a last 1 × 1 convolution.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the input and of the output.
    rates
        The dilations, 6, 12, 18 in DeepLabv3 at output stride 16 (twice as much at 8).
    image_pooling
        Add the branch with the mean of the map.

    Raises
    ------
    TypeError, ValueError
        If an argument is not made of ints of at least 1; from `forward`, if x does not have shape
        (batch, in_channels, height, width).

    Notes
    -----
    Chen et al. (2017), section 3.3. The branch of the mean has one value per channel and image.
    Batch normalisation cannot be trained on a single one, which is why published versions fail on a
    batch of one image; this branch has a bias instead, and no normalisation.
    Ledger: `dilated_convolution:aspp_reach`, `dilated_convolution:aspp_weights`.

    Examples
    --------
    >>> ASPP(8, 4).train()(torch.ones(1, 8, 5, 7)).shape
    torch.Size([1, 4, 5, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int] = (6, 12, 18),
        *,
        image_pooling: bool = True,
    ) -> None:
        super().__init__()
        whole("in_channels", in_channels, 1)
        whole("out_channels", out_channels, 1)
        for index, rate in enumerate(rates):
            whole(f"rates[{index}]", rate, 1)
        self.in_channels, self.rates = in_channels, tuple(rates)
        self.point = _layer(in_channels, out_channels, 1, 1)
        self.pyramid = nn.ModuleList(_layer(in_channels, out_channels, 3, r) for r in rates)
        self.pooled = _SameConv2d(in_channels, out_channels, 1) if image_pooling else None
        branches = 1 + len(self.rates) + image_pooling
        self.project = _layer(branches * out_channels, out_channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out_channels, height, width) for x (batch, in_channels, height, width)."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"x must have shape (batch, {self.in_channels}, height, width), "
                f"got {tuple(x.shape)}"
            )
        found = [self.point(x), *(branch(x) for branch in self.pyramid)]
        if self.pooled is not None:
            mean = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
            found.append(relu(self.pooled(mean)).expand(-1, -1, *x.shape[2:]))
        return self.project(torch.cat(found, 1))


class HybridDilatedStack(nn.Sequential):
    """Dilated layers one after the other, whose rates together leave no hole.

    Parameters
    ----------
    in_channels, channels
        Channels of the input, and of every layer's output.
    rates
        The dilation of each layer.
    kernel_size
        Taps of every layer along each axis.
    allow_gridding
        Build the stack although its rates leave holes, for instance to look at them.

    Raises
    ------
    TypeError, ValueError
        If an argument is not made of ints of at least 1, or if the rates leave holes: the message
        says which offset is the first that no path reaches.

    Notes
    -----
    Wang et al. (2018), section 3.2; the layers are convolution, batch normalisation, ReLU.
    Ledger: `dilated_convolution:stack_counts`.

    Examples
    --------
    >>> HybridDilatedStack(3, 8, (1, 2, 5))(torch.ones(2, 3, 9, 9)).shape
    torch.Size([2, 8, 9, 9])
    >>> HybridDilatedStack(3, 8, (2, 2, 2))
    Traceback (most recent call last):
      ...
    ValueError: rates (2, 2, 2) with kernel_size 3 leave holes: no path reaches offset 1 of 0..12
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: Sequence[int] = (1, 2, 5),
        *,
        kernel_size: int = 3,
        allow_gridding: bool = False,
    ) -> None:
        whole("in_channels", in_channels, 1)
        whole("channels", channels, 1)
        whole("kernel_size", kernel_size, 1)
        rates = tuple(rates)
        if has_gridding(kernel_size, rates) and not allow_gridding:
            counts = coverage(kernel_size, rates)
            first = int((counts == 0).nonzero()[0])
            raise ValueError(
                f"rates {rates} with kernel_size {kernel_size} leave holes: no path reaches offset "
                f"{first} of 0..{len(counts) - 1}"
            )
        widths = [in_channels] + [channels] * len(rates)
        super().__init__(
            *(_layer(a, channels, kernel_size, r) for a, r in zip(widths, rates, strict=False))
        )
        self.rates, self.kernel_size = rates, kernel_size
