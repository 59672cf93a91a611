"""From an equation to a function that runs, and the comparison of two arrays of numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp
from sympy.printing.numpy import NumPyPrinter
from sympy.printing.pytorch import TorchPrinter

from pkg.ledger.errors import Disagreement, VacuousCheck


def _loop_sum(printer: Any, expr: sp.Sum) -> str:
    loops = " ".join(
        f"for {printer._print(i)} in range({printer._print(low)}, {printer._print(high)} + 1)"
        for i, low, high in reversed(expr.limits)
    )
    # The float start makes 0/0 of two counts NaN, where Python's integers would raise.
    return f"(builtins.sum(({printer._print(expr.function)} {loops}), {printer.zero}))"


def _brackets(printer: Any, expr: sp.Indexed) -> str:
    # NumPy's floor gives a float, and no array takes one as an index.
    rounded = (sp.floor, sp.ceiling)
    indices = ", ".join(
        f"builtins.int({printer._print(index)})" if index.has(*rounded) else printer._print(index)
        for index in expr.indices
    )
    return f"{printer._print(expr.base.label)}[{indices}]"


def _first_true(printer: Any, expr: sp.Piecewise) -> str:
    """Choose by Python's `if`, so that the branch not taken (a division by 0) is not evaluated."""
    tail = "float('nan')"
    for value, condition in reversed(expr.args):
        if condition == True:  # noqa: E712  (SymPy's true compares equal to it, and is not it)
            tail = f"({printer._print(value)})"
        else:
            tail = f"(({printer._print(value)}) if ({printer._print(condition)}) else {tail})"
    return tail


def _relation(printer: Any, expr: Any) -> str:
    return f"(({printer._print(expr.lhs)}) {expr.rel_op} ({printer._print(expr.rhs)}))"


class _NumpyCode(NumPyPrinter):  # type: ignore[misc]
    zero = "float64(0)"
    _print_Sum = _loop_sum
    _print_Indexed = _brackets
    _print_Piecewise = _first_true
    _print_Relational = _relation


class _TorchCode(TorchPrinter):  # type: ignore[misc]
    zero = "0"
    _print_Sum = _loop_sum
    _print_Indexed = _brackets
    _print_Piecewise = _first_true
    _print_Relational = _relation


def compile_expression(
    expression: Any, arguments: Sequence[Any], backend: str = "numpy"
) -> Callable[..., Any]:
    """Return `expression` as a Python function of `arguments` (SymPy's `lambdify`).

    Sums, maxima and indexed symbols become loops over the array given for the symbol: slow, and
    as close to the printed formula as code can be.

    Parameters
    ----------
    expression
        The SymPy expression.
    arguments
        Symbols and indexed bases, in the order in which values will be given.
    backend
        `"numpy"` for float64 arrays or `"torch"` for tensors of any dtype.
    """
    printer = {"numpy": _NumpyCode, "torch": _TorchCode}[backend](
        {"fully_qualified_modules": False, "inline": True, "allow_unknown_functions": True}
    )
    free = expression.free_symbols - {getattr(a, "label", a) for a in arguments} - set(arguments)
    unbound = {s for s in free if not isinstance(s, sp.Indexed)}
    if unbound:
        names = ", ".join(sorted(str(s) for s in unbound))
        raise ValueError(
            f"no value is given for {names}; bind it, or define it in an earlier entry"
        )
    return sp.lambdify(  # type: ignore[no-any-return]
        [getattr(a, "label", a) for a in arguments], expression, modules=[backend], printer=printer
    )


@dataclass
class Comparison:
    """What a comparison saw: how many numbers, and how many were NaN on both sides."""

    values: int = 0
    undefined: int = 0

    def require_content(self, name: str) -> None:
        """Raise `VacuousCheck` unless at least one finite number was compared."""
        if self.values - self.undefined < 1:
            raise VacuousCheck(f"{name}: no finite value was compared")


def to_float64(value: Any) -> np.ndarray[Any, Any]:
    """Return numbers, lists or tensors as a float64 array (a tensor is detached first)."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)


def compare(
    got: Any, expected: Any, *, bound: Any, undefined: bool, seen: Comparison, where: str
) -> None:
    """Raise `Disagreement` unless `|got - expected| <= bound`, element by element.

    NaN on one side never passes. NaN on both sides passes only where `undefined` says that the
    formula has no value for some inputs (0/0), and is counted.
    """
    a, b = to_float64(got), to_float64(expected)
    if a.shape != b.shape:
        raise Disagreement(f"{where}: shape {a.shape} from the code, {b.shape} from the equation")
    nan = np.isnan(a) & np.isnan(b)
    if nan.any() and not undefined:
        raise Disagreement(f"{where}: NaN on both sides; say undefined=... if the formula is 0/0")
    equal = (a == b) | (nan if undefined else False)
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= np.broadcast_to(bound, a.shape)
    wrong = ~(equal | near)
    if wrong.any():
        at = tuple(int(x) for x in np.argwhere(wrong)[0])
        place = f" at {at}" if at else ""
        ours, theirs = (f"{value:.6g}" for value in (a[at], b[at]))
        if ours == theirs:  # they differ only in the last digits: show them all
            ours, theirs = repr(float(a[at])), repr(float(b[at]))
        raise Disagreement(f"{where}{place}: {ours} from the code, {theirs} from the equation")
    seen.values += a.size
    seen.undefined += int(nan.sum())


@functools.cache
def epsilon(dtype: str) -> float:
    """Return the distance from 1 to the next number of a floating-point type, by its name."""
    import torch

    return float(torch.finfo(getattr(torch, dtype)).eps)


def spread(values: Any) -> float:
    """Return the largest finite magnitude in an array, 0 where there is none."""
    finite = np.abs(to_float64(values))
    finite = finite[np.isfinite(finite)]
    return float(finite.max()) if finite.size else 0.0
