"""Scores of a data set, image by image, kept exactly.

People mean three different numbers by "mIoU". This class keeps what all three need, in integers, so
that shards merge in any order to the same bits: the confusion matrix of the data set, and for every
image and class the intersection and the sizes of truth and prediction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from pkg.algos.segmentation_metrics.confusion import _check_labels, confusion_matrix
from pkg.algos.segmentation_metrics.ratios import (
    Absent,
    _mean,
    class_accuracy,
    dice,
    frequency_weighted_iou,
    iou,
    mean_iou,
    mean_pixel_accuracy,
    pixel_accuracy,
)


@dataclass(frozen=True)
class SegmentationScores:
    """Every score under a name that says over what it is taken. Prints as a table.

    Attributes
    ----------
    absent
        The policy for absent classes that all means below follow.
    num_images
        How many images were seen.
    pixel_accuracy, mean_pixel_accuracy, dataset_mean_iou, frequency_weighted_iou, dataset_mean_dice
        From the confusion matrix of the whole data set.
    image_mean_iou
        Mean over images of each image's mIoU.
    pooled_mean_iou
        Mean over all (image, class) pairs at once.
    class_accuracy, dataset_iou, dataset_dice, image_iou
        Per class, shape (C,), float64; `image_iou` is the mean over the images in which the class
        occurs in truth or prediction.
    """

    absent: Absent
    num_images: int
    pixel_accuracy: float
    mean_pixel_accuracy: float
    dataset_mean_iou: float
    frequency_weighted_iou: float
    dataset_mean_dice: float
    image_mean_iou: float
    pooled_mean_iou: float
    class_accuracy: Tensor
    dataset_iou: Tensor
    dataset_dice: Tensor
    image_iou: Tensor

    _ROWS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("pixel accuracy, data set", "pixel_accuracy"),
        ("mean pixel accuracy, data set", "mean_pixel_accuracy"),
        ("mean IoU, data set", "dataset_mean_iou"),
        ("mean IoU, mean over images", "image_mean_iou"),
        ("mean IoU, pooled (image, class) pairs", "pooled_mean_iou"),
        ("frequency-weighted IoU, data set", "frequency_weighted_iou"),
        ("mean Dice, data set", "dataset_mean_dice"),
    )

    def __str__(self) -> str:
        title = f"{self.num_images} images, absent classes: {self.absent}"
        rows = [f"{label:<40}{getattr(self, name):>8.4f}" for label, name in self._ROWS]
        heads = f"{'class':>5}  {'accuracy':>8}  {'IoU':>8}  {'Dice':>8}  {'IoU/image':>9}"
        columns = (self.class_accuracy, self.dataset_iou, self.dataset_dice, self.image_iou)
        table = [
            f"{label:>5}  {a:>8.4f}  {b:>8.4f}  {c:>8.4f}  {d:>9.4f}"
            for label, (a, b, c, d) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True)
            )
        ]
        return "\n".join([title, *rows, "", heads, *table])


class SegmentationMetrics:
    """Accumulates segmentation scores over a data set, batch by batch or shard by shard.

    Parameters
    ----------
    num_classes
        C, the number of classes.
    ignore_index
        A ground-truth label whose pixels are dropped; see `confusion_matrix`.

    Raises
    ------
    ValueError
        If `num_classes` < 1.

    Notes
    -----
    Memory: C² + 3·C·(images) int64 numbers. Ledger: `segmentation_metrics:dataset_mean_iou`,
    `segmentation_metrics:image_mean_iou`, `segmentation_metrics:pooled_mean_iou`.

    Examples
    --------
    >>> metrics = SegmentationMetrics(2)
    >>> metrics.update(torch.tensor([[0, 0], [0, 1]]), torch.tensor([[0, 0], [1, 1]]))
    >>> metrics.compute(absent="exclude").dataset_mean_iou
    0.5833333333333333
    """

    def __init__(self, num_classes: int, *, ignore_index: int | None = None) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        """Forget everything seen so far."""
        c = self.num_classes
        self.confusion = torch.zeros(c, c, dtype=torch.int64)
        #: Per image and class: intersection, pixels in the truth, pixels in the prediction.
        self.per_image = torch.zeros(0, c, 3, dtype=torch.int64)

    def update(self, target: Tensor, prediction: Tensor) -> None:
        """Add one image (H, W), or a batch (B, ...) whose first axis counts the images.

        Raises
        ------
        TypeError, ValueError
            As `confusion_matrix`; nothing is added then.
        """
        _check_labels(target, prediction, self.num_classes, self.ignore_index)
        if target.ndim < 2:
            raise ValueError(
                f"target must be an image (H, W) or a batch, got shape {tuple(target.shape)}"
            )
        if target.ndim == 2:
            target, prediction = target[None], prediction[None]
        matrices = [
            confusion_matrix(a, b, self.num_classes, ignore_index=self.ignore_index).cpu()
            for a, b in zip(target, prediction, strict=True)
        ]
        if not matrices:
            return
        stack = torch.stack(matrices)  # (B, C, C)
        rows = torch.stack((stack.diagonal(dim1=1, dim2=2), stack.sum(2), stack.sum(1)), -1)
        self.confusion += stack.sum(0)
        self.per_image = torch.cat((self.per_image, rows))  # (images, C, 3)

    def merge(self, other: SegmentationMetrics) -> None:
        """Add what another accumulator has seen; the order of merges does not matter.

        Raises
        ------
        ValueError
            If the two count different classes or ignore different labels.
        """
        mine, theirs = ((m.num_classes, m.ignore_index) for m in (self, other))
        if mine != theirs:
            raise ValueError(
                f"other must have the same (num_classes, ignore_index) = {mine}, got {theirs}"
            )
        self.confusion += other.confusion
        self.per_image = torch.cat((self.per_image, other.per_image))

    def sync(self, group: dist.ProcessGroup | None = None) -> None:
        """Make every process of a `torch.distributed` group hold what all of them have seen.

        The int64 matrix is all-reduced; the images' rows are gathered in the order of the ranks. What is
        kept stays on the CPU; for a group that moves GPU tensors alone it is carried over this process's
        current GPU.

        Raises
        ------
        RuntimeError
            If `torch.distributed` has not been initialised.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("sync needs torch.distributed.init_process_group first")
        here, world = _carrier(group), dist.get_world_size(group)
        total = self.confusion.to(here)
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
        lengths = [torch.zeros(1, dtype=torch.int64, device=here) for _ in range(world)]
        dist.all_gather(lengths, torch.tensor([len(self.per_image)], device=here), group=group)
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, self.num_classes, 3, dtype=torch.int64, device=here)
        padded[: len(self.per_image)] = self.per_image
        parts = [torch.zeros_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded, group=group)
        kept = [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]
        self.confusion, self.per_image = total.cpu(), torch.cat(kept).cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on later: plain integers and two int64 tensors."""
        return {
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "confusion": self.confusion.clone(),
            "per_image": self.per_image.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that `state_dict` returned.

        Raises
        ------
        ValueError
            If it is of an accumulator with other classes or another ignored label.
        """
        mine = (self.num_classes, self.ignore_index)
        theirs = (state["num_classes"], state["ignore_index"])
        if mine != theirs:
            raise ValueError(f"state must have (num_classes, ignore_index) = {mine}, got {theirs}")
        self.confusion = state["confusion"].clone()
        self.per_image = state["per_image"].clone()

    def compute(self, *, absent: Absent = "exclude") -> SegmentationScores:
        """Return all scores of what has been seen.

        Parameters
        ----------
        absent
            What a class absent from truth and prediction contributes to a mean: nothing, 0 or 1.
            For the per-image and pooled values, absent from that image.

        Returns
        -------
        SegmentationScores
            NaN where there is nothing to score.
        """
        both, truth, guess = self.per_image.unbind(-1)  # each (images, C)
        image_iou = both.double() / (truth + guess - both).double()
        cm = self.confusion
        return SegmentationScores(
            absent=absent,
            num_images=len(self.per_image),
            pixel_accuracy=float(pixel_accuracy(cm)),
            mean_pixel_accuracy=float(mean_pixel_accuracy(cm, absent=absent)),
            dataset_mean_iou=float(mean_iou(cm, absent=absent)),
            frequency_weighted_iou=float(frequency_weighted_iou(cm)),
            dataset_mean_dice=float(_mean(dice(cm), absent)),
            image_mean_iou=_exact_mean(_mean(image_iou, absent)),
            pooled_mean_iou=_pooled(image_iou, absent),
            class_accuracy=class_accuracy(cm),
            dataset_iou=iou(cm),
            dataset_dice=dice(cm),
            image_iou=torch.tensor(
                [_exact_mean(column) for column in image_iou.T], dtype=torch.float64
            ),
        )


def _exact_mean(values: Tensor) -> float:
    """Mean of the values that are not NaN, with a sum that does not depend on their order."""
    kept = values[~values.isnan()].tolist()
    return math.fsum(kept) / len(kept) if kept else float("nan")


def _pooled(image_iou: Tensor, absent: Absent) -> float:
    """Mean over (image, class) pairs, of the images that have any pixel at all."""
    seen = image_iou[~image_iou.isnan().all(1)]
    if absent == "exclude":
        return _exact_mean(seen)
    return _exact_mean(seen.nan_to_num(nan=1.0 if absent == "one" else 0.0))


def _carrier(group: dist.ProcessGroup | None) -> torch.device:
    """Return the device whose tensors a group can move: NCCL takes no others than the GPU's."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
