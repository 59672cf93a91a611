"""The plugin sees what strict nbval does not: each hole is shown open, then closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from book import refresh
from tests.notebooks.nbval_figures import compare_svg

ROOT = Path(__file__).parents[2]
PLOT = """
import numpy as np
from pkg.plotting import figure, overlay, show
fig, axes = figure(columns=2)
axes[0].plot(np.{function}(np.linspace(0, 6, 50)))
axes[1].imshow(overlay(np.full((4, 4, 3), {level}, np.uint8), np.zeros((4, 4), np.uint8)))
show(fig)
"""
PNG = """
import io
import numpy as np
from IPython.display import Image
from PIL import Image as Picture
stream = io.BytesIO()
Picture.fromarray(np.full((8, 8), {level}, np.uint8)).save(stream, "png")
Image(stream.getvalue())
"""


def stored(path, *sources):
    """Write a notebook with these code cells, executed."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])

    class Silent:
        def update(self, count):
            pass

    refresh.refresh(path, notebook, Silent())
    return path


def edit(path, change):
    """Change the source of the last cell and leave its stored output."""
    notebook = nbformat.read(path, as_version=4)
    change(notebook.cells[-1])
    nbformat.write(notebook, path)


def nbval(path, *, plugin=True):
    extra = ["-p", "tests.notebooks.nbval_figures"] if plugin else []
    config = ROOT / "tests" / "notebooks" / "sanitize.cfg"
    command = [sys.executable, "-m", "pytest", *extra, "--nbval", "--nbval-sanitize-with", str(config),
               str(path)]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def replace(old, new):
    def change(cell):
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return change


def test_figures_that_are_the_same_pass(tmp_path):
    path = stored(
        tmp_path / "same.ipynb", PLOT.format(function="sin", level=100), PNG.format(level=9)
    )
    result = nbval(path)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("source", "old", "new", "said"),
    [
        (PLOT.format(function="sin", level=100), "np.sin", "np.cos", "coordinate moved"),
        (PLOT.format(function="sin", level=100), "3), 100", "3), 130", "levels of 255"),
        (PLOT.format(function="sin", level=100), "(0, 6, 50)", "(0, 6, 60)", "figure 1"),
        (PNG.format(level=9), "8), 9", "8), 99", "levels of 255"),
        (PNG.format(level=9), "(8, 8)", "(8, 9)", "pixels became"),
    ],
    ids=["sine-cosine", "photograph", "points", "png", "png-size"],
)
def test_a_changed_figure_fails(tmp_path, source, old, new, said):
    path = stored(tmp_path / "changed.ipynb", source)
    edit(path, replace(old, new))
    result = nbval(path)
    assert result.returncode == 1
    assert said in result.stdout


def test_the_hole_is_there_without_the_plugin(tmp_path):
    """When nbval learns to compare pictures itself, this test says that ours can go."""
    path = stored(tmp_path / "png.ipynb", PNG.format(level=9))
    edit(path, replace("8), 9", "8), 99"))
    assert nbval(path, plugin=False).returncode == 0


def test_a_figure_that_is_gone_fails(tmp_path):
    path = stored(tmp_path / "gone.ipynb", PNG.format(level=9))
    edit(path, replace("\nImage(stream.getvalue())", "\n"))
    assert nbval(path).returncode == 1


def test_a_cell_that_was_never_run_fails(tmp_path):
    path = stored(tmp_path / "never.ipynb", "1 + 1")

    def forget(cell):
        cell.execution_count, cell.outputs = None, []

    edit(path, forget)
    result = nbval(path)
    assert result.returncode == 1
    assert "never executed" in result.stdout
    assert nbval(path, plugin=False).returncode == 0  # the hole


def test_text_is_still_compared_exactly(tmp_path):
    path = stored(tmp_path / "text.ipynb", "print(0.1 + 0.2)")
    edit(path, replace("0.1 + 0.2", "0.3"))
    assert nbval(path).returncode == 1


def test_rounding_passes_and_structure_does_not():
    line = '<svg><path id="f12345678-line" d="M 1.000000 2.5 L 3 4" style="stroke: #1f2328"/></svg>'
    assert not compare_svg(
        line, line.replace("1.000000", "1.000003").replace("12345678", "87654321")
    )
    for old, new in (("1.000000", "1.2"), ("M 1", "L 1"), (" L 3 4", ""), ("#1f2328", "#2f2328")):
        assert compare_svg(line, line.replace(old, new))
