"""Small changes of Python code, one at a time: each is a mistake that somebody could have made.

PyTorch takes seconds to import, so a mutant is not a file that a new process reads. It is a changed
syntax tree, compiled in a forked process. Mutation libraries (cosmic-ray 8.7 and mutmut 3.8 were
tried) start a process for each mutant or rewrite every function, which would break operators that
were registered and kernels that are compiled from their source.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
}  # fmt: skip
_COMPARISON: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
#: Calls whose loss goes unnoticed in careless code: what they do to a tensor's layout or range.
_REMOVED = {
    "abs", "clamp", "clamp_", "clamp_max", "clamp_min", "conj", "expm1", "flip", "log1p", "movedim",
    "nan_to_num", "permute", "swapaxes", "t", "transpose", "triu", "tril", "maximum", "minimum",
}  # fmt: skip
_EXTREMA = {
    "max": "min", "min": "max", "amax": "amin", "amin": "amax", "argmax": "argmin",
    "maximum": "minimum", "minimum": "maximum", "any": "all", "all": "any", "ceil": "floor",
    "floor": "ceil", "logical_or": "logical_and", "logical_and": "logical_or",
}  # fmt: skip
#: Calls whose first two arguments may stand in either order, or of which a swap is no slip of the pen.
_ANY_ORDER = {
    "min", "max", "minimum", "maximum", "fmin", "fmax", "gcd", "lcm", "logaddexp", "equal", "isclose",
    "allclose", "logical_and", "logical_or", "logical_xor", "isinstance",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes
    ----------
    path
        The file, relative to the repository.
    function
        Qualified name of the outermost function that holds it; empty at the level of a module or a
        class, where code runs only when it is imported.
    line
        First line of the changed expression.
    lines
        First and last line of the statement around it (of the function, for a default): where
        one of them is executed, the change can show.
    kind
        What was done: `arithmetic`, `dropped term`, `constant`, ...
    before, after
        The changed statement, or its first line, as Python prints it.
    number
        Place in the order in which `mutants` yields them.
    """

    path: str
    function: str
    line: int
    lines: tuple[int, int]
    kind: str
    before: str
    after: str
    number: int

    @property
    def name(self) -> str:
        """What a reader sees: the file, the line, and the change."""
        return f"{self.path}:{self.line}: `{self.before}` became `{self.after}`"


def mutants(path: Path, root: Path) -> list[Mutant]:
    """Return every mutant of a file, in a fixed order."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    relative = str(path.relative_to(root))
    found = []
    for number, (place, replacement, kind) in enumerate(_changes(tree)):
        home = _home(tree, place.node)
        before, after = _shown(home.statement, place, replacement)
        line = getattr(place.node, "lineno", home.statement.lineno)
        found.append(Mutant(relative, home.function, line, home.lines, kind, before, after, number))
    return found


def mutated(path: Path, number: int) -> ast.Module:
    """Return the syntax tree of a file with the change of that number made."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for at, (place, replacement, _) in enumerate(_changes(tree)):
        if at == number:
            place.put(replacement)
            return ast.fix_missing_locations(tree)
    raise ValueError(f"number must be that of a mutant of {path}, got {number}")


@dataclass(frozen=True)
class _Place:
    """Where a node hangs: `owner.field`, or an element of it."""

    owner: ast.AST
    field: str
    index: int | None
    node: ast.AST

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.owner, self.field, node)
        else:
            getattr(self.owner, self.field)[self.index] = node


_SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "type_params", "type_comment"}
# What a raise says, and text in general, is no mathematics; assertions for the reader's type checker
# cannot fail.
_SKIPPED_NODES = (ast.Raise, ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)


def _walk(node: ast.AST) -> Iterator[_Place]:
    for field, value in ast.iter_fields(node):
        if field in _SKIPPED_FIELDS:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, _SKIPPED_NODES):
                continue
            if _is_docstring(child) or _is_names(child) or _is_strict(child):
                continue
            yield _Place(node, field, index, child)
            yield from _walk(child)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_names(node: ast.AST) -> bool:
    """`__all__ = [...]`, type aliases and the like: they compute nothing."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return False
    target = node.targets[0]
    return isinstance(target, ast.Name) and target.id in ("__all__", "RESULTS")


def _is_strict(node: ast.AST) -> bool:
    """`zip(..., strict=True)` guards against a programmer's slip, and computes nothing."""
    return isinstance(node, ast.keyword) and node.arg == "strict"


def _changes(tree: ast.Module) -> Iterator[tuple[_Place, ast.AST, str]]:
    for place in _walk(tree):
        for replacement, kind in _of_node(place):
            yield place, replacement, kind


