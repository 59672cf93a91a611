"""Contours, objects, distances: each against its definition, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import directed_hausdorff

from pkg.algos.segmentation_metrics import (
    boundary_iou,
    boundary_width,
    hausdorff_distance,
    mask_boundary,
    panoptic_quality,
)


def random_mask(shape, seed, share=0.8):
    return torch.from_numpy(np.random.default_rng(seed).random(shape) < share)


# ---------------------------------------------------------------- boundary


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 5), (12, 17)])
@pytest.mark.parametrize("width", [1, 2, 5, 20])
def test_the_boundary_by_definition(shape, width):
    mask = random_mask(shape, seed=width)
    height, length = shape
    for r, c in np.ndindex(shape):
        window = [
            bool(mask[i, j]) if 0 <= i < height and 0 <= j < length else False
            for i in range(r - width, r + width + 1)
            for j in range(c - width, c + width + 1)
        ]
        assert bool(mask_boundary(mask, width)[r, c]) == (bool(mask[r, c]) and not all(window))


def test_boundaries_of_a_batch_and_of_nothing():
    masks = random_mask((2, 3, 8, 9), seed=1)
    whole = mask_boundary(masks, 2)
    for index in np.ndindex(2, 3):
        assert torch.equal(whole[index], mask_boundary(masks[index], 2))
    assert mask_boundary(torch.zeros(0, 5, dtype=torch.bool), 1).shape == (0, 5)


@pytest.mark.parametrize(
    ("height", "width", "share", "expected"),
    [
        (375, 500, 0.02, 12),
        (3, 4, 0.02, 1),
        (300, 400, 0.01, 5),
        (1024, 2048, 0.005, 11),
        (30, 40, 0.1, 5),
        (1, 1, 0.02, 1),
        (75, 100, 0.02, 2),  # exactly 2.5: to the even neighbour, as the authors' code rounds
    ],
)
def test_the_width_of_the_strip(height, width, share, expected):
    assert boundary_width(height, width, share) == expected


@pytest.mark.parametrize("bad", [0, -0.1, math.nan, math.inf])
def test_a_strip_needs_a_width(bad):
    with pytest.raises(ValueError, match="dilation_ratio"):
        boundary_width(10, 10, bad)


def test_boundary_iou_by_definition():
    rng = np.random.default_rng(3)
    target = torch.from_numpy(np.kron(rng.integers(0, 3, (3, 4)), np.ones((20, 15), int)))
    prediction = target.roll((2, -3), (0, 1))
    target[:10, :10] = 255
    width = boundary_width(60, 60, 0.03)
    scores = boundary_iou(target, prediction, 4, dilation_ratio=0.03, ignore_index=255)
    kept = target != 255
    for label in range(3):
        a, b = (mask_boundary((labels == label) & kept, width) for labels in (target, prediction))
        assert float(scores[label]) == pytest.approx(
            int((a & b).sum()) / int((a | b).sum()), abs=1e-15
        )
    assert scores[3].isnan()
    assert scores.dtype == torch.float64


def test_boundary_iou_of_a_batch_and_of_equal_maps():
    target = torch.from_numpy(np.random.default_rng(4).integers(0, 2, (2, 20, 30)))
    prediction = target.roll(1, 2)
    whole = boundary_iou(target, prediction, 2)
    assert torch.equal(
        whole, torch.stack([boundary_iou(t, p, 2) for t, p in zip(target, prediction, strict=True)])
    )
    assert boundary_iou(target, target, 2).tolist() == [[1, 1], [1, 1]]


def test_the_doors_of_the_boundary():
    labels = torch.zeros(4, 4, dtype=torch.int64)
    with pytest.raises(TypeError, match="mask must be boolean"):
        mask_boundary(labels, 1)
    with pytest.raises(ValueError, match="shape"):
        mask_boundary(torch.ones(3, dtype=torch.bool), 1)
    with pytest.raises(ValueError, match="width must be at least 1"):
        mask_boundary(labels.bool(), 0)
    with pytest.raises(ValueError, match=r"target must have shape"):
        boundary_iou(labels[0], labels[0], 2)
    with pytest.raises(TypeError, match="target must hold integer labels"):
        boundary_iou(labels.float(), labels, 2)
    with pytest.raises(TypeError, match="prediction must hold integer labels"):
        boundary_iou(labels, labels.float(), 2)
    for which in range(2):
        bad = [labels, labels]
        bad[which] = labels + 7
        with pytest.raises(ValueError, match=f"{('target', 'prediction')[which]} has label 7"):
            boundary_iou(*bad, 2)


# ---------------------------------------------------------------- panoptic quality


def exhaustive(truth, truth_classes, guess, guess_classes, classes, void):
    """Panoptic quality from its definition: every true segment against every predicted one."""
    pixels = range(truth.numel())
    t, g = truth.flatten().tolist(), guess.flatten().tolist()
    true_sets = {s: {x for x in pixels if t[x] == s} for s in set(t) - {void}}
    guess_sets = {s: {x for x in pixels if g[x] == s} for s in set(g) - {void}}
    nobody = {x for x in pixels if void is not None and t[x] == void}
    result = []
    for c in range(classes):
        ours = [s for s in true_sets if truth_classes[s] == c]
        theirs = [s for s in guess_sets if guess_classes[s] == c]
        hits = {}
        for a in ours:
            for b in theirs:
                union = (true_sets[a] | guess_sets[b]) - nobody
                overlap = len(true_sets[a] & guess_sets[b]) / len(union)
                if overlap > 0.5:
                    hits[a, b] = overlap
        lost = len(ours) - len({a for a, _ in hits})
        matched = {b for _, b in hits}
        invented = sum(
            b not in matched and 2 * len(guess_sets[b] & nobody) <= len(guess_sets[b])
            for b in theirs
        )
        size = len(hits) + invented / 2 + lost / 2
        result.append((len(hits), invented, lost, sum(hits.values()) / size if size else math.nan))
    return result


@pytest.mark.parametrize("void", [0, None])
@pytest.mark.parametrize("seed", range(25))
def test_panoptic_quality_by_definition(seed, void):
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 6, (3, 4)), np.ones((4, 3), int))
    guess = np.where(
        rng.random(truth.shape) < 0.15, rng.integers(0, 6, truth.shape), np.roll(truth, 1, 1)
    )
    truth, guess = torch.from_numpy(truth), torch.from_numpy(guess)
    classes = [{s: int(c) for s, c in enumerate(rng.integers(0, 2, 6))}]
    classes.append({**classes[0], 5: 1 - classes[0][5]})
    quality = panoptic_quality(truth, classes[0], guess, classes[1], 3, void_id=void)
    expected = exhaustive(truth, classes[0], guess, classes[1], 3, void)
    for c, (tp, fp, fn, pq) in enumerate(expected):
        found = [
            int(q[c])
            for q in (quality.true_positives, quality.false_positives, quality.false_negatives)
        ]
        assert found == [tp, fp, fn]
        np.testing.assert_allclose(float(quality.pq[c]), pq, rtol=0, atol=1e-14)
        if tp:
            np.testing.assert_allclose(float(quality.sq[c] * quality.rq[c]), pq, rtol=0, atol=1e-14)
    assert quality.pq[2].isnan()


def test_exactly_one_half_does_not_match():
    truth, guess = torch.tensor([[1, 1, 1, 2]]), torch.tensor([[1, 1, 2, 2]])
    quality = panoptic_quality(truth, {1: 0, 2: 0}, guess, {1: 0, 2: 0}, 1)
    # 1 with 1: 2/3, a match; 2 with 2: 1/2, none.
    assert (
        int(quality.true_positives),
        int(quality.false_positives),
        int(quality.false_negatives),
    ) == (1, 1, 1)
    assert float(quality.pq) == pytest.approx((2 / 3) / 2, abs=1e-15)


def test_a_prediction_in_the_void_is_no_mistake_but_half_of_it_is():
    truth = torch.tensor([[0, 0, 0, 1, 1, 1]])
    inside, half = torch.tensor([[7, 7, 7, 8, 8, 8]]), torch.tensor([[0, 7, 7, 7, 7, 8]])
    classes = {7: 1, 8: 0}
    assert int(panoptic_quality(truth, {1: 0}, inside, classes, 2).false_positives.sum()) == 0
    assert int(panoptic_quality(truth, {1: 0}, half, classes, 2).false_positives[1]) == 1


def test_the_mean_is_over_the_classes_that_occur():
    ids = torch.tensor([[1, 1, 2, 2]])
    assert panoptic_quality(ids, {1: 0, 2: 2}, ids, {1: 0, 2: 2}, 4).mean == 1.0
    nothing = torch.zeros(1, 4, dtype=torch.int64)
    assert math.isnan(panoptic_quality(nothing, {}, nothing, {}, 2).mean)
    empty = torch.zeros(0, 4, dtype=torch.int64)
    assert math.isnan(panoptic_quality(empty, {}, empty, {}, 2).mean)


def test_the_door_of_panoptic_quality():
    ids = torch.tensor([[1, 2]])
    good = {1: 0, 2: 0}
    with pytest.raises(ValueError, match="target_classes has no class for segment 2"):
        panoptic_quality(ids, {1: 0}, ids, good, 1)
    with pytest.raises(ValueError, match="prediction_classes gives segment 2 the class 1"):
        panoptic_quality(ids, good, ids, {1: 0, 2: 1}, 1)
    with pytest.raises(ValueError, match="prediction_classes gives segment 2 the class -1"):
        panoptic_quality(ids, good, ids, {1: 0, 2: -1}, 1)
    for bad in (ids.float(), ids.bool(), ids.to(torch.complex64)):
        with pytest.raises(TypeError, match="target_ids must hold integers"):
            panoptic_quality(bad, good, ids, good, 1)
        with pytest.raises(TypeError, match="prediction_ids must hold integers"):
            panoptic_quality(ids, good, bad, good, 1)
    with pytest.raises(ValueError, match="same shape"):
        panoptic_quality(ids, good, ids.T, good, 1)
    with pytest.raises(ValueError, match="num_classes"):
        panoptic_quality(ids, good, ids, good, 0)


# ---------------------------------------------------------------- Hausdorff


def all_distances(a, b, spacing):
    first, second = (torch.nonzero(mask).numpy() * np.asarray(spacing) for mask in (a, b))
    return np.sqrt(((first[:, None] - second[None]) ** 2).sum(-1))


@pytest.mark.parametrize("shape", [(9,), (6, 11), (4, 5, 6)])
@pytest.mark.parametrize("percentile", [0, 50, 95, 100])
def test_hausdorff_by_definition(shape, percentile):
    for seed in range(6):
        a, b = random_mask(shape, seed, 0.2), random_mask(shape, seed + 50, 0.3)
        if not (a.any() and b.any()):
            continue
        for spacing in (None, [1.5, 0.5, 2.0][: len(shape)]):
            between = all_distances(a, b, spacing or np.ones(len(shape)))
            expected = max(
                np.percentile(between.min(1), percentile), np.percentile(between.min(0), percentile)
            )
            found = hausdorff_distance(a, b, percentile=percentile, spacing=spacing)
            assert found == pytest.approx(expected, abs=1e-12)
            assert found == hausdorff_distance(b, a, percentile=percentile, spacing=spacing)


def test_hausdorff_against_scipy():
    a, b = random_mask((30, 40), 1, 0.05), random_mask((30, 40), 2, 0.05)
    points = [torch.nonzero(mask).numpy() for mask in (a, b)]
    expected = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
    assert hausdorff_distance(a, b) == pytest.approx(expected, abs=1e-12)


def test_empty_masks():
    nothing, something = torch.zeros(3, 3, dtype=torch.bool), torch.eye(3, dtype=torch.bool)
    assert math.isnan(hausdorff_distance(nothing, nothing))
    assert (
        hausdorff_distance(nothing, something) == hausdorff_distance(something, nothing) == math.inf
    )
    assert hausdorff_distance(something, something) == 0


def test_the_door_of_hausdorff():
    mask = torch.eye(3, dtype=torch.bool)
    with pytest.raises(TypeError, match="target_mask must be a boolean tensor"):
        hausdorff_distance(mask.int(), mask)
    with pytest.raises(TypeError, match="prediction_mask"):
        hausdorff_distance(mask, mask.numpy())
    with pytest.raises(ValueError, match="same shape"):
        hausdorff_distance(mask, mask[:2])
    with pytest.raises(ValueError, match="at least 1-D"):
        hausdorff_distance(mask[0, 0], mask[0, 0])
    for percentile in (-1, 101, math.nan):
        with pytest.raises(ValueError, match="percentile"):
            hausdorff_distance(mask, mask, percentile=percentile)
    for spacing in ((1,), (1, 0), (1, 1, 1)):
        with pytest.raises(ValueError, match="spacing"):
            hausdorff_distance(mask, mask, spacing=spacing)
