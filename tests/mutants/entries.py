"""Formula mutants, and emptied implementations: what the ledger must refuse, entry by entry.

The chapter is run as it is. Just before an entry is stated, a forked child states it wrongly, in
each way in turn, and nothing of that reaches the chapter.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp

from pkg.ledger.cases import Cases, Comparing
from pkg.ledger.evaluate import to_float64
from pkg.ledger.ledger import Ledger
from pkg.ledger.proof import prove
from tests.mutants import processes
from tests.mutants.code import warm
from tests.mutants.equations import Change, changes
from tests.mutants.notebook import Runner, cells

#: For one wrong statement; a proof that does not end is no proof.
SECONDS = 20


@dataclass(frozen=True)
class Attempt:
    """One wrong statement of one entry.

    Attributes
    ----------
    entry
        Its id.
    attack
        `formula` or `vacuity`.
    what
        The change, in words.
    outcome
        `refused`, `timeout` (no proof came to an end), `equivalent` (the change says the same, by a
        proof), `also true` (an inequality that was changed and is proved all the same), or
        `accepted`: the check is too weak.
    """

    entry: str
    attack: str
    what: str
    outcome: str


class _OutOfTime(BaseException):
    """A statement took too long. No LedgerError: it must not look like a refusal."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _OutOfTime

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def attack(slug: str, say: Any) -> list[Attempt]:
    """Run a chapter and attack every entry of its ledger."""
    warm()
    return processes.call(lambda: _attack(slug, say))  # type: ignore[no-any-return]


def _attack(slug: str, say: Any) -> list[Attempt]:
    found: list[Attempt] = []
    _patch(found, say)
    runner = Runner()
    for number, source in enumerate(cells(slug), 1):
        shown, _ = runner.run(source)
        if shown.error:
            raise RuntimeError(f"{slug}, cell {number}: {shown.error}")
    return found


def _patch(found: list[Attempt], say: Any) -> None:
    """Put an attack before each of the ledger's verbs that shows something."""
    depth = [0]  # `prove` with an implementation compares too: one attack for both

    def before(verb: str, formulas: Callable[..., list[Attempt]]) -> None:
        original = getattr(Ledger, verb)

        def stated(self: Ledger, name: str, *args: Any, **kwargs: Any) -> Any:
            if depth[0] == 0:
                new = processes.call(lambda: formulas(original, self, name, args, kwargs))
                found.extend(new)
                accepted = sum(attempt.outcome == "accepted" for attempt in new)
                say(f"{self.chapter}:{name}: {len(new)} attempts, {accepted} accepted")
            depth[0] += 1
            try:
                return original(self, name, *args, **kwargs)
            finally:
                depth[0] -= 1

        setattr(Ledger, verb, stated)

    before("check", _relation)
    before("prove", _relation)
    before("derive", _chain)
    # A check's comparison is attacked inside the verb, where its inputs are known.
    compare = Ledger._compare

    def compared(self: Ledger, name: str, equation: Any, code: Any, on: Any, how: Any) -> Any:
        result = compare(self, name, equation, code, on, how)
        found.extend(processes.call(lambda: _vacuity(self, name, equation, code, on, how)))
        return result

    Ledger._compare = compared  # type: ignore[method-assign]


# ------------------------------------------------------------------ formulas


def _relation(
    verb: Any, ledger: Ledger, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Attempt]:
    relation, *rest = args
    _undo_patches()
    return [
        _try(ledger, name, change, lambda book, c=change: verb(book, name, c.relation, *rest, **kwargs),
             relation)
        for change in changes(relation)
    ]  # fmt: skip


def _chain(
    verb: Any, ledger: Ledger, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Attempt]:
    attempts = []
    for place in range(1, len(args)):
        link = sp.Eq(args[place - 1], args[place], evaluate=False)
        for change in changes(link):
            if change.relation.lhs != link.lhs:
                continue
            steps = [*args[:place], change.relation.rhs, *args[place + 1 :]]
            attempts.append(
                _try(
                    ledger, name, change, lambda book, s=steps: verb(book, name, *s, **kwargs), link
                )
            )
    return attempts


