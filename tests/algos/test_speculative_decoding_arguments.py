"""What does not fit is refused at the door, by name."""

from __future__ import annotations

import pytest
import torch

from pkg.algos.speculative_decoding import (
    acceptance_probability,
    best_gamma,
    expected_tokens,
    log_residual,
    operations_factor,
    residual,
    token_distribution,
    verify_chain,
    verify_tree,
    walltime_improvement,
)
from tests.algos.speculative_oracle import random_laws

P, Q = random_laws(2, 3, 5, seed=1), random_laws(2, 2, 5, seed=2)
TOKENS, U = torch.tensor([[1, 2], [3, 4]]), torch.full((2, 3), 0.5)


def changed(tensor, index, value):
    other = tensor.clone()
    other[index] = value
    return other


CHAINS = [
    ({"target_probs": changed(P, (1, 0, 2), torch.nan)}, ValueError, r"target_probs.*row \(1, 0\).*NaN"),
    ({"target_probs": changed(P, (1, 2), 0.3)}, ValueError, r"target_probs.*row \(1, 2\) it sums to 1\.5"),
    ({"draft_probs": 2 * Q}, ValueError, "draft_probs must be distributions"),
    ({"draft_probs": Q + torch.tensor([-1.0, 1.0, 0, 0, 0])}, ValueError, "negative"),
    ({"draft_probs": changed(Q, (0, 0, 1), torch.inf)}, ValueError, "draft_probs"),
    ({"draft_probs": random_laws(2, 2, 6, seed=1)}, ValueError, "one vocabulary, got 6 and 5"),
    ({"draft_probs": Q[:, :1]}, ValueError, r"\(batch, gamma, vocab\) = \(2, 2, 5\), got \(2, 1, 5\)"),
    ({"draft_probs": Q.long()}, TypeError, "draft_probs must be float16"),
    ({"draft_probs": Q.tolist()}, TypeError, "must be a tensor, got list"),
    ({"target_probs": P[:, :2]}, ValueError, r"gamma \+ 1, vocab\) = \(2, 3, 5\), got \(2, 2, 5\)"),
    ({"target_probs": P[0]}, ValueError, "target_probs must have shape"),
    ({"target_probs": P[..., :0]}, ValueError, "target_probs must have shape"),
    ({"draft_tokens": TOKENS[0]}, ValueError, r"draft_tokens must have shape \(batch, gamma\)"),
    ({"draft_tokens": TOKENS.double()}, TypeError, "draft_tokens must be int64 or int32"),
    ({"draft_tokens": changed(TOKENS, (0, 1), 5)}, ValueError, r"0\.\.4, got 5 at index \(0, 1\)"),
    ({"draft_tokens": changed(TOKENS, (1, 0), -1)}, ValueError, "got -1"),
    ({"uniforms": U[:, :2]}, ValueError, "uniforms must have shape"),
    ({"uniforms": U + 0.5}, ValueError, r"uniforms must be in \[0, 1\)"),
    ({"uniforms": changed(U, (0, 0), torch.nan)}, ValueError, "uniforms must be in"),
    ({"uniforms": None}, ValueError, "exactly one of uniforms and generator"),
    ({"generator": torch.Generator()}, ValueError, "exactly one of uniforms and generator"),
    ({"uniforms": None, "generator": 3}, TypeError, "generator must be a torch.Generator, got int"),
    ({"lengths": torch.tensor([0, 3])}, ValueError, r"lengths must be in 0\.\.2"),
    ({"lengths": torch.tensor([0, -1])}, ValueError, "lengths must be in"),
    ({"lengths": torch.tensor([1])}, ValueError, "lengths must have shape"),
    ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths must be int64"),
    ({"method": "tree"}, ValueError, 'method must be "token" or "block"'),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), CHAINS)
def test_a_chain_that_does_not_fit(change, error, message):
    given = {"draft_tokens": TOKENS, "draft_probs": Q, "target_probs": P, "uniforms": U, **change}
    tokens, q, p = (given.pop(name) for name in ("draft_tokens", "draft_probs", "target_probs"))
    with pytest.raises(error, match=message):
        verify_chain(tokens, q, p, **given)


def test_a_draft_that_its_law_cannot_have_given():
    q = torch.tensor([[[0.0, 1.0]]])
    with pytest.raises(ValueError, match="sampled from: the token at index \\(0, 0\\)"):
        verify_chain(torch.tensor([[0]]), q, torch.full((1, 2, 2), 0.5), uniforms=torch.zeros(1, 2))


def test_what_stands_past_the_end_of_a_row_is_not_looked_at():
    p, q, tokens = P.clone(), Q.clone(), TOKENS.clone()
    p[0, 2], q[0, 1], tokens[0, 1] = torch.nan, torch.nan, -1
    lengths = torch.tensor([1, 2])
    for method in ("token", "block"):
        found = verify_chain(tokens, q, p, uniforms=U, lengths=lengths, method=method)
        assert found.tokens[0, 2] == -1


def test_validation_may_be_left_out():
    bad = changed(Q, (0, 0), 0.3)
    verify_chain(TOKENS, bad, P, uniforms=U, validate=False)


def test_half_precision_laws_pass_though_their_sums_are_not_one():
    """A softmax over 50,000 tokens rounded to bfloat16 misses 1 by up to 2^-9."""
    logits = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        law = logits.softmax(-1).to(dtype)
        assert acceptance_probability(law[0], law[1]).item() < 1
    # Two numbers of 8 bits may miss their sum by two units of 2^-7, and by no more.
    near, far = torch.tensor([1.0, 1.5 / 128]).bfloat16(), torch.tensor([1.0, 3 / 128]).bfloat16()
    assert acceptance_probability(near, near).item() > 1
    with pytest.raises(ValueError, match="p must be distributions"):
        acceptance_probability(far, near)
    with pytest.raises(ValueError, match="p must be distributions"):
        acceptance_probability(0.95 * logits.softmax(-1).bfloat16()[0], logits.softmax(-1)[1])


