"""Every chapter's mutants were run on the code that it has today, and the goals are met."""

from __future__ import annotations

import json

import pytest

from tests.mutants import record
from tests.mutants.code import all_mutants
from tests.mutants.entries import Attempt
from tests.mutants.notebook import ROOT

CHAPTERS = sorted(path.stem for path in (ROOT / "book" / "chapters").glob("*.ipynb"))
KILLED, BY_CHAPTER, KERNELS = 0.95, 0.80, 0.95
#: Parts that are not recorded yet, or whose goal is missed: the page shows them as they are. The list
#: may only shrink; a part that stands here and meets its goal fails a test.
OPEN: dict[str, tuple[str, ...]] = {}


def missed(slug: str, part: str) -> str:
    """Return why a part of a chapter's record does not meet its goal; empty where it does."""
    found = record.load(slug)
    if part in record.outdated(slug):
        return f"run: python -m tests.mutants {slug} --store --parts {part}"
    try:
        GOALS[part](found[part])
    except AssertionError as error:
        return str(error) or "the goal is missed"
    return ""


def code_goal(code):
    killed = code["by_chapter"] + code["by_tests_only"]
    counted = killed + len(code["survived"])
    assert counted + len(code["equivalent"]) == code["mutants"]
    assert code["mutants"] >= min(code["there"], 100)
    assert killed >= KILLED * counted
    assert code["by_chapter"] >= BY_CHAPTER * counted


def kernel_goal(kernels):
    assert kernels["mutants"] >= min(kernels["there"], 30)
    assert kernels["killed"] >= KERNELS * (kernels["killed"] + len(kernels["survived"]))


def statement_goal(found):
    assert found["accepted"] == []
    assert found["attempts"] > len(found["entries"]) > 0


def exercise_goal(found):
    assert found["exercises"] == found["solved"] >= 6
    assert found["wrong"] == found["refused"] >= 2 * found["exercises"]
    assert found["empty_refused"] == 2 * found["exercises"]


GOALS = {"code": code_goal, "kernels": kernel_goal, "formulas": statement_goal,
         "vacuity": statement_goal, "exercises": exercise_goal}  # fmt: skip


@pytest.mark.parametrize("part", record.PARTS)
@pytest.mark.parametrize("slug", CHAPTERS)
def test_mistakes_are_noticed_in_todays_code(slug, part):
    said = missed(slug, part)
    if part in OPEN.get(slug, ()):
        assert said, f"{slug}: {part} meets its goal now; take it off the list of what is open"
    else:
        assert not said


@pytest.mark.parametrize("slug", CHAPTERS)
def test_what_cannot_be_refused_has_a_reason(slug):
    listed = {**record.equivalent_mutants(slug), **record.equivalent_formulas(slug)}
    assert all(len(reason.split()) >= 4 for reason in listed.values())


# ---------------------------------------------------------------- the machinery


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    return tmp_path


def test_a_part_is_stored_beside_the_others(folder):
    record.store("mixed_precision", {"kernels": {"mutants": 1}})
    record.store("mixed_precision", {"code": {"mutants": 2}})
    assert list(json.loads((folder / "mixed_precision.json").read_text())) == ["code", "kernels"]
    record.store("mixed_precision", {"kernels": {"mutants": 3}})
    assert record.load("mixed_precision")["kernels"] == {"mutants": 3}


def test_other_code_makes_a_record_outdated(folder):
    assert record.outdated("mixed_precision") == list(record.PARTS)
    record.store("mixed_precision", {"exercises": record.exercises("mixed_precision")})
    assert "exercises" not in record.outdated("mixed_precision")
    old = {"exercises": {"origin": {"code": "of another day"}}}
    record.store("mixed_precision", old)
    assert "exercises" in record.outdated("mixed_precision")


def test_another_equation_makes_a_record_of_statements_outdated(folder, monkeypatch):
    origin = record.origin("mixed_precision", "formulas")
    assert origin["statements"]
    record.store("mixed_precision", {"formulas": {"origin": origin}})
    assert "formulas" not in record.outdated("mixed_precision")
    monkeypatch.setattr(record.trials, "statements", lambda slug: "of another day")
    assert "formulas" in record.outdated("mixed_precision")


def test_what_is_hashed_is_what_is_stated_and_how_it_was_shown(tmp_path):
    path = ROOT / "book" / "chapters" / "mixed_precision.ipynb"
    text = path.read_text(encoding="utf-8")
    today = record.trials.statements("mixed_precision")

    def of(changed: str) -> str:
        (tmp_path / "other.ipynb").write_text(changed, encoding="utf-8")
        return record.trials.statements("other", tmp_path)

    notebook = json.loads(text)
    prose = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    prose["source"] = ["Other words."]
    assert of(json.dumps(notebook)) == today
    stored = [r for r in record.trials.records.read_text(text).records if r.classes == ("checked",)]
    assert of(text.replace(json.dumps(stored[0].evidence), '"All is well."')) not in (today, "")
    assert of(json.dumps({**notebook, "cells": []})) == ""
    assert record.trials.statements("no_such_chapter") == ""


def test_survivors_can_be_tried_again(folder):
    there = all_mutants("mixed_precision")
    one, two = there[5], there[99]
    before = {
        "there": len(there), "mutants": 9, "by_chapter": 6, "by_tests_only": 1, "timeouts": 0,
        "survived": [one.name, two.name], "equivalent": [], "only_tests": ["x"],
        "origin": record.origin("mixed_precision", "code"),
    }  # fmt: skip
    record.store("mixed_precision", {"code": before})
    assert set(record.alive("mixed_precision", there)) >= {one, two}
    again = before | {"by_chapter": 0, "survived": [two.name], "only_tests": [one.name]}
    whole = record.together(before, again)
    assert (whole["by_chapter"], whole["by_tests_only"], whole["mutants"]) == (6, 2, 9)
    assert whole["survived"] == [two.name]
    kernels = {"mutants": 3, "killed": 1, "timeouts": 0, "survived": ["a", "b"], "equivalent": [],
               "origin": {}}  # fmt: skip
    whole = record.together(kernels, kernels | {"mutants": 2, "survived": []})
    assert (whole["mutants"], whole["killed"], whole["survived"]) == (3, 2, [])
    record.store("mixed_precision", {"code": before | {"origin": {"code": "of another day"}}})
    with pytest.raises(LookupError, match="other code"):
        record.alive("mixed_precision", there)


def test_accepted_changes_are_named_unless_they_are_listed(monkeypatch):
    made = [
        Attempt("a:x", "formula", "sign: 1", "refused"),
        Attempt("a:x", "formula", "sign: 2", "timeout"),
        Attempt("a:x", "formula", "term: 3", "accepted"),
        Attempt("a:x", "formula", "term: 4", "accepted"),
        Attempt("a:x", "vacuity", "NaN", "accepted"),
    ]
    known = {("a:x", "term: 4"): "it says the same"}
    monkeypatch.setattr(record, "equivalent_formulas", lambda slug: known)
    found = record.attempts("a", made, "formula", {})
    assert found["accepted"] == ["a:x: term: 3"]
    assert found["listed"] == ["a:x: term: 4: it says the same"]
    assert found["entries"] == {"a:x": {"attempts": 4, "refused": 2}}
