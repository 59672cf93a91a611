"""Verification on random laws against the rule written number by number; its edges and its doors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pkg.algos.speculative_decoding import (
    acceptance_probability,
    log_residual,
    residual,
    verify_chain,
    verify_tree,
)
from pkg.algos.speculative_decoding.draws import BLOCK, draw
from tests.algos.speculative_oracle import by_the_rule, first_beyond, random_laws


def draw_tokens(q, seed):
    """One token of every row of q, (..., vocab) to (...)."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.multinomial(q.flatten(0, -2), 1, generator=generator)
    return flat.reshape(q.shape[:-1])


def uniforms(*shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------ one token


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_acceptance_is_one_minus_total_variation_and_residual_is_what_is_missing(vocab, seed):
    p, q = random_laws(3, vocab, seed=seed), random_laws(3, vocab, seed=seed + 1)
    alpha = acceptance_probability(p, q)
    torch.testing.assert_close(alpha, 1 - (p - q).abs().sum(-1) / 2, rtol=0, atol=1e-14)
    rest = residual(p, q)
    torch.testing.assert_close(rest.sum(-1), torch.ones(3).double(), rtol=0, atol=1e-14)
    rebuilt = torch.minimum(p, q) + (1 - alpha)[:, None] * rest
    # Where alpha is near 1 the residual is small over small: its error is that of 1 - alpha.
    torch.testing.assert_close(rebuilt, p, rtol=0, atol=1e-13)


def test_without_mass_the_residual_is_the_target():
    p = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    assert torch.equal(residual(p, p), p.double())
    assert torch.equal(
        residual(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])),
        torch.tensor([0.0, 1.0]).double(),
    )


@pytest.mark.parametrize("vocab", [1, 2, 7, 300])
def test_the_logarithm_of_the_residual(vocab):
    p, q = random_laws(5, vocab, seed=vocab), random_laws(5, vocab, seed=vocab + 1)
    p[0] = q[0]  # nothing is in excess: the row is the target's
    wanted = (p - q).clamp_min(0.0)
    wanted[wanted.sum(-1) <= 0] = p[wanted.sum(-1) <= 0]
    found = log_residual(p.log(), q.log())
    assert found.dtype == torch.float64
    # The difference of the exponentials, rounded once for each of the two logarithms.
    torch.testing.assert_close(found.exp(), wanted, rtol=0, atol=1e-14)
    narrow = log_residual(p.log().float(), q.log())
    assert narrow.dtype == log_residual(p.log(), q.log().float()).dtype == torch.float32
    torch.testing.assert_close(narrow[1:].exp().double(), wanted[1:], rtol=0, atol=1e-5)


def test_the_logarithm_of_the_residual_keeps_what_is_tiny_and_impossible_tokens():
    """log(1 - 2^-60) would be 0 in float64; with p = 1 up to 2^-60 nothing else is left to see."""
    small = torch.tensor([2.0**-60, 2.0**-70], dtype=torch.float64)
    log_p = torch.stack((torch.log1p(-small), small.log()), -1)
    log_q = torch.stack(((small / 4).log(), torch.log1p(-small / 4)), -1)
    found = log_residual(log_p, log_q)
    torch.testing.assert_close(found[:, 0], -small * 1.25, rtol=1e-15, atol=0)
    assert bool((found[:, 1] == -torch.inf).all())
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    q = torch.tensor([0.0, 0.5, 0.0, 0.5])
    assert torch.equal(
        log_residual(p.log(), q.log()),
        torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]).log(),
    )


# ------------------------------------------------------------------ the draw


@pytest.mark.parametrize("vocab", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1000])
def test_a_draw_is_the_first_token_beyond(vocab):
    """Weights are counts, so that every sum is exact and the definition decides ties too."""
    generator = torch.Generator().manual_seed(vocab)
    weights = torch.randint(0, 3, (50, vocab), generator=generator).double()
    weights[:, -1] += 1
    u = torch.randint(0, 64, (50,), generator=generator).double() / 64
    u[0] = 0
    expected = [first_beyond(row, x) for row, x in zip(weights.tolist(), u.tolist(), strict=True)]
    assert draw(weights, u).tolist() == expected
    assert draw(weights.float(), u).tolist() == expected


