"""The numbers that the kernels of rectified flow draw, from Philox in NumPy and float64 formulas."""

from __future__ import annotations

import numpy as np
import torch

from pkg.algos.rectified_flow.operator import _NOISE, _TIMES
from tests.cuda.philox import philox

SEED = 0x1234_5678_9ABC_DEF0 >> 1


def words(samples: np.ndarray, quads: np.ndarray, stream: int, rounds: int) -> np.ndarray:
    """Return uint32, (n, 4), for n samples and quads (places // 4)."""
    counters = np.zeros((len(samples), 4), dtype=np.uint64)
    counters[:, 0], counters[:, 1] = quads, samples >> np.uint64(32)
    counters[:, 2], counters[:, 3] = stream, samples & np.uint64(0xFFFFFFFF)
    return philox(counters, (SEED & 0xFFFFFFFF, SEED >> 32), rounds)


def normal_pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Box & Muller in float64; the first word is rounded to float32, as the kernel does."""
    uniform = (first.astype(np.float32) + np.float32(0.5)).astype(np.float64) * 2.0**-32
    angle = 2 * np.pi * (second.astype(np.float64) * 2.0**-32)
    radius = np.sqrt(-2 * np.log(uniform))
    return radius * np.cos(angle), radius * np.sin(angle)


def noise(rows: int, size: int, rounds: int) -> torch.Tensor:
    """Return float64, (rows, size)."""
    quads = (size + 3) // 4
    samples = np.repeat(np.arange(rows, dtype=np.uint64), quads)
    drawn = words(samples, np.tile(np.arange(quads, dtype=np.uint64), rows), _NOISE, rounds)
    pairs = [normal_pairs(drawn[:, i], drawn[:, i + 1]) for i in (0, 2)]
    whole = np.stack([*pairs[0], *pairs[1]], axis=1).reshape(rows, 4 * quads)
    return torch.from_numpy(whole[:, :size].copy())


def times(rows: int, kind: str, mean: float, std: float, rounds: int) -> torch.Tensor:
    """Return float64, (rows,)."""
    samples = np.arange(rows, dtype=np.uint64)
    drawn = words(samples, samples * np.uint64(0), _TIMES, rounds)
    if kind == "uniform":
        return torch.from_numpy(((drawn[:, 0] >> 9).astype(np.float64) + 0.5) * 2.0**-23)
    normal, _ = normal_pairs(drawn[:, 0], drawn[:, 1])
    return torch.sigmoid(torch.from_numpy(mean + std * normal))
