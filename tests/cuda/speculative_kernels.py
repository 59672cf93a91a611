"""What the interpreter does not reach by itself: how weights are put together in a parallel scan."""

# mypy: ignore-errors
import triton
import triton.language as tl

from pkg.cuda.speculative_decoding.chain import _then


@triton.jit
def together_kernel(factors, bounds, out, N: tl.constexpr):
    """Three steps, each of N pairs, put together from the left and from the right."""
    at = tl.arange(0, N)
    a, b = tl.load(factors + at), tl.load(bounds + at)
    c, d = tl.load(factors + N + at), tl.load(bounds + N + at)
    e, f = tl.load(factors + 2 * N + at), tl.load(bounds + 2 * N + at)
    factor, bound = _then(a, b, c, d)
    factor, bound = _then(factor, bound, e, f)
    tl.store(out + at, factor)
    tl.store(out + N + at, bound)
    factor, bound = _then(c, d, e, f)
    factor, bound = _then(a, b, factor, bound)
    tl.store(out + 2 * N + at, factor)
    tl.store(out + 3 * N + at, bound)
