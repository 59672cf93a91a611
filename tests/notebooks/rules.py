"""What must hold of the committed chapters: plain functions that return complaints.

A notebook here is the parsed JSON of an `.ipynb` file. Each rule is shown failing in `test_rules`.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pkg.printed import WIDTH

ENTRY = "application/vnd.checked.entry+json"
LONGEST_CELL = 45
FIGURES, EXERCISES, SHOWN = 3, 6, 0.8

_DISPLAY = re.compile(
    r"\$\$|\\\[|\\begin\{(?:equation|align|gather|multline|displaymath|eqnarray)"
    r"|^\s*[`:]{3,}\{math\}",
    re.MULTILINE,
)
_CODE = re.compile(r"(?<!`)(`{3,})(?![`{])[^\n]*\n.*?\1|`[^`\n]+`", re.DOTALL)


def text(part: Any) -> str:
    """Return a source or an output as one string."""
    return "".join(part) if isinstance(part, list) else str(part)


def cells(notebook: Mapping[str, Any], kind: str) -> list[tuple[int, dict[str, Any]]]:
    """Return (number in the notebook, cell) for every cell of a kind, empty ones left out."""
    return [
        (number, cell)
        for number, cell in enumerate(notebook["cells"], 1)
        if cell["cell_type"] == kind and text(cell["source"]).strip()
    ]


def outputs(notebook: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (cell number, output) for every stored output."""
    for number, cell in cells(notebook, "code"):
        for output in cell["outputs"]:
            yield number, output


