"""The other way to compute a dilated convolution: take the image apart, convolve, put together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import pad

from pkg.algos.dilated_convolution.arguments import (
    Padding,
    check_tensors,
    output_shape,
    per_axis,
    resolve_padding,
)
from pkg.algos.dilated_convolution.convolution import dilated_conv2d


def space_to_batch_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int | Sequence[int] = 1,
    padding: Padding = 0,
    groups: int = 1,
) -> Tensor:
    """Convolve an image at rate r as r² ordinary convolutions of images r times smaller.

    An output and its taps have the same place modulo r. So the image falls apart into r² pictures
    that never meet, and each is convolved without gaps. It is how TensorFlow computes
    `tf.nn.atrous_conv2d`, and why a stack of equal rates has a grid in its output.

    Parameters
    ----------
    x, weight, bias, dilation, padding, groups
        As for `dilated_conv2d`; the stride is 1.

    Returns
    -------
    Tensor
        The same as `dilated_conv2d`, up to the order in which the products are added.

    Raises
    ------
    TypeError, ValueError
        As `dilated_conv2d`.

    Notes
    -----
    Ledger: `dilated_convolution:space_to_batch`.

    Examples
    --------
    >>> import torch
    >>> x = torch.arange(25.0).view(1, 1, 5, 5)
    >>> space_to_batch_conv2d(x, torch.ones(1, 1, 3, 3), dilation=2)
    tensor([[[[108.]]]])
    """
    check_tensors(x, weight, bias, groups, 2)
    gaps = per_axis("dilation", dilation, 2)
    top, bottom, left, right = sides = resolve_padding(padding, weight.shape[2:], gaps, [1, 1])
    rows, columns = output_shape(x, weight, [1, 1], sides, gaps)
    spare = [-(size + before + after) % gap for size, before, after, gap in (
        (x.shape[2], top, bottom, gaps[0]), (x.shape[3], left, right, gaps[1])
    )]  # fmt: skip
    x = pad(x, (left, right + spare[1], top, bottom + spare[0]))
    parts = _apart(x, gaps)  # (r_h r_w N, C, H / r_h, W / r_w)
    convolved = dilated_conv2d(parts, weight, bias, groups=groups)
    return _together(convolved, gaps)[:, :, :rows, :columns]


def _apart(x: Tensor, gaps: Sequence[int]) -> Tensor:
    """Space to batch: pixel (i, j) goes to picture (i mod r_h, j mod r_w)."""
    split = x.unflatten(3, (-1, gaps[1])).unflatten(2, (-1, gaps[0]))  # (N, C, H', r_h, W', r_w)
    return split.permute(3, 5, 0, 1, 2, 4).flatten(0, 2)


def _together(x: Tensor, gaps: Sequence[int]) -> Tensor:
    """Batch to space: the inverse of `_apart`."""
    split = x.unflatten(0, (gaps[0], gaps[1], -1))  # (r_h, r_w, N, C, H', W')
    return split.permute(2, 3, 4, 0, 5, 1).flatten(4, 5).flatten(2, 3)
