"""Count the pixels of every (true class, predicted class) pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pkg.operators import register

Array = npt.NDArray[Any]

#: Pixels handled at once: few enough to stay in the cache, enough to hide the cost of the calls.
BLOCK = 1 << 18
#: Whose turn it is, modulo 4 or 2, when neighbouring pixels take turns in several tables.
TURNS = np.arange(1 << 13, dtype=np.int16)
#: Largest table of a block. Beyond it (labels spread over a wide range) pixels are masked first.
LARGEST_TABLE = 1 << 17
#: Largest table of which it is cheap to make many and add them up.
LARGEST_SUM = 1 << 13


def _count_cpu(
    target: Tensor, prediction: Tensor, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    invalid = 0
    # NumPy does the arithmetic: unlike PyTorch it knows every integer type and starts no threads.
    t, p = target.reshape(-1).numpy(), prediction.reshape(-1).numpy()
    # Memory for the codes, used again for every block: fresh memory is slow to touch.
    scratch = np.empty((2, min(len(t), BLOCK)), dtype=np.int32)
    for start in range(0, len(t), BLOCK):
        block = slice(start, start + BLOCK)
        invalid += _count_block(t[block], p[block], counts, ignore_index, scratch)
    return torch.from_numpy(counts), torch.tensor(invalid)


def _count_block(
    t: Array, p: Array, counts: Array, ignore_index: int | None, scratch: Array
) -> int:
    """Add a block to `counts`; return how many of its pixels are invalid.

    The block is histogrammed over the range of labels that it really has, so that no pixel needs a
    mask: what is ignored or out of range is a row or a column of the small table. The codes are as
    narrow as the table allows, because moving them costs more than counting them.
    """
    classes = len(counts)
    (low_t, high_t), (low_p, high_p) = _range(t), _range(p)
    rows, columns = high_t - low_t + 1, high_p - low_p + 1
    first = low_t * columns + low_p  # the code of bin 0
    if rows * columns > LARGEST_TABLE or abs(first) > LARGEST_TABLE:
        return _count_scattered(t, p, counts, ignore_index)
    table = _histogram(t, p, columns, first, rows * columns, scratch).reshape(rows, columns)
    if ignore_index is not None and low_t <= ignore_index <= high_t:
        table[ignore_index - low_t] = 0
    r, c = max(low_t, 0), max(low_p, 0)  # the first valid row and column, if there are any
    inside = table[r - low_t : max(classes - low_t, 0), c - low_p : max(classes - low_p, 0)]
    counts[r : r + inside.shape[0], c : c + inside.shape[1]] += inside
    return int(table.sum() - inside.sum())


def _range(labels: Array) -> tuple[int, int]:
    """Return a range that holds all labels: from 0 if none is negative, else the exact one.

    Read as unsigned, a negative label is larger than any other: one pass answers both questions.
    """
    high = int(labels.view(f"u{labels.itemsize}").max())
    if high <= np.iinfo(labels.dtype).max:
        return 0, high
    return int(labels.min()), int(labels.max())


def _histogram(t: Array, p: Array, columns: int, first: int, size: int, scratch: Array) -> Array:
    """Count the codes t·columns + p − first, which lie in 0 .. size-1.

    The arithmetic may wrap around on the way, and comes out right: it is exact modulo 2¹⁶ or 2³².
    """
    narrow = np.int16 if size < 2**15 else np.int32
    code, other = (memory.view(narrow)[: len(t)] for memory in scratch)
    np.copyto(code, t, casting="unsafe")
    np.copyto(other, p, casting="unsafe")
    code *= narrow(columns)
    code += other
    if first:
        code -= narrow(first)
    # Neighbouring pixels often have the same code, and adding to the bin that was just added to
    # makes the processor wait. So neighbours take turns in up to 4 tables.
    whole = code[: len(code) // len(TURNS) * len(TURNS)].reshape(-1, len(TURNS))
    lanes = next(n for n in (4, 2, 1) if n == 1 or (size * n < 2**15 and len(whole)))
    if lanes > 1:
        whole += (TURNS & (lanes - 1)) * narrow(size)
    table = _bincount(code, lanes * size)
    return table.reshape(lanes, size).sum(0) if lanes > 1 else table


def _bincount(code: Array, size: int) -> Array:
    """Count with PyTorch, whose histogram is the fastest, and on one thread.

    It counts on one thread anyway; but from 2¹⁵ elements on, the checks that it makes first wake
    the others. That costs more than it brings, and twenty times more on a busy machine.
    """
    codes = torch.from_numpy(code)
    if torch.get_num_threads() == 1:
        return torch.bincount(codes, minlength=size).numpy()
    if size > LARGEST_SUM:
        return np.bincount(code, minlength=size)
    first, *others = (torch.bincount(part, minlength=size) for part in codes.split(2**15 - 1))
    for other in others:
        first += other
    return first.numpy()


def _count_scattered(t: Array, p: Array, counts: Array, ignore_index: int | None) -> int:
    """Add a block whose labels span too wide a range for a table; return its invalid pixels."""
    classes = len(counts)
    if ignore_index is not None:
        kept = t != ignore_index
        t, p = t[kept], p[kept]
    valid = (t >= 0) & (t < classes) & (p >= 0) & (p < classes)
    code = t[valid].astype(np.int64) * classes + p[valid].astype(np.int64)
    np.add.at(counts.reshape(-1), code, 1)
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
