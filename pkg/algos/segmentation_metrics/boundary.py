"""Boundary IoU: the overlap of two masks, measured only near their contours."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pkg.algos.segmentation_metrics.confusion import _check_labels, _first_invalid, _kept


def boundary_width(height: int, width: int, dilation_ratio: float = 0.02) -> int:
    """Return the contour's width in pixels: a share of the image's diagonal, at least 1.

    Parameters
    ----------
    height, width
        Size of the image in pixels.
    dilation_ratio
        Share of the diagonal, > 0. The paper uses 0.02 (COCO) and 0.005 (Cityscapes).

    Returns
    -------
    int
        Width d in pixels.

    Raises
    ------
    ValueError
        If `dilation_ratio` is not a positive finite number.

    Notes
    -----
    Cheng et al. 2021 (arXiv:2103.16562), section 4. Ledger: `segmentation_metrics:boundary_width`.

    Examples
    --------
    >>> boundary_width(375, 500)
    12
    """
    if not (math.isfinite(dilation_ratio) and dilation_ratio > 0):
        raise ValueError(f"dilation_ratio must be positive and finite, got {dilation_ratio}")
    return max(1, round(dilation_ratio * math.sqrt(height * height + width * width)))


def mask_boundary(mask: Tensor, width: int) -> Tensor:
    """Return the pixels of a mask that lie within `width` pixels of its complement.

    Distance is counted in king's moves (a 3x3 square, eroded `width` times), and everything outside
    the image belongs to the complement.

    Parameters
    ----------
    mask
        Boolean, shape (..., H, W).
    width
        d >= 1, in pixels.

    Returns
    -------
    Tensor
        Boolean, shape (..., H, W): the mask minus its erosion.

    Raises
    ------
    TypeError
        If `mask` is not boolean.
    ValueError
        If `mask` has fewer than two dimensions or `width` < 1.

    Notes
    -----
    Cheng et al. 2021 (arXiv:2103.16562), section 4. Ledger: `segmentation_metrics:mask_boundary`.

    Examples
    --------
    >>> mask_boundary(torch.ones(3, 4, dtype=torch.bool), 1).int()
    tensor([[1, 1, 1, 1],
            [1, 0, 0, 1],
            [1, 1, 1, 1]], dtype=torch.int32)
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}")
    if mask.ndim < 2:
        raise ValueError(f"mask must have shape (..., H, W), got {tuple(mask.shape)}")
    if width < 1:
        raise ValueError(f"width must be at least 1 pixel, got {width}")
    if not bool(mask.any()):  # most classes are in few images, and a window costs time
        return mask.clone()
    # Erosion by a (2d+1)-square is d erosions by a 3x3 square, and separates into rows and columns.
    # A pixel survives if the complement's maximum over its window is 0.
    outside = (~mask).float().reshape(-1, *mask.shape[-2:])  # (n, H, W)
    outside = F.pad(outside, (width, width, width, width), value=1.0)  # (n, H+2d, W+2d)
    outside = F.max_pool2d(outside, (1, 2 * width + 1), stride=1)  # (n, H+2d, W)
    outside = F.max_pool2d(outside, (2 * width + 1, 1), stride=1)  # (n, H, W)
    return mask & outside.reshape(mask.shape).bool()


def boundary_iou(
    target: Tensor,
    prediction: Tensor,
    num_classes: int,
    *,
    dilation_ratio: float = 0.02,
    ignore_index: int | None = None,
) -> Tensor:
    """Intersection over union of each class, restricted to the two masks' boundary regions.

    The interior of a large object is easy and makes up most of its pixels, so IoU hardly notices a
    bad contour. Here only the inner strip of each mask counts.

    Parameters
    ----------
    target, prediction
        Integer labels, shape (H, W) or (..., H, W); every leading index is an image of its own.
    num_classes
        C, the number of classes.
    dilation_ratio
        Width of the strip as a share of the image's diagonal; see `boundary_width`.
    ignore_index
        Ground-truth pixels with this label belong to no class, and predictions there to none
        either: the strip of both masks then runs along the void as along any other complement.

    Returns
    -------
    Tensor
        Shape (..., C), float64; NaN where a class is absent from truth and prediction.

    Raises
    ------
    TypeError, ValueError
        As `confusion_matrix`; also if the labels are no images.

    Notes
    -----
    Cheng et al. 2021 (arXiv:2103.16562), section 4. Ledger: `segmentation_metrics:boundary_iou`.

    Examples
    --------
    >>> target = torch.zeros(40, 40, dtype=torch.uint8)
    >>> target[10:30, 10:30] = 1
    >>> prediction = target.roll(1, dims=1)
    >>> boundary_iou(target, prediction, 2).round(decimals=3)
    tensor([0.7020, 0.3330], dtype=torch.float64)
    """
    _check_labels(target, prediction, num_classes, ignore_index)
    if target.ndim < 2:
        raise ValueError(f"target must have shape (..., H, W), got {tuple(target.shape)}")
    width = boundary_width(target.shape[-2], target.shape[-1], dilation_ratio)
    wrong = _first_invalid(target, prediction, num_classes, ignore_index)
    if wrong:
        raise ValueError(wrong)
    kept = _kept(target, ignore_index)
    scores = []
    for label in range(num_classes):  # one class at a time: C masks at once would not fit
        a = mask_boundary(kept & (target == label), width)
        b = mask_boundary(kept & (prediction == label), width)
        scores.append((a & b).sum((-2, -1)).double() / (a | b).sum((-2, -1)).double())
    return torch.stack(scores, -1)
