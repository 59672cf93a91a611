"""Attention forward: one program for a tile of queries sweeps over the keys."""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.flash_attention.tiles import (
    PLAIN,
    absorb,
    find_program,
    key_range,
    load_tile,
    matrix,
    place,
    steps_partial,
    store_tile,
    visible_pairs,
)

# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _absorb_keys(
    acc, total, top, q, k, v, rows, row, column, stride_k, stride_v,
    q_len, k_len, left, right, shift, mask, mask_row, mask_column, words, words_row, factor,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_TREE: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """Carry the state over BLOCK_N keys from `column` on; PARTIAL if some pairs do not count."""
    keys = load_tile(k, column, stride_k, k_len, BLOCK_N, DIM, BLOCK_D, not PARTIAL)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    seen = True
    if PARTIAL:
        columns = column + tl.arange(0, BLOCK_N)
        seen = visible_pairs(
            rows[:, None], columns[None, :], row, column, q_len, k_len, left, right, shift,
            mask, mask_row, mask_column, words, words_row, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE,
        )  # fmt: skip
    return absorb(
        acc, total, top, scores, seen, v, column, stride_v, k_len, factor,
        DIM, BLOCK_D, BLOCK_N, PRECISION, PARTIAL,
    )  # fmt: skip


@triton.jit(do_not_specialize=PLAIN)
def forward_kernel(
    q, k, v, out, lse, mask, words, cu_q, cu_k,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_ob, stride_oh, stride_on, stride_lb, stride_lh,
    mask_batch, mask_head, mask_row, mask_column, words_batch, words_row,
    tiles, heads, q_len, k_len, group, left, right, shift, factor,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, PRECISION: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_TREE: tl.constexpr,
    PACKED: tl.constexpr, BOTTOM_RIGHT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the output and the log-sum-exp (in nats) of one tile of queries of one head."""
    # The last rows of a causal matrix have the most work: they begin first.
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
    # Places of results, whole: kept through the loops, they take fewer registers than their parts.
    out = matrix(out, batch, head, q_start + row, stride_ob, stride_oh, stride_on)
    lse += batch * stride_lb + head * stride_lh + q_start + row
    k = matrix(k, batch, head // group, k_start, stride_kb, stride_kh, stride_kn)
    v = matrix(v, batch, head // group, k_start, stride_vb, stride_vh, stride_vn)
    mask += batch * mask_batch + head * mask_head
    words += batch * words_batch

    rows = row + tl.arange(0, BLOCK_M)
    queries = load_tile(q, row, stride_qn, q_len, BLOCK_M, DIM, BLOCK_D, False)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first, whole, partial, end = key_range(
        row, q_len, k_len, left, right, shift, BLOCK_M, BLOCK_N,
        HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE,
    )  # fmt: skip
    # The order of the keys is free. Tiles with a mask come first, those on both sides in one loop:
    # what they keep in registers is then gone before the loop that matters.
    for step in tl.range(0, steps_partial(first, whole, partial, end), BLOCK_P, num_stages=SLOW):
        column = first + step + tl.where(step < whole - first, 0, partial - whole)
        acc, total, top = _absorb_keys(
            acc, total, top, queries, k, v, rows, row, column, stride_kn, stride_vn,
            q_len, k_len, left, right, shift, mask, mask_row, mask_column, words, words_row, factor,
            DIM, BLOCK_D, BLOCK_P, PRECISION, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE, True,
        )  # fmt: skip
    if not HAS_MASK:
        for column in tl.range(whole, partial, BLOCK_N, num_stages=STAGES):
            acc, total, top = _absorb_keys(
                acc, total, top, queries, k, v, rows, row, column, stride_kn, stride_vn, q_len, k_len,
                left, right, shift, mask, mask_row, mask_column, words, words_row, factor,
                DIM, BLOCK_D, BLOCK_N, PRECISION, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_TREE, False,
            )  # fmt: skip
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    store_tile(out, 0, stride_on, q_len - row, acc / total[:, None], BLOCK_M, DIM, BLOCK_D)
    nats = (top + tl.math.log2(total)) * 0.6931471805599453
    at = tl.arange(0, BLOCK_M)
    tl.store(lse + at, tl.where(nothing, float("-inf"), nats), mask=at < q_len - row)
