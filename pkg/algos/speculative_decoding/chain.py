"""Verify a chain of draft tokens, token by token or as one block."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pkg.algos.speculative_decoding import arguments
from pkg.algos.speculative_decoding.draws import draw
from pkg.algos.speculative_decoding.result import VerifyResult

Method = Literal["token", "block"]


def verify_chain(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    *,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
    lengths: Tensor | None = None,
    method: Method = "token",
    validate: bool = True,
) -> VerifyResult:
    """Accept a prefix of a draft and draw one token more, so that all tokens follow the target's law.

    Parameters
    ----------
    draft_tokens
        (batch, gamma), int64 or int32. What stands past a row's length is ignored.
    draft_probs
        (batch, gamma, vocab): the distribution from which each draft token was drawn, after
        temperature and filters. None for a draft that was not drawn (a copy, an argmax).
    target_probs
        (batch, gamma + 1, vocab): row i is the target's distribution after i draft tokens.
    uniforms
        (batch, gamma + 1), in [0, 1): column i tests draft token i, the last one draws.
    generator
        Draws the uniforms, in float64, if they are not given.
    lengths
        (batch,): how many draft tokens a row has; None if all have gamma.
    method
        `"token"` tests one token after another; `"block"` accepts at least as many on average, and
        the law of the text is the same.
    validate
        False leaves out the checks that read all probabilities. The result of rows that are not
        distributions is then meaningless.

    Returns
    -------
    VerifyResult
        `tokens` (batch, gamma + 1) and `num_accepted` (batch,).

    Raises
    ------
    TypeError, ValueError
        If shapes, types, devices or vocabularies do not fit, a row is no distribution (NaN,
        negative, another sum), a token or a length is out of range, a draft token has probability 0
        under `draft_probs`, or not exactly one of `uniforms` and `generator` is given.

    Notes
    -----
    A token x is accepted if u · q(x) < p(x): always for p = q, never for p(x) = 0, u = 0 included.
    Leviathan, Kalman and Matias (2023), algorithm 1; Sun et al. (2024), algorithm 2. Ledger:
    `speculative_decoding:output_law`, `speculative_decoding:block_weight`.

    Examples
    --------
    >>> p = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]])
    >>> q = torch.tensor([[[0.2, 0.3, 0.5]]])
    >>> u = torch.tensor([[0.5, 0.0]])
    >>> verify_chain(torch.tensor([[2]]), q, p, uniforms=u).tokens  # 0.5 is not below 0.2 / 0.5
    tensor([[ 0, -1]])
    """
    if method not in ("token", "block"):
        raise ValueError(f'method must be "token" or "block", got {method!r}')
    arguments.check_draft(draft_tokens, draft_probs, target_probs, "gamma", 0)
    batch, gamma = draft_tokens.shape
    uniforms = arguments.resolve_uniforms(
        uniforms, generator, (batch, gamma + 1), target_probs.device
    )
    lengths = arguments.resolve_lengths(lengths, batch, gamma, draft_tokens)
    beyond = torch.arange(gamma, device=lengths.device) >= lengths[:, None]  # (batch, gamma)
    if validate:
        arguments.check_tokens(draft_tokens, target_probs.shape[-1], beyond)
        _check_laws(draft_probs, target_probs, lengths)
    tokens = draft_tokens.long().masked_fill(beyond, 0)
    p = target_probs[:, :gamma].gather(-1, tokens[..., None])[..., 0].double()  # (batch, gamma)
    q = None
    if draft_probs is not None:
        q = draft_probs.gather(-1, tokens[..., None])[..., 0].double()
        if validate:
            arguments.check_drawn(q, beyond)
    if method == "token":
        accepted = _token_test(uniforms[:, :gamma], p, q, beyond)
        weights = None
    else:
        accepted, weights = _block_test(
            uniforms[:, :gamma], p, q, draft_probs, target_probs, lengths
        )
    last = _last_token(
        tokens, draft_probs, target_probs, accepted, lengths, weights, uniforms[:, -1]
    )
    return VerifyResult(_assemble(tokens, last, accepted), accepted)


def _token_test(u: Tensor, p: Tensor, q: Tensor | None, beyond: Tensor) -> Tensor:
    """Return how many tokens from the first on pass min(1, p / q), (batch,)."""
    passed = (u < p) if q is None else (u * q < p)
    return (passed & ~beyond).long().cumprod(-1).sum(-1)


def _block_test(
    u: Tensor, p: Tensor, q: Tensor | None, draft_probs: Tensor | None, target_probs: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return how many tokens the block test accepts, (batch,), and their weight, (batch,)."""
    batch, gamma = p.shape
    weight = p.new_ones(batch, gamma + 1)
    for i in range(gamma):
        ratio = p[:, i] if q is None else p[:, i] / q[:, i]
        # A token that was not drawn (past the end) may give 0/0: it is never looked at.
        weight[:, i + 1] = (weight[:, i] * ratio).clamp_max(1.0)
    excess = p.new_zeros(batch, max(gamma - 1, 0))
    for i in range(1, gamma):  # what the target has in excess of the draft after i tokens
        w = weight[:, i]
        if draft_probs is None:
            excess[:, i - 1] = w * (1.0 - p[:, i])
        else:
            scaled = _scaled(_single(target_probs[:, i]), w)  # (batch, vocab)
            excess[:, i - 1] = (
                (scaled - draft_probs[:, i]).clamp_min_(0.0).sum(-1, dtype=torch.float64)
            )
    inner, reached = weight[:, 1:gamma], torch.arange(1, gamma + 1, device=u.device)
    passed = u[:, :-1] * (excess + 1.0 - inner) < excess
    passed = passed | ((excess <= 0) & (inner >= 1))  # p = q from here on: 0/0, and nothing to lose
    end = u < weight[:, 1:]
    passed = torch.cat((passed, end[:, -1:]), -1) if gamma else end
    passed = torch.where(reached == lengths[:, None], end, passed) & (reached <= lengths[:, None])
    accepted = (passed * reached).amax(-1) if gamma else lengths
    return accepted, weight.gather(-1, accepted[:, None])[:, 0]


