"""The benchmarks: nothing wrong is timed, the numbers say where they come from, every case runs."""

import importlib
import inspect
import json
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import ceilings as roof
from benchmarks import clocks, harness

ROOT = Path(__file__).parent.parent
equal = partial(lambda a, b: a == b)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def logged(*labels, wrong=()):
    """Contenders that write down each call."""
    log = []

    def call(label):
        log.append(label)
        return "wrong" if label in wrong else "right"

    return log, {label: partial(call, label) for label in labels}


# ------------------------------------------------------------------ the protocol


def test_a_wrong_contender_is_never_timed():
    log, calls = logged("ours", "liar", "honest", wrong=["liar"])
    with pytest.raises(harness.Red, match="a case: the result of liar is wrong"):
        harness.measure("a case", calls, equal)
    assert log == ["ours", "liar"]  # the gate alone: no round was run, nobody's time is known


def test_ours_is_gated_too():
    log, calls = logged("ours", "peer", wrong=["ours"])
    with pytest.raises(harness.Red, match="the result of ours is wrong"):
        harness.measure("a case", calls, lambda ours, theirs: theirs == "right")
    assert log == ["ours"]


def test_contenders_are_interleaved():
    log, calls = logged("ours", "a", "b")
    case = harness.measure("a case", calls, equal, rounds=6)
    rounds = [log[i : i + 3] for i in range(3, len(log), 3)]  # after the gate
    assert case.notes["rounds"] == len(rounds) == 6
    assert all(sorted(one) == ["a", "b", "ours"] for one in rounds)
    assert [one[0] for one in rounds] == ["ours", "a", "b", "ours", "a", "b"]  # each goes first


def test_time_ends_a_case_but_not_before_five_rounds():
    log, calls = logged("ours")
    assert harness.measure("a case", calls, equal, seconds=0).notes["rounds"] == 5
    assert len(log) == 6


def test_medians_and_ratios(monkeypatch):
    walls = {"ours": iter([2.0, 1.0, 3.0, 4.0, 5.0]), "peer": iter([6.0] * 5)}
    monkeypatch.setattr(harness, "cpu_seconds", lambda call: (next(walls[call()]), 0.5))
    calls = {"ours": lambda: "ours", "peer": lambda: "peer"}
    case = harness.measure("a case", calls, lambda a, b: True, rounds=5)
    assert case.timings["ours"] == harness.Timing(median=3.0, p20=1.8, p80=4.2, process=0.5)
    assert case.ratios == {"ours": 1.0, "peer": 2.0}


def test_who_cannot_run_is_left_out_by_name(capsys):
    def broken():
        raise RuntimeError("no kernel for this in /somewhere/on/a/machine.py\nand a trace")

    case = harness.measure("a case", {"ours": int, "peer": broken, "third": int}, equal)
    assert list(case.ratios) == ["ours", "third"]
    assert case.left_out == {"peer": "RuntimeError: no kernel for this in …"}
    assert "a case: peer is left out: RuntimeError" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="no kernel"):  # ours must run
        harness.measure("a case", {"ours": broken, "peer": int}, equal)


def test_a_lost_case_does_not_end_the_run_but_makes_it_red(capsys):
    good = harness.Case("good", 1, {}, {"ours": 1.0})

    def wrong():
        raise harness.Red("wrong: the result of peer is wrong")

    def failing():
        raise KeyError("forward, masked")

    plans = [("wrong", wrong), ("failing", failing), ("good", lambda: good)]
    cases = harness.each(plans)
    assert next(cases) == good
    with pytest.raises(harness.Red, match="result of peer is wrong; failing: KeyError"):
        next(cases)
    assert "NO CASE: wrong" in capsys.readouterr().out


# ------------------------------------------------------------------ ceilings and clocks


def test_the_nearer_ceiling_limits():
    ceiling = harness.Ceilings(bytes_per_second=10.0, flops_per_second=100.0)
    assert ceiling.limit(harness.Work(flops=200.0, bytes=5.0)) == (2.0, "flops")
    assert ceiling.limit(harness.Work(flops=20.0, bytes=5.0)) == (0.5, "bytes")
    shares, told = roof.roofline(harness.Work(200.0, 5.0), ceiling, {"ours": 4.0, "peer": 8.0})
    assert shares == {"ours": 0.5, "peer": 0.25}
    assert told["ceilings"] == {"bytes_per_second": 10.0, "flops_per_second": 100.0}
    assert (told["bound"], told["seconds"], told["flops"]) == ("flops", 2.0, 200.0)


def test_ceilings_of_this_machine():
    found = roof.ceilings("cpu", torch.float32, 1)
    # Any processor that runs PyTorch: between 0.1 GB/s and 10 TB/s, 0.1 GFLOP/s and 100 TFLOP/s.
    assert 1e8 < found.bytes_per_second < 1e13
    assert 1e8 < found.flops_per_second < 1e14
    assert roof.ceilings("cpu", torch.float32, 1) is found  # once in a run


