"""The protocol of every benchmark of the book.

Correctness first: a contender whose result differs from the reference stops its case before any
time is printed. Contenders are interleaved, so that a slow minute of the machine hits all of them,
and what is reported are ratios of medians from one run. Shapes on which we lose are kept.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch

from benchmarks.ceilings import Ceilings, Work, ceilings, copy_bandwidth, roofline
from benchmarks.clocks import cpu_seconds, cuda_seconds, peak_bytes
from benchmarks.record import provenance, store, table

__all__ = [
    "ROUNDS", "Case", "Ceilings", "Red", "TimeIsOver", "Timing", "Work", "ceilings", "copy_bandwidth",
    "each", "end_after", "measure", "peer", "provenance", "store", "table",
]  # fmt: skip

ROUNDS = 30
Clock = Callable[[Callable[[], Any]], tuple[float, float]]


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender: median, percentiles, and processor time."""

    median: float
    p20: float
    p80: float
    process: float


@dataclass(frozen=True)
class Case:
    """One shape: its timings, and how many times slower each contender is than ours.

    On a GPU `timings` and `ratios` are with flushed caches, `hot` with hot ones. `roofline` is each
    contender's share of the nearer ceiling (1 cannot be passed but by a cache), `peak_bytes` what it
    allocated at most, `left_out` why a contender is missing.
    """

    name: str
    threads: int
    timings: dict[str, Timing]
    ratios: dict[str, float]
    notes: dict[str, Any] = field(default_factory=dict)
    hot: dict[str, Timing] = field(default_factory=dict)
    roofline: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def hot_ratios(self) -> dict[str, float]:
        """The ratios with hot caches."""
        return _ratios(self.hot)


class Red(AssertionError):
    """A contender computed something else: no speed is worth printing."""


class TimeIsOver(Exception):
    """The run has had its time: this case and those after it are left out."""


def peer(module: str) -> Any:
    """Return a module, or None and say so."""
    try:
        return import_module(module)
    except ImportError:
        print(f"{module} is not to be had: left out")
        return None


_deadline = math.inf


def end_after(seconds: float) -> None:
    """Let `measure` begin no case later than `seconds` from now."""
    global _deadline
    _deadline = time.monotonic() + seconds


def measure(
    name: str,
    contenders: Mapping[str, Callable[[], Any]],
    same: Callable[[Any, Any], bool],
    *,
    device: str = "cpu",
    threads: int = 1,
    rounds: int = ROUNDS,
    seconds: float = 20.0,
    work: Work | None = None,
    ceiling: Ceilings | None = None,
    peaks: Mapping[str, Callable[[], Any]] | None = None,
    **notes: Any,
) -> Case:
    """Time `contenders`, the first of which is ours, interleaved for `rounds` rounds.

    A case stops early after `seconds`, but never before five rounds; the number of rounds is noted.
    A contender that raises is left out, with its reason, unless it is ours. With `work` and
    `ceiling` the roofline is told; the calls of `peaks` are run once more for their memory.

    Raises
    ------
    Red
        If a contender's result is not the `same` as ours.
    TimeIsOver
        If the time that `end_after` set has passed.
    """
    if time.monotonic() > _deadline:
        raise TimeIsOver(name)
    if device == "cpu":
        torch.set_num_threads(threads)
    able, left_out = _gate(name, contenders, same)
    memory = {
        label: peak_bytes(call, device) for label, call in (peaks or {}).items() if label in able
    }
    clocks: dict[str, Clock] = {"flushed": cpu_seconds}
    if device == "cuda":
        clocks = {"flushed": cuda_seconds, "hot": partial(cuda_seconds, flush=False)}
    found, done = _interleave(able, clocks, rounds, seconds)
    timings = found["flushed"]
    case = Case(
        name, threads, timings, _ratios(timings), {"rounds": done, **notes},
        found.get("hot", {}), peak_bytes=memory, left_out=left_out,
    )  # fmt: skip
    if work is not None and ceiling is not None:
        medians = {label: timing.median for label, timing in timings.items()}
        shares, case.notes["limit"] = roofline(work, ceiling, medians)
        case.roofline.update(shares)
    return case


def _gate(
    name: str, contenders: Mapping[str, Callable[[], Any]], same: Callable[[Any, Any], bool]
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Return the contenders that ran and agree with ours, and why others did not run."""
    able: dict[str, Callable[[], Any]] = {}
    left_out: dict[str, str] = {}
    for label, call in contenders.items():
        try:
            result = call()
        except Exception as error:
            if not able:
                raise
            left_out[label] = _reason(error)
            print(f"{name}: {label} is left out: {left_out[label]}")
            continue
        if not able:
            expected = result
        if not same(expected, result):
            raise Red(f"{name}: the result of {label} is wrong")
        able[label] = call
    return able, left_out


def _interleave(
    contenders: Mapping[str, Callable[[], Any]],
    clocks: Mapping[str, Clock],
    rounds: int,
    seconds: float,
) -> tuple[dict[str, dict[str, Timing]], int]:
    """Return the timings by clock and contender, and the number of rounds."""
    taken: dict[str, dict[str, list[tuple[float, float]]]] = {
        clock: {label: [] for label in contenders} for clock in clocks
    }
    labels, started, done = list(contenders), time.perf_counter(), 0
    while done < rounds and (done < 5 or time.perf_counter() - started < seconds):
        first = done % len(labels)  # nobody always comes after the same neighbour
        for label in labels[first:] + labels[:first]:
            for clock, read in clocks.items():
                taken[clock][label].append(read(contenders[label]))
        done += 1
    found = {
        clock: {label: _timing(pairs) for label, pairs in lists.items()}
        for clock, lists in taken.items()
    }
    return found, done


def _timing(pairs: list[tuple[float, float]]) -> Timing:
    wall, busy = np.array(pairs).T
    p20, median, p80 = (float(x) for x in np.percentile(wall, (20, 50, 80)))
    return Timing(median, p20, p80, float(np.median(busy)))


def _ratios(timings: Mapping[str, Timing]) -> dict[str, float]:
    """Return the medians over that of the first contender, ours."""
    base = next(iter(timings.values())).median if timings else 1.0
    return {label: timing.median / base for label, timing in timings.items()}


def each(plans: Iterable[tuple[str, Callable[[], Case]]]) -> Iterator[Case]:
    """Yield the case of each named plan, and go on where one fails.

    Raises
    ------
    Red
        At the end, if a contender was wrong or ours could not run: a run that lost a case is red.
    TimeIsOver
        If there was no time for all plans, and none is red.
    """
    failures = []
    over = None
    for name, plan in plans:
        try:
            case = plan()
        except TimeIsOver as error:
            over = error
            break
        except Exception as error:
            failures.append(str(error) if isinstance(error, Red) else f"{name}: {_reason(error)}")
            print(f"NO CASE: {failures[-1]}", flush=True)
            continue
        yield case
    if failures:
        raise Red("; ".join(failures))
    if over is not None:
        raise over


def _reason(error: Exception) -> str:
    """Return the first line of an error, short, and without the machine's paths."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return re.sub(r"(/[\w.+-]+){2,}", "…", text)[:160]
