"""The protocol of every benchmark of the book.

Correctness first: a contender whose result differs from the reference stops the run before any time
is printed. Contenders are interleaved, so that a slow minute of the machine hits all of them, and
what is reported are ratios of medians from one run. Shapes on which we lose are kept.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"
ROUNDS = 30


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender: median, percentiles, and processor time."""

    median: float
    p20: float
    p80: float
    process: float


@dataclass(frozen=True)
class Case:
    """One shape: its timings, and how many times slower each contender is than ours."""

    name: str
    threads: int
    timings: dict[str, Timing]
    ratios: dict[str, float]
    notes: dict[str, Any] = field(default_factory=dict)


class Red(AssertionError):
    """A contender computed something else: no speed is worth printing."""


def measure(
    name: str,
    contenders: Mapping[str, Callable[[], Any]],
    same: Callable[[Any, Any], bool],
    *,
    device: str = "cpu",
    threads: int = 1,
    rounds: int = ROUNDS,
    seconds: float = 20.0,
    **notes: Any,
) -> Case:
    """Time `contenders`, the first of which is ours, interleaved for `rounds` rounds.

    A case stops early after `seconds`, but never before five rounds; the number of rounds is noted.

    Raises
    ------
    Red
        If a contender's result is not the `same` as ours.
    """
    if device == "cpu":
        torch.set_num_threads(threads)
    results = {label: call() for label, call in contenders.items()}
    ours = next(iter(contenders))
    for label, result in results.items():
        if not same(results[ours], result):
            raise Red(f"{name}: {label} computes something else than {ours}")
    del results
    clock = _cuda_seconds if device == "cuda" else _cpu_seconds
    wall: dict[str, list[float]] = {label: [] for label in contenders}
    busy: dict[str, list[float]] = {label: [] for label in contenders}
    started, done = time.perf_counter(), 0
    while done < rounds and (done < 5 or time.perf_counter() - started < seconds):
        for label, call in contenders.items():
            elapsed, process = clock(call)
            wall[label].append(elapsed)
            busy[label].append(process)
        done += 1
    timings = {
        label: Timing(
            median=float(np.median(wall[label])),
            p20=float(np.percentile(wall[label], 20)),
            p80=float(np.percentile(wall[label], 80)),
            process=float(np.median(busy[label])),
        )
        for label in contenders
    }
    base = timings[ours].median
    ratios = {label: timing.median / base for label, timing in timings.items()}
    return Case(name, threads, timings, ratios, {"rounds": done, **notes})


def _cpu_seconds(call: Callable[[], Any]) -> tuple[float, float]:
    busy, start = time.process_time(), time.perf_counter()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def _cuda_seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Time one call by events, after the second-level cache was overwritten."""
    torch.empty(64 * 2**20, dtype=torch.int32, device="cuda").zero_()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    busy = time.process_time()
    start.record()  # type: ignore[no-untyped-call]
    call()
    stop.record()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1000, time.process_time() - busy


def copy_bandwidth() -> float:
    """Return bytes per second of a large device copy, read and write counted: the ceiling."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    goal = torch.empty_like(source)
    goal.copy_(source)
    best = min(_cuda_seconds(lambda: goal.copy_(source))[0] for _ in range(10))
    return 2 * source.numel() / best


def provenance(device: str) -> dict[str, Any]:
    """Return what made these numbers: commit, machine, versions, day. No host, no path."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=RESULTS.parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for package in ("torch", "triton", "torchmetrics", "scikit-learn"):
        try:
            import importlib.metadata

            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = torch.cuda.get_device_name() if device == "cuda" else _processor()
    day = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return {"device": device, "machine": machine, "commit": commit, "date": day,
            "versions": versions}  # fmt: skip


def _processor() -> str:
    import os

    name = platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


def store(slug: str, device: str, cases: list[Case]) -> Path:
    """Write the results as JSON."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{slug}-{device}.json"
    data = {**provenance(device), "cases": [asdict(case) for case in cases]}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def table(cases: list[Case]) -> str:
    """Return the ratios as text: how many times as long each contender takes."""
    labels = list(dict.fromkeys(label for case in cases for label in case.ratios))
    wide = max(len(case.name) for case in cases) + 12
    lines = [" " * wide + "".join(f"{label:>18}" for label in labels)]
    for case in cases:
        cells = "".join(
            f"{case.ratios[label]:>18.2f}" if label in case.ratios else f"{'-':>18}"
            for label in labels
        )
        head = f"{case.name}, {case.threads} thread{'s' if case.threads > 1 else ''}"
        lines.append(f"{head:<{wide}}{cells}")
    return "\n".join(lines)
