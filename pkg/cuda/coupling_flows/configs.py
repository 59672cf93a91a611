"""The one table of tiles and warps: launchers, compile gate and benchmarks read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """How a kernel is cut: samples and elements of a tile, the warps and stages of a program.

    For "stack", `columns` is how many hidden units of the second layer are made at once.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int = 1


#: By kernel and what choose(…) rounds up to: for "couple" and "gradient" the elements of a sample,
#: for "stack" the bits of a weight and the hidden width.
CONFIGS: dict[tuple[str, int, int], Config] = {
    ("couple", 0, 16): Config(64, 16, 4),
    ("couple", 0, 64): Config(16, 64, 4),
    ("couple", 0, 256): Config(4, 256, 4),
    ("couple", 0, 1024): Config(1, 1024, 4),
    ("gradient", 0, 16): Config(64, 16, 4),
    ("gradient", 0, 64): Config(16, 64, 4),
    ("gradient", 0, 256): Config(4, 256, 4),
    ("gradient", 0, 1024): Config(1, 1024, 4),
    ("stack", 16, 64): Config(64, 64, 4, 2),
    ("stack", 16, 128): Config(64, 64, 8, 2),
    ("stack", 32, 64): Config(32, 32, 8),
    ("stack", 32, 128): Config(32, 32, 8),
}


def choose(kernel: str, size: int, dtype: torch.dtype | None = None) -> Config:
    """Return the configuration whose row holds `size`, or is the largest.

    `size`: elements of a sample, or for "stack" the hidden width, with the `dtype` of the weights.
    """
    bits = 0 if dtype is None else 8 * dtype.itemsize
    sizes = [key[2] for key in CONFIGS if key[:2] == (kernel, bits)]
    return CONFIGS[kernel, bits, min((s for s in sizes if s >= size), default=max(sizes))]


def precision(dtype: torch.dtype) -> str:
    """Return how products are made: of float32, three of TF32, which keep some 21 bits."""
    return "tf32x3" if dtype == torch.float32 else "tf32"
