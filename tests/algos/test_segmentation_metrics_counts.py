"""The one pass over the pixels: blocks, lanes, threads, and labels from anywhere, against a dictionary."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pkg.algos.segmentation_metrics import counts as module
from pkg.algos.segmentation_metrics.counts import count_label_pairs

#: Labels that lie so far from the classes that the codes take another way: no lanes, 64 bits, no
#: table at all.
FAR = (3, 9, -1, -2, 255, 1000, 3000, 15_000, 40_000, -40_000, 10**7, -(10**7), 2**40)


def by_definition(target, prediction, classes, ignore):
    pairs = Counter(zip(target.flatten().tolist(), prediction.flatten().tolist(), strict=True))
    expected, invalid = torch.zeros(classes, classes, dtype=torch.int64), 0
    for (t, p), count in pairs.items():
        if t == ignore:
            continue
        if t in range(classes) and p in range(classes):
            expected[t, p] += count
        else:
            invalid += count
    return expected, invalid


def wild(pixels, classes, far, seed, *, in_target=True, in_prediction=True, share=0.2):
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for wanted in (in_target, in_prediction):
        labels = torch.randint(0, classes, (pixels,), generator=generator)
        strays = torch.rand(pixels, generator=generator) < share
        maps.append(torch.where(strays, far, labels) if wanted else labels)
    return maps


def agree(target, prediction, classes, ignore):
    counts, invalid = count_label_pairs(target, prediction, classes, ignore)
    expected, wrong = by_definition(target, prediction, classes, ignore)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, expected)
    assert int(invalid) == wrong


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("pixels", [1, 16, 17, 320])
def test_labels_from_anywhere(far, pixels):
    for seed, where in enumerate(((True, False), (False, True), (True, True))):
        maps = wild(pixels, 3, far, seed, in_target=where[0], in_prediction=where[1])
        for ignore in (None, far, 0, 2, 1000):
            agree(*maps, 3, ignore)


@pytest.mark.parametrize("far", FAR)
def test_maps_that_lie_wholly_outside(far):
    zero = torch.zeros(32, dtype=torch.int64)
    for t, p in ((zero + far, zero), (zero, zero + far), (zero + far, zero + far)):
        for ignore in (None, far):
            agree(t, p, 3, ignore)


@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("threads", [1, 2, 3, 9])
@pytest.mark.parametrize("largest", [1 << 20, 0])
def test_blocks_and_threads_add_up(classes, threads, largest, monkeypatch):
    """Five blocks of 64 pixels and one of 12, with the threads pretended and the pool real."""
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "LARGEST_TABLE", largest)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for ignore in (None, 255):
        agree(*wild(5 * 64 + 12, classes, 255, seed=classes), classes, ignore)


@pytest.mark.parametrize("low", [0, 1, 2])
def test_maps_that_hold_few_of_the_classes(low):
    """The table of a block covers only the labels that it has; here they are `low` and above."""
    generator = torch.Generator().manual_seed(low)
    for t_high, p_high in ((low + 1, 5), (5, low + 1), (3, 4)):
        target = torch.randint(low, t_high, (96,), generator=generator)
        prediction = torch.randint(low, p_high, (96,), generator=generator)
        agree(target, prediction, 5, None)
        agree(prediction, target, 5, low)


@pytest.mark.parametrize(("low", "high"), [(3, 9), (5, 9), (100, 104), (-9, -4), (-4, 0)])
def test_maps_whose_labels_are_many_and_all_outside(low, high):
    """The part of the table that is inside would begin after its end."""
    generator = torch.Generator().manual_seed(0)
    outside = torch.randint(low, high, (96,), generator=generator)
    inside = torch.randint(0, 3, (96,), generator=generator)
    for t, p in ((outside, inside), (inside, outside), (outside, outside.flip(0))):
        agree(t, p, 3, None)
        agree(t, p, 3, low)
