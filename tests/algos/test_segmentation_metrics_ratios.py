"""The confusion matrix and its ratios: against definitions, scikit-learn, torchmetrics, properties."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_confusion_matrix

from pkg.algos.segmentation_metrics import (
    class_accuracy,
    confusion_matrix,
    dice,
    frequency_weighted_iou,
    iou,
    mean_iou,
    mean_pixel_accuracy,
    pixel_accuracy,
)

SCORES = (
    pixel_accuracy,
    class_accuracy,
    mean_pixel_accuracy,
    iou,
    mean_iou,
    frequency_weighted_iou,
    dice,
)
UNSIGNED = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16)


def draw(shape, classes, seed=0, dtype=torch.int64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, classes, shape, generator=generator).to(dtype)


def ratio(top, bottom):
    return Fraction(top, bottom) if bottom else None


def exact(cm):
    """Every score of a matrix as exact fractions; None where it does not exist."""
    classes = range(len(cm))
    rows = [sum(cm[i]) for i in classes]
    columns = [sum(cm[j][i] for j in classes) for i in classes]
    total = sum(rows)
    accuracy = [ratio(cm[i][i], rows[i]) for i in classes]
    jaccard = [ratio(cm[i][i], rows[i] + columns[i] - cm[i][i]) for i in classes]
    weighted = sum(rows[i] * (jaccard[i] or 0) for i in classes)

    def mean(values):
        kept = [value for value in values if value is not None]
        return sum(kept) / len(kept) if kept else None

    return {
        pixel_accuracy: ratio(sum(cm[i][i] for i in classes), total),
        class_accuracy: accuracy,
        mean_pixel_accuracy: mean(accuracy),
        iou: jaccard,
        mean_iou: mean(jaccard),
        frequency_weighted_iou: ratio(weighted, total) if total else None,
        dice: [ratio(2 * cm[i][i], rows[i] + columns[i]) for i in classes],
    }


def floats(value):
    if isinstance(value, list):
        return [floats(part) for part in value]
    return float("nan") if value is None else float(value)


matrices = st.integers(1, 5).flatmap(
    lambda size: st.lists(
        st.lists(st.one_of(st.just(0), st.integers(0, 9)), min_size=size, max_size=size),
        min_size=size,
        max_size=size,
    )
)


@settings(max_examples=200, deadline=None)
@given(matrices)
def test_every_ratio_against_exact_fractions(cm):
    for score, expected in exact(cm).items():
        # A handful of roundings in float64, each 2^-53 relative, on values up to 1.
        np.testing.assert_allclose(score(torch.tensor(cm)), floats(expected), rtol=0, atol=1e-15)


@settings(max_examples=50, deadline=None)
@given(matrices, st.randoms(use_true_random=False))
def test_classes_can_be_renamed(cm, random):
    order = list(range(len(cm)))
    random.shuffle(order)
    renamed = torch.tensor(cm)[order][:, order]
    for score in SCORES:
        before, after = score(torch.tensor(cm)), score(renamed)
        before = before[order] if before.ndim else before
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-15)


@settings(max_examples=50, deadline=None)
@given(matrices)
def test_exchanging_truth_and_prediction_leaves_iou_and_dice(cm):
    for score in (iou, dice, mean_iou):
        np.testing.assert_array_equal(score(torch.tensor(cm).T), score(torch.tensor(cm)))


def test_a_stack_is_scored_matrix_by_matrix():
    stack = draw((2, 3, 4, 4), 9)
    stack[0, 1, 2] = stack[0, 1, :, 2] = 0
    stack[1, 2] = 0
    for score in SCORES:
        whole = score(stack)
        assert whole.dtype == torch.float64
        for index in np.ndindex(2, 3):
            np.testing.assert_array_equal(whole[index], score(stack[index]))


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.int32, torch.float32, torch.float64]
)
def test_counts_of_any_type_are_summed_without_loss(dtype):
    cm = torch.full((2, 2), 200, dtype=dtype)  # 200 + 200 does not fit into uint8
    assert float(pixel_accuracy(cm)) == 0.5
    assert iou(cm).tolist() == [1 / 3, 1 / 3]


def test_large_counts_stay_exact():
    cm = torch.tensor([[2**60, 1], [1, 0]])
    assert float(pixel_accuracy(cm)) == float(Fraction(2**60, 2**60 + 2))
    assert float(iou(cm)[1]) == 0.0


def test_absent_policies_by_hand():
    cm = torch.tensor([[4, 0, 0], [2, 2, 0], [0, 0, 0]])
    scores = [4 / 6, 2 / 4]
    assert float(mean_iou(cm)) == pytest.approx(sum(scores) / 2, abs=1e-15)
    assert float(mean_iou(cm, absent="zero")) == pytest.approx(sum(scores) / 3, abs=1e-15)
    assert float(mean_iou(cm, absent="one")) == pytest.approx((sum(scores) + 1) / 3, abs=1e-15)
    assert float(mean_pixel_accuracy(cm)) == 0.75
    assert float(mean_pixel_accuracy(cm, absent="zero")) == 0.5
    assert float(mean_pixel_accuracy(cm, absent="one")) == pytest.approx(2.5 / 3, abs=1e-15)


@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
def test_an_empty_matrix_has_no_score_under_any_policy(absent):
    empty = torch.zeros(3, 3, dtype=torch.int64)
    assert mean_iou(empty, absent=absent).isnan()
    assert mean_pixel_accuracy(empty, absent=absent).isnan()
    assert all(score(empty).isnan().all() for score in SCORES)


def test_scores_against_scikit_learn():
    target, prediction = draw((40, 50), 5, seed=1), draw((40, 50), 5, seed=2)
    cm = confusion_matrix(target, prediction, 5)
    t, p = target.flatten().numpy(), prediction.flatten().numpy()
    assert float(pixel_accuracy(cm)) == pytest.approx(sk.accuracy_score(t, p), abs=1e-15)
    assert float(mean_pixel_accuracy(cm)) == pytest.approx(
        sk.balanced_accuracy_score(t, p), abs=1e-15
    )
    np.testing.assert_allclose(iou(cm), sk.jaccard_score(t, p, average=None), atol=1e-15)
    np.testing.assert_allclose(dice(cm), sk.f1_score(t, p, average=None), atol=1e-15)
    expected = sk.jaccard_score(t, p, average="weighted")
    assert float(frequency_weighted_iou(cm)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("bad", [torch.ones(2, 3), torch.ones(4), torch.zeros(0, 0), -torch.ones(2, 2),
                                 torch.tensor([[1, -1], [0, 2]]), torch.full((2, 2), float("nan")),
                                 torch.zeros(3, 0, 0), torch.ones(3, 3, 2)])  # fmt: skip
def test_what_is_no_matrix_of_counts_is_refused(bad):
    for score in SCORES:
        with pytest.raises(ValueError, match="cm must"):
            score(bad)


def test_no_matrices_have_no_scores():
    nothing = torch.zeros(2, 0, 3, 3, dtype=torch.int64)
    for score in SCORES:
        assert score(nothing).shape in ((2, 0), (2, 0, 3))


def test_wrong_types_and_policies_are_refused():
    for bad in (torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.complex64), [[1]]):
        with pytest.raises(TypeError, match="cm must"):
            iou(bad)
    with pytest.raises(ValueError, match="absent must be"):
        mean_iou(torch.eye(2), absent="nan")


# ---------------------------------------------------------------- the matrix


@pytest.mark.parametrize("first", UNSIGNED)
@pytest.mark.parametrize("second", UNSIGNED)
@pytest.mark.parametrize("shape", [(7,), (5, 9), (2, 3, 11)])
def test_the_matrix_against_scikit_learn(first, second, shape):
    target, prediction = draw(shape, 4, 1, first), draw(shape, 4, 2, second)
    cm = confusion_matrix(target, prediction, 4)
    t, p = target.long().flatten().numpy(), prediction.long().flatten().numpy()
    expected = sk.confusion_matrix(t, p, labels=range(4))
    assert cm.dtype == torch.int64
    np.testing.assert_array_equal(cm, expected)


def test_orientation_rows_are_the_truth():
    assert confusion_matrix(torch.tensor([0]), torch.tensor([1]), 2).tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize("classes", [1, 3, 21, 150])
def test_large_batches_against_torchmetrics(classes):
    """Several blocks, with a remainder, and with void."""
    target, prediction = draw((3, 331, 401), classes, 1), draw((3, 331, 401), classes, 2)
    target[0, :40] = 255
    cm = confusion_matrix(target, prediction, classes, ignore_index=255)
    if classes == 1:
        assert int(cm) == int((target != 255).sum())
    else:
        theirs = multiclass_confusion_matrix(prediction, target, classes, ignore_index=255)
        assert torch.equal(cm, theirs)


def test_strided_labels():
    target, prediction = draw((20, 30), 3, 1), draw((30, 20), 3, 2)
    cm = confusion_matrix(target[::3, ::2], prediction.T[::3, ::2], 3)
    assert torch.equal(
        cm, confusion_matrix(target[::3, ::2].clone(), prediction.T[::3, ::2].clone(), 3)
    )


def test_empty_and_all_void():
    nothing = torch.zeros(0, dtype=torch.uint8)
    assert int(confusion_matrix(nothing, nothing, 3).sum()) == 0
    void = torch.full((4, 4), 255, dtype=torch.uint8)
    assert int(confusion_matrix(void, void, 3, ignore_index=255).sum()) == 0


@pytest.mark.parametrize("ignore", [0, 2, -1, 255, -100])
def test_ignoring_drops_by_truth_whatever_was_predicted(ignore):
    target, prediction = draw((30, 30), 3, 1), draw((30, 30), 3, 2)
    target[:5] = ignore
    prediction[:3] = 77  # nobody looks at it
    cm = confusion_matrix(target, prediction, 3, ignore_index=ignore)
    kept = target != ignore
    assert torch.equal(cm, confusion_matrix(target[kept], prediction[kept], 3))
    if ignore in (0, 2):
        assert int(cm[ignore].sum()) == 0
        assert int(cm[:, ignore].sum()) > 0


def test_matrices_add_up():
    target, prediction = draw((8, 9, 10), 4, 1), draw((8, 9, 10), 4, 2)
    parts = [confusion_matrix(t, p, 4) for t, p in zip(target, prediction, strict=True)]
    assert torch.equal(confusion_matrix(target, prediction, 4), torch.stack(parts).sum(0))


@pytest.mark.parametrize("label", [3, -1, 255, 10**15, -(10**15)])
@pytest.mark.parametrize("which", ["target", "prediction"])
def test_a_label_out_of_range_is_named_with_its_place(label, which):
    maps = {"target": draw((4, 5), 3, 1), "prediction": draw((4, 5), 3, 2)}
    maps[which][2, 3] = label
    with pytest.raises(
        ValueError, match=rf"^{which} has label {label} at index \(2, 3\); expected 0..2"
    ):
        confusion_matrix(**maps, num_classes=3)


def test_the_first_bad_label_is_the_one_named_even_beside_void():
    target, prediction = torch.tensor([255, 0, 1]), torch.tensor([9, 8, 0])
    with pytest.raises(ValueError, match=r"prediction has label 8 at index \(1,\)"):
        confusion_matrix(target, prediction, 2, ignore_index=255)


def test_the_door():
    x = draw((3, 4), 2)
    for bad in (x.float(), x.bool(), x.to(torch.complex64), x.tolist()):
        with pytest.raises(TypeError, match="target must"):
            confusion_matrix(bad, x, 2)
        with pytest.raises(TypeError, match="prediction must"):
            confusion_matrix(x, bad, 2)
    with pytest.raises(ValueError, match=r"same shape, got \(3, 4\) and \(4, 3\)"):
        confusion_matrix(x, x.T, 2)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        confusion_matrix(x, x, 0)
    for bad in (2.0, True, None):
        with pytest.raises((TypeError, ValueError), match="num_classes"):
            confusion_matrix(x, x, bad)
    with pytest.raises(TypeError, match="ignore_index must be an int"):
        confusion_matrix(x, x, 2, ignore_index=0.5)
    with pytest.raises(ValueError, match="one device"):
        confusion_matrix(x, x.to("meta"), 2)


@pytest.mark.parametrize("label", [-40000, -32769, -32768, 32767, 32768, 70000, 2**40, -(2**40)])
@pytest.mark.parametrize("which", ["target", "prediction"])
def test_maps_of_one_far_label_are_refused_too(label, which):
    """The codes are 16 bits wide where they can be; here they cannot."""
    maps = {"target": draw((4, 8), 3, 1), "prediction": draw((4, 8), 3, 2)}
    maps[which] = torch.full((4, 8), label)
    with pytest.raises(ValueError, match=f"^{which} has label {label} at index"):
        confusion_matrix(**maps, num_classes=3)
