"""Every exhibit is named, linked, costed, and refused in its chapter; and one that is not, shows."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from pathlib import Path

import pytest
import sympy as sp

from pkg.ledger import Cases, Ledger, LedgerError
from tests.museum import MIME, Exhibit, Museum, complaints

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
CHAPTERS = sorted(path.stem for path in (ROOT / "book" / "chapters").glob("*.ipynb"))
MUSEUMS = {slug: importlib.import_module(f"tests.museum.{slug}").museum for slug in CHAPTERS
           if (FOLDER / f"{slug}.py").is_file()}  # fmt: skip
EXHIBITS = [
    pytest.param(slug, exhibit, id=f"{slug}:{exhibit.name}")
    for slug, museum in MUSEUMS.items()
    for exhibit in museum
]
#: Chapters for which only one published bug is known.
FEWEST = {"medusa": 1}


def shown(slug):
    """Return the records of the exhibits that the chapter's stored outputs show."""
    notebook = json.loads((ROOT / "book" / "chapters" / f"{slug}.ipynb").read_text("utf-8"))
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    return {o["data"][MIME]["id"]: o["data"][MIME] for o in outputs if MIME in o.get("data", {})}


@pytest.mark.parametrize("slug", CHAPTERS)
def test_every_chapter_has_a_museum(slug):
    assert slug in MUSEUMS
    assert len(MUSEUMS[slug]) >= FEWEST.get(slug, 2)
    assert MUSEUMS[slug].chapter == slug


@pytest.mark.parametrize("slug", MUSEUMS)
def test_the_chapter_refused_all_of_it_and_nothing_else(slug):
    records = shown(slug)
    assert set(records) == {f"{slug}:{exhibit.name}" for exhibit in MUSEUMS[slug]}
    for exhibit in MUSEUMS[slug]:
        record = records[f"{slug}:{exhibit.name}"]
        assert (record["entry"], record["variant"]) == (
            f"{slug}:{exhibit.entry}",
            exhibit.variant.__name__,
        )
        assert record["reason"]
        assert record["cost"]


@pytest.mark.parametrize(("slug", "exhibit"), EXHIBITS)
def test_an_exhibit_is_complete(slug, exhibit):
    assert complaints(exhibit) == []
    assert re.search(r"^(def|class) |^@", exhibit.source), "its code is that of one definition"


# ---------------------------------------------------------------- the machinery


def doubled(x):
    """Doubles."""
    return 2 * x


def tripled(x):
    """Triples."""
    return 3 * x


def exhibit(**changed):
    whole = Exhibit(
        "tripled", "Three for two", "example", (("example #1", "https://example.org/1"),),
        "Somebody wrote a three where the paper has a two, and nobody looked.", "twice", tripled,
        lambda: "every number grows by 50 %.",
    )  # fmt: skip
    return dataclasses.replace(whole, **changed)


@pytest.fixture
def ledger():
    x, y = sp.symbols("x y")
    book = Ledger("example")
    on = Cases("numbers", [1.0, 2.0], lambda value: {x: value})
    book.check("twice", sp.Eq(y, 2 * x), doubled, on=on, title="T")
    return book


def test_a_bug_is_refused_and_recorded(ledger):
    seen = Museum("example", exhibit()).refuse("tripled", ledger)
    bundle = seen._repr_mimebundle_()
    assert bundle[MIME]["entry"] == "example:twice"
    assert "3 from the code, 2 from the equation" in bundle[MIME]["reason"]
    for part in ("def tripled", "[example #1](https://example.org/1)", "50 %"):
        assert part in bundle["text/markdown"]


def test_what_is_right_is_no_exhibit(ledger):
    with pytest.raises(LedgerError, match="too weak"):
        Museum("example", exhibit(variant=doubled)).refuse("tripled", ledger)


def test_names_are_kept_apart():
    with pytest.raises(ValueError, match="one name"):
        Museum("example", exhibit(), exhibit())
    with pytest.raises(KeyError, match="it has tripled"):
        Museum("example", exhibit())["other"]


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"name": "A Bug"}, "snake"), ({"threads": ()}, "thread"),
        ({"threads": (("x", "http://x"),)}, "thread"), ({"title": "T."}, "title"),
        ({"variant": lambda x: x}, "variant"), ({"story": "Too short."}, "story"),
        ({"cost": lambda: "a lot."}, "cost"), ({"cost": lambda: "5 points"}, "cost"),
    ],
)  # fmt: skip
def test_an_incomplete_exhibit_is_named(changed, word):
    (complaint,) = complaints(exhibit(**changed))
    assert word in complaint
