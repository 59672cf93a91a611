"""The one table of tiles and warps: launchers, compile gate and benchmarks read it."""

from __future__ import annotations

from pkg.cuda.mixed_precision.configs import PHILOX_ROUNDS, Config

__all__ = ["CONFIGS", "PHILOX_ROUNDS", "Config", "tile"]


#: By kernel. A thread has 8 elements: one load of 16 bytes in half precision, two in float32.
CONFIGS: dict[str, Config] = {
    "path": Config(block=1024, num_warps=4),
    "step": Config(block=1024, num_warps=4),
    "times": Config(block=256, num_warps=2),
}


def tile(size: int, block: int) -> tuple[int, int]:
    """Return the rows and columns of a program's tile, powers of two with the product `block`.

    A row is a sample of `size` elements. A short sample shares its program with others; a long one
    has several programs. Four columns at least: that many random words come at a time.
    """
    columns = min(block, max(4, 1 << (size - 1).bit_length()))
    return block // columns, columns
