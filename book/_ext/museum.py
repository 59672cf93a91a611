"""The museum on the site: `{museum}` lists every published bug that a chapter refused."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from book._ext.chapters import title_of
from book._ext.ledger_pages import LedgerDirective
from book._ext.records import Exhibit, Stored


class MuseumDirective(LedgerDirective):
    """What shows exhibits."""

    def stored(self) -> dict[str, Stored]:
        """Return the notebooks that have exhibits."""
        return {name: each for name, each in self.notebooks().items() if each.exhibits}


class MuseumCount(MuseumDirective):
    """`{museum-count}`: a sentence on how many bugs there are, and whose.

    By itself, for MyST hangs sections into the page before what a directive returns beside them.
    """

    def run(self) -> list[nodes.Node]:
        """Return the sentence."""
        return self.parse_text_to_nodes(count(self.stored()))


class MuseumPage(MuseumDirective):
    """`{museum}`: a section a chapter with its exhibits."""

    def run(self) -> list[nodes.Node]:
        """Return the page's text, parsed as Markdown, so that stories may hold formulas and code."""
        return self.parse_text_to_nodes(sections(self.stored()), allow_section_headings=True)


def count(stored: dict[str, Stored]) -> str:
    """Return how many bugs there are, and whose."""
    every = [exhibit for each in stored.values() for exhibit in each.exhibits]
    projects = sorted({exhibit.project for exhibit in every}, key=str.lower)
    return f"{len(every)} bug{'s' * (len(every) > 1)}, from {', '.join(projects)}."


def sections(stored: dict[str, Stored]) -> str:
    """Return the museum as Markdown; each chapter's docname stands before what it stored."""
    parts = []
    for docname, each in stored.items():  # in the book's order
        parts += [f"## {title_of(docname)}"]
        parts += [_one(exhibit, docname) for exhibit in each.exhibits]
    return "\n\n".join(parts)


def _one(exhibit: Exhibit, docname: str) -> str:
    links = ", ".join(f"[{label}]({address})" for label, address in exhibit.threads)
    return (
        f"### {exhibit.title}\n\n"
        f"{exhibit.story} ({links})\n\n"
        f"Refused by {{eq}}`{exhibit.entry}` of [the chapter](/{docname}): {exhibit.reason}.\n\n"
        f"*What it would have cost:* {exhibit.cost}"
    )


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directives."""
    app.add_directive("museum", MuseumPage)
    app.add_directive("museum-count", MuseumCount)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
