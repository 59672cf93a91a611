"""The keys and values of what was read already: preallocated, rolled back, put in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of a batch of texts, each with a length of its own.

    `LanguageModel` fills it. What lies behind a text's length is never looked at, so forgetting
    tokens costs nothing.

    Parameters
    ----------
    layers, batch, kv_heads, capacity, head_dim
        The sizes; a text can have up to `capacity` tokens.
    dtype, device
        Of keys and values.

    Raises
    ------
    ValueError
        If a size is not positive (the batch may be 0).

    Notes
    -----
    Ledger: `speculative_decoding:cache`.

    Examples
    --------
    >>> cache = KeyValueCache(layers=2, batch=1, kv_heads=1, capacity=8, head_dim=4)
    >>> k = torch.ones(1, 1, 3, 4)
    >>> cache.write(0, k, k)[0].shape
    torch.Size([1, 1, 3, 4])
    >>> cache.advance(3)
    >>> cache.rollback([2])
    >>> cache.lengths
    tensor([2])
    """

    def __init__(
        self, *, layers: int, batch: int, kv_heads: int, capacity: int, head_dim: int,
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        sizes = {"layers": layers, "kv_heads": kv_heads, "capacity": capacity, "head_dim": head_dim}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if batch < 0:
            raise ValueError(f"batch must not be negative, got {batch}")
        shape = (layers, batch, kv_heads, capacity, head_dim)
        # Zeros, not empty memory: what is masked still takes part in a product with weight 0.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        #: Tokens in each text, (batch,), on the CPU.
        self.lengths = torch.zeros(batch, dtype=torch.int64)

    @property
    def batch(self) -> int:
        """How many texts there are."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """How many tokens a text can have."""
        return self.keys.shape[3]

    @property
    def uniform(self) -> int | None:
        """The length of all texts if they have one, else None."""
        lengths = self.lengths.tolist()
        return lengths[0] if lengths and min(lengths) == max(lengths) else None

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values (batch, kv_heads, tokens, head_dim) behind each text's end.

        Returns views on all keys and values up to the last that was written, (batch, kv_heads, end,
        head_dim). `advance` then makes the new tokens count.

        Raises
        ------
        ValueError
            If they do not fit.
        """
        tokens = k.shape[2]
        end = int(self.lengths.max()) + tokens if self.batch else tokens
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens of a text, got {end}")
        keys, values = self.keys[layer], self.values[layer]
        start = self.uniform
        if start is not None:
            keys[:, :, start:end] = k
            values[:, :, start:end] = v
        else:
            rows, slots = self._slots(tokens)
            keys[rows, :, slots] = k.transpose(1, 2)  # (batch, tokens, kv_heads, head_dim)
            values[rows, :, slots] = v.transpose(1, 2)
        return keys[:, :, :end], values[:, :, :end]

    def _slots(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return the rows (batch, 1) and places (batch, tokens) of the next tokens."""
        device = self.keys.device
        slots = self.lengths.unsqueeze(1) + torch.arange(tokens)
        return torch.arange(self.batch, device=device).unsqueeze(1), slots.to(device)

    def advance(self, tokens: int | Tensor) -> None:
        """Make `tokens` more count: the same for all texts, or (batch,)."""
        self.lengths = self.lengths + (tokens.cpu() if isinstance(tokens, Tensor) else tokens)

    def rollback(self, lengths: Tensor | Sequence[int]) -> None:
        """Forget what lies behind these lengths, (batch,).

        Raises
        ------
        ValueError
            If there is not one for each text, between 0 and its present length.
        """
        wanted = torch.as_tensor(lengths, dtype=torch.int64).cpu()
        if wanted.shape != self.lengths.shape:
            raise ValueError(f"lengths must have shape ({self.batch},), got {tuple(wanted.shape)}")
        if bool(((wanted < 0) | (wanted > self.lengths)).any()):
            raise ValueError(
                f"lengths must be between 0 and {self.lengths.tolist()}, got {wanted.tolist()}"
            )
        self.lengths = wanted.clone()

    def keep(self, path: Tensor, start: Tensor | Sequence[int]) -> None:
        """Keep of each text's newest tokens those on a path, in its order, and forget the others.

        Parameters
        ----------
        path
            Integer, (batch, depth): which of the tokens from `start` on are kept, counted from 0,
            each after its predecessor; -1 where a path has ended. `verify_tree` gives it.
        start
            (batch,): the length of each text before those tokens came.

        Raises
        ------
        ValueError
            If shapes do not fit, or a path leaves the tokens that were written or turns back.
        """
        begin = torch.as_tensor(start, dtype=torch.int64).cpu()
        path = path.cpu()
        if path.ndim != 2 or path.shape[0] != self.batch or begin.shape != self.lengths.shape:
            raise ValueError(
                f"path must have shape ({self.batch}, depth) and start ({self.batch},), "
                f"got {tuple(path.shape)} and {tuple(begin.shape)}"
            )
        counts = (path >= 0).sum(1)
        for row, count in enumerate(counts.tolist()):
            kept, first = path[row, :count], int(begin[row])
            room = int(self.lengths[row]) - first
            inside = count == 0 or (first >= 0 and int(kept[-1]) < room)
            if not inside or bool((kept[1:] <= kept[:-1]).any()):
                raise ValueError(f"path {path[row].tolist()} does not fit {room} new tokens")
            if count and kept.tolist() != list(range(count)):
                slots = (first + kept).to(self.keys.device)
                for store in (self.keys, self.values):  # the gathered copy is made before writing
                    store[:, row, :, first : first + count] = store[:, row, :, slots]
        self.lengths = begin + counts

    def select(self, rows: Tensor | Sequence[int]) -> None:
        """Keep these texts of the batch, in this order; one may be named more than once.

        Raises
        ------
        ValueError
            If a row is not there.
        """
        wanted = torch.as_tensor(rows, dtype=torch.int64).cpu()
        if wanted.ndim != 1 or bool(((wanted < 0) | (wanted >= self.batch)).any()):
            raise ValueError(f"rows must be between 0 and {self.batch - 1}, got {wanted.tolist()}")
        if wanted.tolist() == list(range(self.batch)):
            return
        there = wanted.to(self.keys.device)
        self.keys, self.values = self.keys[:, there], self.values[:, there]
        self.lengths = self.lengths[wanted]
