"""The language model: it speaks, it does not look ahead, and its hooks see what it computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pkg.algos.language_model import LanguageModel
from pkg.data import play
from pkg.data.smollm2 import chat, smollm2

MODEL = smollm2()
SPEECH = play("hamlet")[1000:3000]


def test_it_writes_sense():
    tokens = MODEL.encode("The capital of Italy is")
    assert MODEL.tokenizer.decode([int(MODEL(tokens).logits[-1].argmax())]) == " Rome"


def test_text_survives_the_tokenizer():
    for text in (SPEECH, "2026 → 3.14, déjà vu\n\n  x"):
        assert MODEL.tokenizer.decode(MODEL.encode(text).tolist()) == text


def test_it_predicts_a_play_far_better_than_chance():
    """A wrong rotation, norm or transposed weight leaves it near ln(49152) = 10.8 nats."""
    tokens = MODEL.encode(SPEECH)
    loss = F.cross_entropy(MODEL(tokens).logits[:-1], tokens[1:])
    assert 1.0 < float(loss) < 4.5


def test_it_does_not_look_ahead():
    tokens = MODEL.encode(SPEECH)[:40]
    whole, part = MODEL(tokens).logits, MODEL(tokens[:17]).logits
    # Products of other shapes add up in another order: float32 over 30 layers.
    torch.testing.assert_close(whole[:17], part, rtol=1e-3, atol=1e-3)


def test_the_hook_sees_every_step_and_may_change_it():
    seen = {}
    tokens = MODEL.encode("To be, or not to be")

    def keep(name, x):
        seen[name] = x.clone()

    logits, _ = MODEL(tokens, observe=keep)
    assert torch.equal(seen["logits"], logits)
    assert len(seen) == 7 * 30 + 3
    assert seen["4.query"].shape == (1, 9, len(tokens), 64)
    assert seen["4.key"].shape == seen["4.value"].shape == (1, 3, len(tokens), 64)
    assert torch.equal(MODEL.hidden(tokens, layers=5), seen["4.residual"])
    silent, _ = MODEL(tokens, observe=lambda name, x: x * 0 if name == "29.residual" else None)
    assert bool((silent == 0).all())


def test_queries_and_keys_meet_at_their_distance():
    """Turned by position, the same query and key give a score that depends on the distance alone."""
    first = MODEL.weights["token_embd.weight"][:1]
    same = LanguageModel(
        {**MODEL.weights, "token_embd.weight": first.expand(12, -1)}, MODEL.shape, None
    )
    found = {}
    same(torch.arange(12), observe=found.__setitem__, layers=1)
    q, k = found["0.query"][0, 0], found["0.key"][0, 0]
    scores = q @ k.T
    for distance in range(8):
        line = scores.diagonal(-distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-3)


def test_another_attention_can_be_put_in():
    called = []

    def attend(q, k, v):
        called.append((q.shape[1], k.shape[1]))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    tokens = MODEL.encode("Words, words, words.")
    assert torch.equal(MODEL(tokens, attend=attend).logits, MODEL(tokens).logits)
    assert called == [(9, 3)] * 30


def test_a_question_is_asked_as_the_file_says():
    """The template in the weights' own file, filled in by hand."""
    said = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>"
    assert chat("Why?", "Be brief.") == said + "assistant\n"
    ids = MODEL.encode(chat("Why?")).tolist()
    assert ids.count(MODEL.tokenizer.token_to_id("<|im_start|>")) == 3
    assert ids.count(MODEL.shape.end) == 2


def test_a_play_that_is_not_there():
    with pytest.raises(ValueError, match=r"name must be one of hamlet, lear.*got 'cats'"):
        play("cats")
