"""Packed sequences, decoding over a cache, a ring of processes; and bad input to all of them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pkg.algos.flash_attention import (
    AncestorMask,
    attention,
    flash_attention,
    flash_attention_varlen,
    flash_decode,
    ring_attention,
    tiled_attention,
)
from tests.algos.attention_oracle import band, draw, gradients, oracle

# As in test_flash_attention.py: far above rounding, far below any mistake.
CLOSE = {"rtol": 0.0, "atol": 64 * torch.finfo(torch.float64).eps}
LOOSER = {"rtol": 0.0, "atol": 8 * CLOSE["atol"]}

# ------------------------------------------------------------------ packed sequences


def packed(seed, lengths, heads, dim=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(lengths), heads, dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def starts(lengths, dtype=torch.int32):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=dtype)


def one_by_one(q, k, v, q_lens, k_lens, bands):
    """Each sequence alone, by the oracle."""
    parts, sums = [], []
    pieces = zip(q.split(q_lens), k.split(k_lens), v.split(k_lens), bands, strict=True)
    for a, b, c, visible in pieces:
        output, lse = oracle(*(x.transpose(0, 1)[None] for x in (a, b, c)), visible)
        parts.append(output[0].transpose(0, 1))
        sums.append(lse[0])
    return torch.cat(parts), torch.cat(sums, -1)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("q_lens", "k_lens"),
    [([5], [5]), ([3, 0, 7, 40], [3, 2, 150, 9]), ([0, 0], [0, 4]), ([1, 1, 1], [9, 0, 33])],
)
def test_packed_sequences_do_not_see_each_other(q_lens, k_lens, index):
    q, k, v = packed(1, q_lens, 4), packed(2, k_lens, 2), packed(3, k_lens, 2)
    pairs = list(zip(q_lens, k_lens, strict=True))
    for arguments, bands in (
        ({}, [None for _ in pairs]),
        ({"causal": True}, [band(a, b, right=0, shift=b - a) for a, b in pairs]),
        ({"causal": True, "align": "top_left"}, [band(a, b, right=0) for a, b in pairs]),
        ({"window": (3, 1)}, [band(a, b, left=3, right=1, shift=b - a) for a, b in pairs]),
    ):
        where = starts(q_lens, index), starts(k_lens, index)

        def ours(*x, a=arguments, w=where):
            return flash_attention_varlen(*x, *w, **a)

        def theirs(*x, b=bands):
            return one_by_one(*x, q_lens, k_lens, b)[0]

        if all(b for _, b in pairs):
            expected = gradients(theirs, (q, k, v))
            got = gradients(ours, (q, k, v))
            torch.testing.assert_close(got[0], expected[0], **CLOSE)
            for mine, other in zip(got[1], expected[1], strict=True):
                torch.testing.assert_close(mine, other, **LOOSER)
        output, lse = flash_attention_varlen(q, k, v, *where, **arguments, return_lse=True)
        assert output.shape == q.shape
        assert lse.shape == (4, len(q))
        row = column = 0
        for (a, b), visible in zip(pairs, bands, strict=True):
            here = output[row : row + a]
            if b:
                parts = q[row : row + a], k[column : column + b], v[column : column + b]
                alone, sums = one_by_one(*parts, [a], [b], [visible])
                torch.testing.assert_close(here, alone, **CLOSE)
                torch.testing.assert_close(lse[:, row : row + a], sums, **CLOSE)
            else:
                assert bool((here == 0).all())
                assert bool((lse[:, row : row + a] == -torch.inf).all())
            row, column = row + a, column + b


def test_no_sequence_at_all():
    x, none = torch.zeros(0, 2, 16), torch.tensor([0])
    output = flash_attention_varlen(x, x, x, none, none, max_seqlen_q=0, max_seqlen_k=0)
    assert output.shape == x.shape


def test_a_nan_in_one_sequence_stays_there():
    q, k, v = packed(4, [5, 6], 2), packed(5, [5, 6], 2), packed(6, [5, 6], 2)
    k[7], v[8] = torch.nan, torch.inf
    output = flash_attention_varlen(q, k, v, starts([5, 6]), starts([5, 6]))
    assert bool(output[:5].isfinite().all())
    assert not bool(output[5:].isfinite().any())


# ------------------------------------------------------------------ decoding


@pytest.mark.parametrize("splits", [None, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("q_len", [1, 4])
def test_decoding_with_any_number_of_splits(splits, q_len):
    capacity, lengths = 90, [0, 1, 4, 37, 90]
    q, k, v = draw(7, (5, 6, q_len, 32), capacity, kv_heads=2)
    for batch, length in enumerate(lengths):
        k[batch, :, length:] = torch.nan  # what is behind must not be looked at
        v[batch, :, length:] = torch.inf
    output, lse = flash_decode(q, k, v, torch.tensor(lengths), splits=splits, return_lse=True)
    for batch, length in enumerate(lengths):
        here = slice(batch, batch + 1)
        if not length:
            assert bool((output[here] == 0).all())
            assert bool((lse[here] == -torch.inf).all())
            continue
        visible = band(q_len, length, right=0, shift=length - q_len)
        expected = oracle(q[here], k[here, :, :length], v[here, :, :length], visible)
        torch.testing.assert_close(output[here], expected[0], **CLOSE)
        torch.testing.assert_close(lse[here], expected[1], **CLOSE)


def test_the_kernel_is_asked_to_choose_the_splits_unless_the_caller_does(monkeypatch):
    from pkg.algos.flash_attention import decode

    asked = []

    def spy(q, k, v, lengths, splits, scale):
        asked.append(splits)
        return q, q

    monkeypatch.setattr(decode, "decode_operator", spy)
    for splits in (None, 1, 5):
        flash_decode(X, X, X, torch.tensor([6, 6]), splits=splits)
    assert asked == [0, 1, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_splitting_costs_no_accuracy(dtype):
    """Each part's state stays in float32; rounding every part would add up."""
    q, k, v = draw(8, (2, 4, 1, 64), 1000, dtype=dtype)
    exact = oracle(q.double(), k.double(), v.double())[0]
    plain = (oracle(q, k, v)[0].double() - exact).norm()
    for splits in (1, 8, 50):
        got = flash_decode(q, k, v, torch.tensor([1000, 1000]), splits=splits)
        assert got.dtype == dtype
        assert (got.double() - exact).norm() <= 2 * plain


