"""The benchmark of attention: its gate, its counts, and a rehearsal of the run on a GPU."""

import pytest
import torch

from benchmarks import clocks, harness
from benchmarks import flash_attention as attention
from benchmarks.attention_peers import naive, sdpa

SMALL = attention.Shape(2, 6, 2, 96, 96, 32)


_problem = attention.problem.__wrapped__  # without its memory of the last one


def small(kind, shape=SMALL, dtype=torch.float32, backward=False):
    return _problem(shape, kind, dtype, "cpu", backward)


def test_the_gate_of_attention_lets_the_peers_pass():
    p = small("causal")
    right = naive(p.q, p.k, p.v, p.visible)
    assert p.same(right, sdpa(p.q, p.k, p.v, causal=True))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: sdpa(p.q, p.k, p.v),  # not causal
        lambda p: sdpa(p.q * 1.001, p.k, p.v, causal=True),  # another scale
        lambda p: sdpa(p.q, p.k.flip(1), p.v, causal=True),  # the heads' order
        lambda p: sdpa(p.q, p.k, p.v, causal=True).bfloat16().float(),  # another precision
        lambda p: sdpa(p.q, p.k, p.v, causal=True).index_fill(2, torch.tensor([95]), torch.nan),
        # heads that are not compared with float64 are compared with ours: here batch 0, head 4
        lambda p: sdpa(p.q, p.k, p.v, causal=True) * (1 + 1e-3 * (torch.arange(12) == 4).view(2, 6, 1, 1)),
    ],
    ids=["mask", "scale", "heads", "precision", "nan", "one head"],
)  # fmt: skip
def test_the_gate_of_attention_refuses(spoil):
    p = small("causal")
    assert not p.same(naive(p.q, p.k, p.v, p.visible), spoil(p))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_gate_looks_at_every_gradient(which):
    p = small("causal", backward=True)
    right = torch.autograd.grad(naive(p.q, p.k, p.v, p.visible), (p.q, p.k, p.v), p.gradient)
    wrong = [x * 1.001 if i == which else x for i, x in enumerate(right)]
    assert p.same(right, right)
    assert not p.same(right, tuple(wrong))


@pytest.mark.parametrize("kind", ["full", "causal", "window", "tree", "ragged"])
def test_pairs_are_counted(kind):
    shape = attention.Shape(3, 6, 2, 1 if kind == "ragged" else 24, 40, 32)
    p = small(kind, shape)
    dense = torch.ones(3, 1, shape.q_len, 40) if p.visible is None else p.visible
    assert p.pairs == dense.expand(3, 1, shape.q_len, 40).sum()
    if kind == "ragged":
        assert p.pairs == attention.lengths(shape, "cpu").sum()
        # bytes of a decoding step: the query, its output, and the keys and values that count
        assert attention.amount(p, "decode").bytes == 4 * (
            2 * 3 * 6 * 32 + 2 * int(p.pairs) * 2 * 32
        )


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        *((work, kind) for work in ("forward", "backward")
          for kind in ("full", "causal", "window", "tree")),
        ("forward", "documents"), ("decode", "full"), ("decode", "ragged"),
    ],
)  # fmt: skip
def test_the_gpu_run_rehearsed_on_the_cpu(work, kind, monkeypatch):
    """The CUDA path with the CPU's clock: who cannot run is left out, and hot caches are told."""
    sizes = {"tree": (2, 4, 2, 24, 150, 32), "ragged": (3, 4, 2, 1, 150, 32),
             "documents": (1, 4, 2, 96, 96, 32)}  # fmt: skip
    monkeypatch.setattr(attention, "DOCUMENTS", (40, 26, 30))
    monkeypatch.setattr(attention, "problem",
                        lambda s, k, dtype, device, b: small(k, s, dtype, b))  # fmt: skip
    monkeypatch.setattr(attention, "ceilings", lambda *_: harness.Ceilings(1e9, 1e9))
    monkeypatch.setattr(harness, "cuda_seconds", lambda call, flush=True: clocks.cpu_seconds(call))
    monkeypatch.setattr(harness, "peak_bytes", lambda call, device: clocks.peak_bytes(call, "cpu"))
    sizes["full"] = sizes["ragged"] if work == "decode" else (2, 4, 4, 96, 96, 32)
    shape = attention.Shape(*sizes.get(kind, (2, 4, 4, 96, 96, 32)))
    case = attention.case(work, kind, shape, attention.Setting("cuda", 5))
    assert next(iter(case.ratios)) == "ours"
    assert set(case.hot) == set(case.timings) == set(case.roofline) == set(case.peak_bytes)
    assert case.notes["TFLOP/s"]["ours"] > 0
    assert case.notes["dtype"] == "bfloat16"
    if kind in ("full", "causal"):
        assert "cuDNN" in case.left_out  # there is none on a CPU, and the run went on
        assert "FlashAttention-2" in case.ratios
    else:
        assert "SDPA" in case.ratios


def test_plans_are_named_once_and_the_gpu_begins_with_what_matters():
    names = [name for name, _ in attention.cuda_plans(30)]
    assert len(names) == len(set(names))
    assert "4096 x 128" in names[0]
    assert any("decode" in name for name in names[:12])
    cpu = [name for name, _ in attention.cpu_plans((1,), 30)]
    assert len(cpu) == len(set(cpu))
    assert len([n for n, _ in attention.cpu_plans((1,), 5)]) < len(cpu)
