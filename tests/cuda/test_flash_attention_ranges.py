"""The parts of a sweep, and lengths that a caller got wrong: exactly where a mask is needed."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.cuda.attention_cases import band_of, launchers, quiet, to_device
from tests.cuda.where import DEVICE, everywhere

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from pkg.cuda.flash_attention.tiles import key_range, query_range, steps_partial  # noqa: E402

pytestmark = quiet


@triton.jit
def write_ranges(
    out, start, q_len, k_len, left, right, shift,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """Write what a program finds: (first, whole, partial, end), and the steps that need a mask."""
    if KEYS:
        first, whole, partial, end = key_range(
            start, q_len, k_len, left, right, shift, BLOCK_M, BLOCK_N,
            HAS_LEFT, HAS_RIGHT, False, False,
        )  # fmt: skip
    else:
        first, whole, partial, end = query_range(
            start, q_len, k_len, left, right, shift, BLOCK_M, BLOCK_N,
            HAS_LEFT, HAS_RIGHT, False, False,
        )  # fmt: skip
    tl.store(out, first)
    tl.store(out + 1, whole)
    tl.store(out + 2, partial)
    tl.store(out + 3, end)
    tl.store(out + 4, steps_partial(first, whole, partial, end))


@everywhere
@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize(("left", "right"), [(-1, -1), (-1, 0), (7, -1), (3, 2), (9, 12)])
def test_the_parts_of_a_sweep_are_as_small_as_can_be(keys, left, right):
    block_m, block_n = 8, 4
    out = torch.zeros(5, dtype=torch.int32, device=DEVICE)
    for q_len, k_len, lower in itertools.product((16, 21), (17, 24), (False, True)):
        shift = k_len - q_len if lower else 0
        pairs = band_of(q_len, k_len, left, right, shift)
        if not keys:
            pairs = pairs.T
        mine, step = (block_m, block_n) if keys else (block_n, block_m)
        for start in range(0, len(pairs), mine):
            write_ranges[(1,)](
                out, start, q_len, k_len, left, right, shift, BLOCK_M=block_m, BLOCK_N=block_n,
                HAS_LEFT=left >= 0, HAS_RIGHT=right >= 0, KEYS=keys,
            )  # fmt: skip
            first, whole, partial, end, steps = out.tolist()
            here = pairs[start : start + mine]
            check(here, first, whole, partial, end, step)
            assert steps == whole - first + max(0, end - partial)


def check(pairs, first, whole, partial, end, step):
    """`pairs` are those of one program's rows; the sweep goes over its columns in tiles."""
    columns = pairs.any(0).nonzero().flatten().tolist()
    tiles = [pairs[:, at : at + step] for at in range(0, pairs.shape[1] // step * step, step)]
    full = [at * step for at, tile in enumerate(tiles) if tile.all()]
    assert list(range(whole, partial, step)) == full
    assert first % step == whole % step == partial % step == 0
    looked_at = {*range(first, whole), *range(whole, partial), *range(partial, end)}
    assert looked_at >= set(columns)
    if columns:  # and no tile too many
        assert first == columns[0] // step * step
        assert end == columns[-1] + 1
        for at in (*range(first, whole, step), *range(partial, end, step)):
            assert pairs[:, at : at + step].any()
        assert first <= whole <= partial


@everywhere
def test_lengths_beyond_the_cache_are_cut():
    """On a GPU nobody looks at the lengths before the launch; the kernel stays within the cache."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 1, n, 16, generator=generator) for n in (1, 50, 50))
    moved = to_device(q, k, v)
    wrong, right = (torch.tensor(x, device=DEVICE) for x in ([-3, 70], [0, 50]))
    for splits in (1, 3):
        found = launchers().decode(*moved, wrong, splits, 0.25)
        expected = launchers().decode(*moved, right, splits, 0.25)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
