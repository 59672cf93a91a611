"""The one table of blocks and warps: launchers, compile gate and benchmarks read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """How a kernel is cut: elements of a program, a power of two from 256 up, and its warps."""

    block: int
    num_warps: int


#: By kernel. A thread has 8 elements (16 bytes of bfloat16), or twice as many.
CONFIGS: dict[str, Config] = {
    "round": Config(block=2048, num_warps=4),
    "adamw": Config(block=1024, num_warps=4),
}
#: Rounds of Philox 4x32. From 7 on it passes all of BigCrush (Salmon et al., 2011, table 2).
PHILOX_ROUNDS = 7
