"""Moving points for a web page: no script, nothing fetched, still until the reader presses play.

Each frame is one path of dots. A style sheet that reaches this figure alone shows them one after the
other while the box "Play" is ticked; unticked it shows the last frame. So nothing moves on its own, the
keyboard can start and stop it, and a printed page has a picture::

    animate({"before": places, "after": others}, "Points travel ...")
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pkg.plotting import COLOURS

__all__ = ["Animation", "animate"]

_SIZE = 300  # units of the drawing along each side of a panel
_GAP, _TITLE = 20, 24
_REST = 6  # frames for which the last one stays


@dataclass(frozen=True)
class Animation:
    """A finished animation: HTML for the notebook and the website, one line for a terminal."""

    html: str
    description: str

    def __repr__(self) -> str:
        return self.description

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.description, "text/html": self.html}


def animate(
    panels: Mapping[str, ArrayLike], alt: str, *, reach: float = 3.0, seconds: float = 5.0
) -> Animation:
    """Return points that move, side by side in panels, to be played by the reader.

    Parameters
    ----------
    panels
        For each title the places of the points, shape (frames, points, 2); all with as many frames.
    alt
        What a reader who does not see it is told.
    reach
        Each panel shows the square from -reach to reach; points outside are not drawn.
    seconds
        How long one round takes.

    Returns
    -------
    Animation
        Displays as `text/html` with a `text/plain` line. The bytes depend on the arguments alone.

    Raises
    ------
    ValueError
        If a panel has another shape or number of frames, or a length is not positive.

    Examples
    --------
    >>> animate({"a step": np.zeros((2, 1, 2))}, "One point that rests.")
    Animation: 2 frames ("a step")
    """
    places = {title: np.asarray(value, dtype=np.float64) for title, value in panels.items()}
    counts = {value.shape[0] if value.ndim == 3 else 0 for value in places.values()}
    for title, value in places.items():
        if value.ndim != 3 or value.shape[2] != 2 or len(counts) > 1 or value.shape[0] < 2:
            raise ValueError(
                f"panels[{title!r}] must have shape (frames, points, 2), with the same number of "
                f"frames, at least 2, in every panel; got {value.shape}"
            )
    if not places:
        raise ValueError("panels must hold at least one panel")
    for name, length in (("reach", reach), ("seconds", seconds)):
        if not length > 0:
            raise ValueError(f"{name} must be positive, got {length}")
    (frames,) = counts
    groups = [
        "".join(_dots(value[frame], place, reach) for place, value in enumerate(places.values()))
        for frame in range(frames)
    ]
    width = len(places) * (_SIZE + _GAP) - _GAP
    titles = "".join(_frame(title, place) for place, title in enumerate(places))
    key = "a" + hashlib.sha256(f"{groups}{titles}{alt}{seconds}".encode()).hexdigest()[:10]
    drawn = "".join(
        f'<g class="f{" last" * (n == frames - 1)}" style="animation-delay:{_delay(n, frames, seconds)}s">'
        f"{group}</g>"
        for n, group in enumerate(groups)
    )
    body = (
        f'<div id="{key}" class="animation">{_style(key, frames, seconds)}'
        f'<input type="checkbox" id="{key}-play"> <label for="{key}-play">Play</label>'
        f'<svg viewBox="0 0 {width} {_SIZE + _TITLE}" role="img" aria-label="{html.escape(alt)}" '
        f'style="display:block;width:100%;max-width:760px">{titles}{drawn}</svg></div>'
    )
    named = ", ".join(f'"{title}"' for title in places)
    return Animation(body, f"Animation: {frames} frames ({named})")


def _delay(frame: int, frames: int, seconds: float) -> str:
    return f"{seconds * frame / (frames + _REST):.3f}"


def _style(key: str, frames: int, seconds: float) -> str:
    """Return the rules: each frame is seen for its share of a round, the last one longer."""
    share, last = (100 * n / (frames + _REST) for n in (1, _REST + 1))
    moving = f"#{key} input:checked~svg"
    return (
        # the theme gives HTML outputs a light ground in dark mode; this one takes the page's colours
        f"<style>div:has(>#{key}){{background:none!important;color:inherit!important}}"
        f"#{key} .f{{visibility:hidden}}#{key} .last{{visibility:visible}}"
        f"{moving} .f{{visibility:hidden;animation:{key} {seconds:g}s step-end infinite}}"
        f"{moving} .last{{animation-name:{key}-last}}"
        f"@keyframes {key}{{0%{{visibility:visible}}{share:.3f}%{{visibility:hidden}}}}"
        f"@keyframes {key}-last{{0%{{visibility:visible}}{last:.3f}%{{visibility:hidden}}}}"
        f"@media(prefers-reduced-motion:reduce){{{moving} .f{{animation-iteration-count:1}}"
        f"{moving} .last{{animation-fill-mode:forwards;animation-name:{key}-stay}}"
        f"@keyframes {key}-stay{{0%,100%{{visibility:visible}}}}}}</style>"
    )


def _frame(title: str, place: int) -> str:
    left = place * (_SIZE + _GAP)
    return (
        f'<text x="{left + _SIZE // 2}" y="16" text-anchor="middle" font-size="15" '
        f'fill="currentColor">{html.escape(title)}</text>'
        f'<rect x="{left}" y="{_TITLE}" width="{_SIZE}" height="{_SIZE}" fill="none" '
        'stroke="#8b949e"/>'
    )


def _dots(points: Any, place: int, reach: float) -> str:
    """Return one path with a dot at each point; y points up."""
    inside = (np.abs(points) <= reach).all(1)
    scaled = np.rint((points[inside] / reach + 1) * _SIZE / 2).astype(int)
    left = place * (_SIZE + _GAP)
    path = "".join(f"M{left + x} {_TITLE + _SIZE - y}h0" for x, y in scaled.tolist())
    return f'<path d="{path}" stroke="{COLOURS["blue"]}" stroke-width="4" stroke-linecap="round"/>'
