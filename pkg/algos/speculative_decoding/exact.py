"""The law of what a verification emits, exactly: every draft, every region of the uniforms.

A verification is a function of the draft tokens and of uniform numbers, and constant on boxes of
those. So its output law is a finite sum of rational numbers, and "lossless" is a statement that can
be decided, not estimated. The functions here know the rule only as a set of places where the output
*may* change; the implementation is called at every corner of every box between them, and must give
one answer there.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from math import prod
from typing import Any

import torch

#: A language model: from the tokens so far to the probabilities of the next one, as fractions.
Model = Callable[[tuple[int, ...]], Sequence[Fraction]]
Law = dict[tuple[int, ...], Fraction]
Verify = Callable[..., Any]
_STEP = Fraction(1, 2**40)  # how near the corners are to the ends of a box


def chain_law(
    verify: Verify, target: Model, draft: Model, gamma: int, *, also: Iterable[Fraction] = ()
) -> Law:
    """Law of the first gamma + 1 tokens, when drafts of length gamma are verified by `verify`.

    Parameters
    ----------
    verify
        Called as `verify_chain`: `verify(draft_tokens, draft_probs, target_probs, uniforms=u)`.
    target, draft
        The two models, as functions from a prefix to fractions that sum to 1. Fractions with a power
        of two below are given to `verify` without rounding.
    gamma
        Draft tokens.
    also
        Further numbers at which the output may change, for a `verify` with another rule.

    Returns
    -------
    dict
        From each sequence of gamma + 1 tokens to its probability; after what `verify` emits, the
        text goes on as the target has it.

    Raises
    ------
    ValueError
        If `verify` is not constant on a box between the places where such a rule may change.

    Notes
    -----
    Ledger: `speculative_decoding:output_law`.

    Examples
    --------
    >>> from pkg.algos.speculative_decoding.chain import verify_chain
    >>> p, q = [Fraction(k, 4) for k in (2, 1, 1)], [Fraction(k, 4) for k in (1, 1, 2)]
    >>> law = chain_law(verify_chain, lambda prefix: p, lambda prefix: q, gamma=1)
    >>> law[0, 1] == p[0] * p[1]
    True
    """
    vocab, extra = len(target(())), set(also)
    boxes = []
    for tokens in itertools.product(range(vocab), repeat=gamma):
        prefixes = [tokens[:i] for i in range(gamma + 1)]
        p, q = [target(prefix) for prefix in prefixes], [draft(prefix) for prefix in prefixes[:-1]]
        chance = prod((row[token] for row, token in zip(q, tokens, strict=True)), start=Fraction(1))
        if chance:
            tests = [{*_ratios(p[i][x], q[i][x]), *_block_ends(p, q, tokens, i), *extra}
                     for i, x in enumerate(tokens)]  # fmt: skip
            ends = _draw_ends(p, q, tokens) | extra
            boxes += [(tokens, p, q, box, chance) for box in _boxes([*tests, ends])]
    return _extend(_run(verify, boxes, gamma + 1), target, gamma + 1)


def tree_law(verify: Verify, target: Model, draft: Model, parents: Sequence[int]) -> Law:
    """Law of the first depth + 1 tokens, when trees of drafts are verified by `verify`.

    Parameters
    ----------
    verify
        Called as `verify_tree`: `verify(draft_tokens, parents, draft_probs, target_probs,
        uniforms=u)`.
    target, draft
        As for `chain_law`; siblings are drawn from `draft` without replacement.
    parents
        The parent of each node, -1 for the root.

    Returns
    -------
    dict
        From each sequence of depth + 1 tokens to its probability.

    Raises
    ------
    ValueError
        As `chain_law`.

    Notes
    -----
    Ledger: `speculative_decoding:tree_output_law`.

    Examples
    --------
    >>> from pkg.algos.speculative_decoding.tree import verify_tree
    >>> p, q = [Fraction(k, 4) for k in (2, 1, 1)], [Fraction(k, 4) for k in (1, 1, 2)]
    >>> law = tree_law(verify_tree, lambda prefix: p, lambda prefix: q, parents=[-1, -1])
    >>> law[2, 0] == p[2] * p[0]
    True
    """
    depths: list[int] = []
    for parent in parents:
        depths.append(1 + (depths[parent] if parent >= 0 else 0))
    boxes = []
    for tokens, chance in _drafted_trees(draft, parents):
        prefixes = [()] + [_prefix(tokens, parents, node) for node in range(len(parents))]
        p, q = [target(prefix) for prefix in prefixes], [draft(prefix) for prefix in prefixes]
        tests, ends = _tree_ends(p, q, tokens, parents)
        boxes += [(tokens, p, q, box, chance) for box in _boxes([*tests, ends])]
    nodes = torch.tensor(list(parents), dtype=torch.int64)

    def call(tokens: Any, q: Any, p: Any, *, uniforms: Any) -> Any:
        return verify(tokens, nodes, q, p, uniforms=uniforms)

    longest = max(depths, default=0) + 1
    return _extend(_run(call, boxes, longest), target, longest)


def total_variation(law: Mapping[tuple[int, ...], Fraction], target: Model) -> Fraction:
    """Distance of an exact law of sequences from that of a model: half the sum of differences.

    Parameters
    ----------
    law
        As `chain_law` and `tree_law` return it.
    target
        The model.

    Returns
    -------
    Fraction
        0 if and only if the verification is lossless.

    Raises
    ------
    ValueError
        If the law does not sum to 1.

    Notes
    -----
    Ledger: `speculative_decoding:total_variation`.

    Examples
    --------
    >>> half = Fraction(1, 2)
    >>> total_variation({(0,): Fraction(1)}, lambda prefix: (half, half))
    Fraction(1, 2)
    """
    if sum(law.values()) != 1:
        raise ValueError(f"law must sum to 1, got {sum(law.values())}")
    length = len(next(iter(law)))
    differences = (
        abs(law.get(text, Fraction(0)) - _probability(target, text))
        for text in itertools.product(range(len(target(()))), repeat=length)
    )
    return sum(differences, Fraction(0)) / 2


# ------------------------------------------------------------------ where the output may change


def _ratios(p: Fraction, q: Fraction) -> set[Fraction]:
    return {p, p / q} if q else {p}


def _positive(values: Sequence[Fraction]) -> list[Fraction]:
    return [max(value, Fraction(0)) for value in values]


def _quantiles(weights: Sequence[Fraction]) -> set[Fraction]:
    total = sum(weights)
    return {part / total for part in itertools.accumulate(weights)} if total else set()


def _weights(p: Any, q: Any, tokens: Sequence[int]) -> list[Fraction]:
    """Return the weights of block verification: running products of ratios, kept at most 1."""
    weights = [Fraction(1)]
    for i, token in enumerate(tokens):
        weights.append(min(Fraction(1), weights[-1] * p[i][token] / q[i][token]))
    return weights


def _block_ends(p: Any, q: Any, tokens: Sequence[int], i: int) -> set[Fraction]:
    """Return where the test of token i may change if drafts are verified as a block."""
    weight = _weights(p, q, tokens)[i + 1]
    if i + 1 == len(tokens):
        return {weight}
    excess = sum(_positive([weight * a - b for a, b in zip(p[i + 1], q[i + 1], strict=True)]))
    below = excess + 1 - weight
    return {excess / below} if below else set()


def _draw_ends(p: Any, q: Any, tokens: Sequence[int]) -> set[Fraction]:
    """Return where the token drawn at the end may change, wherever the draft was cut off."""
    ends = _quantiles(p[-1])
    for i, weight in enumerate(_weights(p, q, tokens)[:-1]):
        for factor in {Fraction(1), weight}:
            rest = [factor * a - b for a, b in zip(p[i], q[i], strict=True)]
            ends |= _quantiles(_positive(rest))
        ends |= _quantiles(p[i])
    return ends


def _tree_ends(
    p: Any, q: Any, tokens: Sequence[int], parents: Sequence[int]
) -> tuple[list[set[Fraction]], set[Fraction]]:
    """Return where each node's test, and the last draw, may change."""
    tests: list[set[Fraction]] = [set() for _ in tokens]
    ends: set[Fraction] = set()
    for place in range(-1, len(tokens)):
        left, law = list(p[place + 1]), list(q[place + 1])
        for node in [n for n, parent in enumerate(parents) if parent == place]:
            token = tokens[node]
            tests[node] |= _ratios(left[token], law[token]) | _ratios(
                left[token], q[place + 1][token]
            )
            rest = _positive([a - b for a, b in zip(left, law, strict=True)])
            left = [part / sum(rest) for part in rest] if sum(rest) else left
            law[token] = Fraction(0)
            law = [part / sum(law) for part in law] if sum(law) else law
        ends |= _quantiles(left) | _quantiles(p[place + 1])
    return tests, ends


