"""Drafters that run a model: a small one, or the first layers of the large one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pkg.algos.language_model import KeyValueCache, LanguageModel, sample
from pkg.algos.speculative_decoding.drafts import Draft, Options
from pkg.algos.speculative_decoding.student import student_model


class ModelDrafter:
    """Let a smaller language model write the draft, token by token.

    Parameters
    ----------
    model
        The small model; its vocabulary is the large one's.

    Raises
    ------
    ValueError
        When `speculative_generate` starts, if the vocabularies differ.

    Notes
    -----
    The law that a token was drawn from, after temperature and filters, goes with the draft: it is what
    the verification divides by. At temperature 0 the draft is the likeliest token, and nothing is
    drawn. Leviathan, Kalman and Matias (2023). Ledger: `speculative_decoding:drafters`.

    Examples
    --------
    >>> from pkg.algos.speculative_decoding import speculative_generate
    >>> from pkg.data.smollm2 import smollm2
    >>> model = smollm2()
    >>> found = speculative_generate(
    ...     model, "One, two, three,", ModelDrafter(model), gamma=3, temperature=0.0, max_tokens=4
    ... )
    >>> found.tokens_per_step  # a model agrees with itself
    4.0
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._cache: KeyValueCache | None = None
        self._read: list[Tensor] = []

    def start(self, requests: int, vocabulary: int) -> None:
        """Begin with so many new texts, of ids below `vocabulary`."""
        if vocabulary != self.model.shape.vocabulary:
            raise ValueError(
                f"drafter must have the model's vocabulary of {vocabulary}, "
                f"got {self.model.shape.vocabulary}"
            )
        self._cache = None
        self._read = [torch.empty(0, dtype=torch.int64)] * requests

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these of the texts alone."""
        self._read = [self._read[row] for row in rows]
        if self._cache is not None:
            self._cache.select(rows)

    def propose(
        self, texts: Sequence[Tensor], gamma: int, options: Options, uniforms: Tensor
    ) -> Draft:
        """Propose `gamma` tokens for each text; see `Drafter`."""
        tokens = torch.full((len(texts), gamma), -1)
        lengths = torch.full((len(texts),), gamma)
        if not gamma or not texts:
            return Draft(tokens, lengths)
        hidden, cache = self._catch_up(texts, gamma)
        laws = []
        for i in range(gamma):
            law = self._law(hidden, options)  # (batch, vocabulary)
            if options.temperature == 0:
                new = law.argmax(-1)
            else:
                new = sample(law, uniforms[:, i].to(law.device))
                laws.append(law)
            tokens[:, i] = new.cpu()
            if i + 1 < gamma:
                hidden = self.model.hidden(new.unsqueeze(1), cache=cache)[:, -1]
        self._read = [torch.cat((text, row[:-1])) for text, row in zip(texts, tokens, strict=True)]
        return Draft(tokens, lengths, torch.stack(laws, 1) if laws else None)

    def _law(self, hidden: Tensor, options: Options) -> Tensor:
        return options.law(self.model.read_out(hidden))

    def _catch_up(self, texts: Sequence[Tensor], gamma: int) -> tuple[Tensor, KeyValueCache]:
        """Forget what was not accepted, read what is new; return the last hidden states."""
        known = [_common(read, text) for read, text in zip(self._read, texts, strict=True)]
        longest = max(map(len, texts))
        if self._cache is None or self._cache.capacity < longest + gamma:
            known, room = [0] * len(texts), 2 * longest + 8 * gamma
            self._cache = self.model.new_cache(len(texts), room)
        self._cache.rollback(known)
        fresh = [text[n:] for text, n in zip(texts, known, strict=True)]
        counts = torch.tensor([len(part) for part in fresh])
        even = len(set(counts.tolist())) == 1
        padded = pad_sequence(fresh, batch_first=True)
        if int(self._cache.lengths.max()) + padded.shape[1] > self._cache.capacity:
            self._cache = (
                None  # one text is read anew beside a long one: begin again, with more room
            )
            return self._catch_up(texts, gamma)
        hidden = self.model.hidden(padded, cache=self._cache, lengths=None if even else counts)
        return hidden[torch.arange(len(texts)), (counts - 1).to(hidden.device)], self._cache


def _common(read: Tensor, text: Tensor) -> int:
    """Return how many tokens of the text were read already; its last one is always read again."""
    shared = min(len(read), len(text) - 1)
    different = (read[:shared] != text[:shared]).nonzero()
    return int(different[0]) if len(different) else shared


class EarlyExitDrafter(ModelDrafter):
    """Let the first layers of the large model write the draft, and read it out after them.

    Parameters
    ----------
    model
        The large model.
    layers
        How many of its layers to run, from 1 to all.

    Raises
    ------
    ValueError
        If there are not so many layers.

    Notes
    -----
    Self-speculative decoding; Elhoushi et al. (2024), LayerSkip, train the model for it, which
    SmolLM2 was not. Ledger: `speculative_decoding:drafters`.

    Examples
    --------
    >>> from pkg.data.smollm2 import smollm2
    >>> EarlyExitDrafter(smollm2(), 25).model.shape.layers
    25
    """

    def __init__(self, model: LanguageModel, layers: int) -> None:
        if not isinstance(layers, int) or layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers!r}")
        super().__init__(model.first_layers(layers))


class DistilledDrafter(ModelDrafter):
    """Let a student of the large model write the draft: a million weights, and its teacher's embedding.

    Parameters
    ----------
    teacher
        The large model.
    path
        The recorded student: a `.npz` file that
        `python -m book.recordings.speculative_decoding_drafter` writes.

    Raises
    ------
    ValueError
        If the file does not belong to such a teacher.

    Notes
    -----
    The student gives probability to a shortlist of common tokens alone; others are left to the
    verification, which makes up for them. Hinton, Vinyals and Dean (2015). Ledger:
    `speculative_decoding:drafters`.

    Examples
    --------
    >>> from pkg.data.smollm2 import smollm2
    >>> path = "book/recordings/speculative_decoding_drafter.npz"
    >>> DistilledDrafter(smollm2(), path).model.shape.layers
    2
    """

    def __init__(self, teacher: LanguageModel, path: str | Path) -> None:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored
                      if name not in ("shortlist", "answers")}  # fmt: skip
            self.shortlist = torch.from_numpy(stored["shortlist"].astype(np.int64))
        if arrays["shrink"].shape[1] != teacher.shape.width:
            raise ValueError(
                f"path must hold a student of a teacher of width {teacher.shape.width}, "
                f"got {arrays['shrink'].shape[1]}"
            )
        kind = teacher.dtype if teacher.dtype == torch.float64 else torch.float32
        own = {name: array.to(teacher.device, kind) for name, array in arrays.items()}
        self.shortlist = self.shortlist.to(teacher.device)
        super().__init__(student_model(teacher, own, self.shortlist))

    def _law(self, hidden: Tensor, options: Options) -> Tensor:
        short = options.law(self.model.read_out(hidden))  # (batch, shortlist)
        law = short.new_zeros(len(short), self.model.shape.vocabulary)
        return law.index_copy_(1, self.shortlist, short)
