"""The operators of a fixed-step sampler: guidance and step in one pass.

A step of an explicit method whose stage i uses the slope before it alone (Euler, the midpoint rule,
Heun, the classical Runge–Kutta method) needs two updates for each slope v: the point at which the next
slope is asked for, x + a h v, and the sum that becomes the result, base + b h v. `stage` makes both,
`step` the second alone. The step size h = times[i + 1] − times[i] and the guidance are read on the
device: nothing waits for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pkg.algos.rectified_flow.operator import column, wide
from pkg.algos.rectified_flow.operator import direct as _direct
from pkg.operators import register

#: Elements worked on at a time where types differ: their float32 forms stay in the cache.
CHUNK = 2**15


def _size(times: Tensor, index: int) -> float:
    start, stop = times[index : index + 2].tolist()
    return float(stop - start)


def _slope(base: Tensor, cond: Tensor, uncond: Tensor | None, guidance: Any) -> Tensor:
    """Return u + w (c − u), or c where there is no u, in the type that `base` is computed in."""
    slope = cond.to(wide(base))
    return slope if uncond is None else torch.lerp(uncond.to(wide(base)), slope, guidance)


def _fill(
    starts: list[Tensor], outs: list[Tensor], shares: list[float], cond: Tensor,
    uncond: Tensor | None, guidance: Tensor | None,
) -> None:  # fmt: skip
    """Write start + share · v into each of `outs`, which are contiguous."""
    weight: Any = guidance
    if guidance is not None:
        weight = float(guidance) if guidance.ndim == 0 else column(guidance, cond)
    kind, slopes = wide(starts[0]), [cond] if uncond is None else [cond, uncond]
    parts, count = (*starts, *outs, *slopes), len(starts)
    pieces: Any = [parts]
    if any(x.dtype != kind for x in parts) and not isinstance(weight, Tensor):
        # Casts need room: as much as the cache has.
        pieces = zip(*(x.reshape(-1).split(CHUNK) for x in parts), strict=True)
    for piece in pieces:
        velocities = piece[2 * count :]
        v = _slope(piece[0], velocities[0], velocities[1] if uncond is not None else None, weight)
        for start, out, share in zip(piece[:count], piece[count : 2 * count], shares, strict=True):
            if start.dtype == out.dtype == kind:
                torch.add(start, v, alpha=share, out=out)
            else:
                out.copy_(torch.add(start.to(kind), v, alpha=share))


def _step(
    base: Tensor, cond: Tensor, uncond: Tensor | None, guidance: Tensor | None, times: Tensor,
    index: int, b: float,
) -> Tensor:  # fmt: skip
    share = b * _size(times, index)
    if uncond is None and cond.dtype == base.dtype:
        if base.dtype == wide(base):
            return torch.add(base, cond, alpha=share).contiguous()
        # In half precision `alpha` would be rounded to the type first; `value` stays float32.
        return torch.addcmul(base, cond, cond.new_ones(()), value=share).contiguous()
    total = torch.empty(base.shape, dtype=base.dtype)
    _fill([base], [total], [share], cond, uncond, guidance)
    return total


def _stage(
    x: Tensor, base: Tensor, cond: Tensor, uncond: Tensor | None, guidance: Tensor | None,
    times: Tensor, index: int, a: float, b: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    count, size = len(x), _size(times, index)
    point = torch.empty((count if uncond is None else 2 * count, *x.shape[1:]), dtype=dtype)
    total = torch.empty(base.shape, dtype=base.dtype)
    if x is base and a == b and base.dtype == wide(base):
        _fill([base], [total], [b * size], cond, uncond, guidance)
        point[:count].copy_(total)
    else:
        outs = [total, point[:count]]
        _fill([base, x], outs, [b * size, a * size], cond, uncond, guidance)
    if uncond is not None:
        point[count:].copy_(point[:count])
    return point, total


def _step_fake(
    base: Tensor, cond: Tensor, uncond: Tensor | None, guidance: Tensor | None, times: Tensor,
    index: int, b: float,
) -> Tensor:  # fmt: skip
    return torch.empty_like(base, memory_format=torch.contiguous_format)


def _stage_fake(
    x: Tensor, base: Tensor, cond: Tensor, uncond: Tensor | None, guidance: Tensor | None,
    times: Tensor, index: int, a: float, b: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows = x.shape[0] * (1 if uncond is None else 2)
    point = x.new_empty((rows, *x.shape[1:]), dtype=dtype)
    return point, torch.empty_like(base, memory_format=torch.contiguous_format)


def _remember(ctx: Any, cond: Tensor, uncond: Tensor | None, guidance: Any, times: Tensor) -> None:
    ctx.guided, ctx.kind = uncond is not None, cond.dtype
    ctx.save_for_backward(guidance, times)


def _remember_step(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cond, uncond, guidance, times, ctx.index, ctx.b = inputs
    _remember(ctx, cond, uncond, guidance, times)


def _remember_stage(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, cond, uncond, guidance, times, ctx.index, ctx.a, ctx.b, _ = inputs
    ctx.of_x = x.dtype
    _remember(ctx, cond, uncond, guidance, times)


def _to_slopes(ctx: Any, by_slope: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the gradients by the conditional and the unconditional velocity."""
    guidance, _ = ctx.saved_tensors
    if not ctx.guided:
        return by_slope.to(ctx.kind), None
    share = guidance.to(by_slope.dtype)
    share = share if share.ndim == 0 else column(share, by_slope)
    return (share * by_slope).to(ctx.kind), ((1 - share) * by_slope).to(ctx.kind)


