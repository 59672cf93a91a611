"""Verify a tree of draft tokens straight from logits: one program walks one row's tree.

It reads the vocabulary once for every candidate that is refused, and twice to draw. What the refusals
have left of p and q lies in two rows of scratch memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.speculative_decoding.laws import probability

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"

_FAR = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _law(
    logits, left, at, mask, place, row, scale, fresh, vocab, tops, cuts, totals, firsts, temperature,
    GREEDY: tl.constexpr,
):  # fmt: skip
    """Return what is left of a law for tokens `at`: of `place`'s logits, or of the scratch row."""
    if fresh:
        x = tl.load(logits + at, mask=mask, other=-float("inf"))
        law = probability(
            x, at, tl.load(tops + place), tl.load(cuts + place), tl.load(totals + place),
            tl.load(firsts + place), temperature, GREEDY,
        )  # fmt: skip
    else:
        law = tl.load(left + row.to(tl.int64) * vocab + at, mask=mask, other=0.0) * scale
    return tl.where(mask, law, 0.0)


@triton.jit
def _inverse(total):
    return tl.where(total > 0.0, 1.0 / tl.where(total > 0.0, total, 1.0), 0.0)


@triton.jit
def tree_kernel(
    tokens, parents, draft, target, uniforms, left_p, left_q, out, accepted, path,
    tops, cuts, totals, firsts, nodes, vocab, draft_rows, depth, temperature,
    GREEDY: tl.constexpr, DRAWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Try the nodes in order wherever the walk stands at their parent; then draw and write."""
    row = tl.program_id(0)
    here, count = tl.full((), -1, tl.int64), tl.full((), 0, tl.int32)
    fresh, scale_p, scale_q = True, tl.full((), 1.0, tl.float64), tl.full((), 1.0, tl.float64)
    for node in range(nodes):
        if tl.load(parents + row * nodes + node) == here:
            token = tl.load(tokens + row * nodes + node)
            place = row * (nodes + 1) + here + 1
            p_row, q_row = target + place * vocab, draft + place * vocab
            one = _law(
                p_row, left_p, token, True, draft_rows + place, row, scale_p, fresh, vocab,
                tops, cuts, totals, firsts, temperature, GREEDY,
            )  # fmt: skip
            chance = tl.full((), 1.0, tl.float64)
            if DRAWN:
                chance = _law(
                    q_row, left_q, token, True, place, row, scale_q, fresh, vocab,
                    tops, cuts, totals, firsts, temperature, GREEDY,
                )  # fmt: skip
            if tl.load(uniforms + row * (nodes + 1) + node) * chance < one:
                here = tl.zeros((), dtype=tl.int64) + node
                tl.store(path + row * depth + count, here)
                tl.store(out + row * (depth + 1) + count, token)
                count += 1
                fresh = True
            else:
                rest_p, rest_q = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
                for start in range(0, vocab, BLOCK):
                    at = start + tl.arange(0, BLOCK)
                    mask = at < vocab
                    p = _law(
                        p_row, left_p, at, mask, draft_rows + place, row, scale_p, fresh, vocab,
                        tops, cuts, totals, firsts, temperature, GREEDY,
                    )  # fmt: skip
                    offset = row.to(tl.int64) * vocab + at
                    if DRAWN:
                        q = _law(
                            q_row, left_q, at, mask, place, row, scale_q, fresh, vocab,
                            tops, cuts, totals, firsts, temperature, GREEDY,
                        )  # fmt: skip
                        p = tl.maximum(p - q, 0.0)
                        q = tl.where(at == token, 0.0, q)
                        rest_q += tl.sum(q, axis=0)
                        tl.store(left_q + offset, q, mask=mask)
                    else:
                        p = tl.where(at == token, 0.0, p)
                    rest_p += tl.sum(p, axis=0)
                    tl.store(left_p + offset, p, mask=mask)
                if rest_p <= 0.0:  # the refusal was rounding alone: the law is that of the node
                    for start in range(0, vocab, BLOCK):
                        at = start + tl.arange(0, BLOCK)
                        mask = at < vocab
                        p = _law(
                            p_row, left_p, at, mask, draft_rows + place, row, scale_p, True, vocab,
                            tops, cuts, totals, firsts, temperature, GREEDY,
                        )  # fmt: skip
                        rest_p += tl.sum(p, axis=0)
                        tl.store(left_p + row.to(tl.int64) * vocab + at, p, mask=mask)
                scale_p, scale_q = _inverse(rest_p), _inverse(rest_q)
                fresh = False
                tl.debug_barrier()  # other threads will read single tokens of what was written
    _draw(
        target, left_p, uniforms, out, row, here, scale_p, fresh, count, nodes, vocab, draft_rows,
        depth, tops, cuts, totals, firsts, temperature, GREEDY, BLOCK,
    )  # fmt: skip
    tl.store(accepted + row, count.to(tl.int64))


@triton.jit
def _draw(
    target, left_p, uniforms, out, row, here, scale, fresh, count, nodes, vocab, draft_rows,
    depth, tops, cuts, totals, firsts, temperature, GREEDY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Draw from what is left of the law where the walk ended, and write the token."""
    place = row * (nodes + 1) + here + 1
    logits = target + place * vocab
    total = tl.full((), 0.0, tl.float64)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        law = _law(
            logits, left_p, at, at < vocab, draft_rows + place, row, scale, fresh, vocab,
            tops, cuts, totals, firsts, temperature, GREEDY,
        )  # fmt: skip
        total += tl.sum(law, axis=0)
    goal = tl.load(uniforms + row * (nodes + 1) + nodes) * total
    before, drawn = tl.full((), 0.0, tl.float64), tl.full((), _FAR, tl.int32)
    last = tl.full((), 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        law = _law(
            logits, left_p, at, at < vocab, draft_rows + place, row, scale, fresh, vocab,
            tops, cuts, totals, firsts, temperature, GREEDY,
        )  # fmt: skip
        beyond = before + tl.cumsum(law, axis=0) > goal
        drawn = tl.minimum(drawn, tl.min(tl.where(beyond & (law > 0.0), at, _FAR), axis=0))
        last = tl.maximum(last, tl.max(tl.where(law > 0.0, at, 0), axis=0))
        before += tl.sum(law, axis=0)
    token = tl.where(drawn == _FAR, last, drawn)
    tl.store(out + row * (depth + 1) + count, token.to(tl.int64))
