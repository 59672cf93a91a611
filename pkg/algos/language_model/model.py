"""The decoder: embedding, layers of attention and gated products, and the reading of the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from pkg.algos.flash_attention import AncestorMask
from pkg.algos.language_model import arguments
from pkg.algos.language_model.attention import sight
from pkg.algos.language_model.cache import KeyValueCache
from pkg.algos.language_model.rotation import turn, turns

#: Called with the name of a step and its result; what it returns, if anything, replaces the result.
Observer = Callable[[str, Tensor], Tensor | None]
#: Called with q (batch, heads, tokens, d), k and v (batch, kv_heads, tokens, d); returns what q has.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, the constants of its norms and positions, and its last token.

    `end` is the token that ends a text, or None.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    rope_base: float
    norm_eps: float
    end: int | None = None

    @property
    def head_dim(self) -> int:
        """Numbers in a head."""
        return self.width // self.heads


class Output(NamedTuple):
    """What a pass gives: logits (…, tokens, vocabulary) and hidden states (…, tokens, width).

    The hidden states are the residual stream after the last layer, before the norm that precedes the
    logits: `model.read_out(hidden)` is `logits`.
    """

    logits: Tensor
    hidden: Tensor


class LanguageModel:
    """A decoder of the Llama family: `logits, hidden = model(tokens)`.

    Grouped-query attention, rotary positions on adjacent pairs, RMSNorm before each half of a layer,
    SwiGLU, and an embedding that is also the last product.

    Parameters
    ----------
    weights
        By the names of GGUF files: `token_embd.weight` (vocabulary, width), `output_norm.weight`,
        and for each layer `blk.0.attn_norm.weight`, `attn_q`, `attn_k`, `attn_v`, `attn_output`,
        `ffn_norm`, `ffn_gate`, `ffn_up`, `ffn_down`; matrices are (out, in). All of one dtype and
        on one device. `output.weight` if the last product has a matrix of its own.
    shape
        The sizes.
    tokenizer
        With `encode(text).ids` and `decode(ids)`; None for a model that is fed ids only.

    Notes
    -----
    Touvron et al. (2023), LLaMA. A pass records gradients where the weights ask for them. Ledger:
    `speculative_decoding:next_token`.

    Examples
    --------
    >>> from pkg.data.smollm2 import smollm2
    >>> model = smollm2()
    >>> logits, hidden = model(model.encode("The capital of France is"))
    >>> model.tokenizer.decode([int(logits[-1].argmax())])
    ' Paris'
    """

    def __init__(self, weights: dict[str, Tensor], shape: Shape, tokenizer: Any = None) -> None:
        self.weights, self.shape, self.tokenizer = weights, shape, tokenizer

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, the cache and the logits."""
        return self.weights["token_embd.weight"].dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights["token_embd.weight"].device

    def to(self, place: torch.dtype | torch.device | str) -> LanguageModel:
        """Return the model with its weights rounded to a dtype, or on a device."""
        moved = {name: weight.to(place) for name, weight in self.weights.items()}
        return LanguageModel(moved, self.shape, self.tokenizer)

    def first_layers(self, layers: int) -> LanguageModel:
        """Return the model that leaves after so many layers, with the same weights.

        Raises
        ------
        ValueError
            If there are not so many.
        """
        arguments.check_layers(layers, self.shape.layers)
        return LanguageModel(self.weights, replace(self.shape, layers=layers), self.tokenizer)

    def encode(self, text: str) -> Tensor:
        """Return the token ids of a text, (tokens,)."""
        return torch.tensor(self.tokenizer.encode(text).ids)

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> KeyValueCache:
        """Return an empty cache for `batch` texts of at most `capacity` tokens (the context if None)."""
        shape = self.shape
        return KeyValueCache(
            layers=shape.layers, batch=batch, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
            capacity=shape.context if capacity is None else capacity,
            dtype=self.dtype, device=self.device,
        )  # fmt: skip

    def __call__(
        self,
        tokens: Tensor | Sequence[int],
        *,
        cache: KeyValueCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | AncestorMask | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        observe: Observer | None = None,
        attend: Attend | None = None,
        layers: int | None = None,
    ) -> Output:
        """Run the model over the next tokens of one text or of several.

        Parameters
        ----------
        tokens
            Ids, (tokens,) or (batch, tokens).
        cache
            What was read before: the tokens come after it, and are added to it.
        positions
            (tokens,) or (batch, tokens), from 0 to the context; None counts on from the cache.
        mask
            Which of these tokens each of them sees: boolean, (tokens, tokens) or (batch, tokens,
            tokens), or an `AncestorMask`; None is the causal order. All cached tokens are seen.
        lengths
            (batch,): how many of each row's tokens are real, from the left; the rest is padding,
            whose results mean nothing and which the cache forgets. All if None.
        observe
            Sees every step as ("embedding", x), and for layer 3 ("3.query", q), ("3.key", k),
            ("3.value", v), ("3.attention", o), ("3.residual_attention", x), ("3.gated", g),
            ("3.residual", x); at the end ("norm", x), ("logits", y).
        attend
            A causal attention to use instead, without a cache.
        layers
            Leave after so many layers.

        Returns
        -------
        Output
            Logits (…, tokens, vocabulary) and hidden states (…, tokens, width), in the weights' dtype.

        Raises
        ------
        TypeError
            If `tokens` is not integer, or `mask` not boolean.
        ValueError
            If there are no tokens, or more than the context or the cache holds, an id or a position
            does not exist, or shapes do not fit.
        """
        hidden = self.hidden(
            tokens, cache=cache, positions=positions, mask=mask, lengths=lengths,
            observe=observe, attend=attend, layers=layers,
        )  # fmt: skip
        return Output(self.read_out(hidden, observe=observe), hidden)

    def hidden(
        self, tokens: Tensor | Sequence[int], *, cache: KeyValueCache | None = None,
        positions: Tensor | None = None, mask: Tensor | AncestorMask | None = None,
        lengths: Tensor | Sequence[int] | None = None, observe: Observer | None = None,
        attend: Attend | None = None, layers: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the hidden states alone; the arguments are those of a call."""
        wanted = self.shape.layers if layers is None else layers
        arguments.check_layers(wanted, self.shape.layers)
        tokens = arguments.token_ids(tokens, self.shape.vocabulary).to(self.device)
        rows = tokens if tokens.ndim == 2 else tokens.unsqueeze(0)
        counts = arguments.row_lengths(lengths, rows)
        starts = arguments.cached(cache, rows, attend is not None)
        places = arguments.places(positions, rows, starts, counts, self.shape.context)
        see = _seen_by(observe)
        x = see("embedding", self.weights["token_embd.weight"][tokens])  # (…, tokens, width)
        points = turns(places.to(x.device), self.shape.head_dim, self.shape.rope_base, x.dtype)
        group = self.shape.heads // self.shape.kv_heads
        seen = sight(x.reshape(*rows.shape, -1), group, starts, mask)
        for layer in range(wanted):
            x = self._layer(layer, x, points, see, attend or seen.attend, cache)
        if cache is not None:
            cache.advance(rows.shape[1] if counts is None else counts)
        return x

    def read_out(self, hidden: Tensor, *, observe: Observer | None = None) -> Tensor:
        """Return the logits (…, vocabulary) of hidden states (…, width)."""
        see = _seen_by(observe)
        x = see("norm", self._norm(hidden, "output_norm"))
        last = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return see("logits", linear(x, last))

    def _layer(
        self, layer: int, x: Tensor, points: Tensor, see: Callable[[str, Tensor], Tensor],
        attend: Attend, cache: KeyValueCache | None,
    ) -> Tensor:  # fmt: skip
        def through(name: str, y: Tensor) -> Tensor:
            return linear(y, self.weights[f"blk.{layer}.{name}.weight"])

        h = self._norm(x, f"blk.{layer}.attn_norm")
        q, k, v = (self._heads(through(f"attn_{name}", h)) for name in "qkv")
        q = see(f"{layer}.query", turn(q, points))
        k = see(f"{layer}.key", turn(k, points))
        v = see(f"{layer}.value", v)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        o = see(f"{layer}.attention", attend(q, k, v)).transpose(1, 2).flatten(2)
        o = o.view(x.shape)  # (batch, tokens, width), or without the batch
        x = see(f"{layer}.residual_attention", x + through("attn_output", o))
        h = self._norm(x, f"blk.{layer}.ffn_norm")
        gated = silu(through("ffn_gate", h)) * through("ffn_up", h)
        return see(f"{layer}.residual", x + through("ffn_down", see(f"{layer}.gated", gated)))

    def _heads(self, x: Tensor) -> Tensor:
        """(…, tokens, heads · d) → (batch, heads, tokens, d)."""
        x = x.unflatten(-1, (-1, self.shape.head_dim)).transpose(-3, -2)
        return x if x.ndim == 4 else x.unsqueeze(0)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        weight = self.weights[f"{name}.weight"].to(wide)
        return rms_norm(x.to(wide), x.shape[-1:], weight, self.shape.norm_eps).to(x.dtype)


def _seen_by(observe: Observer | None) -> Callable[[str, Tensor], Tensor]:
    def see(name: str, x: Tensor) -> Tensor:
        changed = observe(name, x) if observe is not None else None
        return x if changed is None else changed

    return see
