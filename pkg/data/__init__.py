"""Real data by name, fetched once and pinned by version and SHA-256.

    from pkg.data import voc_masks
    samples = voc_masks()

`python -m pkg.data list` shows what there is, `python -m pkg.data fetch NAME` brings it. Files lie in
the user's cache folder, or in the one that `CHECKED_DATA_DIR` names. No pickle is ever executed: the
one that MNIST travels in is read by an unpickler that knows NumPy's arrays and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pkg.data.cache import DataError, cache_folder, fetch, read
from pkg.data.digits import LabelledImages, digits, mnist
from pkg.data.sources import SOURCES

__all__ = [
    "DataError",
    "LabelledImages",
    "LabelledPhotograph",
    "StereoPair",
    "cache_folder",
    "digits",
    "fetch",
    "mnist",
    "photograph",
    "play",
    "stereo_pair",
    "voc_masks",
]


@dataclass(frozen=True, eq=False)
class LabelledPhotograph:
    """A photograph with a label for every pixel.

    Attributes
    ----------
    name
        The photograph's name in its data set.
    image
        RGB, shape (H, W, 3), uint8.
    mask
        Class of every pixel, shape (H, W), uint8; 255 is void.
    instances
        Object of every pixel, shape (H, W), uint8; 0 is no object.
    class_names
        The name of class i at place i; class 0 is the background.
    licence
        Of the photograph.
    """

    name: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    class_names: tuple[str, ...]
    licence: str


@dataclass(frozen=True, eq=False)
class StereoPair:
    """A rectified stereo pair with its true disparity.

    Attributes
    ----------
    left, right
        RGB, shape (H, W, 3), uint8.
    disparity
        Pixels by which a point lies further left in the right image, shape (H, W), float32; NaN
        where it is not known.
    """

    left: NDArray[np.uint8]
    right: NDArray[np.uint8]
    disparity: NDArray[np.float32]


def voc_masks() -> tuple[LabelledPhotograph, ...]:
    """Return the three labelled photographs of PASCAL VOC 2011 that the labelme package carries.

    Returns
    -------
    tuple of LabelledPhotograph
        21 classes; 255 marks void pixels.

    Raises
    ------
    DataError
        If the data cannot be fetched or is damaged.

    Examples
    --------
    >>> [sample.name for sample in voc_masks()]
    ['2011_000003', '2011_000006', '2011_000025']
    """
    source = SOURCES["voc_masks"]
    names = [m for m in source.members if m.endswith("class_names.txt")]
    class_names = tuple(read("voc_masks", names[0]).read_text().split("\n")[:21])
    samples = []
    for member in (m for m in source.members if m.endswith(".jpg")):
        name = PurePosixPath(member).stem
        labels = member.replace("data_annotated", "data_dataset_voc/{}").replace(".jpg", ".png")
        samples.append(
            LabelledPhotograph(
                name=name,
                image=_pixels("voc_masks", member, "RGB"),
                mask=_pixels("voc_masks", labels.format("SegmentationClass")),
                instances=_pixels("voc_masks", labels.format("SegmentationObject")),
                class_names=class_names,
                licence=source.licence,
            )
        )
    return tuple(samples)


def photograph(name: str) -> NDArray[np.uint8]:
    """Return one of scikit-image's photographs.

    Parameters
    ----------
    name
        `astronaut`, `camera`, `chelsea` (a cat), `coffee`, `coins` or `rocket`.

    Returns
    -------
    array
        uint8; RGB with shape (H, W, 3), or grey with shape (H, W).

    Raises
    ------
    ValueError
        If there is no photograph of this name.
    DataError
        If the data cannot be fetched or is damaged.

    Examples
    --------
    >>> photograph("coffee").shape
    (400, 600, 3)
    """
    members = {PurePosixPath(member).stem: member for member in SOURCES["pictures"].members}
    known = sorted(stem for stem in members if not stem.startswith("motorcycle"))
    if name not in known:
        raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
    return _pixels("pictures", members[name])


def play(name: str) -> str:
    """Return the text of one of Shakespeare's plays, in modern spelling.

    Parameters
    ----------
    name
        `hamlet`, `lear`, `macbeth`, `othello` or `tempest`.

    Raises
    ------
    ValueError
        If there is no play of this name.
    DataError
        If the data cannot be fetched or is damaged.

    Examples
    --------
    >>> play("hamlet").splitlines()[0]
    'HAMLET, PRINCE OF DENMARK'
    """
    members = {PurePosixPath(m).stem.removesuffix("_gut"): m for m in SOURCES["plays"].members}
    if name not in members:
        raise ValueError(f"name must be one of {', '.join(members)}, got {name!r}")
    return read("plays", members[name]).read_text(encoding="ascii")


def stereo_pair() -> StereoPair:
    """Return the Middlebury 2014 "motorcycle" stereo pair, a quarter of its size.

    Raises
    ------
    DataError
        If the data cannot be fetched or is damaged.

    Examples
    --------
    >>> stereo_pair().left.shape
    (500, 741, 3)
    """
    path = read("pictures", "skimage/data/motorcycle_disp.npz")
    with np.load(path, allow_pickle=False) as stored:
        disparity = stored["arr_0"].astype(np.float32)
    return StereoPair(
        left=_pixels("pictures", "skimage/data/motorcycle_left.png", "RGB"),
        right=_pixels("pictures", "skimage/data/motorcycle_right.png", "RGB"),
        disparity=np.where(np.isfinite(disparity), disparity, np.float32("nan")),
    )


def _pixels(name: str, member: str, mode: str | None = None) -> NDArray[np.uint8]:
    """Decode a verified picture; a palette picture gives its labels, not its colours."""
    from PIL import Image

    with Image.open(read(name, member)) as picture:
        return np.array(picture.convert(mode) if mode else picture, dtype=np.uint8)
