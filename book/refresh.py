"""Executes chapters and stores their outputs, the same bytes on every run.

    python book/refresh.py                      all chapters, two at a time
    python book/refresh.py segmentation_metrics one of them
    python book/refresh.py --from-py draft.py   make a chapter from a script in percent format first

Strict nbval compares what is stored here with a new execution. So nothing that changes from run to
run may be stored: no times, no version of the interpreter, no random cell ids.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

CHAPTERS = Path(__file__).parent / "chapters"
SECONDS_PER_CELL = 120


class Failed(RuntimeError):
    """A chapter could not be executed as it should be; the file was left as it was."""


def from_script(script: Path) -> Any:
    """Return a notebook made from a script in jupytext's percent format."""
    import jupytext

    notebook = jupytext.read(script)
    notebook.metadata = nbformat.from_dict({})
    return notebook


def tidy(notebook: Any) -> None:
    """Remove what differs from run to run, and give every cell an id that stays."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"},
        }
    )  # fmt: skip
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        text = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[text] = seen.get(text, 0) + 1
        cell["id"] = text if seen[text] == 1 else f"{text}-{seen[text]}"


def execute(path: Path, notebook: Any, progress: Any) -> None:
    """Run a notebook top to bottom in its own folder; raise `Failed` on an error or on stderr."""

    def count(**event: Any) -> None:
        progress.update(1)

    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # how prints are cut into pieces depends on timing
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=count,
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise Failed(f"{path.name}: {error}") from error
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stderr":
                raise Failed(f"{path.name}: cell {number} wrote to stderr:\n{output.text}")


def refresh(path: Path, notebook: Any, progress: Any) -> bool:
    """Execute and store one chapter; return whether its file has changed."""
    execute(path, notebook, progress)
    tidy(notebook)
    nbformat.validate(notebook)
    text = nbformat.writes(notebook) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    temporary = path.with_suffix(".ipynb.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Execute chapters and store their outputs.")
    parser.add_argument("slugs", nargs="*", help="chapters; all of them by default")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--from-py", type=Path, metavar="FILE", help="a script to make one from")
    parser.add_argument("--folder", type=Path, default=CHAPTERS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.from_py is not None:
        chosen = [options.folder / f"{options.from_py.stem}.ipynb"]
        notebooks = [from_script(options.from_py)]
    else:
        chosen = [options.folder / f"{slug}.ipynb" for slug in options.slugs]
        chosen = chosen or sorted(options.folder.glob("*.ipynb"))
        missing = [path.stem for path in chosen if not path.is_file()]
        if missing:
            parser.error(f"there is no chapter {', '.join(missing)} in {options.folder}")
        notebooks = [nbformat.read(path, as_version=4) for path in chosen]
    # One thread a kernel, so that the sums and the speed do not depend on the number of cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cells = sum(cell.cell_type == "code" for nb in notebooks for cell in nb.cells)
    failed = False
    with tqdm(total=cells, unit="cell") as progress, ThreadPoolExecutor(options.jobs) as pool:
        jobs = [
            pool.submit(refresh, path, notebook, progress)
            for path, notebook in zip(chosen, notebooks, strict=True)
        ]
        for path, job in zip(chosen, jobs, strict=True):
            try:
                state = "stored" if job.result() else "unchanged"
            except Failed as error:
                failed, state = True, f"FAILED\n{error}"
            progress.write(f"{path.stem}: {state}", file=sys.stdout)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
