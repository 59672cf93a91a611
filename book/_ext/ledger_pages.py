"""The ledger on the site: single entries, lines of evidence, and the binding check.

`{ledger-entry} id` shows one entry. No display equation passes that the ledger did not print: a
hand-typed one warns, and `-W` makes that fatal. A line of evidence in a chapter links to its row on
the page "What is checked" (`book._ext.trust`).
"""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from book._ext import trials
from book._ext.chapters import CHAPTERS, TITLES, slug_of
from book._ext.markup import (
    document_link,
    equation_link,
    evidence_line,
    evidence_link,
    is_evidence,
)
from book._ext.records import Stored, read_file, read_text, without_records

logger = logging.getLogger(__name__)

#: The page on which every entry has a row of its own.
TRUST = "book/what_is_checked"

#: Ways to put a formula on its own line that bypass the document's math nodes.
_HTML_MATH = re.compile(r'\\\[|\$\$|\\begin\{(?:equation|align|gather)|<math|class="math')


def _notebooks(env: BuildEnvironment) -> dict[str, Stored]:
    """Return what each notebook of the book holds: the chapters in the book's order, then others."""
    order = {chapter.docname: place for place, chapter in enumerate(CHAPTERS)}
    found = sorted(env.found_docs, key=lambda name: (order.get(name, len(order)), name))
    paths = {name: Path(env.doc2path(name)) for name in found}
    return {name: read_file(path) for name, path in paths.items() if path.suffix == ".ipynb"}


class LedgerDirective(SphinxDirective):
    """A directive that shows entries, and is run again when a notebook or a record changes."""

    def notebooks(self) -> dict[str, Stored]:
        """Return what each notebook of the book holds."""
        stored = _notebooks(self.env)
        for name in stored:
            self.env.note_dependency(self.env.doc2path(name))
            record = trials.FOLDER / f"{slug_of(name)}.json"
            if record.is_file():
                self.env.note_dependency(str(record))
        pages: set[str] = getattr(self.env, "ledger_pages", set())
        self.env.ledger_pages = pages | {self.env.docname}  # type: ignore[attr-defined]
        return stored


class LedgerEntry(LedgerDirective):
    """`{ledger-entry} chapter:name`: the equation, its evidence, and a link to its place."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the entry as a figure of its own, or a warning if there is none of that id."""
        wanted, here = self.arguments[0], self.env.docname
        for docname, stored in self.notebooks().items():
            record = stored.by_id().get(wanted)
            if record is None:
                continue
            equation = nodes.math_block(
                record.latex,
                record.latex,
                nowrap=False,
                number=None,
                label=None,
                docname=here,
                ledger_entry=record.id,
            )
            link = nodes.paragraph(classes=["ledger-entry-link"])
            link += [
                nodes.Text("Equation "),
                equation_link(record.id, here),
                nodes.Text(" of "),
                document_link(docname, TITLES.get(record.chapter, record.chapter), here),
            ]
            title = nodes.paragraph("", record.title, classes=["ledger-entry-title"])
            line = evidence_line(record.line, record.implementations, here)
            return [nodes.container("", title, equation, line, link, classes=["ledger-entry"])]
        logger.warning("no ledger entry has the id %r", wanted, location=self.get_location())
        return []


# ---------------------------------------------------------------------------- the binding check


def _on_source(app: Sphinx, docname: str, content: list[str]) -> None:
    """Judge a notebook's outputs, and hide the records from myst-nb, which does not know them."""
    if not str(app.env.doc2path(docname)).endswith(".ipynb"):
        return
    stored = read_text(content[0])
    slug = slug_of(docname)
    for problem in stored.problems:
        logger.warning("a broken ledger record: %s", problem, location=docname)
    for cell in stored.latex_cells:
        logger.warning(
            "cell %d prints LaTeX that is not a ledger entry; state it through the ledger",
            cell,
            location=docname,
        )
    for record in stored.records:
        if record.chapter != slug or not record.id.startswith(f"{slug}:"):
            logger.warning(
                "cell %d: the entry %s does not belong to the chapter %s",
                record.cell,
                record.id,
                slug,
                location=docname,
            )
    content[0] = without_records(content[0])


