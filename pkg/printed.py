"""What a chapter prints: no wider than its reader's page, and refusals that are refusals."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["PHONE", "WIDTH", "print_refusals", "refusal", "wrapped"]

#: Characters of a printed line that the website's column holds; what is longer would be cut off.
WIDTH = 79
#: Characters of a printed line that a phone of 390 pixels holds; what is longer scrolls in its box.
PHONE = 41


def wrapped(text: str, *, indent: str = "  ") -> str:
    """Return `text` in lines that fit a phone; all but the first begin with `indent`.

    Examples
    --------
    >>> print(wrapped("dilation must be at least 1, got 0, and so on"))
    dilation must be at least 1, got 0, and
      so on
    """
    return textwrap.fill(text, PHONE, subsequent_indent=indent)


def refusal(call: Callable[[], Any]) -> str:
    """Return what a call says when it refuses its arguments.

    Parameters
    ----------
    call
        Without arguments; it should raise TypeError or ValueError.

    Raises
    ------
    AssertionError
        If it accepts them.

    Examples
    --------
    >>> refusal(lambda: int("three"))
    "invalid literal for int() with base 10: 'three'"
    """
    try:
        accepted = call()
    except (TypeError, ValueError) as error:
        return str(error)
    raise AssertionError(f"it was not refused, and gave {accepted!r}")


def print_refusals(calls: Mapping[str, Callable[[], Any]] | Iterable[Callable[[], Any]]) -> None:
    """Print what each call says when it refuses its arguments, wrapped for a phone.

    Parameters
    ----------
    calls
        As for `refusal`; named, if a word is to stand before each line, else with a dash.

    Raises
    ------
    AssertionError
        At the first that accepts its arguments.

    Examples
    --------
    >>> print_refusals({"a word": lambda: int("three")})
    a word: invalid literal for int() with
      base 10: 'three'
    """
    if isinstance(calls, Mapping):
        lines = (f"{name}: {refusal(call)}" for name, call in calls.items())
    else:
        lines = (f"- {refusal(call)}" for call in calls)
    for line in lines:
        print(wrapped(line))
