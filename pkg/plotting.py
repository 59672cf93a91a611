"""Figures in the house style: vector graphics that read in light and in dark mode.

A figure is drawn in black-on-white, with two colours that mean something to the website: the ink
`#1f2328` becomes the colour of the page's text, and the white background becomes transparent. Data
is drawn in `COLOURS`, which stand out from a white page and from a dark one alike::

    fig, axes = figure(columns=2)
    axes[0].plot(x, y, color=COLOURS["blue"])
    show(fig)

The drawing is deterministic: the same figure gives the same bytes in every process, so that a
notebook's stored output changes only when what it shows has changed.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["COLOURS", "GRID", "INK", "PAPER", "Picture", "figure", "overlay", "show", "voc_palette"]

#: Text, axes and ticks. The website turns exactly this value into the colour of its text.
INK = "#1f2328"
#: The figure's background. The website makes exactly this value transparent.
PAPER = "#ffffff"
#: Grid lines: quiet on white and on the dark page.
GRID = "#8b949e"
#: Colours for data, at least 3:1 against white and against the dark page (`#14181e`). That is
#: enough for lines and areas and too little for words: write in the ink, not in these.
COLOURS = {
    "blue": "#2b7bd0",
    "orange": "#d9730d",
    "green": "#1f9163",
    "red": "#d6455d",
    "purple": "#9a6bd0",
    "grey": "#7a828c",
}

# Widths in inches. At 72 points to the inch this fills the website's text column.
_WIDTH = 7.6
_HEIGHT = 2.9
_DPI = 144  # of photographs inside the drawing

_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS.values())})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "boxplot.boxprops.color": INK,
    "boxplot.capprops.color": INK,
    "boxplot.flierprops.color": INK,
    "boxplot.flierprops.markeredgecolor": INK,
    "boxplot.whiskerprops.color": INK,
    "figure.constrained_layout.use": True,
    "figure.edgecolor": PAPER,
    "figure.facecolor": PAPER,
    "figure.titlesize": 12,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "grid.alpha": 0.35,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.color": INK,
    "image.cmap": "viridis",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "patch.edgecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 9,
    "ytick.color": INK,
    "ytick.labelsize": 9,
}

# Neither the day nor the version of the program belongs to what a figure shows.
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def figure(
    rows: int = 1, columns: int = 1, *, width: float = _WIDTH, height: float | None = None
) -> tuple[Any, Any]:
    """Return a new figure and its axes in the house style.

    The style becomes matplotlib's default for the rest of the process: ticks and legends are made
    late, after this call, and must follow it too.

    Parameters
    ----------
    rows, columns
        The grid of panels.
    width, height
        In inches; the height defaults to 2.9 for each row.

    Returns
    -------
    (Figure, Axes or array of Axes)
        One `Axes` for one panel; a 1-D array for one row or one column; else `(rows, columns)`.

    Raises
    ------
    ValueError
        If a count or a length is not positive.

    Examples
    --------
    >>> fig, axes = figure(columns=3)
    >>> axes.shape
    (3,)
    """
    for name, value in (("rows", rows), ("columns", columns), ("width", width)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, not {value}")
    if height is not None and height <= 0:
        raise ValueError(f"height must be positive, not {height}")
    from matplotlib import style
    from matplotlib.figure import Figure

    # "default" first: a reader's own matplotlibrc must not change the book's figures.
    style.use(["default", _STYLE])
    fig = Figure(figsize=(width, height if height is not None else _HEIGHT * rows))
    return fig, fig.subplots(rows, columns)


@dataclass(frozen=True)
class Picture:
    """A finished figure: SVG for the notebook and the website, one line for a terminal."""

    svg: str
    description: str

    def __repr__(self) -> str:
        return self.description

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.description, "image/svg+xml": self.svg}


def show(fig: Any) -> Picture:
    """Draw `fig` and close it; as the last line of a cell this is the cell's output.

    Parameters
    ----------
    fig
        A matplotlib `Figure`, best from `figure`.

    Returns
    -------
    Picture
        Displays as `image/svg+xml` with a `text/plain` line. The bytes depend on the figure alone.

    Raises
    ------
    TypeError
        If `fig` is not a figure.

    Examples
    --------
    >>> fig, axes = figure()
    >>> _ = axes.set_title("A line")
    >>> show(fig)
    Figure: 1 panel ("A line")
    """
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    if not isinstance(fig, Figure):
        raise TypeError(f"fig must be a matplotlib Figure, not {type(fig).__name__}")
    stream = io.StringIO()
    # Letters are drawn as paths: they look the same where the font is missing.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "checked"}):
        fig.savefig(stream, format="svg", dpi=_DPI, metadata=_NO_METADATA)
    description = _describe(fig)
    pyplot.close(fig)
    return Picture(_for_a_page(stream.getvalue()), description)


def _describe(fig: Any) -> str:
    """Return one line that says what is drawn, for terminals and for the notebook's diff."""
    panels = [axes for axes in fig.axes if axes.get_label() != "<colorbar>"]
    titles = [f'"{axes.get_title()}"' for axes in panels if axes.get_title()]
    named = f" ({', '.join(titles)})" if titles else ""
    return f"Figure: {len(panels)} panel{'' if len(panels) == 1 else 's'}{named}"


