"""The ledger: every equation of the book, linked to its evidence.

A chapter opens one ledger and states its equations through it::

    ledger = Ledger("segmentation_metrics")
    ledger.define("target_total", Eq(t[i], Sum(n[i, j], (j, 0, k))), title="Pixels of class i")
    ledger.check("iou", Eq(IoU[i], n[i, i] / (t[i] + p[i] - n[i, i])), iou, on=matrices)
    ledger.prove("dice_of_iou", Eq(Dice[i], 2 * IoU[i] / (1 + IoU[i])))

Each call does the work first, raises if the statement does not hold, and returns an `Entry`, which
the notebook shows as a numbered equation with one line of evidence under it.
"""

from pkg.ledger.cases import Cases
from pkg.ledger.entry import CLASSES, MIME, Entry
from pkg.ledger.errors import (
    Disagreement,
    DuplicateEntry,
    LedgerError,
    NotProved,
    VacuousCheck,
)
from pkg.ledger.ledger import Ledger
from pkg.ledger.notation import latex
from pkg.ledger.operators import MaxOver, MinOver, iverson
from pkg.ledger.proof import Induction
from pkg.ledger.results import Refusal, Summary

__all__ = [
    "CLASSES",
    "MIME",
    "Cases",
    "Disagreement",
    "DuplicateEntry",
    "Entry",
    "Induction",
    "Ledger",
    "LedgerError",
    "MaxOver",
    "MinOver",
    "NotProved",
    "Refusal",
    "Summary",
    "VacuousCheck",
    "iverson",
    "latex",
]
