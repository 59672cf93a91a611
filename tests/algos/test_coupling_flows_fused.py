"""A stack of couplings as one operation gives what its layers give, one by one."""

from __future__ import annotations

import pytest
import torch

from pkg.algos.coupling_flows import (
    AdditiveCoupling,
    AffineCoupling,
    ChannelMask,
    CheckerboardMask,
    Compose,
    Flow,
    FusedCouplings,
    Permutation,
    RealNVP,
    tiles,
)
from pkg.algos.coupling_flows.networks import MLP, ConvNet

directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def coupling(kept, hidden=8, bound=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = sum(kept)
    network = MLP(count, 2 * (len(kept) - count), (hidden, hidden))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5, generator=generator)
    return AffineCoupling(ChannelMask(kept), network, bound=bound)


T, F = True, False
#: Halves that take turns, in order and not, a half twice, masks of several sizes, a single layer.
STACKS = {
    "halves": [[T, T, F, F, F], [F, F, T, T, T], [T, T, F, F, F]],
    "alternating": [[T, F, T, F, T], [F, T, F, T, F]],
    "twice": [[F, T, F], [F, T, F], [T, F, T]],
    "any": [[T, F, F, F], [F, T, T, F], [T, T, T, F], [F, F, F, T]],
    "one": [[F, T]],
}


def stack(name, dtype=torch.float64, bound=2.0):
    layers = [coupling(kept, bound=bound, seed=n) for n, kept in enumerate(STACKS[name])]
    return Compose(*layers).to(dtype).requires_grad_(False)


def draw(rows, features, dtype=torch.float64):
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(9)).to(dtype)


@directions
@pytest.mark.parametrize("name", list(STACKS))
@pytest.mark.parametrize("bound", [2.0, None])
@pytest.mark.parametrize("rows", [1, 7, 23])
def test_it_gives_what_the_layers_give(name, bound, rows, inverse, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 7)  # a part of a tile, a whole one, three and a part
    layers = stack(name, bound=bound)
    x = draw(rows, len(STACKS[name][0]))
    fused = FusedCouplings(layers)
    found, expected = ((m.inverse if inverse else m)(x) for m in (fused, layers))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.is_contiguous()
        # Sums of some ten numbers in another order, through four layers of scales up to e².
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@directions
@pytest.mark.parametrize("name", list(STACKS))
def test_its_error_in_float32_is_at_most_twice_that_of_the_layers(name, inverse):
    layers = stack(name, torch.float32)
    x = draw(300, len(STACKS[name][0]), torch.float32)
    mine = (FusedCouplings(layers).inverse if inverse else FusedCouplings(layers))(x)
    theirs = (layers.inverse if inverse else layers)(x)
    exact = (layers.double().inverse if inverse else layers.double())(x.double())
    for ours, plain, true in zip(mine, theirs, exact, strict=True):
        error, allowed = ((t.double() - true).norm() for t in (ours, plain))
        # 2 sigmoid(2u) - 1 is right to 2⁻²³, where tanh(u) is to 2⁻²⁴ of itself: one rounding more.
        assert error <= 2 * allowed + 2.0**-23 * true.norm()


def test_the_inverse_undoes_it():
    fused = FusedCouplings(stack("any"))
    x = draw(50, 4)
    z, log_det = fused(x)
    back, negative = fused.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(negative, -log_det, rtol=1e-12, atol=1e-12)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: stack("any")(v[None])[0][0], row) for row in x[:5]])  # noqa: E501  # fmt: skip
    exact = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_det[:5], exact, rtol=1e-10, atol=1e-10)


def test_more_threads_change_nothing_but_the_size_of_a_tile():
    fused = FusedCouplings(stack("alternating"))
    x = draw(2000, 5)
    before = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(fused(x))
    torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_rows_with_gaps_empty_batches_and_nan():
    fused = FusedCouplings(stack("any"))
    wide = draw(9, 9)
    torch.testing.assert_close(fused(wide[:, 2:6])[0], fused(wide[:, 2:6].clone())[0])
    torch.testing.assert_close(fused(wide.T[:4].T)[1], fused(wide[:, :4].clone())[1])
    out, log_det = fused(torch.zeros(0, 4, dtype=torch.float64))
    assert out.shape == (0, 4)
    assert log_det.shape == (0,)
    x = draw(9, 4)
    x[3, 0] = torch.nan
    out, log_det = fused(x)
    assert out[3].isnan().any()
    assert log_det[3].isnan()
    assert out[[0, 1, 2, 4, 5, 6, 7, 8]].isfinite().all()


def test_it_is_a_frozen_copy_whose_results_can_be_used_in_training():
    layers = stack("halves")
    fused = FusedCouplings(layers)
    x = draw(4, 5)
    before = fused(x)
    with torch.no_grad():
        for p in layers.parameters():
            p.zero_()
    assert torch.equal(fused(x)[0], before[0])
    assert not list(fused.parameters())
    weight = torch.ones(5, dtype=torch.float64, requires_grad=True)
    (before[0] * weight).sum().backward()  # no tensor of inference mode
    torch.testing.assert_close(weight.grad, before[0].sum(0))


