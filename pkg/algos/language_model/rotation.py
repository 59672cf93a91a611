"""Rotary positions: each adjacent pair of numbers is a point that is turned by its position."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Turn the adjacent pairs of queries or keys by angles that grow with the position.

    Parameters
    ----------
    x
        Queries or keys, (batch, heads, tokens, head_dim), floating-point; head_dim is even.
    positions
        Of the tokens, integer, (tokens,) or (batch, tokens).
    base
        Pair i of the d / 2 pairs turns by base^(-2i / d) radians from one position to the next.

    Returns
    -------
    Tensor
        Like `x`, in its dtype. The angles are float64, the products at least float32.

    Raises
    ------
    TypeError
        If `x` is not floating-point or `positions` is not integer.
    ValueError
        If `x` has not four axes or an odd head_dim, `positions` does not fit it, or `base` is not
        above 0.

    Notes
    -----
    Su et al. (2021), RoFormer. Adjacent pairs are the paper's order and that of GGUF files; the
    checkpoints of Hugging Face's Llama pair entry i with entry i + d / 2, which is the same after
    the rows of the projections are put in another order. Ledger: `speculative_decoding:rotation`.

    Examples
    --------
    >>> x = torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2)
    >>> rotate(x, torch.tensor([0, 1]))
    tensor([[[[1.0000, 0.0000],
              [0.5403, 0.8415]]]])
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating-point, got {x.dtype}")
    if x.ndim != 4 or x.shape[-1] % 2:
        raise ValueError(
            f"x must have shape (batch, heads, tokens, even head_dim), got {tuple(x.shape)}"
        )
    if positions.is_floating_point() or positions.dtype == torch.bool:
        raise TypeError(f"positions must be integer, got {positions.dtype}")
    batch, _, tokens, _ = x.shape
    if tuple(positions.shape) not in ((tokens,), (1, tokens), (batch, tokens)):
        raise ValueError(
            f"positions must have shape ({tokens},) or ({batch}, {tokens}), "
            f"got {tuple(positions.shape)}"
        )
    if not base > 0:
        raise ValueError(f"base must be above 0, got {base}")
    return turn(x, turns(positions, x.shape[-1], base, x.dtype))


def turns(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> Tensor:
    """Return exp(i · angle) of every position and pair, complex, (batch or 1, 1, tokens, d / 2)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device)
    angles = positions.double().unsqueeze(-1) * base ** (-exponents / head_dim)
    points = torch.polar(torch.ones_like(angles), angles)
    if dtype != torch.float64:
        points = points.to(torch.complex64)
    return points.reshape(-1, 1, *points.shape[-2:])


def turn(x: Tensor, points: Tensor) -> Tensor:
    """Multiply the pairs of x, read as complex numbers, by `points` of `turns`."""
    wide = x.to(torch.float64 if points.dtype == torch.complex128 else torch.float32)
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * points).flatten(-2).to(x.dtype)
