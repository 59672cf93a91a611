"""PyTorch's fused kernel of the CPU, for the pairs on which it is the same function as ours."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.algos.flash_attention.masks import Visibility
from pkg.algos.flash_attention.products import all_finite
from pkg.algos.flash_attention.tiled import fold, unfold


def is_causal(seen: Visibility) -> bool:
    """Tell whether the band is the causal one from the first key on, which the kernel knows."""
    plain = seen.mask is None and seen.ancestors is None
    return plain and (seen.left, seen.right, seen.shift) == (-1, 0, 0)


def fused_forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (output, log-sum-exp) where every pair counts, or the causal ones."""
    heads = q.shape[1]
    q, k, v = _arrange(q, k, v, causal)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, lse = kernel(q, k, v, 0.0, causal, scale=scale)
    if output.shape[1] != heads:
        output, lse = unfold(output, heads), unfold(lse.unsqueeze(-1), heads).squeeze(-1)
    return output.contiguous(), lse.contiguous()


def fused_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, lse: Tensor,
    scale: float, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v, of the same pairs."""
    heads, kv_heads = q.shape[1], k.shape[1]
    rows = [gradient, output, lse.unsqueeze(-1)]
    if not causal:
        rows = [fold(x, kv_heads) for x in rows]
    gradient, output, lse = (x.contiguous() for x in rows)
    q, k, v = _arrange(q, k, v, causal)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    dq, dk, dv = kernel(gradient, q, k, v, output, lse.squeeze(-1), 0.0, causal, scale=scale)
    dq = unfold(dq, heads) if dq.shape[1] != heads else dq
    if dk.shape[1] != kv_heads:  # one key/value head had a copy for each head of its group
        dk, dv = (x.unflatten(1, (kv_heads, -1)).sum(2) for x in (dk, dv))
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def _arrange(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Give the three the same number of heads, and a last axis without gaps.

    Where every pair counts, a group's queries may stand below one another, and no key is copied.
    """
    group = q.shape[1] // k.shape[1]
    if group > 1 and not causal:
        q = fold(q, k.shape[1])
    elif group > 1:
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    # The kernel takes a last axis with gaps for one without, and says nothing.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return q, k, v


def same_function(seen: Visibility, *tensors: Tensor) -> bool:
    """Tell whether the kernel computes what we promise on these inputs.

    It does where every pair counts; and on causal ones if no NaN waits in an input (it would leak).
    """
    if not all(x.numel() for x in tensors):
        return False
    return seen.common >= seen.k_len or (is_causal(seen) and all_finite(*tensors))
