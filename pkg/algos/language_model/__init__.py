"""A language model of the Llama family, in plain PyTorch, and the loop that lets it write.

`LanguageModel` is the decoder that the fourth part of the book runs: `model(tokens)` gives logits and
hidden states, with a `KeyValueCache` or without, for one text or for a batch of texts of different
lengths, in a chain or in a tree. `rotate` turns queries and keys by their positions.
`sampling_distribution` makes the law of the next token out of logits (temperature, top-k, top-p),
`sample` draws from it by a given number in [0, 1), and `generate` writes on.

The weights come from `pkg.data.smollm2`. The chapter "Speculative decoding" compares all of this
with its equations.
"""

from pkg.algos.language_model.cache import KeyValueCache
from pkg.algos.language_model.generate import Generation, generate
from pkg.algos.language_model.model import LanguageModel, Output, Shape
from pkg.algos.language_model.rotation import rotate
from pkg.algos.language_model.sampling import sample, sampling_distribution

#: Results and sizes: they carry numbers, and compute none themselves.
RESULTS = ("Generation", "Output", "Shape")

__all__ = [
    "Generation",
    "KeyValueCache",
    "LanguageModel",
    "Output",
    "Shape",
    "generate",
    "rotate",
    "sample",
    "sampling_distribution",
]
