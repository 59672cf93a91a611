"""The ratios: every score that is a function of the confusion matrix alone.

All of them take a matrix of counts `(..., C, C)`, rows ground truth and columns prediction, and
return float64. Sums are taken over the integers first, so the only rounding is that of the final
divisions and means. Where a ratio is 0/0 the answer is NaN: the score does not exist, and a number
in its place would be an opinion (the `absent` policies are those opinions, by name).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Absent = Literal["exclude", "zero", "one"]


def _counts(cm: Tensor) -> Tensor:
    """Return `cm` after checking that it is a stack of square matrices of counts."""
    if not isinstance(cm, Tensor):
        raise TypeError(f"cm must be a torch.Tensor, got {type(cm).__name__}")
    if cm.dtype == torch.bool or cm.is_complex():
        raise TypeError(f"cm must hold counts (integers or floats), got {cm.dtype}")
    if cm.ndim < 2 or cm.shape[-1] != cm.shape[-2] or cm.shape[-1] == 0:
        raise ValueError(f"cm must have shape (..., C, C) with C >= 1, got {tuple(cm.shape)}")
    if not bool((cm >= 0).all()):
        raise ValueError("cm must hold counts, got a negative or NaN value")
    # Sums of narrow integers or floats could lose counts; int64 and float64 cannot here.
    return cm.double() if cm.is_floating_point() else cm.long()


def _diagonal(cm: Tensor) -> Tensor:
    return cm.diagonal(dim1=-2, dim2=-1)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide in float64; 0/0 is NaN."""
    return numerator.double() / denominator.double()


def _mean(scores: Tensor, absent: Absent) -> Tensor:
    """Average over the last axis; `absent` says what a NaN score stands for."""
    if absent not in ("exclude", "zero", "one"):
        raise ValueError(f"absent must be 'exclude', 'zero' or 'one', got {absent!r}")
    missing = scores.isnan()
    present = (~missing).sum(-1)
    # A matrix without a single pixel has no score at all, whatever the policy.
    if absent == "exclude":
        return _ratio(scores.nan_to_num(nan=0.0).sum(-1), present)
    filled = torch.where(missing, 1.0 if absent == "one" else 0.0, scores)
    return torch.where(present > 0, filled.mean(-1), float("nan"))


def pixel_accuracy(cm: Tensor) -> Tensor:
    """Share of all pixels that carry the right label.

    Parameters
    ----------
    cm
        Counts, shape (..., C, C); rows ground truth, columns prediction.

    Returns
    -------
    Tensor
        Shape (...), float64, in [0, 1]; NaN for an empty matrix.

    Raises
    ------
    TypeError, ValueError
        If `cm` is not a stack of square matrices of counts.

    Notes
    -----
    Garcia-Garcia et al. 2017 (arXiv:1704.06857), section 4.1. Ledger:
    `segmentation_metrics:pixel_accuracy`.

    Examples
    --------
    >>> pixel_accuracy(torch.tensor([[98, 1], [0, 1]]))
    tensor(0.9900, dtype=torch.float64)
    """
    cm = _counts(cm)
    return _ratio(_diagonal(cm).sum(-1), cm.sum((-2, -1)))


def class_accuracy(cm: Tensor) -> Tensor:
    """Share of each class's ground-truth pixels that carry its label (the class's recall).

    Parameters
    ----------
    cm
        Counts, shape (..., C, C); rows ground truth, columns prediction.

    Returns
    -------
    Tensor
        Shape (..., C), float64; NaN where the class has no ground-truth pixel.

    Raises
    ------
    TypeError, ValueError
        If `cm` is not a stack of square matrices of counts.

    Notes
    -----
    Ledger: `segmentation_metrics:class_accuracy`.

    Examples
    --------
    >>> class_accuracy(torch.tensor([[3, 1], [0, 0]]))
    tensor([0.7500,    nan], dtype=torch.float64)
    """
    cm = _counts(cm)
    return _ratio(_diagonal(cm), cm.sum(-1))


