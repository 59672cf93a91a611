"""Serves the built website, opens it in Chromium, and lists its pages."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
# The sandbox needs rights that containers do not give; everything opened here is our own.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def served() -> Iterator[str]:
    """Serve the built site on a free port; gives its address, ending in a slash."""
    handler = functools.partial(_Quiet, directory=str(HTML))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the system's Chromium."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise RuntimeError("Chromium is needed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def pages() -> list[str]:
    """Return every page of the site, relative to its root."""
    return sorted(
        str(path.relative_to(HTML))
        for path in HTML.rglob("*.html")
        if "_static" not in path.parts and path.name != "search.html"
    )


def settle(page: Any) -> None:
    """Wait until MathJax has set every formula."""
    page.wait_for_function(
        "!document.querySelector('.math') || (window.MathJax && MathJax.startup && "
        "MathJax.startup.promise)"
    )
    page.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise : null")
