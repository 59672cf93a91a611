"""The launchers: what the operators of `pkg.algos.coupling_flows` call for CUDA tensors."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pkg.cuda.coupling_flows.affine import couple_kernel, gradient_kernel
from pkg.cuda.coupling_flows.configs import Config, choose

#: Programs that keep an H100 or H200 (132 multiprocessors) busy.
_BUSY = 4 * 132
_KINDS = (torch.float32, torch.float16, torch.bfloat16)


def forward(
    x: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, first: int, bound: float
) -> tuple[Tensor, Tensor]:
    """Return z and Σ s; see `pkg.algos.coupling_flows.operator.affine_coupling`."""
    return _couple(x, raw, shift, mask, first, bound, inverse=False)


def inverse(
    z: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, first: int, bound: float
) -> tuple[Tensor, Tensor]:
    """Return x and -Σ s."""
    return _couple(z, raw, shift, mask, first, bound, inverse=True)


def backward(
    gradient: Tensor, sum_gradient: Tensor, x: Tensor, raw: Tensor, shift: Tensor,
    mask: Tensor | None, first: int, bound: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by x, raw and shift of the coupling of x."""
    return _gradients(gradient, sum_gradient, x, raw, shift, mask, first, bound, inverse=False)


def inverse_backward(
    gradient: Tensor, sum_gradient: Tensor, z: Tensor, raw: Tensor, shift: Tensor,
    mask: Tensor | None, first: int, bound: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by z, raw and shift of the inverse coupling of z."""
    return _gradients(gradient, sum_gradient, z, raw, shift, mask, first, bound, inverse=True)


# ------------------------------------------------------------------ inside


def _couple(
    x: Tensor, raw: Tensor, shift: Tensor, mask: Tensor | None, first: int, bound: float,
    *, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(x, raw, shift)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return out, torch.zeros(x.shape[0], dtype=torch.float32, device=x.device)
    (rows, columns), changed = _sizes(x), _sizes(raw)[1]
    x, raw, shift = (_rows(t) for t in (x, raw, shift))
    config = choose("couple", columns)
    part, parts = _parts(rows, columns, config)
    sums = torch.empty((rows, parts), dtype=torch.float32, device=x.device)
    with _on(x):
        couple_kernel[(_count(rows, config.rows), parts)](
            x, raw, shift, _flat(mask, out), out, sums,
            x.stride(0), raw.stride(0), shift.stride(0), rows, columns,
            first * columns // out.shape[1], changed, part, parts, bound,
            BOUNDED=bound > 0, HAS_MASK=mask is not None, INVERSE=inverse,
            BLOCK_R=config.rows, BLOCK_C=config.columns, num_warps=config.num_warps,
        )  # fmt: skip
    return out, sums[:, 0] if parts == 1 else sums.sum(1)


def _gradients(
    gradient: Tensor, sum_gradient: Tensor, x: Tensor, raw: Tensor, shift: Tensor,
    mask: Tensor | None, first: int, bound: float, *, inverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _check(x, raw, shift)
    found = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, raw, shift)]
    if not x.numel():
        return found[0], found[1], found[2]
    (rows, columns), changed = _sizes(x), _sizes(raw)[1]
    start = first * columns // x.shape[1]
    flat_mask = _flat(mask, x)
    gradient, x, raw, shift = (_rows(t) for t in (gradient, x, raw, shift))
    config = choose("gradient", columns)
    part, parts = _parts(rows, columns, config)
    with _on(x):
        gradient_kernel[(_count(rows, config.rows), parts)](
            gradient, sum_gradient.contiguous(), x, raw, shift, flat_mask, *found,
            gradient.stride(0), x.stride(0), raw.stride(0), shift.stride(0), rows, columns,
            start, changed, part, bound,
            BOUNDED=bound > 0, HAS_MASK=mask is not None, INVERSE=inverse,
            BLOCK_R=config.rows, BLOCK_C=config.columns, num_warps=config.num_warps,
        )  # fmt: skip
    return found[0], found[1], found[2]


def _sizes(x: Tensor) -> tuple[int, int]:
    """Return how many samples, and how many numbers each of them has."""
    return x.shape[0], x[0].numel()


def _rows(x: Tensor) -> Tensor:
    """Return (N, elements), a view where the elements of a sample lie next to each other."""
    inner = x[0]
    if inner.is_contiguous():  # a part of the channels of a larger tensor, as `chunk` gives it
        return x.as_strided((x.shape[0], inner.numel()), (x.stride(0), 1))
    return x.reshape(x.shape[0], -1).contiguous()


def _flat(mask: Tensor | None, x: Tensor) -> Tensor:
    """Return the mask, a byte for each element of a sample; without one, x: a pointer not used."""
    if mask is None:
        return x
    return mask.expand(x.shape[1:]).contiguous().view(-1).view(torch.uint8)


def _parts(rows: int, columns: int, config: Config) -> tuple[int, int]:
    """Return (columns of a part, parts), so that few but long samples keep the device busy too."""
    blocks = _count(columns, config.columns)
    wanted = min(blocks, _count(_BUSY, _count(rows, config.rows)))
    part = _count(blocks, wanted) * config.columns
    return part, _count(columns, part)


def _check(x: Tensor, raw: Tensor, shift: Tensor) -> None:
    kinds = {t.dtype for t in (x, raw, shift)}
    if len(kinds) != 1 or x.dtype not in _KINDS:
        told = ", ".join(str(t.dtype) for t in (x, raw, shift))
        raise TypeError(
            "the kernels take x, raw and shift of one type, float16, bfloat16 or float32; for "
            f"float64 there is pkg.algos.coupling_flows.functional; got {told}"
        )
    if max(x[0].numel() if len(x) else 0, len(x)) >= 2**31:
        raise ValueError(f"the kernels take fewer than 2³¹ samples and elements, got {x.shape}")


def _count(number: int, block: int) -> int:
    """Return how many blocks hold `number`."""
    return -(-number // block)


def _on(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
