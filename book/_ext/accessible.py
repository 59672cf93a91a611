"""Mend what the theme leaves inaccessible, in the built HTML, page by page.

The checks that ask for each of these are axe-core's, run on every page by `tests/site`.
"""

from __future__ import annotations

from pathlib import Path

from bs4 import BeautifulSoup, Tag
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata


def mend(html: str) -> str:
    """Return a page's HTML with the theme's accessibility faults repaired."""
    soup = BeautifulSoup(html, "html.parser")
    for table in soup.find_all("table"):
        _scope(table)
    for block in soup.select("div.highlight pre, div.math-wrapper, div.pst-scrollable-table-container, div.math.notranslate"):
        block["tabindex"] = "0"  # what scrolls must be reachable by keyboard
    for box in soup.select("div.output pre, div.cell_output pre"):
        box["tabindex"] = "0"
    return str(soup)


def _scope(table: Tag) -> None:
    for head in table.select("thead th"):
        head["scope"] = "col"


def _finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.name != "html":
        return
    for path in sorted(Path(app.outdir).rglob("*.html")):
        if "_static" in path.parts:
            continue
        html = path.read_text(encoding="utf-8")
        mended = mend(html)
        if mended != html:
            path.write_text(mended, encoding="utf-8")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect the hook; it runs after the pages are written."""
    app.connect("build-finished", _finish, priority=800)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
