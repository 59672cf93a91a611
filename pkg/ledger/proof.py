"""Proofs of a relation for all values of its symbols, each guarded by numbers.

A computer algebra system can be wrong, and an author can ask it an empty question. So every proof
here has two parts that do not share a step: the symbolic one, and an evaluation of the statement as
it was written, before any simplification, with 50 digits at random points of its domain.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp
from sympy.core.function import AppliedUndef

from pkg.ledger.errors import NotProved, VacuousCheck
from pkg.ledger.normal_form import normal_form
from pkg.ledger.operators import MaxOver, MinOver

DIGITS = 50
POINTS = 20
_FAR = sp.Integer(10) ** 40  # stands for infinity when a limit is evaluated numerically


@dataclass(frozen=True)
class Induction:
    """A proof by induction on `variable`.

    Parameters
    ----------
    variable
        The integer symbol n.
    start
        The first value of n for which the statement holds.
    first
        The left side at `start`, from its own definition.
    following
        Given the left side at n, returns the left side at n + 1: the recurrence that defines it.
    """

    variable: sp.Symbol
    start: int
    first: Any
    following: Callable[[Any], Any]

    @classmethod
    def along(cls, recurrence: sp.Eq, variable: sp.Symbol, start: int, first: Any) -> Induction:
        """Return the induction along a recurrence `a[n] = f(a[n - 1], n)`."""
        at_next = recurrence.rhs.subs(variable, variable + 1)
        return cls(variable, start, first, lambda previous: at_next.subs(recurrence.lhs, previous))

    def mapped(self, change: Callable[[Any], Any]) -> Induction:
        """Return the same induction with `change` applied to what it says, such as definitions."""
        following = self.following
        return Induction(
            self.variable,
            self.start,
            change(sp.sympify(self.first)),
            lambda previous: change(following(previous)),
        )

    def unrolled(self, last: int) -> Any:
        """Return the left side at `last`, by the recurrence from the start on."""
        value = sp.sympify(self.first)
        for step in range(self.start, last):
            name = sp.Dummy("previous", real=True)
            value = self.following(name).subs(self.variable, step).xreplace({name: value})
        return value


def as_atoms(expression: Any) -> Any:
    """Replace sums, extrema, indexed symbols and unknown functions by symbols that keep their sign.

    Algebra then sees a rational function of plain symbols. Equal objects become the same symbol;
    bound indices are renamed first, so that two sums that differ only in their index are equal.
    """
    expression = expression.replace(
        lambda e: isinstance(e, sp.Sum | MaxOver | MinOver),
        lambda e: (
            e.canonical_variables
            and e.func(
                e.function.xreplace(e.canonical_variables),
                *[(e.canonical_variables[x], *rest) for x, *rest in e.limits],
            )
            if not e.free_symbols & set(e.canonical_variables.values())
            else e
        ),
    )
    kinds = (sp.Sum, MaxOver, MinOver, sp.Indexed, AppliedUndef)
    outer: dict[Any, Any] = {}

    def visit(node: Any) -> None:
        if isinstance(node, kinds):
            inner = node.function if hasattr(node, "limits") else node
            sign = {}
            if _nonnegative(inner):
                sign = {"nonnegative": True}
            if inner is node and node.is_positive:
                sign = {"positive": True}
            elif node.is_extended_real is not False:
                sign.setdefault("real", True)
            outer.setdefault(node, sp.Dummy(f"a{len(outer)}", **sign))
            return
        for child in node.args:
            visit(child)

    visit(expression)
    return expression.xreplace(outer)


def _nonnegative(expression: Any) -> bool:
    """Tell whether `expression` is >= 0 wherever it is defined, from its symbols' signs alone."""
    if expression.is_nonnegative:
        return True
    numerator, denominator = sp.fraction(sp.factor(sp.together(expression)))
    if denominator.could_extract_minus_sign() and (-denominator).is_nonnegative:
        numerator, denominator = -numerator, -denominator
    return bool(numerator.is_nonnegative and denominator.is_nonnegative)