def _boxes(ends: Sequence[set[Fraction]]) -> Iterator[tuple[tuple[Fraction, Fraction], ...]]:
    """Yield all boxes whose sides are the intervals of [0, 1) between neighbouring ends."""
    sides = []
    for places in ends:
        inner = sorted({Fraction(0), Fraction(1), *(x for x in places if 0 < x < 1)})
        sides.append(list(itertools.pairwise(inner)))
    yield from itertools.product(*sides)


# ------------------------------------------------------------------ drafts, runs, texts


def _prefix(tokens: Sequence[int], parents: Sequence[int], node: int) -> tuple[int, ...]:
    before = _prefix(tokens, parents, parents[node]) if parents[node] >= 0 else ()
    return (*before, tokens[node])


def _drafted_trees(
    draft: Model, parents: Sequence[int], tokens: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], Fraction]]:
    """Yield every tree of tokens that can be drawn, siblings without replacement, and its chance."""
    node = len(tokens)
    if node == len(parents):
        yield tokens, Fraction(1)
        return
    parent = parents[node]
    law = draft(_prefix(tokens, parents, parent) if parent >= 0 else ())
    taken = {tokens[other] for other in range(node) if parents[other] == parent}
    left = sum((law[token] for token in range(len(law)) if token not in taken), Fraction(0))
    for token, chance in enumerate(law):
        if chance and token not in taken:
            for rest, following in _drafted_trees(draft, parents, (*tokens, token)):
                yield rest, chance / left * following


