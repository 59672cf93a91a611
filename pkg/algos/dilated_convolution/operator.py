"""The operators `checked::dilated_conv2d_*`: forward, and its gradients by input and by weight.

Σ g · conv(x, w) is linear in each of g, x and w. Its three derivatives are the three operators, so
the gradient of each one is made of the other two, and all are differentiable as often as one likes.

Lists of ints: `stride` and `dilation` are [height, width], `padding` is [top, bottom, left, right].
The result has the memory format of the first argument; the weight's gradient is contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from pkg.algos.dilated_convolution.arguments import output_shape
from pkg.algos.dilated_convolution.depthwise import (
    depthwise_backward_input,
    depthwise_backward_weight,
    depthwise_forward,
    forward_gains,
    gradient_gains,
    is_depthwise,
    memory_format,
    symmetric,
)
from pkg.operators import register


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Convolve by PyTorch's own routine (oneDNN skips the gaps), or by ours where that is faster."""
    form = memory_format(x)
    if is_depthwise(x.shape[1], weight.shape[0], groups):
        output = depthwise_forward(x, weight, bias, stride, padding, dilation)
    else:
        x, sides = _pad_first(x, padding)
        output = conv2d(x, weight, bias, stride, sides, dilation, groups)
    return output.contiguous(memory_format=form)


def _pad_first(x: Tensor, padding: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Return x with the zeros that PyTorch cannot add, and those that it shall add."""
    top, bottom, left, right = padding
    if symmetric(padding):
        return x, [top, left]
    return pad(x, (left, right, top, bottom)), [0, 0]


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    sizes = output_shape(x, weight, stride, padding, dilation)
    return _empty(x, x.shape[0], weight.shape[0], *sizes)


def _empty(like: Tensor, *shape: int) -> Tensor:
    form = memory_format(like)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)


def _backward_input(
    gradient: Tensor, weight: Tensor, height: int, width: int,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    channels = weight.shape[1] * groups
    gaps = max(dilation) > 1 and max(stride) == 1
    if gaps and gradient.numel() and is_depthwise(channels, weight.shape[0], groups):
        fast = depthwise_backward_input(gradient, weight, padding, dilation)
        if fast is not None:
            return fast.contiguous(memory_format=memory_format(gradient))
    top, bottom, left, right = padding
    sides = [top, left]
    size = [height, width]
    if not symmetric(padding):  # of the padded input, then cut
        sides, size = [0, 0], [height + top + bottom, width + left + right]
    like = _empty(gradient, gradient.shape[0], channels, *size)  # for its memory format
    found = torch.ops.aten.convolution_backward(
        gradient, like, weight, None, stride, sides, dilation, False, [0, 0], groups,
        [True, False, False],
    )[0]  # fmt: skip
    if size != [height, width]:
        found = found[:, :, top : top + height, left : left + width]
    return found.contiguous(memory_format=memory_format(gradient))


def _backward_input_fake(
    gradient: Tensor, weight: Tensor, height: int, width: int,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    return _empty(gradient, gradient.shape[0], weight.shape[1] * groups, height, width)


def _backward_weight(
    gradient: Tensor, x: Tensor, kernel_height: int, kernel_width: int,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    kernel = [kernel_height, kernel_width]
    if max(dilation) > 1 and x.numel() and is_depthwise(x.shape[1], gradient.shape[1], groups):
        return depthwise_backward_weight(gradient, x, kernel, stride, padding, dilation)
    x, sides = _pad_first(x, padding)
    shape = (gradient.shape[1], x.shape[1] // groups, *kernel)
    like = gradient.new_empty(1).expand(shape)
    found = torch.ops.aten.convolution_backward(
        gradient, x, like, None, stride, sides, dilation, False, [0, 0], groups,
        [False, True, False],
    )[1]  # fmt: skip
    return found.contiguous()


def _backward_weight_fake(
    gradient: Tensor, x: Tensor, kernel_height: int, kernel_width: int,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    channels = x.shape[1] // groups
    return gradient.new_empty((gradient.shape[1], channels, kernel_height, kernel_width))


# ---------------------------------------------------------------- gradients, each by the other two


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.layer = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _forward_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    by_x = by_weight = by_bias = None
    if ctx.needs_input_grad[0]:
        by_x = backward_input_operator(gradient, weight, *x.shape[2:], *ctx.layer)
    if ctx.needs_input_grad[1]:
        by_weight = backward_weight_operator(gradient, x, *weight.shape[2:], *ctx.layer)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        by_bias = gradient.sum((0, 2, 3))
    return by_x, by_weight, by_bias, None, None, None, None


def _save_backward_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, weight, _, _, *ctx.layer = inputs
    ctx.save_for_backward(gradient, weight)


def _backward_input_gradient(ctx: Any, by_x: Tensor) -> tuple[Any, ...]:
    gradient, weight = ctx.saved_tensors
    by_gradient = by_weight = None
    if ctx.needs_input_grad[0]:
        by_gradient = forward_operator(by_x, weight, None, *ctx.layer)
    if ctx.needs_input_grad[1]:
        by_weight = backward_weight_operator(gradient, by_x, *weight.shape[2:], *ctx.layer)
    return by_gradient, by_weight, None, None, None, None, None, None


def _save_backward_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, x, _, _, *ctx.layer = inputs
    ctx.save_for_backward(gradient, x)


def _backward_weight_gradient(ctx: Any, by_weight: Tensor) -> tuple[Any, ...]:
    gradient, x = ctx.saved_tensors
    by_gradient = by_x = None
    if ctx.needs_input_grad[0]:
        by_gradient = forward_operator(x, by_weight, None, *ctx.layer)
    if ctx.needs_input_grad[1]:
        by_x = backward_input_operator(gradient, by_weight, *x.shape[2:], *ctx.layer)
    return by_gradient, by_x, None, None, None, None, None, None


forward_operator = register(
    "dilated_conv2d_forward",
    cpu=_forward,
    cuda="pkg.cuda.dilated_convolution:forward",
    fake=_forward_fake,
    setup_context=_save_forward,
    backward=_forward_gradient,
    autocast=True,
)
backward_input_operator = register(
    "dilated_conv2d_backward_input",
    cpu=_backward_input,
    cuda="pkg.cuda.dilated_convolution:backward_input",
    fake=_backward_input_fake,
    setup_context=_save_backward_input,
    backward=_backward_input_gradient,
)
backward_weight_operator = register(
    "dilated_conv2d_backward_weight",
    cpu=_backward_weight,
    cuda="pkg.cuda.dilated_convolution:backward_weight",
    fake=_backward_weight_fake,
    setup_context=_save_backward_weight,
    backward=_backward_weight_gradient,
)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Call the operator where it has something to add, and PyTorch's own convolution elsewhere."""
    layer = (x, weight, bias, stride, padding, dilation, groups)
    if x.is_cuda and x.dtype != torch.float64:  # the kernels do not take float64
        return forward_operator(*layer)
    if x.device.type == "cpu" and is_depthwise(x.shape[1], weight.shape[0], groups):
        learns = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (x, weight, bias)
        )
        gains = gradient_gains(x, dilation) if learns else forward_gains(x, padding)
        if gains:
            seen = learns or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
            return forward_operator(*layer) if seen else _forward(*layer)
    x, sides = _pad_first(x, padding)
    return conv2d(x, weight, bias, stride, sides, dilation, groups)
