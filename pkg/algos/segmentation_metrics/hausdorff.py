"""Hausdorff distance: how far the worst mistake lies, in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hausdorff_distance(
    target_mask: Tensor,
    prediction_mask: Tensor,
    *,
    percentile: float = 100.0,
    spacing: Sequence[float] | None = None,
) -> float:
    """Largest distance from a pixel of one mask to the nearest pixel of the other.

    Distances are between pixel centres and over all pixels of the two sets. (Medical packages often
    take the contours alone, and that is another number: a pixel deep inside the other mask has
    distance 0 here, and is far from a contour.)

    Parameters
    ----------
    target_mask, prediction_mask
        Boolean, same shape, one or more dimensions.
    percentile
        100 for the distance of Hausdorff; 95 for the usual robust form: the larger of the two
        directed percentiles, linearly interpolated.
    spacing
        Distance between neighbouring pixels along each axis, in any unit; 1 pixel by default.

    Returns
    -------
    float
        Distance in pixels (or the unit of `spacing`). NaN if both masks are empty: there is
        nothing to compare. Infinity if one of them is.

    Raises
    ------
    TypeError
        If a mask is not a boolean tensor.
    ValueError
        If the shapes differ, `percentile` lies outside 0 .. 100, or `spacing` does not fit.

    Notes
    -----
    Huttenlocher, Klanderman and Rucklidge 1993. The distance transform is SciPy's. Ledger:
    `segmentation_metrics:hausdorff_distance`.

    Examples
    --------
    >>> a = torch.zeros(5, 9, dtype=torch.bool)
    >>> b = a.clone()
    >>> a[2, 1], b[2, 5] = True, True
    >>> hausdorff_distance(a, b)
    4.0
    """
    masks = {"target_mask": target_mask, "prediction_mask": prediction_mask}
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{name} must be a boolean tensor, got {kind}")
    if target_mask.shape != prediction_mask.shape or target_mask.ndim == 0:
        raise ValueError(
            "target_mask and prediction_mask must have the same shape, at least 1-D, "
            f"got {tuple(target_mask.shape)} and {tuple(prediction_mask.shape)}"
        )
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must lie in 0..100, got {percentile}")
    if spacing is not None and (
        len(spacing) != target_mask.ndim or not all(step > 0 for step in spacing)
    ):
        raise ValueError(f"spacing must give {target_mask.ndim} positive steps, got {spacing}")
    sizes = int(target_mask.sum()), int(prediction_mask.sum())
    if sizes == (0, 0):
        return float("nan")
    if 0 in sizes:
        return float("inf")
    there = _directed(target_mask, prediction_mask, percentile, spacing)
    back = _directed(prediction_mask, target_mask, percentile, spacing)
    return max(there, back)


def _directed(
    source: Tensor, goal: Tensor, percentile: float, spacing: Sequence[float] | None
) -> float:
    """Percentile over the pixels of `source` of the distance to the nearest pixel of `goal`."""
    import numpy as np
    from scipy.ndimage import distance_transform_edt

    distance = distance_transform_edt(~goal.cpu().numpy(), sampling=spacing)
    return float(np.percentile(distance[source.cpu().numpy()], percentile))
