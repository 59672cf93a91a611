"""Verify a chain of draft tokens straight from logits: test, weigh what is left, pick.

Three kernels that follow `laws.py`, all launched without asking the device for anything.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.speculative_decoding.laws import probability

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"

_FAR = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _then(factor_a, bound_a, factor_b, bound_b):
    """Compose x → min(bound, factor · x), first a and then b."""
    return factor_a * factor_b, tl.minimum(bound_b, factor_b * bound_a)


@triton.jit
def _law(base, at, mask, row, tops, cuts, totals, firsts, temperature, GREEDY: tl.constexpr):
    """Return the probabilities of tokens `at` of a row whose description is in the tables."""
    x = tl.load(base + at, mask=mask, other=-float("inf"))
    law = probability(
        x, at, tl.load(tops + row), tl.load(cuts + row), tl.load(totals + row),
        tl.load(firsts + row), temperature, GREEDY,
    )  # fmt: skip
    return tl.where(mask, law, 0.0)


@triton.jit
def _residual(
    draft, target, row, step, gamma, length, weight, token, at, mask, vocab,
    tops, cuts, totals, firsts, temperature, draft_rows,
    GREEDY: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    """Return max(0, weight · p - q) for tokens `at` after `step` draft tokens; p at the end."""
    place = row * (gamma + 1) + step
    p = _law(
        target + place.to(tl.int64) * vocab, at, mask, draft_rows + place, tops, cuts, totals, firsts,
        temperature, GREEDY,
    )  # fmt: skip
    if step < length:
        if DRAWN:
            other = row * gamma + step
            q = _law(
                draft + other.to(tl.int64) * vocab, at, mask, other, tops, cuts, totals, firsts,
                temperature, GREEDY,
            )  # fmt: skip
        else:
            q = tl.where(at == token, 1.0, 0.0).to(tl.float64)
        p = tl.maximum(weight * p - q, 0.0)
    return p


@triton.jit
def test_kernel(
    tokens, draft, target, uniforms, lengths, stops, weights, tops, cuts, totals, firsts,
    gamma, vocab, draft_rows, temperature,
    GREEDY: tl.constexpr, DRAWN: tl.constexpr, WHOLE: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Find where a row's draft is cut off; for a block, only the running weights."""
    row = tl.program_id(0)
    length = tl.load(lengths + row).to(tl.int32)
    step = tl.arange(0, STEPS)
    valid = step < length
    token = tl.load(tokens + row * gamma + step, mask=valid, other=0)
    place, other = row * (gamma + 1) + step, row * gamma + step
    rows = draft_rows + place
    x = tl.load(target + place.to(tl.int64) * vocab + token, mask=valid, other=0.0)
    p = probability(
        x, token, tl.load(tops + rows, mask=valid, other=0.0),
        tl.load(cuts + rows, mask=valid, other=0), tl.load(totals + rows, mask=valid, other=1.0),
        tl.load(firsts + rows, mask=valid, other=0), temperature, GREEDY,
    )  # fmt: skip
    q = p * 0 + 1.0
    if DRAWN:
        x = tl.load(draft + other.to(tl.int64) * vocab + token, mask=valid, other=0.0)
        q = probability(
            x, token, tl.load(tops + other, mask=valid, other=0.0),
            tl.load(cuts + other, mask=valid, other=0), tl.load(totals + other, mask=valid, other=1.0),
            tl.load(firsts + other, mask=valid, other=0), temperature, GREEDY,
        )  # fmt: skip
    if WHOLE:
        ratio = tl.where(valid, p / tl.where(valid, q, 1.0), 0.0)
        _, weight = tl.associative_scan((ratio, tl.minimum(ratio, 1.0)), 0, _then)
        tl.store(weights + row * (gamma + 1), tl.full((), 1.0, tl.float64))
        tl.store(weights + row * (gamma + 1) + 1 + step, weight, mask=valid)
    else:
        u = tl.load(uniforms + row * (gamma + 1) + step, mask=valid, other=1.0)
        failed = (u * q >= p) & valid
        stop = tl.min(tl.where(failed, step, _FAR), axis=0)
        tl.store(stops + row, tl.minimum(stop, length))


