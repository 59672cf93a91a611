"""A pytest plugin that closes two holes of strict nbval: figures, and cells that never ran.

nbval 0.11 does not compare PNG and JPEG outputs at all (a sine may become a cosine), compares SVG
by every byte (which another processor need not reproduce), and passes a cell that was never run.
With this plugin figures are compared with a tolerance that no change of content can hide in.
"""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from nbval.plugin import IPyNbCell

FIGURES = ("image/svg+xml", "image/png", "image/jpeg")

# Coordinates of an SVG are in points, 1/72 inch. Rounding moves them by a few millionths; a tenth
# of a point cannot be seen, and no change of a plotted value by a percent stays below it.
POINTS = 0.1
# A picture may differ by rounding in single grey levels, nowhere by more.
LEVELS = 3

_PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")
# Names that matplotlib and the house style make from a hash of the drawing.
_HASH = re.compile(r"\bf[0-9a-f]{8}-|\b[a-zA-Z]+[0-9a-f]{10}\b|\bimage[0-9a-f]{10}\b")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def figures(outputs: Any) -> list[tuple[str, str]]:
    """Return (MIME type, content) of every figure among a cell's outputs, in order."""
    found = []
    for output in outputs:
        for mime in FIGURES:
            if mime in output.get("data", {}):
                content = output["data"][mime]
                found.append((mime, "".join(content) if isinstance(content, list) else content))
    return found


def _pixels(encoded: str) -> Any:
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        return np.asarray(picture.convert("RGBA"), dtype=np.int16)


def compare_pictures(ours: str, theirs: str) -> str:
    """Return what differs between two base64 pictures, or nothing."""
    a, b = _pixels(ours), _pixels(theirs)
    if a.shape != b.shape:
        return f"a picture of {a.shape[1]} x {a.shape[0]} pixels became {b.shape[1]} x {b.shape[0]}"
    worst = int(np.abs(a - b).max())
    return f"a pixel differs by {worst} levels of 255" if worst > LEVELS else ""


def compare_svg(ours: str, theirs: str) -> str:
    """Return what differs between two SVG drawings, or nothing."""
    pictures = [_PNG.findall(svg) for svg in (ours, theirs)]
    if len(pictures[0]) != len(pictures[1]):
        return f"{len(pictures[0])} embedded pictures became {len(pictures[1])}"
    for a, b in zip(*pictures, strict=True):
        complaint = compare_pictures(a, b)
        if complaint:
            return complaint
    plain = [_HASH.sub("#", _PNG.sub("", svg)) for svg in (ours, theirs)]
    texts, numbers = (
        [_NUMBER.sub("0", svg) for svg in plain],
        [np.array([float(x) for x in _NUMBER.findall(svg)]) for svg in plain],
    )
    if texts[0] != texts[1]:
        at = next(
            (i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b),
            min(map(len, texts)),
        )
        return f"{texts[0][max(0, at - 30) : at + 30]!r} became {texts[1][max(0, at - 30) : at + 30]!r}"
    if numbers[0].size != numbers[1].size:
        return f"{numbers[0].size} numbers became {numbers[1].size}"
    moved = np.abs(numbers[0] - numbers[1])
    if moved.size and moved.max() > POINTS:
        at = int(moved.argmax())
        return f"a coordinate moved from {numbers[0][at]} to {numbers[1][at]}"
    return ""


def compare_figures(stored: Any, new: Any) -> str:
    """Return what differs between the figures of two lists of outputs, or nothing."""
    ours, theirs = figures(stored), figures(new)
    kinds = [[mime for mime, _ in found] for found in (ours, theirs)]
    if kinds[0] != kinds[1]:
        return f"stored figures {kinds[0]}, new ones {kinds[1]}"
    for number, ((mime, a), (_, b)) in enumerate(zip(ours, theirs, strict=True), 1):
        if a == b:
            continue
        complaint = compare_svg(a, b) if mime == "image/svg+xml" else compare_pictures(a, b)
        if complaint:
            return f"figure {number} ({mime}): {complaint}"
    return ""


_compare_outputs = IPyNbCell.compare_outputs
_runtest = IPyNbCell.runtest


def _compare_with_figures(self: Any, test: Any, ref: Any, skip_compare: Any = None) -> bool:
    skipped = (*(skip_compare or self.parent.skip_compare), *FIGURES)
    same: bool = _compare_outputs(self, test, ref, skip_compare=skipped)
    complaint = compare_figures(ref, test)
    if complaint:
        self.comparison_traceback.append(complaint)
    return same and not complaint


def _run_only_what_was_run(self: Any) -> None:
    if self.cell.source.strip() and self.cell.execution_count is None:
        pytest.fail("this cell was never executed: its output proves nothing", pytrace=False)
    _runtest(self)


def pytest_configure(config: Any) -> None:
    """Put the two checks in nbval's place."""
    IPyNbCell.compare_outputs = _compare_with_figures
    IPyNbCell.runtest = _run_only_what_was_run
