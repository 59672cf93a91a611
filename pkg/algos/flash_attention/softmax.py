"""Softmax in one sweep, and the state that it carries: a commutative monoid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pkg.algos.flash_attention.products import (
    accumulation_dtype,
    finite_shift,
    guarded_product,
    row_maximum,
    weigh,
)


def online_softmax(x: Tensor, dim: int = -1, *, block_size: int = 1024) -> Tensor:
    """Softmax whose maximum and sum come from a single sweep over the numbers.

    Parameters
    ----------
    x
        Floating point, any shape. -inf counts as "not there".
    dim
        The axis to normalise.
    block_size
        How many numbers the sweep takes at once. 1 is the recurrence as the chapter derives it.

    Returns
    -------
    Tensor
        x's shape and dtype; along `dim` it sums to 1, or is 0 throughout where all of x is -inf.

    Raises
    ------
    TypeError, ValueError, IndexError
        If `x` is not floating point, `block_size` is not positive, or `dim` does not exist.

    Notes
    -----
    The two-pass softmax of Milakov and Gimelshein (2018), algorithm 3. Sums are kept in float32 (in
    float64 for float64). Ledger: `flash_attention:online_maximum`, `flash_attention:online_sum`.

    Examples
    --------
    >>> online_softmax(torch.tensor([1.0, 2.0, 3.0]), block_size=1)
    tensor([0.0900, 0.2447, 0.6652])
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    rows = x.movedim(dim, -1).to(accumulation_dtype(x.dtype))
    maximum = rows.new_full(rows.shape[:-1], -torch.inf)
    total = torch.zeros_like(maximum)
    for block in rows.split(block_size, -1):  # the one sweep: m and ℓ together
        higher = torch.maximum(maximum, row_maximum(block))
        shift = finite_shift(higher)
        total = total * (maximum - shift).exp() + (block - shift.unsqueeze(-1)).exp().sum(-1)
        maximum = higher
    total = torch.where(total == 0, 1.0, total)
    weights = (rows - finite_shift(maximum).unsqueeze(-1)).exp() / total.unsqueeze(-1)
    return weights.to(x.dtype).movedim(-1, dim)


@dataclass(frozen=True)
class SoftmaxState:
    """Attention over some of the keys, ready to be merged with attention over others.

    Parameters
    ----------
    maximum
        m, the largest score so far, (...). -inf if there was none.
    total
        ℓ, the sum of exp(score - m), (...).
    output
        o, the weighted mean of the values, (..., value_dim); 0 if there was no key.

    Raises
    ------
    ValueError
        If the shapes do not belong together.

    Notes
    -----
    Merging is associative and commutative, and `SoftmaxState.empty` is its identity, so the keys may
    be cut into any parts and merged in any order. Ledger: `flash_attention:merge_maximum`,
    `flash_attention:merge_total`, `flash_attention:merge_output`.

    Examples
    --------
    >>> scores, values = torch.tensor([0.0, 1.0, 2.0]), torch.eye(3)
    >>> left = SoftmaxState.of(scores[:1], values[:1])
    >>> right = SoftmaxState.of(scores[1:], values[1:])
    >>> left.merge(right).output
    tensor([0.0900, 0.2447, 0.6652])
    """

    maximum: Tensor
    total: Tensor
    output: Tensor

    def __post_init__(self) -> None:
        if self.maximum.shape != self.total.shape or self.output.shape[:-1] != self.total.shape:
            raise ValueError(
                "maximum and total must have one shape, and output one axis more; got "
                f"{tuple(self.maximum.shape)}, {tuple(self.total.shape)}, {tuple(self.output.shape)}"
            )

    @classmethod
    def empty(cls, *shape: int, dtype: torch.dtype | None = None) -> SoftmaxState:
        """Return the identity: attention over no keys. `shape` is that of the output."""
        total = torch.zeros(shape[:-1], dtype=dtype)
        return cls(torch.full_like(total, -torch.inf), total, torch.zeros(shape, dtype=dtype))

    @classmethod
    def of(cls, scores: Tensor, values: Tensor) -> SoftmaxState:
        """Return the state of `scores` (..., keys) over `values` (..., keys, value_dim)."""
        maximum = row_maximum(scores)
        weights = (scores - finite_shift(maximum).unsqueeze(-1)).exp()
        total = weights.sum(-1)
        there = (scores > -torch.inf).unsqueeze(-2)
        summed = guarded_product(weights.unsqueeze(-2), values, there).squeeze(-2)
        return cls(maximum, total, summed / torch.where(total == 0, 1.0, total).unsqueeze(-1))

    @classmethod
    def from_lse(cls, output: Tensor, lse: Tensor) -> SoftmaxState:
        """Return the state of an attention's output and log-sum-exp: m = lse, ℓ = 1."""
        return cls(lse, torch.where(lse == -torch.inf, 0.0, torch.ones_like(lse)), output)

    @property
    def lse(self) -> Tensor:
        """The log-sum-exp m + ln ℓ of the scores, in nats; -inf if there was no key."""
        nothing = self.total == 0
        some = self.maximum + self.total.masked_fill(nothing, 1.0).log()
        return some.masked_fill(nothing, -torch.inf)

    def merge(self, other: SoftmaxState) -> SoftmaxState:
        """Return the state over the keys of both."""
        return merge_states(self, other)


def merge_states(a: SoftmaxState, b: SoftmaxState) -> SoftmaxState:
    """Merge two states of the same queries over different keys.

    Parameters
    ----------
    a, b
        States whose tensors broadcast against each other.

    Returns
    -------
    SoftmaxState
        m = max(mₐ, m_b), ℓ = ℓₐ exp(mₐ - m) + ℓ_b exp(m_b - m), and o, the mean of oₐ and o_b with
        those two terms as weights. Two empty states give an empty one. An empty state adds nothing,
        whatever its output holds.

    Raises
    ------
    TypeError
        If an argument is not a `SoftmaxState`.

    Notes
    -----
    Ledger: `flash_attention:merge_maximum`, `flash_attention:merge_total`,
    `flash_attention:merge_output`. flashinfer's `merge_state` is the same with ℓ = 1.

    Examples
    --------
    >>> a = SoftmaxState.of(torch.tensor([0.0]), torch.tensor([[1.0]]))
    >>> merge_states(a, SoftmaxState.empty(1)).output
    tensor([1.])
    """
    for name, state in (("a", a), ("b", b)):
        if not isinstance(state, SoftmaxState):
            raise TypeError(f"{name} must be a SoftmaxState, got {type(state).__name__}")
    maximum = torch.maximum(a.maximum, b.maximum)
    shift = finite_shift(maximum)
    from_a, from_b = (state.total * (state.maximum - shift).exp() for state in (a, b))
    total = from_a + from_b
    weighted = weigh(from_a, a.output) + weigh(from_b, b.output)
    return SoftmaxState(
        maximum, total, weighted / torch.where(total == 0, 1.0, total).unsqueeze(-1)
    )
