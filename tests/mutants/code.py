"""Code mutants: each change of `pkg/algos/<slug>` against the chapter first, then against its tests."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from book.recordings.origin import chapter_files
from tests.mutants import processes
from tests.mutants.mutations import Mutant, mutants
from tests.mutants.notebook import ROOT, Runner, Shown, cells
from tests.mutants.processes import KILLED, SURVIVED, UNFIT, Job
from tests.mutants.swapping import Importing, Living, Unfit, pass_on, swap, watch

Lines = dict[str, set[int]]


@dataclass
class Verdicts:
    """Who killed which mutant."""

    chapter: dict[Mutant, str] = field(default_factory=dict)
    tests: dict[Mutant, str] = field(default_factory=dict)
    survived: list[Mutant] = field(default_factory=list)


@dataclass(frozen=True)
class Baseline:
    """What the unchanged code does in one part (a cell, or a test)."""

    lines: Lines
    seconds: float
    shown: Shown | None = None

    def covers(self, mutant: Mutant) -> bool:
        """Tell whether this part executes the mutant's statement."""
        first, last = mutant.lines
        return not self.lines.get(mutant.path, set()).isdisjoint(range(first, last + 1))


def sources(slug: str) -> list[Path]:
    """Return the files of a chapter's algorithm."""
    return [ROOT / file for file in chapter_files("pkg/algos", slug)]


def all_mutants(slug: str) -> list[Mutant]:
    """Return every mutant of a chapter's code."""
    return [mutant for path in sources(slug) for mutant in mutants(path, ROOT)]


def warm() -> None:
    """Import what is slow and is no target, once, before the first fork."""
    import matplotlib.pyplot
    import scipy.ndimage
    import sklearn.datasets
    import sympy
    import torch
    import torch._dynamo

    # A pool of threads does not survive a fork: what needs it would wait for ever.
    torch.set_num_threads(1)
    del matplotlib, scipy, sklearn, sympy


def judge(slug: str, chosen: Sequence[Mutant], at_once: int, say: Any) -> Verdicts:
    """Try all `chosen` mutants: by the chapter, and what it lets pass by the tests."""
    warm()
    verdicts = Verdicts()
    say("running the chapter once, to see which cell runs which line")
    base = processes.call(lambda: _chapter_baseline(slug))
    for mutant, word in processes.call(lambda: _by_chapter(slug, chosen, base, at_once, say)):
        verdicts.chapter[mutant] = word
    late = [m for m in chosen if m not in verdicts.chapter]
    say(f"the chapter killed {len(verdicts.chapter)} of {len(chosen)}; now the tests")
    for mutant, word in processes.call(lambda: _by_tests(slug, late, at_once, say)):
        verdicts.tests[mutant] = word
    verdicts.survived = [m for m in late if m not in verdicts.tests]
    return verdicts


# ------------------------------------------------------------------ the chapter


def _chapter_baseline(slug: str) -> list[Baseline]:
    found = []
    with _Measuring(slug) as measured:
        runner = Runner()
        for number, source in enumerate(cells(slug)):
            measured.part(f"part{number}")
            shown, seconds = runner.run(source)
            if shown.error:
                raise RuntimeError(f"{slug}, cell {number + 1} fails as it is: {shown.error}")
            found.append((seconds, shown))
    return [
        Baseline(measured.lines.get(f"part{i}", {}), seconds, shown)
        for i, (seconds, shown) in enumerate(found)
    ]


def _by_chapter(
    slug: str, chosen: Sequence[Mutant], base: list[Baseline], at_once: int, say: Any
) -> list[tuple[Mutant, str]]:
    killed: dict[Mutant, str] = {}
    imported = [m for m in chosen if not m.function]
    total = sum(part.seconds for part in base)
    jobs = (Job(m, lambda m=m: _whole(slug, m, base), 60 + 4 * total) for m in imported)
    for mutant, word in processes.outcomes(jobs, at_once=at_once):
        if word != "survived":
            killed[mutant] = word
    runner, sources_of_cells = Runner(), cells(slug)
    for number, (source, part) in enumerate(zip(sources_of_cells, base, strict=True)):
        waiting = [m for m in chosen if m.function and m not in killed and part.covers(m)]
        living = Living.now(ROOT) if waiting else None
        jobs = (
            Job(m, lambda m=m: _cell(runner, source, m, part, living), 10 + 5 * part.seconds)  # noqa: B023
            for m in waiting
        )
        for mutant, word in processes.outcomes(jobs, at_once=at_once):
            if word in ("killed", "timeout"):
                killed[mutant] = word
        if waiting:
            say(f"cell {number + 1} of {len(base)}: {len(killed)} of {len(chosen)} are dead")
        runner.run(source)
    return list(killed.items())


def _cell(
    runner: Runner, source: str, mutant: Mutant, part: Baseline, living: Living | None
) -> int:
    """Run one cell with the mutant swapped in. In a forked child."""
    pass_on(mutant, ROOT)
    try:
        swap(mutant, ROOT, living)
    except Unfit:
        return UNFIT
    shown, _ = runner.run(source)
    return KILLED if part.shown is None or part.shown.difference(shown) else SURVIVED


def _whole(slug: str, mutant: Mutant, base: list[Baseline]) -> int:
    """Run the whole chapter with the mutant imported. In a forked child."""
    pass_on(mutant, ROOT)
    Importing(mutant, ROOT).install()
    runner = Runner()
    for source, part in zip(cells(slug), base, strict=True):
        shown, _ = runner.run(source)
        if part.shown is None or part.shown.difference(shown):
            return KILLED
    return SURVIVED


