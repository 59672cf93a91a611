"""The definition: gather the taps, multiply, add. Any dtype, any device, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from pkg.algos.dilated_convolution.arguments import (
    Padding,
    check_kinds,
    check_tensors,
    output_shape,
    per_axis,
    resolve_padding,
)


def gathered_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    stride: int = 1,
    padding: Padding = 0,
    groups: int = 1,
) -> Tensor:
    """Convolve along one axis as the formula says: the reference that `dilated_conv1d` is held to.

    Parameters
    ----------
    x, weight, bias
        (batch, in_channels, length), (out_channels, in_channels / groups, k) and
        (out_channels,) or None; any dtype, the same for all.
    dilation, stride, padding, groups
        As for `dilated_conv1d`.

    Returns
    -------
    Tensor
        (batch, out_channels, outputs). Half precision is summed in float32 and rounded once; sums of
        integers and booleans are int64.

    Raises
    ------
    TypeError, ValueError
        As `dilated_conv1d`.

    Notes
    -----
    Ledger: `dilated_convolution:conv1d`. The convolution of deep learning does not turn the kernel
    around; in signal processing's words it is a correlation.

    Examples
    --------
    >>> x = torch.arange(6).view(1, 1, 6)
    >>> gathered_conv1d(x, torch.tensor([[[1, 10]]]), dilation=3)
    tensor([[[30, 41, 52]]])
    """
    check_tensors(x, weight, bias, groups, 1)
    steps, gaps = per_axis("stride", stride, 1), per_axis("dilation", dilation, 1)
    sides = resolve_padding(padding, weight.shape[2:], gaps, steps)
    output = _gather(
        x.unsqueeze(2), weight.unsqueeze(2), bias, [1, *steps], [0, 0, *sides], [1, *gaps], groups
    )
    return output.squeeze(2)


def gathered_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    groups: int = 1,
) -> Tensor:
    """Convolve an image as the formula says: the reference that `dilated_conv2d` is held to.

    Parameters
    ----------
    x, weight, bias
        (batch, in_channels, height, width), (out_channels, in_channels / groups, k_h, k_w) and
        (out_channels,) or None; any dtype, the same for all.
    dilation, stride, padding, groups
        As for `dilated_conv2d`.

    Returns
    -------
    Tensor
        (batch, out_channels, out_height, out_width). Half precision is summed in float32 and rounded
        once; sums of integers and booleans are int64.

    Raises
    ------
    TypeError, ValueError
        As `dilated_conv2d`.

    Notes
    -----
    Ledger: `dilated_convolution:conv2d`.

    Examples
    --------
    >>> x = torch.arange(9).view(1, 1, 3, 3)
    >>> gathered_conv2d(x, torch.ones(1, 1, 2, 2, dtype=torch.int64), dilation=2)
    tensor([[[[16]]]])
    """
    check_tensors(x, weight, bias, groups, 2)
    steps, gaps = per_axis("stride", stride, 2), per_axis("dilation", dilation, 2)
    sides = resolve_padding(padding, weight.shape[2:], gaps, steps)
    return _gather(x, weight, bias, steps, sides, gaps, groups)


def _gather(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    check_kinds(x, weight, bias)
    kind = accumulation_dtype(x.dtype)
    rows, columns = output_shape(x, weight, stride, padding, dilation)
    top, bottom, left, right = padding
    x = pad(x.to(kind), (left, right, top, bottom))
    i = _places(rows, weight.shape[2], stride[0], dilation[0], x)  # (P, k_h)
    j = _places(columns, weight.shape[3], stride[1], dilation[1], x)  # (Q, k_w)
    taps = x[:, :, i[:, None, :, None], j[None, :, None, :]]  # (N, C, P, Q, k_h, k_w)
    taps = taps.unflatten(1, (groups, -1))  # (N, G, C/G, P, Q, k_h, k_w)
    kernel = weight.to(kind).unflatten(0, (groups, -1))  # (G, O/G, C/G, k_h, k_w)
    output = torch.einsum("ngcpqhw,gochw->ngopq", taps, kernel).flatten(1, 2)
    if bias is not None:
        output = output + bias.to(kind)[:, None, None]
    return output if not x.is_floating_point() else output.to(weight.dtype)


def _places(outputs: int, kernel: int, stride: int, dilation: int, like: Tensor) -> Tensor:
    """Return the index on the padded input of every (output, tap)."""
    output = torch.arange(outputs, device=like.device)[:, None]
    tap = torch.arange(kernel, device=like.device)[None, :]
    return output * stride + tap * dilation


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums of products are kept in."""
    if dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    if dtype.is_floating_point or dtype.is_complex:
        return dtype
    return torch.int64
