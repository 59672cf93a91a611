"""Pictures of handwritten digits with their labels: small ones that are always there, and MNIST."""

from __future__ import annotations

import gzip
import io
import pickle
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkg.data.cache import DataError, read

SPLITS = ("train", "validation", "test")
_MNIST = "mnist/data/mnist.pkl.gz"
#: All that a pickle of NumPy arrays needs. Nothing else is looked up, so nothing else can run.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *a: np.ndarray.__new__(np.ndarray, (0,), "b"),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Grey pictures, and the digit that each of them shows.

    Attributes
    ----------
    images
        Grey levels, shape (N, 1, H, W), uint8, from 0 (background) to `levels` - 1.
    labels
        Digits, shape (N,), int64.
    levels
        How many grey levels there are. This is the number of bins of a likelihood in bits per
        dimension.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    levels: int

    def __len__(self) -> int:
        return len(self.labels)


def digits(split: str = "train") -> LabelledImages:
    """Return scikit-learn's 8 by 8 digits, divided once and for all.

    Parameters
    ----------
    split
        `train` (1,285 pictures), `validation` (256) or `test` (256). Of every seven pictures in the
        data set's order the sixth is for validation and the seventh for the test.

    Returns
    -------
    LabelledImages
        17 grey levels, 0 to 16.

    Raises
    ------
    ValueError
        If there is no split of this name.

    Examples
    --------
    >>> digits("test").images.shape
    (256, 1, 8, 8)
    """
    _known(split)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    # Seven shares no factor with the ten digits, so that every split has about as many of each.
    turn = np.arange(len(labels)) % 7
    here = {"train": turn < 5, "validation": turn == 5, "test": turn == 6}[split]
    pictures = images[here].astype(np.uint8).reshape(-1, 1, 8, 8)
    return LabelledImages(pictures, labels[here].astype(np.int64), levels=17)


def mnist(split: str = "train") -> LabelledImages:
    """Return MNIST, 28 by 28.

    Parameters
    ----------
    split
        `train` (50,000 pictures), `validation` (the last 10,000 of MNIST's training set) or `test`
        (10,000).

    Returns
    -------
    LabelledImages
        256 grey levels.

    Raises
    ------
    ValueError
        If there is no split of this name.
    DataError
        If the data cannot be fetched, is damaged, or asks for code to be run.

    Examples
    --------
    >>> mnist("test").images.shape
    (10000, 1, 28, 28)
    """
    _known(split)
    pixels, labels = _mnist()[SPLITS.index(split)]
    return LabelledImages(pixels.copy(), labels.copy(), levels=256)


@lru_cache(maxsize=1)
def _mnist() -> tuple[tuple[NDArray[np.uint8], NDArray[np.int64]], ...]:
    stored = unpickle_arrays(gzip.decompress(read("mnist", _MNIST).read_bytes()))
    parts = []
    for pixels, labels in stored:  # pixels are grey levels over 256, in float32: exact
        levels = (pixels * np.float32(256)).astype(np.uint8).reshape(-1, 1, 28, 28)
        parts.append((levels, labels.astype(np.int64)))
    return tuple(parts)


def unpickle_arrays(content: bytes) -> Any:
    """Return what a pickle of NumPy arrays, tuples and lists holds; run nothing that it names.

    Raises
    ------
    DataError
        If the pickle names anything but the three things that an array needs.
    """
    return _Arrays(io.BytesIO(content), encoding="latin1").load()


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(f"the pickle asks for {module}.{name}; only arrays are read")
        return _ALLOWED[module, name]


def _known(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
