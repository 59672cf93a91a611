"""The checks at the door: sizes, strides, padding, and the shapes that belong together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pkg.algos.dilated_convolution.geometry import output_size
from pkg.arguments import whole

Padding = int | Sequence[int] | str


def per_axis(name: str, value: int | Sequence[int], axes: int, least: int = 1) -> list[int]:
    """Return one int per axis; a single int stands for all of them."""
    if isinstance(value, int):
        return [whole(name, value, least)] * axes
    if not isinstance(value, tuple | list) or len(value) != axes:
        raise TypeError(f"{name} must be an int or {axes} ints (one per axis), got {value!r}")
    return [whole(name, one, least) for one in value]


def resolve_padding(
    padding: Padding, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]
) -> list[int]:
    """Return zeros before and after, axis by axis: [before, after] or [top, bottom, left, right].

    An int pads every side. A pair means (before, after) in one dimension and (height, width) in
    two. "same" keeps the size; where the total is odd, the extra zero goes after, as in PyTorch.
    """
    axes = len(kernel)
    if isinstance(padding, str):
        if padding != "same":
            raise ValueError(f'padding must be an int, a pair or "same", got {padding!r}')
        if any(s != 1 for s in stride):
            raise ValueError(f'padding "same" needs stride 1, got stride {tuple(stride)}')
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [side for total in totals for side in (total // 2, total - total // 2)]
    if axes == 1 and isinstance(padding, tuple | list):
        return per_axis("padding", padding, 2, 0)
    return [side for one in per_axis("padding", padding, axes, 0) for side in (one, one)]


#: Stride, padding and dilation as the operators take them, of two axes.
Layer = tuple[list[int], list[int], list[int]]


def image_layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int | Sequence[int],
    stride: int | Sequence[int], padding: Padding, groups: int, axes: int,
) -> tuple[Tensor, Tensor, Layer]:  # fmt: skip
    """Check a layer of one axis or two, and return it as one of two: a sequence is one row high."""
    check_tensors(x, weight, bias, groups, axes)
    check_kinds(x, weight, bias)
    steps, gaps = per_axis("stride", stride, axes), per_axis("dilation", dilation, axes)
    sides = resolve_padding(padding, weight.shape[2:], gaps, steps)
    output_shape(x, weight, steps, sides, gaps)
    if axes == 1:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        return x, weight, ([1, *steps], [0, 0, *sides], [1, *gaps])
    return x, weight, (steps, sides, gaps)


def check_tensors(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, axes: int) -> None:
    """Raise unless x, weight and bias are tensors of one dtype and device whose shapes fit."""
    letters = "length" if axes == 1 else "height, width"
    layouts = {
        "x": f"(batch, in_channels, {letters})",
        "weight": "(out_channels, in_channels / groups, " + ("k)" if axes == 1 else "k_h, k_w)"),
    }
    for name, tensor in (("x", x), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.ndim != axes + 2:
            raise ValueError(f"{name} must have shape {layouts[name]}, got {tuple(tensor.shape)}")
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"bias must be a torch.Tensor or None, got {type(bias).__name__}")
    whole("groups", groups, 1)
    channels, outputs = x.shape[1], weight.shape[0]
    if channels % groups or outputs % groups:
        raise ValueError(
            f"groups must divide in_channels {channels} and out_channels {outputs}, got {groups}"
        )
    if weight.shape[1] * groups != channels:
        raise ValueError(
            f"weight must take in_channels / groups = {channels // groups} channels, "
            f"got {weight.shape[1]} in {tuple(weight.shape)}"
        )
    if not channels or not outputs or not all(weight.shape[2:]):
        raise ValueError(
            "x and weight must have at least one channel and one tap, "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ValueError(f"bias must have shape ({outputs},), got {tuple(bias.shape)}")


def check_kinds(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise unless all have x's dtype (autocast may cast them later) and x's device."""
    cast = torch.is_autocast_enabled(x.device.type) and x.is_floating_point()
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != x.dtype and not (cast and tensor.is_floating_point()):
            raise TypeError(f"{name} must have x's dtype {x.dtype}, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on x's device {x.device}, got {tensor.device}")


def output_shape(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:  # fmt: skip
    """Return the output's size along each axis; raise where no output fits."""
    axes = zip(
        x.shape[2:], weight.shape[2:], dilation, stride, padding[::2], padding[1::2], strict=True
    )
    found = []
    for size, kernel, d, s, before, after in axes:
        outputs = (size + before + after - d * (kernel - 1) - 1) // s + 1
        if outputs < 1:
            output_size(size, kernel, dilation=d, stride=s, padding=(before, after))  # it raises
        found.append(outputs)
    return found
