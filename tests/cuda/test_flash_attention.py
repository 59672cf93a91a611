"""The kernels of attention: their logic under the interpreter, their machine code, and on a GPU."""

from __future__ import annotations

import os

import pytest
import torch

from tests.algos.attention_oracle import band, draw, oracle

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
# The same tests run on CPU tensors under the interpreter, and on a GPU without it.
DEVICE = "cpu" if INTERPRETING else "cuda"
everywhere = pytest.mark.interpreter if INTERPRETING else pytest.mark.gpu
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero)")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def launchers():
    return pytest.importorskip("pkg.cuda.flash_attention")


@pytest.fixture(autouse=True)
def poison(monkeypatch, request):
    """Fill what the launchers allocate with NaN, so that an element never written shows."""
    if request.node.get_closest_marker("gate"):
        return
    module = pytest.importorskip("pkg.cuda.flash_attention.launch")
    fresh = module.torch.empty

    def poisoned(*args, **keywords):
        return fresh(*args, **keywords).fill_(torch.nan)

    class Torch:
        def __getattr__(self, name):
            return getattr(torch, name)

        empty = staticmethod(poisoned)
        empty_like = staticmethod(lambda x: poisoned(x.shape, dtype=x.dtype, device=x.device))

    monkeypatch.setattr(module, "torch", Torch())


def to_device(*tensors):
    return [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in tensors]


def ours(tensors, arriving, visible_arguments, scale):
    """Output, log-sum-exp and gradients by the kernels, on the CPU in float64."""
    mask, words, left, right, shift = visible_arguments
    module = launchers()
    x = to_device(*tensors)
    rest = (*to_device(mask, words), left, right, shift, scale)
    output, lse = module.attention_forward(*x, *rest)
    grads = module.attention_backward(*to_device(*arriving), *x, output, lse, *rest)
    return [part.cpu() for part in (output, lse, *grads)]


def by_autograd(tensors, arriving, visible, scale, kind):
    """The same by the oracle in type `kind`."""
    leaves = [x.to(kind).requires_grad_() for x in tensors]
    output, lse = oracle(*leaves, visible, scale)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    total = (output * arriving[0].to(kind)).sum() + (finite * arriving[1].to(kind)).sum()
    grads = torch.autograd.grad(total, leaves)
    return [output.detach(), lse.detach(), *grads]


def agree(tensors, visible_arguments, visible=None, scale=0.2, seed=0):
    """Compare kernels and oracle: error at most twice plain PyTorch's in the same type."""
    q, dtype = tensors[0], tensors[0].dtype
    generator = torch.Generator().manual_seed(seed)
    shape = q.shape
    arriving = [
        torch.randn(shape, generator=generator).to(dtype),
        torch.randn(shape[:3], generator=generator),
    ]
    arriving[1] = arriving[1].to(dtype).float()  # so that plain PyTorch gets the same number
    got = ours(tensors, arriving, visible_arguments, scale)
    exact = by_autograd(tensors, arriving, visible, scale, torch.float64)
    plain = by_autograd(tensors, arriving, visible, scale, dtype)
    names = ("output", "lse", "dq", "dk", "dv")
    for name, mine, true, theirs in zip(names, got, exact, plain, strict=True):
        assert mine.dtype == (torch.float32 if name == "lse" else dtype), name
        lost = true == -torch.inf
        assert torch.equal(mine == -torch.inf, lost), name
        error, allowed = ((x.double() - true).masked_fill(lost, 0.0).norm() for x in (mine, theirs))
        # One rounding of the result more, for a plain error that is zero by luck in a small case.
        floor = torch.finfo(dtype).eps * true.masked_fill(lost, 0.0).norm()
        # A float32 sum of a hundred terms in another order: 8 roundings where sums are float32.
        floor *= 8 if dtype == torch.float32 else 1
        assert error <= 2 * allowed + floor, (name, float(error), float(allowed))


def plain_band(left=-1, right=-1, shift=0):
    return (None, None, left, right, shift)


def band_of(q_len, k_len, left, right, shift):
    return band(
        q_len, k_len, left=None if left < 0 else left, right=None if right < 0 else right,
        shift=shift,
    )  # fmt: skip


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 40, 64, 80, 128])
def test_types_and_widths(dtype, dim):
    tensors = draw(1, (1, 3, 65, dim), 97, kv_heads=1, dtype=dtype)
    agree(tensors, plain_band(right=0, shift=32), band(65, 97, right=0, shift=32))


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_widest_heads(dtype):
    tensors = draw(2, (1, 1, 33, 256), 40, dtype=dtype)
    agree(tensors, plain_band())


