"""The launcher of the whole-flow kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.cuda.coupling_flows.configs import choose, precision
from pkg.cuda.coupling_flows.launch import _KINDS, _count, _on
from pkg.cuda.coupling_flows.resident import stack_kernel

#: What fits the registers and the shared memory of a multiprocessor; the compile gate proves it.
MOST_DIMS, MOST_HIDDEN = 64, 128


def stack(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor, kept: Tensor,
    bound: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what the stack makes of x, and its log-determinants.

    See `pkg.algos.coupling_flows.fused` for the shapes, which are filled up to powers of two.
    """
    layers, dims, hidden = w1.shape
    if x.dtype not in _KINDS or any(t.dtype != x.dtype for t in (w1, b1, w2, b2, w3, b3)):
        raise TypeError(
            "the kernel takes x and weights of one type, float16, bfloat16 or float32, "
            f"got {x.dtype} and {w1.dtype}"
        )
    if dims > MOST_DIMS or hidden > MOST_HIDDEN:
        raise ValueError(
            f"the kernel keeps at most {MOST_DIMS} features and {MOST_HIDDEN} hidden units on the "
            f"chip, got {dims} and {hidden}: use the layers one by one"
        )
    rows = x.shape[0]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sums = torch.empty(rows, dtype=torch.float32, device=x.device)
    if not rows:
        return out, sums
    x = x if x.stride(1) == 1 else x.contiguous()
    config = choose("stack", hidden, x.dtype)
    with _on(x):
        stack_kernel[(_count(rows, config.rows),)](
            x, *(t.contiguous() for t in (w1, b1, w2, b2, w3, b3, kept)), out, sums,
            x.stride(0), rows, x.shape[1], layers, bound,
            BOUNDED=bound > 0, INVERSE=inverse, DIMS=dims, HIDDEN=hidden, BLOCK=config.rows,
            CHUNK=min(config.columns, hidden), PRECISION=precision(x.dtype),
            STAGES=config.num_stages, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return out, sums
