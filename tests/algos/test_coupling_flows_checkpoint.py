"""Inverting instead of storing: the same gradients, and nothing kept but the result."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pkg.algos.coupling_flows import (
    ActNorm,
    AffineCoupling,
    ChannelMask,
    Compose,
    Flow,
    Glow,
    Invertible1x1Conv,
    RealNVP,
    Scaling,
    StandardNormal,
    invertible_checkpoint,
)
from pkg.algos.coupling_flows.networks import MLP


def deep(layers, size=6, dtype=torch.float64, seed=0, spread=0.1):
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for number in range(layers):
        mask = ChannelMask.first_half(size, swap=number % 2 == 1)
        parts.append(AffineCoupling(mask, MLP(3, 6, (8,), generator=generator)))
        parts.append(ActNorm(size).eval())
    flow = Compose(*parts).to(dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator).to(dtype)
    return flow


def gradients(transform, x):
    x = x.clone().requires_grad_()
    transform.zero_grad()
    z, log_det = transform(x)
    weights = torch.linspace(1, 2, z.numel(), dtype=z.dtype).view_as(z)
    ((z**2 * weights).sum() + (log_det**2).sum()).backward()
    return [x.grad, *(p.grad for p in transform.parameters())]


def distance(ours, theirs):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def models():
    generator = torch.Generator().manual_seed(3)
    glow = Glow((1, 4, 8), levels=2, steps=2, hidden=4, alpha=0.05, generator=generator).double()
    x = 0.1 + 0.8 * torch.rand(4, 1, 4, 8, generator=generator, dtype=torch.float64)
    glow.initialise(x)
    nvp = RealNVP((2, 4, 2), levels=2, hidden=4, generator=generator).double()
    conv = Compose(Invertible1x1Conv(3, generator=generator), Scaling((3, 2, 2))).double()
    for model in (glow, nvp, conv):
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).double()
    y = 0.1 + 0.8 * torch.rand(4, 2, 4, 2, generator=generator, dtype=torch.float64)
    c = torch.rand(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    return {
        "deep": (deep(6), torch.randn(4, 6, generator=generator).double()),
        "Glow": (glow.transform, x),
        "RealNVP": (nvp.transform, y),
        "1x1": (conv, c),
        "a single layer": (Scaling(6).double(), torch.randn(4, 6, generator=generator).double()),
    }


@pytest.mark.parametrize("name", ["deep", "Glow", "RealNVP", "1x1", "a single layer"])
def test_the_gradients_are_those_of_the_plain_pass(name):
    transform, x = models()[name]
    plain = gradients(transform, x)
    lean = gradients(invertible_checkpoint(transform), x)
    # float64, some ten layers of mild slope: a reconstruction error of 1e-14 and its consequences
    assert distance(lean, plain) < 1e-10
    with torch.no_grad():
        for ours, theirs in zip(invertible_checkpoint(transform)(x), transform(x), strict=True):
            assert torch.equal(ours, theirs)


def test_gradcheck_of_the_lean_pass():
    transform = invertible_checkpoint(deep(2))
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    parameters = tuple(transform.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: transform(x), (x, *parameters))


def test_float32_gradients_are_near_those_of_float64():
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = gradients(deep(8), x)
    narrow = deep(8, dtype=torch.float32)
    plain = distance(gradients(narrow, x.float()), exact)
    lean = distance(gradients(invertible_checkpoint(narrow), x.float()), exact)
    # the reconstruction is off by the error of 16 layers; each gradient then by that, times slopes
    assert plain < 1e-5
    assert lean < 1e-4


def kept_for_backward(transform, x):
    """Return how many numbers autograd keeps, parameters and the input left out."""
    kept = {}
    own = {p.untyped_storage().data_ptr() for p in transform.parameters()}
    own.add(x.untyped_storage().data_ptr())

    def pack(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = max(kept.get(place, 0), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        z, log_det = transform(x)
    return sum(kept.values()) // x.element_size(), z, log_det


def test_only_the_result_is_kept_however_deep_the_flow():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, lean = [], []
    for layers in (2, 4, 8):
        flow = deep(layers)
        plain.append(kept_for_backward(flow, x)[0])
        lean.append(kept_for_backward(invertible_checkpoint(flow), x)[0])
    assert lean == [x.numel()] * 3  # z, and nothing else
    steps = plain[1] - plain[0], plain[2] - plain[1]
    assert steps[1] == 2 * steps[0] > 0  # stored activations grow with every layer


def test_frozen_parameters_get_no_gradient_and_others_do():
    flow = deep(2)
    first, *others = flow.parameters()
    first.requires_grad_(False)
    x = torch.randn(3, 6, dtype=torch.float64)
    z, log_det = invertible_checkpoint(flow)(x)
    (z.sum() + log_det.sum()).backward()
    assert first.grad is None
    assert all(p.grad is not None for p in others)


def test_a_layer_that_stands_twice_gets_both_gradients():
    layer = Scaling(3)
    _, log_det = invertible_checkpoint(Compose(layer, layer))(torch.ones(1, 3))
    log_det.sum().backward()
    assert layer.log_scale.grad.tolist() == [2.0, 2.0, 2.0]


def test_a_flow_of_checkpoints_trains_and_samples():
    flow = Flow(invertible_checkpoint(deep(2)), StandardNormal(6)).double()
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = -flow.log_prob(x).mean()
    optimiser = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimiser.step()
    assert loss < before
    assert flow.sample(2, generator=torch.Generator().manual_seed(0)).shape == (2, 6)


def test_no_second_derivative_in_silence():
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    z, _ = invertible_checkpoint(deep(1))(x)
    (gradient,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_only_transforms():
    with pytest.raises(TypeError, match="must be a transform"):
        invertible_checkpoint(nn.Linear(2, 2))
