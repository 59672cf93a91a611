"""Attention of a few new tokens: the cache is cut into parts, and the parts' states are merged."""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.flash_attention.tiles import (
    PLAIN,
    absorb,
    find_program,
    load_tile,
    matrix,
)

# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _sweep(
    acc, total, top, q, k, v, last, start, end, limit, stride_k, stride_v, factor,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
    PARTIAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Carry the state over keys start … end; a row sees keys up to `last`."""
    for column in tl.range(start, end, BLOCK_N, num_stages=STAGES):
        keys = load_tile(k, column, stride_k, limit, BLOCK_N, DIM, BLOCK_D, not PARTIAL)
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
        columns = column + tl.arange(0, BLOCK_N)
        seen = (columns[None, :] <= last[:, None]) & (columns < limit)[None, :]
        acc, total, top = absorb(
            acc, total, top, scores, seen, v, column, stride_v, limit, factor,
            DIM, BLOCK_D, BLOCK_N, PRECISION, PARTIAL,
        )  # fmt: skip
    return acc, total, top


@triton.jit(do_not_specialize=PLAIN)
def decode_kernel(
    q, k, v, lengths, partial_out, partial_lse,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, tiles, heads, q_len, capacity, group, splits, factor,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write output and log-sum-exp (log2) of one part of the keys.

    A tile's rows are the queries of all heads that share a key/value head, token by token within a
    head, so that the keys are read once for all of them. `heads` are those of keys and values. Each
    sequence is cut by its own length, not by the capacity: a nearly empty cache keeps all programs
    at work. The tiles of a part are neighbours, so that its keys are still in the cache.
    """
    place, kv_head, batch = find_program(tiles * splits, heads)
    tile, split = place % tiles, place // tiles
    length = tl.minimum(tl.maximum(tl.load(lengths + batch), 0), capacity).to(tl.int32)
    member = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    head, token = kv_head * group + member // q_len, member % q_len
    there = member < group * q_len
    dims = tl.arange(0, BLOCK_D)
    at = q + batch * stride_qb + (head * stride_qh + token * stride_qn)[:, None] + dims[None, :]
    queries = tl.load(at, mask=there[:, None] & (dims < DIM)[None, :], other=0.0)
    k = matrix(k, batch, kv_head, 0, stride_kb, stride_kh, stride_kn)
    v = matrix(v, batch, kv_head, 0, stride_vb, stride_vh, stride_vn)

    last = tl.where(there, length - q_len + token, -1)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    part = tl.cdiv(tl.cdiv(length, splits), BLOCK_N) * BLOCK_N
    start = tl.minimum(split * part, length)
    end = tl.minimum(start + part, length)
    # All rows see the keys before the first new token; rows that are not there see what they like.
    common = tl.minimum(end, tl.maximum(start, length - q_len + 1))
    whole = start + (common - start) // BLOCK_N * BLOCK_N
    acc, total, top = _sweep(
        acc, total, top, queries, k, v, last, start, whole, end, stride_kn, stride_vn, factor,
        DIM, BLOCK_D, BLOCK_N, PRECISION, False, STAGES,
    )  # fmt: skip
    acc, total, top = _sweep(
        acc, total, top, queries, k, v, last, whole, end, end, stride_kn, stride_vn, factor,
        DIM, BLOCK_D, BLOCK_P, PRECISION, True, 1,
    )  # fmt: skip
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    row = (batch * heads * group + head) * q_len + token
    into = partial_out + (row * splits + split)[:, None] * DIM + dims[None, :]
    tl.store(into, acc / total[:, None], mask=there[:, None] & (dims < DIM)[None, :])
    level = tl.where(nothing, float("-inf"), top + tl.math.log2(total))
    tl.store(partial_lse + row * splits + split, level, mask=there)


@triton.jit(do_not_specialize=PLAIN)
def merge_kernel(
    partial_out, partial_lse, out, lse, splits,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one query, BLOCK_S at a time: weights exp2(lse - max), normalised."""
    row = tl.cast(tl.program_id(0), tl.int64)
    dims = tl.arange(0, BLOCK_D)
    partial_out += row * splits * DIM
    partial_lse += row * splits
    top = float("-inf")
    for start in range(0, splits, BLOCK_S):
        parts = start + tl.arange(0, BLOCK_S)
        level = tl.load(partial_lse + parts, mask=parts < splits, other=float("-inf"))
        top = tl.maximum(top, tl.max(level, 0))
    base = tl.where(top == float("-inf"), 0.0, top)
    total = 0.0
    acc = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, splits, BLOCK_S):
        parts = start + tl.arange(0, BLOCK_S)
        level = tl.load(partial_lse + parts, mask=parts < splits, other=float("-inf"))
        weights = tl.math.exp2(level - base)
        # A part that saw nothing is not read. One that weighs nothing is: it may hold a NaN.
        there = (level != float("-inf"))[:, None] & (dims < DIM)[None, :]
        output = tl.load(partial_out + parts[:, None] * DIM + dims[None, :], mask=there, other=0.0)
        total += tl.sum(weights, 0)
        acc += tl.sum(weights[:, None] * output, 0)
    safe = tl.where(total == 0.0, 1.0, total)
    tl.store(out + row * DIM + dims, (acc / safe).to(out.dtype.element_ty), mask=dims < DIM)
    nats = (top + tl.math.log2(safe)) * 0.6931471805599453
    tl.store(lse + row, tl.where(total == 0.0, float("-inf"), nats))
