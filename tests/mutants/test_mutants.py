"""The machinery that counts who notices a mistake: it must make mistakes, and notice them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import sympy as sp

from pkg.ledger.cases import Cases
from pkg.ledger.ledger import Ledger
from tests.mutants import code, entries, processes, swapping
from tests.mutants.equations import changes
from tests.mutants.mutations import mutants
from tests.mutants.processes import KILLED, SURVIVED, Job

SOURCE = '''"""Text - 1 is no code."""
from functools import cache

SCALE = 2


def f(x: int | None, *, by=1):
    """x + 1 in a docstring."""
    if x is None or x < 0:
        raise ValueError(f"x must be {0 + 0}, got {x}")
    return g(x, by) + SCALE


@cache
def g(x, y):
    def inner():
        return x - y

    return inner()


class C:
    size: int = 3

    def clamped(self, x):
        return x.clamp(min=0)
'''


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("sample", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["sample"] = module
    spec.loader.exec_module(module)
    yield module, {f"{m.before} > {m.after}": m for m in mutants(path, tmp_path)}, tmp_path
    del sys.modules["sample"]


def test_every_kind_of_change_and_none_of_text_or_annotations(module):
    _, found, _ = module
    assert set(found) == {
        "SCALE = 2 > SCALE = 3",
        "SCALE = 2 > SCALE = 1",
        "def f(x: int | None, *, by=1): > def f(x: int | None, *, by=2):",
        "def f(x: int | None, *, by=1): > def f(x: int | None, *, by=0):",
        "if x is None or x < 0: > if x is None and x < 0:",
        "if x is None or x < 0: > if x is not None or x < 0:",
        "if x is None or x < 0: > if x is None or x <= 0:",
        "if x is None or x < 0: > if x is None or x < 1:",
        "if x is None or x < 0: > if x is None or x < -1:",
        "return g(x, by) + SCALE > return g(x, by) - SCALE",
        "return g(x, by) + SCALE > return g(x, by)",
        "return g(x, by) + SCALE > return SCALE",
        "return g(x, by) + SCALE > return g(by, x) + SCALE",
        "return x - y > return x + y",
        "return x - y > return x",
        "size: int = 3 > size: int = 4",
        "size: int = 3 > size: int = 2",
        "return x.clamp(min=0) > return x",
        "return x.clamp(min=0) > return x.clamp(min=1)",
        "return x.clamp(min=0) > return x.clamp(min=-1)",
    }


def test_arguments_that_may_stand_in_any_order_are_not_swapped(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text("def f(a, b):\n    return min(a, b) + pow(a, b) + torch.maximum(a, b)\n")
    found = {m.after for m in mutants(path, tmp_path) if m.kind == "swapped"}
    assert found == {"return min(a, b) + pow(b, a) + torch.maximum(a, b)"}


def test_a_living_function_is_changed_with_its_defaults_and_its_inner_functions(module):
    sample, found, root = module
    held = sample.f  # as an operator or a notebook would hold it
    assert held(5) == 6
    swapping.swap(found["def f(x: int | None, *, by=1): > def f(x: int | None, *, by=2):"], root)
    assert held(5) == 5
    swapping.swap(found["return g(x, by) + SCALE > return g(x, by) - SCALE"], root)
    assert held(5) == 2  # one change at a time: the default is as it was
    sample.g.cache_clear()
    swapping.swap(found["return x - y > return x + y"], root)
    assert sample.g(5, 1) == 6


def test_what_runs_at_import_cannot_be_swapped_and_is_imported_instead(module):
    sample, found, root = module
    mutant = found["SCALE = 2 > SCALE = 3"]
    with pytest.raises(swapping.Unfit):
        swapping.swap(mutant, root)
    changed = importlib.util.module_from_spec(importlib.util.spec_from_loader("changed", None))
    swapping.Importing(mutant, root).exec_module(changed)
    assert (sample.f(5), changed.f(5)) == (6, 7)


def test_a_process_that_the_mutant_starts_gets_the_mutant_too(module, monkeypatch):
    _, found, root = module
    monkeypatch.setattr(os, "environ", os.environ.copy())
    swapping.pass_on(found["SCALE = 2 > SCALE = 3"], root)
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}{os.pathsep}{root}")
    command = [sys.executable, "-c", "import sample; print(sample.f(5))"]
    said = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    assert said.stdout == "7\n"


def test_the_tests_see_a_mutant_of_a_file_whose_doctests_they_run(tmp_path, monkeypatch):
    """pytest rewrites the assertions of files it is given; it used to import their true source."""
    path, check = tmp_path / "scaled.py", tmp_path / "test_scaled.py"
    path.write_text("SCALE = 2\n")
    check.write_text("import scaled\n\n\ndef test_scale():\n    assert scaled.SCALE == 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    monkeypatch.setattr(
        code, "test_files", lambda slug: ["--doctest-modules", str(check), str(path)]
    )
    found = mutants(path, tmp_path)
    assert processes.call(lambda: code.run_tests(*code.test_files(""))) == 0
    assert processes.call(lambda: code._imported_tests("", found[0])) == KILLED


def test_tests_that_compile_are_noted(tmp_path):
    """A compiler reads a function and nothing executes it, so that no line of it looks covered."""
    check = tmp_path / "test_compiled.py"
    check.write_text(
        "import torch\n\n\ndef test_one():\n    f = torch.compile(torch.sin, backend='eager')\n"
        "    assert f(torch.zeros(1)) == 0\n\n\ndef test_two():\n    assert torch.zeros(1) == 0\n"
    )

    def work():
        watching = code._Watching()
        with watching.noting_compilers(), code.silence():
            status = code.run_tests("-p", "no:cacheprovider", str(check), plugin=watching)
        return status, watching.compiling

    status, compiling = processes.call(work)
    assert status == 0
    assert [name.split("::")[1] for name in compiling] == ["test_one"]


def test_lines_that_run_in_a_process_of_their_own_are_measured(module, monkeypatch):
    _, _, root = module
    monkeypatch.setattr(code, "sources", lambda slug: [root / "sample.py"])
    monkeypatch.setattr(code, "ROOT", root)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{root}"

    def work():
        with code._Measuring("sample") as measured:
            measured.part("one")
            command = [sys.executable, "-c", "import sample; sample.f(5)"]
            subprocess.run(command, env=os.environ, check=True)
            measured.part("two")
        return measured.lines

    lines = processes.call(work)
    assert {9, 11, 17} <= lines["one"]["sample.py"]
    assert 10 not in lines["one"]["sample.py"]
    assert "two" not in lines


def test_children_survive_die_and_run_out_of_time():
    def fail():
        raise AssertionError

    jobs = [
        Job("lives", lambda: SURVIVED, 20),
        Job("dies", lambda: KILLED, 20),
        Job("raises", fail, 20),
        Job("hangs", lambda: time.sleep(60), 0.2),
    ]
    assert dict(processes.outcomes(jobs, at_once=2)) == {
        "lives": "survived", "dies": "killed", "raises": "killed", "hangs": "timeout",
    }  # fmt: skip
    assert processes.call(lambda: [1, 2]) == [1, 2]


# ------------------------------------------------------------------ equations

i, j, k = sp.symbols("i j k", integer=True, nonnegative=True)
n, t = sp.IndexedBase("n"), sp.IndexedBase("t")
x, y = sp.symbols("x y", real=True)


@pytest.mark.parametrize(
    ("relation", "expected"),
    [
        (sp.Eq(t[i], sp.Sum(n[i, j], (j, 0, k))), {
            sp.Eq(t[i], -sp.Sum(n[i, j], (j, 0, k))), sp.Eq(t[i], sp.Sum(n[j, i], (j, 0, k))),
            sp.Eq(t[i], sp.Sum(n[i, j], (j, 1, k))), sp.Eq(t[i], sp.Sum(n[i, j], (j, 0, k + 1))),
        }),
        (sp.Eq(y, x**2 - 3 * x, evaluate=False), {
            sp.Eq(y, 3 * x - x**2), sp.Eq(y, -(x**2) - 3 * x), sp.Eq(y, x**2 + 3 * x),
            sp.Eq(y, x**2), sp.Eq(y, -3 * x), sp.Eq(y, x**2 + x), sp.Eq(y, x**2 - 3), sp.Eq(y, -2 * x),
        }),
    ],
)  # fmt: skip
def test_changes_of_an_equation(relation, expected):
    assert {change.relation for change in changes(relation)} == expected


def attempts(state):
    """What becomes of wrong statements, given a function that makes a right one."""
    found = []

    def work():
        entries._patch(found, lambda text: None)
        state(Ledger("sample"))
        return found

    return processes.call(work)


def test_a_proof_refuses_wrong_formulas_and_a_hollow_one_is_found():
    right = sp.Eq((x + y) ** 2, x**2 + 2 * x * y + y**2, evaluate=False)
    found = attempts(lambda book: book.prove("square", right, title="Square"))
    assert len(found) > 8
    assert {a.outcome for a in found} == {"refused"}

    class Hollow(Ledger):
        def prove(self, name, relation, **_):
            return None

    def hollow():
        Ledger.prove = Hollow.prove
        return attempts(lambda book: book.prove("square", right, title="Square"))

    assert {a.outcome for a in processes.call(hollow)} == {"accepted"}


def test_a_change_that_says_the_same_is_no_mistake():
    gauss = sp.Eq(sp.Sum(i, (i, 0, k)), k * (k + 1) / 2, evaluate=False)
    found = attempts(lambda book: book.prove("gauss", gauss, title="Gauss"))
    same = [a.what for a in found if a.outcome == "equivalent"]
    assert same == ["bound: Eq(Sum(i, (i, 1, k)), k*(k + 1)/2)"]
    assert {a.outcome for a in found if a.what not in same} == {"refused"}


def test_a_check_refuses_results_without_work_and_a_blind_one_is_found():
    a = sp.IndexedBase("a")
    out = sp.Symbol("out")
    rows = [np.array([1.0, 2.0, 4.0]), np.array([3.0, 1.0, 5.0])]
    total = sp.Eq(out, sp.Sum(a[i], (i, 0, 2)))

    def check(book, **comparing):
        cases = Cases("two rows", rows, bind=lambda row: {a: row})
        book.check("total", total, np.sum, on=cases, title="Total", **comparing)

    from pkg.ledger import ledger

    def work(**comparing):
        ledger.public_name = lambda code: "numpy.sum"
        return attempts(lambda book: check(book, **comparing))

    good = processes.call(work)
    spoilt = {a.what: a.outcome for a in good if a.attack == "vacuity"}
    assert spoilt == dict.fromkeys(("NaN", "zeros", "its input", "no input"), "refused")
    blind = processes.call(lambda: work(bound=lambda row: 1e9, within="anything"))
    spoilt = {a.what: a.outcome for a in blind if a.attack == "vacuity"}
    assert spoilt["zeros"] == "accepted"
    assert spoilt["NaN"] == "refused"
