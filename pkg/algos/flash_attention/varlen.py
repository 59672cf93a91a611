"""Attention over many sequences of different lengths, packed one after the other without padding."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pkg.algos.flash_attention import arguments
from pkg.algos.flash_attention.masks import Align, Visibility, Window
from pkg.algos.flash_attention.operator import BLOCK, backward_fake, cpu_forward
from pkg.algos.flash_attention.products import accumulation_dtype
from pkg.algos.flash_attention.tiled import tiled_backward
from pkg.operators import register

_PACKED = "(total, heads, head_dim)"


def flash_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    align: Align = "bottom_right",
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    return_lse: bool = False,
) -> Any:
    """Attention within each of several packed sequences.

    Parameters
    ----------
    q
        Queries of all sequences, (total_q, heads, head_dim): flash-attn's packed layout.
    k, v
        Keys and values of all sequences, (total_k, kv_heads, head_dim).
    cu_seqlens_q, cu_seqlens_k
        int32 or int64, (sequences + 1,): where each sequence begins, from 0 to the total. Sequences
        may be empty.
    causal, window, scale, align
        As for `attention`, within each sequence.
    max_seqlen_q, max_seqlen_k
        The longest sequence, if known: saves the GPU a synchronisation. Unused on the CPU.
    return_lse
        Also return the log-sum-exp, in nats.

    Returns
    -------
    Tensor or (Tensor, Tensor)
        The output (total_q, heads, head_dim); and, if asked for, the log-sum-exp (heads, total_q) in
        float32 (float64 for float64). Both are differentiable, once.

    Raises
    ------
    TypeError, ValueError
        As `flash_attention`; or if `cu_seqlens_q` or `cu_seqlens_k` is not an integer vector that
        starts at 0, never decreases and ends at the total, or a longest sequence given is too short.

    Notes
    -----
    Ledger: `flash_attention:packed`. Under `torch.compile` the values of `cu_seqlens_*` are not
    looked at, and both longest sequences must be given.

    Examples
    --------
    >>> x = torch.eye(3).unsqueeze(1)
    >>> starts = torch.tensor([0, 1, 3])
    >>> flash_attention_varlen(x, x, x, starts, starts, scale=1.0)[:, 0]
    tensor([[1.0000, 0.0000, 0.0000],
            [0.0000, 0.7311, 0.2689],
            [0.0000, 0.2689, 0.7311]])
    """
    arguments.check_tensors(q, k, v, ndim=3, layout=_PACKED)
    if k.shape[:2] != v.shape[:2]:
        raise ValueError(
            f"v must have k's total and heads {tuple(k.shape[:2])}, got {tuple(v.shape[:2])}"
        )
    arguments.check_heads(q.shape[1], k.shape[1])
    arguments.check_head_dims(q, k, v)
    arguments.check_device_limits(q)
    longest_q = _check_starts("q", cu_seqlens_q, q, max_seqlen_q)
    longest_k = _check_starts("k", cu_seqlens_k, k, max_seqlen_k)
    if len(cu_seqlens_q) != len(cu_seqlens_k):
        raise ValueError(
            f"cu_seqlens_k must have {len(cu_seqlens_q)} entries as cu_seqlens_q has, "
            f"got {len(cu_seqlens_k)}"
        )
    left, right = arguments.resolve_band(causal, window)
    arguments.check_align(align)
    starts = (cu_seqlens_q.int(), cu_seqlens_k.int())
    output, lse = varlen_forward_operator(
        q, k, v, *starts, longest_q, longest_k, left, right, align == "bottom_right",
        arguments.resolve_scale(scale, q.shape[-1]),
    )  # fmt: skip
    return (output, lse) if return_lse else output


def _check_starts(which: str, starts: Tensor, x: Tensor, longest: int | None) -> int:
    """Raise unless `starts` cuts x into sequences; return the length of the longest."""
    name = f"cu_seqlens_{which}"
    arguments.check_integers(name, starts, x)
    if starts.ndim != 1 or len(starts) < 1:
        raise ValueError(f"{name} must have shape (sequences + 1,), got {tuple(starts.shape)}")
    if torch.compiler.is_compiling():
        if longest is None:
            raise ValueError(f"max_seqlen_{which} must be given under torch.compile")
        return longest
    places = starts.tolist()
    if places[0] != 0 or places[-1] != len(x):
        raise ValueError(f"{name} must go from 0 to {len(x)}, got {places[0]} to {places[-1]}")
    lengths = [b - a for a, b in itertools.pairwise(places)]
    if any(length < 0 for length in lengths):
        at = next(i for i, length in enumerate(lengths) if length < 0)
        raise ValueError(
            f"{name} must not decrease, got {places[at]} then {places[at + 1]} at index {at}"
        )
    most = max(lengths, default=0)
    if longest is not None and longest < most:
        raise ValueError(f"max_seqlen_{which} must be at least {most}, got {longest}")
    return most if longest is None else longest


# ------------------------------------------------------------------ the operators


def _sequences(
    q: Tensor, k: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
    left: int, right: int, bottom_right: bool,
) -> list[tuple[slice, slice, Visibility]]:  # fmt: skip
    """Return for each sequence where its queries and its keys are, and what they see."""
    found = []
    places_q, places_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for i in range(len(places_q) - 1):
        here_q, here_k = slice(*places_q[i : i + 2]), slice(*places_k[i : i + 2])
        q_len, k_len = here_q.stop - here_q.start, here_k.stop - here_k.start
        shift = k_len - q_len if bottom_right else 0
        found.append((here_q, here_k, Visibility(q_len, k_len, left, right, shift)))
    return found


def _pad(x: Tensor, here: slice) -> Tensor:
    """(total, heads, d) → (1, heads, length, d) of one sequence."""
    return x[here].transpose(0, 1).unsqueeze(0)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
    max_seqlen_q: int, max_seqlen_k: int, left: int, right: int, bottom_right: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    output = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full((q.shape[1], q.shape[0]), -torch.inf, dtype=accumulation_dtype(q.dtype))
    cut = _sequences(q, k, cu_seqlens_q, cu_seqlens_k, left, right, bottom_right)
    for here_q, here_k, seen in cut:
        parts = _pad(q, here_q), _pad(k, here_k), _pad(v, here_k)
        part, sums = cpu_forward(*parts, seen, scale)
        output[here_q], lse[:, here_q] = part[0].transpose(0, 1), sums[0]
    return output, lse


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
    max_seqlen_q: int, max_seqlen_k: int, left: int, right: int, bottom_right: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    output = torch.empty_like(q, memory_format=torch.contiguous_format)
    return output, q.new_empty((q.shape[1], q.shape[0]), dtype=accumulation_dtype(q.dtype))


def _backward(
    gradient: Tensor, lse_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor,
    lse: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    left: int, right: int, bottom_right: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    cut = _sequences(q, k, cu_seqlens_q, cu_seqlens_k, left, right, bottom_right)
    for here_q, here_k, seen in cut:
        parts = tiled_backward(
            _pad(gradient, here_q), lse_gradient[None, :, here_q], _pad(q, here_q), _pad(k, here_k),
            _pad(v, here_k), _pad(output, here_q), lse[None, :, here_q], seen, scale, BLOCK, BLOCK,
        )  # fmt: skip
        for whole, here, part in zip((dq, dk, dv), (here_q, here_k, here_k), parts, strict=True):
            whole[here] = part[0].transpose(0, 1)
    return dq, dk, dv


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, *rest = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k)
    ctx.rest = rest


def _gradient(ctx: Any, gradient: Tensor, lse_gradient: Tensor) -> tuple[Any, ...]:
    q, k, v, output, lse, *starts = ctx.saved_tensors
    lse_gradient = lse_gradient.masked_fill(lse == -torch.inf, 0.0)
    found = varlen_backward_operator(
        gradient, lse_gradient, q, k, v, output, lse, *starts, *ctx.rest
    )
    return (*found, *(None,) * (2 + len(ctx.rest)))


varlen_backward_operator = register(
    "flash_attention_varlen_backward",
    cpu=_backward,
    cuda="pkg.cuda.flash_attention:varlen_backward",
    fake=backward_fake,
)
varlen_forward_operator = register(
    "flash_attention_varlen_forward",
    cpu=_forward,
    cuda="pkg.cuda.flash_attention:varlen_forward",
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_gradient,
    autocast=True,
)