def _last_token(
    tokens: Tensor, draft_probs: Tensor | None, target_probs: Tensor, accepted: Tensor,
    lengths: Tensor, weights: Tensor | None, u: Tensor,
) -> Tensor:  # fmt: skip
    """Draw from the target's row where all were accepted, else from the residual, (batch,)."""
    law = _single(_rows(target_probs, accepted))  # (batch, vocab), a copy
    stopped = (accepted < lengths).nonzero()[:, 0]
    if not len(stopped):
        return draw(law, u)
    everywhere = len(stopped) == len(law)
    at, rest = accepted[stopped], law if everywhere else law.index_select(0, stopped)
    if weights is not None:
        rest = _scaled(rest, weights[stopped])
    if draft_probs is None:  # q is 1 at the draft token, where p is not more
        rest.scatter_(-1, tokens[stopped, at][:, None], 0.0)
    else:
        rest = rest.sub_(_rows(draft_probs, at, stopped)).clamp_min_(0.0)
    law = rest if everywhere else law.index_copy_(0, stopped, rest)
    return draw(law, u, otherwise=lambda: _rows(target_probs, accepted))


def _rows(probs: Tensor, at: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return probs[rows, at], (rows, vocab), a copy; `rows` is 0, 1, ... if not given.

    PyTorch selects along one axis five times as fast as along two.
    """
    if rows is None:
        rows = torch.arange(len(at), device=at.device)
    if not probs.is_contiguous():
        return probs[rows, at]
    return probs.flatten(0, 1).index_select(0, rows * probs.shape[1] + at)


def _scaled(law: Tensor, weight: Tensor) -> Tensor:
    """Return weight · law, (rows, vocab), in the type of `law`."""
    return law * weight[:, None].to(law.dtype)


def _single(probs: Tensor) -> Tensor:
    """Widen half precision to float32, in which differences of two of its numbers round once."""
    return probs.float() if probs.dtype in (torch.float16, torch.bfloat16) else probs


def _assemble(tokens: Tensor, last: Tensor, accepted: Tensor) -> Tensor:
    """Put the accepted tokens, the last one and -1 in a row, (batch, gamma + 1)."""
    batch, gamma = tokens.shape
    out = tokens.new_full((batch, gamma + 1), -1)
    out[:, :gamma] = tokens.where(torch.arange(gamma, device=tokens.device) < accepted[:, None], -1)
    return out.scatter_(-1, accepted[:, None], last[:, None])


def _check_laws(draft_probs: Tensor | None, target_probs: Tensor, lengths: Tensor) -> None:
    place = torch.arange(target_probs.shape[1], device=lengths.device)
    arguments.check_distributions("target_probs", target_probs, place > lengths[:, None])
    if draft_probs is not None:
        arguments.check_distributions("draft_probs", draft_probs, place[:-1] >= lengths[:, None])
