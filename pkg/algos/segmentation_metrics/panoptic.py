"""Panoptic quality: segments matched one to one, then scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PanopticQuality:
    """Panoptic quality per class, with what it is made of.

    Attributes
    ----------
    pq, sq, rq
        Shape (C,), float64: panoptic, segmentation and recognition quality. NaN
        where a class has no segment in truth or prediction. Where something matched, `pq` is
        `sq * rq`; where nothing did, `pq` and `rq` are 0 and `sq` is NaN.
    true_positives, false_positives, false_negatives
        Shape (C,), int64: matched, unmatched predicted and unmatched true segments.
    """

    pq: Tensor
    sq: Tensor
    rq: Tensor
    true_positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor

    @property
    def mean(self) -> float:
        """Mean of `pq` over the classes that occur; NaN if none does."""
        return float(self.pq.nanmean())


def panoptic_quality(
    target_ids: Tensor,
    target_classes: Mapping[int, int],
    prediction_ids: Tensor,
    prediction_classes: Mapping[int, int],
    num_classes: int,
    *,
    void_id: int | None = 0,
) -> PanopticQuality:
    """Match the segments of two images whose IoU exceeds 1/2, and score the matching.

    A true and a predicted segment of one class match if their IoU is greater than 1/2; no segment
    can then match twice (ledger: `segmentation_metrics:unique_match`).

    Parameters
    ----------
    target_ids, prediction_ids
        Integer segment ids, shape (H, W): every pixel belongs to one segment or to the void.
    target_classes, prediction_classes
        The class, 0 .. C-1, of every segment id that occurs.
    num_classes
        C, the number of classes.
    void_id
        The id of unlabelled pixels, in truth and prediction; None if there are none. Truth's void
        pixels do not count in a union, and a predicted segment of which more than half lies in the
        void is not a false positive.

    Returns
    -------
    PanopticQuality
        Per class, from this pair of images.

    Raises
    ------
    TypeError
        If ids are not integers.
    ValueError
        If shapes differ, a segment has no class, or a class lies outside 0 .. C-1.

    Notes
    -----
    Kirillov et al. 2019 (arXiv:1801.00868), section 4. Ledger:
    `segmentation_metrics:panoptic_quality`.

    Examples
    --------
    >>> truth = torch.tensor([[1, 1, 1, 2, 2, 2]])
    >>> guess = torch.tensor([[7, 7, 7, 7, 8, 8]])
    >>> quality = panoptic_quality(truth, {1: 0, 2: 0}, guess, {7: 0, 8: 0}, 1)
    >>> quality.pq, quality.rq
    (tensor([0.7083], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if target_ids.shape != prediction_ids.shape:
        raise ValueError(
            "target_ids and prediction_ids must have the same shape, "
            f"got {tuple(target_ids.shape)} and {tuple(prediction_ids.shape)}"
        )
    truth = _segments("target", target_ids, target_classes, num_classes, void_id)
    guess = _segments("prediction", prediction_ids, prediction_classes, num_classes, void_id)
    overlap = _overlaps(target_ids, prediction_ids)  # {(true id, predicted id): pixels}
    in_void = {b: overlap.get((void_id, b), 0) for b in guess}

    total = torch.zeros(num_classes, dtype=torch.float64)  # sum of the matched IoUs
    tp, fp, fn = (torch.zeros(num_classes, dtype=torch.int64) for _ in range(3))
    matched_truth, matched_guess = set(), set()
    for (a, b), both in overlap.items():
        if a not in truth or b not in guess or target_classes[a] != prediction_classes[b]:
            continue
        union = truth[a] + guess[b] - both - in_void[b]
        if 2 * both > union:  # IoU > 1/2, in integers
            matched_truth.add(a)
            matched_guess.add(b)
            total[target_classes[a]] += both / union
            tp[target_classes[a]] += 1
    for a in truth.keys() - matched_truth:
        fn[target_classes[a]] += 1
    for b in guess.keys() - matched_guess:
        if 2 * in_void[b] <= guess[b]:
            fp[prediction_classes[b]] += 1
    size = tp.double() + fp.double() / 2 + fn.double() / 2
    return PanopticQuality(total / size, total / tp, tp / size, tp, fp, fn)


def _segments(
    name: str, ids: Tensor, classes: Mapping[int, int], num_classes: int, void_id: int | None
) -> dict[int, int]:
    """Return the size of every segment, after checking that each has a class."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name}_ids must hold integers, got {ids.dtype}")
    found, sizes = ids.unique(return_counts=True)
    segments = dict(zip(found.tolist(), sizes.tolist(), strict=True))
    if void_id is not None:
        segments.pop(void_id, None)
    for segment in segments:
        if segment not in classes:
            raise ValueError(f"{name}_classes has no class for segment {segment}")
        if not 0 <= classes[segment] < num_classes:
            raise ValueError(
                f"{name}_classes gives segment {segment} the class {classes[segment]}; "
                f"expected 0..{num_classes - 1}"
            )
    return segments


def _overlaps(target_ids: Tensor, prediction_ids: Tensor) -> dict[tuple[int | None, int], int]:
    """Return how many pixels each pair of ids shares."""
    pairs = torch.stack((target_ids.flatten().long(), prediction_ids.flatten().long()), -1)
    if not len(pairs):
        return {}
    found, sizes = pairs.unique(dim=0, return_counts=True)
    return {(a, b): size for (a, b), size in zip(found.tolist(), sizes.tolist(), strict=True)}
