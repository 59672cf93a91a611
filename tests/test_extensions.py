"""The site's own checks: a hand-typed equation or a doubled id stops the build."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from docutils import nodes

from book._ext.accessible import mend
from book._ext.inline_svg import inline
from book._ext.punctuation import glue
from pkg.plotting import INK, figure, show

ROOT = Path(__file__).parents[1]
CONF = """
extensions = ["myst_nb", "book._ext.ledger_pages", "book._ext.museum", "book._ext.chapters"]
extensions += ["book._ext.trust", "book._ext.inline_svg"]
myst_enable_extensions = ["dollarmath", "amsmath"]
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
root_doc = "index"
exclude_patterns = ["_build"]
"""


def entry(name="one", latex="a = b", chapter="example", **changed):
    record = {"id": f"{chapter}:{name}", "chapter": chapter, "title": "T", "classes": ["proved"],
              "latex": latex, "evidence": "Shown.", "implementations": [], "source": ""}  # fmt: skip
    line = (
        '<p class="evidence evidence-proved"><span class="evidence-class">Proved</span> Shown.</p>'
    )
    markdown = f"$$\n{latex}\n$$ ({record['id']})\n\n{line}\n"
    return {"text/plain": "e", "text/markdown": markdown, **changed,
            "application/vnd.checked.entry+json": record}  # fmt: skip


def notebook(*outputs):
    cells = [
        {"cell_type": "code", "source": "x", "id": f"c{n}", "metadata": {}, "execution_count": n,
         "outputs": [{"output_type": "execute_result", "execution_count": n, "metadata": {},
                      "data": data}]}
        for n, data in enumerate(outputs, 1)
    ]  # fmt: skip
    title = {"cell_type": "markdown", "source": "# Example", "id": "t", "metadata": {}}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps(
        {"cells": [title, *cells], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    )


def build(folder, page, chapter=None):
    """Build a small site; returns the exit status and what Sphinx said."""
    (folder / "conf.py").write_text(CONF)
    listed = "\n\n```{toctree}\nexample\n```\n" if chapter else "\n"
    (folder / "index.md").write_text(f"# Page\n\n{page}{listed}")
    if chapter:
        (folder / "example.ipynb").write_text(chapter)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", ".", "_build"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_entries_and_words_pass(tmp_path):
    status, said = build(
        tmp_path,
        "Inline $a$.\n\n```{evidence-classes}\n```\n\n```{ledger-table}\n```",
        notebook(entry(), entry("two")),
    )
    assert (status, said) == (0, "")
    page = (tmp_path / "_build" / "index.html").read_text()
    assert "example.html#equation-example-one" in page


@pytest.mark.parametrize(
    "page", ["$$\na = b\n$$", "$$\na = b\n$$ (label)", "\\begin{equation}a = b\\end{equation}",
             "```{math}\na = b\n```", "```{math}\n:label: x\na = b\n```"],
)  # fmt: skip
def test_a_hand_typed_equation_stops_the_build(tmp_path, page):
    status, said = build(tmp_path, page)
    assert status != 0
    assert "not a ledger entry" in said


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([{"text/plain": "x", "text/markdown": "$$\na = b\n$$"}], "not a ledger entry"),
        ([{"text/plain": "x", "text/latex": "$a = b$"}], "LaTeX that is not a ledger entry"),
        ([entry(), entry()], "used twice"),
        ([entry(chapter="other")], "does not belong"),
        ([entry() | {"text/markdown": entry()["text/markdown"].replace("a = b", "a = c")}],
         "is not what that entry"),
    ],
)  # fmt: skip
def test_equations_past_the_ledger_stop_the_build(tmp_path, outputs, said):
    status, told = build(tmp_path, "Words.", notebook(*outputs))
    assert status != 0
    assert said in told


def test_an_unknown_entry_is_named(tmp_path):
    status, said = build(tmp_path, "```{ledger-entry} example:nothing\n```", notebook(entry()))
    assert status != 0
    assert "example:nothing" in said


def test_an_inlined_figure_follows_the_page():
    fig, axes = figure()
    axes.plot([0, 1], [0, 1])
    svg = inline(show(fig).svg, "A line.", "fig1-")
    assert 'role="img"' in svg
    assert 'aria-label="A line."' in svg
    assert INK not in svg
    assert "currentColor" in svg
    assert "fill: #ffffff" not in svg
    with pytest.raises(ValueError, match="SVG document"):
        inline("<p>", "", "")
    with pytest.raises(ValueError, match="root element"):
        inline("<p/>", "", "")


def test_mending_names_what_has_no_name():
    page = mend(
        "<table><thead><tr><th>a</th></tr></thead></table>"
        "<nav><ul><li><a href='#'>API</a><details><summary><i></i></summary></details></li></ul></nav>"
        "<button class='theme-switch-button' aria-label='x'><i></i></button>"
    )
    assert '<th scope="col">' in page
    assert 'aria-label="Pages under API"' in page
    assert "Color mode" in page
    assert mend(page) == page


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("for any ", ". Then", ["for any ", "[s].", " Then"]),
        ("(", ")", ["", "([s])", ""]),
        ("where (of ", "), and", ["where (of ", "[s]),", " and"]),
        ("with ", " in it", ["with ", "[s]", " in it"]),
        ("", ", so", ["[s],", " so"]),
    ],
)
def test_a_formula_keeps_its_punctuation(before, after, expected):
    parts = [nodes.Text(before)] if before else []
    paragraph = nodes.paragraph("", "", *parts, nodes.math("", "s"), nodes.Text(after))
    glue(paragraph.next_node(nodes.math))
    for math in paragraph.findall(nodes.math):
        math[:] = [nodes.Text("[s]")]
    assert [part.astext() for part in paragraph] == expected
    glued = [
        part for part in paragraph if "glued" in getattr(part, "attributes", {}).get("classes", [])
    ]
    assert len(glued) == (after != " in it")