# ------------------------------------------------------------------ a ring of processes

PROCESSES = 4


def _in_the_ring(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES
    )
    try:
        found = {}
        for dtype in (torch.float64, torch.bfloat16):
            tensors = draw(9, (2, 6, 4 * 13, 16), 4 * 13, kv_heads=2, dtype=dtype)
            mine = [x.chunk(PROCESSES, 2)[rank].clone().requires_grad_() for x in tensors]
            for causal in (False, True):
                output = ring_attention(*mine, causal=causal)
                arriving = draw(10, (2, 6, 4 * 13, 16), 1, dtype=dtype)[0].chunk(PROCESSES, 2)[rank]
                grads = torch.autograd.grad(output, mine, arriving)
                found[str(dtype), causal] = [output.detach(), *grads]
        halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        x = draw(11, (1, 1, 8, 16), 8)
        mine = [part.chunk(2, 2)[rank % 2] for part in x]
        found["half"] = ring_attention(*mine, group=halves[rank // 2], causal=True)
        uneven = torch.ones(1, 1, 3 + (rank == 2), 16)
        try:
            ring_attention(uneven, uneven, uneven)
        except ValueError as error:
            found["uneven"] = str(error)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_four_processes_in_a_ring_equal_one(tmp_path):
    mp.spawn(_in_the_ring, (str(tmp_path),), nprocs=PROCESSES)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]
    for dtype in (torch.float64, torch.bfloat16):
        tensors = draw(9, (2, 6, 4 * 13, 16), 4 * 13, kv_heads=2, dtype=dtype)
        arriving = draw(10, (2, 6, 4 * 13, 16), 1, dtype=dtype)[0]
        for causal in (False, True):
            visible = band(52, 52, right=0) if causal else None

            def whole(kind, visible=visible, tensors=tensors, arriving=arriving):
                leaves = [x.to(kind).requires_grad_() for x in tensors]
                output = oracle(*leaves, visible)[0]
                return [output, *torch.autograd.grad(output, leaves, arriving.to(kind))]

            found = [part[str(dtype), causal] for part in parts]
            ours = [torch.cat(piece, 2) for piece in zip(*found, strict=True)]
            for mine, exact, plain in zip(ours, whole(torch.float64), whole(dtype), strict=True):
                if dtype == torch.float64:
                    torch.testing.assert_close(mine, exact, **LOOSER)
                else:
                    allowed = (plain.double() - exact).norm()
                    assert (mine.double() - exact).norm() <= 2 * allowed
    x = draw(11, (1, 1, 8, 16), 8)
    expected = oracle(*x, band(8, 8, right=0))[0]
    for first in (0, 2):
        halves = torch.cat([parts[first]["half"], parts[first + 1]["half"]], 2)
        torch.testing.assert_close(halves, expected, **CLOSE)
    for part in parts:
        assert "q of process 2 has (1, 1, 4, 16)" in part["uneven"]


def test_a_ring_of_one_is_attention():
    tensors = draw(12, (1, 2, 9, 16), 9)
    expected = gradients(lambda *x: oracle(*x, band(9, 9, right=0))[0], tensors)
    got = gradients(lambda *x: ring_attention(*x, causal=True), tensors)
    torch.testing.assert_close(got[0], expected[0], **CLOSE)
    for mine, theirs in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, **LOOSER)
    torch.testing.assert_close(ring_attention(*tensors), oracle(*tensors)[0], **CLOSE)


