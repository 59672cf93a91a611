"""Attention in one pass over tiles, forward and backward: no N × M matrix is ever in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pkg.algos.flash_attention import arguments
from pkg.algos.flash_attention.masks import Align, AncestorMask, Visibility, Window
from pkg.algos.flash_attention.products import (
    accumulation_dtype,
    all_finite,
    finite_shift,
    guarded_product,
    guarded_scores,
    row_maximum,
)


@dataclass
class Traffic:
    """Numbers moved between slow memory and the tiles, counted as they are loaded and stored.

    Give one to `tiled_attention` and read it afterwards. A number is an element, whatever its type;
    `loads` and `stores` add up over batches and heads.
    """

    loads: int = 0
    stores: int = 0

    @property
    def total(self) -> int:
        """Loads and stores together."""
        return self.loads + self.stores


def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | AncestorMask | None = None,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    align: Align = "bottom_right",
    block_q: int = 128,
    block_k: int = 128,
    traffic: Traffic | None = None,
) -> Tensor:
    """Attention in one pass: for each tile of queries, a sweep over tiles of keys and values.

    The state (m, ℓ, o) of the online softmax is carried along, so that memory grows with
    q_len + k_len. Tiles in which nothing is visible are skipped. Differentiable (autograd keeps
    every tile's scores; `flash_attention` does not).

    Parameters
    ----------
    q, k, v, mask, causal, window, scale, align
        As for `attention`.
    block_q, block_k
        Rows of queries and of keys in a tile.
    traffic
        A `Traffic` to which the loads and stores of this call are added.

    Returns
    -------
    Tensor
        (batch, heads, q_len, value_dim), in q's dtype.

    Raises
    ------
    TypeError, ValueError
        As `attention`; or if a block is not positive.

    Notes
    -----
    FlashAttention-2's order of the loops (Dao 2023, algorithm 1), in plain PyTorch. Ledger:
    `flash_attention:attention_tiled`, `flash_attention:traffic_tiled`.

    Examples
    --------
    >>> x = torch.eye(2).reshape(1, 1, 2, 2)
    >>> tiled_attention(x, x, x, causal=True, scale=1.0, block_q=1, block_k=1)
    tensor([[[[1.0000, 0.0000],
              [0.2689, 0.7311]]]])
    """
    arguments.check_tensors(q, k, v)
    arguments.check_shapes(q, k, v, any_value_dim=True)
    for name, block in (("block_q", block_q), ("block_k", block_k)):
        if block < 1:
            raise ValueError(f"{name} must be at least 1, got {block}")
    seen = arguments.resolve_visibility(q, k, mask=mask, causal=causal, window=window, align=align)
    factor = arguments.resolve_scale(scale, q.shape[-1])
    return tiled_forward(q, k, v, seen, factor, block_q, block_k, traffic)[0]


def tiled_forward(
    q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scale: float, block_q: int, block_k: int,
    traffic: Traffic | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (output, log-sum-exp in nats); shapes and meaning as in `flash_attention`."""
    traffic = Traffic() if traffic is None else traffic
    kind, kv_heads = accumulation_dtype(q.dtype), k.shape[1]
    clean = seen.everything or all_finite(k, v)
    nothing = sum(x[..., :0].sum().to(kind) for x in (q, k, v))  # 0, in the graph of all three
    if not seen.q_len:
        return q.new_zeros(*q.shape[:3], v.shape[-1]) + nothing, q.new_zeros(
            q.shape[:3], dtype=kind
        )
    outputs, sums = [], []
    for q0 in range(0, seen.q_len, block_q):
        q1 = min(q0 + block_q, seen.q_len)
        rows = fold(q[:, :, q0:q1].to(kind) * scale, kv_heads)  # (batch, kv_heads, rows, head_dim)
        traffic.loads += rows.numel()
        maximum = rows.new_full(rows.shape[:-1], -torch.inf)
        total = torch.zeros_like(maximum)
        output = rows.new_zeros(*rows.shape[:-1], v.shape[-1]) + nothing
        for k0, k1, pairs in seen.tiles(q0, q1, block_k):
            keys, values = k[:, :, k0:k1].to(kind), v[:, :, k0:k1].to(kind)
            traffic.loads += keys.numel() + values.numel()
            visible = fold_pairs(pairs, q.shape[1], kv_heads, q.device)
            scores = guarded_scores(rows, keys, visible, clean)  # (batch, kv_heads, rows, columns)
            higher = torch.maximum(maximum, row_maximum(scores))
            shift = finite_shift(higher)
            weights = scores.sub_(shift.unsqueeze(-1)).exp_()  # in place: the tile is ours
            if (
                visible is not None and not clean
            ):  # a row with a NaN is NaN where it looks, 0 elsewhere
                weights = weights.masked_fill(~visible, 0.0)
            rescale = (maximum - shift).exp()
            total = total * rescale + weights.sum(-1)
            added = guarded_product(weights, values, None if clean else visible)
            output = output * rescale.unsqueeze(-1) + added
            maximum = higher
        total = total.masked_fill(total == 0, 1.0)
        outputs.append(unfold(output / total.unsqueeze(-1), q.shape[1]).to(q.dtype))
        sums.append(unfold((maximum + total.log()).unsqueeze(-1), q.shape[1]).squeeze(-1))
        traffic.stores += outputs[-1].numel()
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def tiled_backward(
    gradient: Tensor, lse_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor,
    lse: Tensor, seen: Visibility, scale: float, block_q: int, block_k: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v from output and log-sum-exp: P is made again, tile by tile.

    `lse_gradient` is the gradient that arrives at the log-sum-exp; its Jacobian is P, so that it is
    subtracted from D = rowsum(dO ∘ O).
    """
    kind, heads, kv_heads = accumulation_dtype(q.dtype), q.shape[1], k.shape[1]
    clean = seen.everything or all_finite(q, k, v, gradient)
    dq = torch.zeros_like(q, dtype=kind, memory_format=torch.contiguous_format)
    dk, dv = (
        torch.zeros_like(x, dtype=kind, memory_format=torch.contiguous_format) for x in (k, v)
    )
    for q0 in range(0, seen.q_len, block_q):
        part = slice(q0, min(q0 + block_q, seen.q_len))
        rows = fold(q[:, :, part].to(kind), kv_heads)
        d_rows = fold(gradient[:, :, part].to(kind), kv_heads)
        delta = (gradient[:, :, part].to(kind) * output[:, :, part].to(kind)).sum(-1)
        delta = fold((delta - lse_gradient[:, :, part]).unsqueeze(-1), kv_heads)
        shift = fold(finite_shift(lse[:, :, part]).unsqueeze(-1), kv_heads)
        d_part = torch.zeros_like(rows)
        for k0, k1, pairs in seen.tiles(part.start, part.stop, block_k):
            keys, values = k[:, :, k0:k1].to(kind), v[:, :, k0:k1].to(kind)
            visible = fold_pairs(pairs, heads, kv_heads, q.device)
            scores = guarded_scores(rows * scale, keys, visible, clean)
            weights = scores.sub_(shift).exp_()  # P
            d_scores = (d_rows @ values.mT).sub_(delta).mul_(weights).mul_(scale)  # P ∘ (dP − D)
            if visible is None or clean:
                visible = turned = None
            else:
                weights, d_scores = (x.masked_fill(~visible, 0.0) for x in (weights, d_scores))
                turned = visible.mT
            d_part += guarded_product(d_scores, keys, visible)
            dv[:, :, k0:k1] += guarded_product(weights.mT, d_rows, turned)
            dk[:, :, k0:k1] += guarded_product(d_scores.mT, rows, turned)
        dq[:, :, part] = unfold(d_part, heads)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def fold(x: Tensor, kv_heads: int) -> Tensor:
    """(batch, heads, rows, d) → (batch, kv_heads, group · rows, d): one product per key/value head."""
    return x.unflatten(1, (kv_heads, -1)).flatten(2, 3)


def unfold(x: Tensor, heads: int) -> Tensor:
    """Undo `fold`: (batch, kv_heads, group · rows, d) → (batch, heads, rows, d)."""
    return x.unflatten(2, (heads // x.shape[1], -1)).flatten(1, 2)


def fold_pairs(
    visible: Tensor | None, heads: int, kv_heads: int, device: torch.device
) -> Tensor | None:
    """Give visible pairs (batch or 1, heads or 1, rows, columns) the layout of folded scores."""
    if visible is None:
        return None
    visible = visible.to(device)
    while visible.ndim < 4:
        visible = visible.unsqueeze(0)
    group = heads // kv_heads
    if visible.shape[1] == 1:
        return visible.unsqueeze(2).expand(-1, 1, group, -1, -1).flatten(2, 3)
    return fold(visible, kv_heads)
