"""Drafters without a model: copy what followed the same words earlier, here or in a store of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from pkg.algos.speculative_decoding.drafts import Draft, Options, packed
from pkg.arguments import whole


class PromptLookupDrafter:
    """Propose what came after the latest earlier place with the same last n tokens.

    Parameters
    ----------
    max_ngram, min_ngram
        The longest n that is tried first, and the shortest; 1 <= min_ngram <= max_ngram.

    Raises
    ------
    TypeError, ValueError
        If they are not such integers.

    Notes
    -----
    It costs next to nothing and needs no training. A copy that reaches the end of the text goes on
    with what it has copied, so that a loop is continued. Saxena (2023), prompt lookup decoding.
    Ledger: `speculative_decoding:drafters`.

    Examples
    --------
    >>> drafter = PromptLookupDrafter()
    >>> text = torch.tensor([5, 6, 7, 8, 9, 5, 6])
    >>> drafter.propose([text], 4, Options(), torch.empty(1, 4)).tokens
    tensor([[7, 8, 9, 5]])
    """

    def __init__(self, max_ngram: int = 4, min_ngram: int = 2) -> None:
        whole("min_ngram", min_ngram, 1)
        whole("max_ngram", max_ngram, min_ngram)
        self.max_ngram, self.min_ngram = max_ngram, min_ngram

    def start(self, requests: int, vocabulary: int) -> None:
        """Begin with new texts: there is nothing to remember."""

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these of the texts alone: there is nothing to forget."""

    def propose(
        self, texts: Sequence[Tensor], gamma: int, options: Options, uniforms: Tensor
    ) -> Draft:
        """Propose a copy for each text, or nothing; see `Drafter`."""
        return packed([self._copy(text.cpu(), gamma) for text in texts], gamma)

    def _copy(self, text: Tensor, gamma: int) -> list[int]:
        for n in range(min(self.max_ngram, len(text) - 1), self.min_ngram - 1, -1):
            windows = text.unfold(0, n, 1)  # (places, n)
            places = (windows[:-1] == windows[-1]).all(1).nonzero()
            if len(places):
                first = int(places[-1]) + n
                found = text[first : first + gamma].tolist()
                while len(found) < gamma:  # the copy has caught up with the end
                    found.append(found[len(found) - (len(text) - first)])
                return found
        return []


class RetrievalDrafter:
    """Propose what mostly came after the same last words in a store of texts.

    Parameters
    ----------
    store
        Token ids, (tokens,): texts one after the other.
    max_ngram, min_ngram
        How many last tokens may and must agree; 1 <= min_ngram <= max_ngram.

    Raises
    ------
    TypeError, ValueError
        If the store is not such a tensor, or the numbers are out of range; when
        `speculative_generate` starts, if it holds ids that the model does not have.

    Notes
    -----
    Of the places where the most last tokens agree, each next token is the one that most of them go on
    with. He et al. (2024), REST. Ledger: `speculative_decoding:drafters`.

    Examples
    --------
    >>> drafter = RetrievalDrafter(torch.tensor([1, 2, 3, 4, 0, 1, 2, 3, 5, 0, 1, 2, 3, 5]))
    >>> drafter.propose([torch.tensor([9, 1, 2])], 3, Options(), torch.empty(1, 3)).tokens
    tensor([[3, 5, 0]])
    """

    def __init__(self, store: Tensor, max_ngram: int = 6, min_ngram: int = 2) -> None:
        whole("min_ngram", min_ngram, 1)
        whole("max_ngram", max_ngram, min_ngram)
        if not isinstance(store, Tensor) or store.is_floating_point() or store.dtype == torch.bool:
            kind = store.dtype if isinstance(store, Tensor) else type(store).__name__
            raise TypeError(f"store must be an integer tensor, got {kind}")
        if store.ndim != 1 or not len(store):
            raise ValueError(f"store must have shape (tokens,), got {tuple(store.shape)}")
        self.max_ngram, self.min_ngram = max_ngram, min_ngram
        self._store: list[int] = store.tolist()
        self._places: dict[tuple[int, ...], list[int]] = {}
        for i in range(min_ngram, len(self._store) + 1):  # i: where the continuation begins
            self._places.setdefault(tuple(self._store[i - min_ngram : i]), []).append(i)

    def start(self, requests: int, vocabulary: int) -> None:
        """Begin with new texts, of ids below `vocabulary`."""
        if max(self._store) >= vocabulary or min(self._store) < 0:
            raise ValueError(f"store must hold ids from 0 to {vocabulary - 1}")

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these of the texts alone: there is nothing to forget."""

    def propose(
        self, texts: Sequence[Tensor], gamma: int, options: Options, uniforms: Tensor
    ) -> Draft:
        """Propose what the store says for each text, or nothing; see `Drafter`."""
        return packed([self._vote(text.tolist(), gamma) for text in texts], gamma)

    def _vote(self, text: list[int], gamma: int) -> list[int]:
        places = self._places.get(tuple(text[-self.min_ngram :]), [])
        for n in range(self.min_ngram + 1, min(self.max_ngram, len(text)) + 1):
            longer = [i for i in places if i >= n and self._store[i - n] == text[-n]]
            if not longer:
                break
            places = longer
        found: list[int] = []
        while len(found) < gamma:
            votes = Counter(self._store[i] for i in places if i < len(self._store))
            if not votes:
                break
            best = votes.most_common(1)[0][0]
            places = [i + 1 for i in places if i < len(self._store) and self._store[i] == best]
            found.append(best)
        return found
