"""Checks at the door that every chapter needs: counts and sizes, with one human sentence for each."""

from __future__ import annotations

import math
from typing import Any


def whole(name: str, value: Any, least: int) -> int:
    """Return `value`, an int of at least `least`; else say what it should have been.

    Examples
    --------
    >>> whole("groups", 0, 1)
    Traceback (most recent call last):
    ValueError: groups must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def positive(name: str, value: Any, *, zero: bool = False) -> float:
    """Return `value` as a float: finite, and above 0 (or 0 itself where `zero`).

    Examples
    --------
    >>> positive("cost", 0, zero=True)
    0.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(
            f"{name} must be {'at least 0' if zero else 'positive'} and finite, got {value}"
        )
    return float(value)
