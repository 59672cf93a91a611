"""The benchmark of speculative decoding: its gate, and that its contenders compute what they say."""

import pytest
import torch
from scipy.stats import chisquare

from benchmarks import speculative_decoding as bench
from pkg.algos.speculative_decoding import verify_chain


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("source", ["probabilities", "logits"])
def test_every_verifier_passes_the_gate(source):
    case = bench.verification((3, 4, 60), source, "cpu", 1, 5)
    assert not case.left_out
    assert set(case.ratios) >= {"ours", "gpt-fast's loop"}


def test_the_gate_is_red_for_a_wrong_verifier():
    batch = bench.draw((6, 4, 60), "cpu")
    q, p = batch.laws
    right = verify_chain(batch.tokens, q, p, uniforms=batch.uniforms).tokens
    counts = (right >= 0).sum(1) - 1
    assert bench.plausible(batch, True, right, right)
    some, stopped = int(counts.argmax()), int(counts.argmin())
    assert counts[some] > 0  # or there would be nothing to get wrong
    assert counts[stopped] < 4
    changed = right.clone()
    changed[some, 0] = (changed[some, 0] + 1) % 60
    assert not bench.plausible(batch, False, right, changed)
    outside = right.clone()  # a token that the draft has too much of already
    at = int(counts[stopped])
    outside[stopped, at] = int((p[stopped, at] - q[stopped, at]).argmin())
    assert not bench.plausible(batch, False, right, outside)
    fewer = torch.full_like(right, -1)
    fewer[:, 0] = (p[:, 0] - q[:, 0]).argmax(-1)
    assert bench.plausible(batch, False, right, fewer)
    assert not bench.plausible(batch, True, right, fewer)


def test_the_loop_draws_from_the_same_law_as_ours():
    """The first token of 4,000 verifications of the same draft law, at significance 1e-3."""
    torch.manual_seed(2)
    q = torch.tensor([0.1, 0.6, 0.3]).expand(4000, 1, 3)
    p = torch.tensor([0.5, 0.2, 0.3]).expand(4000, 2, 3)
    tokens = torch.multinomial(q[:, 0], 1)
    found = bench.gpt_fast_way(tokens, q, p, torch.rand(4000, 2, dtype=torch.float64))
    counts = torch.bincount(found[:, 0], minlength=3).numpy()
    assert chisquare(counts, 4000 * p[0, 0].double().numpy()).pvalue > 1e-3
