"""Densities: they integrate to 1, count bits rightly, and samples follow them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate

from pkg.algos.coupling_flows import (
    NICE,
    AffineCoupling,
    ChannelMask,
    CheckerboardMask,
    Compose,
    Flow,
    Glow,
    Logit,
    MultiScale,
    RationalQuadraticCoupling,
    RealNVP,
    Scaling,
    StandardLogistic,
    StandardNormal,
    VariationalDequantisation,
    bits_per_dim,
    dequantise,
)
from pkg.algos.coupling_flows.networks import MLP

MODELS = {
    "NICE": lambda g: NICE((1, 4, 8), hidden=(8,), generator=g),
    "NICE, vectors": lambda g: NICE(5, couplings=3, hidden=(8,), generator=g),
    "RealNVP": lambda g: RealNVP((2, 4, 8), levels=2, hidden=4, generator=g),
    "RealNVP, one level": lambda g: RealNVP((1, 3, 5), levels=1, hidden=4, alpha=None, generator=g),
    "RealNVP, vectors": lambda g: RealNVP((5,), couplings=3, hidden=8, generator=g),
    "Glow": lambda g: Glow((1, 4, 8), levels=2, steps=2, hidden=4, generator=g),
    "Glow, one level": lambda g: Glow((3, 2, 4), levels=1, steps=2, hidden=4, alpha=0.05, generator=g),
}  # fmt: skip


def ready(name, seed=0):
    """Return the model in float64 with random weights, and pixels for it."""
    generator = torch.Generator().manual_seed(seed)
    flow = MODELS[name](generator).double()
    shape = {"NICE, vectors": (5,), "RealNVP, vectors": (5,), "RealNVP, one level": (1, 3, 5),
             "RealNVP": (2, 4, 8), "Glow, one level": (3, 2, 4)}.get(name, (1, 4, 8))  # fmt: skip
    x = torch.rand(20, *shape, generator=generator, dtype=torch.float64)
    flow.initialise(x)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return flow.eval(), x, shape


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_a_density_with_autograds_determinant(name):
    flow, x, shape = ready(name)
    size = math.prod(shape)
    z, log_det = flow.transform(x[:2])
    for sample in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: flow.transform(v[None])[0][0], x[sample]
        ).reshape(size, size)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        assert abs(float(expected - log_det[sample])) < 1e-9  # float64, up to 64 x 64
    assert torch.allclose(flow.log_prob(x[:2]), flow.base.log_prob(z) + log_det)
    assert torch.equal(flow(x[:2]), flow.log_prob(x[:2]))
    back = flow.transform.inverse(flow.transform(x)[0])[0]
    # float64, a dozen layers with scales of 1/12 to 12: far below what would betray a wrong layer
    assert (back - x).abs().max() < 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_samples_come_from_the_generator_alone(name):
    flow, _, shape = ready(name)
    first, second = (flow.sample(3, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (3, *shape)
    assert not first.requires_grad
    other = flow.sample(3, generator=torch.Generator().manual_seed(8))
    assert not torch.equal(first, other)
    assert flow.sample(0).shape == (0, *shape)


def test_all_parts_of_a_multi_scale_latent_are_drawn():
    """The published mistake: what left on the way is filled with zeros when sampling."""
    flow, _, _ = ready("Glow")
    assert any(isinstance(part, MultiScale) for part in flow.modules())
    x = flow.sample(500, generator=torch.Generator().manual_seed(0))
    z = flow.transform(x)[0]
    # each of 32 latents varies by itself: standard deviation 1, to 6 standard errors
    assert ((z.std(0) - 1).abs() < 6 / math.sqrt(1000)).all()
    correlation = torch.corrcoef(z.mT) - torch.eye(32)
    assert correlation.abs().max() < 6 / math.sqrt(500)


def test_temperature_scales_the_latents():
    flow, _, _ = ready("NICE, vectors")
    cold, warm = (
        flow.sample(5, temperature=t, generator=torch.Generator().manual_seed(0)) for t in (0.5, 1)
    )
    z_cold, z_warm = (flow.transform(x)[0] for x in (cold, warm))
    assert torch.allclose(z_cold, 0.5 * z_warm, atol=1e-9)
    frozen = flow.sample(2, temperature=0.0)
    assert torch.equal(frozen[0], frozen[1])


@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_a_density_of_the_plane_integrates_to_one(kind):
    generator = torch.Generator().manual_seed(0)
    layers = []
    for number in range(2):
        mask = ChannelMask.alternating(2, swap=number == 1)
        numbers = 2 if kind == "affine" else 11
        network = MLP(1, numbers, (8,), generator=generator).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.3 * torch.randn(
                    parameter.shape, generator=generator, dtype=torch.float64
                )
        layers.append(
            AffineCoupling(mask, network, bound=0.7)  # so that all of it fits on the grid
            if kind == "affine"
            else RationalQuadraticCoupling(mask, network, bins=4)
        )
    flow = Flow(Compose(*layers), StandardNormal(2)).double()
    with torch.no_grad():
        axis = torch.linspace(-30, 30, 1501, dtype=torch.float64)
        points = torch.cartesian_prod(axis, axis)
        density = flow.log_prob(points).exp().reshape(1501, 1501).numpy()
    total = integrate.trapezoid(integrate.trapezoid(density, axis.numpy()), axis.numpy())
    # the trapezoid rule on a grid of 1/25, on a density with kinks
    assert total == pytest.approx(1, abs=5e-3)


def test_bits_count_the_width_of_a_bin():
    """A density that is even on [0, 1) costs log2 of the number of values, whatever they are."""
    for bins in (2, 17, 256):
        assert float(bits_per_dim(torch.zeros(1), 10, bins)) == pytest.approx(math.log2(bins))


def test_bits_of_a_flow_bound_the_bits_of_its_counts():
    """In one dimension the probability of a count can be integrated, and Jensen's gap is seen."""
    flow = Flow(Compose(Logit(0.0), Scaling(1)), StandardNormal(1)).double()
    flow.transform.transforms[1].log_scale.data += 0.7
    bins, counts = 5, torch.arange(5)[:, None]
    exact = torch.tensor([
        integrate.quad(
            lambda v: float(flow.log_prob(torch.tensor([[v]], dtype=torch.float64)).exp()),
            max(k / bins, 1e-12), min((k + 1) / bins, 1 - 1e-12),
        )[0]
        for k in range(bins)
    ])  # fmt: skip
    assert float(exact.sum()) == pytest.approx(1, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    many = counts.repeat(4000, 1)
    x = dequantise(many, bins=bins, generator=generator, dtype=torch.float64)
    told = flow.bits_per_dim(x, bins=bins).detach().reshape(4000, bins)
    error = told.std(0) / math.sqrt(4000)
    assert (told.mean(0) >= -exact.log2() - 4 * error).all()
    # and averaging probabilities instead of logarithms closes the gap
    average = -(2.0**-told).mean(0).log2()
    assert torch.allclose(average, -exact.log2().double(), atol=0.1)


def test_dequantised_counts_come_back():
    for bins in (2, 17, 256, 4096):
        counts = torch.arange(bins).repeat(50)
        for dtype in (torch.float32, torch.float64):
            x = dequantise(
                counts, bins=bins, generator=torch.Generator().manual_seed(0), dtype=dtype
            )
            assert x.dtype == dtype
            assert (x >= 0).all()
            assert (x < 1).all()
            assert torch.equal((x * bins).floor().long(), counts)


def test_a_place_at_the_upper_edge_stays_in_its_bin():
    from pkg.algos.coupling_flows.pixels import place_in_bin

    for bins in (2, 17, 256, 4096):
        counts = torch.arange(bins)
        for dtype in (torch.float32, torch.float64):
            x = place_in_bin(counts, torch.ones(bins, dtype=dtype), bins)
            assert torch.equal((x * bins).floor().long(), counts)


def test_learnt_noise_has_the_density_that_it_says():
    """q integrates to 1 over the bin, and the places follow it."""
    noise = VariationalDequantisation(MLP(1, 2, (4,)), bins=3).double()
    noise.network.layers[-1].bias.data = torch.tensor([0.4, -0.5], dtype=torch.float64)
    counts = torch.ones(100_000, 1, dtype=torch.int64)
    x, log_q = noise(counts, generator=torch.Generator().manual_seed(0))
    u = 3 * x[:, 0] - 1
    assert ((u > 0) & (u < 1)).all()
    # E[1 / q] over q is the size of the unit interval
    ratio = (-log_q).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / math.sqrt(1e5))
    edges = torch.linspace(0, 1, 11, dtype=torch.float64)
    shares = torch.histogram(u, bins=edges).hist / 1e5
    middle = (edges[1:] + edges[:-1]) / 2
    e = middle.logit()
    sigma = math.exp(3 * math.tanh(-0.5 / 3))
    q = (-0.5 * ((e - 0.4) / sigma) ** 2).exp() / (sigma * math.sqrt(2 * math.pi))
    q = q / (middle * (1 - middle))
    # histogram against the density in the middle of a bin: the curve bends within it
    assert torch.allclose(shares, q / 10, atol=0.01)