def _difference(left: Any, right: Any) -> Any:
    """Return a form of `left - right` in which equal parts have cancelled."""
    first = as_atoms(left - right)
    for attempt in (sp.cancel, _simplify, lambda e: _simplify(sp.expand(e))):
        result = attempt(sp.together(first))
        if result == 0:
            return result
    evaluated = _simplify((left - right).doit())
    if evaluated == 0:
        return evaluated
    ordered = sp.cancel(sp.together(as_atoms(normal_form(left - right))))
    if ordered == 0:
        return ordered
    merged = _merge_sums(left - right)
    return sp.Integer(0) if merged == 0 else as_atoms(_simplify(evaluated))


def _simplify(expression: Any) -> Any:
    """Simplify; where SymPy loses its way in a product of a sum and a number, change nothing."""
    try:
        return sp.simplify(expression)
    except StopIteration:  # SymPy 1.14, in `sum_add`
        return expression


def _merge_sums(expression: Any) -> Any:
    """Pull factors into their sums, and add sums over the same range term by term."""
    terms: dict[Any, Any] = {}
    rest = sp.Integer(0)
    for term in sp.Add.make_args(sp.expand(expression)):
        sums = [f for f in sp.Mul.make_args(term) if isinstance(f, sp.Sum)]
        if len(sums) != 1:
            rest += term
            continue
        total = sums[0]
        factor = term / total
        if factor.free_symbols & {limit[0] for limit in total.limits}:
            rest += term
            continue
        names = [sp.Symbol(f"_{n}", integer=True) for n in range(len(total.limits))]
        rename = {limit[0]: name for limit, name in zip(total.limits, names, strict=True)}
        limits = tuple((rename[x], *rest_) for x, *rest_ in total.limits)
        terms[limits] = terms.get(limits, 0) + factor * total.function.xreplace(rename)
    for limits, body in terms.items():
        reduced = sp.cancel(sp.together(as_atoms(body)))
        if reduced != 0:
            rest += sp.Sum(body, *limits)
    return as_atoms(rest) if rest != 0 else rest


def prove(relation: Any, *, witness: Any = None) -> str:
    """Show that `relation` holds for all values of its symbols; return how, in words.

    An equation is proved by reducing the difference of its sides to zero. `a <= b` is proved by
    writing `b - a` as a fraction whose numerator and denominator are sums and products of
    non-negative things; `witness` is such a form, where the factoring does not find one.

    Raises
    ------
    NotProved
        If no method succeeds. The message shows what is left of the difference.
    """
    if isinstance(relation, sp.Eq):
        left = _difference(relation.lhs, relation.rhs)
        if left != 0:
            raise NotProved(f"the two sides differ: left - right = {left}")
        return "by simplification"
    if isinstance(relation, sp.Le | sp.Lt | sp.Ge | sp.Gt):
        low, high = (
            (relation.lhs, relation.rhs)
            if isinstance(relation, sp.Le | sp.Lt)
            else (relation.rhs, relation.lhs)
        )
        strict = isinstance(relation, sp.Lt | sp.Gt)
        return _prove_order(low, high, strict=strict, witness=witness)
    raise NotProved(f"cannot prove a {type(relation).__name__}: state an equation or an inequality")


def _prove_order(low: Any, high: Any, *, strict: bool, witness: Any) -> str:
    if witness is not None:
        left = _difference(high - low, witness)
        if left != 0:
            raise NotProved(f"the witness is not the difference: {left} is left")
        candidate, how = as_atoms(witness), "by writing the difference as a sum of such terms"
    else:
        candidate, how = as_atoms(high - low), "by the sign of the difference"
        pair = _same_range(low, high)
        if pair is not None and not _nonnegative(candidate):
            candidate, how = as_atoms(pair[1] - pair[0]), "term by term"
    if strict:
        if not (candidate.is_positive or sp.factor(candidate).is_positive):
            raise NotProved(f"not shown to be positive: {sp.factor(candidate)}")
    elif not _nonnegative(candidate):
        raise NotProved(f"not shown to be non-negative: {sp.factor(candidate)}")
    return how


