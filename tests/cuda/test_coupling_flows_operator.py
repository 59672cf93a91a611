"""The operators of coupling flows on the CPU: opcheck, gradients of both orders, one graph, the doors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pkg.algos.coupling_flows import (
    AffineCoupling,
    ChannelMask,
    CheckerboardMask,
    RealNVP,
    functional,
)
from pkg.algos.coupling_flows.fused import FusedCouplings, stack_operator
from pkg.algos.coupling_flows.networks import MLP, ConvNet
from pkg.algos.coupling_flows.operator import (
    affine_coupling,
    affine_coupling_cpu,
    affine_coupling_inverse,
    affine_coupling_inverse_cpu,
    backward_operator,
    inverse_backward_operator,
)
from tests.cuda.calls import Calls

#: Shape of x, first changed channel, changed channels, mask, bound.
COUPLINGS = {
    "vector": ((3, 5), 0, 5, False, 2.0),
    "half": ((4, 6), 3, 3, False, 2.0),
    "middle": ((2, 4, 3, 2), 1, 2, False, 0.0),
    "checkerboard": ((2, 3, 3, 4), 0, 3, True, 1.5),
    "one": ((1, 1), 0, 1, False, 0.0),
}
couplings = pytest.mark.parametrize("name", list(COUPLINGS))
directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def inputs(name, dtype=torch.float64, gradient=True):
    shape, first, changed, masked, bound = COUPLINGS[name]
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, *((shape[0], changed, *shape[2:]),) * 2)
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes]
    mask = CheckerboardMask().core(drawn[0]) if masked else None
    return [t.to(dtype).requires_grad_(gradient) for t in drawn], (mask, first, bound)


def plain(x, raw, shift, mask, first, bound, inverse):
    """The definition, with the gradients of PyTorch."""
    s = bound * torch.tanh(raw / bound) if bound else raw
    old = x[:, first : first + raw.shape[1]]
    new = (old - shift) / s.exp() if inverse else old * s.exp() + shift
    if mask is not None:
        s, new = torch.where(mask, 0.0, s), torch.where(mask, old, new)
    out = torch.cat((x[:, :first], new, x[:, first + raw.shape[1] :]), 1)
    return out, (-s if inverse else s).flatten(1).sum(1)


def operator(inverse):
    return affine_coupling_inverse if inverse else affine_coupling


@directions
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float64) for name in COUPLINGS]
    + [(name, torch.bfloat16) for name in ("half", "checkerboard")],
)
def test_opcheck(name, inverse, dtype):
    tensors, rest = inputs(name, dtype)
    torch.library.opcheck(operator(inverse), (*tensors, *rest))
    out, log_det = operator(inverse)(*(t.detach() for t in tensors), *rest)
    arriving = [torch.ones_like(t).requires_grad_() for t in (out, log_det)]
    back = inverse_backward_operator if inverse else backward_operator
    torch.library.opcheck(back, (*arriving, *tensors, *rest))


@couplings
@directions
def test_gradients_of_first_and_second_order(name, inverse):
    tensors, rest = inputs(name)

    def run(*leaves):
        return operator(inverse)(*leaves, *rest)

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


@couplings
@directions
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_error_of_the_cpu_form_is_at_most_twice_pytorchs(name, inverse, dtype):
    tensors, rest = inputs(name, dtype)
    results = []
    for kind, run in ((dtype, operator(inverse)), (torch.float64, None), (dtype, None)):
        leaves = [t.detach().to(kind).requires_grad_() for t in tensors]
        found = run(*leaves, *rest) if run else plain(*leaves, *rest, inverse)
        weights = [torch.linspace(-1, 2, t.numel()).view(t.shape).to(t.dtype) for t in found]
        results.append([*found, *torch.autograd.grad(found, leaves, weights)])
    for mine, exact, theirs in zip(*results, strict=True):
        error, allowed = ((t.double() - exact).norm() for t in (mine, theirs))
        # A rounding of the result more, where PyTorch's error is zero by luck.
        assert error <= 2 * allowed + torch.finfo(dtype).eps * exact.norm()


def test_log_determinants_of_16_bits_are_summed_and_given_in_32():
    """In bfloat16 a sum of 300 comes in steps of 2."""
    x = torch.zeros(1, 3000, dtype=torch.bfloat16)
    raw = torch.full_like(x, 0.1)
    _, log_det = affine_coupling(x, raw, x, None, 0, 0.0)
    assert log_det.dtype == torch.float32
    assert abs(float(log_det) - 3000 * float(raw[0, 0])) < 1e-3


@directions
def test_the_plain_form_without_the_dispatcher_is_the_operators(inverse):
    run = affine_coupling_inverse_cpu if inverse else affine_coupling_cpu
    for name in COUPLINGS:
        tensors, rest = inputs(name, torch.float32, gradient=False)
        for mine, theirs in zip(
            run(*tensors, *rest), operator(inverse)(*tensors, *rest), strict=True
        ):
            assert torch.equal(mine, theirs)


def test_what_does_not_fit_is_refused():
    x, half = torch.zeros(2, 4), torch.zeros(2, 2)
    for bad in (
        (x, half, x, None, 0, 1.0), (x, half, half, None, 3, 1.0), (x, half, half, None, -1, 1.0),
        (x, torch.zeros(3, 2), torch.zeros(3, 2), None, 0, 1.0),
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"got \(\d, \d\) and \(\d, \d\) at -?\d for x of \(2, 4\)"
        ):
            affine_coupling(*bad)
    with pytest.raises(ValueError, match="mask"):
        affine_coupling(x, half, half, torch.ones(4, dtype=torch.bool), 0, 1.0)
    with pytest.raises(TypeError, match=r"torch\.float64"):
        affine_coupling(x, half.double(), half, None, 0, 1.0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_each_compiles_into_one_graph(dynamic):
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def both(x, raw, shift):
        z, log_det = affine_coupling(x * 2, raw, shift, None, 3, 2.0)
        back, negative = affine_coupling_inverse(z, raw, shift, None, 3, 2.0)
        return z.sin().sum() + (log_det * 3 - negative).sum() + back.sum()

    tensors, _ = inputs("half")
    x, raw, shift = tensors
    z, log_det = plain(x * 2, raw, shift, None, 3, 2.0, False)
    expected = z.sin().sum() + (4 * log_det).sum() + (2 * x).sum()
    found = both(*tensors)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(t, tensors) for t in (found, expected)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)


# ---------------------------------------------------------------- how couplings reach them


MASKS = {
    "last half": (ChannelMask.first_half(4), (3, 4, 2, 3)),
    "first half": (ChannelMask.first_half(4, swap=True), (3, 4, 2, 3)),
    "alternating": (ChannelMask.alternating(5), (3, 5)),
    "checkerboard": (CheckerboardMask(swap=True), (3, 2, 3, 4)),
}


def made(name):
    """Return a coupling with weights, and x."""
    mask, shape = MASKS[name]
    generator = torch.Generator().manual_seed(0)
    channels = shape[1] if isinstance(mask, CheckerboardMask) else mask.changed
    seen = shape[1] if isinstance(mask, CheckerboardMask) else shape[1] - channels
    kind = ConvNet if len(shape) == 4 else MLP
    network = kind(seen, 2 * channels, 4 if kind is ConvNet else (4, 4))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    return AffineCoupling(mask, network), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("name", list(MASKS))
@directions
def test_a_coupling_gives_the_same_by_the_operator(name, inverse, monkeypatch):
    coupling, x = made(name)
    run = coupling.inverse if inverse else coupling
    expected = run(x)
    calls = []
    real = operator(inverse)
    monkeypatch.setattr(functional, "has_kernel", lambda x: True)
    monkeypatch.setattr("pkg.algos.coupling_flows.couplings.has_kernel", lambda x: True)
    monkeypatch.setattr(
        functional.operator, real._opoverload._schema.name.split("::")[1],
        lambda *a: calls.append(a) or real(*a),
    )  # fmt: skip
    found = run(x)
    assert len(calls) == 1
    assert calls[0][0].shape == (x.shape if name != "alternating" else (3, 2))
    for mine, theirs in zip(found, expected, strict=True):
        # The same operations but for the order of a product and a sum: some roundings.
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_cuda_tensors_reach_the_operators():
    """On tensors that say they are on a GPU and hold nothing, as a compiler sees them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def names(run, dtype=torch.float32):
        x = torch.empty(3, 4, device="cuda", dtype=dtype)
        with Calls() as calls, torch.no_grad():
            z, log_det = run(x)
        assert z.shape == (3, 4)
        assert log_det.shape == (3,)
        return [name for name in calls.names if name.startswith("checked.")]

    fused = FusedCouplings(flow(4, torch.float32).transform)
    with FakeTensorMode():
        for name in ("w1", "b1", "w2", "b2", "w3", "b3", "kept"):
            held = getattr(fused, name)
            setattr(fused, name, torch.empty(held.shape, dtype=held.dtype, device="cuda"))
        for run, name in (
            (functional.affine_coupling, "affine_coupling"),
            (functional.affine_coupling_inverse, "affine_coupling_inverse"),
        ):
            for kind in (torch.float32, torch.bfloat16):
                assert names(lambda x, f=run: f(x, x, x, None, 2.0), kind) == [
                    f"checked.{name}.default"
                ]
            # float64 goes to PyTorch's own operations, in full precision.
            assert names(lambda x, f=run: f(x, x, x, None, 2.0), torch.float64) == []
        for run in (fused, fused.inverse):
            assert names(run) == ["checked.coupling_stack.default"]


