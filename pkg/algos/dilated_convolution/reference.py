"""The definition: gather the taps, multiply, add. Any dtype, any device, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from pkg.algos.dilated_convolution.arguments import Padding, image_layer, output_shape


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
    x, weight, bias, dilation, stride, padding, groups
        As for `dilated_conv1d`, in any dtype.

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
    x, weight, layer = image_layer(x, weight, bias, dilation, stride, padding, groups, 1)
    return gather(x, weight, bias, *layer, groups).squeeze(2)


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
    x, weight, bias, dilation, stride, padding, groups
        As for `dilated_conv2d`, in any dtype.

    Returns
    -------
    Tensor
        (batch, out_channels, out_height, out_width), summed and rounded as by `gathered_conv1d`.

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
    x, weight, layer = image_layer(x, weight, bias, dilation, stride, padding, groups, 2)
    return gather(x, weight, bias, *layer, groups)


def gather(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Return the convolution of a checked layer; `padding` is [top, bottom, left, right]."""
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
