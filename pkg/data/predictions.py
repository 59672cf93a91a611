"""Label maps to score against a labelled photograph: two simple methods, and known damage.

All of them take and return uint8 label maps of shape (H, W). Void (255) is a label of the ground
truth and no class that a method may predict, so damage starts from the truth with its void filled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkg.data import LabelledPhotograph

Labels = NDArray[np.uint8]
VOID = 255


def fill_void(mask: Labels) -> Labels:
    """Return `mask` with every void pixel given the label of the nearest other pixel.

    Examples
    --------
    >>> fill_void(np.array([[3, 255, 255, 255, 7]], np.uint8)).tolist()
    [[3, 3, 3, 7, 7]]
    """
    from scipy.ndimage import distance_transform_edt

    if not (mask != VOID).any():
        raise ValueError("mask must have a pixel that is not void")
    nearest = distance_transform_edt(mask == VOID, return_distances=False, return_indices=True)
    filled: Labels = mask[tuple(nearest)]
    return filled


def lab(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return CIE L*a*b* (D65) of an sRGB picture, shape (H, W, 3), float64.

    Equal distances in it look about equally different, so it is where colours are clustered.

    Examples
    --------
    >>> lab(np.full((1, 1, 3), 255, np.uint8)).round(2).__abs__().tolist()
    [[[100.0, 0.0, 0.0]]]
    """
    value = image.astype(np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
         [0.0193339, 0.1191920, 0.9503041]]
    )  # fmt: skip
    xyz = linear @ (to_xyz / to_xyz.sum(1, keepdims=True)).T  # white becomes (1, 1, 1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), -1)


