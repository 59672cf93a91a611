"""Loss scaling: gradients too small for float16 are carried as larger numbers.

The loss is multiplied by a scale S before backward, so every gradient is S times as large, and is
divided by S before the optimizer sees it. S is found by trying: it halves when a gradient overflows
and doubles after a long run of steps without.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pkg.arguments import positive, whole

_KEYS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


@dataclass
class _Progress:
    """How far an optimizer is within one iteration, and whether its gradients overflowed."""

    stage: str = "ready"
    checks: list[Tensor] = field(default_factory=list)

    @cached_property
    def overflowed(self) -> bool:
        """Asked for when all checks are there; waits for each device once."""
        devices = {check.device for check in self.checks}
        found = ([check for check in self.checks if check.device == device] for device in devices)
        return any(bool(torch.stack(checks).any()) for checks in found)


class LossScaler:
    """Scale a loss, unscale gradients, skip steps that overflowed, adapt the scale.

    It behaves as `torch.amp.GradScaler` does, call by call, with one difference: what is checked for
    infinities and NaN are the gradients after unscaling, which are those the optimizer gets.
    `GradScaler` checks them before. With a scale below 1, unscaling can overflow; `GradScaler` then
    hands infinities to the optimizer (pytorch#99640), `LossScaler` skips the step. (Calls in the
    wrong order, which `GradScaler` asserts, raise RuntimeError here, as its other errors do.)

    Parameters
    ----------
    init_scale
        The first scale, positive. Kept in float32, as all scales.
    growth_factor
        Above 1: what the scale is multiplied by after `growth_interval` iterations without overflow.
        A product that is not finite in float32 is not taken.
    backoff_factor
        Between 0 and 1: what it is multiplied by after an iteration in which a gradient overflowed.
    growth_interval
        The number of iterations without overflow, in a row, after which the scale grows.

    Raises
    ------
    TypeError, ValueError
        If an argument is no number of that range.

    Notes
    -----
    Micikevicius et al. (2018), section 3.2. An iteration is `scale(loss).backward()`; for each
    optimizer `step(optimizer)`, and before it `unscale_(optimizer)` where gradients are looked at or
    clipped; then one `update()`. Ledger: `mixed_precision:scale_update`,
    `mixed_precision:step_taken`.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.SGD([weight], lr=0.5)
    >>> scaler = LossScaler(init_scale=1024.0, growth_interval=1)
    >>> scaler.scale(weight.sum()).backward()
    >>> weight.grad
    tensor([1024., 1024.])
    >>> scaler.step(optimizer)
    >>> scaler.update()
    >>> weight.detach(), scaler.get_scale()
    (tensor([0.5000, 0.5000]), 2048.0)
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        self._scale = _positive("init_scale", init_scale)
        self._growth_factor, self._backoff_factor = growth_factor, backoff_factor
        self._growth_interval, self._growth_tracker = growth_interval, 0
        self._check_factors()
        self._used = False
        self._tensors: dict[tuple[torch.device, bool], Tensor] = {}
        self._progress: dict[Any, _Progress] = {}

    # ------------------------------------------------------------ one iteration

    def scale(self, outputs: Any) -> Any:
        """Return a tensor, or an iterable of tensors, multiplied by the scale.

        Parameters
        ----------
        outputs
            A tensor of any shape, or a list, tuple or other iterable of such (nested, too).

        Returns
        -------
        Tensor or iterable
            Of the same structure. A single half-precision number becomes float32, so that its
            product with a large scale is finite.

        Raises
        ------
        TypeError
            If there is something else than tensors in it.
        """
        if isinstance(outputs, Tensor):
            self._used = True
            return outputs * self._factor(outputs.device, inverse=False)
        if not isinstance(outputs, Iterable) or isinstance(outputs, str | bytes):
            raise TypeError(
                f"outputs must be a tensor or an iterable of tensors, got {type(outputs).__name__}"
            )
        scaled = map(self.scale, outputs)
        return type(outputs)(scaled) if isinstance(outputs, list | tuple) else scaled

    @torch.no_grad()
    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, in place.

        `step` does it where it was not done; call it where gradients are clipped or looked at.

        Parameters
        ----------
        optimizer
            A `torch.optim.Optimizer` or what has its `param_groups`. Gradients in float16 are
            refused: their unscaled values would underflow, which is what scaling is to prevent.

        Raises
        ------
        RuntimeError
            If `scale` was never called, or the optimizer was unscaled or stepped already since the
            last `update`.
        ValueError
            If a gradient is float16.
        """
        self._need_a_scaled_loss("unscale_")
        progress = self._progress.setdefault(optimizer, _Progress())
        if progress.stage == "unscaled":
            raise RuntimeError(
                "unscale_() has already been called on this optimizer since the last update()."
            )
        if progress.stage == "stepped":
            raise RuntimeError("unscale_() is being called after step().")
        grads = _gradients(optimizer)
        if any(grad.dtype == torch.float16 for grad in grads):
            raise ValueError(
                "optimizer must have gradients in float32 or bfloat16, got float16: unscaled they "
                "underflow. Keep float32 parameters (autocast), or wrap it in MasterWeights"
            )
        for grad in grads:
            grad.mul_(self._factor(grad.device, inverse=True))
            progress.checks.append(_not_finite(grad))
        progress.stage = "unscaled"

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """Unscale the gradients if that was not done, and step unless one of them is not finite.

        Parameters
        ----------
        optimizer
            As in `unscale_`. `args` and `kwargs` are handed to its `step`.

        Returns
        -------
        object
            What the optimizer's `step` returns; None if it was skipped.

        Raises
        ------
        RuntimeError
            If `scale` was never called, the optimizer was stepped already since the last `update`,
            it has no gradient at all, or a closure is given.
        """
        if "closure" in kwargs:
            raise RuntimeError("step does not take a closure: it would compute unscaled gradients.")
        self._need_a_scaled_loss("step")
        progress = self._progress.setdefault(optimizer, _Progress())
        if progress.stage == "stepped":
            raise RuntimeError("step() has already been called since the last update().")
        if progress.stage == "ready":
            self.unscale_(optimizer)
        if not progress.checks:
            raise RuntimeError("No inf checks were recorded for this optimizer: no gradients.")
        result = None if progress.overflowed else optimizer.step(*args, **kwargs)
        progress.stage = "stepped"
        return result

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """End the iteration: adapt the scale, and forget what was unscaled and stepped.

        Parameters
        ----------
        new_scale
            A positive number to use from now on, in place of the rule.

        Raises
        ------
        RuntimeError
            If `scale` was never called, or no optimizer was unscaled or stepped since the last
            `update` and no scale is given.
        TypeError, ValueError
            If `new_scale` is not a positive finite number.
        """
        self._need_a_scaled_loss("update")
        if new_scale is not None:
            self._set(_positive("new_scale", new_scale))
        else:
            seen = [progress for progress in self._progress.values() if progress.checks]
            if not seen:
                raise RuntimeError("No inf checks were recorded prior to update.")
            self._adapt(any(progress.overflowed for progress in seen))
        self._progress = {}

    def _adapt(self, overflowed: bool) -> None:
        if overflowed:
            self._set(_float32(self._scale * self._backoff_factor))
            self._growth_tracker = 0
            return
        self._growth_tracker += 1
        if self._growth_tracker == self._growth_interval:
            grown = _float32(self._scale * self._growth_factor)
            if math.isfinite(grown):
                self._set(grown)
            self._growth_tracker = 0

    # ------------------------------------------------------------ state

    def get_scale(self) -> float:
        """Return the scale in force."""
        return self._scale

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on later; `GradScaler` reads the same dictionary."""
        return {key: getattr(self, key if key[0] == "_" else f"_{key}") for key in _KEYS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that `state_dict`, or `GradScaler.state_dict`, returned.

        Raises
        ------
        ValueError
            If an entry is missing or out of its range.
        """
        missing = [key for key in _KEYS if key not in state]
        if missing:
            raise ValueError(f"state must have the entries {', '.join(_KEYS)}; missing: {missing}")
        fresh = LossScaler(*(state[key] for key in _KEYS[:4]))
        self._set(fresh._scale)
        self._growth_factor, self._backoff_factor = fresh._growth_factor, fresh._backoff_factor
        self._growth_interval = fresh._growth_interval
        self._growth_tracker = int(state["_growth_tracker"])

    # ------------------------------------------------------------ inside

    def _set(self, scale: float) -> None:
        self._scale = scale
        self._tensors = {}

    def _factor(self, device: torch.device, *, inverse: bool) -> Tensor:
        """Return the scale or 1 / scale as float32 on `device`; made once for a scale."""
        if (device, inverse) not in self._tensors:
            value = self._scale
            if inverse:  # Rounded once, from float64; of 0, to which halving leads, infinity.
                value = _float32(1 / value) if value else math.inf
            tensor = torch.tensor(value, dtype=torch.float32, device=device)
            self._tensors[device, inverse] = tensor
        return self._tensors[device, inverse]

    def _need_a_scaled_loss(self, what: str) -> None:
        if not self._used:
            raise RuntimeError(
                f"{what} needs a scaled loss: call scale(loss).backward() before it."
            )

    def _check_factors(self) -> None:
        if not self._growth_factor > 1:
            raise ValueError(f"growth_factor must be above 1, got {self._growth_factor}")
        if not 0 < self._backoff_factor < 1:
            raise ValueError(f"backoff_factor must be in (0, 1), got {self._backoff_factor}")
        whole("growth_interval", self._growth_interval, 1)


def _gradients(optimizer: Any) -> list[Tensor]:
    """Return the gradients of all parameters; of a sparse one, its values."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    grads = [param.grad for param in params if param.grad is not None]
    return [grad._values() if grad.is_sparse else grad for grad in grads]


def _not_finite(x: Tensor) -> Tensor:
    """Tell by a boolean scalar if there is an infinity or NaN: a maximum keeps both."""
    if not x.numel():
        return torch.zeros((), dtype=torch.bool, device=x.device)
    return ~torch.linalg.vector_norm(x, ord=torch.inf).isfinite()


def _float32(value: float) -> float:
    """Round to float32; Python's floats are float64."""
    return float(torch.tensor(value, dtype=torch.float64).float())


def _positive(name: str, value: Any) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, got shape {tuple(value.shape)}")
        value = value.item()
    rounded = _float32(positive(name, value))
    if not 0 < rounded < math.inf:
        raise ValueError(f"{name} must be positive and finite in float32, got {value}")
    return rounded
