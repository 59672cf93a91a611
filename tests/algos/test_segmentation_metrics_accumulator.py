"""The accumulator: three means by hand, shards in any order, two real processes."""

from __future__ import annotations

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pkg.algos.segmentation_metrics import SegmentationMetrics, confusion_matrix, mean_iou
from pkg.algos.segmentation_metrics.accumulator import _carrier


def batch(images, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (images, 6, 7), generator=generator)
    prediction = torch.randint(0, classes, (images, 6, 7), generator=generator)
    for image in range(images):  # not every class in every image
        target[image] = target[image].clamp(max=image % classes)
        prediction[image] = prediction[image].clamp(max=image % classes)
    target[:, 0, 0] = 255
    return target, prediction


def filled(images=5, classes=3, seed=0):
    metrics = SegmentationMetrics(classes, ignore_index=255)
    metrics.update(*batch(images, classes, seed))
    return metrics


def by_hand(target, prediction, classes, absent):
    """Per-image and pooled mean IoU in exact fractions."""
    per_image, pairs = [], []
    for t, p in zip(target.tolist(), prediction.tolist(), strict=True):
        flat = [
            (a, b) for r, q in zip(t, p, strict=True) for a, b in zip(r, q, strict=True) if a != 255
        ]
        scores = []
        for c in range(classes):
            both = sum(a == b == c for a, b in flat)
            either = sum(c in pair for pair in flat)
            scores.append(Fraction(both, either) if either else {"exclude": None, "zero": Fraction(0),
                                                                 "one": Fraction(1)}[absent])  # fmt: skip
        kept = [score for score in scores if score is not None]
        per_image.append(sum(kept) / len(kept))
        pairs += kept
    return float(sum(per_image) / len(per_image)), float(sum(pairs) / len(pairs))


@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
def test_per_image_and_pooled_means_against_fractions(absent):
    target, prediction = batch(5, 3, seed=1)
    metrics = SegmentationMetrics(3, ignore_index=255)
    metrics.update(target, prediction)
    scores = metrics.compute(absent=absent)
    image, pooled = by_hand(target, prediction, 3, absent)
    assert scores.image_mean_iou == pytest.approx(image, abs=1e-15)
    assert scores.pooled_mean_iou == pytest.approx(pooled, abs=1e-15)
    cm = confusion_matrix(target, prediction, 3, ignore_index=255)
    assert scores.dataset_mean_iou == float(mean_iou(cm, absent=absent))
    assert scores.num_images == 5
    assert scores.absent == absent


def test_the_published_example_gives_its_answers():
    """Same data, several answers: tables [[98, 1], [0, 1]] and [[100, 0], [0, 0]]."""
    metrics = SegmentationMetrics(2)
    first = torch.tensor([[0] * 99 + [1]]), torch.tensor([[0] * 98 + [1, 1]])
    second = torch.zeros(1, 100, dtype=torch.int64), torch.zeros(1, 100, dtype=torch.int64)
    for target, prediction in (first, second):
        metrics.update(target, prediction)
    found = {absent: metrics.compute(absent=absent) for absent in ("exclude", "zero", "one")}
    rounded = [round(found["exclude"].dataset_mean_iou, 4), round(found["exclude"].pooled_mean_iou, 4),
               *(round(scores.image_mean_iou, 4) for scores in found.values())]  # fmt: skip
    assert rounded == [0.7475, 0.83, 0.8725, 0.6225, 0.8725]


def test_class_means_over_images_leave_out_images_without_the_class():
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([[0, 0]]), torch.tensor([[0, 0]]))
    metrics.update(torch.tensor([[1, 0]]), torch.tensor([[1, 1]]))
    assert metrics.compute().image_iou.tolist() == [0.5, 0.5]


def test_shards_in_any_order_give_the_same_bits():
    shards = [filled(images, 3, seed) for images, seed in ((2, 1), (3, 2), (1, 3))]
    seen = set()
    for order in itertools.permutations(range(3)):
        total = SegmentationMetrics(3, ignore_index=255)
        for shard in order:
            total.merge(shards[shard])
        scores = total.compute()
        seen.add((scores.dataset_mean_iou, scores.image_mean_iou, scores.pooled_mean_iou))
    assert len(seen) == 1


def test_one_batch_is_as_many_single_images():
    target, prediction = batch(4, 3, seed=5)
    one, many = (SegmentationMetrics(3, ignore_index=255) for _ in range(2))
    one.update(target, prediction)
    for t, p in zip(target, prediction, strict=True):
        many.update(t, p)
    assert torch.equal(one.confusion, many.confusion)
    assert torch.equal(one.per_image, many.per_image)


def test_reset_and_state_round_trip():
    metrics = filled()
    copy = SegmentationMetrics(3, ignore_index=255)
    copy.load_state_dict(metrics.state_dict())
    assert str(copy.compute()) == str(metrics.compute())
    metrics.reset()
    assert metrics.compute().num_images == 0
    assert math.isnan(metrics.compute().image_mean_iou)
    assert copy.compute().num_images == 5  # the state was a copy
    with pytest.raises(ValueError, match="state must have"):
        SegmentationMetrics(4, ignore_index=255).load_state_dict(copy.state_dict())


