"""Maximum and minimum over an index range, as SymPy objects.

SymPy has `Sum` and `Product` with limits, and `Max` and `Min` over a fixed list of arguments, but
no maximum over `i = 0..k` with symbolic `k`. Set distances, pooling and running maxima need one.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import sympy as sp
from sympy.concrete.expr_with_limits import ExprWithLimits


class _ExtremumOver(ExprWithLimits):
    """Shared behaviour of `MaxOver` and `MinOver`: unevaluated until the limits are numbers."""

    python_name = ""

    @property
    def _finite(self) -> Any:
        raise NotImplementedError

    def __new__(cls, function: Any, *limits: Any, **assumptions: Any) -> _ExtremumOver:
        if not limits:
            raise ValueError(f"{cls.__name__} needs at least one limit, such as (i, 0, k)")
        return ExprWithLimits.__new__(cls, function, *limits, **assumptions)

    def _eval_is_extended_real(self) -> bool | None:
        return self.function.is_extended_real  # type: ignore[no-any-return]

    def _eval_is_nonnegative(self) -> bool | None:
        return True if self.function.is_nonnegative else None

    def doit(self, **hints: Any) -> sp.Expr:
        """Return the extremum over all index values; unchanged while a limit is symbolic."""
        ranges = []
        for _, low, high in self.limits:
            if not (low.is_Integer and high.is_Integer):
                return self
            ranges.append(range(int(low), int(high) + 1))
        indices = [limit[0] for limit in self.limits]
        values = [
            self.function.subs(dict(zip(indices, point, strict=True)), simultaneous=True)
            for point in product(*ranges)
        ]
        return self._finite(*[value.doit(**hints) for value in values])

    # The code printers find these methods by name: this is how `lambdify` learns to run the object.
    def _pythoncode(self, printer: Any) -> str:
        loops = " ".join(
            f"for {printer._print(i)} in range({printer._print(low)}, {printer._print(high)} + 1)"
            for i, low, high in self.limits
        )
        return f"(builtins.{self.python_name}({printer._print(self.function)} {loops}))"

    _numpycode = _pythoncode
    _torchcode = _pythoncode


class MaxOver(_ExtremumOver):
    """The largest value of an expression over index ranges.

    Examples
    --------
    >>> import sympy as sp
    >>> i, k = sp.symbols("i k", integer=True)
    >>> MaxOver(i * (4 - i), (i, 0, 3)).doit()
    4
    >>> MaxOver(sp.IndexedBase("x")[i], (i, 0, k)).doit()
    MaxOver(x[i], (i, 0, k))
    """

    python_name = "max"

    @property
    def _finite(self) -> Any:
        return sp.Max


class MinOver(_ExtremumOver):
    """The smallest value of an expression over index ranges.

    Examples
    --------
    >>> import sympy as sp
    >>> i = sp.symbols("i", integer=True)
    >>> MinOver(i**2 - 2 * i, (i, 0, 3)).doit()
    -1
    """

    python_name = "min"

    @property
    def _finite(self) -> Any:
        return sp.Min


def iverson(condition: Any) -> sp.Piecewise:
    """Return the Iverson bracket: 1 where `condition` holds, else 0.

    Examples
    --------
    >>> import sympy as sp
    >>> x = sp.symbols("x", real=True)
    >>> iverson(x > 0).subs(x, 3)
    1
    """
    return sp.Piecewise((1, condition), (0, True), evaluate=False)
