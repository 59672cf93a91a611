"""The decoder beside transformers' Llama with the same weights."""

from __future__ import annotations

import pytest
import torch

from benchmarks.language_model_peer import transformers_llama
from pkg.data.smollm2 import smollm2
from tests.algos.language_model_cases import TOKENS, short_model

pytest.importorskip("transformers")


@torch.no_grad()
def test_the_same_logits_as_transformers():
    """Our error against float64 is at most twice theirs, over the whole model."""
    model, tokens = smollm2(), TOKENS[:48]
    exact = model.to(torch.float64)(tokens).logits
    ours = float((model(tokens).logits - exact).abs().max())
    peer = float((transformers_llama(model)(tokens[None]).logits[0] - exact).abs().max())
    assert 0 < ours <= 2 * peer
    assert peer < 1e-2  # of logits that spread over tens: it is the same function


@torch.no_grad()
def test_the_same_hidden_states_in_double_precision():
    """In float64 nothing but their float32 angles, of relative error 2^-24, tells the two apart."""
    model, tokens = short_model(), torch.stack((TOKENS[:16], TOKENS[40:56]))
    peer = transformers_llama(model)(tokens, output_hidden_states=True)
    ours = model(tokens)
    # 16 positions: an angle errs by 16 · 2^-24, and the logits by some ten times as much
    torch.testing.assert_close(ours.logits, peer.logits, rtol=0, atol=1e-4)
    last = model(tokens, layers=3).hidden
    torch.testing.assert_close(last, peer.hidden_states[3], rtol=1e-5, atol=1e-4)
