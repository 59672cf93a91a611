"""Puts a mutant in place: into a process that runs already, or into one that is about to import it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import gc
import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from tests.mutants.mutations import Mutant, mutated

#: What a Python runs at its start if this folder is on its path.
CHILDREN = Path(__file__).resolve().parent / "children"


class Unfit(Exception):
    """The mutant cannot be put into functions that exist already; import it instead."""


@dataclasses.dataclass(frozen=True)
class Living:
    """What lives in this process and can be swapped or must be forgotten.

    To look through every object takes a second in a process that has run a chapter, so it is done
    once, before its children are made.
    """

    functions: tuple[FunctionType, ...]
    caches: tuple[Any, ...]

    @classmethod
    def now(cls, root: Path) -> Living:
        """Find the functions of the package at `root`, and every cache of the package."""
        functions, caches, package = [], [], str(root)
        for thing in gc.get_objects():
            if type(thing) is FunctionType:  # `isinstance` would wake proxies that warn
                if thing.__code__.co_filename.startswith(package):
                    functions.append(thing)
            elif type(thing) is functools._lru_cache_wrapper and str(
                getattr(thing, "__module__", "")
            ).startswith("pkg"):
                caches.append(thing)
        return cls(tuple(functions), tuple(caches))


def swap(mutant: Mutant, root: Path, living: Living | None = None) -> None:
    """Give every living function of the mutant's source its changed code, and empty the caches.

    Operators, modules and notebooks hold the functions themselves, so a changed module would not
    reach them; changed code does. `living` is what `Living.now(root)` found, if it was asked already.

    Raises
    ------
    Unfit
        If the change is at module level, or no function with that code lives.
    """
    path = root / mutant.path
    if not mutant.function:
        raise Unfit(f"{mutant.name} runs at import")
    tree = mutated(path, mutant.number)
    module = compile(tree, str(path), "exec", dont_inherit=True)
    codes = {
        _identity(code): code
        for code in _nested(module)
        if code.co_qualname == mutant.function
        or code.co_qualname.startswith(f"{mutant.function}.<locals>")
    }
    living = living or Living.now(root)
    alive = [
        function
        for function in living.functions
        if function.__code__.co_filename == str(path) and _identity(function.__code__) in codes
    ]
    if not any(function.__qualname__ == mutant.function for function in alive):
        raise Unfit(f"no function {mutant.function} of {mutant.path} is alive")
    for function in alive:
        try:
            function.__code__ = codes[_identity(function.__code__)]
        except ValueError as error:  # the change removed the last use of a variable from outside
            raise Unfit(str(error)) from error
        if function.__qualname__ == mutant.function:
            _set_defaults(function, tree)
    for cache in living.caches:  # what the true code found is no evidence for the changed
        cache.cache_clear()


def pass_on(mutant: Mutant, root: Path) -> None:
    """Let every Python that this process starts import the mutant too, as a ring of processes does."""
    _greet()
    os.environ["CHECKED_MUTANT"] = json.dumps([dataclasses.asdict(mutant), str(root)])
    os.environ["CHECKED_ROOT"] = str(CHILDREN.parents[2])


def watch(folder: Path, files: list[str]) -> None:
    """Let every Python that this process starts write to `folder` which lines of `files` it ran.

    `CHECKED_PART` in the environment names the part of the run that it counts for.
    """
    _greet()
    os.environ["CHECKED_LINES"] = str(folder)
    os.environ["CHECKED_FILES"] = os.pathsep.join(files)


def _greet() -> None:
    paths = [str(CHILDREN), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def received() -> tuple[Mutant, Path]:
    """Return the mutant that the parent process passed on, and its root."""
    fields, root = json.loads(os.environ["CHECKED_MUTANT"])
    return Mutant(**fields | {"lines": tuple(fields["lines"])}), Path(root)


def _identity(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def _nested(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _nested(constant)


def _set_defaults(function: FunctionType, tree: ast.Module) -> None:
    """Evaluate the defaults of the changed source anew."""
    node: Any = tree
    for name in function.__qualname__.split("."):
        named = [n for n in node.body if getattr(n, "name", "") == name]
        if not named:
            return
        node = named[-1]
    names = function.__globals__
    if node.args.defaults:
        function.__defaults__ = tuple(_value(d, names) for d in node.args.defaults)
    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    keywords = {a.arg: _value(d, names) for a, d in pairs if d is not None}
    if keywords:
        function.__kwdefaults__ = keywords


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    expression = ast.fix_missing_locations(ast.Expression(node))
    return eval(compile(expression, "<default>", "eval"), names)


class Importing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of the package in its mutated form."""

    def __init__(self, mutant: Mutant, root: Path, folder: Path | None = None) -> None:
        self.path = root / mutant.path
        parts = list(Path(mutant.path).with_suffix("").parts)
        self.module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.tree = mutated(self.path, mutant.number)
        # A kernel's compiler reads its source from the file, so there must be one.
        self.file = self.path
        if folder is not None:
            self.file = folder / self.path.name
            self.file.write_text(ast.unparse(self.tree), encoding="utf-8")
            self.tree = ast.parse(self.file.read_text(encoding="utf-8"))

    def install(self) -> None:
        """Come before every other finder. The module must not have been imported yet."""
        if self.module in sys.modules:
            raise Unfit(f"{self.module} was imported already")
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Answer for the one module."""
        if name != self.module:
            return None
        package = self.path.name == "__init__.py"
        spec = importlib.machinery.ModuleSpec(name, self, origin=str(self.file), is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [str(self.path.parent)]
        return spec

    def create_module(self, spec: Any) -> None:
        """Use an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the mutated source."""
        exec(compile(self.tree, str(self.file), "exec", dont_inherit=True), module.__dict__)