def mean_pixel_accuracy(cm: Tensor, *, absent: Absent = "exclude") -> Tensor:
    """Mean of the class accuracies.

    Parameters
    ----------
    cm
        Counts, shape (..., C, C); rows ground truth, columns prediction.
    absent
        What a class without ground-truth pixels contributes: nothing, 0 or 1.

    Returns
    -------
    Tensor
        Shape (...), float64; NaN for an empty matrix.

    Raises
    ------
    TypeError, ValueError
        If `cm` is not a stack of square matrices of counts, or `absent` is no policy.

    Notes
    -----
    Garcia-Garcia et al. 2017 (arXiv:1704.06857), section 4.1. Ledger:
    `segmentation_metrics:mean_pixel_accuracy`.

    Examples
    --------
    >>> mean_pixel_accuracy(torch.tensor([[3, 1], [0, 4]]))
    tensor(0.8750, dtype=torch.float64)
    """
    return _mean(class_accuracy(cm), absent)


def iou(cm: Tensor) -> Tensor:
    """Intersection over union of each class (the Jaccard index).

    Parameters
    ----------
    cm
        Counts, shape (..., C, C); rows ground truth, columns prediction.

    Returns
    -------
    Tensor
        Shape (..., C), float64; NaN where a class is absent from truth and prediction.

    Raises
    ------
    TypeError, ValueError
        If `cm` is not a stack of square matrices of counts.

    Notes
    -----
    Jaccard 1912; Everingham et al. 2010. Ledger: `segmentation_metrics:iou`.

    Examples
    --------
    >>> iou(torch.tensor([[2, 1], [1, 0]]))
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    cm = _counts(cm)
    both = _diagonal(cm)
    return _ratio(both, cm.sum(-1) + cm.sum(-2) - both)


def mean_iou(cm: Tensor, *, absent: Absent = "exclude") -> Tensor:
    """Mean intersection over union of the classes (mIoU).

    Parameters
    ----------
    cm
        Counts, shape (..., C, C); rows ground truth, columns prediction. One matrix of the whole
        data set gives the field's mIoU; a stack gives one value per matrix.
    absent
        What a class absent from truth and prediction contributes: nothing, 0 or 1.

    Returns
    -------
    Tensor
        Shape (...), float64; NaN for an empty matrix.

    Raises
    ------
    TypeError, ValueError
        If `cm` is not a stack of square matrices of counts, or `absent` is no policy.

    Notes
    -----
    Garcia-Garcia et al. 2017 (arXiv:1704.06857), section 4.1. Ledger:
    `segmentation_metrics:mean_iou`.

    Examples
    --------
    >>> one_class_only = torch.tensor([[100, 0], [0, 0]])
    >>> [float(mean_iou(one_class_only, absent=a)) for a in ("exclude", "zero", "one")]
    [1.0, 0.5, 1.0]
    """
    return _mean(iou(cm), absent)


def frequency_weighted_iou(cm: Tensor) -> Tensor:
    """Mean of the class IoUs, each weighted by the class's share of the ground truth.

    Parameters
    ----------
    cm
        Counts, shape (..., C, C); rows ground truth, columns prediction.

    Returns
    -------
    Tensor
        Shape (...), float64; NaN for an empty matrix. A class without ground truth has weight 0.

    Raises
    ------
    TypeError, ValueError
        If `cm` is not a stack of square matrices of counts.

    Notes
    -----
    Long, Shelhamer and Darrell 2015. Ledger: `segmentation_metrics:frequency_weighted_iou`.

    Examples
    --------
    >>> frequency_weighted_iou(torch.tensor([[6, 2], [0, 0]]))
    tensor(0.7500, dtype=torch.float64)
    """
    cm = _counts(cm)
    frequency = cm.sum(-1)
    weighted = frequency.double() * iou(cm).nan_to_num(nan=0.0)
    return _ratio(weighted.sum(-1), frequency.sum(-1))


def dice(cm: Tensor) -> Tensor:
    """Dice coefficient of each class (the F1 score of its pixels).

    Parameters
    ----------
    cm
        Counts, shape (..., C, C); rows ground truth, columns prediction.

    Returns
    -------
    Tensor
        Shape (..., C), float64; NaN where a class is absent from truth and prediction.

    Raises
    ------
    TypeError, ValueError
        If `cm` is not a stack of square matrices of counts.

    Notes
    -----
    Dice 1945; Sørensen 1948. Ledger: `segmentation_metrics:dice`.

    Examples
    --------
    >>> dice(torch.tensor([[2, 1], [1, 0]]))
    tensor([0.6667, 0.0000], dtype=torch.float64)
    """
    cm = _counts(cm)
    return _ratio(2 * _diagonal(cm), cm.sum(-1) + cm.sum(-2))
