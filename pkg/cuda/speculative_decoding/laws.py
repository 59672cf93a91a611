"""From logits to laws, in blocks of the vocabulary: temperature, top-k, top-p, softmax.

A row of logits is described by four numbers, after which any token's probability costs one
exponential: `top`, its largest logit; `first`, where that is; `cut`, how far below the top (the bits
of a float32, which are ordered as the numbers are) a token may be; `total`, the sum of what is kept.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"

_EVERYTHING = tl.constexpr(0x7FFFFFFF)


@triton.jit
def depth_below(x, top, temperature):
    """Return (x - top) / temperature, at most 0, and the bits of its size."""
    # In float64, and rounded once: as exact as a division, which would be a call for every token.
    rate = 1.0 / (tl.zeros((), dtype=tl.float64) + temperature)
    below = ((x.to(tl.float32) - top).to(tl.float64) * rate).to(tl.float32)
    return below, tl.abs(below).to(tl.int32, bitcast=True)


@triton.jit
def probability(x, at, top, cut, total, first, temperature, GREEDY: tl.constexpr):
    """Return the probabilities, float64, of tokens `at` with logits `x`."""
    if GREEDY:
        law = tl.where(at == first, 1.0, 0.0).to(tl.float64)
    else:
        below, size = depth_below(x, top, temperature)
        law = tl.where(size <= cut, tl.exp(below).to(tl.float64) * (1.0 / total), 0.0)
    return law


@triton.jit
def row_of(draft, target, row, draft_rows, vocab):
    """Return the pointer to a row: those of the draft come first, then those of the target."""
    if row < draft_rows:
        base = draft + row.to(tl.int64) * vocab
    else:
        base = target + (row - draft_rows).to(tl.int64) * vocab
    return base


@triton.jit
def partial_kernel(
    draft, target, tops, sums, firsts, draft_rows, vocab, chunks, temperature,
    GREEDY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reduce one block of one row: largest logit, where it is, sum of exponentials below it."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    at = chunk * BLOCK + tl.arange(0, BLOCK)
    base = row_of(draft, target, row, draft_rows, vocab)
    x = tl.load(base + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
    top = tl.max(x, axis=0)
    place = row * chunks + chunk
    tl.store(tops + place, top)
    tl.store(firsts + place, tl.min(tl.where(x == top, at, _EVERYTHING), axis=0))
    if not GREEDY:
        below, _ = depth_below(x, tl.where(top == -float("inf"), 0.0, top), temperature)
        tl.store(sums + place, tl.sum(tl.exp(below), axis=0).to(tl.float64))


@triton.jit
def _least_depth(base, vocab, top, temperature, cut, goal, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the least depth (as bits) down to which the tokens kept by `cut` measure `goal`.

    Sixteen depths are measured at a time, so that eight sweeps find the 31 bits. The measure is the
    number of tokens, or the sum of their exponentials.
    """
    digits = tl.arange(0, 16)
    found = tl.zeros((), dtype=tl.int64)
    for level in range(8):
        shift = 28 - 4 * level
        ends = found + ((digits.to(tl.int64) + 1) << shift) - 1
        ends = tl.minimum(ends, _EVERYTHING).to(tl.int32)
        measure = tl.zeros((16,), dtype=tl.float64)
        for start in range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(base + at, mask=at < vocab, other=-float("inf"))
            below, size = depth_below(x, top, temperature)
            weight = tl.exp(below) if MASS else tl.where(at < vocab, 1.0, 0.0)
            weight = tl.where(size <= cut, weight, 0.0)
            inside = tl.where(size[:, None] <= ends[None, :], weight[:, None], 0.0)
            measure += tl.sum(inside, axis=0).to(tl.float64)
        digit = tl.min(tl.where(measure >= goal, digits, 15), axis=0)
        found = tl.minimum(found + (digit.to(tl.int64) << shift), _EVERYTHING)
    return found.to(tl.int32)


@triton.jit
def _mass_within(base, vocab, top, temperature, cut, BLOCK: tl.constexpr):
    """Return the sum of exponentials, float64, down to the depth `cut`."""
    total = tl.zeros((), dtype=tl.float64)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(base + at, mask=at < vocab, other=-float("inf"))
        below, size = depth_below(x, top, temperature)
        total += tl.sum(tl.where(size <= cut, tl.exp(below), 0.0), axis=0).to(tl.float64)
    return total


@triton.jit
def settle_kernel(
    draft, target, tops, sums, firsts, top_out, cut_out, total_out, first_out,
    draft_rows, vocab, chunks, temperature, top_k, top_p,
    GREEDY: tl.constexpr, HAS_K: tl.constexpr, HAS_P: tl.constexpr,
    CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put the blocks of a row together, and find where its filters cut."""
    row = tl.program_id(0)
    place = tl.arange(0, CHUNKS)
    parts = tl.load(tops + row * chunks + place, mask=place < chunks, other=-float("inf"))
    where = tl.load(firsts + row * chunks + place, mask=place < chunks, other=_EVERYTHING)
    top = tl.max(parts, axis=0)
    tl.store(top_out + row, top)
    tl.store(first_out + row, tl.min(tl.where(parts == top, where, _EVERYTHING), axis=0))
    if not GREEDY:
        cut = tl.full((), _EVERYTHING, dtype=tl.int32)
        base = row_of(draft, target, row, draft_rows, vocab)
        if HAS_K:
            cut = _least_depth(base, vocab, top, temperature, cut, top_k, False, BLOCK)
        if HAS_K or HAS_P:
            total = _mass_within(base, vocab, top, temperature, cut, BLOCK)
        else:
            mass = tl.load(sums + row * chunks + place, mask=place < chunks, other=0.0)
            below, _ = depth_below(parts, top, temperature)
            total = tl.sum(mass * tl.exp(below).to(tl.float64), axis=0)
        if HAS_P:
            cut = _least_depth(base, vocab, top, temperature, cut, top_p * total, True, BLOCK)
            total = _mass_within(base, vocab, top, temperature, cut, BLOCK)
        tl.store(cut_out + row, cut)
        tl.store(total_out + row, total)
