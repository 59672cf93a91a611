"""The page "What is checked": it counts what was recorded, names what is alive, and warns when stale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pkg.algos
from book._ext import museum, trials, trust
from book._ext.records import EXHIBIT, Record, Stored, read_text, without_records
from tests.notebooks.rules import public_names

SLUG = "mixed_precision"


def origin(part):
    return trials.of_today(SLUG, part) | {"commit": "abc1234", "date": "2026-11-24"}


@pytest.fixture
def record():
    return {
        "code": {"there": 900, "mutants": 10, "by_chapter": 6, "by_tests_only": 1,
                 "survived": ["a.py:1: `x + 1` became `x`"],
                 "equivalent": [{"mutant": "a.py:2: `y` became `z`", "reason": "they are equal"}],
                 "origin": origin("code")},
        "kernels": {"mutants": 4, "killed": 3, "survived": ["k.py:5: `<` became `<=`"],
                    "equivalent": [], "origin": origin("kernels")},
        "formulas": {"attempts": 9, "refused": 6, "timeout": 1, "also true": 1, "equivalent": 0,
                     "accepted": [f"{SLUG}:b: sign: Eq(y, -x)"], "listed": [],
                     "entries": {f"{SLUG}:a": {"attempts": 6, "refused": 5},
                                 f"{SLUG}:b": {"attempts": 4, "refused": 3}},
                     "origin": origin("formulas")},
        "vacuity": {"attempts": 4, "refused": 4, "timeout": 0, "accepted": [], "equivalent": 0,
                    "listed": [], "entries": {f"{SLUG}:a": {"attempts": 4, "refused": 4}},
                    "origin": origin("vacuity")},
        "exercises": {"exercises": 6, "solved": 6, "wrong": 13, "refused": 12, "empty_refused": 12,
                      "origin": origin("exercises")},
    }  # fmt: skip


@pytest.fixture
def loaded(record, tmp_path):
    def load(**changed):
        (tmp_path / f"{SLUG}.json").write_text(json.dumps(record | changed))
        return trials.load(SLUG, tmp_path)

    return load


def stored():
    def one(name, classes, *code):
        return Record(f"{SLUG}:{name}", SLUG, "T", classes, "x", "", code, "", 1, "<p></p>")

    offered = trials.public_functions(SLUG)
    both = one("a", ("proved", "checked"), offered[0], offered[1])
    return Stored((both, one("b", ("checked",), offered[1]), one("c", ("definition",))), (), ())


def words(counts):
    return [str(count) for count in counts]


def test_the_page_counts_what_was_recorded(loaded):
    found = loaded()
    whole = len(trials.public_functions(SLUG))
    assert words(trust._entries(SLUG, stored(), found)) == [
        "3",
        "1",
        "1",
        "2",
        "0",
        f"2 of {whole}",
    ]
    assert words(trust._code(SLUG, stored(), found)) == ["10 of 900", "6", "1", "1", "1", "3 of 4"]
    # 6 solutions, 13 wrong answers, twice 6 empty ones; one wrong answer passed.
    said = words(trust._statements(SLUG, stored(), found))
    assert said == ["7 of 8", "4 of 4", "6", "30 of 31", "0"]
    # Of a's ten one is no mistake, an inequality that holds too; one of b's four was accepted.
    assert found.of_entry(f"{SLUG}:a") == (9, 9)
    assert found.of_entry(f"{SLUG}:b") == (4, 3)
    assert found.of_entry(f"{SLUG}:c") is None


def test_what_is_alive_or_the_same_is_named(loaded):
    found = loaded()
    assert len(found.alive) == 3
    assert found.same == [("a.py:2: `y` became `z`", "they are equal")]
    said = " ".join(node.astext() for node in trust._listing("No check notices {}:", [
        (name, "") for name in found.alive], ""))  # fmt: skip
    assert said.startswith("No check notices 3 changes:")
    for part in ("a.py:1: x + 1 became x", "k.py:5", "Eq(y, -x)"):
        assert part in said


def test_older_code_warns_and_stops_nothing(loaded, record, monkeypatch, tmp_path):
    assert loaded().stale == ()
    stated = record["formulas"] | {"origin": origin("formulas") | {"statements": "others"}}
    assert loaded(formulas=stated).stale == ("formulas",)
    old = loaded(code=record["code"] | {"origin": origin("code") | {"code": "of another day"}})
    assert old.stale == ("code",)
    monkeypatch.setattr(trust.trials, "load", lambda slug: old)
    report = trust.chapter_report(SLUG)
    assert any("older ones" in node.astext() for node in report if node.tagname == "warning")
    assert "abc1234" in report[0].astext()


def test_a_chapter_without_a_record_says_so(tmp_path):
    assert trials.load(SLUG, tmp_path) is None
    assert words(trust._code(SLUG, stored(), None)) == ["–"] * 6
    assert "not been made" in trust.chapter_report("no_such_chapter")[0].astext()
    assert str(trust.Count(1, 2) + trust.Count() + trust.Count(1000, 2000)) == "1,001 of 2,002"


def test_the_functions_are_those_that_the_package_offers():
    offered = public_names(Path(pkg.algos.__path__[0]))
    assert {s: set(n) for s, n in offered.items()} == {
        slug: set(trials.public_functions(slug)) for slug in offered
    }


EXAMPLE = {
    "id": "example:bug", "chapter": "example", "title": "Three for two", "project": "example",
    "threads": [["example #1", "https://example.org/1"]], "story": "Somebody wrote a three.",
    "entry": "example:twice", "variant": "tripled", "reason": "3 from the code, 2 from the equation",
    "cost": "every number grows by 50 %.",
}  # fmt: skip


def notebook(data):
    return json.dumps({"cells": [{"outputs": [{"data": {EXHIBIT: data, "text/plain": "e"}}]}]})


def test_the_museum_is_made_of_what_the_chapters_stored():
    found = read_text(notebook(EXAMPLE))
    stored = {"book/chapters/example": found}
    assert museum.count(stored) == "1 bug, from example."
    said = museum.sections(stored)
    for part in ("[example #1](https://example.org/1)", "50 %",
                 "{eq}`example:twice`", "](/book/chapters/example)"):  # fmt: skip
        assert part in said
    assert EXHIBIT not in without_records(notebook(EXAMPLE))


def test_a_broken_exhibit_is_a_problem():
    (problem,) = read_text(notebook({"id": "example:bug"})).problems
    assert "the exhibit lacks chapter" in problem
