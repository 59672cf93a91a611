"""The confusion matrix kernel: its logic, its machine code, and its operator."""

from __future__ import annotations

import pytest
import torch

from pkg.algos.segmentation_metrics import confusion_matrix
from pkg.algos.segmentation_metrics.counts import count_label_pairs

DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def by_definition(target, prediction, classes, ignore):
    """Pixel by pixel, in Python."""
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    invalid = 0
    for t, p in zip(target.flatten().tolist(), prediction.flatten().tolist(), strict=True):
        if ignore is not None and t == ignore:
            continue
        if 0 <= t < classes and 0 <= p < classes:
            counts[t, p] += 1
        else:
            invalid += 1
    return counts, invalid


def labels(shape, classes, dtype, seed, *, void=0.1, wild=0.05):
    """Labels with some void (255 or -1) and some others that are out of range."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, classes, shape, generator=generator)
    chance = torch.rand(shape, generator=generator)
    ignored = 255 if torch.iinfo(dtype).max >= 255 else -1
    drawn = torch.where(chance < void, ignored, drawn)
    drawn = torch.where(chance > 1 - wild, min(classes + 3, torch.iinfo(dtype).max), drawn)
    return drawn.to(dtype), ignored


def agree(result, expected):
    counts, invalid = result
    assert counts.dtype == torch.int64
    assert torch.equal(counts.cpu(), expected[0])
    assert int(invalid) == expected[1]


# ---------------------------------------------------------------- interpreter


def launcher():
    from pkg.cuda.segmentation_metrics import count_label_pairs as launch

    return launch


# 11 and 22 classes fill a table of 128 and 512 but for less than 30 bins; 46 has no table.
CLASSES = (1, 2, 11, 22, 31, 45, 46)


@pytest.mark.interpreter
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("shape", [(1,), (17, 31), (2, 40, 67)])
def test_the_kernel_counts_as_the_definition_does(classes, shape):
    target, ignored = labels(shape, classes, torch.int64, seed=classes)
    prediction, _ = labels(shape, classes, torch.int64, seed=classes + 1)
    for ignore in (None, ignored, 0):
        expected = by_definition(target, prediction, classes, ignore)
        agree(launcher()(target, prediction, classes, ignore), expected)


@pytest.mark.interpreter
@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_every_pair_of_label_types(first, second):
    target, ignored = labels((43, 51), 5, first, seed=1)
    prediction, _ = labels((43, 51), 5, second, seed=2)
    for ignore in (ignored, 10**12, -(10**12)):
        expected = by_definition(target, prediction, 5, ignore)
        agree(launcher()(target, prediction, 5, ignore), expected)


@pytest.mark.interpreter
@pytest.mark.parametrize("classes", [4, 70])
def test_programs_go_round_when_there_are_more_blocks_than_programs(classes, monkeypatch):
    import pkg.cuda.segmentation_metrics as module

    monkeypatch.setattr(module, "PROGRAMS", 2)
    target, _ = labels((5 * module.choose(classes).block + 13,), classes, torch.uint8, seed=3)
    prediction, _ = labels(target.shape, classes, torch.uint8, seed=4)
    agree(launcher()(target, prediction, classes, None),
          by_definition(target, prediction, classes, None))  # fmt: skip


@pytest.mark.interpreter
def test_strided_and_empty_labels():
    target, _ = labels((40, 60), 3, torch.int32, seed=5)
    prediction, _ = labels((60, 40), 3, torch.int16, seed=6)
    for t, p in ((target[::2, ::3], prediction.T[::2, ::3]), (target[:0], prediction[:0])):
        t, p = (t, p) if t.shape == p.shape else (t, p.T)
        agree(launcher()(t, p, 3, None), by_definition(t, p, 3, None))


@pytest.mark.interpreter
def test_extreme_labels_are_flagged_and_write_nowhere():
    far = torch.tensor([2**62, -(2**62), 2**31, -1, 3, 0])
    zero = torch.zeros_like(far)
    for classes in (3, 100):
        for t, p in ((far, zero), (zero, far)):
            agree(launcher()(t, p, classes, None), by_definition(t, p, classes, None))


@pytest.mark.interpreter
@pytest.mark.parametrize("classes", [4, 70])
def test_nothing_is_read_or_written_beside_the_arrays(classes):
    """The labels go on behind the last pixel, and guard cells lie on both sides of the table."""
    import pkg.cuda.segmentation_metrics as module

    pixels, config = 777, module.choose(classes)
    target, ignored = labels((pixels + 50,), classes, torch.int64, seed=11)
    prediction, _ = labels((pixels + 50,), classes, torch.int64, seed=12)
    target[pixels:], prediction[pixels:] = 1, 2
    guarded = torch.zeros(classes * classes + 2, dtype=torch.int64)
    table, invalid = guarded[1:-1], torch.zeros((), dtype=torch.int64)
    options = {"HAS_IGNORE": True, "BLOCK": config.block}
    kernel = module.scatter_kernel
    if config.bins is not None:
        kernel, options = module.histogram_kernel, {**options, "BINS": config.bins}
    kernel[(2,)](target, prediction, table, invalid, pixels, classes, ignored, **options)
    expected = by_definition(target[:pixels], prediction[:pixels], classes, ignored)
    agree((table.view(classes, classes), invalid), expected)
    assert guarded[[0, -1]].tolist() == [0, 0]


# ---------------------------------------------------------------- compile gate


def configurations():
    try:
        from pkg.cuda.segmentation_metrics import CONFIGS
    except ImportError:
        return []
    return CONFIGS


@pytest.mark.gate
@pytest.mark.parametrize("label", ["u8", "i16", "i32", "i64"])
@pytest.mark.parametrize("config", configurations(), ids=lambda c: f"bins{c.bins}")
def test_every_configuration_fits_an_h100(config, label):
    import pkg.cuda.segmentation_metrics as module
    from tests.cuda.gate import admit, compile_for_sm90

    signature = {"target": f"*{label}", "prediction": f"*{label}", "counts": "*i64",
                 "invalid": "*i64", "pixels": "i64", "num_classes": "i32", "ignore": "i64"}  # fmt: skip
    constants = {"HAS_IGNORE": True, "BLOCK": config.block}
    kernel = module.scatter_kernel
    if config.bins is not None:
        kernel, constants = module.histogram_kernel, {**constants, "BINS": config.bins}
    compiled = compile_for_sm90(kernel, signature, constants, num_warps=config.num_warps,
                                aligned=("target", "prediction", "counts"))  # fmt: skip
    admit(compiled)
    if config.bins is not None:
        assert compiled.shared >= 4 * config.bins  # the table lies in shared memory


@pytest.mark.gate
def test_the_table_of_configurations_covers_every_number_of_classes():
    from pkg.cuda.segmentation_metrics import choose

    for classes in range(1, 200):
        bins = choose(classes).bins
        assert bins is None or bins > classes * classes
    assert choose(21).bins == 512
    assert choose(46).bins is None


# ---------------------------------------------------------------- operator on the CPU


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignore", [None, 255, -1, 0])
def test_operator_checks(dtype, ignore):
    target, _ = labels((6, 7), 4, dtype, seed=7)
    prediction, _ = labels((6, 7), 4, dtype, seed=8)
    torch.library.opcheck(count_label_pairs, (target, prediction, 4, ignore))


def test_it_compiles_into_one_graph():
    target, _ = labels((6, 7), 4, torch.uint8, seed=7)
    prediction, _ = labels((6, 7), 4, torch.uint8, seed=8)

    @torch.compile(fullgraph=True, backend="eager")
    def share_on_the_diagonal(t, p):
        counts, _ = count_label_pairs(t, p, 4, 255)
        return counts.diagonal().sum() / counts.sum()

    counts, _ = by_definition(target, prediction, 4, 255)
    assert share_on_the_diagonal(target, prediction) == counts.diagonal().sum() / counts.sum()


def test_the_module_of_the_kernel_is_not_imported_for_cpu_tensors():
    import subprocess
    import sys

    script = (
        "import sys, torch; from pkg.algos.segmentation_metrics import confusion_matrix;"
        "x = torch.tensor([0, 1]); confusion_matrix(x, x, 2);"
        "assert not [m for m in sys.modules if m.startswith('pkg.cuda')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# ---------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_the_gpu(classes, dtype):
    target, ignored = labels((3, 257, 129), min(classes, 100), dtype, seed=9)
    prediction, _ = labels((3, 257, 129), min(classes, 100), dtype, seed=10)
    for ignore in (None, ignored):
        expected = count_label_pairs(target, prediction, classes, ignore)
        result = count_label_pairs(target.cuda(), prediction.cuda(), classes, ignore)
        agree(result, (expected[0], int(expected[1])))


@pytest.mark.gpu
def test_out_of_range_raises_on_the_gpu_as_on_the_cpu():
    target = torch.tensor([[0, 1], [5, 0]]).cuda()
    with pytest.raises(ValueError, match=r"target has label 5 at index \(1, 0\)"):
        confusion_matrix(target, target.clamp(max=1), 2)


@pytest.mark.gpu
def test_counts_are_summed_over_nccl(tmp_path):
    """A group of one: what it moves must be the GPU's, and what is kept stays on the CPU."""
    import torch.distributed as dist

    from pkg.algos.segmentation_metrics import SegmentationMetrics

    metrics = SegmentationMetrics(3)
    metrics.update(torch.tensor([[0, 1]]), torch.tensor([[0, 2]]))
    before = metrics.state_dict()
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        metrics.sync()
    finally:
        dist.destroy_process_group()
    after = metrics.state_dict()
    assert torch.equal(after["confusion"], before["confusion"])
    assert torch.equal(after["per_image"], before["per_image"])
