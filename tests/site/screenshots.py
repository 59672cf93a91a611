"""Pictures of built pages: `python -m tests.site.screenshots FOLDER PAGE...` (light, dark, phone)."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.site.serving import chromium, served, settle

MODES = {
    "light": ("light", 1280, 900),
    "dark": ("dark", 1280, 900),
    "phone": ("light", 390, 844),
}


def main(folder: str, *names: str) -> None:
    """Write one picture for each page and mode."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with served() as address, chromium() as browser:
        for mode, (scheme, width, height) in MODES.items():
            size = {"width": width, "height": height}
            context = browser.new_context(color_scheme=scheme, viewport=size)
            for name in names or ("book/index",):
                page = context.new_page()
                page.goto(f"{address}{name}.html")
                settle(page)
                page.screenshot(path=Path(folder) / f"{name.replace('/', '-')}-{mode}.png")
                page.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