# ------------------------------------------------------------------ the tests


class _Watching:
    """A pytest plugin: one coverage context and one time for every test."""

    def __init__(self, measured: Any = None) -> None:
        self.measured, self.seconds = measured, defaultdict(float)
        self.failed: list[str] = []
        self.compiling: set[str] = set()
        self._now = ""

    @contextlib.contextmanager
    def noting_compilers(self) -> Iterator[None]:
        """Note the tests that compile: what a compiler reads of a function, nobody sees executed."""
        import torch

        original = torch.compile

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.compiling.add(self._now)
            return original(*args, **kwargs)

        torch.compile = noted
        try:
            yield
        finally:
            torch.compile = original

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._now = nodeid
        if self.measured is not None:
            self.measured.part(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def run_tests(*arguments: str, plugin: Any = None) -> int:
    """Run pytest in this process, up to the first failure; return its status."""
    import pytest

    os.chdir(ROOT)
    plugins = [] if plugin is None else [plugin]
    return int(pytest.main(["-q", "-x", "--no-header", "-p", "no:xdist", *arguments], plugins))


def test_files(slug: str) -> list[str]:
    """Return what `nox -s tests` runs for this chapter, but kernels and the chapter itself."""
    found = sorted((ROOT / "tests").glob(f"*/test_{slug}*.py"))
    return ["--doctest-modules", *map(str, [*found, *sources(slug)]), "-m", _PLAIN]


_PLAIN = "not interpreter and not gate and not gpu"


def _by_tests(
    slug: str, late: Sequence[Mutant], at_once: int, say: Any
) -> list[tuple[Mutant, str]]:
    killed: dict[Mutant, str] = {}
    imported = [m for m in late if not m.function]
    jobs = (Job(m, lambda m=m: _imported_tests(slug, m), 600) for m in imported)
    for mutant, word in processes.outcomes(jobs, at_once=at_once):
        if word != "survived":
            killed[mutant] = word
    with _Measuring(slug) as measured, silence():
        watching = _Watching(measured)
        with watching.noting_compilers():
            status = run_tests(*test_files(slug), plugin=watching)
    if status:
        raise RuntimeError(f"{slug}: the tests fail as they are: {watching.failed}")
    base = {test: Baseline(measured.lines.get(test, {}), s) for test, s in watching.seconds.items()}
    say(f"{len(base)} tests")

    living = Living.now(ROOT)

    def jobs_of(waiting: Sequence[Mutant]) -> Iterator[Job]:
        for mutant in waiting:
            seen = {t for t in base if base[t].covers(mutant)} | watching.compiling
            covering = sorted(seen, key=_seconds(base))
            if covering:
                limit = 30 + 4 * sum(base[test].seconds for test in covering)
                yield Job(mutant, lambda m=mutant, c=covering: _swapped_tests(m, c, living), limit)

    swapped = processes.outcomes(jobs_of([m for m in late if m.function]), at_once=at_once)
    for done, (mutant, word) in enumerate(swapped, 1):
        if word in ("killed", "timeout"):
            killed[mutant] = word
        if done % 20 == 0:
            say(f"{done} of {len(late)} tried by the tests, {len(killed)} killed")
    return list(killed.items())


def _seconds(base: dict[str, Baseline]) -> Any:
    return lambda test: base[test].seconds


def _swapped_tests(mutant: Mutant, tests: list[str], living: Living) -> int:
    pass_on(mutant, ROOT)
    try:
        swap(mutant, ROOT, living)
    except Unfit:
        return UNFIT
    return KILLED if run_tests("--doctest-modules", *tests) else SURVIVED


def _imported_tests(slug: str, mutant: Mutant) -> int:
    pass_on(mutant, ROOT)
    Importing(mutant, ROOT).install()
    # pytest rewrites the assertions of every file it is given, and so would import the true source.
    return KILLED if run_tests("--assert=plain", *test_files(slug)) else SURVIVED


# ------------------------------------------------------------------ coverage


class _Measuring:
    """Which lines of a chapter's algorithm each part of a run executes, its processes' included."""

    def __init__(self, slug: str) -> None:
        self.files = [str(path) for path in sources(slug)]
        self.lines: dict[str, Lines] = {}

    def __enter__(self) -> _Measuring:
        import coverage

        self._folder = tempfile.TemporaryDirectory()
        watch(Path(self._folder.name), self.files)
        self._recorder = coverage.Coverage(data_file=None, include=self.files, config_file=False)
        self._recorder.start()
        return self

    def part(self, name: str) -> None:
        """Count what is executed from now on for this part."""
        self._recorder.switch_context(name)
        os.environ["CHECKED_PART"] = name

    def __exit__(self, *_: object) -> None:
        import coverage

        self._recorder.stop()
        del os.environ["CHECKED_LINES"]
        self._add(self._recorder.get_data())
        for path in Path(self._folder.name).iterdir():
            data = coverage.CoverageData(str(path))
            data.read()
            self._add(data)
        self._folder.cleanup()

    def _add(self, data: Any) -> None:
        for file in data.measured_files():
            path = str(Path(file).relative_to(ROOT))
            for line, contexts in data.contexts_by_lineno(file).items():
                for context in contexts:
                    self.lines.setdefault(context, {}).setdefault(path, set()).add(line)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Let nothing that is printed reach the terminal."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
