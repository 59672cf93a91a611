"""The one table of tiles, warps and stages: launchers, compile gate and benchmarks read it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Config:
    """How a kernel is cut.

    Rows of queries and of keys in a tile, warps of a program, stages of its pipeline; the step
    through tiles that need a mask (they take more registers); and whether dK and dV are made by two
    launches (wide heads: both sums do not fit the registers).
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    partial: int = 0
    apart: bool = False


#: By kernel, bits of a number, and the largest head_dim. Narrower heads take the first row that holds
#: them. "masked" rows are for masks and trees, "many rows" for decoding with more than 16 queries that
#: share keys; where there is none, the plain row serves. Each row is compiled for sm_90 by the tests.
CONFIGS: dict[tuple[str, int, int], Config] = {
    ("forward", 16, 64): Config(128, 128, 8, 3, 64),
    ("forward", 16, 128): Config(128, 128, 8, 3, 32),
    ("forward", 16, 256): Config(128, 64, 8, 2, 16),
    ("forward, masked", 16, 64): Config(128, 64, 8, 3, 32),
    ("forward, masked", 16, 128): Config(128, 64, 8, 2, 32),
    ("forward, masked", 16, 256): Config(128, 16, 8, 2, 16),
    ("forward", 32, 64): Config(64, 32, 8, 2, 32),
    ("forward", 32, 128): Config(16, 16, 8, 1, 16),
    ("forward", 32, 256): Config(16, 16, 8, 2, 16),
    ("dq", 16, 64): Config(128, 128, 8, 3, 64),
    ("dq", 16, 128): Config(128, 64, 8, 3, 32),
    ("dq", 16, 256): Config(128, 32, 8, 2, 16),
    ("dq, masked", 16, 64): Config(128, 64, 8, 3, 64),
    ("dq, masked", 16, 128): Config(128, 32, 8, 3, 32),
    ("dq, masked", 16, 256): Config(128, 16, 8, 3, 16),
    ("dq", 32, 64): Config(32, 32, 8, 2, 32),
    ("dq", 32, 128): Config(16, 16, 8, 1, 16),
    ("dq", 32, 256): Config(16, 16, 8, 1, 16),
    ("dkv", 16, 64): Config(128, 128, 8, 3, 64),
    ("dkv", 16, 128): Config(64, 128, 8, 3, 16),
    ("dkv", 16, 256): Config(16, 128, 8, 3, 16, apart=True),
    ("dkv, masked", 16, 64): Config(64, 128, 8, 3, 32),
    ("dkv, masked", 32, 128): Config(32, 16, 8, 1, 16),  # 32 keys spill in Triton 3.6
    ("dkv", 32, 64): Config(32, 32, 8, 2, 32),
    ("dkv", 32, 128): Config(32, 32, 8, 1, 16),
    ("dkv", 32, 256): Config(16, 16, 8, 1, 16),
    ("decode", 16, 64): Config(16, 64, 4, 3, 32),
    ("decode", 16, 128): Config(16, 64, 4, 3, 32),
    ("decode", 16, 256): Config(16, 64, 4, 2, 16),
    ("decode, many rows", 16, 64): Config(64, 64, 4, 3, 32),
    ("decode, many rows", 16, 128): Config(64, 64, 4, 3, 16),
    ("decode, many rows", 16, 256): Config(64, 32, 8, 2, 16),
    ("decode", 32, 64): Config(16, 32, 4, 2, 16),
    ("decode", 32, 128): Config(16, 16, 4, 1, 16),
    ("decode", 32, 256): Config(16, 16, 8, 1, 16),
}

#: The two small kernels: rows in a block of `delta`, parts in a block of `merge`, and their warps.
DELTA_BLOCK, DELTA_WARPS = 16, 4
MERGE_BLOCK, MERGE_WARPS = 32, 4


def block_d(head_dim: int) -> int:
    """Return the power of two, at least 16, that holds head_dim."""
    return max(16, 1 << (head_dim - 1).bit_length())


def choose(
    kernel: str, dtype: torch.dtype, head_dim: int, general: bool = False, rows: int = 0
) -> Config:
    """Return the configuration of a kernel.

    `general` if it reads a mask or a tree; `rows` of queries that share keys while decoding.
    """
    kind = ", masked" if general else ", many rows" if rows > 16 else ""
    place = (8 * dtype.itemsize, max(64, block_d(head_dim)))
    if kernel == "decode" and head_dim % 16:  # a cache is not copied: its rows begin anywhere
        return replace(CONFIGS[(kernel, *place)], block_n=16, partial=16, num_warps=8, num_stages=1)
    return CONFIGS.get((kernel + kind, *place)) or CONFIGS[(kernel, *place)]


def precision(dtype: torch.dtype) -> str:
    """Return the precision of products: full float32 for float32, which is not the default."""
    return "ieee" if dtype == torch.float32 else "tf32"
