"""Definitions: what a symbol, an indexed symbol or a function stands for, and how to unfold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy as sp
from sympy.core.function import AppliedUndef

from pkg.ledger.errors import DuplicateEntry, LedgerError


class Definitions:
    """The meaning of each symbol that a chapter has introduced so far.

    A definition is an equation whose left side is a symbol (`PA`), an indexed symbol (`IoU[i]`) or
    an applied function (`f(x)`). `unfold` replaces every use by its meaning, for any index.
    """

    def __init__(self) -> None:
        self._meanings: dict[Any, tuple[tuple[Any, ...], Any]] = {}

    def add(self, equation: sp.Eq) -> None:
        """Remember `equation.lhs := equation.rhs`; the same head cannot get two meanings."""
        head, parameters = self._head(equation.lhs)
        meaning = (parameters, equation.rhs)
        known = self._meanings.get(head)
        if known is not None and known != meaning:
            raise DuplicateEntry(f"{head} is defined already, as {known[1]}")
        if (
            equation.rhs.has(head)
            if not isinstance(head, type(sp.Function("f")))
            else (
                equation.rhs.atoms(AppliedUndef)
                and head in {f.func for f in equation.rhs.atoms(AppliedUndef)}
            )
        ):
            raise LedgerError(f"{head} is defined by itself")
        self._meanings[head] = meaning

    @staticmethod
    def defines(equation: Any) -> bool:
        """Tell whether the left side of `equation` can be given a meaning."""
        return isinstance(equation, sp.Eq) and isinstance(
            equation.lhs, sp.Symbol | sp.Indexed | AppliedUndef
        )

    @staticmethod
    def _head(lhs: Any) -> tuple[Any, tuple[Any, ...]]:
        if isinstance(lhs, sp.Symbol):
            return lhs, ()
        if isinstance(lhs, sp.Indexed):
            return lhs.base, tuple(lhs.indices)
        if isinstance(lhs, AppliedUndef):
            return lhs.func, tuple(lhs.args)
        raise LedgerError(f"a definition needs a symbol on its left side, not {lhs}")

    def unfold(self, expression: Any, given: Mapping[Any, Any] | None = None) -> Any:
        """Replace defined symbols by their meaning, again and again, until none is left.

        `given` overrides or adds meanings for this one expression.
        """
        meanings = dict(self._meanings)
        for lhs, rhs in (given or {}).items():
            head, parameters = self._head(lhs)
            meanings[head] = (parameters, sp.sympify(rhs))
        for _ in range(100):
            replacements = self._uses(expression, meanings)
            if not replacements:
                return expression
            expression = expression.xreplace(replacements)
        raise LedgerError("the definitions go round in a circle")

    @staticmethod
    def _uses(expression: Any, meanings: Mapping[Any, Any]) -> dict[Any, Any]:
        uses: dict[Any, Any] = {}
        for atom in expression.atoms(sp.Symbol, sp.Indexed, AppliedUndef):
            head, actual = Definitions._head(atom)
            if head in meanings and len(meanings[head][0]) == len(actual):
                formal, meaning = meanings[head]
                uses[atom] = _instantiate(meaning, dict(zip(formal, actual, strict=True)))
        # Replace outer uses first: an inner one inside an index or argument goes in the next round.
        return {
            atom: meaning
            for atom, meaning in uses.items()
            if not any(atom is not other and other.has(atom) for other in uses)
        }


def _instantiate(meaning: Any, values: Mapping[Any, Any]) -> Any:
    """Put actual indices into a meaning without capturing the indices bound by its sums."""
    bound = {
        limit[0]
        for node in sp.preorder_traversal(meaning)
        if hasattr(node, "limits")
        for limit in node.limits
    }
    used = set().union(*(sp.sympify(v).free_symbols for v in values.values())) if values else set()
    fresh = {index: sp.Dummy(index.name, **index.assumptions0) for index in bound & used}
    return (
        meaning.xreplace(fresh).xreplace(dict(values)) if fresh else meaning.xreplace(dict(values))
    )
