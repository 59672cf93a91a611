"""`python -m benchmarks [slug ...] [--device cpu|cuda] [--quick] [--out FOLDER]`."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

import torch

from benchmarks import harness

SLUGS = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "__main__", "harness")
)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks and store their results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("slugs", nargs="*", metavar="slug", help=f"of {', '.join(SLUGS)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="five rounds, nothing stored")
    parser.add_argument("--out", type=Path, help="another folder for the results")
    options = parser.parse_args(arguments)
    unknown = set(options.slugs) - set(SLUGS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    if options.out is not None:
        harness.RESULTS = options.out
    cores = os.cpu_count() or 1
    threads = (1,) if options.device == "cuda" or cores == 1 else (1, cores)
    for slug in options.slugs or SLUGS:
        module = importlib.import_module(f"benchmarks.{slug}")
        cases = module.run(options.device, threads, 5 if options.quick else harness.ROUNDS)
        print(f"\n{slug}: times as long as ours\n{harness.table(cases)}")
        if not options.quick:
            harness.store(slug, options.device, cases)


if __name__ == "__main__":
    main()
