"""The decoder beside transformers' Llama with the same weights."""

from __future__ import annotations

import pytest
import torch

from pkg.data.smollm2 import smollm2
from tests.algos.language_model_cases import TOKENS, short_model

transformers = pytest.importorskip("transformers")


def theirs(model):
    """Return transformers' Llama with our weights.

    It turns entry i with entry i + d / 2 where ours turns neighbours, so the rows of q and k are put
    in its order.
    """
    shape = model.shape
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=1536,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps, tie_word_embeddings=True, attn_implementation="sdpa",
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
    )  # fmt: skip
    with torch.device("meta"):
        peer = transformers.LlamaForCausalLM(config)
    peer = peer.to_empty(device="cpu").to(model.dtype).eval()
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    state = {
        "model.embed_tokens.weight": model.weights["token_embd.weight"],
        "model.norm.weight": model.weights["output_norm.weight"],
        "lm_head.weight": model.weights["token_embd.weight"],
    }
    for layer in range(shape.layers):
        for their, our in names.items():
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


@torch.no_grad()
def test_the_same_logits_as_transformers():
    """Our error against float64 is at most twice theirs, over the whole model."""
    model, tokens = smollm2(), TOKENS[:48]
    exact = model.to(torch.float64)(tokens).logits
    ours = float((model(tokens).logits - exact).abs().max())
    peer = float((theirs(model)(tokens[None]).logits[0] - exact).abs().max())
    assert 0 < ours <= 2 * peer
    assert peer < 1e-2  # of logits that spread over tens: it is the same function


@torch.no_grad()
def test_the_same_hidden_states_in_double_precision():
    """In float64 nothing but their float32 angles, of relative error 2^-24, tells the two apart."""
    model, tokens = short_model(), torch.stack((TOKENS[:16], TOKENS[40:56]))
    peer = theirs(model)(tokens, output_hidden_states=True)
    ours = model(tokens)
    # 16 positions: an angle errs by 16 · 2^-24, and the logits by some ten times as much
    torch.testing.assert_close(ours.logits, peer.logits, rtol=0, atol=1e-4)
    last = model(tokens, layers=3).hidden
    torch.testing.assert_close(last, peer.hidden_states[3], rtol=1e-5, atol=1e-4)