def _same_range(low: Any, high: Any) -> tuple[Any, Any] | None:
    """Return the summands of two sums over the same range, constant factors pulled in."""
    parts = []
    for side in (low, high):
        factor, total = side.as_independent(sp.Sum, as_Add=False)
        if not isinstance(total, sp.Sum) or factor.has(sp.Sum):
            return None
        parts.append((factor, total))
    (f, a), (g, b) = parts
    if len(a.limits) != len(b.limits):
        return None
    rename = {y[0]: x[0] for x, y in zip(a.limits, b.limits, strict=True)}
    if any(tuple(x[1:]) != tuple(y[1:]) for x, y in zip(a.limits, b.limits, strict=True)):
        return None
    return f * a.function, g * b.function.xreplace(rename)


def prove_by_induction(equation: sp.Eq, induction: Induction) -> str:
    """Show `equation` for all n >= start: the first case, and the step from n to n + 1."""
    n, right = induction.variable, equation.rhs
    first = _difference(sp.sympify(induction.first), right.subs(n, induction.start))
    if first != 0:
        raise NotProved(f"the first case fails at {n} = {induction.start}: {first} is left")
    step = _difference(induction.following(right), right.subs(n, n + 1))
    if step != 0:
        raise NotProved(f"the step from {n} to {n} + 1 fails: {step} is left")
    return f"by induction on {n}"


def prove_by_exhaustion(relation: Any, cases: Iterable[Mapping[Any, Any]]) -> str:
    """Show `relation` in every one of finitely many cases, exactly."""
    count = 0
    for case in cases:
        count += 1
        verdict = relation.subs(dict(case), simultaneous=True).doit()
        if verdict != True and sp.simplify(verdict) != True:  # noqa: E712
            raise NotProved(f"fails in the case {dict(case)}: {verdict}")
    if not count:
        raise VacuousCheck("no case was examined")
    return f"in all {count:,} cases"


def guard(
    relation: Any,
    *,
    seed: str,
    domain: Mapping[Any, Any] | None = None,
    assuming: Sequence[Any] = (),
    induction: Induction | None = None,
    points: int = POINTS,
) -> int:
    """Evaluate `relation` as written, with 50 digits, at random points of its domain.

    Parameters
    ----------
    relation
        The statement, unfolded but not simplified.
    seed
        Text that fixes the random points (the entry's id), so that every run sees the same.
    domain
        For a symbol: a pair (low, high), whose ends may use other symbols of the domain, or a list
        of values. Without it a symbol's own assumptions decide.
    assuming
        Conditions that a point must satisfy to count.
    induction
        How the left side follows from its recurrence, where it is defined by one.
    points
        How many points to look at.

    Returns
    -------
    int
        The number of points evaluated: `points`, or 1 where there is nothing to vary.

    Raises
    ------
    NotProved
        If the two sides differ at a point, or no point of the domain could be evaluated.
    """
    rng = random.Random(seed)
    domain = dict(domain or {})
    done = 0
    for _ in range(20 * points):
        values = _sample(relation, rng, domain, assuming)
        if values is None:
            continue
        here = relation
        if induction is not None and isinstance(relation.lhs, sp.Indexed | AppliedUndef):
            left = induction.unrolled(int(values[induction.variable]))
            here = relation.func(left, relation.rhs, evaluate=False)
        verdict = _holds(here, values, rng)
        if verdict is None:
            continue
        if not verdict:
            raise NotProved(f"the two sides differ at {values}")
        done += 1
        if done == points or not values:
            return done
    if not done:
        raise NotProved("no point of the domain could be evaluated")
    raise NotProved(f"only {done} of {points} points of the domain could be evaluated")


