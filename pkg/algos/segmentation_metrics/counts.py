"""Count the pixels of every (true class, predicted class) pair."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from pkg.operators import register

# Pixels handled at once: few enough for the codes to stay in the cache, enough to hide the calls.
BLOCK = 1 << 18
# Tables that neighbouring pixels take turns in.
LANES = 16
# Largest table of a block. Beyond it (labels scattered over a wide range) pixels are masked first.
LARGEST_TABLE = 1 << 20


def _count_cpu(
    target: Tensor, prediction: Tensor, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    blocks = list(
        zip(
            _known(target).reshape(-1).split(BLOCK),
            _known(prediction).reshape(-1).split(BLOCK),
            strict=True,
        )
    )

    def count(share: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, int]:
        counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        invalid = 0
        for t, p in share:
            if t.numel():
                invalid += _count_block(t, p, counts, ignore_index)
        return counts, invalid

    workers = min(torch.get_num_threads(), len(blocks))
    if workers <= 1:
        counts, invalid = count(blocks)
        return counts, torch.tensor(invalid)
    # A histogram runs on one thread in PyTorch, and lets go of the interpreter while it does.
    with ThreadPoolExecutor(workers) as pool:
        shares = list(pool.map(count, [blocks[i::workers] for i in range(workers)]))
    counts = torch.stack([counts for counts, _ in shares]).sum(0)
    return counts, torch.tensor(sum(invalid for _, invalid in shares))


def _known(labels: Tensor) -> Tensor:
    """Return labels in a type that PyTorch's integer arithmetic knows; uint16 to uint64 are not."""
    known = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return labels if labels.dtype in known else labels.to(torch.int64)


def _count_block(t: Tensor, p: Tensor, counts: Tensor, ignore_index: int | None) -> int:
    """Add a block to `counts`; return how many of its pixels are invalid.

    The block is histogrammed over the range of labels that it really has, so that no pixel needs a
    mask: what is ignored or out of range is a row or a column of the small table. The codes are as
    narrow as the table allows, because moving them costs more than counting them; on the way to them
    integers may wrap around, and wrap back.
    """
    classes = len(counts)
    (low_t, high_t), (low_p, high_p) = _range(t), _range(p)
    rows, columns = high_t - low_t + 1, high_p - low_p + 1
    if rows * columns > LARGEST_TABLE:
        return _count_scattered(t, p, counts, ignore_index)
    size = rows * columns
    narrow = torch.int16 if size < 2**15 else torch.int64
    code = t.to(narrow).sub(low_t).mul_(columns).add_(p.to(narrow)).sub_(low_p)
    if len(code) % LANES == 0 and size * LANES < 2**15:
        # Neighbouring pixels have the same code, and adding to the bin that was just added to makes
        # the processor wait. So each of 16 neighbours has a table of its own.
        lane = torch.arange(LANES, dtype=narrow) * size
        code = code.view(-1, LANES).add_(lane).view(-1)
        table = torch.bincount(code, minlength=size * LANES).view(LANES, rows, columns).sum(0)
    else:
        table = torch.bincount(code, minlength=size).view(rows, columns)
    if ignore_index is not None and low_t <= ignore_index <= high_t:
        table[ignore_index - low_t] = 0
    first_t, first_p = max(low_t, 0), max(low_p, 0)
    if first_t >= classes or first_p >= classes or high_t < 0 or high_p < 0:
        return int(table.sum())
    inside = table[first_t - low_t : classes - low_t, first_p - low_p : classes - low_p]
    counts[first_t : first_t + inside.shape[0], first_p : first_p + inside.shape[1]] += inside
    return int(table.sum() - inside.sum())


def _range(labels: Tensor) -> tuple[int, int]:
    low, high = labels.aminmax()
    return int(low), int(high)


def _count_scattered(t: Tensor, p: Tensor, counts: Tensor, ignore_index: int | None) -> int:
    """Add a block whose labels span too wide a range for a table; return its invalid pixels."""
    classes = len(counts)
    t, p = t.long(), p.long()
    if ignore_index is not None:
        kept = t != ignore_index
        t, p = t[kept], p[kept]
    valid = (t >= 0) & (t < classes) & (p >= 0) & (p < classes)
    code = t[valid] * classes + p[valid]
    counts += torch.bincount(code, minlength=classes * classes).view(classes, classes)
    return len(t) - len(code)


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
