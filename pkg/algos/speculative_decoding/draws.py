"""Drawing a token with one uniform number: the inverse of the cumulative distribution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Tokens in a block: sums of blocks first, then one block token by token.
BLOCK = 256


def draw(
    weights: Tensor, uniforms: Tensor, otherwise: Callable[[], Tensor] | None = None
) -> Tensor:
    """Return for each row the first token whose cumulative weight exceeds uniform · total.

    A token without weight is never drawn. Sums are taken in float64, block by block, so that a row of
    any vocabulary is read once and only one block of it a second time.

    Parameters
    ----------
    weights
        (rows, vocab), not negative; they need not sum to 1.
    uniforms
        (rows,), float64, in [0, 1).
    otherwise
        Gives (rows, vocab): what to draw from in a row that has no weight at all.

    Returns
    -------
    Tensor
        (rows,), int64.
    """
    vocab = weights.shape[-1]
    if vocab % BLOCK:
        weights = pad(weights, (0, -vocab % BLOCK))
    blocks = weights.unflatten(-1, (-1, BLOCK))  # (rows, blocks, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # (rows, blocks)
    if otherwise is not None:
        empty = sums[:, -1] <= 0
        if bool(empty.any()):
            return draw(torch.where(empty[:, None], otherwise(), weights[:, :vocab]), uniforms)
    goal = (uniforms * sums[:, -1])[:, None]  # (rows, 1), less than the total: uniforms are below 1
    place = torch.searchsorted(sums, goal, right=True).clamp_max(sums.shape[-1] - 1)
    before = pad(sums, (1, 0)).gather(-1, place)  # (rows, 1)
    rows = torch.arange(len(weights), device=weights.device)
    chosen = blocks[rows, place[:, 0]].double()  # (rows, BLOCK)
    within = torch.searchsorted(before + chosen.cumsum(-1), goal, right=True)
    # Rounding may leave the block's end at the goal: then it is the block's last token with weight.
    numbers = torch.arange(BLOCK, device=weights.device)
    last = torch.where(chosen > 0, numbers, 0).amax(-1, keepdim=True)
    return (place * BLOCK + torch.minimum(within, last))[:, 0]
