"""The edges of attention's launchers: far addresses, many programs, fresh memory, odd strides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.algos.attention_oracle import band, draw, oracle
from tests.cuda.attention_cases import (
    agree,
    band_of,
    launchers,
    ours,
    plain_band,
    quiet,
    to_device,
)
from tests.cuda.where import DEVICE, everywhere

pytestmark = quiet
FAR = 2**30  # numbers from one head to the next: the third begins beyond 32 bits


def launch():
    return pytest.importorskip("pkg.cuda.flash_attention.launch")


@everywhere
def test_fresh_memory_is_poisoned():
    """If this fails, the other tests cannot see an element that no program wrote."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.ones(100, dtype=dtype, device=DEVICE)
        for fresh in (torch.empty(100, dtype=dtype, device=DEVICE), torch.empty_like(x)):
            assert bool(fresh.isnan().all())


def far_apart(x):
    """The same numbers, with heads FAR apart: memory that is not touched is not taken."""
    _, heads, length, dim = x.shape
    size = (heads - 1) * FAR + length * dim
    if DEVICE == "cpu":
        memory = torch.from_numpy(np.empty(size, np.float16))
    else:
        memory = torch.zeros(size, dtype=torch.float16, device=DEVICE)
    view = memory.as_strided(x.shape, (heads * FAR, FAR, dim, 1))
    return view.copy_(x)


