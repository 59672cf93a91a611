"""The launchers: what the operators of `pkg.algos.rectified_flow` call for CUDA tensors."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from pkg.cuda.rectified_flow.configs import CONFIGS, tile
from pkg.cuda.rectified_flow.kernels import path_kernel, step_kernel, times_kernel


def draw_times(like: Tensor, kind: str, mean: float, std: float, seed: Tensor) -> Tensor:
    """Draw a time for each sample, float32, or float64 (with the same values) for float64."""
    rows, config = like.shape[0], CONFIGS["times"]
    out = torch.empty(rows, dtype=_wide(like), device=like.device)
    if rows:
        with _on(like):
            times_kernel[(triton.cdiv(rows, config.block),)](
                out, seed, rows, mean, std, LAW=kind, BLOCK=config.block,
                num_warps=config.num_warps,
            )  # fmt: skip
    return out


def affine_path(
    x0: Tensor | None, x1: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (x0 if it was drawn; α x1 + σ x0; α' x1 + σ' x0), with coefficients (batch,)."""
    coefficients = [c.contiguous() for c in (alpha, sigma, d_alpha, d_sigma)]
    return _path(x0, x1, coefficients, seed, None, "given", 0.0, 0.0, 0.0)


def draw_linear_path(
    x0: Tensor | None, x1: Tensor, kind: str, mean: float, std: float, shrink: float, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (x0 if it was drawn; x_t; velocity; t) of the path (1 − shrink · t) x0 + t x1."""
    if x1.dtype == torch.float64:  # the numbers among a kernel's arguments are float32
        t = draw_times(x1, kind, mean, std, seed)
        ones = torch.ones_like(t)
        found = affine_path(x0, x1, t, 1 - shrink * t, ones, -shrink * ones, seed)
        return *found, t
    t = torch.empty(x1.shape[0], dtype=torch.float32, device=x1.device)
    if not x1.numel():  # samples without elements have times, too
        t = draw_times(x1, kind, mean, std, seed)
    return *_path(x0, x1, [x1] * 4, seed, t, kind, mean, std, shrink), t


def _path(
    x0: Tensor | None, x1: Tensor, coefficients: list[Tensor], seed: Tensor | None, t: Tensor | None,
    law: str, mean: float, std: float, shrink: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the kernel; what it does not look at is given as x1."""
    if x0 is None and seed is None:
        raise ValueError("seed must be given where x0 is not")
    data, config = x1.contiguous(), CONFIGS["path"]
    noise = data if x0 is None else x0.contiguous()
    xt, velocity = (torch.empty(x1.shape, dtype=x1.dtype, device=x1.device) for _ in range(2))
    drawn = torch.empty(x1.shape if x0 is None else (0,), dtype=x1.dtype, device=x1.device)
    if x1.numel():
        rows, size = x1.shape[0], x1.numel() // x1.shape[0]
        down, across = tile(size, config.block)
        grid = (triton.cdiv(rows, down) * triton.cdiv(size, across),)
        with _on(x1):
            path_kernel[grid](
                noise, data, *coefficients, data if seed is None else seed,
                drawn if x0 is None else data, xt, velocity, data if t is None else t, rows, size,
                mean, std, shrink, LAW=law, DRAW=x0 is None, ROWS=down, COLUMNS=across,
                num_warps=config.num_warps,
            )  # fmt: skip
    return drawn, xt, velocity


def step(
    base: Tensor, cond: Tensor, uncond: Tensor | None, guidance: Tensor | None, times: Tensor,
    index: int, b: float,
) -> Tensor:  # fmt: skip
    """Return base + b h v; see `pkg.algos.rectified_flow.steps`."""
    total = torch.empty(base.shape, dtype=base.dtype, device=base.device)
    _step(None, base, cond, uncond, guidance, times, index, 0.0, b, None, total)
    return total


def stage(
    x: Tensor, base: Tensor, cond: Tensor, uncond: Tensor | None, guidance: Tensor | None,
    times: Tensor, index: int, a: float, b: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (x + a h v, twice if guided; base + b h v); see `pkg.algos.rectified_flow.steps`."""
    rows = x.shape[0] * (1 if uncond is None else 2)
    point = torch.empty((rows, *x.shape[1:]), dtype=dtype, device=x.device)
    total = torch.empty(base.shape, dtype=base.dtype, device=base.device)
    _step(x, base, cond, uncond, guidance, times, index, a, b, point, total)
    return point, total


def _step(
    x: Tensor | None, base: Tensor, cond: Tensor, uncond: Tensor | None, guidance: Tensor | None,
    times: Tensor, index: int, a: float, b: float, point: Tensor | None, total: Tensor,
) -> None:  # fmt: skip
    """Launch the kernel. With one weight for all, a batch is one long sample."""
    if not base.numel():
        return
    each = guidance is not None and guidance.ndim == 1
    rows = base.shape[0] if each else 1
    size, config = base.numel() // rows, CONFIGS["step"]
    down, across = tile(size, config.block)
    grid = (triton.cdiv(rows, down) * triton.cdiv(size, across),)
    held = base.contiguous()
    with _on(base):
        step_kernel[grid](
            held if x is None else x.contiguous(), held, cond.contiguous(),
            held if uncond is None else uncond.contiguous(),
            held if guidance is None else guidance, times.contiguous(),
            held if point is None else point, total, index, rows, size, base.numel(), A=a, B=b,
            GUIDED=uncond is not None, EACH=each, POINT=point is not None, ROWS=down,
            COLUMNS=across, num_warps=config.num_warps,
        )  # fmt: skip


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _on(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