def _run(verify: Verify, boxes: list[Any], longest: int) -> Law:
    """Call `verify` at all corners of all boxes, in one batch; return the law of what it emits."""
    tokens, drafts, targets, points = [], [], [], []
    for chosen, p, q, box, _ in boxes:
        corners = [(low + _STEP, high - _STEP) for low, high in box]
        for corner in itertools.product(*corners):
            tokens.append(chosen)
            targets.append(p)
            drafts.append(q)
            points.append([float(u) for u in corner])
    found = verify(
        torch.tensor(tokens, dtype=torch.int64).reshape(len(points), -1),
        _numbers(drafts, len(targets[0][0])), _numbers(targets, len(targets[0][0])),
        uniforms=torch.tensor(points, dtype=torch.float64),
    )  # fmt: skip
    emitted = found.tokens.reshape(len(boxes), -1, longest)
    if not torch.equal(emitted, emitted[:, :1].expand_as(emitted)):
        number = int((emitted != emitted[:, :1]).flatten(1).any(1).nonzero()[0, 0])
        raise ValueError(
            f"verify is not constant where no rule of this kind changes: draft {boxes[number][0]}, "
            f"uniforms in {[(str(a), str(b)) for a, b in boxes[number][3]]}"
        )
    law: Law = defaultdict(Fraction)
    for (*_, box, chance), row in zip(boxes, emitted[:, 0].tolist(), strict=True):
        text = tuple(row[: row.index(-1)] if -1 in row else row)
        law[text] += chance * prod(high - low for low, high in box)
    return law


def _numbers(rows: list[Any], vocab: int) -> torch.Tensor:
    flat = [[[float(x) for x in row] for row in item] for item in rows]
    return torch.tensor(flat, dtype=torch.float64).reshape(len(rows), -1, vocab)


def _probability(model: Model, text: tuple[int, ...], after: int = 0) -> Fraction:
    """Return the chance of a text from its token number `after` on."""
    chances = (model(text[:i])[text[i]] for i in range(after, len(text)))
    return prod(chances, start=Fraction(1))


def _extend(emitted: Law, target: Model, length: int) -> Law:
    """Let every text go on as the target has it, up to one length."""
    vocab = len(target(()))
    law: Law = defaultdict(Fraction)
    for text, chance in emitted.items():
        for rest in itertools.product(range(vocab), repeat=length - len(text)):
            law[text + rest] += chance * _probability(target, text + rest, len(text))
    return dict(law)