def test_a_token_without_weight_is_never_drawn():
    weights = torch.zeros(4, 600)
    weights[:, 300] = 1e-30
    weights[2, 599] = 1.0
    u = torch.tensor([0.0, 1 - 2.0**-53, 0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert draw(weights, u).tolist() == [300, 300, 300, 300]
    assert draw(weights[2:3], torch.tensor([0.5]).double()).tolist() == [599]


def test_the_last_block_of_a_row_is_reached_in_spite_of_rounding():
    """The largest uniform, and a sum whose parts do not add up to the total in every order."""
    weights = random_laws(200, 777, seed=0).float()
    found = draw(weights, torch.full((200,), 1 - 2.0**-53, dtype=torch.float64))
    assert bool((found < 777).all())
    assert bool((weights.gather(-1, found[:, None]) > 0).all())


# ------------------------------------------------------------------ chains


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("gamma", "vocab"), [(0, 5), (1, 5), (4, 300), (7, 1000)])
def test_a_chain_follows_the_rule(gamma, vocab, dtype):
    batch = 24
    p = random_laws(batch, gamma + 1, vocab, seed=1).to(dtype)
    q = (0.7 * p[:, :-1] + 0.3 * random_laws(batch, gamma, vocab, seed=2)).to(dtype)
    tokens = draw_tokens(q.double(), 3)
    u = uniforms(batch, gamma + 1, seed=4)
    found = verify_chain(tokens, q, p, uniforms=u)
    assert found.path is None
    for row in range(batch):
        emitted, count = by_the_rule(
            tokens[row].tolist(),
            q[row].double().tolist(),
            p[row].double().tolist(),
            u[row].tolist(),
        )
        assert int(found.num_accepted[row]) == count
        assert found.tokens[row].tolist() == emitted + [-1] * (gamma - count)
    assert gamma == 0 or 0 < int(found.num_accepted.sum()) < batch * gamma


@pytest.mark.parametrize("method", ["token", "block"])
def test_layout_and_integer_types_do_not_matter(method):
    p, q = random_laws(6, 8, 50, seed=1), random_laws(6, 8, 50, seed=2)
    tokens, u = draw_tokens(q[:, :3], 3), uniforms(6, 4, seed=4)
    strided = verify_chain(tokens, q[:, :3], p[:, :4], uniforms=u, method=method)
    plain = verify_chain(
        tokens.int(), q[:, :3].contiguous(), p[:, :4].contiguous(), uniforms=u, method=method
    )
    assert torch.equal(strided.tokens, plain.tokens)
    assert strided.tokens.dtype == plain.tokens.dtype == torch.int64


@pytest.mark.parametrize("method", ["token", "block"])
def test_a_batch_is_its_rows(method):
    p, q = random_laws(9, 4, 30, seed=5), random_laws(9, 3, 30, seed=6)
    tokens, u = draw_tokens(q, 7), uniforms(9, 4, seed=8)
    lengths = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 3])
    whole = verify_chain(tokens, q, p, uniforms=u, lengths=lengths, method=method)
    for row, length in enumerate(lengths.tolist()):
        short = torch.cat((u[row : row + 1, :length], u[row : row + 1, -1:]), -1)
        alone = verify_chain(
            tokens[row : row + 1, :length], q[row : row + 1, :length],
            p[row : row + 1, : length + 1], uniforms=short, method=method,
        )  # fmt: skip
        assert torch.equal(whole.tokens[row, : length + 1], alone.tokens[0])
        assert bool((whole.tokens[row, length + 1 :] == -1).all())
        assert int(whole.num_accepted[row]) == int(alone.num_accepted)


