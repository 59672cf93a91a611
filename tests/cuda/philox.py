"""Philox 4x32 in NumPy, from the paper (Salmon et al., 2011), and the words that elements get."""

from __future__ import annotations

import numpy as np
import torch

_MASK = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85


def philox(counters: np.ndarray, key: tuple[int, int], rounds: int) -> np.ndarray:
    """Return uint32 words, (n, 4), for counters (n, 4)."""
    c = [counters[:, i].astype(np.uint64) for i in range(4)]
    k = list(key)
    for _ in range(rounds):
        first, second = c[0] * _MULTIPLIERS[0], c[2] * _MULTIPLIERS[1]  # 64 bits hold the product
        c = [
            (second >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            second & _MASK,
            (first >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            first & _MASK,
        ]
        k = [(k[i] + _WEYL[i]) & 0xFFFFFFFF for i in range(2)]
    return np.stack(c, axis=1).astype(np.uint32)


def words(seed: int, count: int, rounds: int, stream: int = 0, first: int = 0) -> torch.Tensor:
    """Return int64, (count,): the 32-bit words of elements `first` (a multiple of 4) and on."""
    indices = np.arange(first // 4, (first + count + 3) // 4, dtype=np.uint64)
    counters = np.zeros((len(indices), 4), dtype=np.uint64)
    counters[:, 0], counters[:, 1] = indices & _MASK, indices >> np.uint64(32)
    counters[:, 2] = stream
    key = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    drawn = philox(counters, key, rounds).reshape(-1)[:count]
    return torch.from_numpy(drawn.astype(np.int64))


def halfwords(seed: int, count: int, rounds: int, stream: int = 0) -> torch.Tensor:
    """Return int64, (count,): the 16-bit halves, of each word the lower one first."""
    full = words(seed, (count + 7) // 8 * 4, rounds, stream)
    return torch.stack([full & 0xFFFF, full >> 16], dim=1).reshape(-1)[:count]