def test_under_autocast_a_flow_keeps_its_type():
    """Networks work in 16 bits; x, scales and log-determinants do not, or z would lose its inverse."""
    coupling, x = made("last half")
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = coupling(x)
        raw = coupling.network(x[:, :2]).chunk(2, 1)[0]
        same = functional.by_kernel(x, raw, raw, None, 2, coupling.bound)
    assert z.dtype == log_det.dtype == same[0].dtype == torch.float32


# ---------------------------------------------------------------- the whole stack


def flow(features, dtype=torch.float64, hidden=6, seed=0, **options):
    found = RealNVP(features, couplings=3, hidden=hidden, alpha=None, **options).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for p in found.parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5, generator=generator)
    return found.requires_grad_(False)


def arguments(features, dtype=torch.float64, inverse=False):
    fused = FusedCouplings(flow(features, dtype).transform)
    x = torch.randn(4, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = [getattr(fused, name) for name in ("w1", "b1", "w2", "b2", "w3", "b3", "kept")]
    return fused, (x.to(dtype), *weights, fused.bound, inverse)


@pytest.mark.parametrize(("inverse", "dtype"), [(False, torch.float64), (True, torch.bfloat16)])
def test_opcheck_of_the_stack(inverse, dtype):
    _, given = arguments(5, dtype, inverse)
    leaves = [t.clone().requires_grad_() for t in given[:7]]
    torch.library.opcheck(stack_operator, (*leaves, *given[7:]))


@directions
def test_gradcheck_of_the_stack_by_x(inverse):
    fused, (x, *_) = arguments(4)
    leaf = x.requires_grad_()
    assert torch.autograd.gradcheck(fused.inverse if inverse else fused, (leaf,))
    layers = flow(4).transform
    (mine,) = torch.autograd.grad(fused(leaf)[1].sum(), leaf)
    (theirs,) = torch.autograd.grad(layers(leaf)[1].sum(), leaf)
    torch.testing.assert_close(mine, theirs)


def test_the_stack_compiles_into_one_graph():
    fused, (x, *_) = arguments(5, torch.float32)
    compiled = torch.compile(lambda x: fused(x * 2), fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(compiled(x), fused(x * 2), strict=True):
        # The dense form and the tiles add in another order.
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_no_kernel_is_imported_for_cpu_tensors():
    script = (
        "import sys, torch; from pkg.algos.coupling_flows import RealNVP;"
        "from pkg.algos.coupling_flows.fused import FusedCouplings;"
        "from pkg.algos.coupling_flows.operator import affine_coupling;"
        "x = torch.ones(2, 4, requires_grad=True); f = RealNVP(4, alpha=None);"
        "f.log_prob(x).sum().backward(); FusedCouplings(f.transform)(x)[1].sum().backward();"
        "affine_coupling(x, x, x, None, 0, 1.0)[0].sum().backward();"
        "assert not [m for m in sys.modules if m.startswith('pkg.cuda')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
