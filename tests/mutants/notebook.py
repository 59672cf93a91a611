"""Runs a chapter's cells in this process, and says whether a cell still shows what it should."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[2]
_CHANGING = re.compile(r"0x[0-9a-fA-F]{6,}|\S*/ipykernel_\d+/\d+\.py|<ipython-input-[^>]*>")


@dataclass(frozen=True)
class Shown:
    """What a cell gave: its error (empty where it ran through), its text, its figures."""

    error: str
    text: tuple[str, ...]
    figures: tuple[dict[str, Any], ...]

    def difference(self, other: Shown) -> str:
        """Return what strict nbval, with this book's plugin, would complain about; or nothing."""
        from tests.notebooks.nbval_figures import compare_figures

        if self.error or other.error:
            return self.error or other.error
        if self.text != other.text:
            return "its text differs"
        return compare_figures(self.figures, other.figures)


def cells(slug: str) -> list[str]:
    """Return the code cells of a chapter."""
    notebook = nbformat.read(ROOT / "book" / "chapters" / f"{slug}.ipynb", as_version=4)
    return [c.source for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


class Runner:
    """IPython, in this process, in the chapters' folder."""

    def __init__(self) -> None:
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        os.chdir(ROOT / "book" / "chapters")
        if str(ROOT) not in sys.path:
            sys.path.insert(0, str(ROOT))
        # IPython's history has a thread and a file; a forked child must have neither.
        config = Config({"HistoryManager": {"enabled": False}})
        self.shell = InteractiveShell.instance(config=config)

    def run(self, source: str) -> tuple[Shown, float]:
        """Run a cell; return what it showed and how long it took."""
        from IPython.utils.capture import capture_output

        start = time.monotonic()
        with capture_output() as captured:
            result = self.shell.run_cell(source, store_history=False)
        error = result.error_in_exec or result.error_before_exec
        text, figures = [_plain(captured.stdout)], []
        for output in captured.outputs:
            data = dict(output.data)
            if any(name.startswith("image/") for name in data):
                figures.append({"data": data})
            text += [_plain(str(v)) for k, v in sorted(data.items()) if not k.startswith("image/")]
        said = "" if error is None else f"{type(error).__name__}: {error}"[:300]
        shown = Shown(said, tuple(text), tuple(figures))
        return shown, time.monotonic() - start


def _plain(text: str) -> str:
    return _CHANGING.sub("ADDRESS", text)