@directions
def test_gradients_reach_x(inverse):
    layers, x = stack("any"), draw(3, 4).requires_grad_()
    grads = []
    for module in (FusedCouplings(layers), layers):
        out, log_det = (module.inverse if inverse else module)(x)
        grads.append(torch.autograd.grad((out * out).sum() + log_det.sum(), x)[0])
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)


@directions
def test_autocast_does_not_take_digits_away(inverse):
    fused = FusedCouplings(stack("any", torch.float32))
    run = fused.inverse if inverse else fused
    x = draw(5, 4, torch.float32)
    expected = run(x)
    for leaf in (x, x.clone().requires_grad_()):
        with torch.autocast("cpu", torch.bfloat16):
            found = run(leaf)
        for mine, theirs in zip(found, expected, strict=True):
            # The two forms add in another order; bfloat16 would be off by 1e-2.
            torch.testing.assert_close(mine.detach(), theirs, rtol=1e-5, atol=1e-5)


def test_a_flow_of_it():
    flow = RealNVP(6, hidden=8, alpha=None, generator=torch.Generator().manual_seed(0)).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(1))
    fast = Flow(FusedCouplings(flow.transform), flow.base)
    x = draw(11, 6)
    torch.testing.assert_close(fast.log_prob(x), flow.log_prob(x).detach(), rtol=1e-11, atol=1e-11)
    drawn = [f.sample(5, generator=torch.Generator().manual_seed(2)) for f in (fast, flow)]
    torch.testing.assert_close(*drawn, rtol=1e-11, atol=1e-11)


def test_16_bits_are_computed_in_32():
    layers = stack("halves", torch.bfloat16)
    x = draw(40, 5, torch.bfloat16)
    z, log_det = FusedCouplings(layers)(x)
    assert z.dtype == torch.bfloat16
    assert log_det.dtype == torch.float32
    exact = layers.double()(x.double())
    # Activations of the networks have 8 bits: 2⁻⁸ of each, through three layers of scales up to e².
    assert (z.double() - exact[0]).norm() <= 0.05 * exact[0].norm()


@pytest.mark.parametrize(("hidden", "padded"), [(1, 16), (16, 16), (17, 32), (33, 64)])
def test_weights_are_filled_up_with_zeros_to_powers_of_two(hidden, padded):
    layers = Compose(coupling([T, F, T], hidden), coupling([F, T, F], hidden, seed=1))
    fused = FusedCouplings(layers)
    shapes = {
        "w1": (2, 16, padded), "b1": (2, padded), "w2": (2, padded, padded), "b2": (2, padded),
        "w3": (2, 2, padded, 16), "b3": (2, 2, 16), "kept": (2, 16),
    }  # fmt: skip
    for name, shape in shapes.items():
        held = getattr(fused, name)
        assert held.shape == shape, name
        given = sum(int(layer.detach().count_nonzero()) for layer in of_kind(layers, name))
        assert name == "kept" or int(held.count_nonzero()) == given, name
    assert fused.kept[0].tolist() == [1, 0, 1, *[1] * 13]
    assert fused.kept[1].tolist() == [0, 1, 0, *[1] * 13]


def of_kind(layers, name):
    """Yield the weights, or biases, of the layers' networks that one buffer holds."""
    for layer in layers.transforms:
        if name != "kept":
            linear = layer.network.layers[2 * (int(name[1]) - 1)]
            yield linear.weight if name[0] == "w" else linear.bias


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (AdditiveCoupling(ChannelMask([T, F]), MLP(1, 1, (8, 8))), "AdditiveCoupling"),
        (AffineCoupling(ChannelMask([T, F]), MLP(1, 2, (8,))), "AffineCoupling"),
        (AffineCoupling(ChannelMask([T, F]), MLP(1, 2, (8, 9))), "AffineCoupling"),
        (AffineCoupling(ChannelMask([T, F]), torch.nn.Linear(1, 2)), "AffineCoupling"),
        (AffineCoupling(CheckerboardMask(), ConvNet(2, 4, 8)), "AffineCoupling"),
        (Permutation([1, 0]), "Permutation"),
    ],
)
def test_other_layers_are_refused(layer, shown):
    with pytest.raises(TypeError, match=f"layer 1 must be an AffineCoupling(.|\n)*got {shown}"):
        FusedCouplings(Compose(coupling([T, F]), layer))


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (coupling([T, F, T]), "features, got 2, 3"),
        (coupling([T, F], hidden=4), "hidden, got 4, 8"),
        (coupling([T, F], bound=1.0), "bound, got 1.0, 2.0"),
    ],
)
def test_layers_that_differ_are_refused(other, what):
    with pytest.raises(ValueError, match=f"one {what}"):
        FusedCouplings(Compose(coupling([T, F]), other))


def test_another_shape_of_x_is_refused():
    fused = FusedCouplings(stack("one"))
    for x in (torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 2, 1)):
        with pytest.raises(ValueError, match="x must have"):
            fused(x)
