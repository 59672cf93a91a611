"""The benchmark of dilated convolution: its gate, its counts, and that every kind of case runs."""

import pytest
import torch
from torch.nn.functional import conv2d

from benchmarks import dilated_convolution as bench

DENSE, DEPTHWISE = bench.Layer("dense", 2, 6, 9), bench.Layer("depthwise", 2, 6, 9)
FORMS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("layer", [DENSE, DEPTHWISE], ids=str)
@pytest.mark.parametrize("rate", [1, 2, 8])
def test_every_contender_computes_the_same(layer, rate):
    x, weight = bench.draw(layer, torch.float32, "cpu", FORMS[0])
    right = conv2d(x.double(), weight.double(), None, 1, rate, rate, layer.groups).float()
    found = bench.cpu_contenders(layer, rate, False)
    assert list(found) == ["ours", "F.conv2d", "unfold", "space to batch"]
    for call in found.values():
        assert bench.same(right, call(x, weight))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x, w: conv2d(x, w, None, 1, 2, 2),  # the rate
        lambda x, w: conv2d(x, w, None, 1, 1, 1).roll(1, 3),  # one pixel to the side
        lambda x, w: conv2d(x, w.flip(2), None, 1, 1, 1),  # upside down
        lambda x, w: conv2d(x, w, None, 1, 1, 1).bfloat16().float(),  # another precision
        lambda x, w: conv2d(x, w, None, 1, 1, 1).index_fill(3, torch.tensor([8]), torch.nan),
        lambda x, w: conv2d(x, w)[:, :, :9],  # another shape
    ],
    ids=["rate", "shift", "flip", "precision", "nan", "shape"],
)
def test_the_gate_refuses(spoil):
    x, weight = bench.draw(DENSE, torch.float32, "cpu", FORMS[0])
    assert not bench.same(conv2d(x, weight, None, 1, 1, 1), spoil(x, weight))


def test_the_gate_looks_at_every_gradient():
    x, weight = bench.draw(DENSE, torch.float32, "cpu", FORMS[0])
    right = bench.trained(lambda x, w: conv2d(x, w, padding=1), x, weight)
    for wrong in range(3):
        spoiled = [part * (1.001 if i == wrong else 1) for i, part in enumerate(right)]
        assert not bench.same(right, spoiled)


@pytest.mark.parametrize("layer", [DENSE, DEPTHWISE], ids=str)
@pytest.mark.parametrize("rate", [1, 4, 8, 9, 20])
def test_products_are_counted_without_padding(layer, rate):
    ones = (
        torch.ones(layer.batch, layer.channels, 9, 9),
        torch.ones(layer.channels, layer.channels // layer.groups, 3, 3),
    )
    sums = conv2d(*ones, None, 1, rate, rate, layer.groups)  # each product adds 1
    work = bench.amount(layer, rate, False, list(ones))
    assert work.flops == 2 * float(sums.sum())
    assert work.bytes == 2 * ones[0].nbytes + ones[1].nbytes


@pytest.mark.parametrize("layer", [DENSE, DEPTHWISE], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_a_case_runs(layer, form, training):
    first = {}
    setting = bench.Setting("cpu", form, 1, 5)
    for rate in (1, 8):
        case = bench.case(layer, rate, setting, training, first)
        assert list(case.ratios)[:2] == ["ours", "F.conv2d"]
        assert ("unfold" in case.ratios) == (not training and form == FORMS[0])
        assert set(case.roofline) == set(case.ratios) == set(case.peak_bytes)
        price = case.notes["times as long as rate 1"]
        assert price["ours"] == case.timings["ours"].median / first["ours"]
    assert price["ours"] != 1.0


def test_names_are_unique_and_both_devices_have_plans():
    for device, threads in (("cpu", (1,)), ("cuda", (1,))):
        names = [name for name, _ in bench.plans(device, threads, 30)]
        assert len(names) == len(set(names)) > 20


@pytest.mark.parametrize("layer", [DENSE, DEPTHWISE], ids=str)
def test_the_contenders_of_a_gpu_rehearsed_on_the_cpu(layer, monkeypatch):
    monkeypatch.setattr(bench.torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    x, weight = bench.draw(layer, torch.bfloat16, "cpu", FORMS[1])
    found = bench.gpu_contenders(layer, 2)
    native = ["native"] if layer is DEPTHWISE else []
    assert list(found) == ["ours", "cuDNN", *native, "torch.compile"]
    with pytest.raises(RuntimeError, match="cuDNN is not available"):
        found.pop("cuDNN")(x, weight)
    right = conv2d(x.float(), weight.float(), None, 1, 2, 2, layer.groups).bfloat16()
    for call in found.values():
        assert bench.same(right, call(x, weight))
