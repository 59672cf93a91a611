"""Attention of a few new tokens over a long cache: the keys are split, the states merged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pkg.algos.flash_attention import arguments
from pkg.algos.flash_attention.masks import Visibility
from pkg.algos.flash_attention.operator import BLOCK, cpu_forward
from pkg.algos.flash_attention.products import accumulation_dtype
from pkg.algos.flash_attention.softmax import SoftmaxState
from pkg.algos.flash_attention.tiled import tiled_forward
from pkg.operators import register


def flash_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    *,
    splits: int | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Causal attention of the last tokens over a preallocated cache of keys and values.

    One query leaves a GPU nearly empty, so the keys of each sequence are cut into `splits` parts
    that are worked on side by side. The parts' states are then merged; the result is the same.

    Parameters
    ----------
    q
        Queries of the newest tokens, (batch, heads, q_len, head_dim), whose own keys are in the
        cache already. On the GPU q_len is at most 64.
    k, v
        The cache, (batch, kv_heads, capacity, head_dim), where `kv_heads` divides `heads`.
    lengths
        Integer, (batch,): how many keys of each cache count, the newest tokens' included. What lies
        behind them is not looked at, and may be NaN.
    splits
        The number of parts; None chooses (one on the CPU, enough to fill the machine on a GPU).
    scale
        Factor of the scores; 1 / sqrt(head_dim) if None.
    return_lse
        Also return the log-sum-exp, in nats.

    Returns
    -------
    Tensor or (Tensor, Tensor)
        The output, (batch, heads, q_len, head_dim); and, if asked for, the log-sum-exp (batch,
        heads, q_len), float32 (float64 for float64). Query t sees the keys before position
        lengths - q_len + t + 1; if there is none, its output is 0. Not differentiable.

    Raises
    ------
    TypeError, ValueError
        As `flash_attention`; or if `lengths` is not an integer vector with an entry per sequence
        between 0 and the capacity, or `splits` is not positive, or q_len is above 64 on the GPU.

    Notes
    -----
    Flash-Decoding (Dao, Haziza, Massa, Sizov, 2023). Ledger: `flash_attention:split_decoding`.

    Examples
    --------
    >>> k = torch.eye(4).reshape(1, 1, 4, 4)
    >>> flash_decode(k[:, :, :1], k, k, torch.tensor([2]), splits=2, scale=1.0)
    tensor([[[[0.7311, 0.2689, 0.0000, 0.0000]]]])
    """
    arguments.check_tensors(q, k, v)
    arguments.check_shapes(q, k, v)
    arguments.check_device_limits(q)
    if q.device.type == "cuda" and q.shape[2] > 64:
        raise ValueError(f"q must have at most 64 tokens on the GPU, got {q.shape[2]}")
    _check_lengths(lengths, q, k.shape[2])
    if splits is not None and (not isinstance(splits, int) or splits < 1):
        raise ValueError(f"splits must be at least 1, got {splits}")
    factor = arguments.resolve_scale(scale, q.shape[-1])
    output, lse = decode_operator(q, k, v, lengths, splits or 0, factor)
    return (output, lse) if return_lse else output


def _check_lengths(lengths: Tensor, q: Tensor, capacity: int) -> None:
    arguments.check_integers("lengths", lengths, q)
    if lengths.shape != q.shape[:1]:
        raise ValueError(f"lengths must have shape ({q.shape[0]},), got {tuple(lengths.shape)}")
    # On the GPU looking at the values would stall every step; the kernel clamps its loads there.
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and len(lengths):
        least, most = int(lengths.min()), int(lengths.max())
        if least < 0 or most > capacity:
            wrong = least if least < 0 else most
            raise ValueError(f"lengths must be between 0 and {capacity}, got {wrong}")


def _decode(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, splits: int, scale: float
) -> tuple[Tensor, Tensor]:
    q_len = q.shape[2]
    if splits <= 1:  # each sequence by itself: nothing is spent on its padding
        output = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:3], dtype=accumulation_dtype(q.dtype))
        for i, length in enumerate(lengths.tolist()):
            keys, values = (x[i : i + 1, :, :length] for x in (k, v))
            seen = Visibility(q_len, length, right=0, shift=length - q_len)
            output[i], lse[i] = (x[0] for x in cpu_forward(q[i : i + 1], keys, values, seen, scale))
        return output, lse
    longest = int(lengths.max()) if len(lengths) else 0
    last = lengths.view(-1, 1, 1, 1) - q_len + torch.arange(q_len).view(-1, 1)
    visible = torch.arange(longest) <= last  # (batch, 1, q_len, longest)
    state = SoftmaxState.empty(*q.shape, dtype=accumulation_dtype(q.dtype))
    part = max(1, -(-longest // splits))
    for start in range(0, longest, part):
        end = min(start + part, longest)
        seen = Visibility(q_len, end - start, mask=visible[..., start:end])
        keys, values = (x[:, :, start:end] for x in (k, v))
        wide = q.to(accumulation_dtype(q.dtype))  # parts are rounded once, after the merge
        state = state.merge(
            SoftmaxState.from_lse(*tiled_forward(wide, keys, values, seen, scale, BLOCK, BLOCK))
        )
    return state.output.to(q.dtype), state.lse


def _decode_fake(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, splits: int, scale: float
) -> tuple[Tensor, Tensor]:
    output = torch.empty_like(q, memory_format=torch.contiguous_format)
    return output, q.new_empty(q.shape[:3], dtype=accumulation_dtype(q.dtype))


decode_operator = register(
    "flash_decode", cpu=_decode, cuda="pkg.cuda.flash_attention:decode", fake=_decode_fake
)
