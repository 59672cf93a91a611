"""Dilated convolution, the functions to use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pkg.algos.dilated_convolution.arguments import Padding, image_layer
from pkg.algos.dilated_convolution.operator import convolve
from pkg.algos.dilated_convolution.reference import gather

#: Floating-point types that need not be gathered.
FAST = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def dilated_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    stride: int = 1,
    padding: Padding = 0,
    groups: int = 1,
) -> Tensor:
    """Convolve along one axis with gaps of `dilation` between the taps.

    Parameters
    ----------
    x
        (batch, in_channels, length), any dtype.
    weight
        (out_channels, in_channels / groups, k), in x's dtype.
    bias
        (out_channels,), or None.
    dilation
        Distance between neighbouring taps; 1 is an ordinary convolution.
    stride
        Distance between neighbouring outputs.
    padding
        Zeros on each side, a pair (before, after), or "same": as many as keep the length. A causal
        convolution has padding (dilation * (k - 1), 0).
    groups
        Channels are split in so many groups that do not see each other; in_channels of them is a
        depthwise convolution.

    Returns
    -------
    Tensor
        (batch, out_channels, outputs), in x's dtype; int64 for integers and booleans.
        Differentiable any number of times.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or devices do not belong together, an argument is out of range, or the
        kernel is longer than the padded input. The message names the argument.

    Notes
    -----
    van den Oord et al. (2016), section 2.1. Ledger: `dilated_convolution:conv1d`.

    Which routine computes it: on a CUDA device the kernels of `pkg.cuda.dilated_convolution`, except
    in float64, which they do not take; that, and every other device, gets PyTorch's own convolution.
    So does the CPU, but for depthwise layers where ours is faster (see
    `pkg.algos.dilated_convolution.depthwise`). Types that PyTorch does not convolve are gathered.

    Examples
    --------
    >>> x = torch.arange(6.0).view(1, 1, 6)
    >>> weight = torch.tensor([[[1.0, 10.0]]])
    >>> dilated_conv1d(x, weight, dilation=3)
    tensor([[[30., 41., 52.]]])
    >>> dilated_conv1d(x, weight, dilation=3, padding=(3, 0))  # causal
    tensor([[[ 0., 10., 20., 30., 41., 52.]]])
    """
    return _convolve(x, weight, bias, dilation, stride, padding, groups, 1).squeeze(2)


def dilated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    groups: int = 1,
) -> Tensor:
    """Convolve an image with gaps of `dilation` between the taps.

    Parameters
    ----------
    x
        (batch, in_channels, height, width), any dtype.
    weight
        (out_channels, in_channels / groups, k_h, k_w), in x's dtype.
    bias
        (out_channels,), or None.
    dilation, stride
        An int, or a pair (height, width).
    padding
        Zeros on each side: an int, a pair (height, width), or "same": as many as keep the size.
    groups
        As for `dilated_conv1d`.

    Returns
    -------
    Tensor
        (batch, out_channels, out_height, out_width), in x's dtype; int64 for integers and booleans.
        Differentiable any number of times.

    Raises
    ------
    TypeError, ValueError
        As `dilated_conv1d`.

    Notes
    -----
    Yu and Koltun (2016), section 2. Ledger: `dilated_convolution:conv2d`. Which routine computes it
    is said at `dilated_conv1d`.

    Examples
    --------
    >>> x = torch.arange(25.0).view(1, 1, 5, 5)
    >>> dilated_conv2d(x, torch.ones(1, 1, 3, 3), dilation=2)
    tensor([[[[108.]]]])
    """
    return _convolve(x, weight, bias, dilation, stride, padding, groups, 2)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int | Sequence[int],
    stride: int | Sequence[int], padding: Padding, groups: int, axes: int,
) -> Tensor:  # fmt: skip
    x, weight, layer = image_layer(x, weight, bias, dilation, stride, padding, groups, axes)
    run = convolve if x.dtype in FAST else gather
    return run(x, weight, bias, *layer, groups)
