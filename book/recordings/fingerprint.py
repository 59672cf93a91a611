"""What a recording says of its origin: a hash of the code it came from, and the commit."""

from __future__ import annotations

import ast
import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def fingerprint(code: Iterable[str], root: Path = ROOT) -> str:
    """Return a hash of files of code, blind to their layout, comments and docstrings."""
    total = hashlib.sha256()
    for name in code:
        tree = ast.parse((root / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                first = body[0].value
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    body[0] = ast.Expr(ast.Constant(""))
        total.update(ast.dump(tree).encode())
    return total.hexdigest()


def commit() -> str:
    """Return the short name of the commit that is checked out."""
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()
