"""What a run leaves behind: JSON that says what made it, and tables."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from benchmarks.harness import Case

RESULTS = Path(__file__).parent / "results"
_PEERS = (
    "torch", "triton", "diffusers", "flow_matching", "gfloat", "ml_dtypes", "nflows", "scikit-learn",
    "torchao", "torchmetrics", "transformers", "zuko",
)  # fmt: skip


def provenance(device: str) -> dict[str, Any]:
    """Return what made these numbers: commit, machine, versions, day. No host, no path."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for package in _PEERS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda is not None:
        versions["cuda"] = torch.version.cuda
    machine = torch.cuda.get_device_name() if device == "cuda" else _processor()
    day = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return {"device": device, "machine": machine, "commit": _commit(), "date": day,
            "versions": versions}  # fmt: skip


def _commit() -> str:
    """Return the commit, with a plus sign if the code differs from it."""
    try:
        told = [
            subprocess.run(
                ["git", *command], capture_output=True, text=True, check=True, cwd=RESULTS.parent
            ).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", "../pkg", "*.py"],
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told[0] + ("+" if told[1] else "")


def _processor() -> str:
    name = platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


def store(
    slug: str, device: str, cases: list[Case], folder: Path | None = None, complete: bool = True
) -> Path:
    """Write the results as JSON; `complete` says whether the run came to its end."""
    folder = RESULTS if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug}-{device}.json"
    data = {**provenance(device), "complete": complete, "cases": [asdict(case) for case in cases]}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def table(cases: list[Case]) -> str:
    """Return as text how many times as long as ours each contender takes.

    Where they were measured, two more tables follow: the same with hot caches, and per cent of the
    nearer ceiling that each contender reaches.
    """
    parts = [_grid(cases, lambda case: case.ratios, ".2f")]
    if any(case.hot for case in cases):
        parts.append("with hot caches:\n" + _grid(cases, lambda case: case.hot_ratios, ".2f"))
    if any(case.roofline for case in cases):
        parts.append("share of the nearer ceiling:\n" + _grid(cases, lambda c: c.roofline, ".0%"))
    return "\n\n".join(parts)


def _grid(cases: list[Case], read: Callable[[Case], Mapping[str, float]], form: str) -> str:
    labels = list(dict.fromkeys(label for case in cases for label in read(case)))
    wide = max((len(case.name) for case in cases), default=0) + 12
    lines = [" " * wide + "".join(f"{label:>18}" for label in labels)]
    for case in cases:
        numbers = read(case)
        if not numbers:
            continue
        cells = "".join(
            f"{format(numbers[label], form):>18}" if label in numbers else f"{'-':>18}"
            for label in labels
        )
        head = f"{case.name}, {case.threads} thread{'s' if case.threads > 1 else ''}"
        lines.append(f"{head:<{wide}}{cells}")
    return "\n".join(lines)
