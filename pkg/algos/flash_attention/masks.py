"""Who may attend to whom: bands (causal, windows), boolean masks, and trees of draft tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Align = Literal["bottom_right", "top_left"]
Window = tuple[int | None, int | None]
_WORD = 64  # bits in a word of an ancestor mask


@dataclass(frozen=True)
class AncestorMask:
    """Which draft tokens each token of a tree may see: itself and its ancestors, a bit each.

    The queries are the tree's nodes, and the last keys are the same nodes; every earlier key (the
    text so far) is visible to all of them. A row takes one 64-bit word for every 64 nodes, against
    a byte for every *key* in a boolean mask.

    Parameters
    ----------
    words
        int64, (batch or 1, nodes, ceil(nodes / 64)). Bit `n % 64` of word `n // 64` in row `i` says
        whether node `i` sees node `n`.

    Raises
    ------
    TypeError, ValueError
        If `words` is not int64, or not of that shape.

    Notes
    -----
    Ledger: `flash_attention:ancestors`.

    Examples
    --------
    A root with two children, the second of which has a child of its own:

    >>> tree = AncestorMask.from_parents(torch.tensor([-1, 0, 0, 2]))
    >>> tree.to_dense()[0].int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [1, 0, 1, 0],
            [1, 0, 1, 1]], dtype=torch.int32)
    """

    words: Tensor

    def __post_init__(self) -> None:
        words = self.words
        if not isinstance(words, Tensor) or words.dtype != torch.int64:
            raise TypeError(f"words must be an int64 tensor, got {kind_of(words)}")
        if words.ndim != 3 or words.shape[2] != -(-words.shape[1] // _WORD):
            raise ValueError(
                "words must have shape (batch or 1, nodes, ceil(nodes / 64)), "
                f"got {tuple(words.shape)}"
            )

    @property
    def nodes(self) -> int:
        """The number of nodes of the tree."""
        return self.words.shape[1]

    @classmethod
    def from_dense(cls, visible: Tensor) -> AncestorMask:
        """Pack a boolean (nodes, nodes) or (batch, nodes, nodes) mask.

        Raises
        ------
        TypeError, ValueError
            If `visible` is not boolean, or not square.
        """
        if visible.dtype != torch.bool:
            raise TypeError(f"visible must be a boolean tensor, got {kind_of(visible)}")
        if visible.ndim not in (2, 3) or visible.shape[-1] != visible.shape[-2]:
            raise ValueError(
                "visible must have shape (nodes, nodes) or (batch, nodes, nodes), "
                f"got {tuple(visible.shape)}"
            )
        bits = visible.reshape(-1, *visible.shape[-2:]).long()  # (batch, nodes, nodes)
        bits = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % _WORD))
        places = torch.arange(_WORD, device=bits.device)
        # Bit 63 is the sign: the sum wraps round to it, as two's complement wants.
        return cls((bits.unflatten(-1, (-1, _WORD)) << places).sum(-1))

    @classmethod
    def from_parents(cls, parents: Tensor) -> AncestorMask:
        """Build the mask of a tree from each node's parent; -1 marks a root.

        `parents` is integer, (nodes,) or (batch, nodes), and names a parent before its children.

        Raises
        ------
        TypeError, ValueError
            If `parents` is not integer, or a parent does not come before its child.
        """
        if parents.is_floating_point() or parents.dtype == torch.bool or parents.is_complex():
            raise TypeError(f"parents must be an integer tensor, got {kind_of(parents)}")
        if parents.ndim not in (1, 2):
            raise ValueError(
                f"parents must have shape (nodes,) or (batch, nodes), got {tuple(parents.shape)}"
            )
        table = parents.reshape(-1, parents.shape[-1]).long()
        batch, nodes = table.shape
        order = torch.arange(nodes, device=table.device)
        if bool(((table < -1) | (table >= order)).any()):
            raise ValueError("parents must name a node before each child, or -1 for a root")
        visible = torch.eye(nodes, dtype=torch.bool, device=table.device).repeat(batch, 1, 1)
        rows = torch.arange(batch, device=table.device)
        for node in range(nodes):  # a parent's row is complete before its child's is made
            parent = table[:, node]
            inherited = visible[rows, parent] & (parent >= 0)[:, None]  # a root's -1 is no row
            visible[:, node] |= inherited
        return cls.from_dense(visible)

    def to_dense(self) -> Tensor:
        """Return the boolean mask (batch or 1, nodes, nodes)."""
        places = torch.arange(_WORD, device=self.words.device)
        bits = (self.words[..., None] >> places) & 1  # (batch, nodes, words, 64)
        return bits.flatten(-2)[..., : self.nodes].bool()


@dataclass(frozen=True)
class Visibility:
    """The pairs of query and key that count, given tile by tile so that no N × M table is made.

    Key j is visible to query i if i + shift - left <= j <= i + shift + right (a negative `left` or
    `right` means no limit), and if `mask` (batch or 1, heads or 1, q_len, k_len) and `ancestors`
    (words of an `AncestorMask`) allow it.
    """

    q_len: int
    k_len: int
    left: int = -1
    right: int = -1
    shift: int = 0
    mask: Tensor | None = None
    ancestors: Tensor | None = None

    @property
    def everything(self) -> bool:
        """Whether every pair is visible."""
        return self.left < 0 and self.right < 0 and self.mask is None and self.ancestors is None

    @property
    def common(self) -> int:
        """How many keys, from the first on, certainly count for every query."""
        if self.mask is not None or self.left >= 0:
            return 0
        end = self.k_len if self.ancestors is None else self.k_len - self.q_len
        return end if self.right < 0 else max(0, min(end, self.shift + self.right + 1))

    def after(self, keys: int) -> Visibility:
        """Return the pairs of all queries with the keys from there on; `keys` are in `common`."""
        return replace(self, k_len=self.k_len - keys, shift=self.shift - keys)

    def tiles(self, q0: int, q1: int, block: int) -> Iterator[tuple[int, int, Tensor | None]]:
        """Yield (first key, end, visible pairs) of the key tiles that rows q0..q1 need.

        `visible` is None where all of the tile's pairs are visible, else boolean, of a shape that
        broadcasts to (batch, heads, rows, columns). Tiles without a visible pair are left out.
        """
        first = 0 if self.left < 0 else max(0, q0 + self.shift - self.left)
        end = self.k_len if self.right < 0 else min(self.k_len, q1 + self.shift + self.right)
        for k0 in range(first // block * block, end, block):
            k1 = min(k0 + block, self.k_len)
            visible = self.tile(q0, q1, k0, k1)
            if visible is None or bool(visible.any()):
                yield k0, k1, visible

    def tile(self, q0: int, q1: int, k0: int, k1: int) -> Tensor | None:
        """Return the visible pairs of a tile, or None if that is all of them."""
        parts = [self._band(q0, q1, k0, k1), self._tree(q0, q1, k0, k1)]
        if self.mask is not None:
            parts.append(self.mask[..., q0:q1, k0:k1])
        given = [part for part in parts if part is not None]
        if not given:
            return None
        visible = given[0]
        for part in given[1:]:
            visible = visible & part
        return visible

    def _band(self, q0: int, q1: int, k0: int, k1: int) -> Tensor | None:
        low = self.left >= 0 and k0 < q1 - 1 + self.shift - self.left
        high = self.right >= 0 and k1 - 1 > q0 + self.shift + self.right
        if not (low or high):
            return None
        device = next((t.device for t in (self.mask, self.ancestors) if t is not None), None)
        distance = torch.arange(k0, k1, device=device) - torch.arange(
            q0 + self.shift, q1 + self.shift, device=device
        ).unsqueeze(-1)  # (rows, columns)
        inside = torch.ones_like(distance, dtype=torch.bool)
        if low:
            inside &= distance >= -self.left
        if high:
            inside &= distance <= self.right
        return inside

    def _tree(self, q0: int, q1: int, k0: int, k1: int) -> Tensor | None:
        if self.ancestors is None:
            return None
        prefix = self.k_len - self.q_len
        if k1 <= prefix:
            return None
        before, end = max(0, prefix - k0), k1 - prefix  # columns of the text; end of the nodes
        start = max(0, k0 - prefix)
        words = self.ancestors[:, q0:q1, start // _WORD : -(-end // _WORD)]
        if not before and not bool(words.any()):  # nothing to unpack
            return words.new_zeros(1, 1, 1, 1, dtype=torch.bool)
        bits = (words.unsqueeze(-1) >> torch.arange(_WORD, device=words.device)) & 1
        first = start % _WORD
        inside = bits.flatten(-2)[..., first : first + end - start].bool()  # (batch, rows, nodes)
        if before:
            inside = torch.nn.functional.pad(inside, (before, 0), value=True)
        return inside.unsqueeze(1)  # (batch, 1, rows, columns)


def kind_of(thing: object) -> str:
    """Return the dtype of a tensor, or the type of anything else, for an error message."""
    return str(thing.dtype) if isinstance(thing, Tensor) else type(thing).__name__
