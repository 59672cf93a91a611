"""The kernels of attention: their logic under the interpreter, and on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.algos.attention_oracle import band, draw, oracle, random_parents
from tests.cuda.attention_cases import (
    DTYPES,
    agree,
    band_of,
    by_autograd,
    launchers,
    ours,
    plain_band,
    quiet,
    to_device,
)
from tests.cuda.where import everywhere

pytestmark = quiet


@everywhere
@pytest.mark.parametrize(
    ("dtype", "dim"),
    [(torch.bfloat16, dim) for dim in (16, 40, 64, 80, 128)]
    + [(torch.float16, 64), (torch.float32, 40), (torch.float32, 128)],
)
def test_types_and_widths(dtype, dim):
    tensors = draw(1, (1, 3, 65, dim), 97, kv_heads=1, dtype=dtype)
    agree(tensors, plain_band(right=0, shift=32), band(65, 97, right=0, shift=32))


@everywhere
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_widest_heads(dtype):
    tensors = draw(2, (1, 1, 33, 256), 40, dtype=dtype)
    agree(tensors, plain_band())


@everywhere
@pytest.mark.parametrize(("q_len", "k_len"), [(1, 1), (1, 200), (17, 33), (130, 33), (130, 200)])
@pytest.mark.parametrize(
    ("left", "right", "align"),
    [(-1, -1, "bottom"), (-1, 0, "bottom"), (-1, 0, "top"), (20, 9, "bottom"), (3, -1, "top")],
)
def test_lengths_and_bands(q_len, k_len, left, right, align):
    shift = k_len - q_len if align == "bottom" else 0
    tensors = draw(3, (1, 2, q_len, 32), k_len, kv_heads=1, dtype=torch.float16)
    agree(tensors, plain_band(left, right, shift), band_of(q_len, k_len, left, right, shift))


@everywhere
@pytest.mark.parametrize(
    ("dtype", "left", "right"),
    [(torch.float32, -1, 0), (torch.float32, 200, 0), (torch.float32, 70, 60),
     (torch.bfloat16, -1, 0), (torch.bfloat16, 400, 0)],
)  # fmt: skip
def test_a_band_over_many_tiles(dtype, left, right):
    """Every part of a sweep: tiles cut on the left, whole ones, tiles cut on the right."""
    q_len = 560 if left == 400 else 400  # wide enough for a whole tile between two cut ones
    tensors = draw(4, (1, 1, q_len, 16), q_len + 10, dtype=dtype)
    visible = band_of(q_len, q_len + 10, left, right, 10)
    agree(tensors, plain_band(left, right, 10), visible)


@everywhere
@pytest.mark.parametrize(
    "shape", [(1, 1, 70, 90), (2, 1, 70, 90), (1, 4, 70, 90), (2, 4, 70, 90), (1, 1, 1, 90), (2, 1, 70, 1)],
)  # fmt: skip
def test_boolean_masks(shape):
    tensors = draw(5, (2, 4, 70, 32), 90, kv_heads=2, dtype=torch.bfloat16)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(6)) < 0.4
    wide = mask.expand(-1, -1, 70, 90)
    if shape[1] == 1:
        agree(tensors, (wide, None, -1, -1, 0), mask)
    else:
        agree(tensors, (wide, None, -1, 0, 20), mask & band(70, 90, right=0, shift=20))


@everywhere
@pytest.mark.parametrize(("nodes", "prefix"), [(5, 3), (64, 70), (70, 0), (129, 200)])
def test_trees(nodes, prefix):
    from pkg.algos.flash_attention import AncestorMask

    parents = torch.stack([random_parents(nodes, seed) for seed in (7, 8)])
    tree = AncestorMask.from_parents(parents)
    visible = torch.ones(2, 1, nodes, prefix + nodes, dtype=torch.bool)
    visible[:, 0, :, prefix:] = tree.to_dense()
    tensors = draw(8, (2, 2, nodes, 16), prefix + nodes, dtype=torch.float16)
    agree(tensors, (None, tree.words, -1, -1, prefix), visible)
    one = AncestorMask.from_parents(parents[:1])
    agree(tensors, (None, one.words, -1, -1, prefix), visible[:1].expand(2, -1, -1, -1))


@everywhere
@pytest.mark.parametrize("scale", [0.7, -0.4, 0.0])
def test_scales_of_either_sign(scale):
    tensors = draw(9, (1, 2, 40, 16), 50, dtype=torch.float32)
    agree(tensors, plain_band(right=0, shift=10), band(40, 50, right=0, shift=10), scale)


@everywhere
def test_rows_that_see_nothing():
    q, k, v = draw(10, (1, 2, 90, 16), 30, dtype=torch.float32)
    arriving = [torch.ones(1, 2, 90, 16), torch.zeros(1, 2, 90)]
    for arguments in (plain_band(right=0, shift=-60),
                      (torch.zeros(1, 1, 90, 30, dtype=torch.bool), None, -1, -1, 0)):  # fmt: skip
        output, lse, *grads = ours((q, k, v), arriving, arguments, 0.25)
        blind = 60 if arguments[0] is None else 90
        assert bool((output[:, :, :blind] == 0).all())
        assert bool((lse[:, :, :blind] == -torch.inf).all())
        assert bool((grads[0][:, :, :blind] == 0).all())
        assert all(bool(x.isfinite().all()) for x in grads)


@everywhere
@pytest.mark.parametrize(
    ("bad", "which", "by"),
    [(torch.nan, which, by) for which in "kv" for by in ("causal", "mask", "padding")]
    + [(torch.inf, "k", "mask"), (torch.inf, "v", "causal")],
)
def test_nan_does_not_leak(bad, which, by):
    q, k, v = draw(11, (1, 1, 150, 16), 150, dtype=torch.float16)
    at, visible, arguments = 70, band(150, 150, right=0), plain_band(right=0)
    if by == "mask":
        visible = torch.rand(150, 150, generator=torch.Generator().manual_seed(12)) < 0.5
        arguments = (visible[None, None], None, -1, -1, 0)
    if by == "padding":
        visible = torch.ones(150, 150, dtype=torch.bool)
        visible[:, at] = False
        arguments = (visible[None, None], None, -1, -1, 0)
    arriving = [torch.ones_like(q), torch.zeros(q.shape[:3])]
    exact = by_autograd((q, k, v), arriving, visible, 0.25, torch.float64)
    poisoned = {"k": k, "v": v}[which].clone()
    poisoned[:, :, at] = bad
    x = (q, poisoned, v) if which == "k" else (q, k, poisoned)
    output, _, dq, dk, dv = ours(x, arriving, arguments, 0.25)
    sees = visible[:, at]
    assert not bool(output[:, :, sees].isfinite().any())
    # Float16: results of size 1, and gradients that are sums of a hundred such terms.
    near = {"rtol": 0.0, "atol": 2e-3}
    torch.testing.assert_close(output[:, :, ~sees].double(), exact[0][:, :, ~sees], **near)
    torch.testing.assert_close(dq[:, :, ~sees].double(), exact[2][:, :, ~sees], **near)
    apart = ~(visible & sees[:, None]).any(0)
    assert bool(dk[:, :, apart].isfinite().all())
    assert bool(dv[:, :, apart].isfinite().all())


@everywhere
def test_strided_tensors():
    q, k, v = (x.transpose(1, 2) for x in draw(13, (1, 70, 4, 32), 4, dtype=torch.float32))
    agree((q, k, v), plain_band(right=0), band(70, 70, right=0))
    q, k, v = (x[..., ::2] for x in draw(14, (1, 2, 40, 64), 40, dtype=torch.float32))
    agree((q, k, v), plain_band())


@everywhere
def test_shapes_without_a_query_or_key():
    module = launchers()
    for q_len, k_len in ((0, 5), (5, 0)):
        x = to_device(*draw(15, (1, 2, q_len, 16), k_len, dtype=torch.float32))
        output, lse = module.attention_forward(*x, None, None, -1, -1, 0, 0.25)
        assert bool((output == 0).all())
        assert bool((lse == -torch.inf).all())
        grads = module.attention_backward(
            torch.ones_like(output), torch.zeros_like(lse), *x, output, lse, None, None, -1, -1, 0,
            0.25,
        )  # fmt: skip
        assert all(bool((g == 0).all()) for g in grads)


# ---------------------------------------------------------------- on a GPU alone


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_larger_shapes_through_the_operator(dtype, dim, causal):
    from pkg.algos.flash_attention import flash_attention

    tensors = draw(19, (2, 4, 1000, dim), 1024, kv_heads=2, dtype=dtype)
    arriving = draw(20, (2, 4, 1000, dim), 1, dtype=dtype)[0]

    def run(function, kind, device):
        leaves = [x.to(device, kind).requires_grad_() for x in tensors]
        output = function(*leaves)
        return [output, *torch.autograd.grad(output, leaves, arriving.to(device, kind))]

    visible = band(1000, 1024, right=0, shift=24).cuda() if causal else None
    mine = run(lambda *x: flash_attention(*x, causal=causal), dtype, "cuda")
    exact = run(lambda *x: oracle(*x, visible)[0], torch.float64, "cuda")
    # PyTorch's float32 products are exact unless TF32 is asked for, and nothing here asks.
    plain = run(lambda *x: oracle(*x, visible)[0], dtype, "cuda")
    for a, b, c in zip(mine, exact, plain, strict=True):
        assert (a.double() - b).norm() <= 2 * (c.double() - b).norm()


@pytest.mark.gpu
def test_the_backward_pass_is_the_same_in_every_run():
    from pkg.algos.flash_attention import flash_attention

    drawn = draw(21, (1, 8, 700, 64), 700, kv_heads=2, dtype=torch.bfloat16)
    x = [t.cuda().requires_grad_() for t in drawn]
    runs = [
        torch.autograd.grad(flash_attention(*x, causal=True).float().sum(), x) for _ in range(3)
    ]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))
