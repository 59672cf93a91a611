"""The inputs of a comparison, and the comparison of an equation with the code on each of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy as sp

from pkg.ledger.errors import VacuousCheck
from pkg.ledger.evaluate import Comparison, compare, compile_expression, epsilon, spread, to_float64


@dataclass(frozen=True)
class Cases:
    """Inputs on which code and equation are compared.

    Parameters
    ----------
    name
        What they are, in the plural, for the line of evidence: "1,000 random confusion matrices".
    items
        The inputs themselves. At least one.
    bind
        From an input, the value of every symbol of the equation: `{n: cm, k: len(cm) - 1}`.
    call
        How the code is called on an input; by default `implementation(item)`.
    """

    name: str
    items: Sequence[Any]
    bind: Callable[[Any], Mapping[Any, Any]]
    call: Callable[[Callable[..., Any], Any], Any] = field(default=lambda f, item: f(item))

    def __post_init__(self) -> None:
        if len(self.items) == 0:
            raise VacuousCheck(f"{self.name}: there is no input to compare on")


class Evaluator:
    """An unfolded expression, compiled once, evaluated as an array over its free indices.

    Parameters
    ----------
    expression
        The right side of an entry with all definitions put in.
    free
        The index symbols of its left side, in order; the result has one axis for each.
    ranges
        For each index, its (first, last) value; both may use bound symbols.
    backend
        `"numpy"` (float64) or `"torch"` (the dtype of the tensors given).
    """

    def __init__(
        self,
        expression: Any,
        free: Sequence[Any],
        ranges: Mapping[Any, Any],
        backend: str = "numpy",
    ) -> None:
        missing = [str(index) for index in free if index not in ranges]
        if missing:
            raise ValueError(f"the index {missing[0]} of the left side has no range")
        self._expression, self._free, self._backend = expression, tuple(free), backend
        self._ranges = {index: ranges[index] for index in free}
        self._compiled: tuple[tuple[Any, ...], Any] | None = None

    def __call__(self, values: Mapping[Any, Any]) -> Any:
        """Return the value, given one for every symbol that is not a free index."""
        names = tuple(values)
        if self._compiled is None or self._compiled[0] != names:
            arguments = [*self._free, *names]
            self._compiled = names, compile_expression(self._expression, arguments, self._backend)
        function = self._compiled[1]
        spans = []
        for ends in self._ranges.values():
            low, high = (int(sp.sympify(end).subs(_scalars(values))) for end in ends)
            spans.append(range(low, high + 1))
        shape = [len(span) for span in spans]
        if self._backend == "torch":
            import torch

            parts = [function(*point, *values.values()) for point in itertools.product(*spans)]
            return torch.stack([torch.as_tensor(part) for part in parts]).reshape(shape)
        arrays = [_plain(value) for value in values.values()]
        with np.errstate(all="ignore"):
            grid = [function(*point, *arrays) for point in itertools.product(*spans)]
        return np.array(grid, dtype=np.float64).reshape(shape)


def _scalars(values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {s: v for s, v in values.items() if isinstance(v, int | float | sp.Basic)}


def _plain(value: Any) -> Any:
    """Arrays and tensors as float64, so that 0/0 is NaN; Python numbers as they are."""
    if isinstance(value, int | tuple | list):
        return value
    array = to_float64(value)
    return np.float64(array) if array.ndim == 0 else array


@dataclass(frozen=True)
class Comparing:
    """How an equation is held against the code: the bound, the types, what may be undefined."""

    ulps: float = 4.0
    scale: Callable[[Any], float] | None = None
    dtypes: tuple[str, ...] = ("float64",)
    undefined: str = ""
    bound: Callable[[Any], Any] | None = None
    within: str = ""

    def __post_init__(self) -> None:
        if (self.bound is None) != (not self.within):
            raise ValueError("bound and within go together: a number for each input, and its words")
        if self.bound is not None and self.dtypes != ("float64",):
            raise ValueError(f"bound is for float64 alone, got dtypes={self.dtypes}")

    def run(
        self,
        name: str,
        equation: Any,
        lhs: Any,
        ranges: Mapping[Any, Any],
        cases: Cases,
        implementation: Callable[..., Any],
        called: str,
    ) -> str:
        """Compare on all cases and types; return the sentence of evidence.

        In float64 the code may differ from the equation by `ulps` units in the last place of the
        result (or of `scale(item)`, where a sum can cancel). In a narrower type its error may be
        twice that of the equation evaluated by plain PyTorch in that type, plus one rounding, both
        against float64 on the same rounded input. Where the code rounds or draws by design,
        `bound(item)` is the largest difference and `within` says it in words.
        """
        free = tuple(lhs.indices) if isinstance(lhs, sp.Indexed) else ()
        free = tuple(index for index in free if isinstance(index, sp.Symbol))
        seen = Comparison()
        exact = Evaluator(equation, free, ranges)
        plain = Evaluator(equation, free, ranges, "torch")
        for number, item in enumerate(cases.items):
            for dtype in self.dtypes:
                given = item if dtype == "float64" else _cast(item, dtype)
                values = cases.bind(given)
                expected = exact(values)
                got = cases.call(implementation, given)
                size = spread(expected)
                if self.bound is not None:
                    bound = np.asarray(self.bound(item))
                elif dtype == "float64":
                    scale = self.scale(item) if self.scale else np.abs(np.nan_to_num(expected))
                    bound = self.ulps * epsilon("float64") * np.asarray(scale)
                else:
                    rounded = to_float64(plain(_cast(values, dtype)))
                    error = spread(np.nan_to_num(rounded - expected))
                    bound = np.asarray(2 * error + epsilon(dtype) * size)
                where = f"{name}, {called} on {cases.name}, input {number}, {dtype}"
                compare(
                    got,
                    expected,
                    bound=bound,
                    undefined=bool(self.undefined),
                    seen=seen,
                    where=where,
                )
        seen.require_content(f"{name}: {called} on {cases.name}")
        return self._sentence(called, cases)

    def _sentence(self, called: str, cases: Cases) -> str:
        exact = "equals it exactly" if self.ulps == 0 else f"agrees within {self.ulps:g} ulp"
        if self.within:
            exact = f"agrees within {self.within}"
        text = f"`{called}` {exact} on {cases.name}, float64"
        narrow = [dtype for dtype in self.dtypes if dtype != "float64"]
        if narrow:
            text += f"; within twice plain PyTorch's error in {', '.join(narrow)}"
        if self.undefined:
            text += f"; NaN exactly where {self.undefined}"
        return text + "."


def _cast(value: Any, dtype: str) -> Any:
    """Round every floating tensor inside `value` to `dtype`; leave the rest alone."""
    import torch

    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(getattr(torch, dtype))
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return torch.from_numpy(value).to(getattr(torch, dtype))
    if isinstance(value, Mapping):
        return {key: _cast(part, dtype) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_cast(part, dtype) for part in value)
    return value