def _for_a_page(svg: str) -> str:
    """Return the SVG fit to stand inside a page with other figures.

    Matplotlib numbers its parts from one in each figure and names clip paths by their number: the
    second figure of a page would be clipped by the first one's paths. Its style sheet would reach
    the whole page. So each figure gets ids of its own, and the style sheet becomes attributes.
    """
    svg = svg[svg.index("<svg") :]  # no XML declaration
    rule = re.compile(r" <defs>\s*<style[^>]*>\*\{([^}]*)\}</style>\s*</defs>\n")
    found = rule.search(svg)
    if found is not None:
        svg = rule.sub("", svg, count=1)
        svg = svg.replace("<svg ", f'<svg style="{found[1]}" ', 1)  # all its parts inherit it
    mark = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8] + "-"
    svg = re.sub(r'(\bid=")', rf"\g<1>{mark}", svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{mark}", svg)


def voc_palette() -> NDArray[np.uint8]:
    """Return the PASCAL VOC colours of the labels 0..255, shape (256, 3).

    The three lowest bits of a label give the highest bits of red, green and blue, the next three
    bits the next ones, and so on: neighbouring labels get colours far apart. 255 is the void label.

    Examples
    --------
    >>> voc_palette()[[0, 1, 255]].tolist()
    [[0, 0, 0], [128, 0, 0], [224, 224, 192]]
    """
    label = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = (label >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    return palette


def overlay(image: ArrayLike, mask: ArrayLike, alpha: float = 0.5) -> NDArray[np.uint8]:
    """Return `image` with the labelled regions of `mask` tinted in their VOC colours.

    Parameters
    ----------
    image
        uint8, shape (H, W, 3) for RGB or (H, W) for grey.
    mask
        Integer labels 0..255, shape (H, W). Label 0 leaves the photograph as it is.
    alpha
        The tint's weight, from 0 (photograph) to 1 (colour).

    Returns
    -------
    array
        uint8, shape (H, W, 3).

    Raises
    ------
    TypeError
        If `image` is not uint8 or `mask` not of an integer type.
    ValueError
        If the shapes do not fit, a label is outside 0..255, or `alpha` outside 0..1.

    Examples
    --------
    >>> overlay(np.full((1, 2), 100, np.uint8), [[0, 1]], alpha=0.5).tolist()
    [[[100, 100, 100], [114, 50, 50]]]
    """
    picture, labels = np.asarray(image), np.asarray(mask)
    if picture.dtype != np.uint8:
        raise TypeError(f"image must be uint8, not {picture.dtype}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"mask must have an integer type, not {labels.dtype}")
    if picture.ndim == 2:
        picture = np.repeat(picture[:, :, None], 3, axis=2)  # (H, W) -> (H, W, 3)
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"image must have shape (H, W, 3) or (H, W), not {np.shape(image)}")
    if labels.shape != picture.shape[:2]:
        raise ValueError(f"mask must have shape {picture.shape[:2]}, as image, not {labels.shape}")
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise ValueError(f"mask must have labels 0..255, but holds {labels.min()}..{labels.max()}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, not {alpha}")
    tint = voc_palette()[labels]  # (H, W, 3)
    weight = np.where(labels == 0, 0.0, alpha)[:, :, None]
    return np.asarray(np.rint((1 - weight) * picture + weight * tint), dtype=np.uint8)
