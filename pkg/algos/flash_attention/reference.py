"""Attention as its definition says it: all scores at once, in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.algos.flash_attention import arguments
from pkg.algos.flash_attention.masks import Align, AncestorMask, Window
from pkg.algos.flash_attention.products import (
    accumulation_dtype,
    finite_shift,
    guarded_product,
    guarded_scores,
    row_maximum,
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | AncestorMask | None = None,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    align: Align = "bottom_right",
) -> Tensor:
    """Attention that keeps the whole matrix of scores: the reference for every other form.

    Parameters
    ----------
    q
        Queries, (batch, heads, q_len, head_dim).
    k, v
        Keys (batch, kv_heads, k_len, head_dim) and values (batch, kv_heads, k_len, value_dim).
        `kv_heads` divides `heads`: each key/value head serves heads / kv_heads query heads in a row.
    mask
        Boolean, broadcastable to (batch, heads, q_len, k_len), True where a query may attend to a
        key; or an `AncestorMask`.
    causal
        Each query sees its own position and earlier ones. The same as a window (…, 0).
    window
        (left, right): how many keys before and after its own position a query sees. None, as a whole
        or in either place, means no limit.
    scale
        Factor of the scores; 1 / sqrt(head_dim) if None.
    align
        Where a query's own position is if the lengths differ: "bottom_right" makes the last query
        belong to the last key, "top_left" the first to the first (as PyTorch's `is_causal` does).

    Returns
    -------
    Tensor
        (batch, heads, q_len, value_dim), in q's dtype. A row that sees no key is 0. NaN or infinity
        in a key or value reaches the rows that see it, and no other.

    Raises
    ------
    TypeError, ValueError
        If dtypes, devices, shapes or head counts do not fit, the mask is not boolean or does not
        broadcast, a window is negative, or `scale` is not finite. The message names the argument.

    Notes
    -----
    Vaswani et al. (2017), equation 1. Computed in float32 for half precision. Memory grows with
    q_len · k_len. Ledger: `flash_attention:attention`.

    Examples
    --------
    >>> x = torch.eye(2).reshape(1, 1, 2, 2)
    >>> attention(x, x, x, causal=True, scale=1.0)
    tensor([[[[1.0000, 0.0000],
              [0.2689, 0.7311]]]])
    """
    arguments.check_tensors(q, k, v)
    arguments.check_shapes(q, k, v, any_value_dim=True)
    seen = arguments.resolve_visibility(q, k, mask=mask, causal=causal, window=window, align=align)
    factor = arguments.resolve_scale(scale, q.shape[-1])
    visible = seen.tile(0, seen.q_len, 0, seen.k_len)
    if visible is not None:
        visible = visible.to(q.device)
    kind, group = accumulation_dtype(q.dtype), q.shape[1] // k.shape[1]
    queries = q.to(kind) * factor
    keys, values = (x.to(kind).repeat_interleave(group, 1) for x in (k, v))
    scores = guarded_scores(queries, keys, visible)  # (batch, heads, q_len, k_len)
    weights = (scores - finite_shift(row_maximum(scores)).unsqueeze(-1)).exp()
    if visible is not None:  # a row with a NaN is NaN throughout; what it does not see stays 0
        weights = weights.masked_fill(~visible, 0.0)
    total = weights.sum(-1, keepdim=True)
    output = guarded_product(weights, values, visible) / torch.where(total == 0, 1.0, total)
    return output.to(q.dtype)
