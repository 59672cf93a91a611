"""What a notebook says of itself: the records of entries and exhibits in its stored outputs."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

#: The MIME type under which the ledger stores an entry's record (`pkg.ledger.MIME`; repeated
#: here so that the site is built without importing the package's scientific dependencies).
MIME = "application/vnd.checked.entry+json"
#: The same for an exhibit of the museum (`tests.museum.MIME`).
EXHIBIT = "application/vnd.checked.exhibit+json"

#: The classes of evidence, in the order in which they are counted and shown.
CLASSES = ("definition", "proved", "checked", "cited")

_FIELDS = ("id", "chapter", "title", "classes", "latex", "evidence", "implementations", "source")


@dataclass(frozen=True)
class Record:
    """One ledger entry as a notebook stored it. `line` is its line of evidence as HTML."""

    id: str
    chapter: str
    title: str
    classes: tuple[str, ...]
    latex: str
    evidence: str
    implementations: tuple[str, ...]
    source: str
    cell: int
    line: str


@dataclass(frozen=True)
class Exhibit:
    """One published bug as a notebook stored it, refused by the entry `entry`."""

    id: str
    chapter: str
    title: str
    project: str
    threads: tuple[tuple[str, str], ...]
    story: str
    entry: str
    variant: str
    reason: str
    cost: str


@dataclass(frozen=True)
class Stored:
    """The records of one notebook, the cells that print bare LaTeX, and broken records."""

    records: tuple[Record, ...]
    latex_cells: tuple[int, ...]
    problems: tuple[str, ...]
    exhibits: tuple[Exhibit, ...] = ()

    def by_id(self) -> dict[str, Record]:
        """Return the records by their id (the first one, where an id is used twice)."""
        found: dict[str, Record] = {}
        for record in self.records:
            found.setdefault(record.id, record)
        return found


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _record(data: dict[str, Any], cell: int) -> Record:
    raw = data[MIME]
    missing = [name for name in _FIELDS if name not in raw]
    if missing:
        raise ValueError(f"the record lacks {', '.join(missing)}")
    unknown = [name for name in raw["classes"] if name not in CLASSES]
    if unknown or not raw["classes"]:
        raise ValueError(f"{raw['id']}: classes must be among {CLASSES}, not {raw['classes']}")
    markdown = _text(data.get("text/markdown", ""))
    start = markdown.find('<p class="evidence')
    if start < 0:
        raise ValueError(f"{raw['id']}: its text/markdown has no line of evidence")
    return Record(
        raw["id"],
        raw["chapter"],
        raw["title"],
        tuple(raw["classes"]),
        raw["latex"],
        raw["evidence"],
        tuple(raw["implementations"]),
        raw["source"],
        cell,
        markdown[start:],
    )


def _exhibit(raw: dict[str, Any]) -> Exhibit:
    missing = [field.name for field in fields(Exhibit) if field.name not in raw]
    if missing:
        raise ValueError(f"the exhibit lacks {', '.join(missing)}")
    threads = tuple((label, address) for label, address in raw["threads"])
    kept = {field.name: raw[field.name] for field in fields(Exhibit)}
    return Exhibit(**kept | {"threads": threads})


def _outputs(notebook: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return (cell number from 1, data) of every output that holds data."""
    return [
        (number, output["data"])
        for number, cell in enumerate(notebook.get("cells", []), start=1)
        for output in cell.get("outputs", [])
        if "data" in output
    ]


def read_text(text: str) -> Stored:
    """Read the records out of a notebook's JSON."""
    records, exhibits, latex, problems = [], [], [], []
    for number, data in _outputs(json.loads(text)):
        try:
            if MIME in data:
                records.append(_record(data, number))
            elif EXHIBIT in data:
                exhibits.append(_exhibit(data[EXHIBIT]))
            elif "text/latex" in data:
                latex.append(number)
        except ValueError as error:
            problems.append(f"cell {number}: {error}")
    return Stored(tuple(records), tuple(latex), tuple(problems), tuple(exhibits))


def without_records(text: str) -> str:
    """Return the notebook's JSON without the records, which myst-nb does not know."""
    notebook = json.loads(text)
    for _, data in _outputs(notebook):
        data.pop(MIME, None)
        data.pop(EXHIBIT, None)
    return json.dumps(notebook)


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> Stored:
    del changed  # a part of the cache's key: a notebook that was stored again is read again
    return read_text(path.read_text(encoding="utf-8"))


def read_file(path: Path) -> Stored:
    """Read the records of a notebook on disk; asked again, it answers from memory."""
    return _read(path, path.stat().st_mtime_ns)