@everywhere
def test_heads_beyond_32_bits():
    q, k, v = draw(30, (1, 3, 20, 16), 40, dtype=torch.float16)
    arriving = [torch.ones_like(q), torch.zeros(q.shape[:3])]
    near = ours((q, k, v), arriving, plain_band(right=0, shift=20), 0.25)
    far = far_apart(k).cpu()
    found = ours((q, far, v), arriving, plain_band(right=0, shift=20), 0.25)
    assert all(torch.equal(a, b) for a, b in zip(near, found, strict=True))
    lengths = torch.tensor([33], device=DEVICE)
    device = [x.to(DEVICE) for x in (q, k, v)]
    expected = launchers().decode(*device, lengths, 2, 0.25)
    again = launchers().decode(device[0], far_apart(k), device[2], lengths, 2, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


class Recorder:
    """In place of a kernel: keeps the grids it is asked for."""

    def __init__(self):
        self.grids = []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return lambda *args, **keywords: None


def test_grids_have_one_axis(monkeypatch):
    """The others end at 65,535, and the windows of an image model are more than that."""
    module, recorder = launch(), Recorder()
    for name in ("forward", "delta", "dq", "dkv", "decode", "merge"):
        monkeypatch.setattr(module, f"{name}_kernel", recorder)
    q, k = torch.zeros(70_000, 2, 3, 16), torch.zeros(70_000, 1, 5, 16)
    rest = (None, None, -1, -1, 0, 0.25)
    output, lse = module.attention_forward(q, k, k, *rest)
    module.attention_backward(output, lse, q, k, k, output, lse, *rest)
    module.decode(q, k, k, torch.full((70_000,), 5), 3, 0.25)
    # forward, delta, dQ; dK and dV; three parts of each of 70,000 caches, and their merge
    assert recorder.grids == [(140_000,)] * 3 + [(70_000,), (210_000,), (420_000,)]


@pytest.mark.parametrize("dim", [40, 64])
@pytest.mark.parametrize("start", [0, 1])
def test_rows_are_aligned_before_a_launch(dim, start):
    """The compile gate takes 16-number alignment for granted, so each launch must have it."""
    memory = torch.randn(2 * 3 * 5 * dim + 1)
    x = memory[start:][: 2 * 3 * 5 * dim].view(2, 3, 5, dim)
    ready = launch()._aligned(x)
    assert torch.equal(ready, x)
    assert all(stride % 16 == 0 for stride in ready.stride()[:3])
    assert ready.stride(3) == 1
    assert ready.data_ptr() % 16 == 0
    assert (ready is x) == (dim == 64 and start == 0)
    wide = torch.empty_strided((1, 2, 2, 16), (0, 0, 2**24, 1), device="meta")
    assert not launch()._is_sound(wide)


@everywhere
def test_nothing_is_written_beyond_the_last_row_and_column():
    """What lies there belongs to the next head, whose program may have been there already."""
    module, scale = launch(), 0.2
    q, k, v = to_device(*draw(34, (2, 2, 70, 40), 90, dtype=torch.float32))

    def fenced(x):
        around = torch.full((2, 2, x.shape[2] + 40, 48), 7.0, dtype=x.dtype, device=x.device)
        return around, around[:, :, : x.shape[2], :40]

    (around, output), *grads = (fenced(x) for x in (q, q, k, v))
    levels = torch.full((2, 2, 150), 7.0, device=q.device)
    lse, sizes = levels[..., :70], (70, 90, 0)
    pairs = module._pairs(q, None, None, -1, -1)
    module._forward(q, k, v, output, lse, pairs, None, sizes, False, scale)
    found = [inside for _, inside in grads]
    arriving = torch.ones_like(q), torch.zeros_like(lse)
    module._backward(*arriving, q, k, v, output, lse, found, pairs, None, sizes, False, scale)
    expected = module.attention_forward(q, k, v, None, None, -1, -1, 0, scale)
    assert torch.equal(output, expected[0])
    assert torch.equal(lse, expected[1])
    back = module.attention_backward(*arriving, q, k, v, *expected, None, None, -1, -1, 0, scale)
    for outside, inside, wanted in zip(
        (around, *(whole for whole, _ in grads)), (output, *found), (output, *back), strict=True
    ):
        assert torch.equal(inside, wanted)
        inside.fill_(7.0)
        assert bool((outside == 7.0).all())
    lse.fill_(7.0)
    assert bool((levels == 7.0).all())


@everywhere
def test_strides_that_are_not_aligned():
    x = draw(31, (1, 2, 40, 41), 70, kv_heads=1, dtype=torch.float16)
    tensors = [y[..., 1:] for y in x]
    agree(tensors, plain_band(right=0, shift=30), band_of(40, 70, -1, 0, 30))


@everywhere
@pytest.mark.parametrize("splits", [1, 33])
def test_a_nan_of_no_weight_is_not_lost_in_a_merge(splits):
    """0 · NaN is NaN: a row that sees a NaN says so, whatever its weight."""
    q, k, v = draw(32, (1, 1, 1, 16), 33 * 128, dtype=torch.float32)
    k[:, :, 5] = -1e4 * q[0, 0, 0].sign()  # its weight is 0 in float32
    v[:, :, 5] = torch.nan
    moved = [x.to(DEVICE) for x in (q, k, v)]
    output, _ = launchers().decode(*moved, torch.tensor([33 * 128], device=DEVICE), splits, 1.0)
    assert bool(output.isnan().all())


@everywhere
def test_a_short_text_in_a_long_cache_keeps_all_parts_at_work():
    """Each sequence is cut by its own length; what lies behind it is not touched."""
    q, k, v = draw(33, (2, 2, 1, 32), 900, kv_heads=1, dtype=torch.bfloat16)
    lengths = [260, 17]
    for i, length in enumerate(lengths):
        k[i, :, length:], v[i, :, length:] = torch.nan, torch.nan
    moved = [x.to(DEVICE) for x in (q, k, v, torch.tensor(lengths))]
    output, _ = launchers().decode(*moved, 4, 0.2)
    for i, length in enumerate(lengths):
        part = [x[i : i + 1].double() for x in (q, k[:, :, :length], v[:, :, :length])]
        exact, _ = oracle(*part, band(1, length, right=0, shift=length - 1), 0.2)
        # bfloat16 keeps 8 bits, of weights and of the output.
        torch.testing.assert_close(output[i : i + 1].cpu().double(), exact, rtol=2e-2, atol=2e-3)
