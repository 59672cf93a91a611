"""Transformers' Llama with the weights of a `LanguageModel`."""

from __future__ import annotations

from typing import Any

import torch

from pkg.algos.language_model import LanguageModel

#: Their names of a layer's weights, and ours.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def transformers_llama(model: LanguageModel) -> Any:
    """Return transformers' Llama with our weights.

    It turns entry i with entry i + d / 2 where ours turns neighbours, so the rows of q and k are put
    in its order.
    """
    from importlib import import_module

    transformers: Any = import_module("transformers")  # its types do not know their own arguments

    shape = model.shape
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width,
        intermediate_size=len(model.weights["blk.0.ffn_gate.weight"]),
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps, tie_word_embeddings=True, attn_implementation="sdpa",
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        eos_token_id=shape.end, bos_token_id=None, pad_token_id=shape.end,
    )  # fmt: skip
    with torch.device("meta"):
        peer = transformers.LlamaForCausalLM(config)
    peer = peer.to_empty(device="cpu").to(model.dtype).eval()
    state = {
        "model.embed_tokens.weight": model.weights["token_embd.weight"],
        "model.norm.weight": model.weights["output_norm.weight"],
        "lm_head.weight": model.weights["token_embd.weight"],
    }
    for layer in range(shape.layers):
        for their, our in NAMES.items():
            weight = model.weights[f"blk.{layer}.{our}.weight"]
            if our in ("attn_q", "attn_k"):
                weight = weight.unflatten(0, (-1, shape.head_dim // 2, 2)).transpose(1, 2)
                weight = weight.reshape(-1, shape.width)
            state[f"model.layers.{layer}.{their}.weight"] = weight
    peer.load_state_dict(state, strict=True)
    half = torch.arange(0, shape.head_dim, 2).double() / shape.head_dim
    # the one buffer that no checkpoint holds, and that was made empty
    peer.model.rotary_emb.inv_freq = (shape.rope_base**-half).float()
    return peer
