"""Following a velocity in fixed steps, with guidance, and nothing that waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pkg.algos.rectified_flow.arguments import batch, floating
from pkg.algos.rectified_flow.operator import wide
from pkg.algos.rectified_flow.steps import stage, step
from pkg.arguments import whole

Method = Literal["euler", "midpoint", "heun", "rk4"]
#: For each slope of a step: the share of the step at which it is taken, the share a that leads from
#: the start to where the next slope is taken, and its weight b in the result.
STAGES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "euler": ((0.0, 1.0, 1.0),),
    "midpoint": ((0.0, 1 / 2, 0.0), (1 / 2, 1.0, 1.0)),
    "heun": ((0.0, 1.0, 1 / 2), (1.0, 1.0, 1 / 2)),
    "rk4": ((0.0, 1 / 2, 1 / 6), (1 / 2, 1 / 2, 1 / 3), (1 / 2, 1.0, 1 / 3), (1.0, 1.0, 1 / 6)),
}


def guided_step(
    x: Tensor, velocity: Tensor, *, times: Tensor, index: int,
    unconditional: Tensor | None = None, guidance: float | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Take one Euler step with classifier-free guidance: x + h (u + w (c − u)).

    Parameters
    ----------
    x
        Samples at times[index], shape (batch, ...).
    velocity
        The (conditional) velocity c there, of x's shape; its dtype may differ.
    times
        The schedule, shape (N + 1,), on x's device.
    index
        Which step, 0 … N − 1: the step size is h = times[index + 1] − times[index].
    unconditional
        The unconditional velocity u, like `velocity`; needed if `guidance` is given.
    guidance
        The weight w: a number, or a tensor () or (batch,). 1 is the conditional velocity, 0 the
        unconditional one.

    Returns
    -------
    Tensor
        The samples at times[index + 1], in x's shape and dtype. Differentiable in x and both
        velocities.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    Ho & Salimans (2021) for guidance. Computed in float32 (float64 for float64). Ledger:
    `rectified_flow:guided_step`.

    Examples
    --------
    >>> x, c, u = torch.zeros(1, 1), torch.full((1, 1), 3.0), torch.ones(1, 1)
    >>> times = torch.tensor([0.0, 0.5, 1.0])
    >>> guided_step(x, c, times=times, index=0, unconditional=u, guidance=2.0)  # 1/2 (1 + 2 (3 − 1))
    tensor([[2.5000]])
    """
    batch("x", x)
    _schedule(times, x)
    whole("index", index, 0)
    if index >= len(times) - 1:
        raise ValueError(f"index must be below {len(times) - 1}, the number of steps, got {index}")
    for name, value in (("velocity", velocity), ("unconditional", unconditional)):
        if value is not None:
            _velocity(name, value, x)
    if (unconditional is None) != (guidance is None):
        raise ValueError("guidance and unconditional must be given together")
    weight = None if guidance is None else _guidance(guidance, x)
    return step(x, velocity, unconditional, weight, times, index, 1.0)


def sample_fixed(
    velocity: Callable[..., Tensor], x: Tensor, times: Tensor | int, *, method: Method,
    guidance: float | Tensor | None = None, unconditional: Mapping[str, Tensor] | None = None,
    **conditions: Tensor,
) -> Tensor:  # fmt: skip
    """Follow a velocity from times[0] to times[-1], one step for each interval.

    Parameters
    ----------
    velocity
        Called as `velocity(x, t, **conditions)` with x (batch, ...) and t (batch,), which is float32 for a
        half-precision x.
    x
        Where to begin, shape (batch, ...): noise, if the times rise from 0 to 1.
    times
        The schedule, shape (N + 1,), rising or falling, on x's device; or N, for N equal steps
        from 0 to 1.
    method
        "euler" (one call of the velocity for a step, error of order 1), "midpoint" and "heun" (2, 2),
        "rk4" (4, 4; the classical method).
    guidance
        The weight w of classifier-free guidance, as for `guided_step`. The velocity is then called
        with both halves at once, (2 batch, ...), the conditional half first.
    unconditional
        For each condition what stands for "none", of the same shape; needed if `guidance` is given.
    **conditions
        Handed on to `velocity`; each has the batch as its first axis.

    Returns
    -------
    Tensor
        The end points, in x's shape and dtype. Differentiable, unless called under `no_grad`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit. The values of a schedule are looked at on the CPU alone: on a GPU
        that would wait for it.

    Notes
    -----
    Between its steps the state is kept in float32 (float64 for float64); a half-precision network gets
    it rounded. A state kept in bfloat16 would not move at all by a step of less than half its spacing,
    which is 2⁻⁸ at 1. Nothing here waits for the device. Ledger: `rectified_flow:euler`, `rectified_flow:heun`,
    `rectified_flow:rk4`.

    Examples
    --------
    >>> def growth(x, t):
    ...     return x
    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> [round(float(sample_fixed(growth, one, 1, method=m)), 4) for m in ("euler", "heun", "rk4")]
    [2.0, 2.5, 2.7083]
    """
    if not callable(velocity):
        raise TypeError(f"velocity must be callable, got {type(velocity).__name__}")
    if method not in STAGES:
        raise ValueError(f"method must be one of {', '.join(STAGES)}, got {method!r}")
    batch("x", x)
    if isinstance(times, Tensor):
        _schedule(times, x)
        _values(times)
    else:
        times = torch.linspace(0, 1, whole("times", times, 1) + 1, dtype=wide(x), device=x.device)
    weight, given = None, dict(conditions)
    if guidance is not None:
        weight = _guidance(guidance, x)
        given = _both(conditions, unconditional)
    elif unconditional is not None:
        raise ValueError("guidance must be given where unconditional is")
    run = _Run(velocity, times, weight, given, x.dtype)
    return run(x, STAGES[method])