@everywhere
@pytest.mark.parametrize("q_len", [1, 17, 130])
@pytest.mark.parametrize("k_len", [1, 33, 200])
@pytest.mark.parametrize(
    ("left", "right", "align"),
    [(-1, -1, "bottom"), (-1, 0, "bottom"), (-1, 0, "top"), (20, 9, "bottom"), (3, -1, "top")],
)
def test_lengths_and_bands(q_len, k_len, left, right, align):
    shift = k_len - q_len if align == "bottom" else 0
    tensors = draw(3, (1, 2, q_len, 32), k_len, kv_heads=1, dtype=torch.float16)
    agree(tensors, plain_band(left, right, shift), band_of(q_len, k_len, left, right, shift))


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("left", "right"), [(-1, 0), (200, 0), (70, 60)])
def test_a_band_over_many_tiles(dtype, left, right):
    """Every part of a sweep: tiles cut on the left, whole ones, tiles cut on the right."""
    tensors = draw(4, (1, 1, 400, 16), 410, dtype=dtype)
    agree(tensors, plain_band(left, right, 10), band_of(400, 410, left, right, 10))


@everywhere
@pytest.mark.parametrize(
    "shape", [(1, 1, 70, 90), (2, 1, 70, 90), (1, 4, 70, 90), (2, 4, 70, 90), (1, 1, 1, 90), (2, 1, 70, 1)],
)  # fmt: skip
def test_boolean_masks(shape):
    tensors = draw(5, (2, 4, 70, 32), 90, kv_heads=2, dtype=torch.bfloat16)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(6)) < 0.4
    wide = mask.expand(-1, -1, 70, 90)
    agree(tensors, (wide, None, -1, -1, 0), mask)
    agree(tensors, (wide, None, -1, 0, 20), mask & band(70, 90, right=0, shift=20))


@everywhere
@pytest.mark.parametrize(("nodes", "prefix"), [(5, 3), (64, 70), (70, 0), (129, 200)])
def test_trees(nodes, prefix):
    from pkg.algos.flash_attention import AncestorMask

    generator = torch.Generator().manual_seed(7)
    parents = torch.tensor(
        [[int(torch.randint(-1, n, (), generator=generator)) for n in range(nodes)]
         for _ in range(2)]
    )  # fmt: skip
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
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("by", ["causal", "mask", "padding"])
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


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("left", "right", "bottom"), [(-1, -1, True), (-1, 0, True), (9, 4, False)]
)
def test_packed_sequences(dtype, left, right, bottom):
    q_lens, k_lens = [40, 0, 3, 130], [90, 7, 0, 50]
    generator = torch.Generator().manual_seed(16)
    q, k, v, g = (
        torch.randn(sum(lens), heads, 32, generator=generator).to(dtype)
        for lens, heads in ((q_lens, 4), (k_lens, 2), (k_lens, 2), (q_lens, 4))
    )
    dlse = torch.randn(4, sum(q_lens), generator=generator)
    starts = [
        torch.tensor([0, *torch.tensor(lens).cumsum(0)], dtype=torch.int32)
        for lens in (q_lens, k_lens)
    ]
    module = launchers()
    x = to_device(q, k, v)
    rest = (*to_device(*starts), 130, 90, left, right, bottom, 0.2)
    output, lse = module.varlen_forward(*x, *rest)
    grads = module.varlen_backward(*to_device(g, dlse), *x, output, lse, *rest)
    row = column = 0
    for q_len, k_len in zip(q_lens, k_lens, strict=True):
        here_q, here_k = slice(row, row + q_len), slice(column, column + k_len)
        row, column = row + q_len, column + k_len
        shift = k_len - q_len if bottom else 0
        alone = [y[here].transpose(0, 1)[None].contiguous()
                 for y, here in ((q, here_q), (k, here_k), (v, here_k))]  # fmt: skip
        arriving = [g[here_q].transpose(0, 1)[None].contiguous(), dlse[None, :, here_q]]
        expected = ours(alone, arriving, plain_band(left, right, shift), 0.2)
        parts = [output[here_q], grads[0][here_q], grads[1][here_k], grads[2][here_k]]
        # The same kernel on the same numbers in the same tiles: equal to the last bit.
        for part, wanted in zip(parts, (expected[0], *expected[2:]), strict=True):
            assert torch.equal(part.cpu(), wanted[0].transpose(0, 1))
        assert torch.equal(lse[:, here_q].cpu(), expected[1][0])


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [0, 1, 2, 7])
@pytest.mark.parametrize(("q_len", "kv_heads"), [(1, 1), (5, 2), (40, 2)])
def test_decoding(dtype, splits, q_len, kv_heads):
    lengths = [0, 1, 150, 301]
    q, k, v = draw(17, (4, 4, q_len, 48), 301, kv_heads=kv_heads, dtype=dtype)
    for i, length in enumerate(lengths):
        k[i, :, length:], v[i, :, length:] = torch.nan, torch.inf
    found = launchers().decode(*to_device(q, k, v, torch.tensor(lengths)), splits, 0.2)
    output, lse = (x.cpu() for x in found)
    for i, length in enumerate(lengths):
        here = slice(i, i + 1)
        if not length:
            assert bool((output[here] == 0).all())
            assert bool((lse[here] == -torch.inf).all())
            continue
        visible = band(q_len, length, right=0, shift=length - q_len)
        parts = q[here], k[here, :, :length], v[here, :, :length]
        exact = oracle(*(x.double() for x in parts), visible, 0.2)
        plain = oracle(*parts, visible, 0.2)
        lost = exact[1] == -torch.inf
        assert torch.equal(lse[here] == -torch.inf, lost)
        eps = torch.finfo(dtype).eps * (8 if dtype == torch.float32 else 1)  # as in agree()
        error = (output[here].double() - exact[0]).norm()
        assert error <= 2 * (plain[0].double() - exact[0]).norm() + eps * exact[0].norm()
        torch.testing.assert_close(
            lse[here].double().masked_fill(lost, 0), exact[1].masked_fill(lost, 0),
            rtol=2e-6, atol=2e-6,  # float32 keeps the log-sum-exp, whatever the inputs' type
        )  # fmt: skip


