"""Attention backward: the weights are made again from the log-sum-exp, tile by tile.

One kernel for the gradient of the queries sweeps over keys; another for those of keys and values
sweeps over the queries of all heads that they serve. Nothing is added by two programs, so the
result is the same in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.flash_attention.tiles import (
    PLAIN,
    find_program,
    guarded_dot,
    key_range,
    load_row,
    load_tile,
    matrix,
    place,
    query_range,
    steps_partial,
    store_tile,
    visible_pairs,
)

# mypy: disable-error-code="no-untyped-def"


@triton.jit(do_not_specialize=["tiles", "heads", "q_len"])
def delta_kernel(
    gradient, out, lse_gradient, lse, delta, top,
    stride_gb, stride_gh, stride_gn, stride_ob, stride_oh, stride_on, stride_lb, stride_lh,
    tiles, heads, q_len, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write D = rowsum(dO ∘ O) - d lse, and the log-sum-exp in log2, +inf for an empty row."""
    tile, head, batch = find_program(tiles, heads)
    row = tile * BLOCK_M
    gradient = matrix(gradient, batch, head, 0, stride_gb, stride_gh, stride_gn)
    out = matrix(out, batch, head, 0, stride_ob, stride_oh, stride_on)
    rows = row + tl.arange(0, BLOCK_M)
    there, at = rows < q_len, batch * stride_lb + head * stride_lh + rows
    g = load_tile(gradient, row, stride_gn, q_len, BLOCK_M, DIM, BLOCK_D, False)
    o = load_tile(out, row, stride_on, q_len, BLOCK_M, DIM, BLOCK_D, False)
    sums = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + at, sums - tl.load(lse_gradient + at, mask=there, other=0.0), mask=there)
    level = tl.load(lse + at, mask=there, other=0.0) * 1.4426950408889634
    tl.store(top + at, tl.where(level == float("-inf"), float("inf"), level), mask=there)


