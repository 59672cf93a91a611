"""Small language models in exact fractions, the rule in plain Python, and published mistakes."""

from __future__ import annotations

import random
from fractions import Fraction

import torch

from pkg.algos.speculative_decoding import VerifyResult, verify_chain


def model(vocab, seed, *, eighths=8):
    """A random model of the next token given all before, in eighths, zeros among them."""
    known = {}

    def law(prefix):
        if prefix not in known:
            draw = random.Random(f"{seed} {prefix}")
            cuts = sorted(draw.randint(0, eighths) for _ in range(vocab - 1))
            ends = zip([0, *cuts], [*cuts, eighths], strict=True)
            known[prefix] = [Fraction(high - low, eighths) for low, high in ends]
        return known[prefix]

    return law


def constant(*parts):
    """The same law whatever came before."""
    total = sum(parts)
    return lambda prefix: [Fraction(part, total) for part in parts]


def positive(vocab, seed):
    """A random model that gives every token a chance, in sixteenths."""
    base = model(vocab, seed, eighths=16 - vocab)
    return lambda prefix: [(part * (16 - vocab) + 1) / Fraction(16) for part in base(prefix)]


def by_the_rule(tokens, q, p, uniforms):
    """One row, number by number: the emitted tokens and how many were accepted."""
    for i, token in enumerate(tokens):
        if not uniforms[i] * q[i][token] < p[i][token]:
            rest = [max(a - b, 0.0) for a, b in zip(p[i], q[i], strict=True)]
            return [*tokens[:i], first_beyond(rest, uniforms[-1])], i
    return [*tokens, first_beyond(p[len(tokens)], uniforms[-1])], len(tokens)


def first_beyond(weights, u):
    """The first index at which the running sum exceeds u times the whole."""
    total, running = sum(weights), 0.0
    for index, weight in enumerate(weights):
        running += weight
        if running > u * total:
            return index
    raise AssertionError("u must be below 1")


def random_laws(*shape, seed, peak=1.5):
    """Softmax of random numbers, (..., vocab), float64."""
    generator = torch.Generator().manual_seed(seed)
    return (peak * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-1)


# ------------------------------------------------------------------ published mistakes


def resamples_from_p(tokens, q, p, *, uniforms):
    """A rejected token is replaced by one from the target's law, not from the residual."""
    right = verify_chain(tokens, q, p, uniforms=uniforms)
    rows = torch.arange(len(tokens))
    law = p[rows, right.num_accepted]
    redrawn = [
        first_beyond(row, u) for row, u in zip(law.tolist(), uniforms[:, -1].tolist(), strict=True)
    ]
    out = right.tokens.scatter(-1, right.num_accepted[:, None], torch.tensor(redrawn)[:, None])
    return VerifyResult(out, right.num_accepted)


def scored_by(softmax):
    """The draft is the argmax of the draft model, but the test divides by its softmax."""

    def argmax_scored_by_softmax(tokens, q, p, *, uniforms):
        rows = torch.tensor([float(part) for part in softmax], dtype=torch.float64)
        return verify_chain(tokens, rows.expand_as(q), p, uniforms=uniforms)

    return argmax_scored_by_softmax


def one_uniform_for_all(tokens, q, p, *, uniforms):
    """One uniform number decides every test and the draw after them."""
    return verify_chain(tokens, q, p, uniforms=uniforms[:, :1].expand_as(uniforms))
