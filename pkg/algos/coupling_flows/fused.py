"""A stack of affine couplings of vectors as one operation: for densities and samples, not training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pkg.algos.coupling_flows.arguments import channels
from pkg.algos.coupling_flows.compose import Compose
from pkg.algos.coupling_flows.couplings import AffineCoupling
from pkg.algos.coupling_flows.masks import ChannelMask
from pkg.algos.coupling_flows.networks import MLP
from pkg.algos.coupling_flows.operator import WIDE
from pkg.algos.coupling_flows.tiles import TiledStack
from pkg.algos.coupling_flows.transform import Transform
from pkg.operators import register


class FusedCouplings(Transform):
    """A frozen copy of a stack of affine couplings, which runs as one.

    On a GPU one kernel carries each sample through all layers without leaving the chip. On a CPU a
    tile of samples, small enough for the cache, goes through all layers before the next one.

    Parameters
    ----------
    transform
        An `AffineCoupling` or a `Compose` of them, on vectors: each with a `ChannelMask`, an `MLP`
        with two hidden layers, and all with one number of features, one hidden width and one bound.

    Raises
    ------
    TypeError
        If a layer is something else.
    ValueError
        If the layers differ in features, hidden width or bound; from `forward`, if x has another
        shape; on a GPU, if there are more than 64 features or 128 hidden units.

    Notes
    -----
    The weights are copied when this is made: make it again after a training step. Gradients reach x,
    not the layers. Ledger: `coupling_flows:fused`, `coupling_flows:fused_end`.

    Examples
    --------
    >>> from pkg.algos.coupling_flows import RealNVP
    >>> flow = RealNVP(6, hidden=16, alpha=None, generator=torch.Generator().manual_seed(0))
    >>> z, log_det = FusedCouplings(flow.transform)(torch.ones(5, 6))
    >>> z.shape, log_det.shape
    (torch.Size([5, 6]), torch.Size([5]))
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        layers = [_Layer(place, one) for place, one in enumerate(_parts(transform))]
        for name in ("features", "hidden", "bound"):
            found = {getattr(layer, name) for layer in layers}
            if len(found) > 1:
                told = ", ".join(map(str, sorted(found, key=str)))
                raise ValueError(f"all couplings must have one {name}, got {told}")
        self.features = layers[0].features
        self.bound = layers[0].bound or 0.0
        self.tiled = TiledStack([layer.compact() for layer in layers], self.bound)
        for name, tensor in _packed(layers).items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log|det ∂z/∂x|, shape (N,), in nats."""
        return self._go(x, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log|det ∂x/∂z|, shape (N,), in nats."""
        return self._go(z, inverse=True)

    def _go(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        channels(x, self.features, "FusedCouplings")
        if x.ndim != 2:
            raise ValueError(f"x must have shape (N, {self.features}), got {tuple(x.shape)}")
        plain = not (torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()))
        if plain and x.device.type == "cpu" and x.dtype not in WIDE:
            return self.tiled(x, inverse=inverse)
        weights = (getattr(self, name) for name in _NAMES)
        return stack_operator(x, *weights, self.bound, inverse)


_NAMES = ("w1", "b1", "w2", "b2", "w3", "b3", "kept")


def _parts(transform: Any) -> list[Any]:
    return list(transform.transforms) if isinstance(transform, Compose) else [transform]


class _Layer:
    """What one coupling is made of."""

    def __init__(self, place: int, coupling: Any) -> None:
        kinds = "an AffineCoupling with a ChannelMask and an MLP of two hidden layers of one width"
        network = getattr(coupling, "network", None)
        if not (
            isinstance(coupling, AffineCoupling)
            and isinstance(coupling.mask, ChannelMask)
            and isinstance(network, MLP)
            and len(network.layers) == 5
            and network.layers[0].out_features == network.layers[2].out_features
        ):
            raise TypeError(f"layer {place} must be {kinds}, got {coupling}")
        self.linear = [one for one in network.layers if isinstance(one, nn.Linear)]
        self.kept: Tensor = coupling.mask.kept.detach().clone()
        self.features, self.hidden = len(self.kept), self.linear[0].out_features
        self.bound = coupling.bound

    def compact(self) -> tuple[Tensor, ...]:
        """Return the mask, then weights and biases: (H, K), (H,), (H, H), (H,), (2 R, H), (2 R,)."""
        numbers = [t.detach().clone() for one in self.linear for t in (one.weight, one.bias)]
        return (self.kept, *numbers)


