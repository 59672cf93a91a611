"""Verification emits the target's law, exactly: all drafts, all regions of the uniforms, fractions."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import pytest
import torch

from pkg.algos.speculative_decoding import (
    chain_law,
    total_variation,
    tree_law,
    verify_chain,
    verify_tree,
)
from tests.algos.speculative_oracle import (
    constant,
    model,
    one_uniform_for_all,
    positive,
    resamples_from_p,
    scored_by,
)

METHODS = ("token", "block")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gamma", [0, 1, 2, 3])
@pytest.mark.parametrize("vocab", [1, 2, 3])
def test_a_chain_is_lossless(vocab, gamma, method):
    seeds = range(1 if vocab**gamma == 27 else 6)
    for seed in seeds:
        target, draft = model(vocab, f"p{seed}"), model(vocab, f"q{seed}")
        law = chain_law(partial(verify_chain, method=method), target, draft, gamma)
        assert sum(law.values()) == 1
        assert total_variation(law, target) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gamma", [1, 2])
def test_a_chain_over_four_tokens(gamma, method):
    target, draft = model(4, "p"), model(4, "q")
    law = chain_law(partial(verify_chain, method=method), target, draft, gamma)
    assert total_variation(law, target) == 0


@pytest.mark.parametrize("method", METHODS)
def test_equal_models_disjoint_models_and_one_hot_ones(method):
    verify = partial(verify_chain, method=method)
    same = model(3, "both")
    disjoint = constant(1, 1, 0), constant(0, 0, 1)
    greedy = constant(0, 1, 0)
    for target, draft in (
        (same, same), disjoint, (greedy, same), (same, greedy), (greedy, greedy),
        (greedy, constant(1, 0, 0)),
    ):  # fmt: skip
        assert total_variation(chain_law(verify, target, draft, 2), target) == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_draft_that_was_not_drawn_counts_as_one_hot(method):
    """draft_probs=None is the one-hot law of the draft."""

    def verify(tokens, q, p, *, uniforms):
        found = verify_chain(tokens, None, p, uniforms=uniforms, method=method)
        same = verify_chain(tokens, q, p, uniforms=uniforms, method=method)
        assert torch.equal(found.tokens, same.tokens)
        return found

    for seed in range(4):
        target = model(3, f"p{seed}")
        greedy = constant(*[int(seed % 3 == token) for token in range(3)])
        assert total_variation(chain_law(verify, target, greedy, 3 - seed % 2), target) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [0, 1, 2])
def test_rows_may_be_shorter_than_the_batch(length, method):
    """A row of length 0, 1 or 2 in a batch of width 3, with rubbish past its end."""

    def verify(tokens, q, p, *, uniforms):
        rows = len(tokens)
        wide = [torch.full((rows, 3), -1), torch.full((rows, 3, 3), torch.nan).double(),
                torch.full((rows, 4, 3), torch.nan).double()]  # fmt: skip
        wide[0][:, :length], wide[1][:, :length], wide[2][:, : length + 1] = tokens, q, p
        more = torch.cat((uniforms[:, :-1], torch.zeros(rows, 3 - length), uniforms[:, -1:]), -1)
        lengths = torch.full((rows,), length)
        found = verify_chain(*wide, uniforms=more, lengths=lengths, method=method)
        assert bool((found.tokens[:, length + 1 :] == -1).all())
        return type(found)(found.tokens[:, : length + 1].contiguous(), found.num_accepted)

    target, draft = model(3, "p3"), model(3, "q3")
    assert total_variation(chain_law(verify, target, draft, length), target) == 0


TREES = (
    [],
    [-1],
    [-1, 0],
    [-1, -1],
    [-1, -1, -1],
    [-1, -1, 0],
    [-1, -1, 1],
    [-1, 0, -1],
    [-1, 0, 0],
)


@pytest.mark.parametrize("parents", TREES)
def test_a_tree_is_lossless(parents):
    for seed in range(2):
        target, draft = model(3, f"p{seed}"), positive(3, f"q{seed}")
        law = tree_law(verify_tree, target, draft, parents)
        assert sum(law.values()) == 1
        assert total_variation(law, target) == 0


def test_a_tree_of_two_levels_with_two_branches():
    target, draft = positive(2, "p"), positive(2, "q")
    law = tree_law(verify_tree, target, draft, [-1, -1, 0, 0, 1])
    assert total_variation(law, target) == 0


def test_a_tree_without_branches_is_a_chain():
    target, draft = model(3, "p7"), positive(3, "q7")
    assert tree_law(verify_tree, target, draft, [-1, 0]) == chain_law(
        verify_chain, target, draft, 2
    )


@pytest.mark.parametrize("parents", [[-1, -1], [-1, -1, 0]])
def test_children_that_were_not_drawn(parents):
    """The same children whatever happens, as top-k candidates are: q is one-hot for each."""
    children = [0, 2, 1][: len(parents)]

    def verify(tokens, nodes, q, p, *, uniforms):
        return verify_tree(tokens, nodes, None, p, uniforms=uniforms)

    target = positive(3, "p9")

    # One child after another takes all of what is left: the draws of this model are those children.
    law = {}
    fixed = torch.tensor([children])
    from itertools import product

    from pkg.algos.speculative_decoding import exact

    prefixes = [()] + [exact._prefix(children, parents, n) for n in range(len(parents))]
    p = [target(prefix) for prefix in prefixes]
    tests, ends = [set() for _ in children], set()
    for place in range(-1, len(children)):
        left = list(p[place + 1])
        ends |= exact._quantiles(left)
        for node in [n for n, parent in enumerate(parents) if parent == place]:
            tests[node].add(left[children[node]])
            left[children[node]] = Fraction(0)
            left = [part / sum(left) for part in left]
            ends |= exact._quantiles(left)
    boxes = [(tuple(children), p, p, box, Fraction(1)) for box in exact._boxes([*tests, ends])]
    nodes = torch.tensor(parents)

    def call(tokens, q, p, *, uniforms):
        assert torch.equal(tokens, fixed.expand_as(tokens))
        return verify(tokens, nodes, q, p, uniforms=uniforms)

    depth = 1 + max(len(prefix) for prefix in prefixes)
    law = exact._extend(exact._run(call, boxes, depth), target, depth)
    assert len(list(product(range(3), repeat=depth))) >= len(law)
    assert total_variation(law, target) == 0


# ------------------------------------------------------------------ the oracle finds mistakes


def test_resampling_from_the_target_is_biased_by_the_known_amount():
    """REFERENCES: 0.15 on p = [.5, .3, .2], q = [.2, .3, .5]."""
    target, draft = constant(5, 3, 2), constant(2, 3, 5)
    law = chain_law(resamples_from_p, target, draft, 1)
    assert total_variation(law, target) == Fraction(3, 20)


def test_an_argmax_draft_scored_by_softmax_gives_the_known_law():
    target, softmax, argmax = constant(5, 3, 2), constant(2, 3, 5), constant(0, 0, 1)
    law = chain_law(scored_by(softmax(())), target, argmax, 1, also=[Fraction(2, 5)])
    first = [sum(chance for text, chance in law.items() if text[0] == token) for token in range(3)]
    assert first == [Fraction(6, 10), 0, Fraction(4, 10)]
    assert total_variation(law, target) == Fraction(3, 10)


def test_one_uniform_for_everything_is_refused():
    """Its output changes inside the boxes of the rule: the oracle says so instead of guessing."""
    with pytest.raises(ValueError, match="not constant"):
        chain_law(one_uniform_for_all, model(3, "p"), model(3, "q"), 2)


def test_siblings_drawn_with_replacement_need_their_own_rule():
    """The tree's rule forgets a token that was refused; a draw with replacement does not."""

    def verify(tokens, nodes, q, p, *, uniforms):
        return verify_tree(tokens, nodes, q, p, uniforms=uniforms, validate=False)

    target, draft = constant(3, 4, 1), constant(1, 1, 6)
    right = tree_law(verify, target, draft, [-1, -1])
    assert total_variation(right, target) == 0
    import pkg.algos.speculative_decoding.exact as exact

    independent = [((a, b), draft(())[a] * draft(())[b]) for a in range(3) for b in range(3)]
    boxes = []
    for tokens, chance in independent:
        p, q = [target(())] * 3, [draft(())] * 3
        tests, ends = exact._tree_ends(p, q, tokens, [-1, -1])
        boxes += [(tokens, p, q, box, chance) for box in exact._boxes([*tests, ends])]
    nodes = torch.tensor([-1, -1])
    law = exact._run(lambda x, q, p, uniforms: verify(x, nodes, q, p, uniforms=uniforms), boxes, 2)
    assert total_variation(exact._extend(law, target, 2), target) > 0


