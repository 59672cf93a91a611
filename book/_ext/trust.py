"""The tables of the page "What is checked": what each chapter shows, and who notices a mistake.

`{evidence-classes}` and `{trust-summary}` stand at the head of the page, and `{ledger-table}` has a
section for each chapter. What is counted was recorded; where the code has changed since, the page
says so, and the build goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from book._ext import trials
from book._ext.chapters import slug_of, title_of
from book._ext.ledger_pages import LedgerDirective
from book._ext.markup import (
    Cell,
    chip,
    document_link,
    equation_link,
    evidence_anchor,
    evidence_line,
    plain_table,
)
from book._ext.records import CLASSES, Record, Stored
from book._ext.trials import Trials


class TrustSummary(LedgerDirective):
    """`{trust-summary}`: three tables with a line for each chapter and one for all of them."""

    def run(self) -> list[nodes.Node]:
        """Return the tables, each under a sentence that says what it counts."""
        stored = {name: each for name, each in self.notebooks().items() if each.records}
        found = {name: trials.load(slug_of(name)) for name in stored}
        made: list[nodes.Node] = []
        for title, words, head, counts in _TABLES:
            numbers = {name: counts(slug_of(name), stored[name], found[name]) for name in stored}
            section = nodes.section(ids=[nodes.make_id(title)])
            section += [nodes.title("", title), *self.parse_text_to_nodes(words)]
            section += plain_table(
                ["Chapter", *head], self._rows(numbers, len(head)), "trust", label=title
            )
            made.append(section)
        return made

    def _rows(self, numbers: dict[str, list[Count]], width: int) -> list[list[Cell]]:
        rows: list[list[Cell]] = []
        for name, counts in numbers.items():
            link = document_link(name, title_of(name), self.env.docname)
            rows.append([[link], *([nodes.Text(str(count))] for count in counts)])
        total = [sum((counts[i] for counts in numbers.values()), Count()) for i in range(width)]
        whole: list[Cell] = [[nodes.strong("", "All")]]
        return [*rows, whole + [[nodes.strong("", str(count))] for count in total]]


class Count:
    """A number, or `part of whole`; where nothing was recorded, a dash."""

    def __init__(self, part: int | None = None, whole: int | None = None) -> None:
        self.part, self.whole = part, whole

    def __add__(self, other: Count) -> Count:
        def both(a: int | None, b: int | None) -> int | None:
            return b if a is None else a if b is None else a + b

        return Count(both(self.part, other.part), both(self.whole, other.whole))

    def __str__(self) -> str:
        if self.part is None:
            return "–"
        return f"{self.part:,}" if self.whole is None else f"{self.part:,} of {self.whole:,}"


MEANINGS = {
    "definition": "introduces a symbol; claims nothing",
    "proved": "shown for all values of its symbols, and evaluated with 50 digits at random points",
    "checked": "compared with the named code on stated inputs",
    "cited": "taken from a source and not shown here; it says why",
}

Counting = Callable[[str, Stored, Trials | None], list[Count]]


def _entries(slug: str, stored: Stored, _: Trials | None) -> list[Count]:
    classes = Counter(name for record in stored.records for name in record.classes)
    checked = {n for r in stored.records if "checked" in r.classes for n in r.implementations}
    offered = trials.public_functions(slug)
    covered = Count(sum(name in checked for name in offered), len(offered))
    return [Count(len(stored.records)), *(Count(classes[name]) for name in CLASSES), covered]


def _code(_: str, __: Stored, found: Trials | None) -> list[Count]:
    if found is None or "code" not in found:
        return [Count()] * 6
    part = found["code"]
    return [
        Count(part["mutants"], part["there"]),
        Count(part["by_chapter"]),
        Count(part["by_tests_only"]),
        Count(len(part["equivalent"])),
        Count(len(part["survived"])),
        _kernels(found),
    ]


def _kernels(found: Trials) -> Count:
    if "kernels" not in found:
        return Count()
    part = found["kernels"]
    return Count(part["killed"], part["killed"] + len(part["survived"]))


def _statements(_: str, stored: Stored, found: Trials | None) -> list[Count]:
    made = [Count()] * 4
    if found is not None and "formulas" in found:
        part = found["formulas"]
        held = part["refused"] + part["timeout"]
        made[0] = Count(held, held + len(part["accepted"]))
    if found is not None and "vacuity" in found:
        part = found["vacuity"]
        held = part["refused"] + part["timeout"]
        made[1] = Count(held, held + len(part["accepted"]))
    if found is not None and "exercises" in found:
        part = found["exercises"]
        tried = part["exercises"] + part["wrong"] + 2 * part["exercises"]
        right = part["solved"] + part["refused"] + part["empty_refused"]
        made[2] = Count(part["exercises"])
        made[3] = Count(right, tried)
    return [*made, Count(len(stored.exhibits))]


_TABLES: Sequence[tuple[str, str, Sequence[str], Counting]] = (
    (
        "Entries and functions",
        "Every equation is one entry. An entry can be both proved and checked, and then counts in both "
        "columns. A function is covered when an entry compares it with its equation; results that "
        "only carry numbers have nothing to compare.",
        ["Entries", "Definition", "Proved", "Checked", "Cited", "Functions covered"],
        _entries,
    ),
    (
        "Mistakes in the code",
        "A *mutant* is the package's code with one small mistake in it: a sign, a bound, a swapped "
        "argument, a dropped term. Each is run against the chapter as it stands, and where the "
        "chapter lets it pass, against the tests. Some mutants compute the same as the code; they are "
        "listed by hand, with the reason. The last column is the same for the Triton kernels, run by "
        "the interpreter against their tests.",
        ["Tried", "Refused by the chapter", "by the tests only", "The same", "Alive", "Kernels"],
        _code,
    ),
    (
        "Mistakes in what is stated",
        "Every equation was changed in every small way that a slip of the pen would: a sign, a factor, "
        "an index, a bound. *Spoilt code* answers NaN, zeros, its input, or its results in another "
        "order. Both must be refused. An exercise's checker is held against its solution, against "
        "tempting wrong answers, and against no answer.",
        ["Wrong formulas refused", "Spoilt code refused", "Exercises", "Answers judged rightly",
         "Published bugs refused"],
        _statements,
    ),
)  # fmt: skip


class EvidenceClasses(LedgerDirective):
    """`{evidence-classes}`: what each class of evidence means, and how many entries have it."""

    def run(self) -> list[nodes.Node]:
        """Return the table and a sentence on those that count twice."""
        records = [record for each in self.notebooks().values() for record in each.records]
        count = Counter(name for record in records for name in record.classes)
        held = sum(1 for r in records if {"proved", "checked"} & set(r.classes))
        rows: list[list[Cell]] = [
            [[chip(name)], [nodes.Text(MEANINGS[name])], [nodes.Text(str(count[name]))]]
            for name in CLASSES
        ]
        both = sum(1 for record in records if {"proved", "checked"} <= set(record.classes))
        text = (
            f"{len(records)} entries, {held} of them proved or checked; {both} are both, and are "
            "counted in both lines."
        )
        table = plain_table(
            ["Class", "What it means", "Entries"], rows, "ledger-totals", label="Entries by class"
        )
        return [table, nodes.paragraph("", text)]


class LedgerTable(LedgerDirective):
    """`{ledger-table}`: for each chapter its report, and a table of its entries."""

    def run(self) -> list[nodes.Node]:
        """Return one section a chapter."""
        stored = {name: each for name, each in self.notebooks().items() if each.records}
        return [self._section(name, each.records) for name, each in stored.items()]

    def _section(self, docname: str, records: tuple[Record, ...]) -> nodes.Node:
        slug, title = slug_of(docname), title_of(docname)
        section = nodes.section(ids=[f"checked-{nodes.make_id(slug)}"])
        section += nodes.title("", title)
        link = nodes.paragraph("", "Open the chapter: ")
        link += [document_link(docname, title, self.env.docname), nodes.Text(".")]
        head = ["Entry", "Equation and evidence"]
        found = trials.load(slug)
        rows = [self._row(record, found) for record in records]
        section += [link, *chapter_report(slug)]
        section += plain_table(head, rows, "ledger", label=f"Entries of {title}")
        return section

    def _row(self, record: Record, found: Trials | None) -> list[Cell]:
        here = self.env.docname
        anchor = evidence_anchor(record.id)
        self.env.get_domain("std").anonlabels[anchor] = here, anchor  # type: ignore[attr-defined]
        name: list[nodes.Node] = [
            nodes.target(ids=[anchor]),
            equation_link(record.id, here),
            nodes.Text(f" {record.title} "),
            nodes.literal("", record.id.split(":")[1], classes=["ledger-id"]),
        ]
        equation = nodes.paragraph("", "", classes=["ledger-equation"])
        equation += nodes.math(record.latex, rf"\displaystyle {record.latex}")
        line = evidence_line(record.line, record.implementations, here)
        tried = found.of_entry(record.id) if found is not None else None
        if tried is not None:
            words = f" Wrong forms and spoilt code: {tried[1]} of {tried[0]} refused."
            line += nodes.inline("", words, classes=["ledger-tried"])
        return [name, [equation, line]]


# ------------------------------------------------------------------ a chapter's section


def chapter_report(slug: str) -> list[nodes.Node]:
    """Return what was recorded of one chapter: where and when, what is stale, what is alive."""
    found = trials.load(slug)
    if found is None:
        return [nodes.paragraph("", "Mistakes have not been made on purpose here yet.")]
    made: list[nodes.Node] = [nodes.paragraph("", _provenance(found))]
    if found.stale:
        warning = nodes.warning()
        warning += nodes.paragraph(
            "",
            "The code or the equations have changed since these were recorded: "
            f"{', '.join(found.stale)}. The numbers are of the older ones; "
            f"python -m tests.mutants {slug} --store renews them.",
        )
        made.append(warning)
    made += _listing(
        "No check notices {}:", [(name, "") for name in found.alive], "Nothing is alive."
    )
    made += _listing("{} by which nothing changes:", found.same, "")
    return made


def _provenance(found: Trials) -> str:
    origins = [part["origin"] for part in found.parts.values()]
    commits = sorted({origin["commit"] for origin in origins})
    days = sorted({origin["date"] for origin in origins})
    words = [f"Recorded at commit {', '.join(commits)}, {' and '.join(days)}"]
    if "formulas" in found:
        part = found["formulas"]
        words.append(
            f"of {part['attempts']} changed formulas {part['refused']} were refused, for "
            f"{part['timeout']} no proof was found in 20 seconds, {part['also true']} are weaker or "
            f"stronger inequalities that hold too, and {part['equivalent']} say the same"
        )
    return "; ".join(words) + "."


def _listing(head: str, lines: Sequence[tuple[str, str]], none: str) -> list[nodes.Node]:
    if not lines:
        return [nodes.paragraph("", none)] if none else []
    count = f"{len(lines)} change{'s' * (len(lines) > 1)}"
    listing = nodes.bullet_list(classes=["alive"])
    for change, reason in lines:
        paragraph = nodes.paragraph()
        for odd, text in enumerate(change.split("`")):
            if text:
                paragraph += nodes.literal("", text) if odd % 2 else nodes.Text(text)
        if reason:
            paragraph += nodes.Text(f" ({reason})")
        listing += nodes.list_item("", paragraph)
    text = head.format(count)
    return [nodes.paragraph("", text[0].upper() + text[1:]), listing]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("trust-summary", TrustSummary)
    app.add_directive("evidence-classes", EvidenceClasses)
    app.add_directive("ledger-table", LedgerTable)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
