"""`flash_attention`: an operator of PyTorch with its own gradient, on the CPU and on the GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pkg.algos.flash_attention import arguments
from pkg.algos.flash_attention.fused import fused_backward, fused_forward, same_function
from pkg.algos.flash_attention.masks import Align, AncestorMask, Visibility, Window
from pkg.algos.flash_attention.products import accumulation_dtype
from pkg.algos.flash_attention.softmax import SoftmaxState
from pkg.algos.flash_attention.tiled import tiled_backward, tiled_forward
from pkg.operators import register

#: Rows and columns of a tile on the CPU.
BLOCK = 128


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: Window | None = None,
    mask: Tensor | AncestorMask | None = None,
    scale: float | None = None,
    align: Align = "bottom_right",
    return_lse: bool = False,
) -> Any:
    """Attention whose memory grows with the length, not with its square.

    Parameters
    ----------
    q
        Queries, (batch, heads, q_len, head_dim), float16, bfloat16, float32, or on the CPU float64.
        On the GPU head_dim is 16 to 256, and need not be a power of two.
    k, v
        Keys and values, (batch, kv_heads, k_len, head_dim), where `kv_heads` divides `heads`.
    causal, window, mask, scale, align
        As for `attention`.
    return_lse
        Also return the log-sum-exp of each row of scores, in nats.

    Returns
    -------
    Tensor or (Tensor, Tensor)
        The output, (batch, heads, q_len, head_dim) in q's dtype; and, if asked for, the log-sum-exp,
        (batch, heads, q_len) in float32 (float64 for float64). A row that sees no key has output 0,
        log-sum-exp -inf, and gradient 0. NaN or infinity in a key or value reaches the rows that see
        it, and no other. Both are differentiable, once.

    Raises
    ------
    TypeError, ValueError
        As `attention`; or if `v` has another head_dim than `q`, or a GPU tensor is float64 or has a
        head_dim outside 16 to 256.

    Notes
    -----
    Dao et al. (2022), Dao (2023). Under autocast the inputs are cast as PyTorch's own attention
    casts them. Ledger: `flash_attention:attention`, `flash_attention:log_sum_exp`,
    `flash_attention:gradient_query`.

    Examples
    --------
    >>> x = torch.eye(2).reshape(1, 1, 2, 2)
    >>> flash_attention(x, x, x, causal=True, scale=1.0)
    tensor([[[[1.0000, 0.0000],
              [0.2689, 0.7311]]]])
    """
    arguments.check_tensors(q, k, v)
    arguments.check_shapes(q, k, v)
    arguments.check_device_limits(q)
    seen = arguments.resolve_visibility(q, k, mask=mask, causal=causal, window=window, align=align)
    factor = arguments.resolve_scale(scale, q.shape[-1])
    output, lse = forward_operator(
        q, k, v, seen.mask, seen.ancestors, seen.left, seen.right, seen.shift, factor
    )
    return (output, lse) if return_lse else output


# ------------------------------------------------------------------ the operators


def _visibility(
    q: Tensor, k: Tensor, mask: Tensor | None, ancestors: Tensor | None,
    left: int, right: int, shift: int,
) -> Visibility:  # fmt: skip
    return Visibility(q.shape[2], k.shape[2], left, right, shift, mask, ancestors)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, ancestors: Tensor | None,
    left: int, right: int, shift: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return cpu_forward(q, k, v, _visibility(q, k, mask, ancestors, left, right, shift), scale)


def cpu_forward(
    q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (output, log-sum-exp) by PyTorch's fused kernel where that is the same function.

    Else by our tiles, which also skip what is not visible; but the keys that all queries see (the
    text before a tree, or before the newest tokens) go to the fused kernel, and the states merge.
    """
    if same_function(seen, q, k, v):
        return fused_forward(q, k, v, scale, causal=seen.common < seen.k_len)
    common = seen.common
    wide = q.dtype == accumulation_dtype(q.dtype)  # a half-precision part would be rounded twice
    if common < BLOCK or not wide or not q.numel():
        return tiled_forward(q, k, v, seen, scale, BLOCK, BLOCK)
    keys, values = k[:, :, common:], v[:, :, common:]
    own = tiled_forward(q, keys, values, seen.after(common), scale, BLOCK, BLOCK)
    shared = fused_forward(q, k[:, :, :common], v[:, :, :common], scale)
    state = SoftmaxState.from_lse(*shared).merge(SoftmaxState.from_lse(*own))
    return state.output, state.lse


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, ancestors: Tensor | None,
    left: int, right: int, shift: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    output = torch.empty_like(q, memory_format=torch.contiguous_format)
    return output, q.new_empty(q.shape[:3], dtype=accumulation_dtype(q.dtype))


def _backward(
    gradient: Tensor, lse_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor,
    lse: Tensor, mask: Tensor | None, ancestors: Tensor | None,
    left: int, right: int, shift: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    seen = _visibility(q, k, mask, ancestors, left, right, shift)
    wide = q.dtype == accumulation_dtype(q.dtype)
    # The fused kernel knows of no gradient that arrives at the log-sum-exp.
    if wide and not bool(lse_gradient.any()) and same_function(seen, q, k, v, gradient):
        causal = seen.common < seen.k_len
        return fused_backward(gradient, q, k, v, output, lse, scale, causal)
    return tiled_backward(gradient, lse_gradient, q, k, v, output, lse, seen, scale, BLOCK, BLOCK)


def backward_fake(
    gradient: Tensor, lse_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients' shapes, packed or not."""
    return tuple(  # type: ignore[return-value]
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, ancestors, *rest = inputs
    ctx.save_for_backward(q, k, v, *output, mask, ancestors)
    ctx.rest = rest


def _gradient(ctx: Any, gradient: Tensor, lse_gradient: Tensor) -> tuple[Any, ...]:
    q, k, v, output, lse, mask, ancestors = ctx.saved_tensors
    # A row without a key has log-sum-exp -inf: nothing that arrives there can be passed on.
    lse_gradient = lse_gradient.masked_fill(lse == -torch.inf, 0.0)
    found = backward_operator(
        gradient, lse_gradient, q, k, v, output, lse, mask, ancestors, *ctx.rest
    )
    return (*found, *(None,) * (2 + len(ctx.rest)))


backward_operator = register(
    "flash_attention_backward",
    cpu=_backward,
    cuda="pkg.cuda.flash_attention:attention_backward",
    fake=backward_fake,
)
forward_operator = register(
    "flash_attention_forward",
    cpu=_forward,
    cuda="pkg.cuda.flash_attention:attention_forward",
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_gradient,
    autocast=True,
)