def _try(
    ledger: Ledger, name: str, change: Change, state: Callable[[Ledger], Any], original: Any
) -> Attempt:
    full = f"{ledger.chapter}:{name}"
    try:
        with _limited(SECONDS):
            state(copy.deepcopy(ledger))
    except _OutOfTime:
        return Attempt(full, "formula", change.text, "timeout")
    except Exception:  # a refusal; or no equation at all, which no reader would see printed
        return Attempt(full, "formula", change.text, "refused")
    if _says_the_same(ledger, original, change.relation):
        return Attempt(full, "formula", change.text, "equivalent")
    # What is compared with numbers is an equation; a changed inequality that passed was proved.
    word = "accepted" if isinstance(change.relation, sp.Eq) else "also true"
    return Attempt(full, "formula", change.text, word)


def _says_the_same(ledger: Ledger, original: Any, changed: Any) -> bool:
    """Tell whether the change is none: both right sides are provably equal, as are the left."""
    if type(original) is not type(changed):
        return False
    try:
        with _limited(SECONDS):
            for before, after in zip(original.args, changed.args, strict=True):
                if before != after:
                    unfolded = [ledger.definitions.unfold(side) for side in (before, after)]
                    prove(sp.Eq(*unfolded, evaluate=False))
    except (_OutOfTime, Exception):
        return False
    return True


def _undo_patches() -> None:
    """In a child the verbs are the original ones again; nothing attacks an attack."""
    processes.call = lambda work: []


# ------------------------------------------------------------------ vacuity


def _vacuity(
    ledger: Ledger, name: str, equation: Any, code: Any, on: Cases, how: Any
) -> list[Attempt]:
    right = ledger.definitions.unfold(equation.rhs)
    attempts = []
    for what, spoil in _SPOILT.items():
        touched = [False]

        def call(f: Any, item: Any, spoil: Any = spoil, touched: Any = touched) -> Any:
            value = to_float64(on.call(f, item))
            spoilt = spoil(value, item)
            if spoilt is None:
                return value
            touched[0] = True
            return spoilt

        cases = dataclasses.replace(on, call=call)
        outcome = "accepted"
        try:
            with _limited(SECONDS):
                Comparing(**how).run(
                    f"{ledger.chapter}:{name}",
                    right,
                    equation.lhs,
                    ledger.ranges,
                    cases,
                    code,
                    what,
                )
        except _OutOfTime:
            outcome = "timeout"
        except Exception:
            outcome = "refused"
        if touched[0]:
            attempts.append(Attempt(f"{ledger.chapter}:{name}", "vacuity", what, outcome))
    try:
        dataclasses.replace(on, items=[])
        outcome = "accepted"
    except AssertionError:
        outcome = "refused"
    attempts.append(Attempt(f"{ledger.chapter}:{name}", "vacuity", "no input", outcome))
    return attempts


def _shuffled(value: Any, item: Any) -> Any:
    flat = value.ravel()
    turned = np.roll(flat, 1)
    return None if np.array_equal(flat, turned, equal_nan=True) else turned.reshape(value.shape)


def _input(value: Any, item: Any) -> Any:
    """The first array or number in the input, whatever its shape."""
    parts = item if isinstance(item, tuple | list) else [item]
    if isinstance(item, dict):
        parts = list(item.values())
    for part in parts:
        with contextlib.suppress(Exception):
            found = to_float64(part)
            same = found.shape == value.shape and np.array_equal(found, value, equal_nan=True)
            return None if same else found
    return None


#: From the right result and the input: the result of an implementation that does not do its work.
#: None where it would be right by chance on this input.
_SPOILT: dict[str, Callable[[Any, Any], Any]] = {
    "NaN": lambda value, item: np.full_like(value, np.nan),
    "zeros": lambda value, item: np.zeros_like(value) if value.any() else None,
    "shuffled": _shuffled,
    "its input": _input,
}
