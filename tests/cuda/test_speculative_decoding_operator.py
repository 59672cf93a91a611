"""The operators of verification on the CPU: checks of PyTorch, compiled form, agreement, doors."""

from __future__ import annotations

import pytest
import torch

from pkg.algos.language_model import sample, sampling_distribution
from pkg.algos.speculative_decoding import (
    sample_logits,
    verify_chain,
    verify_chain_logits,
    verify_tree,
    verify_tree_logits,
)
from pkg.algos.speculative_decoding.logits import chain_operator, sample_operator, tree_operator
from tests.cuda.speculative_cases import OPTIONS, chain, logits, tree, uniforms

PARENTS = [-1, -1, 0, 1, 1]


@pytest.mark.parametrize("name", OPTIONS)
def test_from_logits_is_from_laws(name):
    options = OPTIONS[name]
    tokens, q, p, u, lengths = chain(12, 3, 200, options, seed=1)
    laws = [sampling_distribution(x, **options) for x in (q, p)]
    for method in ("token", "block"):
        found = verify_chain_logits(
            tokens, q, p, uniforms=u, lengths=lengths, method=method, **options
        )
        same = verify_chain(
            tokens, *laws, uniforms=u, lengths=lengths, method=method, validate=False
        )
        assert torch.equal(found.tokens, same.tokens)
        assert torch.equal(found.num_accepted, same.num_accepted)
    tokens, parents, q, p, u = tree(12, PARENTS, 200, options, seed=2)
    laws = [sampling_distribution(x, **options) for x in (q, p)]
    found = verify_tree_logits(tokens, parents, q, p, uniforms=u, depth=4, **options)
    same = verify_tree(tokens, parents, *laws, uniforms=u, validate=False)
    assert torch.equal(found.tokens[:, :3], same.tokens)
    assert bool((found.tokens[:, 3:] == -1).all())
    assert torch.equal(found.path[:, :2], same.path)
    rows, u = logits(30, 200, seed=3), uniforms(30, seed=4)
    law = sampling_distribution(rows, **options)
    assert torch.equal(sample_logits(rows, uniforms=u, **options), sample(law, u))


def test_pytorch_accepts_the_operators():
    # As many rows as no other axis has, so that an axis out of place shows.
    tokens, q, p, u, lengths = chain(4, 2, 20, {}, seed=1)
    for draft in (q, None):
        torch.library.opcheck(chain_operator, (tokens, draft, p, u, lengths, 0.7, 5, 0.9, False))
    torch.library.opcheck(chain_operator, (tokens, q, p, u, lengths, 1.0, None, None, True))
    tokens, parents, q, p, u = tree(4, PARENTS, 20, {}, seed=2)
    torch.library.opcheck(tree_operator, (tokens, parents, q, p, u, 2, 0.7, None, 0.9))
    torch.library.opcheck(sample_operator, (p[:, 0], u[:, 0].contiguous(), 1.0, 3, None))


def test_a_compiled_step():
    tokens, q, p, u, lengths = chain(3, 2, 20, {}, seed=1)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(q, p):
        return chain_operator(tokens, q, p, u, lengths, 1.0, None, None, False)

    expected = verify_chain_logits(tokens, q, p, uniforms=u, lengths=lengths)
    assert torch.equal(step(q, p)[0], expected.tokens)


def test_rows_past_the_end_may_hold_anything():
    tokens, q, p, u, _ = chain(2, 2, 20, {}, seed=1)
    q[0, 1], p[0, 2] = torch.nan, torch.nan
    found = verify_chain_logits(tokens, q, p, uniforms=u, lengths=torch.tensor([1, 2]))
    assert found.tokens[0, 2] == -1
    with pytest.raises(ValueError, match="NaN"):
        verify_chain_logits(tokens, q, p, uniforms=u)


def test_the_doors():
    tokens, q, p, u, lengths = chain(2, 2, 20, {}, seed=1)
    for change, error, message in (
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"top_k": 0}, ValueError, "top_k"),
        ({"top_p": 1.5}, ValueError, "top_p"),
        ({"method": "tree"}, ValueError, "method"),
        ({"uniforms": u[:, :2]}, ValueError, "uniforms"),
        ({"uniforms": None}, ValueError, "exactly one"),
    ):
        with pytest.raises(error, match=message):
            verify_chain_logits(tokens, q, p, **{"uniforms": u, "lengths": lengths, **change})
    for bad, error, message in (
        ((tokens.double(), q, p), TypeError, "draft_tokens must be int64"),
        ((tokens[0], q, p), ValueError, r"draft_tokens must have shape \(batch, gamma\)"),
        ((tokens, q[..., :19], p), ValueError, "one vocabulary, got 19 and 20"),
        ((tokens, q, p[:, :2]), ValueError, "target_logits must have shape"),
        ((tokens, q[:, :1], p), ValueError, "draft_logits must have shape"),
        ((tokens, q, p.long()), TypeError, "target_logits must be float16"),
    ):
        with pytest.raises(error, match=message):
            verify_chain_logits(*bad, uniforms=u)
    tokens, parents, q, p, u = tree(2, PARENTS, 20, {}, seed=1)
    with pytest.raises(ValueError, match="depth must be at least the tree's, 2, got 1"):
        verify_tree_logits(tokens, parents, q, p, uniforms=u, depth=1)
    with pytest.raises(ValueError, match="rows, vocab"):
        sample_logits(p, uniforms=u[:, 0])
    with pytest.raises(ValueError, match="uniforms must have shape"):
        sample_logits(p[:, 0], uniforms=u)
