"""Segmentation metrics: how right a label map is.

One confusion matrix gives pixel accuracy, class accuracy, IoU, Dice and their means
(`pkg.algos.segmentation_metrics.ratios`). `SegmentationMetrics` accumulates a data set and reports
data-set, per-image and pooled values side by side. `boundary_iou`, `panoptic_quality` and
`hausdorff_distance` look at what those cannot see: contours, objects, and the worst mistake.

The chapter "Segmentation metrics" derives each of them and compares it with this code.
"""

from pkg.algos.segmentation_metrics.accumulator import SegmentationMetrics, SegmentationScores
from pkg.algos.segmentation_metrics.boundary import boundary_iou, boundary_width, mask_boundary
from pkg.algos.segmentation_metrics.confusion import confusion_matrix
from pkg.algos.segmentation_metrics.hausdorff import hausdorff_distance
from pkg.algos.segmentation_metrics.panoptic import PanopticQuality, panoptic_quality
from pkg.algos.segmentation_metrics.ratios import (
    class_accuracy,
    dice,
    frequency_weighted_iou,
    iou,
    mean_iou,
    mean_pixel_accuracy,
    pixel_accuracy,
)

#: Results: they carry numbers that the functions computed, and compute none themselves.
RESULTS = ("PanopticQuality", "SegmentationScores")

__all__ = [
    "PanopticQuality",
    "SegmentationMetrics",
    "SegmentationScores",
    "boundary_iou",
    "boundary_width",
    "class_accuracy",
    "confusion_matrix",
    "dice",
    "frequency_weighted_iou",
    "hausdorff_distance",
    "iou",
    "mask_boundary",
    "mean_iou",
    "mean_pixel_accuracy",
    "panoptic_quality",
    "pixel_accuracy",
]