def _features(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colour and place of every pixel, shape (H·W, 5); the place counts like 60 units of colour."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width] * (60 / max(height, width))
    return np.concatenate((lab(image), rows[..., None], columns[..., None]), -1).reshape(-1, 5)


def colour_clusters(
    image: NDArray[np.uint8], mask: Labels, *, n_clusters: int = 24, seed: int = 0
) -> Labels:
    """Cluster the pixels by colour and place, and name each cluster after the truth beneath it.

    The naming is an oracle: it looks at `mask`, and gives each cluster the class of most of its pixels.
    No other naming of these clusters has a higher pixel accuracy (a mean of IoU can be higher).

    Parameters
    ----------
    image
        RGB, shape (H, W, 3), uint8.
    mask
        The truth, shape (H, W), 255 is void.
    n_clusters
        How many clusters k-means makes.
    seed
        For the starting points of k-means.

    Returns
    -------
    array
        Label map, shape (H, W), uint8, without void.
    """
    from sklearn.cluster import KMeans

    features = _features(image)
    # Every fifth pixel is enough to place the centres, and keeps the chapter quick.
    means = KMeans(n_clusters, n_init=1, random_state=seed).fit(features[::5])
    cluster = means.predict(features)
    truth = mask.reshape(-1)
    seen = truth != VOID
    votes = np.zeros((n_clusters, VOID), dtype=np.int64)
    np.add.at(votes, (cluster[seen], truth[seen]), 1)
    named: Labels = votes.argmax(1).astype(np.uint8)[cluster].reshape(mask.shape)
    return named


@dataclass(frozen=True, eq=False)
class ColourModel:
    """One Gaussian of colour and place per class: all that it knows it learnt on other photographs.

    Examples
    --------
    >>> from pkg.data import voc_masks
    >>> first, *others = voc_masks()
    >>> prediction = ColourModel.fit(others).predict(first.image)
    >>> prediction.shape == first.mask.shape
    True
    """

    classifier: Any

    @classmethod
    def fit(cls, samples: Iterable[LabelledPhotograph]) -> ColourModel:
        """Fit to every fifth labelled pixel of the photographs."""
        from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

        features, labels = [], []
        for sample in samples:
            seen = sample.mask.reshape(-1) != VOID
            features.append(_features(sample.image)[seen][::5])
            labels.append(sample.mask.reshape(-1)[seen][::5])
        model = QuadraticDiscriminantAnalysis(reg_param=0.01)
        return cls(model.fit(np.concatenate(features), np.concatenate(labels)))

    def predict(self, image: NDArray[np.uint8]) -> Labels:
        """Return the most probable class of every pixel, shape (H, W), uint8."""
        labels: Labels = self.classifier.predict(_features(image)).reshape(image.shape[:2])
        return labels


# ---------------------------------------------------------------- known damage


def all_background(mask: Labels) -> Labels:
    """Return class 0 everywhere: a network that has learnt nothing."""
    return np.zeros_like(mask)


def shift(mask: Labels, rows: int, columns: int) -> Labels:
    """Move the truth by whole pixels; what comes in repeats the edge.

    Examples
    --------
    >>> shift(np.array([[1, 2, 3]], np.uint8), 0, 1).tolist()
    [[1, 1, 2]]
    """
    filled = fill_void(mask)
    height, width = filled.shape
    at_rows = np.clip(np.arange(height) - rows, 0, height - 1)
    at_columns = np.clip(np.arange(width) - columns, 0, width - 1)
    return filled[at_rows][:, at_columns]


def erode(mask: Labels, pixels: int) -> Labels:
    """Let the background eat `pixels` into every object.

    Examples
    --------
    >>> erode(np.array([[0, 1, 1, 1, 0]], np.uint8), 1).tolist()
    [[0, 0, 1, 0, 0]]
    """
    from scipy.ndimage import distance_transform_cdt

    filled = fill_void(mask)
    if not (filled == 0).any():
        return filled
    inside = distance_transform_cdt(filled != 0, metric="chessboard")
    return np.where(inside > pixels, filled, 0).astype(np.uint8)


def dilate(mask: Labels, pixels: int) -> Labels:
    """Let every object grow by `pixels` into the background.

    Examples
    --------
    >>> dilate(np.array([[0, 0, 0, 5, 0]], np.uint8), 1).tolist()
    [[0, 0, 5, 5, 5]]
    """
    from scipy.ndimage import distance_transform_cdt

    filled = fill_void(mask)
    if not filled.any():
        return filled
    distance, nearest = distance_transform_cdt(
        filled == 0, metric="chessboard", return_indices=True
    )
    return np.where(distance <= pixels, filled[tuple(nearest)], filled).astype(np.uint8)


def drop_small(mask: Labels, instances: Labels, largest: int) -> Labels:
    """Miss every object of at most `largest` pixels: the background takes its place."""
    filled = fill_void(mask)
    sizes = np.bincount(instances.reshape(-1))
    lost = [label for label in range(1, len(sizes)) if 0 < sizes[label] <= largest]
    return np.where(np.isin(instances, lost), 0, filled).astype(np.uint8)


def swap_classes(mask: Labels, one: int, other: int) -> Labels:
    """Confuse two classes with each other.

    Examples
    --------
    >>> swap_classes(np.array([[0, 1, 2]], np.uint8), 1, 2).tolist()
    [[0, 2, 1]]
    """
    table = np.arange(256, dtype=np.uint8)
    table[[one, other]] = other, one
    return table[fill_void(mask)]


def speckle(mask: Labels, rate: float, generator: np.random.Generator) -> Labels:
    """Give a share `rate` of the pixels the label of some other pixel of the picture."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in 0..1, got {rate}")
    filled = fill_void(mask)
    drawn = generator.choice(filled.reshape(-1), size=filled.shape)
    return np.where(generator.random(filled.shape) < rate, drawn, filled).astype(np.uint8)


def coarsen(mask: Labels, block: int) -> Labels:
    """Predict at 1/`block` of the size and repeat each pixel, as a network with that stride does.

    Examples
    --------
    >>> coarsen(np.array([[1, 2, 3, 4]], np.uint8), 2).tolist()
    [[2, 2, 4, 4]]
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    filled = fill_void(mask)
    height, width = filled.shape
    rows = np.minimum(np.arange(height) // block * block + block // 2, height - 1)
    columns = np.minimum(np.arange(width) // block * block + block // 2, width - 1)
    return filled[rows][:, columns]
