"""Recorded benchmarks, as the chapters show them: how many times as long as ours the peers take."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pkg.printed import WIDTH

__all__ = ["ratio_table", "recorded_cases"]

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

Case = Mapping[str, Any]


def recorded_cases(slug: str, *, device: str = "cpu") -> tuple[str, list[Case]]:
    """Return what was measured for a chapter: where and when, and every case.

    Parameters
    ----------
    slug
        The chapter.
    device
        `cpu` or `cuda`.

    Returns
    -------
    (origin, cases)
        A line that names machine, day and version; and each case with its `name`, `threads`, `ratios`
        (times ours, by peer), `timings` (seconds) and `notes`.

    Raises
    ------
    FileNotFoundError
        If nothing is recorded: `python -m benchmarks <slug>` does it.
    """
    path = RESULTS / f"{slug}-{device}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not recorded: run `python -m benchmarks {slug}`")
    found = json.loads(path.read_text(encoding="utf-8"))
    origin = f"{found['machine']}; {found['date']}; torch {found['versions']['torch']}"
    return origin, found["cases"]


def ratio_table(
    cases: Iterable[Case],
    peers: Mapping[str, str],
    *,
    title: str = "times ours",
    label: Callable[[str], str] = str,
) -> str:
    """Return a table with a line for each case and a column for each peer.

    Parameters
    ----------
    cases
        Of `recorded_cases`, those that are to be shown. A case that has none of the peers is left out.
    peers
        The head of each column, and the contender's name in the record.
    title
        Above the names of the cases.
    label
        What is printed for a case's name.

    Raises
    ------
    ValueError
        If a line is wider than the page: shorten heads or labels.

    Examples
    --------
    >>> cases = [{"name": "small", "ratios": {"ours": 1.0, "theirs": 2.5}}]
    >>> print(ratio_table(cases, {"them": "theirs", "others": "absent"}))
    times ours   them  others
    small        2.50       -
    """
    rows = [
        (label(case["name"]), [case["ratios"].get(peer) for peer in peers.values()])
        for case in cases
        if any(peer in case["ratios"] for peer in peers.values())
    ]
    first = max([len(title), *(len(name) for name, _ in rows)])
    widths = [max(len(head), 5) + 2 for head in peers]
    lines = [f"{title:<{first}}" + "".join(f"{h:>{w}}" for h, w in zip(peers, widths, strict=True))]
    for name, ratios in rows:
        told = ("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        lines.append(
            f"{name:<{first}}" + "".join(f"{t:>{w}}" for t, w in zip(told, widths, strict=True))
        )
    widest = max(lines, key=len)
    if len(widest) > WIDTH:
        raise ValueError(
            f"a line must have at most {WIDTH} characters, got {len(widest)}: {widest}"
        )
    return "\n".join(lines)
