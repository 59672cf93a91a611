"""What a verification returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class VerifyResult:
    """The tokens that leave a verification.

    Attributes
    ----------
    tokens
        (batch, longest draft + 1), int64: the accepted draft tokens, then one token more, drawn from
        the residual or from the target; -1 after it.
    num_accepted
        (batch,), int64: how many draft tokens were accepted; `num_accepted + 1` tokens leave.
    path
        For a tree: the accepted nodes from the root down, (batch, depth), int64, -1 after the last.
        None for a chain.
    """

    tokens: Tensor
    num_accepted: Tensor
    path: Tensor | None = None