def _packed(layers: list[_Layer]) -> dict[str, Tensor]:
    """Return all weights for the kernel, transposed and filled up with zeros to powers of two.

    `w1` (L, D, H) has rows of zeros for what is changed, `w3` (L, 2, H, D) and `b3` (L, 2, D) columns
    of zeros for what is kept, so that all layers have one shape; `kept` (L, D) is 1 also in padding.
    """
    first = layers[0]
    like = first.linear[0].weight.detach()
    count, dims, hidden = len(layers), _padded(first.features), _padded(first.hidden)
    width, features = first.hidden, first.features
    found = {
        "w1": like.new_zeros(count, dims, hidden), "b1": like.new_zeros(count, hidden),
        "w2": like.new_zeros(count, hidden, hidden), "b2": like.new_zeros(count, hidden),
        "w3": like.new_zeros(count, 2, hidden, dims), "b3": like.new_zeros(count, 2, dims),
        "kept": torch.ones(count, dims, dtype=torch.uint8, device=like.device),
    }  # fmt: skip
    for place, layer in enumerate(layers):
        kept, w1, b1, w2, b2, w3, b3 = layer.compact()
        seen, rest = kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]
        found["kept"][place, :features] = kept
        found["w1"][place, seen, :width] = w1.mT
        found["b1"][place, :width], found["b2"][place, :width] = b1, b2
        found["w2"][place, :width, :width] = w2.mT
        for half, (weight, bias) in enumerate(zip(w3.chunk(2), b3.chunk(2), strict=True)):
            found["w3"][place, half, :width][:, rest] = weight.mT
            found["b3"][place, half, rest] = bias
    return found


def _padded(size: int) -> int:
    """Return the power of two, at least 16, that holds `size`."""
    return max(16, 1 << (size - 1).bit_length())


# ---------------------------------------------------------------- the operator


def _plain(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor, kept: Tensor,
    bound: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Do the same with PyTorch's operations, which have gradients; sums in float32 at least."""
    wide = WIDE.get(x.dtype, x.dtype)
    value, log_det = x.to(wide), x.new_zeros(len(x), dtype=wide)
    dims = x.shape[1]
    for layer in reversed(range(len(w1))) if inverse else range(len(w1)):
        keeps = kept[layer, :dims] != 0
        seen = torch.where(keeps, value, 0).to(x.dtype)
        h = torch.relu(torch.addmm(b1[layer], seen, w1[layer, :dims]))
        h = torch.relu(torch.addmm(b2[layer], h, w2[layer]))
        raw, shift = (torch.addmm(b3[layer, i], h, w3[layer, i])[:, :dims].to(wide) for i in (0, 1))
        s = bound * torch.tanh(raw / bound) if bound > 0 else raw
        s = torch.where(keeps, 0, s)
        new = (value - shift) / s.exp() if inverse else value * s.exp() + shift
        value = torch.where(keeps, value, new)
        log_det = log_det - s.sum(1) if inverse else log_det + s.sum(1)
    return value.to(x.dtype), log_det


def _stack(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor, kept: Tensor,
    bound: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with torch.autocast("cpu", enabled=False):  # x and weights have one type, and keep it
        out, log_det = _plain(x, w1, b1, w2, b2, w3, b3, kept, bound, inverse)
    return (out.clone() if out is x else out.contiguous()), log_det


def _fake(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor, kept: Tensor,
    bound: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, x.new_empty(x.shape[0], dtype=WIDE.get(x.dtype, x.dtype))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.bound, ctx.inverse = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, gradient: Tensor, sum_gradient: Tensor) -> tuple[Any, ...]:
    """Return the gradients of the plain form, computed again."""
    *tensors, kept = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in tensors]
        x, w1, b1, w2, b2, w3, b3 = leaves
        found = _plain(x, w1, b1, w2, b2, w3, b3, kept, ctx.bound, ctx.inverse)
        by = torch.autograd.grad(found, leaves, (gradient, sum_gradient))
    return (*by, None, None, None)


stack_operator = register(
    "coupling_stack",
    cpu=_stack,
    cuda="pkg.cuda.coupling_flows:stack",
    fake=_fake,
    setup_context=_remember,
    backward=_gradient,
)