@pytest.mark.parametrize("method", ["token", "block"])
def test_equal_laws_accept_everything_and_impossible_tokens_nothing(method):
    p = random_laws(40, 4, 20, seed=9)
    tokens = draw_tokens(p[:, :3], 10)
    top = torch.full((40, 4), 1 - 2.0**-53, dtype=torch.float64)
    assert bool(
        (verify_chain(tokens, p[:, :3], p, uniforms=top, method=method).num_accepted == 3).all()
    )
    # The target cannot say what was drafted; u = 0 must not let it through.
    target = p.clone().scatter(-1, torch.cat((tokens, tokens[:, :1]), -1)[..., None], 0.0)
    target /= target.sum(-1, keepdim=True)
    found = verify_chain(tokens, p[:, :3], target, uniforms=torch.zeros_like(top), method=method)
    assert bool((found.num_accepted == 0).all())
    chances = target[:, 0].gather(-1, found.tokens[:, :1])
    assert bool((chances > 0).all())


def test_logits_of_minus_infinity_are_plain_zeros():
    logits = torch.tensor([[[0.0, -torch.inf, 1.0], [-torch.inf, -torch.inf, 0.0]]])
    p = logits.softmax(-1)
    q = torch.tensor([[[0.0, 0.0, 1.0]]])
    found = verify_chain(torch.tensor([[2]]), q, p, uniforms=torch.tensor([[0.7, 0.999]]))
    assert found.tokens.tolist() == [[2, 2]]


def test_rounding_that_leaves_no_residual_falls_back_to_the_target():
    """q exceeds p by one unit at the draft token and p exceeds q nowhere."""
    p = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])
    q = torch.tensor([[[0.5, 0.5]]]).nextafter(torch.ones(1, 1, 2))
    u = torch.tensor([[1 - 2.0**-53, 0.75]], dtype=torch.float64)
    found = verify_chain(torch.tensor([[0]]), q, p, uniforms=u)
    assert found.num_accepted.tolist() == [0]
    assert found.tokens.tolist() == [[1, -1]]


def test_greedy_laws_give_the_greedy_text_whatever_the_uniforms():
    generator = torch.Generator().manual_seed(0)
    best = torch.randint(0, 7, (30, 4), generator=generator)
    p = torch.nn.functional.one_hot(best, 7).double()
    tokens = torch.where(torch.rand(30, 3, generator=generator) < 0.7, best[:, :3], 6)
    for method in ("token", "block"):
        for draft in (None, torch.nn.functional.one_hot(tokens, 7).double()):
            found = verify_chain(tokens, draft, p, uniforms=uniforms(30, 4, seed=1), method=method)
            for row in range(30):
                count = int(found.num_accepted[row])
                agree = (tokens[row] == best[row, :3]).long().cumprod(0).sum()
                assert count == int(agree)
                assert found.tokens[row, : count + 1].tolist() == best[row, : count + 1].tolist()


def test_a_generator_draws_what_its_uniforms_would():
    p, q = random_laws(5, 3, 11, seed=1), random_laws(5, 2, 11, seed=2)
    tokens = draw_tokens(q, 3)
    u = uniforms(5, 3, seed=77)
    with_generator = verify_chain(tokens, q, p, generator=torch.Generator().manual_seed(77))
    assert torch.equal(with_generator.tokens, verify_chain(tokens, q, p, uniforms=u).tokens)


def test_an_empty_batch():
    empty = verify_chain(
        torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2, 5), torch.zeros(0, 3, 5),
        uniforms=torch.zeros(0, 3),
    )  # fmt: skip
    assert empty.tokens.shape == (0, 3)


# ------------------------------------------------------------------ trees


def walk(tokens, parents, q, p, u):
    """The rule of a tree, number by number; q None for children that were not drawn."""
    place, path = -1, []
    while True:
        left = list(p[place + 1])
        law = None if q is None else list(q[place + 1])
        for node in [n for n, parent in enumerate(parents) if parent == place]:
            token = tokens[node]
            if u[node] * (1.0 if law is None else law[token]) < left[token]:
                place = node
                path.append(node)
                break
            if law is None:
                left[token] = 0.0
            else:
                left = [max(a - b, 0.0) for a, b in zip(left, law, strict=True)]
                law[token] = 0.0
                law = [x / sum(law) for x in law] if sum(law) else law
            left = [x / sum(left) for x in left]
        else:
            return [tokens[n] for n in path] + [first_beyond(left, u[-1])], path


