"""The one table of tiles, warps and stages: launchers, compile gate and benchmarks read it."""

from __future__ import annotations

from dataclasses import dataclass

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


#: By kernel, bits of a number, and head_dim rounded up to a power of two.
CONFIGS: dict[tuple[str, int, int], Config] = {
    ("forward", 16, 16): Config(128, 128, 4, 3),
    ("forward", 16, 32): Config(128, 128, 4, 3),
    ("forward", 16, 64): Config(128, 128, 8, 3),
    ("forward", 16, 128): Config(128, 128, 8, 3),
    ("forward", 16, 256): Config(128, 64, 8, 2),
    ("forward", 32, 16): Config(64, 32, 4, 2),
    ("forward", 32, 32): Config(64, 32, 4, 2),
    ("forward", 32, 64): Config(64, 32, 4, 2),
    ("forward", 32, 128): Config(64, 32, 8, 2),
    ("forward", 32, 256): Config(32, 32, 8, 1),
    ("dq", 16, 16): Config(128, 64, 8, 3),
    ("dq", 16, 32): Config(128, 64, 8, 3),
    ("dq", 16, 64): Config(128, 64, 8, 3),
    ("dq", 16, 128): Config(128, 64, 8, 2),
    ("dq", 16, 256): Config(64, 32, 8, 2),
    ("dq", 32, 16): Config(32, 32, 4, 2),
    ("dq", 32, 32): Config(32, 32, 4, 2),
    ("dq", 32, 64): Config(32, 32, 4, 2),
    ("dq", 32, 128): Config(32, 32, 8, 1),
    ("dq", 32, 256): Config(16, 16, 8, 1),
    ("dkv", 16, 16): Config(64, 128, 8, 3),
    ("dkv", 16, 32): Config(64, 128, 8, 3),
    ("dkv", 16, 64): Config(64, 128, 8, 3),
    ("dkv", 16, 128): Config(64, 128, 8, 2),
    ("dkv", 16, 256): Config(32, 64, 8, 2),
    ("dkv", 32, 16): Config(32, 32, 4, 2),
    ("dkv", 32, 32): Config(32, 32, 4, 2),
    ("dkv", 32, 64): Config(32, 32, 4, 2),
    ("dkv", 32, 128): Config(32, 32, 8, 1),
    ("dkv", 32, 256): Config(16, 16, 8, 1),
    ("decode", 16, 16): Config(16, 64, 4, 3),
    ("decode", 16, 32): Config(16, 64, 4, 3),
    ("decode", 16, 64): Config(16, 64, 4, 3),
    ("decode", 16, 128): Config(16, 64, 4, 3),
    ("decode", 16, 256): Config(16, 64, 4, 2),
    ("decode", 32, 16): Config(16, 32, 4, 2),
    ("decode", 32, 32): Config(16, 32, 4, 2),
    ("decode", 32, 64): Config(16, 32, 4, 2),
    ("decode", 32, 128): Config(16, 32, 4, 2),
    ("decode", 32, 256): Config(16, 32, 4, 1),
}


def block_d(head_dim: int) -> int:
    """Return the power of two, at least 16, that holds head_dim."""
    return max(16, 1 << (head_dim - 1).bit_length())


def choose(kernel: str, dtype: torch.dtype, head_dim: int, general: bool = False) -> Config:
    """Return the configuration of a kernel; `general` if it reads a mask or a tree."""
    name = f"{kernel}, masked" if general else kernel
    return CONFIGS[name, 8 * dtype.itemsize, block_d(head_dim)]


def precision(dtype: torch.dtype) -> str:
    """Return the precision of products: full float32 for float32, which is not the default."""
    return "ieee" if dtype == torch.float32 else "tf32"
