"""What the ledger raises when it refuses an entry."""

from __future__ import annotations


class LedgerError(AssertionError):
    """An entry that cannot stand: the base class of all refusals."""


class DuplicateEntry(LedgerError):
    """An id is used twice for two different statements."""


class NotProved(LedgerError):
    """The two sides differ, or the method given could not show that they agree."""


class Disagreement(LedgerError):
    """The implementation and the equation give different numbers."""


class VacuousCheck(LedgerError):
    """Nothing was compared: no input, or no finite value among the results."""
