"""The launchers: what the operators of `pkg.algos.flash_attention` call for CUDA tensors."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from pkg.cuda.flash_attention.backward import delta_kernel, dkv_kernel, dq_kernel
from pkg.cuda.flash_attention.configs import block_d, choose, precision
from pkg.cuda.flash_attention.decode import decode_kernel, merge_kernel
from pkg.cuda.flash_attention.forward import forward_kernel

_LOG2_E = 1.4426950408889634
#: Programs that keep an H100 or H200 (132 multiprocessors) busy while decoding.
_BUSY = 2 * 132
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
    packed = [_as_heads_first(x) for x in (q, k, v, output)]
    _forward(*packed, lse.unsqueeze(0), pairs, starts, sizes, bottom_right, scale)  # type: ignore[arg-type]
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
    g, *packed = (_as_heads_first(x) for x in (gradient, q, k, v, output))
    into = [_as_heads_first(x) for x in found]
    _backward(
        g, lse_gradient.unsqueeze(0), *packed, lse.unsqueeze(0), into, pairs, starts, sizes,
        bottom_right, scale,
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
    config, group = choose("decode", q.dtype, dim), heads // kv_heads
    tiles = triton.cdiv(group * q_len, config.block_m)
    if splits == 0:
        wanted = triton.cdiv(_BUSY, batch * kv_heads * tiles)
        splits = max(1, min(wanted, _MOST_PARTS, capacity // _SMALLEST_PART))
    part = max(1, triton.cdiv(triton.cdiv(capacity, splits), config.block_n)) * config.block_n
    q, k, v = (_last_axis_dense(x) for x in (q, k, v))
    q, scale, _ = _positive(q, scale)
    partial = torch.empty((batch, heads, q_len, splits, dim), dtype=torch.float32, device=q.device)
    levels = torch.empty((batch, heads, q_len, splits), dtype=torch.float32, device=q.device)
    shared = {"DIM": dim, "BLOCK_D": block_d(dim)}
    with _on(q):
        decode_kernel[(splits * tiles, kv_heads, batch)](
            q, k, v, lengths, partial, levels, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            q_len, capacity, heads, group, splits, part, scale * _LOG2_E, **shared,
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, PRECISION=precision(q.dtype),
            STAGES=config.num_stages, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        merge_kernel[(batch * heads * q_len,)](
            partial, levels, output, lse, splits, **shared,
            BLOCK_S=triton.next_power_of_2(splits), num_warps=1,
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
    q, k, v = (_last_axis_dense(x) for x in (q, k, v))
    q, scale, _ = _positive(q, scale)
    config = choose("forward", q.dtype, q.shape[3], pairs["general"])
    with _on(q):
        forward_kernel[(triton.cdiv(q_len, config.block_m), q.shape[1], sequences)](
            q, k, v, output, lse, pairs["mask"], pairs["words"], *(starts or (lse, lse)),
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *output.stride()[:3],
            *lse.stride()[:2], *pairs["strides"], q_len, k_len, q.shape[1] // k.shape[1],
            pairs["left"], pairs["right"], shift, scale * _LOG2_E, **pairs["flags"],
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
    gradient, q, k, v = (_last_axis_dense(x) for x in (gradient, q, k, v))
    q, scale, sign = _positive(q, scale)
    lse_gradient, lse = lse_gradient.contiguous(), lse.contiguous()
    delta, top = torch.empty_like(lse), torch.empty_like(lse)
    heads, dim, rows = q.shape[1], q.shape[3], q.shape[2]
    dq, dk, dv = found
    group = heads // k.shape[1]
    with _on(q):
        delta_kernel[(triton.cdiv(rows, 64), heads, q.shape[0])](
            gradient, output, lse_gradient, lse, delta, top, *gradient.stride()[:3],
            *output.stride()[:3], *lse.stride()[:2], rows,
            DIM=dim, BLOCK_D=block_d(dim), BLOCK_M=64, num_warps=4,
        )  # fmt: skip
        inputs = (q, k, v, gradient, delta, top)
        where = (pairs["mask"], pairs["words"], *(starts or (lse, lse)))
        strides = (
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *gradient.stride()[:3],
        )  # fmt: skip
        rest = (
            *lse.stride()[:2], *pairs["strides"], q_len, k_len, group, pairs["left"],
            pairs["right"], shift, scale * _LOG2_E,
        )  # fmt: skip
        flags = {**pairs["flags"], "PACKED": starts is not None, "BOTTOM_RIGHT": bottom_right}
        config = choose("dq", q.dtype, dim, pairs["general"])
        dq_kernel[(triton.cdiv(q_len, config.block_m), heads, sequences)](
            *inputs, dq, *where, *strides, *dq.stride()[:3], *rest, scale * sign,
            **flags, **_shape(q, config),
        )  # fmt: skip
        config = choose("dkv", q.dtype, dim, pairs["general"])
        for wanted in ((True, False), (False, True)) if config.apart else ((True, True),):
            dkv_kernel[(triton.cdiv(k_len, config.block_n), k.shape[1], sequences)](
                *inputs, dk, dv, *where, *strides, *dk.stride()[:3], *rest, scale,
                **flags, **_shape(q, config), WANT_K=wanted[0], WANT_V=wanted[1],
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
        ancestors = ancestors.contiguous()
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


def _last_axis_dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _on(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
