"""What happened when mistakes were made on purpose: the records in `book/recordings/mutants`."""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from book._ext import records
from book.recordings.origin import chapter_files, fingerprint

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "book" / "recordings" / "mutants"

#: For each part of a record: what it is called, and the folder whose code it is of.
PARTS = {
    "code": ("code", "pkg/algos"),
    "kernels": ("kernels", "pkg/cuda"),
    "formulas": ("formulas", "pkg/algos"),
    "vacuity": ("spoilt code", "pkg/algos"),
    "exercises": ("exercises", "pkg/exercises"),
}
#: The parts that are also of a chapter's equations.
OF_STATEMENTS = ("formulas", "vacuity")


@dataclass(frozen=True)
class Trials:
    """One chapter's record: `parts[name]` is what was counted; `stale` names parts of older code."""

    slug: str
    parts: dict[str, dict[str, Any]]
    stale: tuple[str, ...]

    def __getitem__(self, part: str) -> dict[str, Any]:
        return self.parts[part]

    def __contains__(self, part: str) -> bool:
        return part in self.parts

    @property
    def alive(self) -> list[str]:
        """The names of all changes that nothing refused."""
        return [
            name
            for part in ("code", "kernels")
            for name in self.parts.get(part, {}).get("survived", [])
        ] + [
            name
            for part in ("formulas", "vacuity")
            for name in self.parts.get(part, {}).get("accepted", [])
        ]

    @property
    def same(self) -> list[tuple[str, str]]:
        """Pairs (change, why it says the same) of what no check can refuse."""
        found = [
            (each["mutant"], each["reason"])
            for part in ("code", "kernels")
            for each in self.parts.get(part, {}).get("equivalent", [])
        ]
        for part in ("formulas", "vacuity"):
            for line in self.parts.get(part, {}).get("listed", []):
                change, _, reason = line.rpartition(": ")
                found.append((change, reason))
        return found

    def of_entry(self, name: str) -> tuple[int, int] | None:
        """Return (mistakes, refused) of all wrong statements and spoilt code for one entry.

        A change that says the same, or an inequality that holds too, is no mistake.
        """
        kept = [self.parts[part] for part in ("formulas", "vacuity") if part in self.parts]
        if not any(name in part.get("entries", {}) for part in kept):
            return None
        refused = sum(part.get("entries", {}).get(name, {}).get("refused", 0) for part in kept)
        accepted = sum(line.startswith(f"{name}: ") for part in kept for line in part["accepted"])
        return refused + accepted, refused


def load(slug: str, folder: Path = FOLDER) -> Trials | None:
    """Return a chapter's record, or None where there is none."""
    path = folder / f"{slug}.json"
    if not path.is_file():
        return None
    parts = json.loads(path.read_text(encoding="utf-8"))
    stale = [PARTS[part][0] for part in outdated(slug, parts) if part in parts]
    return Trials(slug, parts, tuple(stale))


def outdated(slug: str, parts: dict[str, dict[str, Any]]) -> list[str]:
    """Return the parts that are missing, or of other code or other equations than today's."""
    return [
        part
        for part in PARTS
        if not of_today(slug, part).items() <= parts.get(part, {}).get("origin", {}).items()
    ]


def of_today(slug: str, part: str) -> dict[str, str]:
    """Return what a record of today's code, and of today's equations, says that it is of."""
    made = {"code": _today(PARTS[part][1], slug)}
    return made | {"statements": statements(slug)} if part in OF_STATEMENTS else made


def statements(slug: str, chapters: Path = ROOT / "book" / "chapters") -> str:
    """Return a hash of what a chapter states and of how it was shown; empty where it states nothing.

    Two notebooks have the same one when their entries have the same ids, equations, and evidence,
    whatever the text around them.
    """
    path = chapters / f"{slug}.ipynb"
    stored = records.read_file(path).records if path.is_file() else ()
    stated = sorted((record.id, record.latex, record.evidence) for record in stored)
    return hashlib.sha256(json.dumps(stated).encode()).hexdigest() if stated else ""


@lru_cache(maxsize=128)
def _today(home: str, slug: str) -> str:
    try:
        return fingerprint(chapter_files(home, slug))
    except LookupError:  # the code is gone: whatever was recorded is of another day
        return ""


@lru_cache(maxsize=32)
def public_functions(slug: str) -> tuple[str, ...]:
    """Return the full names that a chapter's package offers, without plain results."""
    path = ROOT / chapter_files("pkg/algos", slug)[0]
    named: dict[str, list[str]] = {"__all__": [], "RESULTS": []}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in named:
            named[ast.unparse(node.targets[0])] = list(ast.literal_eval(node.value))
    kept = [name for name in named["__all__"] if name not in named["RESULTS"]]
    return tuple(f"pkg.algos.{slug}.{name}" for name in kept)
