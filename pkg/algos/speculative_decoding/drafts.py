"""What a drafter is: it is told the texts so far and proposes how each might go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pkg.algos.language_model.sampling import sampling_distribution


@dataclass(frozen=True)
class Draft:
    """What a drafter proposes.

    Attributes
    ----------
    tokens
        (batch, gamma), int64, -1 past a row's length.
    lengths
        (batch,), int64: how many tokens each row has, 0 included.
    probs
        (batch, gamma, vocabulary): the distribution each token was drawn from, after temperature and
        filters; None where nothing was drawn (a copy, a likeliest token).
    """

    tokens: Tensor
    lengths: Tensor
    probs: Tensor | None = None


@dataclass(frozen=True)
class Options:
    """Temperature and filters: one object, so that the draft and the target get the same ones."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def law(self, logits: Tensor) -> Tensor:
        """Return the probabilities that a token is drawn from, (..., vocabulary)."""
        return sampling_distribution(
            logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )


class Drafter(Protocol):
    """Anything that proposes tokens. `speculative_generate` calls these three."""

    def start(self, requests: int, vocabulary: int) -> None:
        """Begin with so many new texts, of ids below `vocabulary`."""

    def propose(
        self, texts: Sequence[Tensor], gamma: int, options: Options, uniforms: Tensor
    ) -> Draft:
        """Propose at most `gamma` tokens for each text (tokens,), at least one token long.

        `uniforms` (batch, gamma) are the numbers to draw with, each request's own.
        """

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these of the texts alone."""


def packed(rows: Sequence[Sequence[int]], gamma: int) -> Draft:
    """Return the draft of these tokens, of which none was drawn."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    tokens = torch.full((len(rows), gamma), -1)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return Draft(tokens, lengths)
