"""An entry: a statement, where it comes from, what was shown, and how it is displayed."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

MIME = "application/vnd.checked.entry+json"

#: The classes an entry can have, in the order in which they are shown.
CLASSES = ("definition", "proved", "checked", "cited")


@dataclass(frozen=True)
class Entry:
    """One equation of the book with its evidence. A notebook shows it as a numbered equation.

    Attributes
    ----------
    id
        `chapter:name`, unique in the book; the equation's label on the site.
    title
        What it says, in a few words.
    equation
        The SymPy object that was shown, the one that is printed.
    latex
        Its LaTeX.
    classes
        One or two of `definition`, `proved`, `checked`, `cited`.
    evidence
        A sentence for each class; code names stand between backticks.
    implementations
        Fully qualified names of the callables compared with it.
    source
        Paper and equation or section, or the source document.
    """

    id: str
    title: str
    equation: Any
    latex: str
    classes: tuple[str, ...]
    evidence: tuple[str, ...]
    implementations: tuple[str, ...] = ()
    source: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def chapter(self) -> str:
        """The slug of the entry's chapter."""
        return self.id.split(":")[0]

    def __str__(self) -> str:
        return f"{self.id}: {' '.join(self.evidence)}"

    def record(self) -> dict[str, Any]:
        """Return what the site and the tests read: plain JSON."""
        return {
            "id": self.id,
            "chapter": self.chapter,
            "title": self.title,
            "classes": list(self.classes),
            "latex": self.latex,
            "evidence": " ".join(self.evidence).replace("`", ""),
            "implementations": list(self.implementations),
            "source": self.source,
        }

    def markdown(self) -> str:
        """Return the numbered equation with its line of evidence."""
        lines = []
        for name, sentence in zip(self.classes, self.evidence, strict=True):
            parts = html.escape(sentence, quote=False).split("`")
            text = "".join(
                f"<code>{part}</code>" if odd % 2 else part for odd, part in enumerate(parts)
            )
            lines.append(f'<span class="evidence-class">{name.capitalize()}</span> {text}')
        if self.source:
            lines.append(f'<span class="evidence-source">{html.escape(self.source)}.</span>')
        kinds = " ".join(f"evidence-{name}" for name in self.classes)
        return (
            f"$$\n{self.latex}\n$$ ({self.id})\n\n"
            f'<p class="evidence {kinds}">{" ".join(lines)}</p>\n'
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": str(self), "text/markdown": self.markdown(), MIME: self.record()}