@triton.jit
def _add_keys(
    dq, q, g, top, delta, k, v, rows, row, column, stride_k, stride_v,
    q_len, k_len, left, right, shift, mask, mask_row, mask_column, words, words_row, factor,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_TREE: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """Return dQ with the part that comes from BLOCK_N keys from `column` on."""
    keys = load_tile(k, column, stride_k, k_len, BLOCK_N, DIM, BLOCK_D, not PARTIAL)
    values = load_tile(v, column, stride_v, k_len, BLOCK_N, DIM, BLOCK_D, not PARTIAL)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    weights = tl.math.exp2(scores * factor - top[:, None])
    d_weights = tl.dot(g, tl.trans(values), input_precision=PRECISION)
    d_scores = weights * (d_weights - delta[:, None])
    if PARTIAL:
        columns = column + tl.arange(0, BLOCK_N)
        seen = visible_pairs(
            rows[:, None], columns[None, :], row, column, q_len, k_len, left, right, shift,
            mask, mask_row, mask_column, words, words_row, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE,
        )  # fmt: skip
        d_scores = tl.where(seen, d_scores, 0.0).to(keys.dtype)
        return guarded_dot(d_scores, keys, seen, dq, PRECISION)
    return tl.dot(d_scores.to(keys.dtype), keys, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=PLAIN)
def dq_kernel(
    q, k, v, gradient, delta, top, dq, mask, words, cu_q, cu_k,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_gb, stride_gh, stride_gn,
    stride_db, stride_dh, stride_dn, stride_lb, stride_lh,
    mask_batch, mask_head, mask_row, mask_column, words_batch, words_row,
    tiles, heads, q_len, k_len, group, left, right, shift, factor, scale,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, PRECISION: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_TREE: tl.constexpr,
    PACKED: tl.constexpr, BOTTOM_RIGHT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one tile of queries of one head."""
    tile, head, sequence = find_program(tiles, heads)
    row = (tiles - 1 - tile) * BLOCK_M
    batch, q_start, k_start, q_len, k_len, shift = place(
        sequence, cu_q, cu_k, q_len, k_len, shift, PACKED, BOTTOM_RIGHT
    )
    if row >= q_len:
        return
    # A band or a tree leaves a few partial tiles to a program: a pipeline there only takes registers.
    SLOW: tl.constexpr = STAGES if HAS_MASK else 1
    q = matrix(q, batch, head, q_start, stride_qb, stride_qh, stride_qn)
    gradient = matrix(gradient, batch, head, q_start, stride_gb, stride_gh, stride_gn)
    dq = matrix(dq, batch, head, q_start + row, stride_db, stride_dh, stride_dn)
    k = matrix(k, batch, head // group, k_start, stride_kb, stride_kh, stride_kn)
    v = matrix(v, batch, head // group, k_start, stride_vb, stride_vh, stride_vn)
    mask += batch * mask_batch + head * mask_head
    words += batch * words_batch
    at = batch * stride_lb + head * stride_lh + q_start

    rows = row + tl.arange(0, BLOCK_M)
    queries = load_tile(q, row, stride_qn, q_len, BLOCK_M, DIM, BLOCK_D, False)
    g = load_tile(gradient, row, stride_gn, q_len, BLOCK_M, DIM, BLOCK_D, False)
    level = tl.load(top + at + rows, mask=rows < q_len, other=float("inf"))
    d_rows = tl.load(delta + at + rows, mask=rows < q_len, other=0.0)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first, whole, partial, end = key_range(
        row, q_len, k_len, left, right, shift, BLOCK_M, BLOCK_N,
        HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE,
    )  # fmt: skip
    # As in the forward pass: tiles with a mask first, in one loop.
    for step in tl.range(0, steps_partial(first, whole, partial, end), BLOCK_P, num_stages=SLOW):
        column = first + step + tl.where(step < whole - first, 0, partial - whole)
        acc = _add_keys(
            acc, queries, g, level, d_rows, k, v, rows, row, column, stride_kn, stride_vn,
            q_len, k_len, left, right, shift, mask, mask_row, mask_column, words, words_row, factor,
            DIM, BLOCK_D, BLOCK_P, PRECISION, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE, True,
        )  # fmt: skip
    if not HAS_MASK:
        for column in tl.range(whole, partial, BLOCK_N, num_stages=STAGES):
            acc = _add_keys(
                acc, queries, g, level, d_rows, k, v, rows, row, column, stride_kn, stride_vn, q_len,
                k_len, left, right, shift, mask, mask_row, mask_column, words, words_row, factor,
                DIM, BLOCK_D, BLOCK_N, PRECISION, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE, False,
            )  # fmt: skip
    store_tile(dq, 0, stride_dn, q_len - row, acc * scale, BLOCK_M, DIM, BLOCK_D)


@triton.jit
def _add_queries(
    dk, dv, keys, values, q, gradient, top, delta, columns, column, row, stride_q, stride_g,
    q_len, k_len, left, right, shift, mask, mask_row, mask_column, words, words_row, factor,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_TREE: tl.constexpr, PARTIAL: tl.constexpr, WANT_K: tl.constexpr, WANT_V: tl.constexpr,
):  # fmt: skip
    """Return dK and dV with the parts that come from BLOCK_M queries of one head from `row` on."""
    queries = load_tile(q, row, stride_q, q_len, BLOCK_M, DIM, BLOCK_D, not PARTIAL)
    g = load_tile(gradient, row, stride_g, q_len, BLOCK_M, DIM, BLOCK_D, not PARTIAL)
    level = load_row(top, row, q_len, BLOCK_M, float("inf"), not PARTIAL)
    scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
    weights = tl.math.exp2(scores * factor - level[None, :])
    if PARTIAL:
        rows = row + tl.arange(0, BLOCK_M)
        seen = visible_pairs(
            rows[None, :], columns[:, None], row, column, q_len, k_len, left, right, shift,
            mask, mask_row, mask_column, words, words_row, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE,
        )  # fmt: skip
        weights = tl.where(seen, weights, 0.0)
    if WANT_V:
        if PARTIAL:
            dv = guarded_dot(weights.to(g.dtype), g, seen, dv, PRECISION)
        else:
            dv = tl.dot(weights.to(g.dtype), g, dv, input_precision=PRECISION)
    if WANT_K:
        d_weights = tl.dot(values, tl.trans(g), input_precision=PRECISION)
        d_rows = load_row(delta, row, q_len, BLOCK_M, 0.0, not PARTIAL)
        d_scores = weights * (d_weights - d_rows[None, :])
        if PARTIAL:
            d_scores = tl.where(seen, d_scores, 0.0).to(g.dtype)
            dk = guarded_dot(d_scores, queries, seen, dk, PRECISION)
        else:
            dk = tl.dot(d_scores.to(g.dtype), queries, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=PLAIN)
def dkv_kernel(
    q, k, v, gradient, delta, top, dk, dv, mask, words, cu_q, cu_k,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_gb, stride_gh, stride_gn,
    stride_db, stride_dh, stride_dn, stride_lb, stride_lh,
    mask_batch, mask_head, mask_row, mask_column, words_batch, words_row,
    tiles, heads, q_len, k_len, group, left, right, shift, factor, scale,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, PRECISION: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_TREE: tl.constexpr,
    PACKED: tl.constexpr, BOTTOM_RIGHT: tl.constexpr, STAGES: tl.constexpr,
    WANT_K: tl.constexpr, WANT_V: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one tile of keys and values of one key/value head, or one of them."""
    tile, kv_head, sequence = find_program(tiles, heads)
    column = tile * BLOCK_N
    batch, q_start, k_start, q_len, k_len, shift = place(
        sequence, cu_q, cu_k, q_len, k_len, shift, PACKED, BOTTOM_RIGHT
    )
    if column >= k_len:
        return
    # A band or a tree leaves a few partial tiles to a program: a pipeline there only takes registers.
    SLOW: tl.constexpr = STAGES if HAS_MASK else 1
    q = matrix(q, batch, 0, q_start, stride_qb, stride_qh, stride_qn)
    gradient = matrix(gradient, batch, 0, q_start, stride_gb, stride_gh, stride_gn)
    k = matrix(k, batch, kv_head, k_start, stride_kb, stride_kh, stride_kn)
    v = matrix(v, batch, kv_head, k_start, stride_vb, stride_vh, stride_vn)
    words += batch * words_batch
    at = batch * stride_lb + q_start

    here = tl.cast(k_start + column, tl.int64) * stride_dn
    here += batch * stride_db + kv_head * stride_dh
    columns = column + tl.arange(0, BLOCK_N)
    keys = load_tile(k, column, stride_kn, k_len, BLOCK_N, DIM, BLOCK_D, False)
    values = keys
    if WANT_K:
        values = load_tile(v, column, stride_vn, k_len, BLOCK_N, DIM, BLOCK_D, False)
    dk_acc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv_acc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    first, whole, partial, end = query_range(
        column, q_len, k_len, left, right, shift, BLOCK_M, BLOCK_N,
        HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE,
    )  # fmt: skip
    # One loop over the rows of all heads that these keys serve: the pipeline does not run dry between.
    span = tl.cdiv(steps_partial(first, whole, partial, end), BLOCK_P) * BLOCK_P
    head, step = kv_head * group, 0
    for _ in tl.range(0, group * span, BLOCK_P, num_stages=SLOW):
        row = first + step + tl.where(step < whole - first, 0, partial - whole)
        dk_acc, dv_acc = _add_queries(
            dk_acc, dv_acc, keys, values, q + head * stride_qh, gradient + head * stride_gh,
            top + at + head * stride_lh, delta + at + head * stride_lh, columns, column, row,
            stride_qn, stride_gn, q_len, k_len, left, right, shift,
            mask + batch * mask_batch + head * mask_head, mask_row, mask_column, words, words_row,
            factor, DIM, BLOCK_D, BLOCK_P, PRECISION, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE, True,
            WANT_K, WANT_V,
        )  # fmt: skip
        step += BLOCK_P
        head += tl.where(step == span, 1, 0)
        step = tl.where(step == span, 0, step)
    if not HAS_MASK:
        head, row = kv_head * group, whole
        for _ in tl.range(0, group * (partial - whole), BLOCK_M, num_stages=STAGES):
            dk_acc, dv_acc = _add_queries(
                dk_acc, dv_acc, keys, values, q + head * stride_qh, gradient + head * stride_gh,
                top + at + head * stride_lh, delta + at + head * stride_lh, columns, column, row,
                stride_qn, stride_gn, q_len, k_len, left, right, shift,
                mask + batch * mask_batch + head * mask_head, mask_row, mask_column, words, words_row,
                factor, DIM, BLOCK_D, BLOCK_M, PRECISION, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE, False,
                WANT_K, WANT_V,
            )  # fmt: skip
            row += BLOCK_M
            head += tl.where(row == partial, 1, 0)
            row = tl.where(row == partial, whole, row)
    if WANT_K:
        store_tile(dk + here, 0, stride_dn, k_len - column, dk_acc * scale, BLOCK_N, DIM, BLOCK_D)
    if WANT_V:
        store_tile(dv + here, 0, stride_dn, k_len - column, dv_acc, BLOCK_N, DIM, BLOCK_D)
