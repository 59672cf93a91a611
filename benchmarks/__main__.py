"""`python -m benchmarks [slug ...] [--device cpu|cuda] [--quick] [--first N] [--out FOLDER]`."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
from itertools import islice
from pathlib import Path

import torch

from benchmarks import harness

ROOT = Path(__file__).parent.parent
#: A benchmark has the name of its chapter; what has another name is a helper.
SLUGS = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if (ROOT / "pkg" / "algos" / path.stem).is_dir()
    or ((ROOT / "pkg" / "algos" / path.name).is_file() and path.stem != "__init__")
)  # fmt: skip
#: Seconds after which a benchmark begins no further case.
BUDGET = {"cpu": 900.0, "cuda": 450.0}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks and store their results; 1 if a case was red."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("slugs", nargs="*", metavar="slug", help=f"of {', '.join(SLUGS)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="five rounds, nothing stored")
    parser.add_argument("--first", type=int, help="only so many cases, nothing stored")
    parser.add_argument("--threads", type=int, nargs="+", help="on a CPU; else 1, then all")
    parser.add_argument("--seconds", type=float, help="begin no case of a benchmark after these")
    parser.add_argument("--out", type=Path, help="another folder for the results")
    options = parser.parse_args(arguments)
    unknown = set(options.slugs) - set(SLUGS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    results = [run(slug, options) for slug in options.slugs or SLUGS]
    return 0 if all(results) else 1


def run(slug: str, options: argparse.Namespace) -> bool:
    """Run one benchmark, storing after every case what is there; False if it was red."""
    cores = os.cpu_count() or 1
    threads = (1,) if options.device == "cuda" or cores == 1 else (1, cores)
    if options.threads is not None and options.device == "cpu":
        threads = tuple(options.threads)
    rounds = 5 if options.quick else harness.ROUNDS
    stored = not options.quick and options.first is None
    seconds = BUDGET[options.device] if options.seconds is None else options.seconds
    module = importlib.import_module(f"benchmarks.{slug}")
    cases: list[harness.Case] = []
    complete = good = True
    harness.end_after(seconds)
    found = iter(islice(module.run(options.device, threads, rounds), options.first))
    try:
        for case in found:
            cases.append(case)
            told = {label: round(ratio, 2) for label, ratio in case.ratios.items()}
            print(f"{case.name}, {case.threads} threads: {told}", flush=True)
            if stored:
                harness.store(slug, options.device, cases, options.out, complete=False)
    except harness.TimeIsOver as first:
        print(f"{slug}: {seconds:.0f} s are over; left out: {first} and what comes after")
        complete = False
    except harness.Red as error:
        print(f"{slug} is RED: {error}", file=sys.stderr)
        complete = good = False
    finally:
        harness.end_after(math.inf)
    if cases:
        print(f"\n{slug}: times as long as ours\n{harness.table(cases)}")
        if stored:
            harness.store(slug, options.device, cases, options.out, complete=complete)
    return good


if __name__ == "__main__":
    sys.exit(main())
