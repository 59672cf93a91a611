"""Language models of five words, whose whole law can be written down."""

from __future__ import annotations

import itertools

import torch

from pkg.algos.language_model import LanguageModel, Shape


def tiny_model(seed=0, vocabulary=5, layers=1, size=2.0):
    """A decoder of width 8 with random weights, float64: its laws are far from uniform."""
    shape = Shape(layers, 8, 2, 1, vocabulary, 64, 100.0, 1e-5)
    draw = torch.Generator().manual_seed(seed)

    def random(*sizes):
        return torch.randn(sizes, dtype=torch.float64, generator=draw) / 8**0.5

    weights = {"token_embd.weight": random(vocabulary, 8) * size}
    for layer in range(layers):
        sizes = {"attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8),
                 "ffn_gate": (16, 8), "ffn_up": (16, 8), "ffn_down": (8, 16)}  # fmt: skip
        weights |= {f"blk.{layer}.{n}.weight": 3 * random(*s) for n, s in sizes.items()}
        for name in ("attn_norm", "ffn_norm"):
            weights[f"blk.{layer}.{name}.weight"] = torch.ones(8, dtype=torch.float64)
    weights["output_norm.weight"] = torch.ones(8, dtype=torch.float64)
    return LanguageModel(weights, shape)


def law_of_texts(model, prompt, length, options):
    """Return the probability of every continuation of `length` tokens, by whole passes."""
    law = {}
    for tokens in itertools.product(range(model.shape.vocabulary), repeat=length):
        text = torch.cat((prompt, torch.tensor(tokens)))
        rows = options.law(model(text[:-1]).logits)[len(prompt) - 1 :]
        law[tokens] = float(torch.stack([rows[i, t] for i, t in enumerate(tokens)]).prod())
    return law
