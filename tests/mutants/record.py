"""The recorded results of a chapter's mutants, and whether its code is still what they are of.

What no check can refuse, because it computes or says the same, is listed by hand in
`equivalent/<slug>.toml`: `[[code]]` with `file`, `before`, `after` and `reason`, where the changed line
stands as the record prints it; `[[formulas]]` with `entry`, `change` and `reason`.
"""

from __future__ import annotations

import importlib
import json
import os
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from book._ext import trials
from book._ext.trials import FOLDER, PARTS
from book.recordings.origin import chapter_files, made_by
from tests.mutants.code import Verdicts
from tests.mutants.entries import Attempt
from tests.mutants.mutations import Mutant

EQUIVALENT = Path(__file__).with_name("equivalent")


# ------------------------------------------------------------------ what no check can refuse


def _listed(slug: str, part: str) -> list[dict[str, str]]:
    path = EQUIVALENT / f"{slug}.toml"
    every = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return every.get(part, [])


def equivalent_mutants(slug: str) -> dict[tuple[str, str, str], str]:
    """Return the mutants that no test can kill, as (file, before, after), each with its reason."""
    return {(e["file"], e["before"], e["after"]): e["reason"] for e in _listed(slug, "code")}


def equivalent_formulas(slug: str) -> dict[tuple[str, str], str]:
    """Return the changes of formulas that say the same, as (entry, change), with their reasons."""
    return {(e["entry"], e["change"]): e["reason"] for e in _listed(slug, "formulas")}


# ------------------------------------------------------------------ what is recorded


def origin(slug: str, part: str) -> dict[str, Any]:
    """Return the origin of a part of a chapter's record; to be asked for before the run."""
    files = chapter_files(PARTS[part][1], slug)
    return made_by(files, f"{os.cpu_count()} cores") | trials.of_today(slug, part)


def code(
    slug: str, there: int, chosen: Sequence[Mutant], verdicts: Verdicts, origin: dict[str, Any]
) -> dict[str, Any]:
    """Return what is recorded of the code mutants: `there` exist, the `chosen` were tried."""
    survived, equivalent = _split(slug, verdicts.survived)
    words = [*verdicts.chapter.values(), *verdicts.tests.values()]
    return {
        "there": there,
        "mutants": len(chosen),
        "by_chapter": len(verdicts.chapter),
        "by_tests_only": len(verdicts.tests),
        "timeouts": words.count("timeout"),
        "survived": survived,
        "equivalent": equivalent,
        "only_tests": [mutant.name for mutant in verdicts.tests],
        "origin": origin,
    }


def alive(slug: str, there: Sequence[Mutant], part: str = "code") -> list[Mutant]:
    """Return the mutants that a chapter's record names as alive, of its `code` or its `kernels`.

    Raises
    ------
    LookupError
        If the record is of other code than today's: then nothing in it can be kept.
    """
    if part in outdated(slug):
        raise LookupError(f"the record of {slug} is of other code; try all its mutants anew")
    named = load(slug)[part]["survived"]
    found = [mutant for mutant in there if mutant.name in named]
    if len({mutant.name for mutant in found}) != len(set(named)):
        raise LookupError(f"{slug}: not every mutant that was alive is there")
    return found


def together(before: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """Return a record whose survivors were tried once more, after checks were strengthened."""
    whole = {**before, "survived": again["survived"], "origin": again["origin"]}
    for count in ("by_chapter", "by_tests_only", "killed", "timeouts"):
        if count in before:
            whole[count] = before[count] + again[count]
    for names in ("equivalent", "only_tests"):
        if names in before:
            whole[names] = [*before[names], *again[names]]
    return whole


def kernels(
    slug: str, there: int, outcomes: Sequence[tuple[Mutant, str]], origin: dict[str, Any]
) -> dict[str, Any]:
    """Return what is recorded of the kernel mutants."""
    survived, equivalent = _split(slug, (m for m, word in outcomes if word == "survived"))
    return {
        "there": there,
        "mutants": len(outcomes),
        "killed": sum(word != "survived" for _, word in outcomes),
        "timeouts": sum(word == "timeout" for _, word in outcomes),
        "survived": survived,
        "equivalent": equivalent,
        "origin": origin,
    }


def attempts(
    slug: str, every: Iterable[Attempt], kind: str, origin: dict[str, Any]
) -> dict[str, Any]:
    """Return what is recorded of the wrong statements, or of the spoilt implementations."""
    ours = [attempt for attempt in every if attempt.attack == kind]
    known = equivalent_formulas(slug)
    counts = {
        word: sum(a.outcome == word for a in ours) for word in ("refused", "timeout", "also true")
    }
    same = sum(a.outcome == "equivalent" for a in ours)
    accepted = [a for a in ours if a.outcome == "accepted"]
    listed = [a for a in accepted if (a.entry, a.what) in known]
    return {
        "attempts": len(ours),
        **counts,
        "equivalent": same + len(listed),
        "listed": [f"{a.entry}: {a.what}: {known[a.entry, a.what]}" for a in listed],
        "accepted": [f"{a.entry}: {a.what}" for a in accepted if a not in listed],
        "entries": _by_entry(ours),
        "origin": origin,
    }


def _by_entry(ours: Sequence[Attempt]) -> dict[str, dict[str, int]]:
    """Return for each entry how many attempts there were, and how many of them were turned down."""
    found: dict[str, dict[str, int]] = {}
    for attempt in ours:
        counts = found.setdefault(attempt.entry, {"attempts": 0, "refused": 0})
        counts["attempts"] += 1
        counts["refused"] += attempt.outcome in ("refused", "timeout")
    return found


def exercises(slug: str) -> dict[str, Any]:
    """Judge every exercise of a chapter: its solution, its wrong answers, and no answer."""
    module = f"pkg.exercises.{slug}"
    every = list(importlib.import_module(module).exercises)
    wrong = [(exercise, answer) for exercise in every for answer, _ in exercise.wrong]
    return {
        "exercises": len(every),
        "solved": sum(exercise.judge(exercise.solution).accepted is True for exercise in every),
        "wrong": len(wrong),
        "refused": sum(exercise.judge(answer).accepted is False for exercise, answer in wrong),
        "empty_refused": sum(
            not exercise.judge(empty) for exercise in every for empty in (..., None)
        ),
        "origin": origin(slug, "exercises"),
    }


def _split(slug: str, alive: Iterable[Mutant]) -> tuple[list[str], list[dict[str, str]]]:
    known = equivalent_mutants(slug)
    survived, equivalent = [], []
    for mutant in alive:
        reason = known.get((mutant.path, mutant.before, mutant.after))
        if reason is None:
            survived.append(mutant.name)
        else:
            equivalent.append({"mutant": mutant.name, "reason": reason})
    return survived, equivalent


# ------------------------------------------------------------------ the record on disk


def load(slug: str) -> dict[str, Any]:
    """Return a chapter's record; empty where it has none."""
    path = FOLDER / f"{slug}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def store(slug: str, found: dict[str, Any]) -> Path:
    """Write the parts that were found into a chapter's record, and keep its other parts."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    whole = load(slug) | found
    path = FOLDER / f"{slug}.json"
    ordered = {part: whole[part] for part in PARTS if part in whole}
    path.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def outdated(slug: str) -> list[str]:
    """Return the parts that are missing, or of other code or other equations than today's."""
    return trials.outdated(slug, load(slug))
