"""Keep the site to itself: MathJax from an installed package, and no script from elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from shutil import copy2
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.typing import ExtensionMetadata

#: The one file of MathJax that is shipped: TeX in, SVG out, every TeX package, no font files.
MATHJAX = "tex-svg-full.js"

_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="0; url={target}">
<link rel="icon" href="_static/favicon.svg">
<title>{title}</title>
</head>
<body><main><h1>{title}</h1><p><a href="{target}">Open the book</a></p></main></body>
</html>
"""


def mathjax_source() -> Path:
    """Return the folder of the installed MathJax.

    Raises
    ------
    RuntimeError
        If the package `sphinx-mathjax-offline` is not installed.
    """
    # The module's name has hyphens, so that it can be found but not imported by a statement.
    found = importlib.util.find_spec("sphinx-mathjax-offline")
    if found is None or found.origin is None:
        raise RuntimeError("sphinx-mathjax-offline is not installed; see constraints.txt")
    return Path(found.origin).parent / "static" / "mathjax"


def _configure(app: Sphinx, config: Config) -> None:
    del app
    config.mathjax_path = f"mathjax/{MATHJAX}"


def _filter_scripts(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Drop thebe (it loads from elsewhere and defines one constant twice) and repeated scripts."""
    del app, pagename, templatename, doctree
    seen: set[tuple[str, str]] = set()
    kept = []
    for script in context.get("script_files", []):
        name = str(getattr(script, "filename", script) or "")
        body = str(getattr(script, "attributes", {}).get("body") or "")
        if "thebe" in name.lower() or "thebe" in body.lower() or (name, body) in seen:
            continue
        seen.add((name, body))
        kept.append(script)
    context["script_files"] = kept
    styles = context.get("css_files", [])
    context["css_files"] = [s for s in styles if "thebe" not in str(getattr(s, "filename", s))]


def _finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    target = out / "_static" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    copy2(mathjax_source() / MATHJAX, target / MATHJAX)
    if app.config.root_doc != "index":
        page = _INDEX.format(target=f"{app.config.root_doc}.html", title=app.config.html_title)
        (out / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect the hooks."""
    app.connect("config-inited", _configure)
    app.connect("html-page-context", _filter_scripts, priority=900)
    app.connect("build-finished", _finish, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
