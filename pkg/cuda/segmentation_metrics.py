"""The confusion matrix on the GPU: one pass over the labels, counts in int64.

Each program makes a histogram of its pixels in shared memory and adds it to the result at the end,
so that the global table is touched once per program and not once per pixel. A label out of range is
counted, never written anywhere.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Annotations of kernel arguments are for readers: Triton looks at the values.
# mypy: disable-error-code="no-untyped-def"


@dataclass(frozen=True)
class Config:
    """Tile and warps of a kernel; `bins` is the size of the table that a program keeps."""

    block: int
    num_warps: int
    bins: int | None


#: By the number of pairs of classes that must fit. The last one, for any number, keeps no table of
#: its own: its programs add to the result directly.
CONFIGS = (
    Config(block=2048, num_warps=8, bins=128),
    Config(block=2048, num_warps=8, bins=512),
    Config(block=4096, num_warps=8, bins=1024),
    Config(block=4096, num_warps=16, bins=2048),  # on 8 warps int64 labels spill in Triton 3.6
    Config(block=1024, num_warps=4, bins=None),
)
#: Programs in flight, a multiple of the multiprocessors of an H100 or H200 (132).
PROGRAMS = 132 * 8


def choose(num_classes: int) -> Config:
    """Return the configuration for a number of classes."""
    for config in CONFIGS:
        # One bin more than pairs: what is ignored or invalid goes there and is thrown away.
        if config.bins is not None and num_classes * num_classes < config.bins:
            return config
    return CONFIGS[-1]


@triton.jit
def _pair_codes(
    target, prediction, pixels, start, num_classes, ignore,
    HAS_IGNORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Load a block; return its codes (true · classes + predicted), which are valid, which are not."""
    at = start + tl.arange(0, BLOCK).to(tl.int64)
    kept = at < pixels
    t = tl.load(target + at, mask=kept, other=0).to(tl.int64)
    p = tl.load(prediction + at, mask=kept, other=0).to(tl.int64)
    if HAS_IGNORE:
        kept = kept & (t != ignore)
    valid = kept & (t >= 0) & (t < num_classes) & (p >= 0) & (p < num_classes)
    code = tl.where(valid, t * num_classes + p, num_classes * num_classes)
    wrong = tl.where(kept, 1, 0) - tl.where(valid, 1, 0)
    return code, valid, tl.sum(wrong)


@triton.jit
def histogram_kernel(
    target, prediction, counts, invalid, pixels, num_classes, ignore,
    HAS_IGNORE: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Count pairs in a table per program, of `BINS` > num_classes² bins."""
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    table = tl.zeros((BINS,), dtype=tl.int32)  # a program sees far less than 2³¹ pixels
    wrong = tl.zeros((), dtype=tl.int64)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    while start < pixels:
        code, _, bad = _pair_codes(
            target, prediction, pixels, start, num_classes, ignore, HAS_IGNORE, BLOCK
        )
        table += tl.histogram(code.to(tl.int32), BINS)
        wrong += bad.to(tl.int64)
        start += step
    bins = tl.arange(0, BINS)
    inside = (bins < num_classes * num_classes) & (table > 0)
    tl.atomic_add(counts + bins, table.to(tl.int64), mask=inside)
    tl.atomic_add(invalid, wrong)


@triton.jit
def scatter_kernel(
    target, prediction, counts, invalid, pixels, num_classes, ignore,
    HAS_IGNORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count pairs by adding to the result directly: for tables that fit nowhere else."""
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    wrong = tl.zeros((), dtype=tl.int64)
    ones = tl.full((BLOCK,), 1, dtype=tl.int64)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    while start < pixels:
        code, valid, bad = _pair_codes(
            target, prediction, pixels, start, num_classes, ignore, HAS_IGNORE, BLOCK
        )
        tl.atomic_add(counts + code, ones, mask=valid)
        wrong += bad.to(tl.int64)
        start += step
    tl.atomic_add(invalid, wrong)


def count_label_pairs(
    target: Tensor, prediction: Tensor, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Launch the kernel that fits; see `pkg.algos.segmentation_metrics.counts` for the meaning."""
    counts = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=target.device)
    invalid = torch.zeros((), dtype=torch.int64, device=target.device)
    pixels = target.numel()
    if not pixels:
        return counts, invalid
    config = choose(num_classes)
    # An ignored label that the label type cannot hold meets no pixel.
    held = torch.iinfo(target.dtype)
    ignored = ignore_index is not None and held.min <= ignore_index <= held.max
    arguments = (
        target.contiguous(), prediction.contiguous(), counts, invalid, pixels, num_classes,
        ignore_index if ignored else 0,
    )  # fmt: skip
    options: dict[str, Any] = {
        "HAS_IGNORE": ignored, "BLOCK": config.block, "num_warps": config.num_warps,
    }  # fmt: skip
    grid = (min(triton.cdiv(pixels, config.block), PROGRAMS),)
    with torch.cuda.device(target.device) if target.is_cuda else nullcontext():
        if config.bins is None:
            scatter_kernel[grid](*arguments, **options)
        else:
            histogram_kernel[grid](*arguments, **options, BINS=config.bins)
    return counts, invalid