def test_total_variation_wants_a_whole_law():
    with pytest.raises(ValueError, match="sum to 1"):
        total_variation({(0,): Fraction(1, 2)}, constant(1, 1))


# ------------------------------------------------------------------ how many are accepted


def accepted(method, target, draft, gamma):
    """The expected number of accepted tokens, exactly, from the same boxes."""
    import pkg.algos.speculative_decoding.exact as exact

    total = Fraction(0)

    def verify(tokens, q, p, *, uniforms):
        found = verify_chain(tokens, q, p, uniforms=uniforms, method=method)
        verify.counts = found.num_accepted
        return found

    boxes = []
    original = exact._run

    def run(call, given, longest):
        boxes.extend(given)
        return original(call, given, longest)

    exact._run, keep = run, exact._run
    try:
        chain_law(verify, target, draft, gamma)
    finally:
        exact._run = keep
    corners = 2 ** (gamma + 1)
    for (*_, box, chance), count in zip(boxes, verify.counts[::corners].tolist(), strict=True):
        volume = Fraction(1)
        for low, high in box:
            volume *= high - low
        total += chance * volume * count
    return total


@pytest.mark.parametrize("seed", range(6))
def test_a_block_accepts_at_least_as_many_tokens(seed):
    target, draft = model(3, f"p{seed}"), model(3, f"q{seed}")
    token, block = (accepted(method, target, draft, 2) for method in METHODS)
    assert block >= token
    # By hand: the expected products of min(1, p/q), and of the running weights.
    by_token = by_block = Fraction(0)
    for first, a in enumerate(draft(())):
        for second, b in enumerate(draft((first,))):
            if not a * b:
                continue
            r = target(())[first] / a, target((first,))[second] / b
            one = min(Fraction(1), r[0])
            by_token += a * b * (one + one * min(Fraction(1), r[1]))
            by_block += a * b * (one + min(Fraction(1), one * r[1]))
    assert (token, block) == (by_token, by_block)


def test_a_block_accepts_more_where_a_surplus_makes_up_for_a_lack():
    """Two tokens, drafts of two: after an unlikely first token a likely second one pays for it."""
    target, draft = constant(1, 2), constant(2, 1)
    token, block = (accepted(method, target, draft, 2) for method in METHODS)
    assert (token, block) == (Fraction(10, 9), Fraction(11, 9))  # Sun et al. (2024), figure 1
