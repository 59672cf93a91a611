"""The committed chapters keep the rules; and each rule can fail."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path

import pytest

import pkg.algos
from tests.notebooks import rules

ROOT = Path(__file__).parents[2]
CHAPTERS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "book" / "chapters").glob("*.ipynb"))
}
PAGES = sorted(ROOT.glob("book/**/*.md"))
PUBLIC = rules.public_names(Path(pkg.algos.__path__[0]))


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("slug", CHAPTERS)
def test_every_chapter_keeps_every_rule(slug, rule):
    assert rule(CHAPTERS[slug]) == []


def test_there_is_a_chapter():
    assert "segmentation_metrics" in CHAPTERS


def test_ids_are_unique():
    assert rules.ids_are_unique(CHAPTERS) == []


def test_every_public_function_is_checked_by_an_entry():
    assert rules.public_names_are_checked(CHAPTERS, PUBLIC) == []
    assert len(PUBLIC["segmentation_metrics"]) >= 13


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_a_typed_equation(page):
    assert rules.no_typed_equation(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("slug", PUBLIC)
def test_public_docstrings_say_shapes_errors_source_and_example(slug):
    module = importlib.import_module(f"pkg.algos.{slug}")
    folder = Path(module.__file__).parent
    files = (
        folder.glob("*.py")
        if Path(module.__file__).name == "__init__.py"
        else [Path(module.__file__)]
    )
    complaints = [c for path in files for c in rules.docstring_complaints(path, module.__all__)]
    assert complaints == []


# ---------------------------------------------------------------- each rule can fail


def code(source="1 + 1", *, count=1, data=None, **metadata):
    outputs = [{"output_type": "execute_result", "data": data}] if data else []
    return {"cell_type": "code", "source": source, "execution_count": count, "outputs": outputs,
            "metadata": metadata}  # fmt: skip


def words(source):
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def entry(name="x:one", latex="a = b", classes=("proved",), implementations=()):
    record = {"id": name, "latex": latex, "classes": list(classes),
              "implementations": list(implementations)}  # fmt: skip
    return {"text/markdown": f"$$\n{latex}\n$$ ({name})\n\n<p>Proved.</p>", rules.ENTRY: record}


def book(*cells):
    return {"cells": list(cells)}


@pytest.mark.parametrize(
    "cells",
    [
        [code(count=None)],
        [code(count=2)],
        [code(count=2), code(count=1)],
        [code(count=1), code(count=3)],
        [code(count=1), code(count=1)],
    ],
)
def test_cells_out_of_order_are_refused(cells):
    assert rules.executed_in_order(book(*cells))


def test_cells_in_order_pass_and_empty_ones_do_not_count():
    assert not rules.executed_in_order(
        book(code(), words("x"), code("", count=None), code(count=2))
    )


def test_errors_and_stderr_are_refused():
    failed, noisy = code(), code()
    failed["outputs"] = [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]
    noisy["outputs"] = [{"output_type": "stream", "name": "stderr", "text": "warning"}]
    assert len(rules.no_errors(book(failed, noisy, code()))) == 2


@pytest.mark.parametrize(
    "markdown",
    [
        "so $$a = b$$ holds",
        "so\n$$\na = b\n$$\nholds",
        "so \\[a = b\\]",
        "\\begin{equation}a = b\\end{equation}",
        "\\begin{align*}a &= b\\end{align*}",
        "\\begin{gather}a\\end{gather}",
        "```{math}\na = b\n```",
        ":::{math}\na = b\n:::",
        "````{math}\n:label: x\na = b\n````",
    ],
)
def test_a_display_equation_in_markdown_is_refused(markdown):
    assert rules.no_typed_equation(markdown)
    assert rules.no_typed_equation_in_cells(book(words(markdown)))


@pytest.mark.parametrize(
    "markdown",
    ["inline $a = b$ is fine", "a code `$$` too", "```python\nx = '$$'\n```", "5 $ and 6 $"],
)
def test_words_are_not_refused(markdown):
    assert not rules.no_typed_equation(markdown)


def test_an_equation_past_the_ledger_is_refused():
    assert not rules.equations_come_from_the_ledger(book(code(data=entry())))
    for data in (
        {"text/latex": "$a$"},
        {"text/markdown": "$$a = b$$"},
        {"text/html": "<p>\\[a = b\\]</p>"},
        {**entry(), "text/markdown": "$$\na = c\n$$ (x:one)"},
        {**entry(), "text/markdown": "$$\na = b\n$$ (x:one)\n\n$$c$$"},
    ):
        assert rules.equations_come_from_the_ledger(book(code(data=data)))


def test_a_long_cell_is_refused():
    assert not rules.cells_are_short(book(code("\n".join(["x"] * 45))))
    assert rules.cells_are_short(book(code("\n".join(["x"] * 46))))


def test_prints_must_fit_the_page():
    def printing(line):
        cell = code()
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["short\n", line]}]
        return book(cell)

    assert not rules.prints_fit_the_page(printing("x" * 79))
    assert rules.prints_fit_the_page(printing("x" * 80)) == [
        f"cell 1: a printed line of 80 characters, 79 fit: {'x' * 40!r}..."
    ]


def test_a_formula_is_not_broken_where_a_list_would_begin():
    broken = words("because $x_1\n- x_0$ is how $x_t$ changes")
    (complaint,) = rules.inline_math_stays_whole(book(broken))
    assert complaint == "cell 1: a formula is broken before '- x_0$ is how $x_t$ '"
    for whole in ("$x_1 - x_0$\n- a list", "$a\n+b$ and", "so $x_1\n= 2$", "`$`\n- a list"):
        assert not rules.inline_math_stays_whole(book(words(whole)))


def test_figures_need_name_caption_and_alt():
    said = {"figure": {"name": "f", "caption": "c"}, "image": {"alt": "a"}}
    good = code(data={"image/svg+xml": "<svg/>"}, mystnb=said)
    assert not rules.figures_are_described(book(good, good, good))
    assert rules.figures_are_described(book(good, good))
    for part, word in (("figure", "name"), ("figure", "caption"), ("image", "alt")):
        bad = copy.deepcopy(good)
        del bad["metadata"]["mystnb"][part][word]
        assert rules.figures_are_described(book(good, good, good, bad)) == [
            f"cell 4: a figure without {word}"
        ]


def test_exercises_need_folded_solutions():
    asked = [code(f'exercises.check("e{n}", ...)') for n in range(6)]
    solved = [code(f'exercises.solution("e{n}")', tags=["hide-cell"]) for n in range(6)]
    assert not rules.has_exercises(book(*asked, *solved))
    assert rules.has_exercises(book(*asked[:5], *solved[:5]))
    open_ = code('exercises.solution("e0")')
    assert rules.has_exercises(book(*asked, *solved[1:], open_))


def test_four_fifths_must_be_shown():
    shown, told = code(data=entry()), code(data=entry(classes=["cited"]))
    named = code(data=entry(classes=["definition"]))
    assert not rules.mostly_shown(book(*[shown] * 4, told))
    assert rules.mostly_shown(book(*[shown] * 3, told))
    assert rules.mostly_shown(book(*[shown] * 4, told, named))
    assert rules.mostly_shown(book(named))
    assert rules.mostly_shown(book())


def test_an_id_used_twice_is_refused_in_one_chapter_and_across_two():
    one = book(code(data=entry("x:one")))
    assert not rules.ids_are_unique({"x": one})
    assert rules.ids_are_unique({"x": book(*one["cells"], *one["cells"])})
    assert rules.ids_are_unique({"x": one, "y": one})
    assert rules.ids_are_unique({"y": one})


def test_an_unregistered_public_function_is_refused():
    checked = book(code(data=entry(classes=["checked"], implementations=["pkg.algos.x.f"])))
    proved = book(code(data=entry(classes=["proved"], implementations=["pkg.algos.x.f"])))
    public = {"x": ["pkg.algos.x.f"]}
    assert not rules.public_names_are_checked({"x": checked}, public)
    assert rules.public_names_are_checked({"x": proved}, public)
    assert rules.public_names_are_checked({"x": checked}, {"x": ["pkg.algos.x.f", "pkg.algos.x.g"]})


def test_a_bare_docstring_is_refused(tmp_path):
    path = tmp_path / "thing.py"
    path.write_text('def f(x):\n    """Do it."""\n\n\ndef g(x):\n    """Private."""\n')
    assert len(rules.docstring_complaints(path, ["f"])) == 1
    assert "Returns" in rules.docstring_complaints(path, ["f"])[0]
