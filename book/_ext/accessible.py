"""Mend what the theme leaves inaccessible, in the built HTML, page by page.

The checks that ask for each of these are axe-core's, run on every page by `tests/site`.
"""

from __future__ import annotations

from pathlib import Path

from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

#: What scrolls must be reachable by keyboard.
SCROLLS = "div.highlight pre, div.math, p.ledger-equation, div.cell_output pre, table.genindextable"


def mend(html: str) -> str:
    """Return a page's HTML with the theme's accessibility faults repaired."""
    soup = BeautifulSoup(html, "html.parser")
    for head in soup.select("table thead th"):
        head["scope"] = "col"
    for box in soup.select(SCROLLS):
        box["tabindex"] = "0"
    # A name that differs from the visible text is no use to someone who speaks it.
    for button in soup.select("button.search-button-field, details > summary"):
        button.attrs.pop("aria-label", None)
    for button in soup.select("button.theme-switch-button"):
        del button["aria-label"]
        for icon in button.select("svg, i"):
            icon["aria-hidden"] = "true"
        if button.select_one("span.sr-only") is None:
            name = soup.new_tag("span", attrs={"class": "sr-only"})
            name.string = "Color mode"
            button.append(name)
    for work in soup.select("[role=doc-biblioentry]"):
        work["role"] = "listitem"  # doc-biblioentry is deprecated; the list around it has items
    # The side bar's folds have no name at all.
    for fold in soup.select("nav summary"):
        if not fold.get_text(strip=True):
            entry = fold.find_parent("li")
            link = entry.find("a") if entry is not None else None
            fold["aria-label"] = f"Pages under {link.get_text(strip=True) if link else 'this one'}"
    return str(soup)


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
