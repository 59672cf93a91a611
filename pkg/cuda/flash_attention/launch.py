"""The launchers: what the operators of `pkg.algos.flash_attention` call for CUDA tensors."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from pkg.cuda.flash_attention.backward import delta_kernel, dkv_kernel, dq_kernel
from pkg.cuda.flash_attention.configs import (
    DELTA_BLOCK,
    DELTA_WARPS,
    MERGE_BLOCK,
    MERGE_WARPS,
    block_d,
    choose,
    precision,
)
from pkg.cuda.flash_attention.decode import decode_kernel, merge_kernel
from pkg.cuda.flash_attention.forward import forward_kernel

_LOG2_E = 1.4426950408889634
#: Programs that keep an H100 or H200 (132 multiprocessors) busy while decoding.
_BUSY = 2 * 132
#: Rows of the largest tile.
_MOST_ROWS = 128
#: Keys below which a part is not worth a program of its own, and the most parts.
_SMALLEST_PART, _MOST_PARTS = 128, 128


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, ancestors: Tensor | None,
    left: int, right: int, shift: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output and the log-sum-exp; see `pkg.algos.flash_attention.flash_attention`."""
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    pairs = _pairs(q, mask, ancestors, left, right)
    _forward(q, k, v, output, lse, pairs, None, (q.shape[2], k.shape[2], shift), False, scale)
    return output, lse


def varlen_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
    max_seqlen_q: int, max_seqlen_k: int, left: int, right: int, bottom_right: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return output and log-sum-exp of packed sequences."""
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)
    pairs = _pairs(q, None, None, left, right)
    starts, sizes = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k, 0)
    q, k, v, into = (_as_heads_first(x) for x in (q, k, v, output))
    _forward(q, k, v, into, lse.unsqueeze(0), pairs, starts, sizes, bottom_right, scale)
    return output, lse


def attention_backward(
    gradient: Tensor, lse_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor,
    lse: Tensor, mask: Tensor | None, ancestors: Tensor | None,
    left: int, right: int, shift: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v."""
    found = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    pairs = _pairs(q, mask, ancestors, left, right)
    sizes = (q.shape[2], k.shape[2], shift)
    _backward(gradient, lse_gradient, q, k, v, output, lse, found, pairs, None, sizes, False, scale)
    return found[0], found[1], found[2]


