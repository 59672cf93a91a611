r"""Matrices of symbolic size, as SymPy objects, and their determinants.

SymPy can multiply block matrices of symbolic size and take the Schur complement. What it lacks is a
matrix that has a name on paper and elements in a calculation, and a determinant that can also be
worked out from these elements once the sizes are numbers. The two ways share no step, so one guards
the other.
"""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy.core.symbol import Str
from sympy.matrices.expressions.matexpr import MatrixExpr


class ElementMatrix(MatrixExpr):  # type: ignore[misc]
    """A matrix with a name, and a rule for its elements, counted from 0.

    Parameters
    ----------
    name
        LaTeX for the matrix.
    rows, columns
        Its sizes, numbers or symbols.
    rule
        A `Lambda` of two indices that gives the element.
    triangular
        Whether the rule leaves one of the triangles empty. Its determinant is then known for every
        size: the product of the diagonal.

    Examples
    --------
    >>> n, i, j = sp.symbols("n i j", integer=True)
    >>> a = sp.IndexedBase("a")
    >>> A = ElementMatrix("A", n, n, sp.Lambda((i, j), a[i, j]))
    >>> A.subs(n, 2).as_explicit()
    Matrix([
    [a[0, 0], a[0, 1]],
    [a[1, 0], a[1, 1]]])
    """

    def __new__(
        cls, name: Any, rows: Any, columns: Any, rule: Any, triangular: Any = False
    ) -> ElementMatrix:
        """Return the matrix; it is what its arguments say."""
        parts = (sp.sympify(rows), sp.sympify(columns), rule, sp.sympify(triangular))
        made: ElementMatrix = MatrixExpr.__new__(cls, Str(str(name)), *parts)
        return made

    @property
    def shape(self) -> tuple[Any, Any]:
        """The number of rows and of columns."""
        return self.args[1], self.args[2]

    def _entry(self, i: Any, j: Any, **kwargs: Any) -> Any:
        return self.args[3](i, j)

    def _eval_determinant(self) -> Any:
        if self.args[4] == True:  # noqa: E712  (SymPy's true)
            i = sp.Symbol("i", integer=True, nonnegative=True)
            entry, limits = self._entry(i, i), (i, 0, self.shape[0] - 1)
            if isinstance(entry, sp.exp):  # SymPy does not see this one
                return sp.exp(sp.Sum(entry.args[0], limits))
            return entry if entry == 1 else sp.Product(entry, limits)
        return sp.Determinant(self)

    def _latex(self, printer: Any, *args: Any) -> str:
        return str(self.args[0])


class Det(sp.Expr):  # type: ignore[misc]
    """The determinant of a matrix expression.

    `doit` expands it over the elements where the sizes are numbers. Where they are symbols it uses
    the structure: products, the Schur complement of two-by-two blocks, triangles.

    Examples
    --------
    >>> n, m, i, j = sp.symbols("n m i j", integer=True, positive=True)
    >>> c, s = sp.IndexedBase("c"), sp.IndexedBase("s")
    >>> C = ElementMatrix("C", m, n, sp.Lambda((i, j), c[i, j]))
    >>> E = ElementMatrix("E", m, m, sp.Lambda((i, j), s[i] * sp.KroneckerDelta(i, j)), True)
    >>> jacobian = sp.BlockMatrix([[sp.Identity(n), sp.ZeroMatrix(n, m)], [C, E]])
    >>> Det(jacobian).subs({n: 2, m: 2}).doit()
    s[0]*s[1]
    """

    is_commutative = True

    def __new__(cls, matrix: Any) -> Det:
        """Return the determinant, not worked out."""
        made: Det = sp.Expr.__new__(cls, matrix)
        return made

    def doit(self, **hints: Any) -> Any:
        """Return the determinant, expanded where the sizes are numbers."""
        matrix = self.args[0].doit()
        rows, columns = matrix.shape
        if rows.is_Integer and columns.is_Integer:
            return matrix.as_explicit().det(method="berkowitz").doit()
        return sp.Determinant(matrix).doit().replace(sp.Determinant, _of_known_shape)

    def _latex(self, printer: Any, *args: Any) -> str:
        inner = printer._print(self.args[0])
        if isinstance(self.args[0], sp.BlockMatrix):  # the bars are its brackets
            inner = inner.removeprefix(r"\left[").removesuffix(r"\right]")
        return rf"\left|{inner}\right|"


def _of_known_shape(matrix: Any) -> Any:
    known = matrix._eval_determinant() if isinstance(matrix, ElementMatrix) else None
    return Det(matrix) if known is None or isinstance(known, sp.Determinant) else known
