"""Exercises with checkers that run.

A chapter's exercises live in `pkg/exercises/<slug>.py`, in a module-level `exercises`::

    exercises = ExerciseSet("segmentation_metrics")
    exercises.add(Exercise("iou_of_dice", "IoU from Dice", check, solution=..., wrong=(...)))

In the notebook a reader writes `exercises.check("iou_of_dice", answer)`. With `...` for an answer it
says that there is none yet. A folded cell below shows `exercises.solution("iou_of_dice")`: the
solution, and for each plausible wrong answer why it is refused. The tests run all of them.
"""

from __future__ import annotations

import inspect
import math
import random
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Exercise", "ExerciseSet", "Rejected", "Verdict", "agrees", "equivalent"]


class Rejected(Exception):
    """An answer is not right. The message says what gave it away, without giving the solution."""


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes
    ----------
    name, title
        How the notebook refers to it, and what it asks.
    check
        Called with an answer; raises `Rejected` unless it is right.
    solution
        An answer that passes.
    wrong
        Pairs (answer, why it is tempting), at least two; each must be refused.
    """

    name: str
    title: str
    check: Callable[[Any], None]
    solution: Any
    wrong: tuple[tuple[Any, str], ...]

    def judge(self, answer: Any) -> Verdict:
        """Return the verdict on an answer; whatever the answer does, this does not raise."""
        if answer is ...:
            return Verdict(self.title, None, "Replace the three dots by your answer.")
        if answer is None:
            return Verdict(self.title, False, "Your answer is None: is a `return` missing?")
        if isinstance(answer, str | list | tuple | dict | set) and not answer:
            return Verdict(self.title, False, "Your answer is empty: there is nothing to check.")
        try:
            self.check(answer)
        except Rejected as reason:
            return Verdict(self.title, False, str(reason))
        except Exception as error:  # a reader's answer may be anything
            return Verdict(self.title, False, f"it raised {type(error).__name__}: {error}")
        return Verdict(self.title, True, "")


@dataclass(frozen=True)
class Verdict:
    """What the checker says: accepted, refused (and why), or not answered yet."""

    title: str
    accepted: bool | None
    reason: str

    def __bool__(self) -> bool:
        return bool(self.accepted)

    def __str__(self) -> str:
        word = {True: "right", False: "not yet", None: "not answered yet"}[self.accepted]
        return f"{self.title}: {word}. {self.reason}".strip()

    __repr__ = __str__


class ExerciseSet:
    """All exercises of one chapter."""

    def __init__(self, chapter: str) -> None:
        self.chapter = chapter
        self._exercises: dict[str, Exercise] = {}

    def __iter__(self) -> Any:
        return iter(self._exercises.values())

    def __len__(self) -> int:
        return len(self._exercises)

    def __getitem__(self, name: str) -> Exercise:
        if name not in self._exercises:
            known = ", ".join(self._exercises)
            raise KeyError(f"{self.chapter} has no exercise {name!r}; it has {known}")
        return self._exercises[name]

    def add(self, exercise: Exercise) -> None:
        """Add one; its name must be new."""
        if exercise.name in self._exercises:
            raise ValueError(f"{self.chapter} has an exercise {exercise.name!r} already")
        if len(exercise.wrong) < 2:
            raise ValueError(f"{exercise.name} needs at least two plausible wrong answers")
        self._exercises[exercise.name] = exercise

    def check(self, name: str, answer: Any) -> Verdict:
        """Judge a reader's answer."""
        return self[name].judge(answer)

    def solution(self, name: str) -> Solution:
        """Return the solution with its verdict and those on the wrong answers."""
        return Solution(self[name])