# ------------------------------------------------------------------ at the door

FORMS = [attention, tiled_attention, flash_attention]
X = torch.zeros(2, 4, 6, 16)


@pytest.mark.parametrize("form", [*FORMS, ring_attention])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": [1.0]}, TypeError, "q must be a tensor, got list"),
        ({"q": X.long()}, TypeError, "q must be float16.*got torch.int64"),
        ({"k": X.half()}, TypeError, "k must have q's dtype torch.float32, got torch.float16"),
        ({"v": X[0]}, ValueError, r"v must have shape \(batch, heads.*got \(4, 6, 16\)"),
        ({"k": X[:1]}, ValueError, "k must have q's batch size 2, got 1"),
        ({"v": X[:, :, :5]}, ValueError, r"v must have k's .*\(2, 4, 6\), got \(2, 4, 5\)"),
        ({"k": X[:, :3], "v": X[:, :3]}, ValueError, "k's heads must divide q's 4 heads, got 3"),
        ({"k": X[:, :0], "v": X[:, :0]}, ValueError, "k's heads must divide q's 4 heads, got 0"),
        ({"k": X[..., :8]}, ValueError, "k must have q's head_dim 16, got 8"),
        ({"k": X.to("meta")}, ValueError, "k must be on q's device cpu, got meta"),
        ({"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
    ],
)
def test_tensors_that_do_not_fit(form, change, error, message):
    arguments = {"q": X, "k": X, "v": X, **change}
    with pytest.raises(error, match=message):
        form(**arguments)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask": torch.zeros(6, 6)}, TypeError, "mask must be boolean.*got torch.float32"),
        ({"mask": "causal"}, TypeError, "mask must be boolean.*got str"),
        ({"mask": torch.ones(5, 6).bool()}, ValueError, r"mask must broadcast to \(2, 4, 6, 6\)"),
        ({"mask": torch.ones(1, 2, 4, 6, 6).bool()}, ValueError, "mask must broadcast"),
        ({"mask": AncestorMask.from_parents(torch.tensor([-1, 0]))}, ValueError, "tree of 2 nodes"),
        ({"mask": AncestorMask.from_parents(torch.full((3, 6), -1))}, ValueError, "1 or 2 trees"),
        ({"window": 3}, TypeError, r"window must be a pair \(left, right\), got 3"),
        ({"window": (1.5, 2)}, TypeError, "window must hold integers or None"),
        ({"window": (-1, 2)}, ValueError, "window must not be negative.*None means no limit"),
        ({"align": "left"}, ValueError, 'align must be "bottom_right" or "top_left", got \'left\''),
    ],
)
def test_masks_that_do_not_fit(form, change, error, message):
    with pytest.raises(error, match=message):
        form(X, X, X, **change)