def test_peak_bytes_counts_what_is_held_at_once():
    def one_after_the_other():
        for size in (2**20, 2**22, 2**21):
            torch.empty(size, dtype=torch.uint8)

    def together():
        return [torch.empty(2**20, dtype=torch.uint8) for _ in range(3)]

    assert clocks.peak_bytes(one_after_the_other, "cpu") == 2**22
    assert clocks.peak_bytes(together, "cpu") == 3 * 2**20


def test_processor_time_is_measured_beside_the_wall_clock():
    wall, busy = clocks.cpu_seconds(lambda: __import__("time").sleep(0.05))
    assert wall >= 0.05
    assert busy < wall  # a sleeping contender takes no processor


# ------------------------------------------------------------------ what is stored and printed


def sample(name="a case", **more):
    timing = harness.Timing(1.0, 0.9, 1.1, 1.0)
    slow = harness.Timing(3.0, 0.9, 1.1, 1.0)
    return harness.Case(name, 1, {"ours": timing, "peer": slow}, {"ours": 1.0, "peer": 3.0}, **more)


def test_results_say_what_made_them(tmp_path):
    path = harness.store("a_slug", "cpu", [sample(peak_bytes={"ours": 5})], tmp_path)
    text = path.read_text(encoding="utf-8")
    told = json.loads(text)
    assert path.name == "a_slug-cpu.json"
    assert set(told) == {
        "device", "machine", "commit", "date", "versions", "complete", "cases"
    }  # fmt: skip
    assert told["versions"]["torch"] == importlib.metadata.version("torch")
    assert told["cases"][0]["timings"]["peer"]["median"] == 3.0
    assert told["cases"][0]["peak_bytes"] == {"ours": 5}
    assert platform.node() not in text
    assert str(ROOT) not in text


def test_the_commit_is_this_one():
    told = harness.provenance("cpu")["commit"]
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    assert told.rstrip("+") == (head or "unknown")


_RESULTS = sorted((ROOT / "benchmarks/results").glob("*-c[pu][ud]*.json"))  # -cpu and -cuda


@pytest.mark.parametrize("path", _RESULTS, ids=lambda path: path.name)
def test_stored_results_have_what_chapters_read(path):
    told = json.loads(path.read_text(encoding="utf-8"))
    assert {"machine", "date", "versions", "commit"} <= set(told)
    assert told["cases"]
    for case in told["cases"]:
        ours = next(iter(case["timings"]))
        assert {"name", "threads", "ratios"} <= set(case)
        for label, timing in case["timings"].items():
            assert case["ratios"][label] == timing["median"] / case["timings"][ours]["median"]
            assert timing["p20"] <= timing["median"] <= timing["p80"]


def test_the_table_shows_ratios_and_gaps():
    lonely = harness.Case("lonely", 2, {}, {"ours": 1.0})
    lines = harness.table([sample(), lonely]).splitlines()
    assert lines[0].split() == ["ours", "peer"]
    assert lines[1].split() == ["a", "case,", "1", "thread", "1.00", "3.00"]
    assert lines[2].split() == ["lonely,", "2", "threads", "1.00", "-"]
    assert len(lines) == 3


def test_the_table_tells_hot_caches_and_the_roofline():
    hot = {"ours": harness.Timing(1.0, 1, 1, 1), "peer": harness.Timing(1.5, 1, 1, 1)}
    text = harness.table([sample(hot=hot, roofline={"ours": 0.875, "peer": 0.25})])
    ratios, hot_ratios, shares = text.split("\n\n")
    assert "3.00" in ratios
    assert "1.50" in hot_ratios
    assert shares.split()[-2:] == ["88%", "25%"]


# ------------------------------------------------------------------ the command


@pytest.fixture
def a_slug(monkeypatch):
    """Put a benchmark of our own in the place of a real one; returns what sets its cases."""

    def place(run):
        module = SimpleNamespace(run=run)
        monkeypatch.setitem(sys.modules, "benchmarks.segmentation_metrics", module)

    return place


def test_cases_are_stored_one_by_one(a_slug, tmp_path, capsys):
    stored = tmp_path / "segmentation_metrics-cpu.json"

    def run(device, threads, rounds):
        yield sample("first")
        assert not json.loads(stored.read_text())["complete"]  # a run cut off leaves this
        yield sample("second")

    a_slug(run)
    assert command.main(["segmentation_metrics", "--out", str(tmp_path)]) == 0
    told = json.loads(stored.read_text())
    assert told["complete"]
    assert [case["name"] for case in told["cases"]] == ["first", "second"]
    assert "times as long as ours" in capsys.readouterr().out


def test_a_red_run_says_so_and_fails(a_slug, tmp_path, capsys):
    def run(device, threads, rounds):
        yield sample("first")
        raise harness.Red("second: the result of peer is wrong")

    a_slug(run)
    assert command.main(["segmentation_metrics", "--out", str(tmp_path)]) == 1
    assert "RED: second" in capsys.readouterr().err
    assert not json.loads(next(tmp_path.iterdir()).read_text())["complete"]


