"""The one table of blocks and warps: launchers, compile gate and benchmarks read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """How a kernel is cut: tokens of the vocabulary at a time, a power of two, and its warps."""

    block: int
    num_warps: int


#: By kernel. "partial", "mass" and "pick" share a block: what the first two sum up, the last opens.
CONFIGS: dict[str, Config] = {
    "partial": Config(block=4096, num_warps=8),
    "settle": Config(block=1024, num_warps=16),
    "test": Config(block=0, num_warps=1),  # its block is the draft's length
    "mass": Config(block=4096, num_warps=8),
    "pick": Config(block=4096, num_warps=8),
    "tree": Config(block=4096, num_warps=16),
}
