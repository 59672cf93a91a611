"""A normal form for sums, in which equal sums become the same object.

SymPy simplifies a sum with symbolic ends only a little. What proofs in this book need is what one
does by hand: split exponentials, pull out what does not depend on the index, take the last term off
a sum to n + 1, exchange the order of two sums, and give bound indices the same names.
"""

from __future__ import annotations

import itertools
from typing import Any

import sympy as sp

from pkg.ledger.operators import MaxOver, MinOver


def normal_form(expression: Any) -> Any:
    """Return `expression` with its sums and extrema in normal form, multiplied out.

    Examples
    --------
    >>> i, j, n = sp.symbols("i j n", integer=True)
    >>> x, c = sp.IndexedBase("x", real=True), sp.Symbol("c", real=True)
    >>> normal_form(sp.Sum(sp.exp(x[i] - c), (i, 1, n + 1)))
    exp(-c)*exp(x[n + 1]) + exp(-c)*Sum(exp(x[_0]), (_0, 1, n))
    """
    if isinstance(expression, sp.Derivative):
        return normal_form(expression.doit())
    if isinstance(expression, sp.Sum):
        result = expression.function
        for limit in expression.limits:
            result = _sum_over(normal_form(result), *limit)
        return _multiply_out(result)
    if isinstance(expression, MaxOver | MinOver):
        return _extremum(expression)
    if not expression.args or isinstance(expression, sp.Indexed | sp.MatrixExpr):
        return expression
    parts = [normal_form(part) for part in expression.args]
    if parts != list(expression.args):
        expression = expression.func(*parts)
    return _multiply_out(expression)


def _multiply_out(expression: Any) -> Any:
    return sp.expand(
        expression, deep=False, power_exp=True, mul=True, multinomial=True,
        power_base=False, log=False, basic=False,
    )  # fmt: skip


def _sum_over(function: Any, index: Any, low: Any, high: Any) -> Any:
    """Sum a multiplied-out function over one index, term by term."""
    total = sp.Integer(0)
    for term in sp.Add.make_args(_multiply_out(function)):
        outside, inside = term.as_independent(index, as_Add=False)
        total += outside * _single(inside, index, low, high)
    return total


def _single(function: Any, index: Any, low: Any, high: Any) -> Any:
    """Sum one product that depends on the index: peel the end, flatten, rename."""
    if not function.has(index):
        return function * (high - low + 1)
    extra, base = sp.sympify(high).as_coeff_Add()
    if extra.is_Integer and extra > 0 and base.free_symbols:
        ends = [function.subs(index, base + step) for step in range(1, int(extra) + 1)]
        return _single(function, index, low, base) + sum(map(normal_form, ends))
    limits = [(index, low, high)]
    body = sp.Integer(1)
    for factor in sp.Mul.make_args(function):
        if isinstance(factor, sp.Sum):  # its body depends on the index: one sum over both
            fresh = {limit[0]: sp.Dummy(integer=True) for limit in factor.limits}
            body *= factor.function.xreplace(fresh)
            limits = [(fresh[x], a, b) for x, a, b in factor.limits] + limits
        else:
            body *= factor
    return _canonical(body, limits)


def _canonical(body: Any, limits: list[tuple[Any, Any, Any]]) -> Any:
    """Choose order and names of bound indices by the ends, then by what the body looks like."""
    indices = {limit[0] for limit in limits}
    if any(sp.sympify(end).free_symbols & indices for _, *ends in limits for end in ends):
        return sp.Sum(body, *limits)  # one range depends on another index: leave the order
    names = [sp.Symbol(f"_{place}", integer=True) for place in range(len(limits))]
    found = []
    for order in itertools.permutations(limits):
        rename = {limit[0]: name for limit, name in zip(order, names, strict=True)}
        chosen = [(rename[x], a, b) for x, a, b in order]
        renamed = body.xreplace(rename)
        key = (str([limit[1:] for limit in chosen]), str(sp.sstr(renamed, order="lex")))
        found.append((key, sp.Sum(renamed, *chosen)))
    return min(found, key=lambda pair: pair[0])[1]


def _extremum(expression: Any) -> Any:
    """Take the last term off an extremum to n + 1, and rename its index."""
    if len(expression.limits) != 1:
        return expression
    (index, low, high), function = expression.limits[0], expression.function
    extra, base = sp.sympify(high).as_coeff_Add()
    if extra.is_Integer and extra > 0 and base.free_symbols:
        ends = [function.subs(index, base + step) for step in range(1, int(extra) + 1)]
        shorter = _extremum(expression.func(function, (index, low, base)))
        return expression._finite(shorter, *ends)
    name = sp.Symbol("_0", integer=True)
    return expression.func(function.xreplace({index: name}), (name, low, high))
