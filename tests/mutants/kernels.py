"""Kernel mutants: each change inside a Triton kernel against the interpreter's tests."""

from __future__ import annotations

import ast
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from book.recordings.origin import chapter_files
from tests.mutants import processes
from tests.mutants.code import run_tests, silence, warm
from tests.mutants.mutations import Mutant, mutants
from tests.mutants.notebook import ROOT
from tests.mutants.processes import KILLED, SURVIVED, Job
from tests.mutants.swapping import Importing


def kernel_mutants(slug: str) -> list[Mutant]:
    """Return the mutants that lie inside functions that Triton compiles."""
    found = []
    for path in [ROOT / file for file in chapter_files("pkg/cuda", slug)]:
        compiled = _compiled(path)
        found += [m for m in mutants(path, ROOT) if m.function in compiled]
    return found


def judge_kernels(
    slug: str, chosen: list[Mutant], at_once: int, say: Any
) -> list[tuple[Mutant, str]]:
    """Return (mutant, `killed` | `timeout` | `survived`) for each of them."""
    os.environ["TRITON_INTERPRET"] = "1"
    return processes.call(lambda: _judge(slug, chosen, at_once, say))  # type: ignore[no-any-return]


def _judge(slug: str, chosen: list[Mutant], at_once: int, say: Any) -> list[tuple[Mutant, str]]:
    import triton  # noqa: F401  before the first fork, once

    warm()
    files = [str(path) for path in sorted((ROOT / "tests/cuda").glob(f"test_{slug}*.py"))]
    found: list[tuple[Mutant, str]] = []
    say("the kernels' tests as they are")
    start = time.monotonic()
    if processes.call(lambda: _silent_tests(files)):
        raise RuntimeError(f"{slug}: the kernels' tests fail as they are")
    # A mutant that survives runs all of them; only one that takes far longer hangs.
    limit = 60 + 4 * (time.monotonic() - start)
    with tempfile.TemporaryDirectory() as folder:
        jobs = (Job(m, lambda m=m: _try(m, files, Path(folder)), limit) for m in chosen)
        for mutant, word in processes.outcomes(jobs, at_once=at_once):
            found.append((mutant, word))
            if len(found) % 10 == 0:
                alive = sum(word == "survived" for _, word in found)
                say(f"{len(found)} of {len(chosen)} kernel mutants tried, {alive} alive")
    return found


def _silent_tests(files: list[str]) -> int:
    with silence():
        return run_tests("-m", "interpreter", *files)


def _try(mutant: Mutant, files: list[str], folder: Path) -> int:
    own = folder / str(os.getpid())
    own.mkdir()
    Importing(mutant, ROOT, own).install()
    return KILLED if run_tests("-m", "interpreter", *files) else SURVIVED


def _compiled(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