@everywhere
def test_a_nan_among_the_new_tokens_stays_with_those_that_see_it():
    q, k, v = draw(18, (1, 2, 4, 16), 60, dtype=torch.float32)
    k[:, :, 58] = torch.nan  # the third of four new tokens
    output, _ = launchers().decode(*to_device(q, k, v, torch.tensor([60])), 3, 0.25)
    assert bool(output[:, :, :2].isfinite().all())
    assert not bool(output[:, :, 2:].isfinite().any())


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

    x = [t.cuda().requires_grad_() for t in draw(21, (1, 8, 700, 64), 700, kv_heads=2, dtype=torch.bfloat16)]  # fmt: skip
    runs = [
        torch.autograd.grad(flash_attention(*x, causal=True).float().sum(), x) for _ in range(3)
    ]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


# ---------------------------------------------------------------- compile gate

CAUSAL, WINDOW = {"HAS_RIGHT": True}, {"HAS_RIGHT": True, "HAS_LEFT": True}
PACKED = {"HAS_RIGHT": True, "PACKED": True, "BOTTOM_RIGHT": True}
MASK, TREE = {"HAS_RIGHT": True, "HAS_MASK": True}, {"HAS_TREE": True}


def gated():
    """Every row of the table with what it is for, and each variant at the two usual widths."""
    try:
        from pkg.cuda.flash_attention import CONFIGS
    except ImportError:
        return []
    cases = []
    for name, bits, dim in CONFIGS:
        kernel, _, masked = name.partition(", ")
        dtype = "bf16" if bits == 16 else "fp32"
        variants = [{}] if kernel == "decode" else [MASK, TREE] if masked else [{}, CAUSAL]
        if not masked and kernel != "decode" and dim in (64, 128):
            variants += [WINDOW, PACKED]
        cases += [(kernel, dtype, dim, variant) for variant in variants]
    odd = [(kernel, "fp16", 80, CAUSAL) for kernel in ("forward", "dq", "dkv")]
    return cases + odd


@pytest.mark.gate
@pytest.mark.parametrize(
    ("kernel", "dtype", "dim", "flags"), gated(),
    ids=lambda x: "+".join(k for k, v in x.items() if v) or "all" if isinstance(x, dict) else str(x),
)  # fmt: skip
def test_every_configuration_fits_an_h100(kernel, dtype, dim, flags):
    from tests.cuda.attention_gate import compile_attention
    from tests.cuda.gate import admit

    compiled = compile_attention(kernel, dtype, dim, **flags)
    admit(compiled)
    if dtype != "fp32":  # products on the tensor cores; 16 rows of a decoding tile are too few
        assert compiled.wgmma > 0 or (kernel == "decode" and "mma.sync" in compiled.ptx)
    else:  # and exact products are not made there
        assert compiled.wgmma == 0
        assert "mma.sync" not in compiled.ptx


@pytest.mark.gate
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["delta", "merge"])
@pytest.mark.parametrize("dim", [64, 256])
def test_the_small_kernels_fit(name, dtype, dim):
    from tests.cuda.attention_gate import compile_helper
    from tests.cuda.gate import admit

    admit(compile_helper(name, dtype, dim))


@pytest.mark.gate
def test_the_table_has_a_row_for_every_type_and_width():
    module = launchers()
    for dtype in DTYPES:
        for dim in range(16, 257):
            for name in ("forward", "dq", "dkv"):
                for general in (False, True):
                    config = module.choose(name, dtype, dim, general)
                    assert min(config.block_m, config.block_n) >= 16
            assert module.choose("decode", dtype, dim)
