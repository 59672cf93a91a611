"""The benchmark of coupling flows: its gate, its peers, and that every kind of case runs."""

import pytest
import torch

from benchmarks import coupling_flows as bench

SMALL = bench.Size(6, 3, 16)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def flow():
    return bench.build(SMALL)


def draw(rows=5):
    return torch.randn(rows, SMALL.features, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", list(bench.KINDS))
def test_every_contender_computes_the_same(kind, flow):
    calls = bench.KINDS[kind](flow, SMALL, "cpu")
    assert next(iter(calls)) == "ours"
    assert {"zuko", "nflows"} < set(calls)
    results = {label: call(draw()) for label, call in calls.items()}
    for label, result in results.items():
        assert bench.same(results["ours"], result), label


def test_the_flow_is_no_identity(flow):
    """A peer with other weights, masks or signs must not pass because nothing happens."""
    x = draw()
    z, log_det = flow.transform(x)
    assert (z - x).norm() > 0.1 * x.norm()
    assert (log_det.abs() > 0.05).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: -found,
        lambda found: found * 1.001,
        lambda found: found.sum().expand(len(found)),
        lambda found: found.index_fill(0, torch.tensor([0]), torch.nan),
        lambda found: found[:-1],
        lambda found: found.roll(1),
    ],
    ids=["sign", "scale", "sum", "nan", "shape", "order"],
)
def test_the_gate_refuses(spoil, flow):
    right = flow.log_prob(draw()).detach()
    assert bench.same(right, right.clone())
    assert not bench.same(right, spoil(right))
    assert not bench.same([right, right], [right, spoil(right)])


def test_products_are_counted(flow):
    """Each linear layer multiplies as often as its weight has numbers."""
    assert SMALL.products() == sum(p.numel() for p in flow.parameters() if p.ndim == 2)


@pytest.mark.parametrize("kind", list(bench.KINDS))
def test_a_case_runs(kind):
    case = bench.case(kind, SMALL, 4, "cpu", 1, 5)
    assert case.ratios["ours"] == 1.0
    assert set(case.roofline) == set(case.ratios)
    assert bool(case.peak_bytes) == kind.endswith("training")
    if kind == "lean training":
        assert case.notes["times the memory of ours"]["ours"] == 1.0


def test_the_case_of_one_coupling_runs(monkeypatch):
    monkeypatch.setattr(bench, "IMAGE", (2, 4, 3, 5))
    case = bench.coupling_case("cpu", 1, 5)
    assert set(case.ratios) == {"ours", "plain PyTorch"}


def test_inverting_needs_an_eighth_of_the_memory():
    """The goal, on a flow as deep as the benchmark's: bytes are counted, so no clock is involved."""
    size = bench.Size(64, bench.DEEP.couplings, 64)
    calls = bench.lean_training(bench.build(size), size, "cpu")
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    peaks = {}
    for label in ("ours", "stored"):
        calls[label](x)  # what is made once is made now
        peaks[label] = bench_peak(lambda label=label: calls[label](x))
    weights = sum(p.nbytes for p in bench.build(size).parameters())  # gradients: nobody saves those
    assert peaks["stored"] - weights >= 8 * (peaks["ours"] - weights)


def bench_peak(call):
    from benchmarks.clocks import peak_bytes

    return peak_bytes(call, "cpu")


def test_names_are_unique_and_both_devices_have_plans():
    for device in ("cpu", "cuda"):
        names = [name for name, _ in bench.plans(device, (1,), 30)]
        assert len(names) == len(set(names)) > 12