def test_widths_and_blocks_that_do_not_fit():
    with pytest.raises(ValueError, match="v must have q's head_dim 16, got 8"):
        flash_attention(X, X, X[..., :8])
    with pytest.raises(ValueError, match="q must have a head_dim of at least 1, got 0"):
        attention(X[..., :0], X[..., :0], X[..., :0])
    for name in ("block_q", "block_k"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            tiled_attention(X, X, X, **{name: 0})
    with pytest.raises(ValueError, match="k must have q's length 6 for causal attention, got 5"):
        ring_attention(X, X[:, :, :5], X[:, :, :5], causal=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cu_seqlens_q": torch.tensor([0, 4, 2, 6])}, ValueError,
         "cu_seqlens_q must not decrease, got 4 then 2 at index 1"),
        ({"cu_seqlens_k": torch.tensor([0, 5])}, ValueError, "cu_seqlens_k must go from 0 to 6"),
        ({"cu_seqlens_k": torch.tensor([1, 6])}, ValueError, "cu_seqlens_k must go from 0 to 6"),
        ({"cu_seqlens_k": torch.tensor([0, 3, 6])}, ValueError, "must have 2 entries"),
        ({"cu_seqlens_q": torch.tensor([0.0, 6.0])}, TypeError, "int32 or int64 tensor"),
        ({"cu_seqlens_q": [0, 6]}, TypeError, "int32 or int64 tensor, got list"),
        ({"cu_seqlens_q": torch.tensor([[0, 6]])}, ValueError, "shape"),
        ({"max_seqlen_q": 5}, ValueError, "max_seqlen_q must be at least 6, got 5"),
        ({"align": "middle"}, ValueError, "align must be"),
        ({"v": X[0].transpose(0, 1)[:5]}, ValueError, "v must have k's total and heads"),
        ({"q": X}, ValueError, r"q must have shape \(total, heads, head_dim\)"),
    ],
)  # fmt: skip
def test_packed_sequences_that_do_not_fit(change, error, message):
    x, whole = X[0].transpose(0, 1), torch.tensor([0, 6])
    arguments = {"q": x, "k": x, "v": x, "cu_seqlens_q": whole, "cu_seqlens_k": whole, **change}
    with pytest.raises(error, match=message):
        flash_attention_varlen(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lengths": torch.tensor([6.0, 6.0])}, TypeError, "lengths must be an int32 or int64"),
        ({"lengths": [6, 6]}, TypeError, "got list"),
        ({"lengths": torch.tensor([6])}, ValueError, r"lengths must have shape \(2,\), got \(1,\)"),
        ({"lengths": torch.tensor([6, 7])}, ValueError, "lengths must be between 0 and 6, got 7"),
        ({"lengths": torch.tensor([0, 7])}, ValueError, "lengths must be between 0 and 6, got 7"),
        ({"lengths": torch.tensor([-1, 7])}, ValueError, "lengths must be between 0 and 6, got -1"),
        ({"splits": 0}, ValueError, "splits must be at least 1, got 0"),
        ({"splits": 1.5}, ValueError, "splits must be at least 1, got 1.5"),
    ],
)
def test_caches_that_do_not_fit(change, error, message):
    arguments = {"q": X, "k": X, "v": X, "lengths": torch.tensor([6, 6]), **change}
    with pytest.raises(error, match=message):
        flash_decode(**arguments)


def test_trees_that_do_not_fit():
    with pytest.raises(TypeError, match="words must be an int64 tensor, got list"):
        AncestorMask([1])
    with pytest.raises(ValueError, match="words must have shape"):
        AncestorMask(torch.zeros(1, 65, 1, dtype=torch.int64))
    for shape in ((4, 1), (1, 1, 4, 1)):
        with pytest.raises(ValueError, match="words must have shape"):
            AncestorMask(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"visible must be a boolean tensor, got torch\.float32"):
        AncestorMask.from_dense(torch.ones(2, 2))
    for shape in ((2, 3), (2, 2, 3), (2,), (1, 1, 2, 2)):
        with pytest.raises(ValueError, match="visible must have shape"):
            AncestorMask.from_dense(torch.ones(shape).bool())
    with pytest.raises(TypeError, match=r"parents must be an integer tensor, got torch\.float32"):
        AncestorMask.from_parents(torch.zeros(2))
    with pytest.raises(ValueError, match="parents must name a node before each child"):
        AncestorMask.from_parents(torch.tensor([-1, 1]))
    with pytest.raises(ValueError, match="parents must have shape"):
        AncestorMask.from_parents(torch.zeros(1, 1, 1, dtype=torch.int64))


def test_what_the_kernels_cannot_take_is_refused_before_a_launch():
    """Tensors without numbers stand for a GPU's: a fake operator answers where the door lets in."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def on_gpu(tokens, dim, dtype=torch.float16):
        return torch.empty(1, 1, tokens, dim, dtype=dtype, device="cuda")

    with FakeTensorMode():
        lengths = torch.empty(1, dtype=torch.int64, device="cuda")
        for dim in (16, 256):
            x = on_gpu(64, dim)
            assert flash_attention(x, x, x).shape == x.shape
            assert flash_decode(x, x, x, lengths).shape == x.shape
        for dim in (15, 257):
            for form in (flash_attention, ring_attention):
                with pytest.raises(
                    ValueError, match=f"head_dim of 16 to 256 on the GPU, got {dim}"
                ):
                    form(*[on_gpu(4, dim)] * 3)
        with pytest.raises(TypeError, match=r"on the GPU, got torch\.float64"):
            flash_attention(*[on_gpu(4, 16, torch.float64)] * 3)
        with pytest.raises(ValueError, match="at most 64 tokens on the GPU, got 65"):
            flash_decode(*[on_gpu(65, 16)] * 3, lengths)
        with pytest.raises(ValueError, match="lengths must be on q's device cuda:0, got cpu"):
            flash_decode(*[on_gpu(4, 16)] * 3, torch.empty(1, dtype=torch.int64))
