"""Every exercise of every chapter: solutions pass, wrong answers fall, nonsense does no harm."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import sympy as sp

import pkg.exercises as package
from pkg.exercises import Exercise, ExerciseSet, Rejected, agrees, equivalent

CHAPTERS = [module.name for module in pkgutil.iter_modules(package.__path__)]
ALL = [
    pytest.param(exercise, id=f"{chapter}:{exercise.name}")
    for chapter in CHAPTERS
    for exercise in importlib.import_module(f"pkg.exercises.{chapter}").exercises
]
x = sp.Symbol("x", positive=True)


@pytest.mark.parametrize("exercise", ALL)
def test_the_solution_passes(exercise):
    assert exercise.judge(exercise.solution), str(exercise.judge(exercise.solution))


@pytest.mark.parametrize("exercise", ALL)
def test_every_wrong_answer_is_refused_with_a_reason_of_its_own(exercise):
    assert len(exercise.wrong) >= 2
    for answer, tempting in exercise.wrong:
        verdict = exercise.judge(answer)
        assert verdict.accepted is False, f"{answer} was accepted"
        assert not verdict.reason.startswith("it raised"), verdict.reason
        assert len(verdict.reason) > 10
        assert len(tempting) > 10


@pytest.mark.parametrize("exercise", ALL)
def test_no_answer_is_no_failure(exercise):
    verdict = exercise.judge(...)
    assert verdict.accepted is None
    assert "not answered yet" in str(verdict)


@pytest.mark.parametrize("exercise", ALL)
@pytest.mark.parametrize(
    ("empty", "helpful"), [(None, "is a `return` missing?"), ("", "is empty"), ([], "is empty"),
                           ((), "is empty"), ({}, "is empty")],
)  # fmt: skip
def test_an_empty_answer_is_refused_with_a_helpful_line(exercise, empty, helpful):
    verdict = exercise.judge(empty)
    assert verdict.accepted is False
    assert helpful in str(verdict)


@pytest.mark.parametrize("exercise", ALL)
def test_a_function_that_returns_nothing_is_refused(exercise):
    verdict = exercise.judge(lambda *args, **kwargs: None)
    assert verdict.accepted is False
    assert len(verdict.reason) > 10


@pytest.mark.parametrize("exercise", ALL)
@pytest.mark.parametrize("nonsense", [None, "text", [], {}, lambda: 1, float("nan"), object()])
def test_nonsense_is_refused_and_raises_nothing(exercise, nonsense):
    assert exercise.judge(nonsense).accepted is False


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_at_least_six(chapter):
    assert len(importlib.import_module(f"pkg.exercises.{chapter}").exercises) >= 6


@pytest.mark.parametrize("exercise", ALL)
def test_the_solution_is_shown_with_its_verdict(exercise):
    chapter = ExerciseSet("shown")
    chapter.add(exercise)
    shown = chapter.solution(exercise.name)._repr_markdown_()
    assert "verdict: accepted" in shown
    assert shown.count("is refused:") == len(exercise.wrong)


def test_equivalence_is_not_fooled():
    equivalent(x**2 + 2 * x + 1, (1 + x) ** 2, [x])
    equivalent(sp.sin(x) ** 2, 1 - sp.cos(x) ** 2, [x])
    for wrong in (x**2 + 1, x**2 - 2 * x + 1, sp.Symbol("y"), sp.nan, sp.oo, sp.true, (x, x)):
        with pytest.raises(Rejected):
            equivalent(x**2 + 2 * x + 1, wrong, [x])


def test_agreement_shows_the_first_counterexample():
    cases = [(1,), (2,), (3,)]
    agrees(lambda n: n * n, cases, lambda n: n**2)
    with pytest.raises(Rejected, match="for 3 it gives 6, and should give 9"):
        agrees(lambda n: n * n if n < 3 else 6, cases, lambda n: n**2)
    for broken in (lambda n: float("nan"), lambda n: None, lambda n: [n], lambda n: True):
        with pytest.raises(Rejected):
            agrees(broken, [(2,)], lambda n: n**2)
    with pytest.raises(AssertionError, match="no cases"):
        agrees(lambda n: n, [], lambda n: n)


def test_a_set_refuses_doubles_and_too_few_wrong_answers():
    chapter = ExerciseSet("example")
    wrong = ((1, "one is tempting"), (2, "two is tempting"))
    chapter.add(Exercise("a", "A", lambda answer: None, 0, wrong))
    with pytest.raises(ValueError, match="already"):
        chapter.add(Exercise("a", "A", lambda answer: None, 0, wrong))
    with pytest.raises(ValueError, match="two plausible"):
        chapter.add(Exercise("b", "B", lambda answer: None, 0, wrong[:1]))
    with pytest.raises(KeyError, match="it has a"):
        chapter.check("c", 0)


def test_shares_are_tried_where_they_sum_to_less_than_1():
    a, b = sp.symbols("a b")
    equivalent(a + b, sp.Piecewise((a + b, a + b < 1), (0, True)), [a, b], shares=True)
    with pytest.raises(Rejected):
        equivalent(a + b, sp.Piecewise((a + b, a + b < 1), (0, True)), [a, b])
