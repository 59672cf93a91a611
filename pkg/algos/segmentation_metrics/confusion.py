"""The confusion matrix: the one pass over the pixels from which the ratios follow."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.algos.segmentation_metrics.counts import count_label_pairs


def confusion_matrix(
    target: Tensor, prediction: Tensor, num_classes: int, *, ignore_index: int | None = None
) -> Tensor:
    """Count the pixels of every (true class, predicted class) pair.

    Parameters
    ----------
    target
        Ground-truth labels, any shape, any integer dtype.
    prediction
        Predicted labels, same shape and device; the dtype may differ.
    num_classes
        C, the number of classes; labels are 0 .. C-1.
    ignore_index
        A ground-truth label whose pixels are dropped, whatever was predicted there (255 for the
        void of PASCAL VOC). It may also be one of 0 .. C-1: its row is then 0, and its column still
        counts the pixels of other classes that were given it.

    Returns
    -------
    Tensor
        Shape (C, C), int64, on the device of `target`: rows ground truth, columns prediction.

    Raises
    ------
    TypeError
        If the labels are not integers (probabilities need an argmax first).
    ValueError
        If shapes or devices differ, `num_classes` < 1, or a pixel that is not ignored carries a
        label outside 0 .. C-1. Nothing is clamped or dropped in silence.

    Notes
    -----
    Ledger: `segmentation_metrics:confusion_matrix`. On a CUDA device this runs the Triton kernel of
    `pkg.cuda.segmentation_metrics`; reading the out-of-range counter synchronises.

    Examples
    --------
    >>> target = torch.tensor([[0, 0, 1], [1, 1, 255]])
    >>> prediction = torch.tensor([[0, 1, 1], [1, 0, 0]])
    >>> confusion_matrix(target, prediction, 2, ignore_index=255)
    tensor([[1, 1],
            [1, 2]])
    """
    _check_labels(target, prediction, num_classes, ignore_index)
    counts, invalid = count_label_pairs(target, prediction, num_classes, ignore_index)
    if int(invalid):
        raise ValueError(_first_invalid(target, prediction, num_classes, ignore_index))
    return counts


def _check_labels(
    target: Tensor, prediction: Tensor, num_classes: int, ignore_index: int | None
) -> None:
    for name, labels in (("target", target), ("prediction", prediction)):
        if not isinstance(labels, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"{name} must hold integer labels, got {labels.dtype}")
    if target.shape != prediction.shape:
        raise ValueError(
            "target and prediction must have the same shape, "
            f"got {tuple(target.shape)} and {tuple(prediction.shape)}"
        )
    if target.device != prediction.device:
        raise ValueError(
            f"target and prediction must be on one device, got {target.device} and "
            f"{prediction.device}"
        )
    for name, value in (("num_classes", num_classes), ("ignore_index", ignore_index)):
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if num_classes is None or num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")


def _kept(target: Tensor, ignore_index: int | None) -> Tensor:
    """Return where the truth is not to be ignored."""
    if ignore_index is None:
        return torch.ones_like(target, dtype=torch.bool)
    return target.long() != ignore_index


def _first_invalid(
    target: Tensor, prediction: Tensor, num_classes: int, ignore_index: int | None
) -> str:
    """Say which label is out of range, and where; nothing if all are right."""
    kept = _kept(target, ignore_index)
    expected = f"0..{num_classes - 1}"
    for name, labels in (("target", target), ("prediction", prediction)):
        values = labels.long()
        bad = kept & ((values < 0) | (values >= num_classes))
        if bool(bad.any()):
            index = tuple(int(x) for x in bad.nonzero()[0])
            hint = "" if ignore_index is None else f" (ignore_index={ignore_index} drops by target)"
            return (
                f"{name} has label {int(values[index])} at index {index}; expected {expected}{hint}"
            )
    return ""
