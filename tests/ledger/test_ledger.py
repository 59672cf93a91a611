"""The ledger refuses what does not hold. Each test that accepts has one beside it that refuses."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch
from sympy import Eq, Sum

from pkg.ledger import (
    Cases,
    Disagreement,
    DuplicateEntry,
    Induction,
    Ledger,
    LedgerError,
    MaxOver,
    MinOver,
    NotProved,
    VacuousCheck,
    iverson,
)

i, j, k = sp.symbols("i j k", integer=True, nonnegative=True)
n = sp.IndexedBase("n", nonnegative=True)
row = sp.IndexedBase("r", nonnegative=True)
share = sp.IndexedBase("s")
N, T = sp.Symbol("N"), sp.Symbol("T")
x, y = sp.symbols("x y", positive=True)
RNG = np.random.default_rng(0)
MATRICES = [RNG.integers(1, 9, (size, size)) for size in (1, 2, 3, 5)]


def total(matrix):
    return np.asarray(matrix, dtype=float).sum()


def row_totals(matrix):
    return np.asarray(matrix, dtype=float).sum(axis=1)


def column_totals(matrix):
    return np.asarray(matrix, dtype=float).sum(axis=0)


def half_precision_mean(values):
    return values.mean()


@pytest.fixture
def ledger():
    return Ledger("example", ranges={i: (0, k), j: (0, k)})


@pytest.fixture
def matrices():
    return Cases("4 matrices", MATRICES, bind=lambda m: {n: m, k: len(m) - 1})


TOTAL = Eq(N, Sum(n[i, j], (j, 0, k), (i, 0, k)))
ROWS = Eq(row[i], Sum(n[i, j], (j, 0, k)))


# ---------------------------------------------------------------- proofs


def test_a_true_identity_is_proved(ledger):
    entry = ledger.prove("square", Eq((x + y) ** 2, x**2 + 2 * x * y + y**2), title="Square")
    assert entry.classes == ("proved",)
    assert "50 digits at 20 random points" in entry.evidence[0]


@pytest.mark.parametrize(
    "wrong",
    [
        Eq((x + y) ** 2, x**2 + x * y + y**2),  # a factor dropped
        Eq((x + y) ** 2, x**2 - 2 * x * y + y**2),  # a sign flipped
        Eq(sp.exp(x + y), sp.exp(x) + sp.exp(y)),
        sp.Le(2 * x, x),
        sp.Lt(x, x + y - y, evaluate=False),
        sp.Ge(x / (x + y), 2 * x / (x + y)),
    ],
)
def test_a_proved_entry_whose_sides_differ_is_refused(ledger, wrong):
    with pytest.raises(NotProved):
        ledger.prove("wrong", wrong, title="Wrong")
    assert ledger.entries == ()


def test_a_statement_that_collapsed_before_it_was_examined_is_refused(ledger):
    with pytest.raises(NotProved, match="became True before"):
        ledger.prove("empty", Eq(x, x), title="Nothing to prove")


def test_a_vacuous_simplification_is_caught_by_the_numbers(ledger, monkeypatch):
    """If the algebra were to claim everything, the evaluation at random points still refuses."""
    monkeypatch.setattr("pkg.ledger.proof._difference", lambda left, right: sp.Integer(0))
    with pytest.raises(NotProved, match="differ at"):
        ledger.prove("wrong", Eq((x + y) ** 2, x**2 + y**2), title="Wrong")


def test_definitions_are_put_in_before_the_proof(ledger):
    ledger.define("rows", ROWS, title="Row totals")
    ledger.define("share", Eq(share[i], row[i] / N), title="Share of a row")
    ledger.define("total", Eq(N, Sum(row[i], (i, 0, k))), title="Total")
    ledger.prove("shares", Eq(Sum(share[i] * N, (i, 0, k)), N), title="The shares add up")
    with pytest.raises(NotProved):
        ledger.prove("shares2", Eq(Sum(share[i] * N, (i, 0, k)), 2 * N), title="Wrong")


def test_an_index_is_not_captured_by_a_sum(ledger):
    """r_j inside a sum over j: the bound index of the definition must step aside."""
    ledger.define("rows", ROWS, title="Row totals")
    twice = Sum(row[j], (j, 0, k))
    ledger.prove("twice", Eq(twice, Sum(n[i, j], (j, 0, k), (i, 0, k))), title="Total of totals")


def test_induction(ledger):
    m = sp.Symbol("m", integer=True, positive=True)
    gauss = Eq(Sum(i, (i, 1, m)), m * (m + 1) / 2)
    step = Induction(m, 1, 1, lambda previous: previous + m + 1)
    assert "induction on m" in ledger.prove("gauss", gauss, induction=step, title="G").evidence[0]
    with pytest.raises(NotProved, match="step"):
        ledger.prove(
            "gauss2",
            gauss,
            title="G",
            induction=Induction(m, 1, 1, lambda previous: previous + m),
        )
    with pytest.raises(NotProved, match="first case"):
        ledger.prove(
            "gauss3",
            gauss,
            title="G",
            induction=Induction(m, 1, 2, lambda previous: previous + m + 1),
        )


def test_exhaustion(ledger):
    statement = sp.Le(i * (3 - i), 2)
    entry = ledger.prove("top", statement, cases=[{i: v} for v in range(4)], title="Top")
    assert "4 cases" in entry.evidence[0]
    with pytest.raises(NotProved, match="fails in the case"):
        ledger.prove("low", sp.Le(i * (3 - i), 1), cases=[{i: v} for v in range(4)], title="Low")
    with pytest.raises(VacuousCheck):
        ledger.prove("none", statement, cases=[], title="None")


def test_a_limit(ledger):
    ledger.prove("limit", Eq(sp.Limit(x / (x + y), x, sp.oo), 1, evaluate=False), title="Limit")
    with pytest.raises(NotProved):
        ledger.prove(
            "limit2", Eq(sp.Limit(x / (x + y), x, sp.oo), 2, evaluate=False), title="Wrong"
        )


def test_an_inequality_with_a_witness(ledger):
    a, b = sp.symbols("a b", real=True)
    mean = sp.Le(2 * a * b, a**2 + b**2)
    ledger.prove("mean", mean, witness=(a - b) ** 2, title="Means")
    with pytest.raises(NotProved, match="witness"):
        ledger.prove("mean2", mean, witness=(a + b) ** 2, title="Means")


def test_an_inequality_between_sums_goes_term_by_term(ledger):
    extra = sp.IndexedBase("e", nonnegative=True)
    low = Sum(n[i, i] / (row[i] + extra[i]), (i, 0, k))
    high = Sum(n[i, i] / row[i], (i, 0, k))
    assert "term by term" in ledger.prove("less", sp.Le(low, high), title="Less").evidence[0]
    with pytest.raises(NotProved):
        ledger.prove("more", sp.Ge(low, high), title="More")


def test_every_step_of_a_derivation_counts(ledger):
    ledger.derive("steps", (x + y) ** 2, x * (x + y) + y * (x + y), x**2 + 2 * x * y + y**2,
                  title="Square")  # fmt: skip
    assert r"\begin{aligned}" in ledger["steps"].latex
    with pytest.raises(NotProved, match="step 1"):
        ledger.derive("steps2", (x + y) ** 2, x * (x + y), x**2 + 2 * x * y + y**2, title="Square")


# ---------------------------------------------------------------- comparisons


def test_code_that_agrees_is_checked(ledger, matrices):
    entry = ledger.check("total", TOTAL, total, on=matrices, title="Total")
    assert entry.implementations == (f"{__name__}.total",)
    assert entry.evidence == ("`total` agrees within 4 ulp on 4 matrices, float64.",)


def test_a_free_index_is_compared_for_every_value(ledger, matrices):
    ledger.check("rows", ROWS, row_totals, on=matrices, title="Rows")
    with pytest.raises(Disagreement):  # an index swapped in the code
        ledger.check("rows2", ROWS, column_totals, on=matrices, title="Rows")
    with pytest.raises(Disagreement):  # an index swapped in the equation
        ledger.check("rows3", Eq(row[i], Sum(n[j, i], (j, 0, k))), row_totals, on=matrices,
                     title="Rows")  # fmt: skip

    with pytest.raises(Disagreement):  # a bound moved by one
        ledger.check("rows4", Eq(row[i], Sum(n[i, j], (j, 1, k))), row_totals, on=matrices,
                     title="Rows")  # fmt: skip


@pytest.mark.parametrize(
    "broken",
    [
        lambda m: float("nan"),
        lambda m: 0.0,
        lambda m: m,  # returns its input
        lambda m: total(m) * (1 + 1e-14),
        lambda m: -total(m),
    ],
)
def test_broken_code_is_refused(ledger, matrices, broken, monkeypatch):
    monkeypatch.setattr("pkg.ledger.ledger.public_name", lambda f: "pkg.broken")
    with pytest.raises(Disagreement):
        ledger.check("total", TOTAL, broken, on=matrices, title="Total")


def test_nothing_compared_is_not_a_pass(ledger):
    with pytest.raises(VacuousCheck):
        Cases("no matrices", [], bind=lambda m: {n: m, k: 0})
    empty = Cases("empty arrays", [np.zeros((0, 0))], bind=lambda m: {n: m, k: len(m) - 1})
    with pytest.raises(VacuousCheck):
        ledger.check("rows", ROWS, row_totals, on=empty, title="Rows")


def ratio(matrix):
    with np.errstate(all="ignore"):
        return np.float64(matrix[0, 0]) / np.float64(matrix.sum())


def test_nan_passes_only_where_the_formula_has_no_value(ledger):
    zero_and_one = Cases("2 matrices", [np.zeros((2, 2)), np.ones((2, 2))],
                         bind=lambda m: {n: m, k: len(m) - 1})  # fmt: skip
    only_zero = Cases("1 matrix", [np.zeros((2, 2))], bind=lambda m: {n: m, k: 1})
    quotient = Eq(T, n[0, 0] / Sum(n[i, j], (i, 0, k), (j, 0, k)))
    with pytest.raises(Disagreement, match="NaN on both sides"):
        ledger.check("q", quotient, ratio, on=zero_and_one, title="Q")
    ledger.check("q", quotient, ratio, on=zero_and_one, undefined="all is 0", title="Q")
    with pytest.raises(VacuousCheck):
        ledger.check("q2", quotient.subs(T, N), ratio, on=only_zero, undefined="0", title="Q")


v = sp.IndexedBase("v")


def test_working_types_follow_the_rule_of_twice_plain_pytorch(ledger, monkeypatch):
    vectors = [
        torch.randn(9, generator=torch.Generator().manual_seed(s)).double() for s in range(5)
    ]
    cases = Cases("5 vectors", vectors, bind=lambda t: {v: t, k: len(t) - 1})
    mean = Eq(T, Sum(v[i], (i, 0, k)) / (k + 1))
    types = ("float64", "float32", "bfloat16")
    entry = ledger.check("mean", mean, half_precision_mean, on=cases, dtypes=types, title="Mean",
                         scale=lambda t: float(t.abs().sum()))  # fmt: skip
    assert "bfloat16" in entry.evidence[0]
    monkeypatch.setattr("pkg.ledger.ledger.public_name", lambda f: "pkg.broken")
    with pytest.raises(Disagreement, match="bfloat16"):
        ledger.check("mean2", mean.subs(T, N), lambda t: t.mean() * (1 + 0.02 * (t.itemsize == 2)),
                     on=cases, dtypes=types, title="M", scale=lambda t: float(t.abs().sum()))  # fmt: skip


def nearest(points):
    return np.abs(points[:, None] - points[None, :]).max(axis=1).min()


def test_extrema_run(ledger, monkeypatch):
    points = Cases("3 point sets", [np.array([0.0, 1, 4]), np.array([2.0, 7]), np.array([1.0, 1, 9])],
                   bind=lambda p: {v: p, k: len(p) - 1})  # fmt: skip
    radius = MinOver(MaxOver(sp.Abs(v[i] - v[j]), (j, 0, k)), (i, 0, k))
    ledger.check("radius", Eq(T, radius), nearest, on=points, title="Radius")
    with pytest.raises(Disagreement):
        swapped = MaxOver(MinOver(sp.Abs(v[i] - v[j]), (j, 0, k)), (i, 0, k))
        ledger.check("radius2", Eq(N, swapped), nearest, on=points, title="Radius")


def count_positive(values):
    return float((values > 0).sum())


def test_iverson_brackets_run_without_touching_the_other_branch(ledger):
    cases = Cases("2 vectors", [np.array([1.0, -1, 0]), np.array([2.0, 3])],
                  bind=lambda p: {v: p, k: len(p) - 1})  # fmt: skip
    ledger.check("count", Eq(T, Sum(iverson(v[i] > 0), (i, 0, k))), count_positive, on=cases,
                 title="Count")  # fmt: skip
    with pytest.raises(Disagreement):
        ledger.check("count2", Eq(N, Sum(iverson(v[i] >= 0), (i, 0, k))), count_positive, on=cases,
                     title="Count")  # fmt: skip


# ---------------------------------------------------------------- ids, names, LaTeX, records


def test_a_duplicate_id_is_refused(ledger):
    ledger.prove("one", Eq((x + 1) ** 2, x**2 + 2 * x + 1), title="One")
    ledger.prove("one", Eq((x + 1) ** 2, x**2 + 2 * x + 1), title="One")  # the cell was run again
    with pytest.raises(DuplicateEntry):
        ledger.prove("one", Eq((x - 1) ** 2, x**2 - 2 * x + 1), title="Another")


def test_a_symbol_cannot_get_two_meanings(ledger):
    ledger.define("rows", ROWS, title="Rows")
    with pytest.raises(DuplicateEntry):
        ledger.define("columns", Eq(row[i], Sum(n[j, i], (j, 0, k))), title="Columns")
    with pytest.raises(LedgerError, match="by itself"):
        ledger.define("loop", Eq(N, 2 * N + T), title="Loop")


def test_a_mistaken_variant_is_refused_and_shown(ledger, matrices):
    ledger.check("total", TOTAL, total, on=matrices, title="Total")
    shown = ledger.refuse("total", lambda m: total(m) + 1)
    assert "from the code" in str(shown)
    assert "refused" in shown._repr_markdown_()
    with pytest.raises(LedgerError, match="accepts"):
        ledger.refuse("total", lambda m: float(m.sum()))
    ledger.prove("square", Eq((x + y) ** 2, x**2 + 2 * x * y + y**2), title="Square")
    with pytest.raises(LedgerError, match="compares no code"):
        ledger.refuse("square", total)


def test_a_primitive_symbol_keeps_its_place_in_later_entries(ledger, matrices):
    ledger.check("total", TOTAL, total, on=matrices, title="Total", primitive=True)
    with pytest.raises(NotProved):
        ledger.prove("rows", Eq(N, Sum(n[i, j], (j, 0, k), (i, 0, k))), title="Not known")


def test_code_that_nobody_can_import_is_refused(ledger, matrices):
    with pytest.raises(LedgerError, match="cannot be imported"):
        ledger.check("total", TOTAL, lambda m: total(m), on=matrices, title="Total")


def test_a_hand_written_form_must_read_back_as_the_same_object(ledger):
    equation = Eq(y, x / (1 + x))
    ledger.define("y", equation, title="Y", latex=r"y = \frac{x}{1 + x}")
    with pytest.raises(LedgerError, match="reads as"):
        Ledger("example").define("y", equation, title="Y", latex=r"y = \frac{x}{1 - x}")


def test_a_cited_entry_says_why(ledger):
    entry = ledger.cite("bound", sp.Le(x, y), title="Bound", source="Someone 2020, eq. 3",
                        why="The proof needs measure theory.")  # fmt: skip
    assert entry.classes == ("cited",)
    with pytest.raises(ValueError, match="why"):
        ledger.cite("bound2", sp.Le(x, y), title="Bound", source="Someone 2020", why="")


def test_the_record_and_the_display(ledger, matrices):
    ledger.define("rows", ROWS, title="Row totals", source="Here")
    entry = ledger.check("total", TOTAL, total, on=matrices, title="Total")
    bundle = entry._repr_mimebundle_()
    assert bundle["application/vnd.checked.entry+json"]["id"] == "example:total"
    assert bundle["text/markdown"].startswith("$$\nN = ")
    assert "$$ (example:total)" in bundle["text/markdown"]
    assert "<code>total</code> agrees" in bundle["text/markdown"]
    assert ledger.summary().counts == {"definition": 1, "proved": 0, "checked": 1, "cited": 0}
    assert ledger.summary().shown == 0.5


def test_a_bound_of_its_own_is_kept_and_said(ledger, matrices):
    # Code that rounds by design: the bound comes from elsewhere, and the evidence names it.
    def whole_tens(matrix):
        return 10 * np.round(total(matrix) / 10)

    whole_tens.__module__, whole_tens.__qualname__ = total.__module__, "total"
    ledger.define("rows", ROWS, title="Row totals")
    run = ledger._compare
    _, sentence = run("tens", TOTAL, total, matrices, {"bound": lambda m: 5.0, "within": "5"})
    assert "agrees within 5 on" in sentence
    assert ledger._comparisons["tens"](whole_tens, "whole_tens")
    _, _ = run("fives", TOTAL, total, matrices, {"bound": lambda m: 0.1, "within": "0.1"})
    with pytest.raises(Disagreement):
        ledger._comparisons["fives"](whole_tens, "whole_tens")
    with pytest.raises(ValueError, match="bound and within go together"):
        run("half", TOTAL, total, matrices, {"bound": lambda m: 5.0})
    with pytest.raises(ValueError, match="bound is for float64 alone"):
        run("types", TOTAL, total, matrices,
            {"bound": lambda m: 5.0, "within": "5", "dtypes": ("float32",)})  # fmt: skip


def test_an_equation_with_one_side_written_twice_is_refused():
    """`q * (p / q)` is `p` before the ledger sees it: a reader would see p = p."""
    p, q = sp.symbols("p q", positive=True)
    with pytest.raises(VacuousCheck, match="both sides are p"):
        Ledger("chapter").prove("same", sp.Eq(q * (p / q), p, evaluate=False), title="Same")
