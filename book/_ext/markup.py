"""Small builders of document nodes: a table, a link, a line of evidence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bs4 import BeautifulSoup, NavigableString, Tag
from docutils import nodes
from sphinx import addnodes

#: What stands in one cell of a table: inline nodes, or block nodes.
Cell = Sequence[nodes.Node]


def document_link(target: str, text: str, source: str) -> addnodes.pending_xref:
    """Return a link to a document; `source` is the document that it stands in."""
    return addnodes.pending_xref(
        "",
        nodes.inline("", text),
        refdomain="std",
        reftype="doc",
        reftarget=f"/{target}",
        refdoc=source,
        refexplicit=True,
        refwarn=True,
    )


def equation_link(label: str, source: str) -> addnodes.pending_xref:
    """Return a link to a numbered equation; its text becomes the number."""
    return addnodes.pending_xref(
        "",
        nodes.literal("", label),
        refdomain="math",
        reftype="eq",
        reftarget=label,
        refdoc=source,
        refexplicit=False,
        refwarn=True,
    )


def evidence_anchor(entry: str) -> str:
    """Return the anchor of an entry's row on the page "What is checked"."""
    return f"evidence-{nodes.make_id(entry)}"


def evidence_link(entry: str, source: str) -> addnodes.pending_xref:
    """Return a link from an equation to its row on the page "What is checked"."""
    return addnodes.pending_xref(
        "",
        nodes.inline("", "All evidence", classes=["evidence-more"]),
        refdomain="std",
        reftype="ref",
        reftarget=evidence_anchor(entry),
        refdoc=source,
        refexplicit=True,
        refwarn=True,
    )


def code_link(name: str, source: str, text: str | None = None) -> addnodes.pending_xref:
    """Return a link from a Python name to its place in the API pages."""
    return addnodes.pending_xref(
        "",
        nodes.literal("", text or name, classes=["xref", "py"]),
        refdomain="py",
        reftype="obj",
        reftarget=name,
        refdoc=source,
        refexplicit=True,
        refwarn=True,
    )


def chip(name: str) -> nodes.inline:
    """Return the small label of a class of evidence: Proved, Checked, Cited, Definition."""
    classes = ["evidence-class", f"evidence-class-{name.lower()}"]
    return nodes.inline("", name.capitalize(), classes=classes)


def plain_table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], name: str, *, label: str
) -> nodes.table:
    """Return a table whose first column holds row headers.

    Parameters
    ----------
    head
        The column titles.
    rows
        For each row, one cell a column.
    name
        A CSS class.
    label
        What the table is called when it is read aloud (`aria-label`).
    """
    table = nodes.table(classes=[name], **{"aria_label": label})
    group = nodes.tgroup(cols=len(head))
    for _ in head:
        group += nodes.colspec(colwidth=1)
    group += nodes.thead("", _row([[nodes.Text(title)] for title in head]))
    body = nodes.tbody()
    for row in rows:
        body += _row(row)
    group += body
    table += group
    return table


def _row(cells: Sequence[Cell]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        blocks = [
            node
            for node in cell
            if isinstance(node, nodes.Body) and not isinstance(node, nodes.Inline)
        ]
        entry += list(cell) if blocks else nodes.paragraph("", "", *cell)
        row += entry
    return row


_EVIDENCE = re.compile(r'^\s*<p class="evidence[ "].*</p>\s*$', re.DOTALL)


def is_evidence(html: str) -> bool:
    """Tell whether a piece of raw HTML is a line of evidence as the ledger prints it."""
    return bool(_EVIDENCE.match(html))


def evidence_line(html: str, implementations: Sequence[str], source: str) -> nodes.paragraph:
    """Turn the ledger's line of evidence into nodes.

    Every chip gets a class of its own, and a code name that an entry was compared with becomes a
    link to its API page.
    """
    tag = BeautifulSoup(html, "html.parser").p
    if tag is None:
        raise ValueError(f'html: a <p class="evidence"> was expected, not {html[:60]!r}')
    known = {name.rsplit(".", 1)[-1]: name for name in implementations}
    known |= {name: name for name in implementations}
    paragraph = nodes.paragraph(classes=list(tag.get("class") or []))
    paragraph += _inline(tag, known, source)
    return paragraph


def _inline(tag: Tag, known: dict[str, str], source: str) -> list[nodes.Node]:
    made: list[nodes.Node] = []
    for child in tag.children:
        if isinstance(child, NavigableString):
            made.append(nodes.Text(str(child)))
        elif isinstance(child, Tag) and "evidence-class" in (child.get("class") or []):
            made.append(chip(child.get_text()))
        elif isinstance(child, Tag) and child.name == "code":
            text = child.get_text()
            if text in known:
                made.append(code_link(known[text], source, text))
            else:
                made.append(nodes.literal("", text))
        elif isinstance(child, Tag):
            classes = [str(name) for name in child.get("class") or []]
            made.append(nodes.inline("", "", *_inline(child, known, source), classes=classes))
    return made
