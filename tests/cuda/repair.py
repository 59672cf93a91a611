"""Make Triton's interpreter round bfloat16 and float8 as the hardware does.

The interpreter (3.6 to 3.9) keeps a bfloat16 or float8 number as an integer with its bits. Products,
sums and functions then work on those integers, and a cast from float32 cuts bits off instead of
rounding. A kernel in bfloat16 computes nonsense, silently. Here every such operation widens its
operands to float32, computes, and rounds to nearest even. Comparisons of a block with a scalar also
get their proper type.
"""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_TORCH = {
    tl.bfloat16: (torch.bfloat16, torch.int16),
    tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8),
    tl.float8e5: (torch.float8_e5m2, torch.uint8),
}
# Casts to float8 saturate on the hardware (cvt.rn.satfinite).
_LARGEST = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}
_COMPARISONS = {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}


def _widen(handle):
    """Return the numbers of a handle as NumPy; bfloat16 and float8 become float32, exactly."""
    kind = handle.dtype.scalar
    if kind not in _TORCH:
        return handle.data
    number, bits = _TORCH[kind]
    raw = torch.from_numpy(np.ascontiguousarray(handle.data).view(_numpy(bits)).copy())
    return raw.view(number).float().numpy().reshape(handle.data.shape)


def _narrow(numbers, kind):
    """Round NumPy numbers to `kind`, in the form that the interpreter stores."""
    if kind not in _TORCH:
        return numbers.astype(interpreter._get_np_dtype(kind))
    number, bits = _TORCH[kind]
    wide = torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32).copy())
    if kind in _LARGEST:
        wide = torch.where(wide.isnan(), wide, wide.clamp(-_LARGEST[kind], _LARGEST[kind]))
    stored = wide.to(number).view(bits).numpy()
    return stored.view(interpreter._get_np_dtype(kind)).reshape(np.shape(numbers))


def _numpy(bits):
    return np.int16 if bits is torch.int16 else np.uint8


def install() -> None:
    """Put the repaired operations in place of the interpreter's; doing it twice changes nothing."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    if getattr(builder, "repaired", False):
        return
    old = {
        name: getattr(builder, name)
        for name in ("cast_impl", "create_dot", "binary_op", "unary_op", "create_fp_to_fp")
    }

    def cast_impl(self, source, target):
        if source.dtype.scalar in _TORCH or target.scalar in _TORCH:
            return handle(_narrow(_widen(source), target.scalar), target.scalar)
        return old["cast_impl"](self, source, target)

    def create_fp_to_fp(self, source, target, mode):
        if mode is not None and mode != interpreter._ir.ROUNDING_MODE.RTNE:
            return old["create_fp_to_fp"](self, source, target, mode)
        return cast_impl(self, source, target)

    def create_dot(self, a, b, d, precision, imprecise):
        wide = (handle(_widen(x), tl.float32) if x.dtype.scalar in _TORCH else x for x in (a, b))
        return old["create_dot"](self, *wide, d, precision, imprecise)

    def binary_op(self, left, right, operation):
        kind = left.dtype.scalar
        if kind in _TORCH:
            found = operation(_widen(left), _widen(right))
            if operation in _COMPARISONS:
                return handle(found, tl.int1)
            return handle(_narrow(found, kind), kind)
        found = old["binary_op"](self, left, right, operation)
        return handle(found.data, tl.int1) if operation in _COMPARISONS else found

    def unary_op(self, x, operation):
        kind = x.dtype.scalar
        if kind in _TORCH:
            return handle(_narrow(operation(_widen(x)), kind), kind)
        return old["unary_op"](self, x, operation)

    for name, function in (
        ("cast_impl", cast_impl), ("create_fp_to_fp", create_fp_to_fp), ("create_dot", create_dot),
        ("binary_op", binary_op), ("unary_op", unary_op),
    ):  # fmt: skip
        setattr(builder, name, function)
    builder.repaired = True
