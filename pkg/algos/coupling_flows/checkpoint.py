"""Gradients without stored activations: what forward forgot, backward computes again by inverting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pkg.algos.coupling_flows.compose import Compose, MultiScale
from pkg.algos.coupling_flows.transform import Transform, check_transforms


def invertible_checkpoint(transform: Transform) -> Transform:
    """Return the same transform, whose forward pass keeps only its result for the backward pass.

    The backward pass undoes one layer after the other, and differentiates each at what it gets
    back. So memory does not grow with the number of layers; the price is an inverse and a second
    forward pass for each layer, and gradients taken at a reconstruction that is off by rounding.

    Parameters
    ----------
    transform
        A `Compose` (of which each part is one layer), a `MultiScale` (whose levels are treated one
        by one), or any other transform (one layer). Its parameters are shared, not copied.

    Returns
    -------
    Transform
        Called in the same way. What it saves is z, and references to the parameters.

    Raises
    ------
    TypeError
        If `transform` has no `inverse`.

    Notes
    -----
    Gomez et al. (2017). The gradient cannot be differentiated again. A layer must compute the same
    thing each time that it is called on the same x: no dropout. Ledger:
    `coupling_flows:checkpoint_gradient`.

    Examples
    --------
    >>> from pkg.algos.coupling_flows import Scaling
    >>> lean = invertible_checkpoint(Compose(Scaling(2), Scaling(2)))
    >>> z, log_det = lean(torch.ones(1, 2))
    >>> log_det.sum().backward()
    >>> [p.grad.tolist() for p in lean.parameters()]
    [[1.0, 1.0], [1.0, 1.0]]
    """
    check_transforms([transform], "transform")
    if isinstance(transform, MultiScale):
        levels = [invertible_checkpoint(level) for level in transform.levels]  # type: ignore[arg-type]
        return MultiScale(transform.shape, levels)
    if isinstance(transform, Compose) and any(_divides(t) for t in transform.transforms):
        return Compose(*map(invertible_checkpoint, transform.transforms))  # type: ignore[arg-type]
    return _Inverting(transform)


def _divides(transform: nn.Module) -> bool:
    """Tell whether a multi-scale flow is inside: its parts leave early, and keep themselves."""
    return any(isinstance(part, MultiScale) for part in transform.modules())


class _Inverting(Transform):
    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layers = self._layers()
        return _ByInverting.apply(layers, x, *self.parameters())

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(z)

    def initialise(self, x: Tensor) -> Tensor:
        return self.transform.initialise(x)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.transform.output_shape(shape)

    def _layers(self) -> list[Transform]:
        if isinstance(self.transform, Compose):
            return list(self.transform.transforms)  # type: ignore[arg-type]
        return [self.transform]


class _ByInverting(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layers: list[Transform], x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        z = x
        for layer in layers:
            z, more = layer(z)
            log_det = log_det + more
        z = z.clone() if z is x or z._base is not None else z
        ctx.layers, ctx.needs_x = layers, x.requires_grad
        ctx.save_for_backward(z, *parameters)
        return z, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor, grad_log_det: Tensor) -> tuple[Any, ...]:
        z, *parameters = ctx.saved_tensors
        collected: dict[int, Tensor] = {}
        for layer in reversed(ctx.layers):
            with torch.no_grad():
                x = layer.inverse(z)[0]
            here = [p for p in layer.parameters() if p.requires_grad]
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                again, log_det = layer(x)
                outputs, arriving = [again], [grad_z]
                if log_det.requires_grad:
                    outputs, arriving = [again, log_det], [grad_z, grad_log_det]
                found = torch.autograd.grad(outputs, [x, *here], arriving, allow_unused=True)
            grad_z = found[0]
            for parameter, gradient in zip(here, found[1:], strict=True):
                if gradient is not None:
                    known = collected.get(id(parameter))
                    collected[id(parameter)] = gradient if known is None else known + gradient
            z = x.detach()
        return None, grad_z if ctx.needs_x else None, *(collected.get(id(p)) for p in parameters)
