"""Published bugs of segmentation metrics."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from pkg.algos.segmentation_metrics import SegmentationMetrics, iou
from pkg.data import voc_masks
from pkg.data.predictions import colour_clusters
from tests.museum import Exhibit, Museum


class MeanOverPairs(SegmentationMetrics):
    """Reports the pooled mean as the mIoU of the data set."""

    def compute(self, *, absent="exclude"):
        result = super().compute(absent=absent)
        return replace(result, dataset_mean_iou=result.pooled_mean_iou)


def absent_is_zero(cm, *, absent):
    """Replaces 0/0 by 0 and averages over all classes."""
    return iou(cm).nan_to_num(nan=0.0).mean(-1)


class ScoreRowDropped(SegmentationMetrics):
    """Counts void as one more class and leaves out that class's score."""

    def __init__(self, num_classes, *, ignore_index):
        super().__init__(num_classes + 1)
        self.void = ignore_index

    def update(self, target, prediction):
        last = self.num_classes - 1
        super().update(torch.where(target == self.void, last, target), prediction)

    def compute(self, *, absent="exclude"):
        kept = iou(self.confusion)[:-1]
        return replace(super().compute(absent=absent), dataset_mean_iou=float(kept.nanmean()))


@cache
def _clusters() -> list[Any]:
    """Return the chapter's colour clusters of the photographs of VOC."""
    return [colour_clusters(q.image, q.mask, n_clusters=24) for q in voc_masks()]


@cache
def _scored(metrics: type[SegmentationMetrics] = SegmentationMetrics) -> Any:
    """Score the colour clusters on the photographs."""
    counted = metrics(len(voc_masks()[0].class_names), ignore_index=255)
    for sample, guess in zip(voc_masks(), _clusters(), strict=True):
        counted.update(torch.from_numpy(sample.mask)[None], torch.from_numpy(guess)[None])
    return counted


def _cost_of_pairs() -> str:
    right = 100 * _scored().compute().dataset_mean_iou
    wrong = 100 * _scored(MeanOverPairs).compute().dataset_mean_iou
    return (
        f"on the chapter's photographs the colour clusters would be published with mIoU {wrong:.1f} "
        f"instead of {right:.1f}."
    )


def _cost_of_zero() -> str:
    counts = _scored().confusion
    right, wrong = 100 * iou(counts).nanmean(), 100 * absent_is_zero(counts, absent="exclude")
    present = int((~iou(counts).isnan()).sum())
    return (
        f"the photographs show {present} of 21 classes, so even a perfect prediction could reach "
        f"{100 * present / 21:.0f} at most; the colour clusters fall from {right:.1f} to {wrong:.1f}."
    )


def _cost_of_dropped_row() -> str:
    right = 100 * _scored().compute().dataset_mean_iou
    wrong = 100 * _scored(ScoreRowDropped).compute().dataset_mean_iou
    void = [(sample.mask == 255).mean() for sample in voc_masks()]
    return (
        f"{100 * sum(void) / len(void):.0f} % of the photographs' pixels are void, and they take "
        f"{right - wrong:.1f} points from the colour clusters ({right:.1f} becomes {wrong:.1f})."
    )


museum = Museum(
    "segmentation_metrics",
    Exhibit(
        name="pooled_mean",
        title="The pooled mean under the name mIoU",
        project="torchmetrics",
        threads=(
            ("torchmetrics #2558", "https://github.com/Lightning-AI/torchmetrics/issues/2558"),
        ),
        story="""`MeanIoU` of torchmetrics averages over all (image, class) pairs, where papers
        report the value of the data set. Both are means of IoU, and they are different numbers.""",
        entry="dataset_mean_iou",
        variant=MeanOverPairs,
        cost=_cost_of_pairs,
    ),
    Exhibit(
        name="absent_is_zero",
        title="An absent class counted as 0",
        project="torchmetrics",
        threads=(
            ("torchmetrics #2558", "https://github.com/Lightning-AI/torchmetrics/issues/2558"),
            ("#2866", "https://github.com/Lightning-AI/torchmetrics/issues/2866"),
        ),
        story="""A class that is nowhere, and was rightly claimed nowhere, pulls the mean down. Its
        IoU is 0/0, and 0 is a decision that nobody announced.""",
        entry="mean_iou_exclude",
        variant=absent_is_zero,
        cost=_cost_of_zero,
    ),
    Exhibit(
        name="score_row_dropped",
        title="Ignored pixels dropped as a row of scores",
        project="torchmetrics",
        threads=(("torchmetrics #312", "https://github.com/Lightning-AI/torchmetrics/issues/312"),),
        story="""The ignored class is counted like any other, and only its score is left out at the
        end. But its pixels are still in the unions of the classes that were predicted on them, so
        void costs points after all.""",
        entry="dataset_mean_iou",
        variant=ScoreRowDropped,
        cost=_cost_of_dropped_row,
    ),
)
