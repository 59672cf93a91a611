"""The kernel of affine coupling: its logic under the interpreter, and on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.coupling_oracle import (
    DTYPES,
    Coupling,
    Fenced,
    agree,
    arriving,
    inside_nan,
    launchers,
    on_device,
    ours,
)
from tests.cuda.where import DEVICE, everywhere

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow)")

SHAPES = [
    Coupling((1, 1)),
    Coupling((3, 5)),
    Coupling((130, 3), first=1, changed=2),  # more samples than a tile has
    Coupling((7, 33), first=0, changed=16),
    Coupling((2, 70), first=16, changed=54),
    Coupling((5, 6, 4, 9), first=3, changed=3),  # H ≠ W
    Coupling((2, 3, 19, 20), mask=True),  # a tile and a part of another in each row
    Coupling((4, 2, 3, 5), mask=True, bound=0.0),
    Coupling((2, 4, 5, 3), first=1, changed=2, bound=0.0),  # kept channels on both sides
]
directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


@everywhere
@directions
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coupling", SHAPES, ids=str)
def test_types_and_shapes(coupling, dtype, inverse):
    agree(coupling, dtype, inverse=inverse)


@everywhere
@directions
def test_nothing_is_read_beside_the_rows(inverse):
    for coupling in (Coupling((6, 10), 4, 6), Coupling((3, 2, 4, 5), mask=True)):
        x, raw, shift, mask = coupling.draw(torch.float32)
        tensors = (*(inside_nan(t) for t in (x, raw, shift)), mask)
        agree(coupling, torch.float32, tensors, inverse)


@everywhere
@directions
def test_nothing_is_written_beside_the_results(inverse, monkeypatch):
    """Beyond a row lies the next one, which may be written later: only behind the last it shows."""
    from pkg.cuda.coupling_flows import launch

    fenced = Fenced()
    monkeypatch.setattr(launch, "torch", fenced)
    for coupling in (Coupling((3, 5)), Coupling((2, 7), 2, 3), Coupling((2, 3, 2, 3), mask=True)):
        tensors, gradients = coupling.draw(torch.float32), arriving(coupling.shape, torch.float32)
        ours(coupling, tensors, gradients, inverse)
    fenced.check()


@everywhere
@directions
def test_elements_that_do_not_lie_next_to_each_other(inverse):
    coupling = Coupling((3, 4, 5, 6), 2, 2)
    x, raw, shift, mask = coupling.draw(torch.float32)
    last = torch.channels_last
    tensors = (x.contiguous(memory_format=last), raw.mT.contiguous().mT, shift, mask)
    agree(coupling, torch.float32, tensors, inverse)
    wide = (x[:, :1].expand(-1, 4, -1, -1), raw[:1].expand_as(raw), shift, mask)
    agree(coupling, torch.float32, wide, inverse)


@everywhere
@directions
@pytest.mark.parametrize("size", [1e-6, 1e-2, 10.0, 1e4])
def test_small_and_saturated_scales(size, inverse):
    """tanh by 1 - exp(-2u) would lose all digits at 1e-6; at 1e4 the bound is reached."""
    coupling = Coupling((9, 40), 20, 20)
    agree(coupling, torch.float32, coupling.draw(torch.float32, size=size), inverse)


@everywhere
def test_the_tanh_of_the_kernel_is_right_to_some_ulp():
    """x = 1 and shift = 0 leave log_det = bound · tanh(raw / bound) of one element each."""
    u = torch.cat([10.0 ** torch.linspace(-9, 2, 300), torch.linspace(0.25, 0.35, 200)])
    raw = torch.cat([u, -u])[:, None]
    one, zero = torch.ones_like(raw), torch.zeros_like(raw)
    _, found = launchers().forward(*(on_device(t) for t in (one, raw, zero)), None, 0, 1.0)
    exact = torch.tanh(raw[:, 0].double())
    # The series: 2 roundings; (1 - e)/(1 + e): e within 2 ulp (4 on the GPU) of itself, which the
    # difference 1 - e magnifies by at most e/(1 - e) < 1.3 from 0.3 on, and three more roundings.
    assert ((found.cpu().double() - exact).abs() <= 8 * 2.0**-24 * exact.abs()).all()


@everywhere
@directions
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept_keeps_its_bits(dtype, inverse):
    """Also what is no number, and where the parameters of a kept element are none."""
    coupling = Coupling((2, 6, 3, 4), mask=True)
    x, raw, shift, mask = coupling.draw(dtype)
    x = torch.where(mask, torch.tensor([torch.inf, -torch.inf, -0.0, 1e-7]).to(dtype), x)
    spoiled = [torch.where(mask, torch.nan, t) for t in (raw, shift)]
    gradients = arriving(coupling.shape, dtype)
    found = ours(coupling, (x, *spoiled, mask), gradients, inverse)
    assert torch.equal(found[0][:, mask].view(torch.uint8), x[:, mask].view(torch.uint8))
    assert torch.equal(found[2][:, mask], gradients[0][:, mask])
    for by in found[3:]:
        assert (by[:, mask] == 0).all()
    clean = ours(coupling, (x, raw, shift, mask), gradients, inverse)
    for mine, theirs in zip(found, clean, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.isfinite().sum() >= mine.numel() // 2


@everywhere
@pytest.mark.parametrize("bound", [0.0, 2.5])
def test_the_inverse_undoes_the_coupling_and_its_log_determinant(bound):
    module = launchers()
    coupling = Coupling((5, 8, 3, 7), 4, 4, bound=bound)
    x, raw, shift, _ = (on_device(t) for t in coupling.draw(torch.float32))
    z, log_det = module.forward(x, raw, shift, None, 4, bound)
    back, negative = module.inverse(z, raw, shift, None, 4, bound)
    assert torch.equal(negative, -log_det)  # the same sums in the same order
    # Three roundings of numbers up to |x| e^s + |t|, divided by e^s again.
    scale = (raw if bound == 0 else bound * (raw / bound).tanh()).exp()
    allowed = 4 * 2.0**-24 * (x[:, 4:].abs() + shift.abs() / scale)
    assert torch.equal(back[:, :4], x[:, :4])
    assert ((back - x)[:, 4:].abs() <= allowed).all()


@everywhere
def test_long_samples_are_cut_into_parts(monkeypatch):
    from pkg.cuda.coupling_flows import launch

    assert launch._parts(2, 5000, launch.choose("couple", 5000)) == (1024, 5)
    assert launch._parts(4096, 5000, launch.choose("couple", 5000))[1] == 1
    coupling = Coupling((2, 2, 50, 50), 1, 1)
    for busy in (1, launch._BUSY):  # one program sums a whole sample, or five share it
        monkeypatch.setattr(launch, "_BUSY", busy)
        for inverse in (False, True):
            agree(coupling, torch.float32, inverse=inverse)


@everywhere
def test_empty_batches():
    module = launchers()
    for shape in ((0, 4), (0, 2, 3, 5), (3, 2, 0, 4)):
        coupling = Coupling(shape)
        x, raw, shift, _ = (on_device(t) for t in coupling.draw(torch.float32))
        out, log_det = module.forward(x, raw, shift, None, 0, 1.0)
        assert out.shape == shape
        assert log_det.tolist() == [0.0] * shape[0]
        found = module.backward(out, log_det, x, raw, shift, None, 0, 1.0)
        assert [t.shape for t in found] == [x.shape, raw.shape, shift.shape]


@everywhere
def test_types_that_the_kernels_do_not_take():
    module = launchers()
    x = torch.zeros(2, 3, device=DEVICE)
    with pytest.raises(TypeError, match="float64"):
        module.forward(x.double(), x.double(), x.double(), None, 0, 1.0)
    with pytest.raises(TypeError, match=r"float32, torch\.bfloat16"):
        module.inverse(x, x.bfloat16(), x, None, 0, 1.0)


# ---------------------------------------------------------------- on a GPU alone


@pytest.mark.gpu
@directions
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "coupling",
    [
        Coupling((8192, 64), 32, 32),
        Coupling((64, 12, 32, 32), 6, 6),
        Coupling((8, 3, 63, 65), mask=True),
    ],
    ids=str,
)
def test_larger_shapes(coupling, dtype, inverse):
    agree(coupling, dtype, inverse=inverse)


@pytest.mark.gpu
def test_every_run_gives_the_same_bits():
    coupling = Coupling((16, 12, 64, 64), 6, 6)
    tensors, gradients = coupling.draw(torch.bfloat16), arriving(coupling.shape, torch.bfloat16)
    runs = [ours(coupling, tensors, gradients, False) for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))
