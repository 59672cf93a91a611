"""What all kernels of attention share: loading a tile, which pairs count, a product without leaks.

Scores are kept in units of log2: `factor` is scale · log2(e), so that the exponential is exp2, which
is an instruction.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Numbers that change from call to call: a kernel made for a multiple of 16 of them gains nothing, and
#: another one for each combination would be compiled. Strides are told apart: loads depend on them.
PLAIN = [
    "tiles", "heads", "q_len", "k_len", "group", "left", "right", "shift", "capacity", "splits",
    "stride_lb", "stride_lh", "words_batch", "words_row",
]  # fmt: skip

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def load_tile(
    base, start, stride, limit,
    ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Load rows start … start + ROWS of a matrix with DIM columns; 0 beyond `limit` and DIM.

    `WHOLE` says that all rows are there. Offsets within a tile fit 32 bits; its start may not.
    """
    rows, dims = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    at = base + tl.cast(start, tl.int64) * stride + (rows[:, None] * stride + dims[None, :])
    if WHOLE:
        if DIM == BLOCK_D:
            return tl.load(at)
        return tl.load(at, mask=dims[None, :] < DIM, other=0.0)
    there = (rows + start)[:, None] < limit
    if DIM == BLOCK_D:
        return tl.load(at, mask=there, other=0.0)
    return tl.load(at, mask=there & (dims < DIM)[None, :], other=0.0)


@triton.jit
def load_row(base, start, limit, ROWS: tl.constexpr, other: tl.constexpr, WHOLE: tl.constexpr):
    """Load numbers start … start + ROWS of a vector; `other` beyond `limit`."""
    rows = start + tl.arange(0, ROWS)
    if WHOLE:
        return tl.load(base + rows)
    return tl.load(base + rows, mask=rows < limit, other=other)


