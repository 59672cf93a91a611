"""Every transform is what it says: undone by its inverse, and its log-determinant autograd's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pkg.algos.coupling_flows import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ChannelMask,
    CheckerboardMask,
    Compose,
    Invertible1x1Conv,
    Logit,
    MultiScale,
    Permutation,
    RationalQuadraticCoupling,
    Scaling,
    Squeeze,
)
from pkg.algos.coupling_flows.networks import MLP, ConvNet
from pkg.algos.coupling_flows.spline import _log_slope, _rise, _share_at_height

VECTORS = [(d,) for d in range(1, 8)]
IMAGES = [(1, 2, 4), (2, 4, 2), (3, 2, 3)]


def network(shape, inputs, outputs, generator):
    kind = MLP if len(shape) == 1 else ConvNet
    return kind(inputs, outputs, (6,) if kind is MLP else 6, generator=generator)


def coupling(kind, numbers, mask_of):
    def make(shape, generator):
        mask = mask_of(shape)
        if isinstance(mask, CheckerboardMask):
            kept = changed = shape[0]
        else:
            kept, changed = shape[0] - mask.changed, mask.changed
        return kind(mask, network(shape, kept, numbers * changed, generator))

    return make


def first_half(shape):
    return ChannelMask.first_half(shape[0])


def last_half(shape):
    return ChannelMask.first_half(shape[0], swap=True)


def alternating(shape):
    return ChannelMask.alternating(shape[0])


def board(shape):
    return CheckerboardMask(swap=True)


def spline(mask, net):
    return RationalQuadraticCoupling(mask, net, bins=5, tail=2.0)


#: name -> (builder, least channels, which shapes, pixel range)
TRANSFORMS = {
    "additive": (coupling(AdditiveCoupling, 1, first_half), 2, "any"),
    "additive, last half": (coupling(AdditiveCoupling, 1, last_half), 2, "any"),
    "additive, board": (coupling(AdditiveCoupling, 1, board), 1, "images"),
    "affine": (coupling(AffineCoupling, 2, first_half), 2, "any"),
    "affine, alternating": (coupling(AffineCoupling, 2, alternating), 2, "any"),
    "affine, board": (coupling(AffineCoupling, 2, board), 1, "images"),
    "spline": (coupling(spline, 14, first_half), 2, "any"),
    "spline, board": (coupling(spline, 14, board), 1, "images"),
    "actnorm": (lambda shape, g: ActNorm(shape[0]).eval(), 1, "any"),
    "1x1, PLU": (lambda shape, g: Invertible1x1Conv(shape[0], generator=g), 1, "any"),
    "1x1, full": (
        lambda shape, g: Invertible1x1Conv(shape[0], decomposed=False, generator=g), 1, "any",
    ),
    "permutation": (lambda shape, g: Permutation.random(shape[0], generator=g), 1, "any"),
    "squeeze": (lambda shape, g: Squeeze(), 1, "even"),
    "scaling": (lambda shape, g: Scaling(shape), 1, "any"),
    "logit": (lambda shape, g: Logit(0.05), 1, "any"),
    "multi-scale": (
        lambda shape, g: MultiScale(
            shape, [Compose(Squeeze(), coupling(AffineCoupling, 2, first_half)((4 * shape[0], 1, 1), g)),
                    ActNorm(2 * shape[0]).eval()]), 1, "even",
    ),
    "composition": (
        lambda shape, g: Compose(
            coupling(AffineCoupling, 2, first_half)(shape, g),
            Permutation.reverse(shape[0]),
            Invertible1x1Conv(shape[0], generator=g),
            coupling(AdditiveCoupling, 1, first_half)(shape, g),
        ), 2, "any",
    ),
}  # fmt: skip


def every_example():
    for name, (_, least, where) in TRANSFORMS.items():
        for shape in VECTORS + IMAGES:
            even = len(shape) == 3 and shape[1] % 2 == 0 and shape[2] % 2 == 0
            fits = {"any": True, "images": len(shape) == 3, "even": even}[where]
            if shape[0] >= least and fits:
                yield pytest.param(name, shape, id=f"{name}-{'x'.join(map(str, shape))}")


EXAMPLES = list(every_example())


def build(name, shape, batch, dtype=torch.float64, seed=0, spread=0.3):
    """Return the transform with random weights, moderately large, and a batch for it."""
    generator = torch.Generator().manual_seed(seed)
    transform = TRANSFORMS[name][0](shape, generator).to(dtype)
    with torch.no_grad():
        for parameter in transform.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += spread * drawn.to(dtype)
    if name == "logit":
        x = torch.rand(batch, *shape, generator=generator, dtype=torch.float64)
    else:
        x = 1.5 * torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    return transform, x.to(dtype)


def slopes(name, shape, batch):
    """Return the largest singular values of the Jacobians of the transform and of its inverse."""
    transform, x = build(name, shape, batch)
    size = math.prod(shape)
    values = torch.stack([
        torch.linalg.svdvals(
            torch.autograd.functional.jacobian(lambda v: transform(v[None])[0][0], one)
            .reshape(size, size)
        )
        for one in x
    ])  # fmt: skip
    return float(values.max()), 1 / float(values.min())


@pytest.mark.parametrize(("name", "shape"), EXAMPLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_inverse_undoes_it_and_its_log_determinant_has_the_other_sign(
    name, shape, dtype, batch
):
    transform, x = build(name, shape, batch, dtype)
    with torch.no_grad():
        z, log_det = transform(x)
        back, log_det_back = transform.inverse(z)
        forth, _ = transform(back if name != "logit" else back.clamp(0, 1))
    assert log_det.shape == log_det_back.shape == (batch,)
    assert z.dtype == log_det.dtype == dtype
    # Some ten roundings of the largest number (four layers at most, an inner product in some), each
    # of which the inverse can enlarge by its steepest slope, and forward again by the condition
    # number. A log-determinant is the logarithm of slopes: the same, relative to 1.
    steep, steep_back = slopes(name, shape, batch)
    allowed = 50 * torch.finfo(dtype).eps * max(float(x.abs().max()), float(z.abs().max()), 1.0)
    assert (back - x).abs().max() <= allowed * max(1, steep_back)
    assert (forth - z).abs().max() <= allowed * max(1, steep * steep_back)
    numbers = max(float(log_det.abs().max()), math.prod(shape))
    assert (log_det + log_det_back).abs().max() <= allowed * numbers * max(1, steep * steep_back)


@pytest.mark.parametrize(("name", "shape"), EXAMPLES)
def test_the_log_determinant_is_that_of_autograds_jacobian(name, shape):
    transform, x = build(name, shape, 2)
    for way, point in ((transform, x), (transform.inverse, transform(x)[0].detach())):
        log_det = way(point)[1]
        for sample in range(len(point)):
            one = point[sample]
            jacobian = torch.autograd.functional.jacobian(
                lambda v, way=way: way(v[None])[0][0], one
            )
            size = one.numel()
            expected = torch.linalg.slogdet(jacobian.reshape(size, size)).logabsdet
            # float64: roundings of a determinant of at most 16 x 16
            assert abs(expected - log_det[sample]) <= 1e-10


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_pass_gradcheck(name):
    where = TRANSFORMS[name][2]
    shape = (4,) if where == "any" else (2, 2, 4)
    # finite differences of 1e-6 see nothing of a spline's steepest pieces: draw gentler ones
    transform, x = build(name, shape, 2, spread=0.1 if "spline" in name else 0.3)
    if name == "logit":
        x = 0.1 + 0.8 * x  # finite differences must not leave [0, 1]
    x.requires_grad_()
    parameters = tuple(transform.parameters())

    def forward(x, *_):
        return transform(x)

    def backward(z, *_):
        return transform.inverse(z)

    assert torch.autograd.gradcheck(forward, (x, *parameters))
    z = transform(x)[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(backward, (z, *parameters))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_samples_do_not_touch_each_other(name):
    shape = (5,) if TRANSFORMS[name][2] == "any" else (2, 2, 4)
    transform, x = build(name, shape, 3)
    z, log_det = transform(x)
    for sample in range(3):
        alone, log_det_alone = transform(x[sample : sample + 1])
        # a matrix product may add in another order for one sample than for three
        assert torch.allclose(alone[0], z[sample], rtol=1e-13, atol=1e-13)
        assert torch.allclose(log_det_alone[0], log_det[sample], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_empty_batch_and_a_strided_one(name):
    for shape in ((5,), (2, 2, 4)):
        if (TRANSFORMS[name][2] != "any") and len(shape) == 1:
            continue
        transform, x = build(name, shape, 4)
        z, log_det = transform(x[:0])
        assert z.shape[1:] == transform(x)[0].shape[1:]
        assert len(z) == len(log_det) == 0
        assert transform.inverse(z)[0].shape == (0, *shape)
        wide = torch.stack((x, x), -1)[..., 0]  # same numbers, every other place in memory
        assert not wide.is_contiguous()
        assert torch.allclose(transform(wide)[0], transform(x)[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", ["additive", "affine", "spline"])
def test_what_the_mask_keeps_is_kept_to_the_last_bit(kind):
    for suffix in ("", ", board"):
        shape = (2, 4, 3)
        transform, x = build(kind + suffix, shape, 3, torch.float32)
        kept = transform.mask(x).bool().expand_as(x)
        z = transform(x)[0]
        assert torch.equal(z[kept], x[kept])
        moved = ~kept & (x.abs() < 2)  # a spline leaves what lies beyond its tails
        assert (z[moved] != x[moved]).all()


def test_a_new_coupling_is_the_identity():
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    mask = ChannelMask.alternating(5)
    for layer in (AdditiveCoupling(mask, MLP(3, 2)), AffineCoupling(mask, MLP(3, 4))):
        z, log_det = layer(x)
        assert torch.equal(z, x)
        assert not log_det.any()


def test_squeeze_puts_each_square_into_channels():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    z = Squeeze()(x)[0]
    for c in range(3):
        for i in range(2):
            for j in range(2):
                assert torch.equal(z[:, 4 * c + 2 * i + j], x[:, c, i::2, j::2])


def test_permutation_and_its_inverse_by_hand():
    layer = Permutation([2, 0, 1])
    x = torch.tensor([[10.0, 11.0, 12.0]])
    assert layer(x)[0].tolist() == [[12.0, 10.0, 11.0]]
    assert layer.inverse(x)[0].tolist() == [[11.0, 12.0, 10.0]]


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("decomposed", [True, False])
def test_a_given_weight_is_the_matrix_that_is_applied(channels, decomposed):
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    layer = Invertible1x1Conv.from_weight(weight, decomposed=decomposed)
    assert torch.allclose(layer.weight(), weight, rtol=1e-13, atol=1e-14)
    x = torch.randn(2, channels, 2, 3, generator=generator, dtype=torch.float64)
    expected = nn.functional.conv2d(x, weight[:, :, None, None])
    z, log_det = layer(x)
    assert torch.allclose(z, expected, rtol=1e-12, atol=1e-13)
    # H * W = 6 positions
    assert torch.allclose(log_det, 6 * torch.linalg.slogdet(weight).logabsdet.expand(2))


def test_a_given_weight_is_decomposed_unless_told_otherwise():
    names = {name for name, _ in Invertible1x1Conv.from_weight(torch.eye(3)).named_parameters()}
    assert names == {"log_s", "lower", "upper"}


def test_a_new_1x1_convolution_is_a_rotation():
    weight = Invertible1x1Conv(6, generator=torch.Generator().manual_seed(0)).weight()
    assert torch.allclose(weight @ weight.mT, torch.eye(6), atol=1e-6)  # float32


def test_actnorm_whitens_the_first_batch_and_then_stays():
    generator = torch.Generator().manual_seed(0)
    layer = ActNorm(3)
    x = 5 + 3 * torch.randn(40, 3, 4, 5, generator=generator)
    z, _ = layer(x)
    # float32 mean of 800 numbers
    assert z.mean((0, 2, 3)).abs().max() < 1e-5
    assert (z.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    before = [p.clone() for p in layer.parameters()]
    layer(x + 1)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


def test_actnorm_stays_initialised_when_stored_and_loaded():
    first, second = ActNorm(2), ActNorm(2)
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    first(x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x + 1)[0], first(x + 1)[0])


def test_actnorm_in_evaluation_does_not_look_at_the_batch():
    layer = ActNorm(2).eval()
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x)[0], x)
    assert not layer.initialised


def test_the_spline_is_increasing_and_the_identity_outside():
    transform, _ = build("spline", (2,), 1)
    x = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    both = torch.stack((torch.full_like(x, 0.3), x), 1)
    with torch.no_grad():
        z = transform(both)[0][:, 1]
    assert (z.diff() > 0).all()
    outside = x.abs() >= 2
    assert torch.equal(z[outside], x[outside])
    assert (z[~outside] != x[~outside]).any()


def test_the_logit_in_numbers():
    alpha = 0.1
    x = torch.tensor([[0.0, 0.25, 1.0]], dtype=torch.float64)
    z, log_det = Logit(alpha)(x)
    inner = [alpha + 0.8 * v for v in x[0].tolist()]
    assert z[0].tolist() == pytest.approx([math.log(y / (1 - y)) for y in inner], rel=1e-14)
    slope = sum(math.log(0.8 / (y * (1 - y))) for y in inner)
    assert float(log_det) == pytest.approx(slope, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steep", [0.01, 1.0, 10.0, 1e3, 1e5])
def test_a_steep_end_costs_the_inverse_of_a_spline_no_digits(steep, dtype):
    """One form of the quadratic's root loses them at a steep upper end, the other at a lower one."""
    share = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    for d0, d1 in ((0.5, steep), (steep, 0.5), (steep, steep)):
        bin_ = one, one * d0, one * d1
        up = _rise(share, *bin_).to(dtype)
        found = _share_at_height(up, *(x.to(dtype) for x in (one, *bin_)))
        exact = share if dtype == torch.float64 else _share_at_height(up.double(), one, *bin_)
        # two roundings of the share, and what a rounding of the height moves it by
        moved = up.double() / _log_slope(exact, *bin_).exp()
        assert ((found - exact).abs() < 2 * torch.finfo(dtype).eps * (exact + moved)).all()


def test_a_spline_far_out_in_a_corner():
    """Places at the very knots and at both ends of the tails belong to one bin, and come back."""
    layer = RationalQuadraticCoupling(ChannelMask.first_half(2), nn.Linear(1, 11), bins=4, tail=2.0)
    layer = layer.double()
    nn.init.zeros_(layer.network.weight)
    nn.init.zeros_(layer.network.bias)
    ends = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 2.5], dtype=torch.float64)
    x = torch.stack((torch.zeros_like(ends), ends), 1)
    z, log_det = layer(x)
    back, undone = layer.inverse(z)
    # equal bins of width 1, and inner slopes softplus(0) + 0.001: every knot stays where it is
    slope = math.log(math.log(2) + 1e-3)
    assert torch.allclose(z[:, 1], ends, atol=1e-14)
    assert torch.allclose(back[:, 1], ends, atol=1e-14)
    expected = torch.tensor([0, slope, slope, slope, 0, 0], dtype=torch.float64)
    assert torch.allclose(log_det, expected, atol=1e-13)
    assert torch.allclose(undone, -expected, atol=1e-13)
