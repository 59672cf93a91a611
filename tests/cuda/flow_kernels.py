"""Kernels that do nothing but show the random numbers of the kernels of rectified flow."""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.rectified_flow.randomness import normal_pair, turn, words


@triton.jit
def words_kernel(out, seed, sample, quad, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    a, b, c, d = words(tl.load(seed), sample + at * 0, quad + at, STREAM)
    tl.store(out + 4 * at, a.to(tl.int64))
    tl.store(out + 4 * at + 1, b.to(tl.int64))
    tl.store(out + 4 * at + 2, c.to(tl.int64))
    tl.store(out + 4 * at + 3, d.to(tl.int64))


@triton.jit
def normal_kernel(first, second, out, BLOCK: tl.constexpr):
    """Store cosine, sine and the two normal numbers of pairs of words, given as int64."""
    at = tl.arange(0, BLOCK)
    a, b = tl.load(first + at).to(tl.uint32), tl.load(second + at).to(tl.uint32)
    c, s = turn(b)
    x, y = normal_pair(a, b)
    tl.store(out + at, c)
    tl.store(out + BLOCK + at, s)
    tl.store(out + 2 * BLOCK + at, x)
    tl.store(out + 3 * BLOCK + at, y)
