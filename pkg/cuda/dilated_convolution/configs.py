"""The one table of tiles, warps and stages: launchers, compile gate and benchmarks read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """How a kernel is cut.

    `block_m`, `block_n`, `block_k`: rows and columns of the matrix product's tile, and the length of
    one step of its sum. For depthwise kernels: `block_m` pixels and `block_n` channels; the forward
    tile is `rows` pixels high; the weight's gradient takes `block_k` taps at once. Then the warps of
    a program and the stages of its pipeline.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int = 1
    rows: int = 1


#: By kernel, bits of a number, and the widths that choose(…) rounds the channels up to.
#: "correlate" is the forward pass and the input's gradient, "weight" the weight's gradient.
CONFIGS: dict[tuple[str, int, int, int], Config] = {
    # channels out, channels in
    ("correlate", 16, 16, 16): Config(128, 16, 16, 4, 4),
    ("correlate", 16, 16, 32): Config(128, 16, 32, 4, 4),
    ("correlate", 16, 16, 64): Config(128, 16, 64, 4, 4),
    ("correlate", 16, 32, 16): Config(128, 32, 16, 4, 4),
    ("correlate", 16, 32, 32): Config(128, 32, 32, 4, 4),
    ("correlate", 16, 32, 64): Config(128, 32, 64, 4, 4),
    ("correlate", 16, 64, 16): Config(128, 64, 16, 4, 4),
    ("correlate", 16, 64, 32): Config(128, 64, 32, 4, 4),
    ("correlate", 16, 64, 64): Config(128, 64, 64, 4, 4),
    ("correlate", 16, 128, 16): Config(128, 128, 16, 8, 4),
    ("correlate", 16, 128, 32): Config(128, 128, 32, 8, 4),
    ("correlate", 16, 128, 64): Config(128, 128, 64, 8, 4),
    ("correlate", 16, 256, 16): Config(128, 256, 16, 8, 3),
    ("correlate", 16, 256, 32): Config(128, 256, 32, 8, 3),
    ("correlate", 16, 256, 64): Config(128, 256, 64, 8, 3),
    ("correlate", 32, 16, 16): Config(64, 16, 16, 4, 2),
    ("correlate", 32, 16, 32): Config(64, 16, 32, 4, 2),
    ("correlate", 32, 64, 16): Config(64, 64, 16, 8, 2),
    ("correlate", 32, 64, 32): Config(64, 64, 32, 4, 2),
    ("weight", 16, 64, 16): Config(64, 16, 64, 4, 4),
    ("weight", 16, 64, 64): Config(64, 64, 64, 4, 4),
    ("weight", 16, 64, 128): Config(64, 128, 64, 4, 4),
    ("weight", 16, 128, 16): Config(128, 16, 64, 4, 4),
    ("weight", 16, 128, 64): Config(128, 64, 64, 8, 4),
    ("weight", 16, 128, 128): Config(128, 128, 64, 8, 3),
    ("weight", 32, 16, 16): Config(16, 16, 32, 4, 2),
    ("weight", 32, 16, 64): Config(16, 64, 32, 4, 2),
    ("weight", 32, 64, 16): Config(64, 16, 32, 4, 2),
    ("weight", 32, 64, 64): Config(64, 64, 32, 8, 2),
    # channels, taps
    ("depthwise", 16, 64, 0): Config(32, 64, 1, 4, rows=4),
    ("depthwise", 32, 32, 0): Config(32, 32, 1, 4, rows=4),
    ("depthwise weight", 16, 32, 4): Config(32, 32, 4, 4),
    ("depthwise weight", 16, 32, 16): Config(8, 32, 16, 4),
    ("depthwise weight", 32, 32, 4): Config(16, 32, 4, 4),
    ("depthwise weight", 32, 32, 16): Config(8, 32, 16, 4),
}


def choose(kernel: str, dtype: torch.dtype, wide: int = 1, deep: int = 1) -> Config:
    """Return the configuration of a kernel whose last two keys hold `wide` and `deep`, or are largest.

    For "correlate": channels out and in, of one group. For "weight": the same. For "depthwise":
    neither. For "depthwise weight": `deep` is the number of taps.
    """
    bits = 8 * dtype.itemsize
    rows = [key[2:] for key in CONFIGS if key[:2] == (kernel, bits)]
    first = _hold(wide, [row[0] for row in rows])
    second = _hold(deep, [row[1] for row in rows if row[0] == first])
    return CONFIGS[kernel, bits, first, second]


def _hold(number: int, sizes: list[int]) -> int:
    """Return the smallest of `sizes` that holds `number`, or the largest."""
    return min((size for size in sizes if size >= number), default=max(sizes))


def precision(dtype: torch.dtype) -> str:
    """Return the precision of products: full float32 for float32, which is not the default."""
    return "ieee" if dtype == torch.float32 else "tf32"