def _place(node: nodes.Node, docname: str, notebook: bool) -> tuple[str, str]:
    """Return where a node stands: Sphinx's location, and words ("in cell 3") for a notebook."""
    at: nodes.Node | None = node
    while at is not None and at.line is None:
        at = at.parent
    line = at.line if at is not None and at.line is not None else 0
    if notebook and line >= 10_000:  # myst-nb counts a notebook's lines as cell * 10,000 + line
        return docname, f"in cell {line // 10_000}, line {line % 10_000 or 1}"
    source = (at.source if at is not None else None) or docname
    return f"{source}:{line}", f"on line {line}"


def _on_read(app: Sphinx, doctree: nodes.document) -> None:
    """Warn of every display equation that no ledger entry printed; dress the lines of evidence."""
    docname = app.env.docname
    path = Path(app.env.doc2path(docname))
    notebook = path.suffix == ".ipynb"
    known = read_file(path).by_id() if notebook else {}
    for block in doctree.findall(nodes.math_block):
        label = block.get("label")
        if block.get("ledger_entry"):
            continue
        location, words = _place(block, docname, notebook)
        if label not in known:
            logger.warning(
                "the display equation %s (%r) is not a ledger entry of this page: %.60s",
                words,
                label,
                " ".join(block.astext().split()),
                location=location,
            )
        elif block.astext().split() != known[label].latex.split():
            logger.warning(
                "the display equation %s carries the label %s, but is not what that entry "
                "states: %.60s",
                words,
                label,
                " ".join(block.astext().split()),
                location=location,
            )
    implementations = sorted({name for r in known.values() for name in r.implementations})
    for raw in list(doctree.findall(nodes.raw)):
        if is_evidence(raw.astext()) and notebook:
            label = _label_before(raw)
            names = known[label].implementations if label in known else implementations
            line = evidence_line(raw.astext(), names, docname)
            if label in known and TRUST in app.env.found_docs:
                line += [nodes.Text(" "), evidence_link(label, docname)]
            raw.replace_self(line)
        elif raw.get("format") == "html" and _HTML_MATH.search(raw.astext()):
            location, words = _place(raw, docname, notebook)
            logger.warning(
                "raw HTML %s holds a display equation that is not a ledger entry",
                words,
                location=location,
            )


def _label_before(raw: nodes.raw) -> str | None:
    """Return the label of the equation that a line of evidence stands under."""
    siblings = raw.parent.children if raw.parent is not None else []
    labels = [node.get("label") for node in siblings if isinstance(node, nodes.math_block)]
    return labels[-1] if labels else None


def _on_consistency(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of an id that is used twice, on one page or on two."""
    del app
    seen: dict[str, str] = {}
    for docname, stored in _notebooks(env).items():
        for record in stored.records:
            place = f"{docname}, cell {record.cell}"
            if record.id in seen:
                logger.warning(
                    "the ledger id %s is used twice: %s and %s",
                    record.id,
                    seen[record.id],
                    place,
                    location=docname,
                )
            seen.setdefault(record.id, place)


def _outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Read the pages that show entries again when any notebook came, changed or went."""
    del app
    pages: set[str] = getattr(env, "ledger_pages", set())
    touched = added | removed | changed
    return sorted(pages & env.found_docs) if any("chapters/" in name for name in touched) else []


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directives and the checks."""
    app.add_directive("ledger-entry", LedgerEntry)
    app.connect("source-read", _on_source)
    app.connect("doctree-read", _on_read)
    app.connect("env-check-consistency", _on_consistency)
    app.connect("env-get-outdated", _outdated)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
