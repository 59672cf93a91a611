"""The ledger of one chapter: states, proves, compares, and remembers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sympy as sp

from pkg.ledger.cases import Cases, Comparing
from pkg.ledger.definitions import Definitions
from pkg.ledger.entry import Entry
from pkg.ledger.errors import DuplicateEntry, LedgerError, NotProved, VacuousCheck
from pkg.ledger.names import public_name, read_back
from pkg.ledger.notation import latex as to_latex
from pkg.ledger.proof import (
    DIGITS,
    Induction,
    guard,
    prove,
    prove_by_exhaustion,
    prove_by_induction,
)
from pkg.ledger.results import Refusal, Summary

_NAME = re.compile(r"^[a-z][a-z0-9_]*$")


class Ledger:
    """All entries of one chapter.

    Parameters
    ----------
    chapter
        The chapter's slug; the first half of every id.
    ranges
        For each index symbol its (first, last) value, such as `{i: (0, k)}`: where an equation has
        a free index, it is compared for every value in the range.
    names
        LaTeX for symbols whose names do not say it.
    order
        Symbols in the order in which printed terms and factors should name them.
    """

    def __init__(
        self,
        chapter: str,
        *,
        ranges: Mapping[Any, tuple[Any, Any]] | None = None,
        names: Mapping[Any, str] | None = None,
        order: Sequence[Any] = (),
    ) -> None:
        if not _NAME.match(chapter):
            raise ValueError(f"chapter must be a slug such as 'flash_attention', not {chapter!r}")
        self.chapter = chapter
        self.ranges = dict(ranges or {})
        self.names = dict(names or {})
        self.order = tuple(order)
        self.definitions = Definitions()
        self._entries: dict[str, Entry] = {}
        self._comparisons: dict[str, Callable[[Callable[..., Any], str], str]] = {}

    # ------------------------------------------------------------------ the four verbs

    def define(
        self,
        name: str,
        equation: sp.Eq,
        *,
        title: str,
        source: str = "",
        meaning: str = "",
        latex: str | None = None,
        recurrence: bool = False,
    ) -> Entry:
        """Introduce what stands on the left side; later entries may use it. Proves nothing.

        `meaning` is one sentence for the line of evidence. A `recurrence` defines its left side by
        the same thing one step earlier; it is printed and not put into later entries.
        """
        if not recurrence:
            self._remember(equation, required=True)
        text = meaning or f"{title}."
        return self._add(name, equation, title, source, ("definition",), (text,), latex=latex)

    def check(
        self,
        name: str,
        equation: sp.Eq,
        implementation: Callable[..., Any],
        *,
        on: Cases,
        title: str,
        source: str = "",
        latex: str | None = None,
        primitive: bool = False,
        **comparing: Any,
    ) -> Entry:
        """Compare the right side of `equation` with `implementation` on the inputs of `on`.

        The equation itself is compiled, with all definitions put in, and run in float64. What
        stands on the left side becomes a definition for later entries.

        Parameters
        ----------
        name
            The second half of the id.
        equation
            What is stated, and printed.
        implementation
            A public callable of `pkg`.
        on
            The inputs; see `Cases`.
        title, source
            What it says in a few words, and where it comes from.
        latex
            Another LaTeX form; accepted only if SymPy's parser reads it back to `equation`.
        primitive
            Later entries keep the left side as a symbol instead of putting its meaning in.
        **comparing
            `ulps`, `scale`, `dtypes`, `undefined`, or `bound` with `within`: see
            `pkg.ledger.cases.Comparing`.

        Raises
        ------
        Disagreement
            At the first number that differs by more than the bound.
        VacuousCheck
            If no finite value was compared.
        """
        called, sentence = self._compare(name, equation, implementation, on, comparing)
        if Definitions.defines(equation) and not primitive:
            self._remember(equation)
        return self._add(name, equation, title, source, ("checked",), (sentence,), (called,), latex)

    def prove(
        self,
        name: str,
        relation: Any,
        *,
        title: str,
        source: str = "",
        given: Mapping[Any, Any] | None = None,
        witness: Any = None,
        induction: Induction | None = None,
        cases: Iterable[Mapping[Any, Any]] | None = None,
        domain: Mapping[Any, Any] | None = None,
        assuming: Sequence[Any] = (),
        implementation: Callable[..., Any] | None = None,
        on: Cases | None = None,
        latex: str | None = None,
        because: str = "",
        **comparing: Any,
    ) -> Entry:
        """Show `relation` for all values of its symbols, and compare it with code if one is named.

        Definitions are put in first. The proof is by simplification (or, for an inequality, by the
        sign of the difference), by `induction`, or by exhausting finitely many `cases`; then the
        statement as written is evaluated with 50 digits at random points of its `domain`. A closed
        form that is proved by induction becomes the meaning of its left side.

        Parameters
        ----------
        name, title, source, latex
            As for `check`.
        relation
            An equation or an inequality.
        given
            Further meanings of symbols, for this proof alone.
        witness
            For `a <= b`: a form of b - a that is visibly non-negative.
        induction, cases
            The method, where it is not simplification.
        domain, assuming
            Where the random points lie: see `pkg.ledger.proof.guard`.
        implementation, on, **comparing
            As for `check`; the entry is then both proved and checked.
        because
            Ends the line of evidence: what the proof rests on, in words.

        Raises
        ------
        NotProved
            If the two sides differ, or could not be shown to agree.
        VacuousCheck
            If both sides are one expression, so that there is nothing to show.
        """
        if isinstance(relation, sp.Eq) and relation.lhs == relation.rhs:
            raise VacuousCheck(
                f"{name}: both sides are {relation.lhs}; SymPy has simplified what was to be proved"
            )
        statement = self._unfold(relation, given)
        if induction is not None:
            induction = induction.mapped(lambda part: self.definitions.unfold(part, given))
        if cases is not None:
            how = prove_by_exhaustion(statement, cases)
            sentence = f"Holds {how}"
        else:
            how = prove_by_induction(statement, induction) if induction else ""
            seed = f"{self.chapter}:{name}"
            points = guard(
                statement,
                seed=seed,
                domain={**self.ranges, **(domain or {})},
                assuming=assuming,
                induction=induction,
            )
            if not how:
                # Only now: the proof of a false statement, which has failed above, can take minutes.
                seen = None if witness is None else self.definitions.unfold(witness, given)
                how = prove(statement, witness=seen)
            where = f"at {points} random points" if points > 1 else "with nothing to vary"
            sentence = f"For all values, {how}; and to {DIGITS} digits {where}"
        sentence += f", {because}." if because else "."
        classes, evidence = ["proved"], [sentence]
        called: tuple[str, ...] = ()
        if implementation is not None:
            if on is None:
                raise ValueError("implementation needs on=, the inputs to compare on")
            full, second = self._compare(name, relation, implementation, on, comparing)
            classes, evidence, called = [*classes, "checked"], [*evidence, second], (full,)
        if induction is not None and Definitions.defines(relation):
            self._remember(relation)
        return self._add(
            name, relation, title, source, tuple(classes), tuple(evidence), called, latex
        )

    def derive(
        self,
        name: str,
        start: Any,
        *steps: Any,
        title: str,
        source: str = "",
        given: Mapping[Any, Any] | None = None,
        domain: Mapping[Any, Any] | None = None,
        assuming: Sequence[Any] = (),
    ) -> Entry:
        """Show a chain `start = step = step ...`, every link of it, and print it line by line."""
        if not steps:
            raise ValueError("a derivation needs at least one step")
        everywhere = {**self.ranges, **(domain or {})}
        for number, (left, right) in enumerate(zip((start, *steps), steps, strict=False), 1):
            link = self._unfold(sp.Eq(left, right, evaluate=False), given)
            try:
                guard(
                    link,
                    seed=f"{self.chapter}:{name}:{number}",
                    domain=everywhere,
                    assuming=assuming,
                )
                prove(link)
            except NotProved as error:
                raise NotProved(f"step {number}: {error}") from error
        lines = [rf"{self._latex(start)} &= {self._latex(steps[0])}"]
        lines += [f"&= {self._latex(step)}" for step in steps[1:]]
        body = " \\\\\n".join(lines)
        text = (
            body.replace("&", "")
            if len(steps) == 1
            else (f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}")
        )
        sentence = (
            (
                f"Each of {len(steps)} steps for all values, by simplification; and to {DIGITS} digits "
                "at random points."
            )
            if len(steps) > 1
            else f"For all values, by simplification; and to {DIGITS} digits."
        )
        equation = sp.Eq(start, steps[-1], evaluate=False)
        return self._add(name, equation, title, source, ("proved",), (sentence,), printed=text)

    def cite(
        self,
        name: str,
        relation: Any,
        *,
        title: str,
        source: str,
        why: str,
        latex: str | None = None,
    ) -> Entry:
        """State `relation` from a source without showing it; `why` says why it is not shown."""
        if not source or not why:
            raise ValueError("a cited entry needs its source and why it is not shown here")
        return self._add(name, relation, title, source, ("cited",), (why,), latex=latex)

    def refuse(self, name: str, variant: Callable[..., Any]) -> Refusal:
        """Hold a mistaken `variant` against the entry `name`, and show that it is refused.

        Raises
        ------
        LedgerError
            If the entry compares nothing, or the variant passes: the check is then too weak.
        """
        if name not in self._comparisons:
            raise LedgerError(f"{self.chapter}:{name} compares no code, so it can refuse none")
        called = variant.__name__
        try:
            self._comparisons[name](variant, called)
        except LedgerError as error:
            return Refusal(f"{self.chapter}:{name}", called, str(error))
        raise LedgerError(f"{self.chapter}:{name} accepts {called}: the check is too weak")

    # ------------------------------------------------------------------ what is there

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries so far, in the order in which they were stated."""
        return tuple(self._entries.values())

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def summary(self) -> Summary:
        """Count the entries by class."""
        return Summary(self.chapter, self.entries)

    # ------------------------------------------------------------------ inside

    def _remember(self, equation: Any, *, required: bool = False) -> None:
        if required and not Definitions.defines(equation):
            raise LedgerError(f"a definition is an equation with a symbol on its left: {equation}")
        self.definitions.add(equation)

    def _unfold(self, relation: Any, given: Mapping[Any, Any] | None = None) -> Any:
        if isinstance(relation, bool | sp.logic.boolalg.BooleanAtom):
            raise NotProved(
                f"the relation became {relation} before it was examined; build it with "
                "evaluate=False, so that there is something to prove"
            )
        if not isinstance(relation, sp.core.relational.Relational):
            raise NotProved(f"expected an equation or an inequality, got {relation!r}")
        left = self.definitions.unfold(relation.lhs, given)
        right = self.definitions.unfold(relation.rhs, given)
        return relation.func(left, right, evaluate=False)

    def _compare(
        self,
        name: str,
        equation: Any,
        implementation: Callable[..., Any],
        on: Cases,
        comparing: Mapping[str, Any],
    ) -> tuple[str, str]:
        if not isinstance(equation, sp.Eq):
            raise LedgerError(f"{name}: only an equation can be compared with code")
        full = public_name(implementation)
        right = self.definitions.unfold(equation.rhs)

        def run(code: Callable[..., Any], called: str) -> str:
            return Comparing(**comparing).run(
                f"{self.chapter}:{name}", right, equation.lhs, self.ranges, on, code, called
            )

        sentence = run(implementation, full.rsplit(".", 1)[-1])
        self._comparisons[name] = run
        return full, sentence

    def _latex(self, expression: Any) -> str:
        return to_latex(expression, self.names, self.order)

    def _add(
        self,
        name: str,
        equation: Any,
        title: str,
        source: str,
        classes: tuple[str, ...],
        evidence: tuple[str, ...],
        implementations: tuple[str, ...] = (),
        latex: str | None = None,
        printed: str | None = None,
    ) -> Entry:
        if not _NAME.match(name):
            raise ValueError(f"name must be lower case with underscores, not {name!r}")
        if latex is not None:
            read_back(latex, equation, self.names)
        text = printed or latex or self._latex(equation)
        entry = Entry(
            f"{self.chapter}:{name}",
            title,
            equation,
            text,
            classes,
            evidence,
            implementations,
            source,
        )
        known = self._entries.get(name)
        if known is not None and (known.latex, known.classes) != (entry.latex, entry.classes):
            raise DuplicateEntry(f"{entry.id} is used already, for {known.latex}")
        self._entries[name] = entry
        return entry
