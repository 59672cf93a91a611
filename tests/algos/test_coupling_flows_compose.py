"""Layers put together: transforms from elsewhere, shapes, and where the parts of z lie."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pkg.algos.coupling_flows import ActNorm, Compose, MultiScale, Squeeze


class Tripled(nn.Module):
    """Somebody else's transform: it can be undone, and knows nothing of this package."""

    def forward(self, x):
        return 3 * x, x.flatten(1).shape[1] * math.log(3) * x.new_ones(len(x))

    def inverse(self, z):
        return z / 3, -z.flatten(1).shape[1] * math.log(3) * z.new_ones(len(z))


def test_transforms_from_elsewhere_take_part():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chain = Compose(Tripled(), ActNorm(4), Tripled()).double()
    flat = MultiScale(4, [Tripled(), Compose(Tripled(), ActNorm(2)), Tripled()]).double()
    for transform in (chain, flat):
        begun = transform.initialise(x)
        with torch.no_grad():
            z, log_det = transform.eval()(x)
        assert transform is flat or torch.equal(z, begun)
        assert torch.allclose(transform.inverse(z)[0], x, rtol=1e-14, atol=1e-14)
        jacobian = torch.autograd.functional.jacobian(lambda v, t=transform: t(v[None])[0][0], x[0])
        assert float(torch.linalg.slogdet(jacobian).logabsdet - log_det[0]) == pytest.approx(
            0, abs=1e-13
        )
        assert transform.output_shape((4,)) == (4,)
    # ActNorm was set behind the first layer, from numbers that were tripled
    assert torch.allclose(chain.transforms[1].bias, -3 * x.mean(0), rtol=1e-14)
    assert torch.allclose(flat.levels[1].transforms[1].bias, -9 * x[:, :2].mean(0), rtol=1e-14)


def test_shapes_are_told_before_anything_runs():
    assert Squeeze(3).output_shape((2, 3, 6)) == (18, 1, 2)
    assert Compose(Squeeze(), ActNorm(4), Squeeze()).output_shape((1, 8, 4)) == (16, 2, 1)
    flow = MultiScale((1, 4, 8), [Squeeze(), Squeeze(), ActNorm(4)])
    assert flow.output_shape((1, 4, 8)) == (32,)
    z, log_det = flow.eval()(torch.rand(2, 1, 4, 8))
    assert z.shape == (2, 32)
    assert log_det.shape == (2,)
    for shape in ((2, 3, 4), (2, 4, 3), (4, 4), (1, 1, 4, 4)):
        with pytest.raises(ValueError, match="2 divides"):
            Squeeze().output_shape(shape)


def test_a_multi_scale_flow_lays_out_what_leaves_first():
    flow = MultiScale((2, 2, 4), [ActNorm(2).eval(), Squeeze()])
    x = torch.arange(16.0).reshape(1, 2, 2, 4)
    z = flow(x)[0]
    assert z[0, :8].tolist() == x[0, 1].flatten().tolist()  # the second channel left
    assert z[0, 8:].tolist() == Squeeze()(x[:, :1])[0].flatten().tolist()