@pytest.mark.parametrize("drawn", [True, False])
def test_a_tree_follows_the_rule(drawn):
    batch, vocab, parents = 40, 30, [-1, -1, -1, 0, 0, 1, 3, 5, 6]
    nodes = len(parents)
    p, q = (
        random_laws(batch, nodes + 1, vocab, seed=1),
        random_laws(batch, nodes + 1, vocab, seed=2),
    )
    tokens = torch.zeros(batch, nodes, dtype=torch.int64)
    for place in range(-1, nodes):
        children = [n for n, parent in enumerate(parents) if parent == place]
        if children:
            generator = torch.Generator().manual_seed(place + 5)
            tokens[:, children] = torch.multinomial(
                q[:, place + 1], len(children), generator=generator
            )
    u = uniforms(batch, nodes + 1, seed=3) ** (2 if drawn else 6)  # small: deep paths occur
    found = verify_tree(tokens, torch.tensor(parents), q if drawn else None, p, uniforms=u)
    each = torch.tensor(parents).expand(batch, -1)
    assert torch.equal(
        found.tokens, verify_tree(tokens, each, q if drawn else None, p, uniforms=u).tokens
    )
    for row in range(batch):
        emitted, path = walk(
            tokens[row].tolist(), parents, q[row].tolist() if drawn else None, p[row].tolist(),
            u[row].tolist(),
        )  # fmt: skip
        count = len(path)
        assert int(found.num_accepted[row]) == count
        assert found.path[row].tolist() == path + [-1] * (found.path.shape[1] - count)
        assert found.tokens[row].tolist() == emitted + [-1] * (found.tokens.shape[1] - count - 1)
    assert int(found.num_accepted.max()) >= 3
    assert int(found.num_accepted.min()) == 0


def test_trees_of_one_batch_may_differ():
    p, q = random_laws(2, 3, 9, seed=1), random_laws(2, 3, 9, seed=2)
    tokens = torch.tensor([[1, 2], [3, 4]])
    parents = torch.tensor([[-1, -1], [-1, 0]])
    u = uniforms(2, 3, seed=5)
    both = verify_tree(tokens, parents, q, p, uniforms=u)
    for row in range(2):
        one = verify_tree(
            tokens[row : row + 1],
            parents[row],
            q[row : row + 1],
            p[row : row + 1],
            uniforms=u[row : row + 1],
        )
        assert both.tokens[row, : one.tokens.shape[1]].tolist() == one.tokens[0].tolist()


def test_a_tree_without_nodes_is_plain_sampling():
    p = random_laws(8, 1, 12, seed=1)
    u = uniforms(8, 1, seed=2)
    none = torch.zeros(8, 0, dtype=torch.int64)
    found = verify_tree(none, torch.zeros(0, dtype=torch.int64), None, p, uniforms=u)
    assert found.tokens[:, 0].tolist() == draw(p[:, 0], u[:, 0]).tolist()
    assert found.path.shape == (8, 0)


# ------------------------------------------------------------------ what is given stays


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_given_is_not_written_to(dtype):
    """A published verifier edited target_probs in place; so did an early form of this tree."""
    p, q = random_laws(30, 4, 9, seed=1).to(dtype), random_laws(30, 4, 9, seed=2).to(dtype)
    tokens, u = draw_tokens(q[:, :3], 3), uniforms(30, 4, seed=4)
    before = [x.clone() for x in (tokens, p, q, u)]
    verify_chain(tokens, q[:, :3], p, uniforms=u)
    verify_chain(tokens, q[:, :3], p, uniforms=u, method="block")
    verify_chain(tokens, None, p, uniforms=u)
    verify_tree(tokens, torch.tensor([-1, 0, 1]), q, p, uniforms=u, validate=False)
    verify_tree(tokens, torch.tensor([-1, 0, 1]), None, p, uniforms=u)
    for old, new in zip(before, (tokens, p, q, u), strict=True):
        assert torch.equal(old, new)
