"""The models that the tests of the language model share: loaded once in a process."""

from __future__ import annotations

from functools import cache

import torch

from pkg.algos.language_model import LanguageModel
from pkg.data import play
from pkg.data.smollm2 import smollm2

SPEECH = play("hamlet")[1000:6000]
TOKENS = smollm2().encode(SPEECH)


@cache
def short_model(dtype=torch.float64, layers=4):
    """The first layers of SmolLM2, with real weights: the whole structure, quickly."""
    model = smollm2().first_layers(layers)
    kept = {name: w for name, w in model.weights.items() if _layer(name) < layers}
    return LanguageModel(kept, model.shape, model.tokenizer).to(dtype)


def _layer(name):
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


@cache
def bf16_model():
    return smollm2().to(torch.bfloat16)


@cache
def allowed():
    """How far float64 logits may differ when the same sums are done in another order.

    Rounding errors are proportional to the unit roundoff to first order, and float64's is 2^-29 of
    float32's. So the error of float32, measured, gives that of float64. One measurement is one draw of
    the roundings: 16 leaves room for a worse one. A wrong mask or position errs by more than 0.01.
    """
    tokens = TOKENS[:40]
    wide, narrow = short_model()(tokens).logits, short_model(torch.float32)(tokens).logits
    return 16 * float((wide - narrow).abs().max()) * 2.0**-29