@pytest.mark.parametrize("last", [1, 2])
def test_the_time_of_a_run_is_bounded(a_slug, tmp_path, capsys, monkeypatch, last):
    now = 100.0
    monkeypatch.setattr(harness.time, "monotonic", lambda: now)

    def slow(name):
        nonlocal now
        case = harness.measure(name, {"ours": int}, equal)
        now += 60
        return case

    names = ["first", "second", "third"][: last + 1]
    a_slug(lambda *_: harness.each((name, partial(slow, name)) for name in names))
    assert command.main(["segmentation_metrics", "--out", str(tmp_path), "--seconds", "100"]) == 0
    told = json.loads(next(tmp_path.iterdir()).read_text())
    assert [case["name"] for case in told["cases"]] == ["first", "second"]
    # Time that runs out in the last case leaves nothing out.
    assert told["complete"] == (last == 1)
    assert ("left out: third" in capsys.readouterr().out) == (last == 2)
    harness.measure("later", {"ours": int}, equal)  # the bound ends with its run


def test_a_red_case_is_told_even_if_the_time_runs_out():
    def plan(error):
        raise error

    plans = [("a", partial(plan, harness.Red("a is wrong"))),
             ("b", partial(plan, harness.TimeIsOver("b"))),
             ("c", partial(plan, AssertionError("the time was over")))]  # fmt: skip
    with pytest.raises(harness.Red, match=r"^a is wrong$"):
        list(harness.each(plans))
    with pytest.raises(harness.TimeIsOver, match=r"^b$"):
        list(harness.each(plans[1:]))


@pytest.mark.parametrize("option", [["--quick"], ["--first", "1"]])
def test_a_partial_run_stores_nothing(a_slug, tmp_path, option):
    a_slug(lambda device, threads, rounds: iter([sample()]))
    assert command.main(["segmentation_metrics", "--out", str(tmp_path), *option]) == 0
    assert not list(tmp_path.iterdir())


def test_threads_are_one_and_all_unless_said_otherwise(a_slug, monkeypatch):
    seen = []

    def run(device, threads, rounds):
        seen.append(threads)
        yield sample()

    a_slug(run)
    monkeypatch.setattr(command.os, "cpu_count", lambda: 6)
    command.main(["segmentation_metrics", "--quick"])
    command.main(["segmentation_metrics", "--quick", "--threads", "2", "4"])
    assert seen == [(1, 6), (2, 4)]


def test_an_unknown_slug_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["nowhere"])
    assert "there is no benchmark nowhere" in capsys.readouterr().err


# ------------------------------------------------------------------ every benchmark


@pytest.mark.parametrize("slug", command.SLUGS)
def test_the_smallest_case_of_each_benchmark(slug, capsys):
    module = importlib.import_module(f"benchmarks.{slug}")
    assert inspect.isgeneratorfunction(module.run), "run must yield its cases, smallest first"
    case = next(module.run("cpu", (1,), 5))
    assert case.notes["rounds"] == 5
    assert next(iter(case.ratios.values())) == 1.0
    assert len(case.ratios) >= 2
    assert all(timing.median > 0 for timing in case.timings.values())
    assert not case.left_out  # all peers are installed where the tests run
    json.dumps([case.notes, case.left_out])


_HOOK = """
import sys, importlib.metadata as m, re
def closure(names):
    todo, done = list(names), set()
    while todo:
        name = re.sub(r"[-_.]+", "-", re.match(r"[\\w.-]+", todo.pop()).group()).lower()
        if name in done: continue
        done.add(name)
        try: todo += [r for r in m.requires(name) or [] if "extra ==" not in r]
        except m.PackageNotFoundError: pass
    return done
allowed = closure(["torch", "triton", "numpy"])
foreign = {top for top, dists in m.packages_distributions().items()
           if not any(re.sub(r"[-_.]+", "-", d).lower() in allowed for d in dists)}
foreign -= {"benchmarks", "pkg", "tests", "book"}
assert {"torchmetrics", "sklearn", "matplotlib"} & foreign, foreign
class Hiding:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in foreign
        return None if hidden else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
from benchmarks.__main__ import main
sys.exit(main([SLUG, "--quick", "--first", "1"]))
"""


def test_torch_and_triton_are_enough():
    slugs = ["flash_attention", "segmentation_metrics"]
    done = subprocess.run(
        [sys.executable, "-c", _HOOK.replace("[SLUG,", f"[*{slugs!r},")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("times as long as ours") == 2
    assert "torchmetrics is not installed: left out" in done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("slug", command.SLUGS)
def test_the_first_case_on_a_gpu(slug):
    case = next(importlib.import_module(f"benchmarks.{slug}").run("cuda", (1,), 5))
    assert set(case.hot) == set(case.timings)
    assert len(case.ratios) >= 2
