"""Sums with symbolic ends: equal ones become one object, unequal ones do not."""

from __future__ import annotations

import pytest
import sympy as sp
from sympy import Derivative, Eq, Max, Sum, exp

from pkg.ledger import Induction, Ledger, MaxOver, NotProved
from pkg.ledger.normal_form import normal_form
from pkg.ledger.proof import prove

i, j, k, n, N, D = sp.symbols("i j k n N D", integer=True, positive=True)
c, t = sp.symbols("c t", real=True)
x, m, p, g, w = (sp.IndexedBase(name, real=True) for name in "xmpgw")
total = sp.IndexedBase("l", positive=True)
A = sp.IndexedBase("A", real=True)

EQUAL = [
    (Sum(exp(x[j] - c), (j, 1, N)), exp(-c) * Sum(exp(x[i]), (i, 1, N))),
    (Sum(x[j], (j, 1, n + 2)), Sum(x[k], (k, 1, n)) + x[n + 1] + x[n + 2]),
    (Sum(p[i] * Sum(A[i, j], (j, 1, D)), (i, 1, N)), Sum(p[i] * A[i, j], (i, 1, N), (j, 1, D))),
    (Sum(x[i] * Sum(p[j], (j, 1, N)), (i, 1, N)), Sum(x[i], (i, 1, N)) * Sum(p[i], (i, 1, N))),
    (Sum(c, (i, 1, N)), N * c),
    (MaxOver(x[j], (j, 1, n + 1)), Max(MaxOver(x[i], (i, 1, n)), x[n + 1])),
    (Derivative(Sum(exp(t * x[j]), (j, 1, N)), t), Sum(x[j] * exp(t * x[j]), (j, 1, N))),
    (
        Sum(Sum(A[i, j] * A[j, i], (i, 1, N)), (j, 1, N)),
        Sum(Sum(A[j, i] * A[i, j], (j, 1, N)), (i, 1, N)),
    ),
]
UNEQUAL = [
    (Sum(exp(x[j] - c), (j, 1, N)), exp(c) * Sum(exp(x[i]), (i, 1, N))),
    (Sum(x[j], (j, 1, n + 1)), Sum(x[k], (k, 1, n)) + x[n]),
    (Sum(A[i, j], (i, 1, N)), Sum(A[j, i], (i, 1, N))),
    (Sum(x[i] * Sum(p[j], (j, 1, N)), (i, 1, N)), Sum(x[i] * p[i], (i, 1, N))),
    (MaxOver(x[j], (j, 1, n + 1)), Max(MaxOver(x[i], (i, 1, n)), x[n])),
]


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_equal_sums_have_one_form(left, right):
    assert sp.simplify(normal_form(left - right)) == 0
    ledger = Ledger("sums", ranges={i: (1, N), j: (1, N)})
    ledger.prove("equal", Eq(left, right, evaluate=False), title="Equal")


@pytest.mark.parametrize(("left", "right"), UNEQUAL)
def test_unequal_sums_stay_apart(left, right):
    assert sp.simplify(normal_form(left - right)) != 0
    with pytest.raises(NotProved):
        Ledger("sums", ranges={i: (1, N), j: (1, N)}).prove(
            "unequal", Eq(left, right, evaluate=False), title="Unequal"
        )


def running(change=0):
    """ℓ[n] = ℓ[n-1] exp(m[n-1] - m[n]) + exp(x[n] - m[n]), perhaps with a mistake."""
    return Eq(total[n], total[n - 1] * exp((1 - change) * (m[n - 1] - m[n])) + exp(x[n] - m[n]))


def test_a_recurrence_is_defined_printed_and_used_for_induction():
    ledger = Ledger("sums")
    ledger.define("step", running(), title="Step", recurrence=True)
    along = Induction.along(running(), n, 1, exp(x[1] - m[1]))
    closed = Eq(total[n], Sum(exp(x[j] - m[n]), (j, 1, n)))
    entry = ledger.prove("closed", closed, induction=along, title="Closed")
    assert "by induction on n; and to 50 digits at 20 random points" in entry.evidence[0]


def test_a_wrong_recurrence_is_refused():
    closed = Eq(total[n], Sum(exp(x[j] - m[n]), (j, 1, n)))
    along = Induction.along(running(change=1), n, 1, exp(x[1] - m[1]))
    with pytest.raises(NotProved, match="the step from n to n \\+ 1 fails"):
        Ledger("sums").prove("closed", closed, induction=along, title="Closed")


def test_the_numbers_behind_an_induction_come_from_the_recurrence():
    """A left side that only the recurrence defines is unrolled, not drawn at random."""
    along = Induction.along(Eq(w[n], w[n - 1] * 2 + 1), n, 1, sp.Integer(1))
    assert [along.unrolled(last) for last in range(1, 6)] == [1, 3, 7, 15, 31]
    Ledger("sums").prove("power", Eq(w[n], 2**n - 1), induction=along, title="Power")


def test_a_mean_of_gaps_under_a_tangent():
    """SymPy's own `simplify` ends in StopIteration here."""
    k, size = sp.Symbol("k", integer=True), sp.Symbol("N", integer=True, positive=True)
    p = sp.IndexedBase("p", positive=True)
    mean = Sum(p[k], (k, 1, size)) / size
    gap = p[k] / mean - 1 - sp.log(p[k]) + sp.log(mean)
    left = sp.log(mean) - Sum(sp.log(p[k]), (k, 1, size)) / size
    assert prove(Eq(left, Sum(gap, (k, 1, size)) / size, evaluate=False))
    with pytest.raises(NotProved):
        prove(Eq(left, Sum(gap + 1, (k, 1, size)) / size, evaluate=False))
