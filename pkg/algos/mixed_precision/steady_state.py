"""Where a dynamic loss scale spends its time: the steady state of its random walk."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.arguments import whole


def scale_steady_state(overflow: Tensor, growth_interval: int) -> Tensor:
    """Share of all iterations that a doubling and halving scale spends at each of its levels.

    The scale walks on powers of two. At level k it stays until a gradient overflows (one level
    down), or until `growth_interval` iterations in a row were clean (one level up).

    Parameters
    ----------
    overflow
        float, (levels,): the probability p_k that an iteration overflows at level k, independent of
        the iterations before. It must not be 0 but at the lowest level, where a walk cannot go
        down: there an overflow starts the count again.  At the highest a walk cannot go up.
    growth_interval
        N, the clean iterations that it takes to go up.

    Returns
    -------
    Tensor
        float64, (levels,), of sum 1. With q_k = (1 − p_k)^N, the walk leaves level k upwards with
        probability q_k, so visits balance as v_k · q_k = v_{k+1} · (1 − q_{k+1}); a visit lasts
        (1 − q_k) / p_k iterations on average.

    Raises
    ------
    TypeError, ValueError
        If `overflow` is no vector of probabilities as described, or `growth_interval` is below 1.

    Notes
    -----
    Ledger: `mixed_precision:scale_steady_state`.

    Examples
    --------
    >>> scale_steady_state(torch.tensor([0.0, 1.0]), growth_interval=3)
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    if not isinstance(overflow, Tensor) or not overflow.is_floating_point():
        raise TypeError(f"overflow must be a floating-point tensor, got {overflow!r}")
    p = overflow.double()
    if (
        p.ndim != 1
        or not len(p)
        or not bool(((p >= 0) & (p <= 1)).all())
        or bool((p[1:] == 0).any())
    ):
        raise ValueError(
            "overflow must be a vector of probabilities, positive from the second on, got "
            f"{overflow.tolist()}"
        )
    whole("growth_interval", growth_interval, 1)
    # In logarithms: (1 − p)^N of a small p, and products over many levels, leave float64's range.
    log_up = growth_interval * torch.log1p(-p)
    down = -torch.expm1(log_up)
    visits = torch.cat([p.new_zeros(1), (log_up[:-1] - down[1:].log()).cumsum(0)])
    lasts = torch.where(p > 0, down / p, float(growth_interval))
    time = (visits - visits.max()).exp() * lasts
    return time / time.sum()
