"""Kernels that must not pass the gate, to show that it can refuse."""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def spilling_kernel(x, y, N: tl.constexpr):
    """Holds far more than 255 registers a thread can have: N values on one warp."""
    at = tl.arange(0, N)
    a = tl.load(x + at)
    b = tl.load(x + N + at)
    c = tl.load(x + 2 * N + at)
    total = tl.sum(a * b * c)  # all of them are needed again after the reduction
    tl.store(y + at, a * total + b)
    tl.store(y + N + at, b * total + c)
    tl.store(y + 2 * N + at, c * total + a)


@triton.jit
def greedy_kernel(a, b, c, M: tl.constexpr, K: tl.constexpr, steps):
    """A matrix product whose pipeline stages need more shared memory than there is."""
    rows, inner = tl.arange(0, M), tl.arange(0, K)
    total = tl.zeros((M, M), dtype=tl.float32)
    for step in range(steps):
        left = tl.load(a + rows[:, None] * K + inner[None, :] + step * M * K)
        right = tl.load(b + inner[:, None] * M + rows[None, :] + step * M * K)
        total = tl.dot(left, right, total)
    tl.store(c + rows[:, None] * M + rows[None, :], total)
