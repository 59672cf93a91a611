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


class iverson(sp.Function):  # noqa: N801  (it is written like a function)
    """The Iverson bracket: 1, or `value`, where a condition holds, else 0.

    With a value it is a strong bracket: where the condition fails the result is 0 even if the value
    does not exist there (0/0). A `Piecewise` would say the same, but SymPy merges products of
    those, turns their conditions round, and moves them out of sums whose index they use.

    Examples
    --------
    >>> import sympy as sp
    >>> x = sp.symbols("x", real=True)
    >>> iverson(x > 0).subs(x, 3)
    1
    >>> iverson(x > 0, 1 / x).subs(x, 0)
    0
    """

    nargs = (1, 2)

    @classmethod
    def eval(cls, condition: Any, value: Any = sp.S.One) -> Any:
        """Return the value or 0 once the condition is decided."""
        if condition in (True, False):
            return value if condition == True else sp.Integer(0)  # noqa: E712
        return None

    @property
    def value(self) -> Any:
        """What the bracket is worth where the condition holds."""
        return self.args[1] if len(self.args) == 2 else sp.Integer(1)

    def _eval_is_nonnegative(self) -> bool | None:
        return True if self.value.is_nonnegative else None

    def _eval_is_extended_real(self) -> bool | None:
        return True if self.value.is_extended_real else None

    def _eval_subs(self, old: Any, new: Any) -> Any:
        condition = self.args[0].subs(old, new)
        if condition == False:  # noqa: E712
            return sp.Integer(0)  # before the value, which may not exist here
        return self.func(condition, self.value.subs(old, new))

    def _pythoncode(self, printer: Any) -> str:
        value, condition = (printer._print(part) for part in (self.value, self.args[0]))
        return f"(({value}) if ({condition}) else 0)"

    _numpycode = _pythoncode
    _torchcode = _pythoncode
