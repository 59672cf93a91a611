"""What the ledger tells beside its entries: a refusal, and the count by class."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pkg.ledger.entry import CLASSES, Entry


@dataclass(frozen=True)
class Refusal:
    """A mistaken variant, the entry that refused it, and the first number that gave it away."""

    entry: str
    variant: str
    reason: str

    def __str__(self) -> str:
        return f"refused by {self.reason}"

    def _repr_markdown_(self) -> str:
        where, _, what = self.reason.partition(": ")
        what = what or where
        return f"`{self.variant}` is **refused** by {{eq}}`{self.entry}`: {what}."

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Summary:
    """How many entries of each class a chapter has."""

    chapter: str
    entries: tuple[Entry, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of entries by class; an entry both proved and checked counts in both."""
        counter = Counter(name for entry in self.entries for name in entry.classes)
        return {name: counter[name] for name in CLASSES}

    @property
    def shown(self) -> float:
        """The share of entries that are proved or checked, from 0 to 1."""
        shown = sum(bool({"proved", "checked"} & set(entry.classes)) for entry in self.entries)
        return shown / len(self.entries) if self.entries else 0.0

    def __str__(self) -> str:
        parts = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)
        return f"{len(self.entries)} entries: {parts}; {self.shown:.0%} proved or checked"
