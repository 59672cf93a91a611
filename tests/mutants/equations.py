"""Small changes of an equation: a sign, a factor, a power, a bound, an index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sympy as sp
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational


@dataclass(frozen=True)
class Change:
    """A changed relation, and what was done to it."""

    relation: Any
    kind: str

    @property
    def text(self) -> str:
        """The changed relation as SymPy prints it, shortened."""
        shown = str(self.relation)
        return f"{self.kind}: {shown if len(shown) <= 160 else shown[:157] + '...'}"


def changes(relation: Any) -> Iterator[Change]:
    """Yield every change of one thing on the right side (and, if it is no mere name, the left)."""
    seen = {relation}
    for changed, kind in _of_sides(relation):
        try:
            built = relation.func(*changed, evaluate=False)
        except Exception:  # not every change makes an expression
            continue
        if built not in seen and not built.has(sp.nan):
            seen.add(built)
            yield Change(built, kind)
    if not isinstance(relation, sp.Eq | sp.Ne):
        yield Change(relation.reversedsign.func(relation.lhs, relation.rhs, evaluate=False), "side")


def _of_sides(relation: Any) -> Iterator[tuple[tuple[Any, Any], str]]:
    left, right = relation.args
    yield (left, -right), "sign"
    for changed, kind in _changed(right):
        yield (left, changed), kind
    if not isinstance(left, sp.Symbol | sp.Indexed | AppliedUndef):
        for changed, kind in _changed(left):
            yield (changed, right), kind


def _changed(node: Any) -> Iterator[tuple[Any, str]]:
    """Yield `node` with one change in it, at its top or deeper."""
    yield from _at_top(node)
    if isinstance(node, sp.Indexed):
        return
    for place, child in enumerate(node.args):
        if not isinstance(
            child, sp.Expr | Relational | sp.functions.elementary.piecewise.ExprCondPair
        ):
            continue
        for changed, kind in _changed(child):
            arguments = [*node.args[:place], changed, *node.args[place + 1 :]]
            built = _build(node, arguments)
            if built is not None:
                yield built, kind


def _at_top(node: Any) -> Iterator[tuple[Any, str]]:
    arguments = list(node.args)
    if isinstance(node, sp.Add):
        for place, term in enumerate(arguments):
            yield _put(node, arguments, place, -term), "sign"
            yield _put(node, arguments, place, None), "term"
    elif isinstance(node, sp.Mul):
        for place, factor in enumerate(arguments):
            if factor != -1:
                yield _put(node, arguments, place, None), "factor"
    elif isinstance(node, sp.Pow) and node.exp.is_number and node.exp not in (-1, 1):
        yield node.base, "power"
    elif isinstance(node, sp.Indexed) and len(node.indices) > 1:
        first, second, *rest = node.indices
        if first != second:
            yield node.base[second, first, *rest], "index"
    elif isinstance(node, AppliedUndef) and len(arguments) > 1 and arguments[0] != arguments[1]:
        yield node.func(arguments[1], arguments[0], *arguments[2:]), "argument"
    elif isinstance(node, sp.Max | sp.Min):
        yield (sp.Min if isinstance(node, sp.Max) else sp.Max)(*arguments), "extremum"
    elif isinstance(node, Relational) and not isinstance(node, sp.Eq | sp.Ne):
        yield node.reversedsign.func(node.lhs, node.rhs), "condition"
    if hasattr(node, "limits"):
        yield from _bounds(node)


def _bounds(node: Any) -> Iterator[tuple[Any, str]]:
    for place, limit in enumerate(node.limits):
        if len(limit) != 3:
            continue
        index, low, high = limit
        for moved in ((index, low + 1, high), (index, low, high + 1)):
            limits = [*node.limits[:place], moved, *node.limits[place + 1 :]]
            yield node.func(node.function, *limits), "bound"


def _put(node: Any, arguments: list[Any], place: int, new: Any) -> Any:
    changed = [*arguments[:place], *([] if new is None else [new]), *arguments[place + 1 :]]
    return node.func(*changed)


def _build(node: Any, arguments: list[Any]) -> Any:
    try:
        return node.func(*arguments)
    except Exception:  # such as a function that takes other arguments than its `args`
        return None