@dataclass(frozen=True)
class Solution:
    """Shows a solution as Markdown: its text, its verdict, and why the wrong answers fall."""

    exercise: Exercise

    def _repr_markdown_(self) -> str:
        exercise = self.exercise
        verdict = exercise.judge(exercise.solution)
        word = "accepted" if verdict else f"**not accepted** ({verdict.reason})"
        lines = [_written(exercise.solution), "", f"The checker's verdict: {word}.", ""]
        for answer, tempting in exercise.wrong:
            refused = exercise.judge(answer)
            shown = _written(answer, inline=True)
            reason = refused.reason.rstrip(".")
            lines.append(f"- {shown} ({tempting}) is refused: {reason}.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Solution of {self.exercise.title!r}: {self.exercise.judge(self.exercise.solution)}"


def _written(answer: Any, *, inline: bool = False) -> str:
    """Return an answer as a reader would write it: source code, mathematics or a value."""
    if inspect.isfunction(answer):
        if inline:
            return f"`{answer.__name__}`"
        return f"```python\n{textwrap.dedent(inspect.getsource(answer)).strip()}\n```"
    if hasattr(answer, "free_symbols"):
        from pkg.ledger import latex

        return f"${latex(answer)}$"
    return f"`{answer!r}`"


def equivalent(
    expected: Any, answer: Any, symbols: Sequence[Any], *, points: int = 20, shares: bool = False
) -> None:
    """Raise `Rejected` unless two SymPy expressions are equal for all values of `symbols`.

    Simplification may be too weak to see that they are; so it may accept, and random points of 50
    digits between 0 and 1 decide otherwise. With `shares` they sum to less than 1, as probabilities of
    one law do.
    """
    import sympy as sp

    try:
        given = sp.sympify(answer)
    except (sp.SympifyError, TypeError, AttributeError) as error:
        raise Rejected(f"this is not an expression: {answer!r}") from error
    if not isinstance(given, sp.Expr):
        raise Rejected(f"this is not an expression: {answer!r}")
    strange = given.free_symbols - set(symbols)
    if strange:
        raise Rejected(f"it uses {', '.join(sorted(map(str, strange)))}, which is not given")
    if sp.simplify(given - expected) == 0:
        return
    draw = random.Random(0)
    for _ in range(points):
        most = 999 // len(symbols) if shares else 999
        at = {s: sp.Rational(draw.randint(1, most), 1000) for s in symbols}
        here, there = (sp.N(e.subs(at), 50) for e in (given, expected))
        if not (here.is_number and here.is_finite and abs(here - there) < sp.Float(10) ** -40):
            values = ", ".join(f"{s} = {float(v):g}" for s, v in at.items())
            shown = f"{float(here):.4g}" if here.is_finite and here.is_real else str(here)
            raise Rejected(f"at {values} it gives {shown}, and should give {float(there):.4g}")


def agrees(
    answer: Any, cases: Iterable[tuple[Any, ...]], oracle: Callable[..., Any], *,
    tolerance: float = 1e-12,
) -> None:  # fmt: skip
    """Raise `Rejected` at the first case in which a function differs from the oracle.

    Parameters
    ----------
    answer
        What the reader wrote; must be callable.
    cases
        The arguments of each call.
    oracle
        What is right; returns a number or nested lists, NaN where there is no value.
    tolerance
        Absolute, on float results.
    """
    if not callable(answer):
        raise Rejected(f"a function is asked for, not {answer!r}")
    tried = 0
    for case in cases:
        tried += 1
        wanted, got = _listed(oracle(*case)), _listed(answer(*case))
        if not _close(got, wanted, tolerance):
            shown = ", ".join(_short(argument) for argument in case)
            raise Rejected(f"for {shown} it gives {_short(got)}, and should give {_short(wanted)}")
    if not tried:
        raise AssertionError("the exercise has no cases")


def _listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _close(got: Any, wanted: Any, tolerance: float) -> bool:
    if isinstance(wanted, list):
        return (
            isinstance(got, list)
            and len(got) == len(wanted)
            and all(_close(g, w, tolerance) for g, w in zip(got, wanted, strict=True))
        )
    if isinstance(got, bool) or not isinstance(got, int | float):
        return bool(got == wanted)
    if math.isnan(wanted) or math.isnan(got):
        return math.isnan(wanted) and math.isnan(got)
    return abs(got - wanted) <= tolerance


def _short(value: Any) -> str:
    value = _listed(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(_short(part) for part in value) + "]"
    return str(value)
