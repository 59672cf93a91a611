"""Count the pixels of every (true class, predicted class) pair."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.operators import register


def _count_cpu(
    target: Tensor, prediction: Tensor, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    size = num_classes * num_classes
    t, p = target.reshape(-1).to(torch.int64), prediction.reshape(-1).to(torch.int64)
    valid = (t >= 0) & (t < num_classes) & (p >= 0) & (p < num_classes)
    kept = torch.ones_like(valid) if ignore_index is None else t != ignore_index
    code = torch.where(valid, t * num_classes + p, size)[kept]
    table = torch.bincount(code, minlength=size + 1)
    return table[:size].reshape(num_classes, num_classes).clone(), table[size].clone()


def _fake(
    target: Tensor, prediction: Tensor, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    counts = target.new_empty((num_classes, num_classes), dtype=torch.int64)
    return counts, target.new_empty((), dtype=torch.int64)


count_label_pairs = register(
    "count_label_pairs",
    cpu=_count_cpu,
    cuda="pkg.cuda.segmentation_metrics:count_label_pairs",
    fake=_fake,
)
