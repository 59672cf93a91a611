"""Names: of code that a reader can import, and of symbols in hand-written LaTeX."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import sympy as sp

from pkg.ledger.errors import LedgerError
from pkg.ledger.notation import latex as to_latex


def public_name(implementation: Any) -> str:
    """Return the shortest importable dotted name of a callable, such as `pkg.algos.x.iou`."""
    module, qualified = implementation.__module__, implementation.__qualname__
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        found: Any = importlib.import_module(".".join(parts[:length]))
        for attribute in qualified.split("."):
            found = getattr(found, attribute, None)
        if found is implementation:
            return ".".join([*parts[:length], qualified])
    raise LedgerError(f"{qualified} of {module} cannot be imported by name: no reader could run it")


def read_back(latex: str, equation: Any, names: Mapping[Any, str]) -> None:
    """Raise unless SymPy's own LaTeX parser reads `latex` as `equation`.

    The one way to print an equation in another form than the printer's.
    """
    from sympy.parsing.latex import parse_latex

    parsed = parse_latex(latex, backend="lark")
    known = {to_latex(s, names): s for s in equation.free_symbols}
    known |= {s.name: s for s in equation.free_symbols if isinstance(s, sp.Symbol)}
    parsed = parsed.xreplace({s: known[s.name] for s in parsed.free_symbols if s.name in known})
    same = parsed == equation or (
        isinstance(parsed, sp.Eq)
        and isinstance(equation, sp.Eq)
        and parsed.lhs == equation.lhs
        and sp.simplify(parsed.rhs - equation.rhs) == 0
    )
    if not same:
        raise LedgerError(f"this LaTeX reads as {parsed}, not as {equation}")
