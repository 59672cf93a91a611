"""Which tokens the new ones see, and attention over them: one decision for all layers of a pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pkg.algos.flash_attention import AncestorMask, flash_attention, flash_decode
from pkg.algos.flash_attention.tiled import fold, unfold

#: The most queries that the decoding kernel of the GPU takes at once.
FEW = 64


def has_fused(device: torch.device) -> bool:
    """Tell whether PyTorch's fused kernel takes the place of ours there, being faster."""
    return device.type == "cpu"


@dataclass(frozen=True)
class Sight:
    """What the queries of a pass see among the keys.

    Without a mask it is the causal order: each token sees itself and all before it. `visible`
    (batch or 1, 1, tokens, keys) is boolean; on the CPU `bias` stands for it, 0 or -inf, for the folded
    queries. `lengths` is given where the texts of a batch end at different places of a GPU's cache.
    `past` tells whether there are keys before the first query.
    """

    visible: Tensor | None = None
    bias: Tensor | None = None
    lengths: Tensor | None = None
    past: bool = False

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of q (batch, heads, tokens, d) over k and v (…, kv_heads, keys, d)."""
        if has_fused(q.device):
            return self._fused(q, k, v)
        if self.lengths is not None:
            return flash_decode(q, k, v, self.lengths)
        return flash_attention(q, k, v, causal=self.visible is None, mask=self.visible)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """PyTorch's fused kernel, which is the same function here: our caches hold no NaN."""
        if self.bias is None and q.shape[2] > 1 and not self.past:
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        # The queries of a group stand below one another, so that no key is copied.
        folded = fold(q, k.shape[1])  # (batch, kv_heads, group * tokens, d)
        output = scaled_dot_product_attention(folded, k, v, attn_mask=self.bias)
        return unfold(output, q.shape[1])


def sight(
    q: Tensor, group: int, starts: Tensor | None, mask: Tensor | AncestorMask | None
) -> Sight:
    """Decide what the new tokens of each text see.

    `q` (batch, tokens, …) has the dtype and device of the queries, `group` of them share a key; the
    caches of the texts hold `starts` (batch,) tokens.
    """
    tokens, device = q.shape[1], q.device
    lengths = [0] if starts is None else starts.tolist()
    begin, even = max(lengths, default=0), len(set(lengths)) < 2
    here = has_fused(device)
    if mask is None and even and (begin == 0 or tokens == 1 or not here):
        return Sight(past=begin > 0)
    if mask is None and starts is not None and not here and tokens <= FEW:
        return Sight(lengths=(starts + tokens).to(device), past=True)
    first = torch.tensor(lengths[:1] if even else lengths, device=device)
    visible = _visible(_own(tokens, mask, device), first, begin + tokens)
    if not here:
        return Sight(visible=visible, past=True)
    bias = torch.zeros(visible.shape, dtype=q.dtype).masked_fill_(~visible, -torch.inf)
    return Sight(bias=bias.repeat(1, 1, group, 1), past=True)


def _visible(own: Tensor, first: Tensor, keys: int) -> Tensor:
    """Return (batch or 1, 1, tokens, keys): all before `first`, and after it what `own` says."""
    tokens = own.shape[-1]
    places = (torch.arange(keys, device=own.device) - first.view(-1, 1)).unsqueeze(1)
    rows = max(len(own), len(first))
    index = places.clamp(0, tokens - 1).expand(rows, tokens, keys)
    chosen = own.expand(rows, -1, -1).gather(-1, index)
    return ((places < 0) | (chosen & (places < tokens))).unsqueeze(1)


def _own(tokens: int, mask: Tensor | AncestorMask | None, device: torch.device) -> Tensor:
    """Return which of the new tokens each new token sees, (batch or 1, tokens, tokens)."""
    if mask is None:
        return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril().unsqueeze(0)
    if isinstance(mask, AncestorMask):
        mask = mask.to_dense()
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be boolean (True: may attend) or an AncestorMask, got {kind}")
    if mask.ndim not in (2, 3) or mask.shape[-2:] != (tokens, tokens):
        raise ValueError(
            f"mask must have shape ({tokens}, {tokens}) or (batch, {tokens}, {tokens}), "
            f"got {tuple(mask.shape)}"
        )
    if not bool(mask.diagonal(dim1=-2, dim2=-1).all()):
        raise ValueError("mask must let every token see itself")
    return mask.to(device).reshape(-1, tokens, tokens)