def records(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the ledger entries among the outputs."""
    return [o["data"][ENTRY] for _, o in outputs(notebook) if ENTRY in o.get("data", {})]


# ---------------------------------------------------------------- rules for one notebook


def executed_in_order(notebook: Mapping[str, Any]) -> list[str]:
    """Every code cell was run, once, from top to bottom."""
    counts = [cell["execution_count"] for _, cell in cells(notebook, "code")]
    right = list(range(1, len(counts) + 1))
    return [] if counts == right else [f"execution counts are {counts}, not 1..{len(counts)}"]


def no_errors(notebook: Mapping[str, Any]) -> list[str]:
    """No stored traceback, nothing on stderr."""
    return [
        f"cell {number}: a stored {'error' if output['output_type'] == 'error' else 'stderr'}"
        for number, output in outputs(notebook)
        if output["output_type"] == "error" or output.get("name") == "stderr"
    ]


def no_typed_equation(markdown: str) -> list[str]:
    """No display equation is typed by hand; code examples may contain one."""
    found = _DISPLAY.search(_CODE.sub("", markdown))
    return [f"a display equation typed by hand: {found[0].strip()!r}"] if found else []


def no_typed_equation_in_cells(notebook: Mapping[str, Any]) -> list[str]:
    """The same for every Markdown cell."""
    return [
        f"cell {number}: {complaint}"
        for number, cell in cells(notebook, "markdown")
        for complaint in no_typed_equation(text(cell["source"]))
    ]


def inline_math_stays_whole(notebook: Mapping[str, Any]) -> list[str]:
    """No formula in a sentence is broken before a sign that Markdown takes for a list."""
    complaints = []
    for number, cell in cells(notebook, "markdown"):
        for paragraph in re.split(r"\n\s*\n", _CODE.sub("", text(cell["source"]))):
            lines, dollars = paragraph.splitlines(), 0
            for line in lines:
                if dollars % 2 and re.match(r"\s*(?:[-+*]|\d+[.)])\s", line):
                    complaints.append(f"cell {number}: a formula is broken before {line[:20]!r}")
                dollars += len(re.findall(r"(?<!\\)\$", line))
    return complaints


def equations_come_from_the_ledger(notebook: Mapping[str, Any]) -> list[str]:
    """An output that displays an equation is a ledger entry, with its own LaTeX."""
    complaints = []
    for number, output in outputs(notebook):
        data = output.get("data", {})
        record = data.get(ENTRY)
        shown = text(data.get("text/markdown", "")) + text(data.get("text/html", ""))
        if "text/latex" in data:
            complaints.append(f"cell {number}: LaTeX is displayed past the ledger")
        elif _DISPLAY.search(shown) and record is None:
            complaints.append(f"cell {number}: an equation is displayed past the ledger")
        elif record is not None and (
            record["latex"] not in shown or len(re.findall(r"\$\$", shown)) != 2
        ):
            complaints.append(f"cell {number}: what is displayed is not what the ledger recorded")
    return complaints


def cells_are_short(notebook: Mapping[str, Any]) -> list[str]:
    """An algorithm belongs in `pkg`, not in a notebook."""
    return [
        f"cell {number}: {lines} lines of code, at most {LONGEST_CELL}"
        for number, cell in cells(notebook, "code")
        if (lines := text(cell["source"]).count("\n") + 1) > LONGEST_CELL
    ]


def prints_fit_the_page(notebook: Mapping[str, Any]) -> list[str]:
    """No printed line is longer than the website's column, where its end would be cut off."""
    return [
        f"cell {number}: a printed line of {len(line)} characters, {WIDTH} fit: {line[:40]!r}..."
        for number, output in outputs(notebook)
        if output["output_type"] == "stream"
        for line in text(output["text"]).splitlines()
        if len(line) > WIDTH
    ]


def figures_are_described(notebook: Mapping[str, Any]) -> list[str]:
    """Every figure has a name, a caption and a text for those who do not see it; three at least."""
    complaints, count = [], 0
    for number, cell in cells(notebook, "code"):
        kinds = [kind for o in cell["outputs"] for kind in o.get("data", {})]
        if not any(kind.startswith("image/") for kind in kinds):
            continue
        count += 1
        said = cell["metadata"].get("mystnb", {})
        figure, image = said.get("figure", {}), said.get("image", {})
        missing = [
            word
            for word, value in (
                ("name", figure.get("name")),
                ("caption", figure.get("caption")),
                ("alt", image.get("alt")),
            )
            if not value
        ]
        complaints += [f"cell {number}: a figure without {' and '.join(missing)}"] * bool(missing)
    if count < FIGURES:
        complaints.append(f"{count} figures, at least {FIGURES}")
    return complaints


def has_exercises(notebook: Mapping[str, Any]) -> list[str]:
    """Six exercises at least, each with a folded solution."""
    sources = [text(cell["source"]) for _, cell in cells(notebook, "code")]
    asked = set(re.findall(r"exercises\.check\(\s*\"(\w+)\"", "\n".join(sources)))
    solved: set[str] = set()
    for _, cell in cells(notebook, "code"):
        if "hide-cell" in cell["metadata"].get("tags", ()):
            solved |= set(re.findall(r"exercises\.solution\(\s*\"(\w+)\"", text(cell["source"])))
    complaints = [f"exercise {name} has no folded solution" for name in sorted(asked - solved)]
    if len(asked) < EXERCISES:
        complaints.append(f"{len(asked)} exercises, at least {EXERCISES}")
    return complaints


def mostly_shown(notebook: Mapping[str, Any]) -> list[str]:
    """At least four fifths of the entries are proved or checked."""
    entries = records(notebook)
    shown = [r for r in entries if {"proved", "checked"} & set(r["classes"])]
    if not entries:
        return ["no entry at all"]
    share = len(shown) / len(entries)
    return [] if share >= SHOWN else [f"only {share:.0%} of the entries are proved or checked"]


RULES = (
    executed_in_order,
    no_errors,
    no_typed_equation_in_cells,
    inline_math_stays_whole,
    equations_come_from_the_ledger,
    cells_are_short,
    prints_fit_the_page,
    figures_are_described,
    has_exercises,
    mostly_shown,
)


# ---------------------------------------------------------------- rules for the book


def ids_are_unique(notebooks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """No id is used twice in the book, and each begins with its chapter's slug."""
    complaints, seen = [], Counter[str]()
    for slug, notebook in notebooks.items():
        for record in records(notebook):
            seen[record["id"]] += 1
            if not record["id"].startswith(f"{slug}:"):
                complaints.append(f"{record['id']} stands in the chapter {slug}")
    return complaints + [
        f"{name} is used {count} times" for name, count in seen.items() if count > 1
    ]


def public_names_are_checked(
    notebooks: Mapping[str, Mapping[str, Any]], public: Mapping[str, list[str]]
) -> list[str]:
    """Every public function of `pkg.algos.<slug>` is compared with an equation of some chapter."""
    checked = {
        name
        for notebook in notebooks.values()
        for record in records(notebook)
        if "checked" in record["classes"]
        for name in record["implementations"]
    }
    return [
        f"{name} is public and no entry checks it"
        for names in public.values()
        for name in names
        if name not in checked
    ]


def public_names(package: Path) -> dict[str, list[str]]:
    """Return for each chapter's module the full names it offers, without plain results."""
    found = {}
    for path in sorted(package.iterdir()):
        if path.name.startswith("_") or not (
            path.suffix == ".py" or (path / "__init__.py").is_file()
        ):
            continue
        module = importlib.import_module(f"pkg.algos.{path.stem}")
        results = set(getattr(module, "RESULTS", ()))
        found[path.stem] = [f"{module.__name__}.{n}" for n in module.__all__ if n not in results]
    return found


# ---------------------------------------------------------------- rules for docstrings

SECTIONS = ("Parameters", "Returns", "Raises", "Notes", "Examples")


def docstring_complaints(path: Path, names: list[str]) -> list[str]:
    """A public function's docstring says shapes, errors, source or ledger id, and has an example."""
    complaints = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef) or node.name not in names:
            continue
        written = ast.get_docstring(node) or ""
        missing = [s for s in SECTIONS if not re.search(rf"^{s}\n-+$", written, re.MULTILINE)]
        if not node.args.args and not node.args.kwonlyargs and "Parameters" in missing:
            missing.remove("Parameters")
        if not re.search(r"edger:\s+`", written):
            missing.append("a ledger id")
        complaints += [f"{path.name}: {node.name} lacks {', '.join(missing)}"] * bool(missing)
    return complaints
