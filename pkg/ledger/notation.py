r"""The field's notation: SymPy objects printed as a textbook would set them.

Differences from SymPy's own printer, and why:

- a name of several letters that is no Greek letter is upright (`\mathrm{IoU}`): in italics it would
  read as a product;
- indices stand side by side (`n_{ij}`), as in the papers, where each is one letter or digit;
- a double sum is printed as two sums, outer first, so that its order can be seen;
- terms and factors follow the order in which the chapter lists its symbols (`TP + FP + FN`), then
  SymPy's; positive terms come before negative ones, and a number first (`1 + x`) unless it is
  added to a count (`k + 1`);
- a sum over a plain denominator is printed as a fraction times the sum;
- a product under a derivative has brackets, and a derivative, or a symbol that begins with a
  logarithm, stands last among factors: what it is of ends where the brackets end, or the product;
- `iverson` is printed as the bracket, and a `Piecewise` with values (a, 0) as bracket times a.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter, translate

_BETWEEN_WORDS = re.compile(r"(\\mathrm\{\w+\}) (?=\\mathrm\{)")
_LETTERS = re.compile(r"^[A-Za-z]{2,}$")


def _upright(name: str) -> str:
    """Set a plain name of several letters upright, and leave Greek letters and LaTeX alone."""
    if _LETTERS.match(name) and translate(name) == name:
        return rf"\mathrm{{{name}}}"
    return name


def _is_fraction(tex: str) -> bool:
    r"""Tell whether LaTeX is one `\frac{...}{...}` and nothing after it."""
    if not tex.startswith(r"\frac{"):
        return False
    depth, ends = 0, []
    for at, letter in enumerate(tex):
        depth += (letter == "{") - (letter == "}")
        if letter == "}" and depth == 0:
            ends.append(at)
    return len(ends) == 2 and ends[1] == len(tex) - 1


class NotationPrinter(LatexPrinter):  # type: ignore[misc]
    """LaTeX printer of the book; see the module's docstring for what differs from SymPy's."""

    def __init__(self, settings: Any = None, order: Sequence[Any] = ()) -> None:
        super().__init__(settings)
        self._places = {getattr(s, "label", s): place for place, s in enumerate(order)}

    def _place(self, term: Any) -> int:
        """Return where the earliest listed symbol of `term` stands in the chapter's order."""
        heads = {s.name for s in term.atoms(sp.Symbol)} | {
            f.func.__name__ for f in term.atoms(sp.core.function.AppliedUndef)
        }
        found = [at for s, at in self._places.items() if getattr(s, "name", str(s)) in heads]
        return min(found, default=len(self._places))

    def _deal_with_super_sub(self, string: str, style: str = "plain") -> str:
        if "{" in string or "\\" in string:
            return string
        head, *rest = string.split("_", 1)
        if rest and (_LETTERS.match(head) or len(head) == 1):
            sub = rest[0].replace("_", "")
            sub = rf"\mathrm{{{sub}}}" if _LETTERS.match(sub) and translate(sub) == sub else sub
            return rf"{self._head(head)}_{{{translate(sub) if len(sub) > 1 else sub}}}"
        if _LETTERS.match(string):
            return self._head(string)
        return str(super()._deal_with_super_sub(string, style))

    @staticmethod
    def _head(name: str) -> str:
        return _upright(name) if len(name) > 1 and translate(name) == name else translate(name)

    def _print_Indexed(self, expr: sp.Indexed) -> str:
        base = self._print(expr.base)
        indices = [self._print(index) for index in expr.indices]
        letters = all(re.fullmatch(r"[A-Za-z]|\\[A-Za-z]+", index) for index in indices)
        joined = ("" if letters and max(map(len, indices)) == 1 else " " if letters else ", ").join(
            indices
        )
        match = re.fullmatch(r"(.*)_\{(.*)\}", base)
        if match:
            return rf"{match[1]}_{{{match[2]},\,{joined}}}"
        return rf"{base}_{{{joined}}}"

    def _print_Function(self, expr: Any, exp: Any = None) -> str:
        name = type(expr).__name__
        if isinstance(expr, sp.core.function.AppliedUndef) and _LETTERS.match(name):
            arguments = ", ".join(self._print(argument) for argument in expr.args)
            tex = rf"{self._head(name)}\left({arguments}\right)"
            return tex if exp is None else rf"{tex}^{{{exp}}}"
        return str(super()._print_Function(expr, exp))

    def _print_Sum(self, expr: sp.Sum) -> str:
        # SymPy's last limit is the outermost sum: print from the outside in.
        return self._with_limits(r"\sum", expr, scripts=True)

    def _print_Product(self, expr: sp.Product) -> str:
        return self._with_limits(r"\prod", expr, scripts=True)

    def _print_MaxOver(self, expr: Any) -> str:
        return self._with_limits(r"\max", expr, scripts=False)

    def _print_MinOver(self, expr: Any) -> str:
        return self._with_limits(r"\min", expr, scripts=False)

    def _with_limits(self, operator: str, expr: Any, *, scripts: bool) -> str:
        signs = []
        for index, low, high in reversed(expr.limits):
            i, a, b = (self._print(part) for part in (index, low, high))
            signs.append(
                rf"{operator}_{{{i}={a}}}^{{{b}}}"
                if scripts
                else rf"{operator}_{{{a} \le {i} \le {b}}}"
            )
        body = self._print(expr.function)
        if isinstance(expr.function, sp.Add):
            body = rf"\left({body}\right)"
        return " ".join([*signs, body])

    def _print_Derivative(self, expr: sp.Derivative) -> str:
        tex, body = str(super()._print_Derivative(expr)), self._print(expr.expr)
        # One fraction is a whole by itself, and so is what SymPy has put in brackets.
        if not expr.expr.is_Mul or not tex.endswith(body) or _is_fraction(body):
            return tex
        return rf"{tex.removesuffix(body)}\left({body}\right)"

    def _print_Add(self, expr: sp.Add, order: Any = None) -> str:
        def rank(item: tuple[int, sp.Expr]) -> tuple[int, int, int]:
            position, term = item
            negative = term.could_extract_minus_sign()
            first = term.is_number and not counting
            return (2 if negative else 0 if first else 1, self._place(term), position)

        counting = all(term.is_integer for term in expr.args)
        terms = (
            list(expr.args)
            if self._settings["order"] == "none"
            else list(self._as_ordered_terms(expr, order=order))
        )
        tex = ""
        for _, term in sorted(enumerate(terms), key=rank):
            negative = term.could_extract_minus_sign()
            body = self._print(-term if negative else term)
            if self._needs_add_brackets(-term if negative else term):
                body = rf"\left({body}\right)"
            tex += (f" {'-' if negative else '+'} " if tex else "-" if negative else "") + body
        return tex

    def _print_Mul(self, expr: sp.Mul) -> str:
        if expr.could_extract_minus_sign() and not all(f.is_Add for f in expr.args):
            return f"-{self._bracketed(-expr, first=True, last=True)}"
        top, bottom = sp.fraction(expr, exact=True)
        if bottom != 1:
            over, sums = top.as_independent(sp.Sum, sp.Product, as_Add=False)
            if sums != 1 and not sums.is_Add and not bottom.has(sp.Sum):
                return rf"\frac{{{self._print(over)}}}{{{self._print(bottom)}}} {self._print(sums)}"
            return rf"\frac{{{self._print(top)}}}{{{self._print(bottom)}}}"
        factors = sorted(
            enumerate(expr.args if expr.is_Mul else [expr]),
            key=lambda item: (
                not item[1].is_number,
                item[1].has(sp.Sum),
                item[1].has(sp.Derivative) or getattr(item[1], "name", "").startswith(r"\log"),
                self._place(item[1]),
                item[0],
            ),
        )
        printed = [
            self._bracketed(factor, first=at == 0, last=at == len(factors) - 1)
            for at, (_, factor) in enumerate(factors)
        ]
        # Two words side by side would read as one: RQ times SQ is no RQSQ.
        return _BETWEEN_WORDS.sub(r"\1 \\cdot ", " ".join(printed))

    def _bracketed(self, expr: Any, *, first: bool, last: bool) -> str:
        tex = self._print(expr)
        needed = self._needs_mul_brackets(expr, first=first, last=last)
        needed = needed or (isinstance(expr, sp.Derivative) and not last)
        return rf"\left({tex}\right)" if needed else str(tex)

    def _print_iverson(self, expr: Any, exp: Any = None) -> str:
        bracket = rf"\left[{self._print(expr.args[0])}\right]"
        if len(expr.args) == 2:
            body = self._print(expr.value)
            bracket += rf"\left({body}\right)" if expr.value.is_Add else rf"\,{body}"
        return bracket if exp is None else rf"\left({bracket}\right)^{{{exp}}}"

    def _print_Piecewise(self, expr: sp.Piecewise) -> str:
        if len(expr.args) == 2 and expr.args[1].expr == 0:
            value, condition = expr.args[0]
            bracket = rf"\left[{self._print(condition)}\right]"
            body = self._print(value)
            return rf"{bracket}\left({body}\right)" if value.is_Add else rf"{bracket}\,{body}"
        return str(super()._print_Piecewise(expr))

    def _print_Relational(self, expr: Any) -> str:
        signs = {"==": "=", "<=": r"\le", ">=": r"\ge", "<": "<", ">": ">", "!=": r"\ne"}
        return f"{self._print(expr.lhs)} {signs[expr.rel_op]} {self._print(expr.rhs)}"