@triton.jit
def mass_kernel(
    tokens, draft, target, lengths, stops, weights, masses, tops, cuts, totals, firsts,
    gamma, vocab, chunks, draft_rows, temperature,
    GREEDY: tl.constexpr, DRAWN: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum what is left of one block of the vocabulary: after the stop, or after every step."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + row).to(tl.int32)
    if WHOLE:
        step = tl.program_id(2)
        slot = row * (gamma + 1) + step
    else:
        step = tl.load(stops + row)
        slot = row
    if step <= length:
        weight, token = tl.full((), 1.0, tl.float64), tl.full((), 0, tl.int64)
        if WHOLE:
            weight = tl.load(weights + slot)
        if step < length:
            token = tl.load(tokens + row * gamma + step)
        at = chunk * BLOCK + tl.arange(0, BLOCK)
        rest = _residual(
            draft, target, row, step, gamma, length, weight, token, at, at < vocab, vocab,
            tops, cuts, totals, firsts, temperature, draft_rows, GREEDY, DRAWN,
        )  # fmt: skip
        tl.store(masses + slot.to(tl.int64) * chunks + chunk, tl.sum(rest, axis=0))


@triton.jit
def _block_stop(uniforms, weights, masses, row, gamma, length, chunks, CHUNKS: tl.constexpr):
    """Return after how many tokens a block is cut off: the last test that passes."""
    place = tl.arange(0, CHUNKS)
    stop = tl.full((), 0, tl.int32)
    for step in range(1, length + 1):
        slot = row * (gamma + 1) + step
        weight = tl.load(weights + slot)
        u = tl.load(uniforms + slot - 1)
        if step == length:
            passed = u < weight
        else:
            part = tl.load(
                masses + slot.to(tl.int64) * chunks + place, mask=place < chunks, other=0.0
            )
            excess = tl.sum(part, axis=0)
            even = (excess <= 0.0) & (weight >= 1.0)
            passed = (u * (excess + 1.0 - weight) < excess) | even
        stop = tl.where(passed, step, stop)
    return stop


@triton.jit
def pick_kernel(
    tokens, draft, target, uniforms, lengths, stops, weights, masses, out, accepted,
    tops, cuts, totals, firsts, gamma, vocab, chunks, draft_rows, temperature,
    GREEDY: tl.constexpr, DRAWN: tl.constexpr, WHOLE: tl.constexpr,
    STEPS: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Draw the last token in the block of the vocabulary that holds it, and write the row."""
    row = tl.program_id(0)
    length = tl.load(lengths + row).to(tl.int32)
    weight, token = tl.full((), 1.0, tl.float64), tl.full((), 0, tl.int64)
    if WHOLE:
        stop = _block_stop(uniforms, weights, masses, row, gamma, length, chunks, CHUNKS)
        slot = row * (gamma + 1) + stop
        weight = tl.load(weights + slot)
    else:
        stop = tl.load(stops + row)
        slot = row
    if stop < length:
        token = tl.load(tokens + row * gamma + stop)
    place = tl.arange(0, CHUNKS)
    mass = tl.load(masses + slot.to(tl.int64) * chunks + place, mask=place < chunks, other=0.0)
    total = tl.sum(mass, axis=0)
    if total <= 0.0:  # the refusal was rounding alone: draw from the target's law
        length = stop
        for chunk in range(chunks):
            at = chunk * BLOCK + tl.arange(0, BLOCK)
            law = _residual(
                draft, target, row, stop, gamma, length, weight, token, at, at < vocab, vocab,
                tops, cuts, totals, firsts, temperature, draft_rows, GREEDY, DRAWN,
            )  # fmt: skip
            mass = tl.where(place == chunk, tl.sum(law, axis=0), mass)
        total = tl.sum(mass, axis=0)
    goal = tl.load(uniforms + row * (gamma + 1) + gamma) * total
    until = tl.cumsum(mass, axis=0)
    filled = tl.max(tl.where(mass > 0.0, place, 0), axis=0)
    chunk = tl.minimum(tl.min(tl.where(until > goal, place, CHUNKS), axis=0), filled)
    before = tl.sum(tl.where(place == chunk - 1, until, 0.0), axis=0)
    at = chunk * BLOCK + tl.arange(0, BLOCK)
    law = _residual(
        draft, target, row, stop, gamma, length, weight, token, at, at < vocab, vocab,
        tops, cuts, totals, firsts, temperature, draft_rows, GREEDY, DRAWN,
    )  # fmt: skip
    beyond = before + tl.cumsum(law, axis=0) > goal
    last = tl.max(tl.where(law > 0.0, at, 0), axis=0)
    drawn = tl.minimum(tl.min(tl.where(beyond, at, _FAR), axis=0), last)
    step = tl.arange(0, STEPS)
    kept = tl.load(tokens + row * gamma + step, mask=step < stop, other=-1)
    row_out = tl.where(step == stop, drawn.to(tl.int64), tl.where(step < stop, kept, -1))
    tl.store(out + row * (gamma + 1) + step, row_out, mask=step <= gamma)
    tl.store(accepted + row, stop.to(tl.int64))
