"""What a recording says of its origin: a hash of the code it came from, the commit, the machine."""

from __future__ import annotations

import ast
import datetime
import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
#: Files of code; or, for each of them, the definitions that count (none named: all of the file).
Code = Iterable[str] | Mapping[str, Sequence[str]]


def made_by(code: Code, cores: str = "one core") -> dict[str, Any]:
    """Return what every record says of its origin.

    To be asked for at the beginning of a long run, since the code may change meanwhile.
    """
    import torch  # here, so that the site's pages can compare fingerprints without it

    return {
        "commit": commit(),
        "code": fingerprint(code),
        "machine": f"{platform.machine()}, {cores}",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "date": datetime.date.today().isoformat(),
    }


def chapter_files(folder: str, slug: str, root: Path = ROOT) -> list[str]:
    """Return the files of a chapter in `folder`: one module, or all modules of a package.

    Raises
    ------
    LookupError
        If there is neither.
    """
    place = root / folder / slug
    files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    if not files or not files[0].is_file():
        raise LookupError(f"{folder} has no module {slug}")
    return [str(file.relative_to(root)) for file in files]


def fingerprint(code: Code, root: Path = ROOT) -> str:
    """Return a hash of code, blind to its layout, comments and docstrings.

    Raises
    ------
    LookupError
        If a named definition is not there: what was renamed would otherwise never be noticed again.
    """
    total = hashlib.sha256()
    for file, names in dict(code if isinstance(code, Mapping) else dict.fromkeys(code, ())).items():
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        parts: list[ast.AST] = [tree]
        if names:
            found = definitions(tree)
            missing = set(names) - set(found)
            if missing:
                raise LookupError(f"{file} does not define {', '.join(sorted(missing))}")
            parts = [found[name] for name in names]
        for part in parts:
            total.update(ast.dump(_undocumented(part)).encode())
    return total.hexdigest()


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Return the functions, classes and assigned names at the top of a module."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {x.id: node for t in targets for x in ast.walk(t) if isinstance(x, ast.Name)}
    return found


def commit() -> str:
    """Return the short name of the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return told.stdout.strip()


def _undocumented(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            first = body[0].value
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                body[0] = ast.Expr(ast.Constant(""))
    return tree