def latex(
    expression: Any, names: Mapping[Any, str] | None = None, order: Sequence[Any] = ()
) -> str:
    r"""Return the LaTeX of a SymPy object in the book's notation.

    Parameters
    ----------
    expression
        A SymPy expression or relation.
    names
        LaTeX for single symbols, where the name itself does not say it.
    order
        Symbols in the order in which terms and factors should name them.

    Examples
    --------
    >>> import sympy as sp
    >>> i, j, k = sp.symbols("i j k", integer=True)
    >>> n = sp.IndexedBase("n")
    >>> print(latex(sp.Eq(sp.Symbol("PA"), sp.Sum(n[i, j], (j, 0, k), (i, 0, k)))))
    \mathrm{PA} = \sum_{i=0}^{k} \sum_{j=0}^{k} n_{ij}
    >>> print(latex(sp.Symbol("RQ") * sp.Symbol("SQ")))  # two words are not read as one
    \mathrm{RQ} \cdot \mathrm{SQ}
    >>> x, f, g = sp.Symbol("x"), sp.Function("f"), sp.Function("g")
    >>> print(latex(sp.Derivative(f(x) * g(x), x)))
    \frac{d}{d x} \left(f{\left(x \right)} g{\left(x \right)}\right)
    >>> print(latex(sp.Derivative(f(x), x) * g(x)))
    g{\left(x \right)} \frac{d}{d x} f{\left(x \right)}
    >>> print(latex(sp.Symbol("H") * sp.Symbol(r"\log\left|\det W\right|")))
    H \log\left|\det W\right|
    """
    return str(NotationPrinter({"symbol_names": dict(names or {})}, order).doprint(expression))