@triton.jit
def store_tile(
    base, start, stride, limit, tile,
    ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Store rows start … start + ROWS of a matrix with DIM columns."""
    rows, dims = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    at = base + tl.cast(start, tl.int64) * stride + (rows[:, None] * stride + dims[None, :])
    there = ((rows + start)[:, None] < limit) & (dims < DIM)[None, :]
    tl.store(at, tile.to(base.dtype.element_ty), mask=there)


@triton.jit
def matrix(base, batch, head, row, stride_b, stride_h, stride_n):
    """Return where the numbers of one head begin, from `row` on; 32 bits would not reach."""
    return base + (batch * stride_b + head * stride_h + tl.cast(row, tl.int64) * stride_n)


@triton.jit
def visible_pairs(
    i, j, row, column, q_len, k_len, left, right, shift, mask, mask_row, mask_column, words, words_row,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_TREE: tl.constexpr,
):  # fmt: skip
    """Tell which pairs of query i and key j count; i and j broadcast against each other.

    (row, column) is the tile's corner: within a tile, offsets fit 32 bits. `words` are the 32-bit
    halves of an `AncestorMask`: they take half the registers.
    """
    seen = (i < q_len) & (j < k_len)
    if HAS_LEFT:
        seen = seen & (j >= i + (shift - left))
    if HAS_RIGHT:
        seen = seen & (j <= i + (shift + right))
    if HAS_MASK:
        corner = tl.cast(row, tl.int64) * mask_row + tl.cast(column, tl.int64) * mask_column
        at = mask + corner + ((i - row) * mask_row + (j - column) * mask_column)
        seen = seen & (tl.load(at, mask=seen, other=0) != 0)
    if HAS_TREE:
        node = j - (k_len - q_len)
        in_tree = seen & (node >= 0)
        word = tl.load(words + (i * words_row + (node >> 5)), mask=in_tree, other=0)
        bit = (word >> (node & 31)) & 1
        seen = seen & ((node < 0) | (bit != 0))
    return seen


@triton.jit
def online_softmax(acc, total, top, scores, factor):
    """Carry the state over new scores; return (acc, total, top) for the new maximum, and weights.

    `top` is the maximum so far in log2, `total` the sum of weights and `acc` that of weighted values,
    both relative to it. What the new weights add to `acc` is the caller's to add.
    """
    higher = tl.maximum(top, tl.max(scores, 1) * factor)
    # tl.max and tl.maximum pass over a NaN; the sum below does not.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.math.exp2(scores * factor - base[:, None])
    rescale = tl.math.exp2(top - base)
    return acc * rescale[:, None], total * rescale + tl.sum(weights, 1), higher, weights


@triton.jit
def guarded_dot(weights, x, seen, total, PRECISION: tl.constexpr):
    """Return total + weights · x, where a pair that is not seen adds nothing: 0 · NaN is NaN.

    What is not finite in x is taken out; a row that sees some of it becomes NaN.
    """
    wide = x.to(tl.float32)
    finite = (wide - wide) == 0.0  # NaN - NaN and inf - inf are NaN
    bad = tl.max(tl.where(finite, 0.0, 1.0), 1)
    hit = tl.max(tl.where(seen, bad[None, :], 0.0), 1)
    total = tl.dot(weights, tl.where(finite, x, 0.0).to(x.dtype), total, input_precision=PRECISION)
    return total + tl.where(hit > 0.0, float("nan"), 0.0)[:, None]


@triton.jit
def absorb(
    acc, total, top, scores, seen, v, column, stride_v, limit, factor,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
    PARTIAL: tl.constexpr,
):  # fmt: skip
    """Carry the state over the scores of BLOCK_N keys from `column` on; PARTIAL: only what is `seen`."""
    if PARTIAL:
        scores = tl.where(seen, scores, float("-inf"))
    acc, total, top, weights = online_softmax(acc, total, top, scores, factor)
    values = load_tile(v, column, stride_v, limit, BLOCK_N, DIM, BLOCK_D, not PARTIAL)
    weights = weights.to(values.dtype)
    if PARTIAL:
        acc = guarded_dot(weights, values, seen, acc, PRECISION)
    else:
        acc = tl.dot(weights, values, acc, input_precision=PRECISION)
    return acc, total, top


@triton.jit
def key_range(
    row, q_len, k_len, left, right, shift,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_TREE: tl.constexpr,
):  # fmt: skip
    """Return (first, whole, partial, end) of the keys of rows row … row + BLOCK_M.

    Keys from `first` to `whole` and from `partial` to `end` need a mask, those between do not; the
    first three are multiples of BLOCK_N.
    """
    last = tl.minimum(row + BLOCK_M, q_len) - 1
    first, end = 0, k_len
    whole, partial = 0, k_len // BLOCK_N * BLOCK_N
    if HAS_LEFT:
        first = tl.maximum(0, row + shift - left) // BLOCK_N * BLOCK_N
        whole = tl.maximum(0, tl.cdiv(tl.maximum(0, last + shift - left), BLOCK_N) * BLOCK_N)
    if HAS_RIGHT:
        end = tl.minimum(k_len, last + shift + right + 1)
        partial = tl.minimum(partial, tl.maximum(0, row + shift + right + 1) // BLOCK_N * BLOCK_N)
    if HAS_TREE:
        partial = tl.minimum(partial, (k_len - q_len) // BLOCK_N * BLOCK_N)
    if HAS_MASK:
        whole = first
        partial = first
    whole = tl.minimum(whole, tl.maximum(first, partial))
    partial = tl.maximum(whole, partial)
    return first, whole, partial, end


@triton.jit
def query_range(
    column, q_len, k_len, left, right, shift,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_TREE: tl.constexpr,
):  # fmt: skip
    """Return (first, whole, partial, end) of the queries of keys column … column + BLOCK_N."""
    last = tl.minimum(column + BLOCK_N, k_len) - 1
    first, end = 0, q_len
    whole, partial = 0, q_len // BLOCK_M * BLOCK_M
    if HAS_RIGHT:
        first = tl.maximum(0, column - shift - right) // BLOCK_M * BLOCK_M
        whole = tl.cdiv(tl.maximum(0, last - shift - right), BLOCK_M) * BLOCK_M
    if HAS_LEFT:
        end = tl.minimum(q_len, last - shift + left + 1)
        partial = tl.minimum(partial, tl.maximum(0, column - shift + left + 1) // BLOCK_M * BLOCK_M)
    if HAS_TREE:
        partial = tl.where(last >= k_len - q_len, 0, partial)
    if HAS_MASK:
        whole = first
        partial = first
    whole = tl.minimum(whole, tl.maximum(first, partial))
    partial = tl.maximum(whole, partial)
    return first, whole, partial, end


@triton.jit
def steps_partial(first, whole, partial, end):
    """Return how many keys (or queries) lie in the two parts that need a mask."""
    return whole - first + tl.maximum(0, end - partial)


@triton.jit
def find_program(tiles, heads):
    """Return (tile, head, sequence) of this program; head and sequence in 64 bits.

    Programs are numbered along one axis, tiles first: the grid's other axes end at 65,535, which
    the windows of a vision model pass. 64 bits: head · stride passes 32 in a long sequence.
    """
    program = tl.program_id(0)
    rest = program // tiles
    return program % tiles, tl.cast(rest % heads, tl.int64), tl.cast(rest // heads, tl.int64)


@triton.jit
def place(
    sequence, cu_q, cu_k, q_len, k_len, shift,
    PACKED: tl.constexpr, BOTTOM_RIGHT: tl.constexpr,
):  # fmt: skip
    """Return (batch, first query, first key, q_len, k_len, shift) of a sequence, packed or not."""
    batch, q_start, k_start = sequence, 0, 0
    if PACKED:
        batch = sequence * 0
        q_start = tl.load(cu_q + sequence)
        k_start = tl.load(cu_k + sequence)
        q_len = tl.load(cu_q + sequence + 1) - q_start
        k_len = tl.load(cu_k + sequence + 1) - k_start
        shift = 0
        if BOTTOM_RIGHT:
            shift = k_len - q_len
    return batch, q_start, k_start, q_len, k_len, shift
