"""Random words for each element, by Philox: a function of the seed and the element's index alone.

Element i of a tensor in row-major order gets the same word whatever the blocks of the launch. Philox
gives four 32-bit words for a counter. Where 32 bits are wanted, counter i // 4 gives element i its
word i mod 4; where 16 are enough, counter i // 8 gives it half of word (i mod 8) // 2, the lower half
first. Several words for an element come from several streams, the third part of the counter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.mixed_precision import configs

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"

_ROUNDS = tl.constexpr(configs.PHILOX_ROUNDS)


@triton.jit
def _philox(seed, counter, STREAM: tl.constexpr):
    """Return four blocks of uint32 for a block of int64 counters."""
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, low * 0 + STREAM, low * 0, _ROUNDS)


@triton.jit
def random_words(seed, start, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """Return uint32 for elements start … start + BLOCK; 4 divides start."""
    a, b, c, d = _philox(seed, start // 4 + tl.arange(0, BLOCK // 4), STREAM)
    # The last axis runs fastest: word 2·j + k is at (j, k).
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK,))


@triton.jit
def random_halfwords(seed, start, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """Return uint32 of which the upper 16 bits are random, the lower 0; 8 divides start."""
    a, b, c, d = _philox(seed, start // 8 + tl.arange(0, BLOCK // 8), STREAM)
    pairs = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(tl.join(pairs << 16, pairs & 0xFFFF0000), (BLOCK,))
