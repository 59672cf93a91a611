"""Verify a tree of draft tokens: several candidates for each place, tried one after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pkg.algos.speculative_decoding import arguments
from pkg.algos.speculative_decoding.draws import draw
from pkg.algos.speculative_decoding.result import VerifyResult


def verify_tree(
    draft_tokens: Tensor,
    parents: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    *,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
    validate: bool = True,
) -> VerifyResult:
    """Accept a path of a tree of drafts and draw one token more; all follow the target's law.

    The children of a node are tried in the order of their indices. One that is refused leaves the
    residual for the next; when one is accepted, its own children are tried.

    Parameters
    ----------
    draft_tokens
        (batch, nodes), int64 or int32.
    parents
        (nodes,) or (batch, nodes): the parent of each node, before it; -1 for a child of the root,
        the text so far.
    draft_probs
        (batch, nodes + 1, vocab): row 0 is the law from which the children of the root were drawn,
        row i + 1 that of the children of node i, **without replacement**: a token that was drawn is
        taken out and the rest normalised. Rows of nodes without children are ignored. None for
        children that were not drawn (the most probable ones).
    target_probs
        (batch, nodes + 1, vocab): the target's distributions at the root and after each node.
    uniforms
        (batch, nodes + 1), in [0, 1): column i tests node i, the last one draws.
    generator
        Draws the uniforms, in float64, if they are not given.
    validate
        False leaves out the checks that read all probabilities.

    Returns
    -------
    VerifyResult
        `tokens` (batch, depth + 1), `num_accepted` (batch,) and `path` (batch, depth).

    Raises
    ------
    TypeError, ValueError
        As `verify_chain`; or if a parent does not come before its child, or two children of one
        node are the same token.

    Notes
    -----
    Multi-round rejection sampling: Miao et al. (2024); without replacement: Jeon et al. (2024).
    Ledger: `speculative_decoding:round_law`, `speculative_decoding:tree_accepts`.

    Examples
    --------
    >>> p = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0]]])
    >>> tokens, parents = torch.tensor([[1, 0]]), torch.tensor([-1, -1])
    >>> u = torch.tensor([[0.4, 0.6, 0.9]])
    >>> verify_tree(tokens, parents, None, p, uniforms=u).tokens  # 0.4 >= 0.3, then 0.6 < 0.5 / 0.7
    tensor([[0, 0]])
    """
    arguments.check_draft(draft_tokens, draft_probs, target_probs, "nodes", 1)
    batch, nodes = draft_tokens.shape
    parents, depth = resolve_parents(parents, draft_tokens, validate=validate)
    uniforms = arguments.resolve_uniforms(
        uniforms, generator, (batch, nodes + 1), target_probs.device
    )
    if validate:
        _check_laws(draft_tokens, parents, draft_probs, target_probs)
    walk = _Walk.at_root(draft_tokens.long(), parents, draft_probs, target_probs, depth)
    for node in range(nodes):
        walk.test(node, uniforms[:, node])
    return walk.finish(uniforms[:, -1])


@dataclass
class _Walk:
    """Where each row of the batch stands: its node, and what is left of p and q there."""

    tokens: Tensor
    parents: Tensor
    draft: Tensor | None
    target: Tensor
    node: Tensor  # (batch,), -1 for the root
    p: Tensor  # (batch, vocab), float64: the target's law, or what the residuals have left of it
    q: Tensor | None  # (batch, vocab), float64: what the next child was drawn from
    law: Tensor  # (batch, vocab): the target's law here, whatever was refused
    accepted: Tensor  # (batch,)
    path: Tensor  # (batch, depth)

    @classmethod
    def at_root(
        cls, tokens: Tensor, parents: Tensor, draft: Tensor | None, target: Tensor, depth: int
    ) -> _Walk:
        batch = len(tokens)
        # Copies: these are written to, and float64 rows would be the caller's own.
        law = target[:, 0].to(torch.float64, copy=True)
        q = None if draft is None else draft[:, 0].to(torch.float64, copy=True)
        node = tokens.new_full((batch,), -1)
        path = tokens.new_full((batch, depth), -1)
        return cls(
            tokens, parents, draft, target, node, law.clone(), q, law, tokens.new_zeros(batch), path
        )

    def test(self, node: int, u: Tensor) -> None:
        """Try `node` in the rows that stand at its parent; u is (batch,)."""
        here = (self.parents[:, node] == self.node).nonzero()[:, 0]  # (rows,)
        if not len(here):
            return
        token = self.tokens[here, node]
        p, q = self.p[here, token], None if self.q is None else self.q[here, token]
        passed = (u[here] < p) if q is None else (u[here] * q < p)
        self._accept(here[passed], node)
        self._refuse(here[~passed], token[~passed])

    def _accept(self, rows: Tensor, node: int) -> None:
        if not len(rows):
            return
        self.path[rows, self.accepted[rows]] = node
        self.accepted[rows] += 1
        self.node[rows] = node
        self.law[rows] = self.p[rows] = self.target[rows, node + 1].double()
        if self.q is not None and self.draft is not None:
            self.q[rows] = self.draft[rows, node + 1].double()

    def _refuse(self, rows: Tensor, token: Tensor) -> None:
        if not len(rows):
            return
        if self.q is None:
            rest = self.p[rows]
            rest.scatter_(-1, token[:, None], 0.0)
        else:
            rest = (self.p[rows] - self.q[rows]).clamp_min(0.0)
            left = self.q[rows].scatter(-1, token[:, None], 0.0)  # drawn: taken out
            self.q[rows] = _normalised(left)
        # Without mass the refusal was rounding alone: the law is that of the node.
        empty = rest.sum(-1, keepdim=True) <= 0
        self.p[rows] = _normalised(torch.where(empty, self.law[rows], rest))

    def finish(self, u: Tensor) -> VerifyResult:
        """Draw the last token and put the path's tokens before it."""
        last = draw(self.p, u)
        batch, depth = self.path.shape
        out = self.tokens.new_full((batch, depth + 1), -1)
        if depth:
            along = self.tokens.gather(-1, self.path.clamp_min(0))
            out[:, :depth] = along.where(self.path >= 0, -1)
        out.scatter_(-1, self.accepted[:, None], last[:, None])
        return VerifyResult(out, self.accepted, self.path)