def test_learnt_noise_sees_the_counts_from_minus_one_to_one():
    seen = []

    class Watching(MLP):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    VariationalDequantisation(Watching(3, 6, (2,)), bins=17)(torch.tensor([[0, 16, 4]]))
    assert seen[0].tolist() == [[-1.0, 1.0, -0.5]]


def test_bits_of_a_flow_are_those_of_its_density():
    flow, x, shape = ready("RealNVP")
    told = flow.bits_per_dim(x, bins=256)
    expected = (math.log(256) - flow.log_prob(x) / math.prod(shape)) / math.log(2)
    torch.testing.assert_close(told, expected, rtol=1e-14, atol=1e-14)
    flow.bits_per_dim(x.round(), bins=2)  # both ends of the unit interval belong to it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_uniform_draw_of_zero_has_a_logit_all_the_same(dtype, monkeypatch):
    """As that of the smallest positive number that can be drawn: half the spacing below 1."""
    base = StandardLogistic(3).to(dtype)
    smallest = torch.finfo(dtype).eps / 2
    drawn = torch.tensor([[0.0, smallest, 2 * smallest]], dtype=dtype)
    monkeypatch.setattr(torch, "rand", lambda size, **options: drawn)
    expected = [math.log(u / (1 - u)) for u in (smallest, smallest, 2 * smallest)]
    assert base.sample(1)[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_the_models_start_near_the_base():
    for name in ("NICE", "RealNVP, one level"):
        flow = MODELS[name](torch.Generator().manual_seed(0))
        x = torch.rand(3, 1, *((4, 8) if name == "NICE" else (3, 5)))
        z, log_det = flow.transform(x)
        assert torch.equal(z, x.flatten(1))
        assert not log_det.any()


def test_weights_come_from_the_generator():
    for name, make in MODELS.items():
        first, second, third = (make(torch.Generator().manual_seed(s)) for s in (0, 0, 1))
        pairs = list(zip(first.parameters(), second.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in pairs), name
        others = zip(first.parameters(), third.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in others), name


def test_a_flow_moves_with_its_type():
    flow = MODELS["RealNVP"](None).double()
    assert flow.sample(1).dtype == torch.float64
    assert CheckerboardMask()(torch.zeros(1, 1, 2, 2, dtype=torch.float64)).dtype == torch.float64