@dataclass
class _Run:
    """One run of the sampler; `conditions` are doubled if there is guidance."""

    velocity: Callable[..., Tensor]
    times: Tensor
    guidance: Tensor | None
    conditions: dict[str, Tensor]
    dtype: torch.dtype
    _nodes: dict[float, tuple[Tensor, ...]] = field(default_factory=dict)

    def __call__(self, x: Tensor, stages: tuple[tuple[float, float, float], ...]) -> Tensor:
        """Return the end point; `state` is what is kept, `point` what the network sees of it."""
        state, steps = x.to(wide(x)), len(self.times) - 1
        point = x if self.guidance is None else torch.cat([x, x])
        for index in range(steps):
            total = state
            for number, (node, a, b) in enumerate(stages):
                found = self._slopes(point, node, index, len(x))
                if number < len(stages) - 1:
                    point, total = stage(state, total, *found, self.times, index, a, b, self.dtype)
                elif index == steps - 1 or (self.guidance is None and self.dtype == state.dtype):
                    point = state = step(total, *found, self.times, index, b)
                else:  # the network sees another form of it, made in the same pass
                    point, state = stage(total, total, *found, self.times, index, b, b, self.dtype)
        return state.to(self.dtype)

    def _slopes(
        self, point: Tensor, node: float, index: int, count: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Ask the network; return both velocities and the guidance, as `step` takes them."""
        if node not in self._nodes:
            start, stop = self.times[:-1], self.times[1:]
            at = torch.lerp(start, stop, node) if node > 0 else start
            self._nodes[node] = at.to(wide(point)).unbind()
        t = self._nodes[node][index].expand(len(point))
        slope = self.velocity(point, t, **self.conditions)
        _velocity("velocity", slope, point)
        if self.guidance is None:
            return slope, None, None
        return slope[:count], slope[count:], self.guidance


# ---------------------------------------------------------------- arguments


def _schedule(times: Any, x: Tensor) -> None:
    floating("times", times)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times must have shape (N + 1,) with N >= 1, got {tuple(times.shape)}")
    _apart("times", times, x)


def _values(times: Tensor) -> None:
    """Look at a schedule's values, on the CPU alone."""
    if times.device.type != "cpu" or torch.compiler.is_compiling():
        return
    least, most = (float(gap) for gap in times.diff().aminmax())  # NaN, if there is one
    if not (least > 0 or most < 0) or math.isinf(least) or math.isinf(most):
        raise ValueError(f"times must be finite and rise or fall throughout, got {times.tolist()}")


def _apart(name: str, value: Tensor, x: Tensor) -> None:
    if value.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, got {value.device}")
    if value.requires_grad:
        raise ValueError(f"{name} must not require a gradient: a step gives none for it")


def _velocity(name: str, value: Any, x: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != x.shape or not value.is_floating_point():
        got = (
            (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else type(value).__name__
        )
        raise ValueError(
            f"{name} must be a floating-point tensor of x's shape {tuple(x.shape)}, got {got}"
        )


def _guidance(value: Any, x: Tensor) -> Tensor:
    """Return the weight as a tensor on x's device; a number is filled in there, not copied."""
    if isinstance(value, Tensor):
        floating("guidance", value, least_ndim=0)
        if value.shape not in ((), (len(x),)):
            raise ValueError(
                f"guidance must be a number or have shape () or ({len(x)},), got {tuple(value.shape)}"
            )
        _apart("guidance", value, x)
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"guidance must be a number or a tensor, got {type(value).__name__}")
    return torch.full((), float(value), dtype=wide(x), device=x.device)


def _both(conditions: Mapping[str, Tensor], unconditional: Any) -> dict[str, Tensor]:
    """Return each condition with what stands for none below it."""
    if not isinstance(unconditional, Mapping):
        raise ValueError("unconditional must be a mapping from each condition to what means none")
    if set(unconditional) != set(conditions):
        raise ValueError(
            f"unconditional must have the conditions {sorted(conditions)}, got {sorted(unconditional)}"
        )
    return {name: torch.cat([value, unconditional[name]]) for name, value in conditions.items()}
