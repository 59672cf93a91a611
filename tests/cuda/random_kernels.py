"""The random words alone, as the kernels of mixed precision draw them."""

# mypy: ignore-errors
import triton
import triton.language as tl

from pkg.cuda.mixed_precision.randomness import random_halfwords, random_words


@triton.jit
def words_kernel(out, seed, start, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    words = random_words(tl.load(seed), start, STREAM, BLOCK)
    tl.store(out + tl.arange(0, BLOCK), words.to(tl.int64))


@triton.jit
def halfwords_kernel(out, seed, start, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    words = random_halfwords(tl.load(seed), start, STREAM, BLOCK)
    tl.store(out + tl.arange(0, BLOCK), words.to(tl.int64))
