"""The digits: what is in them, how they are divided, and that their pickle runs nothing."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pkg.data import DataError, digits, mnist
from pkg.data.digits import SPLITS, unpickle_arrays


def test_the_small_digits_are_divided_without_loss_or_overlap():
    parts = [digits(split) for split in SPLITS]
    assert [len(part) for part in parts] == [1285, 256, 256]
    images, labels = load_digits(return_X_y=True)
    together = np.concatenate([part.images.reshape(len(part), 64) for part in parts])
    order = np.argsort(np.maximum(np.arange(1797) % 7 - 4, 0), kind="stable")
    assert np.array_equal(together, images[order])
    assert np.array_equal(np.concatenate([part.labels for part in parts]), labels[order])


@pytest.mark.parametrize("load", [digits, mnist])
@pytest.mark.parametrize("split", SPLITS)
def test_shapes_levels_and_a_fair_share_of_each_digit(load, split):
    part = load(split)
    assert part.images.dtype == np.uint8
    assert part.images.shape[:2] == (len(part), 1)
    assert part.images.min() == 0
    assert part.images.max() == part.levels - 1
    share = np.bincount(part.labels, minlength=10) / len(part)
    assert share.shape == (10,)
    # MNIST's own shares go from 0.09 (fives) to 0.114 (ones); a fair draw of n pictures strays by
    # 0.3/sqrt(n), three times that is allowed.
    assert 0.09 - 0.9 / len(part) ** 0.5 < share.min()
    assert share.max() < 0.114 + 0.9 / len(part) ** 0.5


def test_mnist_is_mnist():
    train, validation, test = (mnist(split) for split in SPLITS)
    assert [len(part) for part in (train, validation, test)] == [50_000, 10_000, 10_000]
    assert train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert test.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    # The mean that everybody normalises by, 0.1307, over the 60,000 of the training set.
    sums = train.images.sum(dtype=np.int64) + validation.images.sum(dtype=np.int64)
    assert round(sums / (60_000 * 784 * 255), 4) == 0.1307


def test_a_caller_cannot_damage_what_the_next_one_gets():
    mnist("test").images[:] = 0
    assert mnist("test").images.max() == 255


def test_unknown_split():
    for load in (digits, mnist):
        with pytest.raises(ValueError, match="train, validation, test, got 'dev'"):
            load("dev")


def test_a_pickle_that_asks_for_code_is_refused():
    class Attack:
        def __reduce__(self):
            return os.getcwd, ()

    with pytest.raises(DataError, match="getcwd; only arrays"):
        unpickle_arrays(pickle.dumps(Attack(), protocol=2))
