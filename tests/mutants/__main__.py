"""Runs a chapter's mutants and records who killed them: `python -m tests.mutants <slug>`."""

from __future__ import annotations

import argparse
import sys
import time

from tests.mutants import record
from tests.mutants.code import Verdicts, all_mutants, judge
from tests.mutants.entries import attack
from tests.mutants.kernels import judge_kernels, kernel_mutants
from tests.mutants.mutations import Mutant

PARTS = ("code", "kernels", "entries")


def every(mutants: list[Mutant], most: int) -> list[Mutant]:
    """Return at most `most` of them, evenly spread."""
    if not most or len(mutants) <= most:
        return mutants
    return [mutants[i * len(mutants) // most] for i in range(most)]


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Who notices a mistake in a chapter?")
    parser.add_argument("slugs", nargs="+")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--most", type=int, default=0, help="at most so many code mutants")
    parser.add_argument("--kernels", type=int, default=60, help="at most so many kernel mutants")
    parser.add_argument("--store", action="store_true", help="record the result")
    options = parser.parse_args()
    for slug in options.slugs:
        start = time.monotonic()

        def say(text: str, start: float = start, slug: str = slug) -> None:
            minutes, seconds = divmod(int(time.monotonic() - start), 60)
            print(f"{slug} {minutes}:{seconds:02d} {text}", file=sys.__stderr__, flush=True)

        chosen = every(all_mutants(slug), options.most) if "code" in options.parts else []
        verdicts = judge(slug, chosen, options.jobs, say) if chosen else Verdicts()
        attempts = attack(slug, say) if "entries" in options.parts else []
        kernels = []
        if "kernels" in options.parts:
            kernels = judge_kernels(
                slug, every(kernel_mutants(slug), options.kernels), options.jobs, say
            )
        found = record.summary(slug, chosen, verdicts, kernels, attempts)
        _report(found)
        if options.store:
            say(f"recorded in {record.store(found)}")
    return 0


def _report(found: dict[str, object]) -> None:
    for part in ("code", "kernels", "formulas", "vacuity"):
        numbers = found[part]
        assert isinstance(numbers, dict)
        short = {k: len(v) if isinstance(v, list) else v for k, v in numbers.items()}
        print(f"{found['chapter']} {part}: {short}")
        for name in [*numbers.get("survived", []), *numbers.get("accepted", [])]:
            print(f"  alive: {name}")


if __name__ == "__main__":
    sys.exit(main())