def _draw(symbol: Any, rng: random.Random, domain: Mapping[Any, Any], known: dict[Any, Any]) -> Any:
    choice = domain.get(symbol)
    if isinstance(choice, tuple):
        low, high = (sp.sympify(end).subs(known) for end in choice)
        if symbol.is_integer:
            return sp.Integer(rng.randint(int(low), int(high)))
        return low + (high - low) * sp.Rational(rng.randint(1, 9999), 10000)
    if choice is not None:
        return sp.sympify(rng.choice(list(choice)))
    if symbol.is_integer:
        return sp.Integer(rng.randint(1 if symbol.is_nonnegative else -3, 4))
    value = sp.Rational(rng.randint(1, 9999), rng.randint(1000, 3000))
    if symbol.is_nonnegative:
        return value
    return -value if symbol.is_negative or rng.random() < 0.5 else value


def _sample(
    relation: Any, rng: random.Random, domain: Mapping[Any, Any], assuming: Sequence[Any]
) -> dict[Any, Any] | None:
    labels = {base.label for base in relation.atoms(sp.IndexedBase)}
    symbols = {s for s in relation.free_symbols if isinstance(s, sp.Symbol)} - labels
    for condition in assuming:
        symbols |= {s for s in condition.free_symbols if isinstance(s, sp.Symbol)}
    # A range may depend on another symbol (i in 0..k): draw those it depends on first.
    ends = {
        s: {e for end in domain.get(s, ()) for e in sp.sympify(end).free_symbols}
        if isinstance(domain.get(s), tuple)
        else set()
        for s in symbols
    }
    symbols |= {e for needed in ends.values() for e in needed}
    values: dict[Any, Any] = {}
    for symbol in sorted(symbols, key=lambda s: (len(ends.get(s, ())), s.name)):
        values[symbol] = _draw(symbol, rng, domain, values)
    return values if all(c.subs(values) == True for c in assuming) else None  # noqa: E712


def _holds(relation: Any, values: Mapping[Any, Any], rng: random.Random) -> bool | None:
    """Evaluate both sides; None where one of them has no value at this point."""
    unknown: dict[Any, Any] = {}
    sides = []
    for side in (relation.lhs, relation.rhs):
        side = side.subs(values, simultaneous=True)
        side = side.replace(sp.Limit, _far_value)
        side = side.doit()
        for atom in sorted(side.atoms(sp.Indexed, AppliedUndef), key=sp.default_sort_key):
            if atom not in unknown:
                value = sp.Rational(rng.randint(1, 9999), rng.randint(1000, 3000))
                signed = not atom.is_nonnegative and rng.random() < 0.5
                unknown[atom] = -value if signed else value
        sides.append(sp.N(side.xreplace(unknown).doit(), DIGITS + 10))
    left, right = sides
    if not (left.is_number and right.is_number) or any(
        s.has(sp.nan, sp.zoo, sp.oo, -sp.oo) for s in sides
    ):
        return None
    slack = sp.Float(10, DIGITS) ** (-15 if relation.has(sp.Limit) else -DIGITS)
    slack *= max(1, abs(left), abs(right))
    if isinstance(relation, sp.Eq):
        return bool(abs(left - right) <= slack)
    if not (left.is_real and right.is_real):
        return None
    gap = right - left if isinstance(relation, sp.Le | sp.Lt) else left - right
    return bool(gap > 0 if isinstance(relation, sp.Lt | sp.Gt) else gap >= -slack)


def _far_value(expression: Any, symbol: Any, target: Any, direction: Any = None) -> Any:
    if target == sp.oo:
        return expression.subs(symbol, _FAR)
    return expression.subs(symbol, target + (1 if str(direction) == "+" else -1) / _FAR)
