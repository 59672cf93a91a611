"""One operation each: what the interpreter's repair is tried on."""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def cast_kernel(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty))


@triton.jit
def arithmetic_kernel(x, y, out, N: tl.constexpr):
    at = tl.arange(0, N)
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, a + b)
    tl.store(out + N + at, a * b)
    tl.store(out + 2 * N + at, a - b)
    tl.store(out + 3 * N + at, (a / b).to(out.dtype.element_ty))


@triton.jit
def larger_kernel(x, y, out, N: tl.constexpr):
    at = tl.arange(0, N)
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, tl.where(a > b, a, -b))


@triton.jit
def product_kernel(a, b, out, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    at = i * N + j
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))
