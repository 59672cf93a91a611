"""Known damage is exactly the damage that its name says."""

from __future__ import annotations

import numpy as np
import pytest

from pkg.data import predictions as p
from pkg.data import voc_masks


@pytest.fixture(scope="module")
def sample():
    return voc_masks()[1]


def brute_nearest(mask, wanted):
    """For each pixel, the labels of all `wanted` pixels at the least chessboard distance."""
    places = np.argwhere(wanted)
    for at in np.ndindex(mask.shape):
        away = np.abs(places - at).max(1)
        yield at, away.min(), {int(mask[tuple(q)]) for q in places[away == away.min()]}


def small_mask(seed):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 3, (3, 4)), np.ones((3, 2))).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pixels", [1, 2])
def test_erosion_and_dilation_by_definition(seed, pixels):
    mask = small_mask(seed)
    eroded, dilated = p.erode(mask, pixels), p.dilate(mask, pixels)
    for at, away, _ in brute_nearest(mask, mask == 0):
        assert eroded[at] == (mask[at] if away > pixels else 0)
    for at, away, labels in brute_nearest(mask, mask != 0):
        assert dilated[at] in (labels if away <= pixels else {0})


def test_void_is_filled_with_a_nearest_label(sample):
    filled = p.fill_void(sample.mask)
    seen = sample.mask != 255
    assert (filled[seen] == sample.mask[seen]).all()
    assert set(np.unique(filled)) <= set(np.unique(sample.mask[seen]))
    with pytest.raises(ValueError, match="not void"):
        p.fill_void(np.full((2, 2), 255, np.uint8))


def test_shift_moves_and_repeats_the_edge(sample):
    moved, filled = p.shift(sample.mask, 3, -4), p.fill_void(sample.mask)
    assert (moved[3:, :-4] == filled[:-3, 4:]).all()
    assert (moved[:3] == moved[3]).all()


def test_drop_small_misses_exactly_the_small_objects(sample):
    sizes = np.bincount(sample.instances.reshape(-1))
    largest = int(np.sort(sizes[sizes > 0])[1])
    damaged, filled = p.drop_small(sample.mask, sample.instances, largest), p.fill_void(sample.mask)
    for label in np.unique(sample.instances):
        here = sample.instances == label
        if label and sizes[label] <= largest:
            assert (damaged[here] == 0).all()
        else:
            assert (damaged[here] == filled[here]).all()


def test_speckle_hits_about_the_share_asked_for():
    mask = np.repeat(np.arange(10, dtype=np.uint8), 1000).reshape(100, 100)
    damaged = p.speckle(mask, 0.2, np.random.default_rng(0))
    # A tenth of the draws give the old label: 0.18 of 10,000, five standard deviations each way.
    assert abs((damaged != mask).mean() - 0.18) < 0.02
    assert (p.speckle(mask, 0.0, np.random.default_rng(0)) == mask).all()
    with pytest.raises(ValueError, match="rate"):
        p.speckle(mask, 1.5, np.random.default_rng(0))


def test_the_methods_are_deterministic_and_never_predict_void(sample):
    clusters = [p.colour_clusters(sample.image, sample.mask, n_clusters=6) for _ in range(2)]
    assert (clusters[0] == clusters[1]).all()
    others = [other for other in voc_masks() if other.name != sample.name]
    predicted = p.ColourModel.fit(others).predict(sample.image)
    learnt = {int(label) for other in others for label in np.unique(other.mask)} - {255}
    assert set(np.unique(predicted).tolist()) <= learnt
    assert 255 not in clusters[0]


def test_more_clusters_are_never_much_worse(sample):
    seen = sample.mask != 255
    right = [
        (p.colour_clusters(sample.image, sample.mask, n_clusters=count) == sample.mask)[seen].mean()
        for count in (1, 8, 48)
    ]
    largest_class = np.bincount(sample.mask[seen]).max() / seen.sum()
    assert right[0] == pytest.approx(largest_class)
    assert right[0] < right[1] < right[2]
