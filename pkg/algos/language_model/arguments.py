"""The checks at the door of the language model: each names what does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pkg.algos.language_model.cache import KeyValueCache


def check_layers(layers: int, most: int) -> None:
    """Raise unless `layers` is between 0 and `most`."""
    if isinstance(layers, bool) or not isinstance(layers, int) or not 0 <= layers <= most:
        raise ValueError(f"layers must be between 0 and {most}, got {layers!r}")


def token_ids(tokens: Tensor | Sequence[int], vocabulary: int) -> Tensor:
    """Return the ids as a tensor, (tokens,) or (batch, tokens)."""
    ids = torch.as_tensor(tokens)
    if ids.ndim not in (1, 2) or not ids.shape[-1]:
        raise ValueError(
            "tokens must have shape (tokens,) or (batch, tokens) with at least one token, "
            f"got {tuple(ids.shape)}"
        )
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.is_complex():
        raise TypeError(f"tokens must be integer, got {ids.dtype}")
    # On the GPU looking at the values would stall every step.
    if ids.device.type == "cpu" and ids.numel():
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= vocabulary:
            wrong = least if least < 0 else most
            raise ValueError(f"tokens must be between 0 and {vocabulary - 1}, got {wrong}")
    return ids.long()


def row_lengths(lengths: Tensor | Sequence[int] | None, rows: Tensor) -> Tensor | None:
    """Return how many tokens of each row are real, (batch,) on the CPU, or None for all."""
    if lengths is None:
        return None
    counts = torch.as_tensor(lengths).cpu()
    if counts.is_floating_point() or counts.dtype == torch.bool:
        raise TypeError(f"lengths must be integer, got {counts.dtype}")
    if counts.shape != rows.shape[:1]:
        raise ValueError(f"lengths must have shape ({len(rows)},), got {tuple(counts.shape)}")
    if bool(((counts < 0) | (counts > rows.shape[1])).any()):
        raise ValueError(f"lengths must be between 0 and {rows.shape[1]}, got {counts.tolist()}")
    return counts.long()


def cached(cache: KeyValueCache | None, rows: Tensor, own_attention: bool) -> Tensor | None:
    """Return the lengths of the cached texts, if there is a cache."""
    if cache is None:
        return None
    if own_attention:
        raise ValueError("attend is for passes without a cache")
    if cache.batch != len(rows):
        raise ValueError(f"tokens must have a row for each of the cache's {cache.batch} texts, "
                         f"got {len(rows)}")  # fmt: skip
    return cache.lengths


def places(
    positions: Tensor | None, rows: Tensor, starts: Tensor | None, counts: Tensor | None,
    context: int,
) -> Tensor:  # fmt: skip
    """Return the positions, (tokens,) or (batch, tokens), on the CPU unless the caller gave them."""
    batch, tokens = rows.shape
    if positions is None:
        order = torch.arange(tokens)
        even = starts is None or len(set(starts.tolist())) < 2
        first = torch.zeros(1, dtype=torch.int64) if starts is None else starts
        found = order + (first[:1] if even else first.unsqueeze(1))
        real = torch.full((batch,), tokens) if counts is None else counts
        most = int((first + real).max()) if batch else 0
        if most > context:
            raise ValueError(f"tokens must end within the context of {context}, got {most}")
        return found
    if positions.is_floating_point() or positions.dtype == torch.bool:
        raise TypeError(f"positions must be integer, got {positions.dtype}")
    if tuple(positions.shape) not in ((tokens,), (1, tokens), (batch, tokens)):
        raise ValueError(
            f"positions must have shape ({tokens},) or ({batch}, {tokens}), "
            f"got {tuple(positions.shape)}"
        )
    if positions.device.type == "cpu" and positions.numel():
        least, most = int(positions.min()), int(positions.max())
        if least < 0 or most >= context:
            wrong = least if least < 0 else most
            raise ValueError(f"positions must be between 0 and {context - 1}, got {wrong}")
    return positions