def _h(ctx: Any) -> Tensor:
    _, times = ctx.saved_tensors
    return times[ctx.index + 1] - times[ctx.index]


def _step_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    by_slope = ctx.b * _h(ctx).to(wide(gradient)) * gradient.to(wide(gradient))
    return gradient.clone(), *_to_slopes(ctx, by_slope), *(None,) * 4


def _stage_gradient(ctx: Any, by_point: Tensor, by_total: Tensor) -> tuple[Any, ...]:
    point = by_point.to(wide(by_total))
    if ctx.guided:
        point = point[: len(by_total)] + point[len(by_total) :]
    by_slope = _h(ctx).to(point.dtype) * (ctx.a * point + ctx.b * by_total.to(point.dtype))
    return point.to(ctx.of_x), by_total.clone(), *_to_slopes(ctx, by_slope), *(None,) * 6


step_operator = register(
    "flow_step",
    cpu=_step,
    cuda="pkg.cuda.rectified_flow:step",
    fake=_step_fake,
    setup_context=_remember_step,
    backward=_step_gradient,
)
stage_operator = register(
    "flow_stage",
    cpu=_stage,
    cuda="pkg.cuda.rectified_flow:stage",
    fake=_stage_fake,
    setup_context=_remember_stage,
    backward=_stage_gradient,
)


def step(
    base: Tensor, cond: Tensor, uncond: Tensor | None, guidance: Tensor | None, times: Tensor,
    index: int, b: float,
) -> Tensor:  # fmt: skip
    """Return base + b h v, in the type of `base`; v = u + w (c − u), h = times[index + 1] − times[index]."""
    call = _step if _direct(base, cond, uncond) else step_operator
    return call(base, cond, uncond, guidance, times, index, b)  # type: ignore[no-any-return]


def stage(
    x: Tensor, base: Tensor, cond: Tensor, uncond: Tensor | None, guidance: Tensor | None,
    times: Tensor, index: int, a: float, b: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (x + a h v in `dtype`, twice below one another if guided; base + b h v as `step`)."""
    call = _stage if _direct(x, base, cond, uncond) else stage_operator
    return call(x, base, cond, uncond, guidance, times, index, a, b, dtype)  # type: ignore[no-any-return]
