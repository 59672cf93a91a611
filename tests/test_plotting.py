"""Figures: readable in light and dark, alone on the page, the same bytes every time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pkg.plotting import COLOURS, GRID, INK, PAPER, Picture, figure, overlay, show, voc_palette

DARK_PAGE = "#14181e"

DRAWING = """
import sys
import numpy as np
from pkg.plotting import COLOURS, figure, show

def draw():
    fig, axes = figure(columns=2)
    x = np.linspace(0, 6, 50)
    for number, colour in enumerate(COLOURS.values()):
        axes[0].plot(x, np.sin(x + number), color=colour, label=str(number))
    axes[0].legend()
    axes[0].set_title("Sines")
    drawn = axes[1].imshow(np.arange(12.0).reshape(3, 4))
    fig.colorbar(drawn, ax=axes[1])
    return fig
"""


def drawing() -> Any:
    space: dict[str, Any] = {}
    exec(DRAWING, space)
    return space["draw"]()


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_agrees_with_the_published_extremes() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("name", COLOURS)
def test_colours_stand_out_from_both_pages(name: str) -> None:
    # WCAG 1.4.11 asks 3:1 of graphics.
    assert contrast(COLOURS[name], PAPER) >= 3
    assert contrast(COLOURS[name], DARK_PAGE) >= 3


def test_six_colours_all_different() -> None:
    assert len(COLOURS) == len(set(COLOURS.values())) == 6
    assert {INK, PAPER, GRID}.isdisjoint(COLOURS.values())


def test_svg_uses_only_colours_that_the_site_can_turn() -> None:
    svg = show(drawing()).svg
    found = set(re.findall(r"#[0-9a-f]{6}\b", svg))
    assert found == {INK, PAPER, GRID, *COLOURS.values()}
    assert svg.count(PAPER) == 1, "only the figure's own background is white"
    # The first shape is that background; the axes' own background stays transparent.
    fills = re.findall(r"fill: ([^;\"]+)", svg)
    assert fills[:2] == [PAPER, "none"]


def words_in_ink(svg: str) -> list[bool]:
    """For each text of the drawing, whether its letters are filled with the ink."""
    parts = re.split(r'<g id="[^"]*text_\d+">', svg)[1:]
    return [f"fill: {INK}" in part[:300] for part in parts]


def test_words_are_written_in_ink() -> None:
    inked = words_in_ink(show(drawing()).svg)
    assert len(inked) > 20  # tick labels of two axes and a bar, the legend, the title
    assert all(inked)
    # Matplotlib leaves black out, and black is what the dark page would then show.
    fig = drawing()
    fig.axes[0].text(1, 0, "black", color="black")
    assert words_in_ink(show(fig).svg).count(False) == 1


def test_svg_is_one_element_without_a_style_sheet() -> None:
    svg = show(drawing()).svg
    assert svg.startswith("<svg ")
    assert "<style" not in svg
    assert "stroke-linejoin: round" in svg[:200]
    assert "Matplotlib" not in svg


def test_two_figures_on_a_page_share_no_id() -> None:
    first = show(drawing()).svg
    fig = drawing()
    fig.axes[0].set_xlabel("another")
    second = show(fig).svg
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in (first, second)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])


def test_every_reference_inside_the_svg_leads_somewhere() -> None:
    svg = show(drawing()).svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    links = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    assert len(ids) == len(set(ids))
    assert links
    assert links <= set(ids)


def test_same_bytes_in_two_processes() -> None:
    program = DRAWING + "\nsys.stdout.write(show(draw()).svg)\n"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(outputs[0]) > 10_000
    assert outputs[0] == outputs[1]


def test_same_bytes_under_a_readers_own_style() -> None:
    import matplotlib

    expected = show(drawing()).svg
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "none"}):
        assert show(drawing()).svg == expected


def test_bundle_is_svg_and_one_line() -> None:
    picture = show(drawing())
    bundle = picture._repr_mimebundle_()
    assert set(bundle) == {"image/svg+xml", "text/plain"}
    assert bundle["image/svg+xml"] == picture.svg
    assert bundle["text/plain"] == repr(picture) == 'Figure: 2 panels ("Sines")'


def test_show_closes_a_pyplot_figure() -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    fig = pyplot.figure()
    assert pyplot.get_fignums()
    assert isinstance(show(fig), Picture)
    assert not pyplot.get_fignums()


def test_axes_shapes() -> None:
    assert hasattr(figure()[1], "plot")
    assert figure(rows=2)[1].shape == (2,)
    assert figure(rows=2, columns=3)[1].shape == (2, 3)
    fig, _ = figure(width=5, height=4)
    assert fig.get_size_inches().tolist() == [5, 4]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"rows": 0}, "rows"), ({"columns": -1}, "columns"), ({"width": 0}, "width"),
     ({"height": -2.0}, "height")],
)  # fmt: skip
def test_figure_refuses(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be positive, not"):
        figure(**arguments)


def test_show_refuses_what_is_no_figure() -> None:
    with pytest.raises(TypeError, match="fig must be a matplotlib Figure, not ndarray"):
        show(np.zeros(3))


def test_palette_is_pascals() -> None:
    # From the VOC development kit's legend.
    known = {
        0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0),
        15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192),
    }  # fmt: skip
    palette = voc_palette()
    assert palette.dtype == np.uint8
    assert {label: tuple(palette[label].tolist()) for label in known} == known
    assert len({tuple(row) for row in palette.tolist()}) == 256


def test_overlay_tints_labelled_pixels_only() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    mask = rng.integers(0, 3, (5, 7))
    tinted = overlay(image, mask, alpha=0.25)
    assert tinted.shape == image.shape
    assert tinted.dtype == np.uint8
    assert np.array_equal(tinted[mask == 0], image[mask == 0])
    exact = 0.75 * image[mask == 2] + 0.25 * np.array([0, 128, 0])
    assert np.abs(tinted[mask == 2] - exact).max() <= 0.5  # rounding to whole levels
    assert np.array_equal(overlay(image, mask, alpha=0), image)
    assert (overlay(image, mask, alpha=1)[mask == 1] == [128, 0, 0]).all()


def test_overlay_takes_a_grey_photograph() -> None:
    grey = np.array([[10, 20]], dtype=np.uint8)
    assert overlay(grey, np.zeros((1, 2), int)).tolist() == [[[10] * 3, [20] * 3]]


@pytest.mark.parametrize(
    ("image", "mask", "alpha", "error", "words"),
    [
        (np.zeros((2, 2, 3)), np.zeros((2, 2), int), 0.5, TypeError, "image must be uint8"),
        (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), 0.5, TypeError, "mask must have an int"),
        (np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2), int), 0.5, ValueError, "image must have"),
        (np.zeros((2, 3, 3), np.uint8), np.zeros((3, 2), int), 0.5, ValueError, "mask must have"),
        (np.zeros((1, 1), np.uint8), np.array([[256]]), 0.5, ValueError, "labels 0..255"),
        (np.zeros((1, 1), np.uint8), np.array([[-1]]), 0.5, ValueError, "labels 0..255"),
        (np.zeros((1, 1), np.uint8), np.array([[1]]), 1.5, ValueError, "alpha must be"),
    ],
)
def test_overlay_refuses(
    image: np.ndarray, mask: np.ndarray, alpha: float, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        overlay(image, mask, alpha)
