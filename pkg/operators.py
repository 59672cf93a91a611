"""Register an operator once: CPU form, GPU launcher, fake, gradient, autocast.

A chapter's operator has a CPU form in plain PyTorch and a kernel in `pkg.cuda`. The first must
work on a machine that has no Triton, so the kernel's module is imported only when a CUDA tensor
arrives. `torch.library.custom_op` is what makes `torch.compile`, autocast, autograd and
`torch.library.opcheck` understand the operator; `register` says all of it in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

NAMESPACE = "checked"
# `register_autocast` of PyTorch takes one fixed dtype; this is the way to the one in force.
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def register(
    name: str,
    *,
    cpu: Callable[..., Any],
    cuda: str,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    autocast: bool = False,
    mutates: tuple[str, ...] = (),
) -> CustomOpDef:
    """Register `checked::<name>` and return the operator, which is called like `cpu`.

    Parameters
    ----------
    name
        The operator's name within the namespace `checked`.
    cpu
        The CPU form. Its annotations give the operator's schema (so they must be complete), and
        what it returns must not share memory with what it was given.
    cuda
        Where the launcher is, as "package.module:function". The module is imported at the first
        call with a CUDA tensor, never before.
    fake
        Gives outputs of the right shape and dtype without computing them: what a compiler asks.
    backward, setup_context
        The gradient, as `torch.library.register_autograd` takes it: `backward(ctx, *gradients)`
        and `setup_context(ctx, inputs, output)`. Without them the operator has no gradient.
    autocast
        Where autocast is on (CPU or CUDA), cast floating-point inputs to its dtype first, as
        PyTorch does for its own matrix products.
    mutates
        The arguments that the operator writes into (an optimizer's step writes its weights).

    Returns
    -------
    CustomOpDef
        The registered operator.

    Raises
    ------
    ValueError
        If `cuda` is not of the form "package.module:function", or if only one of `backward` and
        `setup_context` is given where the second is needed.

    Examples
    --------
    >>> def double(x: torch.Tensor) -> torch.Tensor:
    ...     return 2 * x
    >>> operator = register(
    ...     "doctest_double",
    ...     cpu=double,
    ...     cuda="pkg.cuda.nowhere:launch",
    ...     fake=torch.empty_like,
    ...     setup_context=lambda ctx, inputs, output: None,
    ...     backward=lambda ctx, gradient: 2 * gradient,
    ... )
    >>> x = torch.ones(3, requires_grad=True)
    >>> operator(x).sum().backward()
    >>> x.grad
    tensor([2., 2., 2.])
    """
    module, _, function = cuda.partition(":")
    if not (module and function):
        raise ValueError(f'cuda must read "package.module:function", got {cuda!r}')
    if setup_context is not None and backward is None:
        raise ValueError(f"setup_context of {name} was given without backward")

    operator = torch.library.custom_op(
        f"{NAMESPACE}::{name}", cpu, mutates_args=mutates, device_types="cpu"
    )

    def launch(*args: Any) -> Any:
        return getattr(import_module(module), function)(*args)

    operator.register_kernel("cuda", launch)
    operator.register_fake(fake)
    if backward is not None:
        operator.register_autograd(backward, setup_context=setup_context)
    if autocast:
        for device in ("cpu", "cuda"):
            _LIBRARY.impl(name, _casting(operator, device), f"Autocast{device.upper()}")
    return operator


def _casting(operator: CustomOpDef, device: str) -> Callable[..., Any]:
    """Return the operator for autocast on `device`: cast to the type in force, then call."""

    def cast(value: Any, dtype: torch.dtype) -> Any:
        wanted = isinstance(value, Tensor) and value.device.type == device
        narrow = wanted and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if narrow else value

    def call(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return operator(*(cast(value, dtype) for value in args))

    return call