def _normalised(weights: Tensor) -> Tensor:
    total = weights.sum(-1, keepdim=True)
    return weights / total.where(total > 0, 1.0)


def resolve_parents(parents: Tensor, draft_tokens: Tensor, *, validate: bool) -> tuple[Tensor, int]:
    """Return the parents, (batch, nodes), and the depth of the deepest node."""
    arguments.check_integers("parents", parents)
    arguments.check_same_device("parents", parents, draft_tokens)
    batch, nodes = draft_tokens.shape
    if tuple(parents.shape) not in ((nodes,), (batch, nodes)):
        raise ValueError(
            f"parents must have shape (nodes,) = ({nodes},) or (batch, nodes) = {(batch, nodes)}, "
            f"got {tuple(parents.shape)}"
        )
    wide = parents.long().expand(batch, nodes)
    bad = (wide < -1) | (wide >= torch.arange(nodes, device=wide.device))
    if bool(bad.any()):
        row, node = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            "parents must come before their children (-1: the root); the parent of node "
            f"{node} in row {row} is {int(wide[row, node])}"
        )
    if validate:
        same = (wide[:, :, None] == wide[:, None, :]) & (
            draft_tokens[:, :, None] == draft_tokens[:, None, :]
        )
        twice = same.triu(1)
        if bool(twice.any()):
            row, first, second = (int(i) for i in twice.nonzero()[0])
            raise ValueError(
                "draft_tokens of one parent must differ (they are drawn without replacement); "
                f"nodes {first} and {second} of row {row} are both {int(draft_tokens[row, first])}"
            )
    depths = wide.new_zeros(batch, nodes + 1)
    for node in range(nodes):
        depths[:, node + 1] = depths.gather(-1, wide[:, node, None] + 1)[:, 0] + 1
    return wide, int(depths.max()) if batch else 0


def _check_laws(
    draft_tokens: Tensor, parents: Tensor, draft_probs: Tensor | None, target_probs: Tensor
) -> None:
    batch, nodes = draft_tokens.shape
    nothing = torch.zeros(batch, nodes, dtype=torch.bool, device=draft_tokens.device)
    arguments.check_tokens(draft_tokens, target_probs.shape[-1], nothing)
    arguments.check_distributions("target_probs", target_probs)
    if draft_probs is None:
        return
    childless = torch.ones(batch, nodes + 1, dtype=torch.bool, device=draft_tokens.device)
    childless.scatter_(-1, parents + 1, False)
    arguments.check_distributions("draft_probs", draft_probs, childless)
    rows = torch.arange(batch, device=draft_tokens.device)[:, None]
    arguments.check_drawn(draft_probs[rows, parents + 1, draft_tokens.long()], nothing)
