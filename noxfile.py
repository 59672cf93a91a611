"""The project's commands. `python -m nox -l` lists them; the README shows the two that matter.

All sessions share one virtual environment, `.nox/shared`: PyTorch alone is over a gigabyte, and
nox would make one environment per session. It is rebuilt when pyproject.toml or constraints.txt
changes. The pins live in constraints.txt and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["tests", "book"]
nox.options.default_venv_backend = "none"

ROOT = Path(__file__).parent
VENV = ROOT / ".nox" / "shared"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PINS = ("pyproject.toml", "constraints.txt")
JOBS = str(min(os.cpu_count() or 1, 4))


def _environment(session: nox.Session) -> None:
    """Make the shared environment, or use the one that matches the pins."""
    digest = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in PINS))
    wanted = f"{digest.hexdigest()} {sys.version}"
    stamp = VENV / "stamp"
    if not stamp.is_file() or stamp.read_text() != wanted:
        session.run(sys.executable, "-m", "venv", "--clear", str(VENV), external=True)
        session.log("installing the environment: a few minutes, once")
        for what in (["--upgrade", "pip"], ["-e", ".[site,tests,lint]"]):
            _run(session, "python", "-m", "pip", "install", "-q", "-c", "constraints.txt", *what)
        stamp.write_text(wanted)
    session.env["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    # One thread a process: the test runner already uses every core.
    session.env.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    session.env["PYTHONHASHSEED"] = "0"


def _run(session: nox.Session, program: str, *args: str, **keywords: object) -> None:
    session.run(str(BIN / program), *args, external=True, **keywords)  # type: ignore[arg-type]


def _pytest(session: nox.Session, *args: str, **env: str | None) -> None:
    _run(session, "python", "-m", "pytest", *args, env=env)


@nox.session
def tests(session: nox.Session) -> None:
    """Every test: package, doctests, kernels on the CPU, notebooks executed and compared."""
    _environment(session)
    if session.posargs:
        _pytest(session, *session.posargs)
        return
    _pytest(
        session,
        "-n",
        JOBS,
        "--dist",
        "loadfile",
        "--doctest-modules",
        "pkg",
        "tests",
        "--ignore=tests/cuda",
        "--ignore=tests/site",
        "--ignore=pkg/cuda",
    )
    # The chapters' data, so that no download's messages land among their outputs.
    _run(session, "python", "-m", "pkg.data", "fetch", "all")
    # Kernels need processes of their own: the interpreter is chosen when a kernel is imported.
    _pytest(session, "tests/cuda", "-m", "interpreter", TRITON_INTERPRET="1")
    _pytest(session, "tests/cuda", "-m", "gate")
    _pytest(session, "tests/cuda", "-m", "not interpreter and not gate and not gpu")
    _pytest(
        session,
        "-p",
        "tests.notebooks.nbval_figures",
        "--nbval",
        "--nbval-sanitize-with",
        "tests/notebooks/sanitize.cfg",
        "-n",
        JOBS,
        "--dist",
        "loadfile",
        "book/chapters",
    )


@nox.session
def book(session: nox.Session) -> None:
    """Build the website from the notebooks' stored outputs: _build/html/index.html."""
    _environment(session)
    _run(session, "jupyter-book", "build", ".", "-W", "-n", "--keep-going", *session.posargs)
    session.log(f"the book: {ROOT / '_build' / 'html' / 'index.html'}")


@nox.session(default=False)
def site(session: nox.Session) -> None:
    """Open every page of the built website in a real browser. Needs Chromium, and `book` first."""
    _environment(session)
    if not (ROOT / "_build" / "html" / "index.html").is_file():
        session.error("there is no website yet: run `python -m nox -s book` first")
    _pytest(
        session, "tests/site", "-m", "site", "-n", JOBS, "--dist", "loadscope", *session.posargs
    )


@nox.session(default=False)
def refresh(session: nox.Session) -> None:
    """Execute chapters (all, or those named) in parallel and store their outputs."""
    _environment(session)
    _run(session, "python", "-m", "pkg.data", "fetch", "all")
    _run(session, "python", "book/refresh.py", *session.posargs)


@nox.session(default=False)
def mutants(session: nox.Session) -> None:
    """Make mistakes on purpose and record who notices: `nox -s mutants -- segmentation_metrics`."""
    _environment(session)
    chapters = sorted(path.stem for path in (ROOT / "book" / "chapters").glob("*.ipynb"))
    _run(session, "python", "-m", "tests.mutants", "--store", *(session.posargs or chapters))


@nox.session(default=False)
def lint(session: nox.Session) -> None:
    """Format, lint, types, and the rules for docstrings."""
    _environment(session)
    _run(session, "ruff", "format", "--check", ".")
    _run(session, "ruff", "check", ".")
    _run(session, "mypy")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Benchmarks against the peers, on this machine: `nox -s bench -- segmentation_metrics`."""
    _environment(session)
    session.env.pop("OMP_NUM_THREADS", None)
    _run(session, "python", "-m", "benchmarks", *session.posargs)


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """What needs a CUDA device. Says so and skips where there is none."""
    _environment(session)
    if shutil.which("nvidia-smi") is None:
        session.skip("no CUDA device here (nvidia-smi is not to be found)")
    _pytest(session, "tests/cuda", "-m", "gpu", *session.posargs)
    _run(session, "python", "-m", "benchmarks", "--device", "cuda")
