"""Random numbers for each sample, by Philox: a function of the seed, the sample and the place in it.

Element j of sample i gets word j mod 4 of counter (j // 4, i // 2³², stream, i mod 2³²), whatever the
tiles of the launch and however many samples come with it. Pairs of words become pairs of normal numbers
(Box & Muller, 1958). The sine and cosine are polynomials: an angle that comes as a whole number of 2³²nds
of a turn is reduced to an eighth of a turn without an error, and no table or slow path is needed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pkg.cuda.rectified_flow import configs

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"

_ROUNDS = tl.constexpr(configs.PHILOX_ROUNDS)
#: The streams of a seed, the third part of the counter: for times, and for noise.
TIMES = tl.constexpr(0)
NOISE = tl.constexpr(1)


@triton.jit
def words(seed, sample, quad, STREAM: tl.constexpr):
    """Return four blocks of uint32; `sample` and `quad` (place // 4) are int64 of one shape."""
    low, high = sample.to(tl.uint32), (sample >> 32).to(tl.uint32)
    return tl.philox(seed, quad.to(tl.uint32), high, low * 0 + STREAM, low, _ROUNDS)


@triton.jit
def turn(word):
    """Return cosine and sine of `word` 2³²nds of a turn, to some 1e-7."""
    quarter = (word + 0x20000000) >> 30  # uint32: beyond a whole turn it begins anew
    # What is left lies in [-2²⁹, 2²⁹): an eighth of a turn to either side.
    rest = (word - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32)
    x = rest * 1.4629180792671596e-09  # 2π / 2³²
    y = x * x
    # Taylor's polynomials; the next terms are below 2e-9 at π/4.
    sine = x * (1 + y * (-1 / 6 + y * (1 / 120 + y * (-1 / 5040 + y * (1 / 362880)))))
    cosine = 1 + y * (-1 / 2 + y * (1 / 24 + y * (-1 / 720 + y * (1 / 40320 + y * (-1 / 3628800)))))
    swap = (quarter & 1) == 1
    c, s = tl.where(swap, sine, cosine), tl.where(swap, cosine, sine)
    c = tl.where((quarter == 1) | (quarter == 2), -c, c)
    s = tl.where(quarter >= 2, -s, s)
    return c, s


@triton.jit
def normal_pair(first, second):
    """Return two standard normal numbers, float32, from two words; none is beyond 6.8."""
    uniform = (first.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2⁻³²: above 0, at most 1
    # An approximate logarithm may end above 0 where the argument is nearly 1.
    radius = tl.sqrt(tl.maximum(-2 * tl.log(uniform), 0.0))
    c, s = turn(second)
    return radius * c, radius * s


@triton.jit
def normal_tile(seed, sample, quad, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return (ROWS, COLUMNS) normal numbers; `sample` and `quad` have shape (ROWS, COLUMNS // 4)."""
    a, b, c, d = words(seed, sample, quad, NOISE)
    first, second = normal_pair(a, b)
    third, fourth = normal_pair(c, d)
    # The last axis runs fastest: number 2·j + k is at (j, k).
    pairs = tl.join(tl.join(first, third), tl.join(second, fourth))
    return tl.reshape(pairs, (ROWS, COLUMNS))


@triton.jit
def times(seed, sample, mean, std, LAW: tl.constexpr):
    """Return a time in float32 for each sample: law "uniform" or "logit_normal"."""
    first, second, _, _ = words(seed, sample, sample * 0, TIMES)
    if LAW == "uniform":
        t = ((first >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2⁻²³: exact
    else:
        tl.static_assert(LAW == "logit_normal")
        normal, _ = normal_pair(first, second)
        t = 1 / (1 + tl.exp(-(mean + std * normal)))
    return t