def _of_node(place: _Place) -> Iterator[tuple[ast.AST, str]]:
    node = place.node
    if isinstance(node, ast.BinOp):
        yield from _of_arithmetic(node)
    elif isinstance(node, ast.AugAssign) and type(node.op) in _ARITHMETIC:
        yield _with(node, op=_ARITHMETIC[type(node.op)]()), "arithmetic"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        yield node.operand, "negation"
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISON:
        yield _with(node, ops=[_COMPARISON[type(node.ops[0])](), *node.ops[1:]]), "comparison"
    elif isinstance(node, ast.BoolOp):
        other = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield _with(node, op=other), "boolean"
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node, place)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif isinstance(node, ast.Attribute) and node.attr in ("T", "mT", "H", "mH"):
        yield node.value, "removed"


def _of_arithmetic(node: ast.BinOp) -> Iterator[tuple[ast.AST, str]]:
    if isinstance(node.left, ast.Constant) and isinstance(node.left.value, str):
        return
    kind = type(node.op)
    if kind in _ARITHMETIC:
        yield _with(node, op=_ARITHMETIC[kind]()), "arithmetic"
    if kind in (ast.Add, ast.Sub, ast.Mult, ast.Div):
        yield node.left, "dropped term"
    if kind in (ast.Add, ast.Mult):
        yield node.right, "dropped term"
    if kind is ast.MatMult:
        yield _with(node, left=node.right, right=node.left), "swapped"


def _of_constant(node: ast.Constant, place: _Place) -> Iterator[tuple[ast.AST, str]]:
    value = node.value
    default = place.field in ("defaults", "kw_defaults")
    kind = "default" if default else "constant"
    if isinstance(value, bool):
        yield ast.Constant(not value), kind
    elif isinstance(value, int):
        yield ast.Constant(value + 1), kind
        yield ast.Constant(value - 1), kind
    elif isinstance(value, float):
        yield ast.Constant(value + 1.0), kind


def _of_call(node: ast.Call) -> Iterator[tuple[ast.AST, str]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    plain = [a for a in node.args if not isinstance(a, ast.Starred)]
    method = isinstance(node.func, ast.Attribute) and not (
        isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("torch", "np", "math", "tl")
    )
    if name in _REMOVED:
        if method:
            yield node.func.value, "removed"  # type: ignore[attr-defined]
        elif plain:
            yield plain[0], "removed"
    if name in _EXTREMA:
        other = copy.copy(node.func)
        setattr(other, "attr" if isinstance(other, ast.Attribute) else "id", _EXTREMA[name])
        yield _with(node, func=other), "extremum"
    can_swap = len(plain) >= 2 and len(plain) == len(node.args) and name not in _ANY_ORDER
    if can_swap and ast.dump(plain[0]) != ast.dump(plain[1]):
        yield _with(node, args=[plain[1], plain[0], *plain[2:]]), "swapped"


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


@dataclass(frozen=True)
class _Home:
    """The statement that holds a node, its lines, and the outermost function around it."""

    statement: ast.stmt
    function: str
    lines: tuple[int, int]


def _home(tree: ast.Module, wanted: ast.AST) -> _Home:
    found = _search(tree, wanted, (), None, None)
    assert found is not None, "every changed node hangs in a statement of the tree"
    return found


def _search(
    node: ast.AST, wanted: ast.AST, classes: tuple[str, ...], outer: Any, statement: Any
) -> _Home | None:
    if node is wanted:
        name = ".".join((*classes, outer.name)) if outer is not None else ""
        return _Home(statement, name, _lines(statement, outer))
    for child in ast.iter_child_nodes(node):
        within, function = classes, outer
        if outer is None and isinstance(child, ast.ClassDef):
            within = (*classes, child.name)
        elif outer is None and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            function = child
        here = child if isinstance(child, ast.stmt) else statement
        found = _search(child, wanted, within, function, here)
        if found is not None:
            return found
    return None


def _lines(statement: ast.stmt, function: Any) -> tuple[int, int]:
    """Return the lines whose execution shows that the changed code runs."""
    if statement is function:  # a default: it is used wherever the function is
        return function.body[0].lineno, function.end_lineno
    body = getattr(statement, "body", None)
    end = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
    return statement.lineno, max(end, statement.lineno)


def _shown(statement: ast.stmt, place: _Place, replacement: ast.AST) -> tuple[str, str]:
    """Return the first line that differs between the statement before and after."""
    before = ast.unparse(statement).splitlines()
    place.put(replacement)
    try:
        after = ast.unparse(ast.fix_missing_locations(statement)).splitlines()
    finally:
        place.put(place.node)
    # `statement` may itself be the changed node (an augmented assignment).
    if place.node is statement:
        after = ast.unparse(ast.fix_missing_locations(replacement)).splitlines()
    for a, b in zip(before, after, strict=False):
        if a != b:
            return a.strip(), b.strip()
    return before[0].strip(), after[0].strip()
