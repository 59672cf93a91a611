"""Runs a chapter's mutants and records who killed them: `python -m tests.mutants <slug>`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from tests.mutants import record
from tests.mutants.code import Verdicts, all_mutants, judge
from tests.mutants.entries import attack
from tests.mutants.kernels import judge_kernels, kernel_mutants
from tests.mutants.mutations import Mutant

PARTS = ("code", "kernels", "entries", "exercises")


def every(mutants: list[Mutant], most: int, shift: int = 0) -> list[Mutant]:
    """Return at most `most` of them, evenly spread; another `shift` chooses others."""
    if not most or len(mutants) <= most:
        return mutants
    return [mutants[(i * len(mutants) // most + shift) % len(mutants)] for i in range(most)]


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Who notices a mistake in a chapter?")
    parser.add_argument("slugs", nargs="+")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--most", type=int, default=100, help="so many code mutants, evenly spread; 0 tries all"
    )
    parser.add_argument(
        "--kernels", type=int, default=30, help="so many kernel mutants, evenly spread; 0 tries all"
    )
    parser.add_argument("--shift", type=int, default=0, help="choose others of them")
    parser.add_argument(
        "--again", action="store_true", help="try only those that the record names as alive"
    )
    parser.add_argument("--store", action="store_true", help="record the result")
    options = parser.parse_args()
    for slug in options.slugs:
        start = time.monotonic()

        def say(text: str, start: float = start, slug: str = slug) -> None:
            minutes, seconds = divmod(int(time.monotonic() - start), 60)
            print(f"{slug} {minutes}:{seconds:02d} {text}", file=sys.__stderr__, flush=True)

        found: dict[str, Any] = {}
        if "code" in options.parts:
            there = all_mutants(slug)
            chosen = every(there, options.most, options.shift)
            if options.again:
                chosen = record.alive(slug, there)
            origin = record.origin(slug, "code")
            verdicts = judge(slug, chosen, options.jobs, say) if chosen else Verdicts()
            found["code"] = record.code(slug, len(there), chosen, verdicts, origin)
            if options.again:
                found["code"] = record.together(record.load(slug)["code"], found["code"])
        if "kernels" in options.parts:
            there = kernel_mutants(slug)
            chosen = every(there, options.kernels, options.shift)
            if options.again:
                chosen = record.alive(slug, there, "kernels")
            origin = record.origin(slug, "kernels")
            outcomes = judge_kernels(slug, chosen, options.jobs, say) if chosen else []
            found["kernels"] = record.kernels(slug, len(there), outcomes, origin)
            if options.again:
                found["kernels"] = record.together(record.load(slug)["kernels"], found["kernels"])
        if "entries" in options.parts:
            origin = record.origin(slug, "formulas")
            attempts = attack(slug, say)
            found["formulas"] = record.attempts(slug, attempts, "formula", origin)
            found["vacuity"] = record.attempts(slug, attempts, "vacuity", origin)
        if "exercises" in options.parts:
            found["exercises"] = record.exercises(slug)
        _report(slug, found)
        if options.store:
            say(f"recorded in {record.store(slug, found)}")
    return 0


def _report(slug: str, found: dict[str, Any]) -> None:
    for part, numbers in found.items():
        short = {k: len(v) if isinstance(v, list) else v for k, v in numbers.items()}
        short.pop("origin", None)
        print(f"{slug} {part}: {short}")
        for name in numbers.get("only_tests", []):
            print(f"  only the tests: {name}")
        for name in [*numbers.get("survived", []), *numbers.get("accepted", [])]:
            print(f"  alive: {name}")


if __name__ == "__main__":
    sys.exit(main())
