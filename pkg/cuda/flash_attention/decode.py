"""Attention of a few new tokens: the cache is cut into parts, and the parts' states are merged."""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.flash_attention.tiles import guarded_dot, load_tile

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
        if PARTIAL:
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * factor)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.math.exp2(scores * factor - base[:, None])
        rescale = tl.math.exp2(top - base)
        total = total * rescale + tl.sum(weights, 1)
        acc = acc * rescale[:, None]
        values = load_tile(v, column, stride_v, limit, BLOCK_N, DIM, BLOCK_D, not PARTIAL)
        weights = weights.to(values.dtype)
        if PARTIAL:
            acc = guarded_dot(weights, values, seen, acc, PRECISION)
        else:
            acc = tl.dot(weights, values, acc, input_precision=PRECISION)
        top = higher
    return acc, total, top


@triton.jit
def decode_kernel(
    q, k, v, lengths, partial_out, partial_lse,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, q_len, capacity, heads, group, splits, part, factor,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write output and log-sum-exp (log2) of one part of the keys.

    A tile's rows are the queries of all heads that share a key/value head, token by token within a
    head, so that the keys are read once for all of them.
    """
    split, kv_head = tl.program_id(0) % splits, tl.program_id(1)
    tile, sequence = tl.program_id(0) // splits, tl.program_id(2)
    batch = tl.cast(sequence, tl.int64)
    length = tl.minimum(tl.maximum(tl.load(lengths + sequence), 0), capacity).to(tl.int32)
    member = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    head, token = kv_head * group + member // q_len, member % q_len
    there = member < group * q_len
    dims = tl.arange(0, BLOCK_D)
    at = q + batch * stride_qb + (head * stride_qh + token * stride_qn)[:, None] + dims[None, :]
    queries = tl.load(at, mask=there[:, None] & (dims < DIM)[None, :], other=0.0)
    k += batch * stride_kb + kv_head * stride_kh
    v += batch * stride_vb + kv_head * stride_vh

    last = tl.where(there, length - q_len + token, -1)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    start = split * part
    end = tl.minimum(start + part, length)
    # All rows see the keys before the first new token; rows that are not there see what they like.
    common = tl.minimum(end, tl.maximum(start, length - q_len + 1))
    whole = start + tl.maximum(0, common - start) // BLOCK_N * BLOCK_N
    acc, total, top = _sweep(
        acc, total, top, queries, k, v, last, start, whole, end, stride_kn, stride_vn, factor,
        DIM, BLOCK_D, BLOCK_N, PRECISION, False, STAGES,
    )  # fmt: skip
    acc, total, top = _sweep(
        acc, total, top, queries, k, v, last, whole, end, end, stride_kn, stride_vn, factor,
        DIM, BLOCK_D, BLOCK_N, PRECISION, True, 1,
    )  # fmt: skip
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    place = ((batch * heads + head) * q_len + token) * splits + split
    into = partial_out + place[:, None] * DIM + dims[None, :]
    tl.store(into, acc / total[:, None], mask=there[:, None] & (dims < DIM)[None, :])
    level = tl.where(nothing, float("-inf"), top + tl.math.log2(total))
    tl.store(partial_lse + place, level, mask=there)


@triton.jit
def merge_kernel(
    partial_out, partial_lse, out, lse, splits,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one query: weights exp2(lse - max), normalised. BLOCK_S ≥ splits."""
    row = tl.cast(tl.program_id(0), tl.int64)
    parts, dims = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    level = tl.load(partial_lse + row * splits + parts, mask=parts < splits, other=float("-inf"))
    top = tl.max(level, 0)
    weights = tl.math.exp2(level - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weights, 0)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    for split in range(splits):
        share = tl.sum(tl.where(parts == split, weights, 0.0), 0)
        at = partial_out + (row * splits + split) * DIM + dims
        acc += share * tl.load(at, mask=tl.where(share != 0, dims < DIM, False), other=0.0)
    safe = tl.where(total == 0.0, 1.0, total)
    tl.store(out + row * DIM + dims, (acc / safe).to(out.dtype.element_ty), mask=dims < DIM)
    nats = (top + tl.math.log2(safe)) * 0.6931471805599453
    tl.store(lse + row, tl.where(total == 0.0, float("-inf"), nats))