PARENTS = torch.tensor([-1, 0])
TREES = [
    ({"parents": torch.tensor([0, 0])}, ValueError, "parents must come before their children"),
    ({"parents": torch.tensor([-2, 0])}, ValueError, "parents must come before"),
    ({"parents": torch.tensor([-1])}, ValueError, r"parents must have shape \(nodes,\) = \(2,\)"),
    ({"parents": torch.tensor([-1.0, 0.0])}, TypeError, "parents must be int64"),
    ({"draft_tokens": torch.tensor([[1, 1], [3, 4]]), "parents": torch.tensor([-1, -1])}, ValueError,
     "nodes 0 and 1 of row 0 are both 1"),
    ({"draft_tokens": TOKENS[0]}, ValueError, r"\(batch, nodes\)"),
    ({"draft_tokens": TOKENS + 3}, ValueError, r"0\.\.4"),
    ({"draft_probs": P[:, :2]}, ValueError, r"draft_probs must have shape \(batch, nodes \+ 1"),
    ({"draft_probs": random_laws(2, 3, 6, seed=1)}, ValueError, "one vocabulary"),
    ({"target_probs": P[:, :2]}, ValueError, "target_probs must have shape"),
    ({"target_probs": P[0]}, ValueError, "target_probs must have shape"),
    ({"target_probs": 2 * P}, ValueError, "target_probs must be distributions"),
    ({"draft_probs": 2 * P}, ValueError, "draft_probs must be distributions"),
    ({"draft_probs": changed(P, (0, 0), torch.tensor([0, 0, 1.0, 0, 0]))}, ValueError, "sampled from"),
    ({"uniforms": U + 1}, ValueError, "uniforms must be in"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), TREES)
def test_a_tree_that_does_not_fit(change, error, message):
    given = {
        "draft_tokens": TOKENS, "parents": PARENTS, "draft_probs": P, "target_probs": P, "uniforms": U,
        **change,
    }  # fmt: skip
    names = ("draft_tokens", "parents", "draft_probs", "target_probs")
    with pytest.raises(error, match=message):
        arguments = [given.pop(name) for name in names]
        verify_tree(*arguments, **given)


def test_rows_of_leaves_are_not_looked_at():
    q = P.clone()
    q[:, 2] = torch.nan
    verify_tree(TOKENS, PARENTS, q, P, uniforms=U)


@pytest.mark.parametrize("function", [acceptance_probability, residual])
def test_laws_that_are_none(function):
    good = torch.tensor([0.5, 0.5])
    for bad, error, message in (
        (torch.tensor([0.5, 0.6]), ValueError, r"p must be distributions.*sums to 1\.1"),
        (torch.tensor([0.5, torch.nan]), ValueError, "holds NaN"),
        (torch.tensor([1.5, -0.5]), ValueError, "negative"),
        (torch.tensor(1.0), ValueError, "got a scalar"),
        (torch.tensor([1, 0]), TypeError, "p must be float16"),
        ([0.5, 0.5], TypeError, "p must be a tensor"),
        (torch.tensor([0.2, 0.3, 0.5]), ValueError, "one vocabulary, got 3 and 2"),
    ):
        with pytest.raises(error, match=message):
            function(bad, good)


def test_logarithms_of_laws_that_are_none():
    good = torch.tensor([0.5, 0.5]).log()
    for bad, error, message in (
        (torch.tensor([0.5, 0.6]).log(), ValueError, r"log_p must be distributions.*sums to 1\.1"),
        (torch.tensor([0.5, torch.nan]), ValueError, "the exponentials of log_p .* holds NaN"),
        (torch.tensor(0.0), ValueError, "log_p must have shape .* got a scalar"),
        (torch.tensor([0, 0]), TypeError, "log_p must be float16"),
        (torch.tensor([0.2, 0.3, 0.5]).log(), ValueError, "log_p and log_q .* got 3 and 2 tokens"),
    ):
        with pytest.raises(error, match=message):
            log_residual(bad, good)
    with pytest.raises(ValueError, match="the exponentials of log_q must be distributions"):
        log_residual(good, torch.zeros(2))


GAINS = [
    (expected_tokens, (1.2, 3), ValueError, r"alpha must be in \[0, 1\], got 1.2"),
    (expected_tokens, (float("nan"), 3), ValueError, "alpha must be in"),
    (expected_tokens, ("a", 3), TypeError, "alpha must be a number or a tensor"),
    (expected_tokens, (0.5, -1), ValueError, "gamma must not be negative, got -1"),
    (expected_tokens, (0.5, 2.0), TypeError, "gamma must be an integer"),
    (token_distribution, (0.5, -1), ValueError, "gamma must not be negative"),
    (walltime_improvement, (0.5, 2, -0.1), ValueError, "cost_ratio must be finite"),
    (walltime_improvement, (0.5, 2, float("inf")), ValueError, "cost_ratio must be finite"),
    (operations_factor, (0.5, 2, -0.1), ValueError, "operations_ratio must be finite"),
    (operations_factor, (0.5, 2, None), TypeError, "operations_ratio must be a number"),
    (best_gamma, (0.5, 0.0), ValueError, "give max_gamma"),
    (best_gamma, (1.0, 0.5), ValueError, "give max_gamma"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "error", "message"), GAINS)
def test_gains_that_do_not_exist(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)
