"""The recorded result of a chapter's mutants, and whether the chapter is still the one it names."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from book.recordings.origin import made_by
from tests.mutants.code import Verdicts, sources
from tests.mutants.entries import Attempt
from tests.mutants.mutations import Mutant
from tests.mutants.notebook import ROOT

FOLDER = ROOT / "book" / "recordings" / "mutants"
EQUIVALENT = Path(__file__).with_name("equivalent.toml")


def equivalents(slug: str) -> dict[tuple[str, str, str], str]:
    """Return the mutants that no test can kill, as (file, before, after), each with its reason."""
    listed = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get(slug, [])
    return {(e["file"], e["before"], e["after"]): e["reason"] for e in listed}


def summary(
    slug: str, chosen: list[Mutant], verdicts: Verdicts, kernels: list[tuple[Mutant, str]],
    attempts: Iterable[Attempt],
) -> dict[str, Any]:  # fmt: skip
    """Return what is recorded of one chapter."""
    known = equivalents(slug)
    attempts = list(attempts)
    return {
        "chapter": slug,
        "code": _code(chosen, verdicts, known),
        "kernels": _kernels(kernels, known),
        "formulas": _attempts(attempts, "formula"),
        "vacuity": _attempts(attempts, "vacuity"),
        "origin": made_by(
            [str(path.relative_to(ROOT)) for path in sources(slug)], f"{os.cpu_count()} cores"
        ),
    }


def store(found: dict[str, Any]) -> Path:
    """Write a chapter's record."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{found['chapter']}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _split(alive: Iterable[Mutant], known: dict[tuple[str, str, str], str]) -> tuple[Any, Any]:
    survived, equivalent = [], []
    for mutant in alive:
        reason = known.get((mutant.path, mutant.before, mutant.after))
        if reason is None:
            survived.append(mutant.name)
        else:
            equivalent.append({"mutant": mutant.name, "reason": reason})
    return survived, equivalent


def _code(chosen: list[Mutant], verdicts: Verdicts, known: Any) -> dict[str, Any]:
    survived, equivalent = _split(verdicts.survived, known)
    return {
        "mutants": len(chosen),
        "by_chapter": len(verdicts.chapter),
        "by_tests_only": len(verdicts.tests),
        "timeouts": sum(
            word == "timeout" for word in [*verdicts.chapter.values(), *verdicts.tests.values()]
        ),
        "survived": survived,
        "equivalent": equivalent,
        "only_tests": [mutant.name for mutant in verdicts.tests],
    }


def _kernels(kernels: list[tuple[Mutant, str]], known: Any) -> dict[str, Any]:
    survived, equivalent = _split((m for m, word in kernels if word == "survived"), known)
    killed = sum(word != "survived" for _, word in kernels)
    return {
        "mutants": len(kernels), "killed": killed, "survived": survived, "equivalent": equivalent,
    }  # fmt: skip


def _attempts(attempts: list[Attempt], kind: str) -> dict[str, Any]:
    ours = [a for a in attempts if a.attack == kind]
    counts = {
        word: sum(a.outcome == word for a in ours)
        for word in ("refused", "timeout", "equivalent", "also true")
    }
    accepted = [f"{a.entry}: {a.what}" for a in ours if a.outcome == "accepted"]
    return {"attempts": len(ours), **counts, "accepted": accepted}
