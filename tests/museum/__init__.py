"""The museum: bugs that were really published, each rebuilt as a variant that its chapter refuses.

A chapter's exhibits live in `tests/museum/<slug>.py`, in a module-level `museum`. The notebook shows
one with `museum.refuse("name", ledger)`, which holds the variant against an entry of the ledger
and shows its code, the verdict, and what the bug would have cost. The site's museum page is
made from these outputs, so it lists nothing that was not refused.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pkg.ledger import Ledger

#: The MIME type of an exhibit's record among a notebook's outputs.
MIME = "application/vnd.checked.exhibit+json"


@dataclass(frozen=True)
class Exhibit:
    """One published bug.

    Attributes
    ----------
    name
        In snake case; unique in its chapter.
    title
        The bug in a few words, without a full stop.
    project
        Where it was published: `torchmetrics`.
    threads
        Pairs (label, address) of the public threads: `("torchmetrics #2558", "https://...")`.
    story
        What went wrong and who met it, in one to four sentences of Markdown. No display equation.
    entry
        Name of the ledger entry that must refuse it.
    variant
        A named function or class, called as the entry calls the right one.
    cost
        Computes one sentence, with a number, of what a user would have lost.
    """

    name: str
    title: str
    project: str
    threads: tuple[tuple[str, str], ...]
    story: str
    entry: str
    variant: Callable[..., Any]
    cost: Callable[[], str]

    @property
    def source(self) -> str:
        """The variant's code."""
        return textwrap.dedent(inspect.getsource(self.variant)).strip()


class Museum:
    """All exhibits of one chapter."""

    def __init__(self, chapter: str, *exhibits: Exhibit) -> None:
        self.chapter = chapter
        self._exhibits = {exhibit.name: exhibit for exhibit in exhibits}
        if len(self._exhibits) < len(exhibits):
            raise ValueError(f"{chapter}: two exhibits have one name")

    def __iter__(self) -> Iterator[Exhibit]:
        return iter(self._exhibits.values())

    def __len__(self) -> int:
        return len(self._exhibits)

    def __getitem__(self, name: str) -> Exhibit:
        if name not in self._exhibits:
            raise KeyError(
                f"{self.chapter} has no exhibit {name!r}; it has {', '.join(self._exhibits)}"
            )
        return self._exhibits[name]

    def refuse(self, name: str, ledger: Ledger) -> Shown:
        """Hold an exhibit against its entry, and show that it is refused.

        Raises
        ------
        pkg.ledger.LedgerError
            If the entry lets the variant pass: the check is then too weak.
        """
        exhibit = self[name]
        refusal = ledger.refuse(exhibit.entry, exhibit.variant)
        _, _, reason = refusal.reason.partition(": ")
        return Shown(exhibit, ledger.chapter, reason or refusal.reason, exhibit.cost())


@dataclass(frozen=True)
class Shown:
    """A refused exhibit, as a notebook shows it."""

    exhibit: Exhibit
    chapter: str
    reason: str
    cost: str

    def record(self) -> dict[str, Any]:
        """Return what the site's museum page reads: plain JSON."""
        exhibit = self.exhibit
        return {
            "id": f"{self.chapter}:{exhibit.name}",
            "chapter": self.chapter,
            "title": exhibit.title,
            "project": exhibit.project,
            "threads": [list(thread) for thread in exhibit.threads],
            "story": " ".join(exhibit.story.split()),
            "entry": f"{self.chapter}:{exhibit.entry}",
            "variant": exhibit.variant.__name__,
            "reason": self.reason,
            "cost": self.cost,
        }

    def markdown(self) -> str:
        """Return the exhibit with its code, the verdict and the cost."""
        exhibit = self.exhibit
        links = ", ".join(f"[{label}]({address})" for label, address in exhibit.threads)
        return (
            f"**{exhibit.title}.** {textwrap.dedent(exhibit.story).strip()} ({links})\n\n"
            f"```python\n{exhibit.source}\n```\n\n"
            f"`{exhibit.variant.__name__}` is **refused** by "
            f"{{eq}}`{self.chapter}:{exhibit.entry}`: {self.reason}.\n\n"
            f"*What it would have cost:* {self.cost}\n"
        )

    def __str__(self) -> str:
        return f"{self.exhibit.title}: refused by {self.chapter}:{self.exhibit.entry}"

    __repr__ = __str__

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": str(self), "text/markdown": self.markdown(), MIME: self.record()}


def complaints(exhibit: Exhibit) -> list[str]:
    """Return what an exhibit lacks before it may be shown."""
    found = []
    if not re.fullmatch(r"[a-z][a-z0-9_]*", exhibit.name):
        found.append("its name is not in snake case")
    if not exhibit.threads or any(not url.startswith("https://") for _, url in exhibit.threads):
        found.append("it links no thread")
    if not exhibit.title or exhibit.title.endswith("."):
        found.append("its title is missing, or ends with a full stop")
    if exhibit.variant.__name__ == "<lambda>" or not exhibit.variant.__doc__:
        found.append("its variant has no name or says nothing of itself")
    if len(exhibit.story.split()) < 10:
        found.append("its story is too short")
    cost = exhibit.cost()
    if not re.search(r"\d", cost) or not cost.endswith("."):
        found.append(f"its cost is no sentence with a number: {cost!r}")
    return found