def test_accumulators_that_do_not_fit_are_not_merged():
    for other in (SegmentationMetrics(4, ignore_index=255), SegmentationMetrics(3)):
        with pytest.raises(ValueError, match="other must have"):
            filled().merge(other)


def test_a_bad_update_changes_nothing():
    metrics = filled()
    before = metrics.state_dict()
    target, prediction = batch(2, 3, 9)
    prediction[1, 2, 2] = 9
    with pytest.raises(ValueError, match="prediction has label 9"):
        metrics.update(target, prediction)
    with pytest.raises(ValueError, match="same shape"):
        metrics.update(target, prediction[:1])
    with pytest.raises(ValueError, match="image"):
        metrics.update(target[0, 0], prediction[0, 0])
    with pytest.raises(TypeError, match=r"target must be a torch\.Tensor"):
        metrics.update(target.tolist(), prediction)
    with pytest.raises(TypeError, match=r"prediction must be a torch\.Tensor"):
        metrics.update(target, prediction.tolist())
    with pytest.raises(ValueError, match=r"same shape, got \(6, 7\) and \(1, 6, 7\)"):
        metrics.update(target[0], prediction[:1])
    assert torch.equal(metrics.confusion, before["confusion"])
    assert torch.equal(metrics.per_image, before["per_image"])
    with pytest.raises(ValueError, match="num_classes"):
        SegmentationMetrics(0)


def test_an_image_of_void_counts_as_an_image_and_enters_no_mean():
    metrics = filled()
    before = metrics.compute()
    void = torch.full((6, 7), 255)
    metrics.update(void, torch.zeros_like(void))
    after = metrics.compute()
    assert after.num_images == before.num_images + 1
    assert after.image_mean_iou == before.image_mean_iou
    for absent in ("zero", "one"):
        assert metrics.compute(absent=absent).pooled_mean_iou == pytest.approx(
            by_hand(*batch(5, 3, 0), 3, absent)[1], abs=1e-15
        )


def test_the_table_names_what_each_number_is_over():
    shown = str(filled().compute())
    for words in (
        "mean IoU, data set",
        "mean over images",
        "pooled (image, class)",
        "absent classes: exclude",
    ):
        assert words in shown
    assert shown.splitlines()[-1].split()[0] == "2"


def _process(rank, path, folder):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    metrics = filled(images=(3, 1)[rank], seed=rank)
    metrics.sync()
    torch.save(metrics.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_see_what_one_sees(tmp_path):
    mp.spawn(_process, args=(tmp_path / "init", tmp_path), nprocs=2)
    alone = filled(images=3, seed=0)
    alone.merge(filled(images=1, seed=1))
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(state["confusion"], alone.confusion)
        assert torch.equal(state["per_image"], alone.per_image)


class Ranks:
    """Stands in for `torch.distributed` between threads, one per rank; shapes must fit exactly.

    The processes above prove that the real one is used rightly. They import the code anew, though,
    and so do not see a changed function, as a mutant's is.
    """

    ReduceOp = dist.ReduceOp

    def __init__(self, count):
        self.count, self.here = count, threading.local()
        self.barrier = threading.Barrier(count, timeout=10)
        self.given = [None] * count

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def get_world_size(self, group):
        return self.count

    def get_backend(self, group):
        return "gloo"

    def _exchange(self, tensor):
        self.given[self.here.rank] = tensor.clone()
        self.barrier.wait()
        given = list(self.given)
        self.barrier.wait()
        return given

    def all_reduce(self, tensor, *, op, group):
        assert op == dist.ReduceOp.SUM
        tensor.copy_(torch.stack(self._exchange(tensor)).sum(0))

    def all_gather(self, places, tensor, *, group):
        for place, given in zip(places, self._exchange(tensor), strict=True):
            assert (place.shape, place.dtype) == (given.shape, given.dtype)
            place.copy_(given)


def test_ranks_with_many_few_and_no_images(monkeypatch):
    ranks = Ranks(3)
    monkeypatch.setattr("pkg.algos.segmentation_metrics.accumulator.dist", ranks)
    shards = [filled(images, 3, seed) for images, seed in ((2, 1), (5, 2))]
    shards.append(SegmentationMetrics(3, ignore_index=255))
    whole = SegmentationMetrics(3, ignore_index=255)
    for shard in shards:
        whole.merge(shard)

    def work(rank):
        ranks.here.rank = rank
        shards[rank].sync()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    for shard in shards:
        assert torch.equal(shard.confusion, whole.confusion)
        assert torch.equal(shard.per_image, whole.per_image)


def test_nccl_is_given_tensors_of_this_process_gpu(monkeypatch):
    """It refuses those of the CPU, where the counts are kept."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for backend, device in (("nccl", "cuda:3"), ("gloo", "cpu"), ("cpu:gloo,cuda:nccl", "cpu")):
        monkeypatch.setattr(dist, "get_backend", lambda group, backend=backend: backend)
        assert _carrier(None) == torch.device(device)


def test_sync_needs_processes():
    with pytest.raises(RuntimeError, match="init_process_group"):
        filled().sync()


def test_millions_of_pixels_beyond_single_precision_are_counted():
    metrics = SegmentationMetrics(2)
    metrics.confusion[0, 0] = 2**24
    metrics.update(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))
    assert int(metrics.confusion[0, 0]) == 2**24 + 1
    assert np.float32(2**24) + np.float32(1) == 2**24  # where others stop
