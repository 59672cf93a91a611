"""Verification over SmolLM2's whole vocabulary follows the model's law: a test with both its errors.

1,024 tokens are counted in 12 classes, the 11 likeliest tokens and the rest. Pearson's chi-square with
11 degrees of freedom refuses a right program with probability 0.001 (significance). Its power is
computed, not hoped for: against the program that draws replacements from the target, whose bias is
known exactly here, the chance of missing it is below 0.0001.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from scipy import stats

from pkg.algos.language_model import sampling_distribution
from pkg.algos.speculative_decoding import verify_chain, verify_tree
from pkg.data.smollm2 import smollm2

ROUNDS, ROWS, CLASSES = 16, 64, 12
LIMIT = stats.chi2.ppf(0.999, CLASSES - 1)
OPTIONS = [{}, {"temperature": 1.4, "top_k": 5000, "top_p": 0.98}]


@cache
def real_logits():
    """The model's logits after a prompt, and those of its first 25 layers."""
    model = smollm2()
    tokens = model.encode("A ship in harbour is safe, but that is not what ships are")
    return model(tokens).logits[-1], model.first_layers(25)(tokens).logits[-1]


def classes(law, likely):
    return torch.cat((law[likely], 1 - law[likely].sum()[None])).double()


def chi_square(counts, wanted):
    expected = counts.sum() * wanted
    return float(((counts - expected) ** 2 / expected).sum())


def count(draw, likely):
    """Counts of first tokens over all rounds; `draw` gets a generator."""
    generator, counts = torch.Generator().manual_seed(3), torch.zeros(CLASSES)
    for _ in range(ROUNDS):
        tokens = draw(generator)
        hits = torch.tensor([int((tokens == token).sum()) for token in likely])
        counts += torch.cat((hits, (ROWS - hits.sum())[None]))
    return counts


def chain(p, q, method):
    def draw(generator):
        drafted = torch.multinomial(q, 2 * ROWS, replacement=True, generator=generator)
        found = verify_chain(
            drafted.reshape(ROWS, 2), q.expand(ROWS, 2, -1), p.expand(ROWS, 3, -1),
            generator=generator, method=method, validate=False,
        )  # fmt: skip
        return found.tokens[:, 0]

    return draw


def tree(p, q):
    def draw(generator):
        drafted = torch.multinomial(q.expand(ROWS, -1), 2, generator=generator)
        found = verify_tree(
            drafted, torch.tensor([-1, -1]), q.expand(ROWS, 3, -1), p.expand(ROWS, 3, -1),
            generator=generator, validate=False,
        )  # fmt: skip
        return found.tokens[:, 0]

    return draw


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "filtered"])
@pytest.mark.parametrize("kind", ["token", "block", "tree"])
def test_the_law_over_the_whole_vocabulary(kind, options):
    p, q = (sampling_distribution(logits, **options) for logits in real_logits())
    likely = p.topk(CLASSES - 1).indices
    draw = tree(p, q) if kind == "tree" else chain(p, q, kind)
    assert chi_square(count(draw, likely), classes(p, likely)) < LIMIT


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "filtered"])
def test_the_power_against_replacements_from_the_target(options):
    p, q = (sampling_distribution(logits, **options) for logits in real_logits())
    likely = p.topk(CLASSES - 1).indices
    kept = torch.minimum(p, q)
    biased, wanted = classes(kept + (1 - kept.sum()) * p, likely), classes(p, likely)
    shift = float((ROUNDS * ROWS * (biased - wanted) ** 2 / wanted).sum())
    assert stats.ncx2.cdf(LIMIT, CLASSES - 1, shift) < 0.0001
    # And the biased program is really refused.

    def draw(generator):
        law = kept + (1 - kept.sum()) * p
        return torch.multinomial(law, ROWS, replacement=True, generator=generator)

    assert chi_square(count(draw, likely), wanted) > LIMIT
