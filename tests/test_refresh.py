"""Refreshing: the same bytes twice, and a notebook that fails is left alone."""

from __future__ import annotations

import json

import pytest

from book import refresh

SCRIPT = """# %% [markdown]
# # A chapter

# %% tags=["hide-input"]
{source}
"""


def run(tmp_path, source="1 + 1"):
    script = tmp_path / "example.py"
    script.write_text(SCRIPT.format(source=source))
    return refresh.main(["--from-py", str(script), "--folder", str(tmp_path)])


def test_a_script_becomes_a_chapter_and_a_second_run_changes_nothing(tmp_path, capsys):
    assert run(tmp_path) == 0
    path = tmp_path / "example.ipynb"
    first = path.read_bytes()
    notebook = json.loads(first)
    assert notebook["cells"][1]["metadata"] == {"tags": ["hide-input"]}
    assert notebook["cells"][1]["outputs"][0]["data"]["text/plain"] in ("2", ["2"])
    assert "version" not in notebook["metadata"]["language_info"]
    assert refresh.main(["example", "--folder", str(tmp_path)]) == 0
    assert path.read_bytes() == first
    assert "example: unchanged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; print('x', file=sys.stderr)", "wrote to stderr"),
    ],
)
def test_a_chapter_that_fails_is_left_as_it_was(tmp_path, capsys, source, said):
    assert run(tmp_path) == 0
    before = (tmp_path / "example.ipynb").read_bytes()
    assert run(tmp_path, source) == 1
    assert said in capsys.readouterr().out
    assert (tmp_path / "example.ipynb").read_bytes() == before


def test_an_unknown_chapter_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        refresh.main(["nothing", "--folder", str(tmp_path)])
    assert "no chapter nothing" in capsys.readouterr().err
