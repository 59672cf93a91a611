"""The tables of recorded benchmarks: what is in them, and that they fit the page."""

from __future__ import annotations

import json

import pytest

from pkg import measured
from pkg.measured import ratio_table, recorded_cases
from pkg.printed import WIDTH

CASES = [
    {"name": "a, 1", "threads": 1, "ratios": {"ours": 1.0, "p": 0.5, "q": 12.0}},
    {"name": "b, 2", "threads": 1, "ratios": {"ours": 1.0, "q": 3.0}},
    {"name": "c", "threads": 1, "ratios": {"ours": 1.0}},
]


def test_a_line_for_each_case_that_has_a_peer_and_a_dash_where_one_is_missing():
    table = ratio_table(CASES, {"P": "p", "Q": "q"}, title="x", label=lambda name: name[0])
    assert table.splitlines() == ["x      P      Q", "a   0.50  12.00", "b      -   3.00"]


def test_a_table_that_the_page_would_cut_is_refused():
    long = [{"name": "n" * (WIDTH - 6), "ratios": {"p": 1.0}}]
    with pytest.raises(ValueError, match="at most 79 characters, got 80"):
        ratio_table(long, {"p": "p"})
    assert len(ratio_table(long, {"p": "p"}, label=lambda name: name[1:]).splitlines()[1]) == WIDTH


def test_what_is_recorded_is_read_and_what_is_not_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="python -m benchmarks thing"):
        recorded_cases("thing")
    record = {"machine": "M", "date": "D", "versions": {"torch": "2"}, "cases": CASES}
    (tmp_path / "thing-cpu.json").write_text(json.dumps(record))
    assert recorded_cases("thing") == ("M; D; torch 2", CASES)


def test_every_chapter_has_a_record():
    slugs = {path.name.removesuffix("-cpu.json") for path in measured.RESULTS.glob("*-cpu.json")}
    chapters = (measured.RESULTS.parents[1] / "book" / "chapters").glob("*.ipynb")
    assert {path.stem for path in chapters} <= slugs
