"""From logits to the law of the next token, and a draw from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sampling_distribution(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Return the probabilities that a token is drawn from.

    The steps come in this order: divide by the temperature, keep the k largest, keep the smallest
    set of largest ones that has mass top_p, normalise.

    Parameters
    ----------
    logits
        (..., vocab), floating-point; -inf forbids a token.
    temperature
        At least 0. At 0 all mass lies on the first of the largest logits, and nothing is divided.
    top_k
        How many tokens to keep, at least 1; all if None. Tokens that tie with the last are kept.
    top_p
        In (0, 1]: the mass to keep, of the law that top_k leaves; all if None. Tokens that tie with
        the last are kept.

    Returns
    -------
    Tensor
        Probabilities, (..., vocab), float32 (float64 for float64 logits); each row sums to 1.

    Raises
    ------
    TypeError
        If `logits` is not floating-point, or `top_k` is not an integer.
    ValueError
        If there is no vocabulary, a row holds NaN, +inf or only -inf, or an option is out of range.

    Notes
    -----
    Top-p, or nucleus sampling: Holtzman et al. (2020). The filters look at values alone, so that they
    do not depend on how a sort breaks ties. Ledger: `speculative_decoding:sampling_distribution`.

    Examples
    --------
    >>> logits = torch.tensor([0.5, 0.3, 0.2]).log()
    >>> sampling_distribution(logits, top_k=2)
    tensor([0.6250, 0.3750, 0.0000])
    >>> sampling_distribution(logits, temperature=0.0)
    tensor([1., 0., 0.])
    """
    check_options(temperature, top_k, top_p)
    _check_logits(logits)
    wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if temperature == 0:
        return torch.zeros_like(wide).scatter_(-1, wide.argmax(-1, keepdim=True), 1.0)
    # The largest becomes 0 before the division, so that a tiny temperature cannot overflow.
    wide = (wide - wide.amax(-1, keepdim=True)) / temperature
    if top_k is not None and top_k < wide.shape[-1]:
        last = wide.topk(top_k, -1).values[..., -1:]
        wide = wide.masked_fill(wide < last, -torch.inf)
    probabilities = wide.softmax(-1)
    if top_p is None or top_p == 1:
        return probabilities
    kept = probabilities.masked_fill(probabilities < _last_kept(probabilities, top_p), 0.0)
    return kept / kept.sum(-1, keepdim=True)


def _last_kept(probabilities: Tensor, top_p: float) -> Tensor:
    """Return the smallest probability of the set of mass top_p, (..., 1).

    A few hundred tokens mostly hold it, and finding them is ten times as fast as sorting them all.
    """
    vocabulary = probabilities.shape[-1]
    for few in sorted({min(256, vocabulary), vocabulary}):
        ordered = probabilities.topk(few, -1).values
        until = ordered.cumsum(-1, dtype=torch.float64)
        if few == vocabulary or bool((until[..., -1] >= top_p).all()):
            break
    return ordered.where(until - ordered < top_p, 2.0).amin(-1, keepdim=True)


def sample(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row, by given numbers in [0, 1): the inverse of the cumulative law.

    Parameters
    ----------
    probabilities
        (..., vocab), floating-point, not negative. A row need not sum to exactly 1: it is normalised.
    uniforms
        (...), floating-point, in [0, 1).

    Returns
    -------
    Tensor
        Token ids, (...), int64: the first token whose cumulative probability, in float64 and in the
        order of the ids, is above the number. Never a token of probability 0.

    Raises
    ------
    TypeError
        If an argument is not floating-point.
    ValueError
        If the shapes do not fit, a number is outside [0, 1), or a row has no finite positive sum.

    Notes
    -----
    Inversion; Devroye (1986), chapter III. Ledger: `speculative_decoding:inverse_cdf`.

    Examples
    --------
    >>> law = torch.tensor([0.5, 0.0, 0.5]).expand(3, 3)
    >>> sample(law, torch.tensor([0.0, 0.5, 0.99]))
    tensor([0, 2, 2])
    """
    for name, tensor in (("probabilities", probabilities), ("uniforms", uniforms)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating-point, got {tensor.dtype}")
    if not probabilities.ndim or probabilities.shape[:-1] != uniforms.shape:
        raise ValueError(
            f"uniforms must have shape {tuple(probabilities.shape[:-1])}, got {tuple(uniforms.shape)}"
        )
    if bool(((uniforms < 0) | ~(uniforms < 1)).any()):
        raise ValueError("uniforms must lie in [0, 1)")
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    total = cumulative[..., -1:]
    if bool((probabilities < 0).any()) or not bool(((total > 0) & (total < torch.inf)).all()):
        raise ValueError("probabilities must not be negative, and every row must have a finite sum")
    wanted = uniforms.double().unsqueeze(-1) * total
    found = torch.searchsorted(cumulative, wanted, right=True)
    # u · total may round up to the total: then it is the last token that has mass.
    last = torch.searchsorted(cumulative, total.contiguous())
    return torch.minimum(found, last).squeeze(-1)


def check_options(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise unless the options of sampling are in range."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
    if top_k is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, int):
            raise TypeError(f"top_k must be an integer or None, got {type(top_k).__name__}")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")


def _check_logits(logits: Tensor) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits must be a floating-point tensor, got {kind}")
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(f"logits must have shape (..., vocab), got {tuple(logits.shape)}")
    # A NaN or +inf anywhere in a row, or nothing but -inf, shows in its largest entry.
    if not bool(logits.amax(-1).isfinite().all()):
        raise ValueError("logits must not hold NaN or +inf, and every row needs a finite entry")
