"""Determinants of symbolic size: right ones are proved, wrong ones refused, sizes can be put in."""

from __future__ import annotations

import pytest
import sympy as sp
from sympy import Eq, Lambda

from pkg.ledger import Ledger, NotProved, latex
from pkg.ledger.matrices import Det, ElementMatrix

i, j = sp.symbols("i j", integer=True, nonnegative=True)
n, m = sp.symbols("n m", integer=True, positive=True)
a, b, c, s = (sp.IndexedBase(name, real=True) for name in "abcs")
A = ElementMatrix("A", n, n, Lambda((i, j), a[i, j]))
B = ElementMatrix("B", n, n, Lambda((i, j), b[i, j]))
C = ElementMatrix("C", m, n, Lambda((i, j), c[i, j]))
E = ElementMatrix("E", m, m, Lambda((i, j), sp.exp(s[i]) * sp.KroneckerDelta(i, j)), True)
JACOBIAN = Det(sp.BlockMatrix([[sp.Identity(n), sp.ZeroMatrix(n, m)], [C, E]]))
SIZES = {n: (1, 3), m: (1, 3)}


def test_a_block_triangle_of_symbolic_size():
    entry = Ledger("x").prove(
        "jacobian",
        Eq(JACOBIAN, sp.exp(sp.Sum(s[i], (i, 0, m - 1))), evaluate=False),
        title="Jacobian",
        domain=SIZES,
    )
    assert "20 random points" in entry.evidence[0]


@pytest.mark.parametrize(
    "wrong",
    [
        sp.exp(sp.Sum(s[i], (i, 0, m - 2))),
        sp.exp(-sp.Sum(s[i], (i, 0, m - 1))),
        sp.exp(sp.Sum(s[i], (i, 0, n - 1))),
        sp.Sum(s[i], (i, 0, m - 1)),
    ],
)
def test_wrong_determinants_are_refused(wrong):
    with pytest.raises(NotProved):
        Ledger("x").prove("w", Eq(JACOBIAN, wrong, evaluate=False), title="w", domain=SIZES)


def test_the_numbers_do_not_come_from_the_structure():
    """Where sizes are numbers the elements decide, even if a matrix claims to be a triangle."""
    liar = ElementMatrix("A", n, n, Lambda((i, j), sp.exp(a[i, j])), True)
    claimed = sp.exp(sp.Sum(a[i, i], (i, 0, n - 1)))
    with pytest.raises(NotProved):
        Ledger("x").prove("l", Eq(Det(liar), claimed, evaluate=False), title="l", domain=SIZES)


def test_products_multiply_and_sums_do_not_add():
    ledger = Ledger("x")
    ledger.prove(
        "p", Eq(Det(A * B), Det(A) * Det(B), evaluate=False), title="p", domain={n: (1, 3)}
    )
    with pytest.raises(NotProved):
        ledger.prove("q", Eq(Det(A + B), Det(A) + Det(B), evaluate=False), title="q", domain=SIZES)


def test_determinants_are_printed_with_bars():
    assert latex(Det(A)) == r"\left|A\right|"
    assert r"\left|\begin{matrix}" in latex(JACOBIAN)
