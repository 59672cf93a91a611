"""The law of the next token, and the draw from it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pkg.algos.language_model import sample, sampling_distribution
from pkg.data.smollm2 import smollm2
from tests.algos.language_model_cases import TOKENS


def by_hand(logits, temperature, top_k, top_p):
    """The definition over one row, in NumPy's float64, token by token."""
    values = np.array(logits, dtype=float)
    if temperature == 0:
        return np.eye(len(values))[int(np.argmax(values))]
    values = values / temperature
    kept = np.ones(len(values), dtype=bool)
    if top_k is not None:
        kept = np.array([(values > v).sum() < top_k for v in values])
    weights = np.where(kept, np.exp(values - values.max()), 0.0)
    weights /= weights.sum()
    if top_p is not None:
        weights = np.where([weights[weights > w].sum() < top_p for w in weights], weights, 0.0)
    return weights / weights.sum()


# Multiples of 1/4 tie often; sums that fall on top_p to the last place are kept away by odd thresholds.
LOGITS = st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=1, max_size=9)


@given(LOGITS, st.sampled_from((0.0, 0.5, 1.0, 3.0)), st.sampled_from((None, 1, 2, 5, 100)),
       st.sampled_from((None, 0.1003, 0.5013, 0.9007, 1.0)))  # fmt: skip
@settings(deadline=None, max_examples=300)
def test_the_law_is_that_of_the_definition(logits, temperature, top_k, top_p):
    ours = sampling_distribution(
        torch.tensor(logits, dtype=torch.float64), temperature=temperature, top_k=top_k, top_p=top_p
    )
    np.testing.assert_allclose(ours.numpy(), by_hand(logits, temperature, top_k, top_p), atol=1e-13)


def test_the_law_agrees_with_transformers():
    """Temperature, then top-k, then top-p, on logits of the real model."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = smollm2()(TOKENS[:24]).logits
    for temperature, top_k, top_p in ((0.7, 50, 0.9), (1.3, 1000, 0.5), (1.0, 5, 0.99)):
        scores = logits
        for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k),
                       TopPLogitsWarper(top_p)):  # fmt: skip
            scores = warper(None, scores)
        ours = sampling_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        # softmax of float32 logits of size 30: 30 · 2^-24 relative
        torch.testing.assert_close(ours, scores.softmax(-1), rtol=4e-6, atol=1e-9)


def test_edges_of_the_law():
    inf = torch.inf
    assert sampling_distribution(torch.tensor([-inf, 2.0, -inf])).tolist() == [0, 1, 0]
    assert sampling_distribution(torch.tensor([1.0, 1.0]), temperature=0).tolist() == [1, 0]
    ties = torch.tensor([2.0, 2.0, 2.0, 0.0])
    assert (sampling_distribution(ties, top_k=2) > 0).tolist() == [True, True, True, False]
    assert (sampling_distribution(ties, top_p=0.4) > 0).tolist() == [True, True, True, False]
    tiny = sampling_distribution(torch.tensor([3e38, 1.0]), temperature=1e-6)
    assert tiny.tolist() == [1, 0]
    assert sampling_distribution(torch.zeros(0, 5)).shape == (0, 5)
    assert sampling_distribution(torch.zeros(2, 5, dtype=torch.bfloat16)).dtype == torch.float32


@given(st.lists(st.integers(0, 8), min_size=1, max_size=6).filter(any), st.integers(0, 63))
@settings(deadline=None, max_examples=300)
def test_the_draw_is_the_inverse_of_the_cumulative_law(counts, step):
    """In rational numbers: the first token whose cumulative share is above u."""
    total, u = sum(counts), Fraction(step, 64)
    below = [Fraction(sum(counts[: i + 1]), total) for i in range(len(counts))]
    expected = next(i for i, share in enumerate(below) if share > u)
    law = torch.tensor(counts, dtype=torch.float64)  # not normalised: exact
    assert int(sample(law, torch.tensor(float(u)))) == expected


def test_the_last_number_below_one_draws_a_token_that_has_mass():
    almost = torch.tensor(1 - 2.0**-53, dtype=torch.float64)
    assert int(sample(torch.tensor([0.1, 0.9, 0.0, 0.0]), almost)) == 1
    assert int(sample(torch.tensor([0.0, 1e-38, 0.0]), almost)) == 1
    assert int(sample(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(0.0))) == 2


def test_the_draws_follow_the_law():
    law = sampling_distribution(torch.tensor([1.0, 0.0, -1.0, 0.5, -2.0]), temperature=0.8)
    draw = torch.Generator().manual_seed(3)
    found = sample(law.expand(20_000, 5), torch.rand(20_000, generator=draw, dtype=torch.float64))
    counts = torch.bincount(found, minlength=5).numpy()
    # fixed seed; a law that is wrong by 0.02 in one place is found with probability > 0.999
    assert chisquare(counts, 20_000 * (law.double() / law.double().sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"temperature": -1.0}, ValueError, "temperature must be finite and at least 0, got -1.0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be finite"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 1.5}, TypeError, "top_k must be an integer or None, got float"),
        ({"top_p": 0.0}, ValueError, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, ValueError, "got 1.1"),
    ],
)
def test_options_at_the_door(options, error, words):
    with pytest.raises(error, match=words):
        sampling_distribution(torch.zeros(3), **options)


@pytest.mark.parametrize(
    "row", [[0.0, float("nan")], [0.0, float("inf")], [-float("inf"), -float("inf")]]
)
def test_logits_at_the_door(row):
    with pytest.raises(ValueError, match="must not hold NaN"):
        sampling_distribution(torch.tensor([[0.0, 1.0], row]))


def test_shapes_and_types_at_the_door():
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch.int64"):
        sampling_distribution(torch.arange(3))
    with pytest.raises(ValueError, match="logits must have shape"):
        sampling_distribution(torch.zeros(2, 0))
    law = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"uniforms must lie in \[0, 1\)"):
        sample(law, torch.tensor(1.0))
    with pytest.raises(ValueError, match="uniforms must have shape"):
        sample(law, torch.zeros(2))
    with pytest.raises(TypeError, match="uniforms must be floating-point"):
        sample(law, torch.tensor(0))
    for row in ([0.0, 0.0], [1.0, -0.1], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match="probabilities must not be negative"):
            sample(torch.tensor(row), torch.tensor(0.5))