def varlen_backward(
    gradient: Tensor, lse_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor,
    lse: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    left: int, right: int, bottom_right: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of packed q, k and v."""
    found = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    pairs = _pairs(q, None, None, left, right)
    starts, sizes = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k, 0)
    gradient, q, k, v, output = (_as_heads_first(x) for x in (gradient, q, k, v, output))
    into = [_as_heads_first(x) for x in found]
    _backward(
        gradient, lse_gradient.unsqueeze(0), q, k, v, output, lse.unsqueeze(0), into, pairs, starts,
        sizes, bottom_right, scale,
    )  # fmt: skip
    return found[0], found[1], found[2]


def decode(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, splits: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp of the newest tokens over a cache; 0 splits: choose."""
    batch, heads, q_len, dim = q.shape
    kv_heads, capacity = k.shape[1], k.shape[2]
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if not output.numel():
        return output, lse
    group = heads // kv_heads
    config = choose("decode", q.dtype, dim, rows=group * q_len)
    tiles = triton.cdiv(group * q_len, config.block_m)
    if splits == 0:
        wanted = triton.cdiv(_BUSY, batch * kv_heads * tiles)
        splits = max(1, min(wanted, _MOST_PARTS, capacity // _SMALLEST_PART))
    # A copy of the cache would cost more than odd strides do: only what is wrong is copied.
    q, k, v = (x if _is_sound(x) else x.contiguous() for x in (q, k, v))
    q, scale, _ = _positive(q, scale)
    partial = torch.empty((batch, heads, q_len, splits, dim), dtype=torch.float32, device=q.device)
    levels = torch.empty((batch, heads, q_len, splits), dtype=torch.float32, device=q.device)
    with _on(q):
        decode_kernel[(tiles * splits * kv_heads * batch,)](
            q, k, v, lengths, partial, levels, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            tiles, kv_heads, q_len, capacity, group, splits, scale * _LOG2_E, **_shape(q, config),
        )  # fmt: skip
        merge_kernel[(batch * heads * q_len,)](
            partial, levels, output, lse, splits, DIM=dim, BLOCK_D=block_d(dim),
            BLOCK_S=MERGE_BLOCK, num_warps=MERGE_WARPS,
        )  # fmt: skip
    return output, lse


# ------------------------------------------------------------------ inside


def _forward(
    q: Tensor, k: Tensor, v: Tensor, output: Tensor, lse: Tensor, pairs: dict[str, Any],
    starts: tuple[Tensor, Tensor] | None, sizes: tuple[int, int, int], bottom_right: bool,
    scale: float,
) -> None:  # fmt: skip
    q_len, k_len, shift = sizes
    sequences = q.shape[0] if starts is None else len(starts[0]) - 1
    if not (output.numel() and q_len and sequences):
        return
    q, scale, _ = _positive(q, scale)
    q, k, v = (_aligned(x) for x in (q, k, v))
    config = choose("forward", q.dtype, q.shape[3], pairs["general"])
    with _on(q):
        tiles, heads = triton.cdiv(q_len, config.block_m), q.shape[1]
        forward_kernel[(tiles * heads * sequences,)](
            q, k, v, output, lse, pairs["mask"], pairs["words"], *(starts or (lse, lse)),
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *output.stride()[:3],
            *lse.stride()[:2], *pairs["strides"], tiles, heads, q_len, k_len,
            heads // k.shape[1], pairs["left"], pairs["right"], shift, scale * _LOG2_E, **pairs["flags"],
            PACKED=starts is not None, BOTTOM_RIGHT=bottom_right, **_shape(q, config),
        )  # fmt: skip


def _backward(
    gradient: Tensor, lse_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor,
    lse: Tensor, found: list[Tensor], pairs: dict[str, Any],
    starts: tuple[Tensor, Tensor] | None, sizes: tuple[int, int, int], bottom_right: bool,
    scale: float,
) -> None:  # fmt: skip
    q_len, k_len, shift = sizes
    sequences = q.shape[0] if starts is None else len(starts[0]) - 1
    if not (sequences and q.numel() and k.numel()):
        for x in found:
            x.zero_()
        return
    q, scale, sign = _positive(q, scale)
    gradient, q, k, v = (_aligned(x) for x in (gradient, q, k, v))
    lse_gradient, lse = lse_gradient.contiguous(), lse.contiguous()
    delta, top = torch.empty_like(lse), torch.empty_like(lse)
    batch, heads, rows, dim = q.shape
    kv_heads = k.shape[1]
    dq, dk, dv = found
    with _on(q):
        tiles = triton.cdiv(rows, DELTA_BLOCK)
        delta_kernel[(tiles * heads * batch,)](
            gradient, output, lse_gradient, lse, delta, top, *gradient.stride()[:3],
            *output.stride()[:3], *lse.stride()[:2], tiles, heads, rows,
            DIM=dim, BLOCK_D=block_d(dim), BLOCK_M=DELTA_BLOCK, num_warps=DELTA_WARPS,
        )  # fmt: skip
        inputs = (q, k, v, gradient, delta, top)
        where = (pairs["mask"], pairs["words"], *(starts or (lse, lse)))
        strides = (
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *gradient.stride()[:3],
        )  # fmt: skip
        levels = (*lse.stride()[:2], *pairs["strides"])
        rest = (
            q_len, k_len, heads // kv_heads, pairs["left"], pairs["right"], shift, scale * _LOG2_E,
        )  # fmt: skip
        flags = {**pairs["flags"], "PACKED": starts is not None, "BOTTOM_RIGHT": bottom_right}
        config = choose("dq", q.dtype, dim, pairs["general"])
        tiles = triton.cdiv(q_len, config.block_m)
        dq_kernel[(tiles * heads * sequences,)](
            *inputs, dq, *where, *strides, *dq.stride()[:3], *levels, tiles, heads, *rest,
            scale * sign, **flags, **_shape(q, config),
        )  # fmt: skip
        config = choose("dkv", q.dtype, dim, pairs["general"])
        tiles = triton.cdiv(k_len, config.block_n)
        for wanted in ((True, False), (False, True)) if config.apart else ((True, True),):
            dkv_kernel[(tiles * kv_heads * sequences,)](
                *inputs, dk, dv, *where, *strides, *dk.stride()[:3], *levels, tiles, kv_heads,
                *rest, scale, **flags, **_shape(q, config), WANT_K=wanted[0], WANT_V=wanted[1],
            )  # fmt: skip


def _shape(q: Tensor, config: Any) -> dict[str, Any]:
    return {
        "DIM": q.shape[3], "BLOCK_D": block_d(q.shape[3]), "PRECISION": precision(q.dtype),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_P": config.partial,
        "STAGES": config.num_stages, "num_warps": config.num_warps, "num_stages": config.num_stages,
    }  # fmt: skip


def _pairs(
    q: Tensor, mask: Tensor | None, ancestors: Tensor | None, left: int, right: int
) -> dict[str, Any]:
    """Return what tells a kernel which pairs count; q stands for pointers that it will not use."""
    flags = {
        "HAS_LEFT": left >= 0, "HAS_RIGHT": right >= 0,
        "HAS_MASK": mask is not None, "HAS_TREE": ancestors is not None,
    }  # fmt: skip
    strides = [0, 0, 0, 0, 0, 0]
    if mask is not None:
        strides[:4] = mask.expand(q.shape[0], q.shape[1], -1, -1).stride()
        mask = mask.view(torch.uint8)
    if ancestors is not None:
        ancestors = ancestors.contiguous().view(torch.int32)  # low half first
        strides[4:] = (ancestors.stride(0) if ancestors.shape[0] > 1 else 0, ancestors.stride(1))
    return {
        "mask": q if mask is None else mask, "words": q if ancestors is None else ancestors,
        "strides": strides, "left": left, "right": right, "flags": flags,
        "general": mask is not None or ancestors is not None,
    }  # fmt: skip


def _positive(q: Tensor, scale: float) -> tuple[Tensor, float, float]:
    """Return q and scale with the same product and scale > 0, and the factor that q got."""
    if scale > 0:
        return q, scale, 1.0
    factor = -1.0 if scale < 0 else 0.0
    return q * factor, abs(scale) or 1.0, factor


def _as_heads_first(x: Tensor) -> Tensor:
    """(total, heads, d) → (1, heads, total, d), a view."""
    return x.transpose(0, 1).unsqueeze(0)


def _is_sound(x: Tensor) -> bool:
    """Tell whether the last axis has no gaps, and offsets within a tile of rows fit 32 bits."""
    return x.stride(-1) == 1 and x.stride(-2) * _MOST_ROWS < 2**31


def _aligned(x: Tensor) -> Tensor:
    """Return x, or a copy whose rows begin at multiples of 16 numbers: loads of 16 bytes, always.

    One row of a head_dim of 40 in two would be loaded number by number otherwise, without the
    asynchronous copies that a pipeline is made of.
    """
    plain = all(stride % 16 == 0 for stride in x.stride()[:3]) and x.data_ptr() % 16 == 0
    if plain and _is_sound(x):
        return x
    *shape, dim = x.shape
    copy = torch.empty((*shape, triton.cdiv(dim, 16) * 16), dtype=x.dtype, device=x.device)
    return copy[..., :dim].copy_(x)


def _on(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
