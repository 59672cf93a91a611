"""The drafters, each by itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pkg.algos.speculative_decoding.drafters import DistilledDrafter, EarlyExitDrafter, ModelDrafter
from pkg.algos.speculative_decoding.drafts import Options
from pkg.algos.speculative_decoding.lookup import PromptLookupDrafter, RetrievalDrafter
from tests.algos.language_model_cases import TOKENS, short_model
from tests.algos.tiny_models import tiny_model

GREEDY = Options(temperature=0.0)
TEXT = st.lists(st.integers(0, 3), min_size=1, max_size=30)


def propose(drafter, texts, gamma, options=GREEDY, seed=0):
    numbers = torch.rand(len(texts), gamma, generator=torch.Generator().manual_seed(seed))
    return drafter.propose([torch.as_tensor(t) for t in texts], gamma, options, numbers)


# ------------------------------------------------------------------ copies


def copied(text, gamma, longest, shortest):
    """By the definition: the longest n, the latest place, and a copy that may overlap itself."""
    for n in range(longest, shortest - 1, -1):
        for first in range(len(text) - 1, n - 1, -1):
            if len(text) > n and text[first - n : first] == text[len(text) - n :]:
                known = list(text)
                for i in range(gamma):
                    known.append(known[first + i])
                return known[len(text) :]
    return []


@given(TEXT, st.integers(0, 6), st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None, max_examples=300)
def test_the_copy_is_that_of_the_definition(text, gamma, one, two):
    longest, shortest = max(one, two), min(one, two)
    draft = propose(PromptLookupDrafter(longest, shortest), [text], gamma)
    expected = copied(text, gamma, longest, shortest)
    assert draft.tokens[0, : int(draft.lengths[0])].tolist() == expected
    assert draft.probs is None
    assert bool((draft.tokens[0, int(draft.lengths[0]) :] == -1).all())


@given(TEXT.filter(lambda t: len(t) > 2), TEXT, st.integers(1, 4))
@settings(deadline=None, max_examples=300)
def test_the_store_is_searched_as_by_hand(store, text, gamma):
    """The first proposed token is one that follows the most agreeing places most often."""
    draft = propose(RetrievalDrafter(torch.tensor(store), 4, 1), [text], gamma)
    best, votes = 0, []
    for i in range(1, len(store) + 1):
        agree = 0
        while agree < min(4, i, len(text)) and store[i - 1 - agree] == text[-1 - agree]:
            agree += 1
        if agree and agree >= best:
            votes = votes if agree == best else []
            best = agree
            votes += store[i : i + 1]
    if not votes:
        assert int(draft.lengths[0]) == 0
    else:
        counts = np.bincount(votes)
        assert counts[int(draft.tokens[0, 0])] == counts.max()


def test_a_store_of_the_text_itself_gives_the_text():
    store = TOKENS[:200]
    draft = propose(RetrievalDrafter(store), [store[40:60].tolist(), [49000, 49001]], 7)
    assert draft.tokens[0].tolist() == store[60:67].tolist()
    assert draft.lengths.tolist() == [7, 0]


# ------------------------------------------------------------------ models


def test_a_model_proposes_its_own_likeliest_tokens():
    """After texts that go on as proposed, part of it, or otherwise; and after a text has left."""
    model, other = short_model(), torch.tensor([7, 8])
    drafter = ModelDrafter(model)
    texts = [TOKENS[:6], TOKENS[30:40], TOKENS[50:53]]
    drafter.start(3, model.shape.vocabulary)
    for turn in range(3):
        draft = propose(drafter, texts, 3)
        for text, tokens in zip(texts, draft.tokens, strict=True):
            for token in tokens.tolist():
                assert token == int(model(text).logits[-1].argmax())
                text = torch.cat((text, torch.tensor([token])))
        kept = (3, 0, 1) if turn else (1, 2, 3)
        texts = [
            torch.cat((t, row[:n], other)) for t, row, n in
            zip(texts, draft.tokens, kept, strict=False)
        ]  # fmt: skip
        if turn == 1:
            drafter.select([2, 0])
            texts = [texts[2], texts[0]]


@pytest.mark.parametrize("options", [Options(), Options(0.7, top_k=3), Options(1.3, top_p=0.6)])
def test_the_law_that_goes_along_is_the_one_drawn_from(options):
    """With temperature and filters: recomputed by whole passes, token by token."""
    model = tiny_model(seed=2)
    drafter = ModelDrafter(model)
    drafter.start(2, 5)
    texts = [torch.tensor([1, 2, 0]), torch.tensor([4])]
    draft = propose(drafter, texts, 3, options)
    for text, tokens, laws in zip(texts, draft.tokens, draft.probs, strict=True):
        for token, law in zip(tokens.tolist(), laws, strict=True):
            expected = options.law(model(text).logits[-1])
            torch.testing.assert_close(law, expected, rtol=0, atol=1e-12)  # float64, few sums
            assert law[token] > 0
            text = torch.cat((text, torch.tensor([token])))


def test_the_first_layers_are_the_large_model_left_early():
    model = short_model()
    drafter = EarlyExitDrafter(model, 2)
    drafter.start(1, model.shape.vocabulary)
    first = int(propose(drafter, [TOKENS[:9]], 1).tokens[0, 0])
    assert first == int(model(TOKENS[:9], layers=2).logits[-1].argmax())


def test_a_text_may_be_asked_for_twice():
    """Then all of it was read already, and its last token must be read again."""
    drafter = ModelDrafter(short_model())
    drafter.start(2, short_model().shape.vocabulary)
    texts = [TOKENS[:9], TOKENS[30:35]]
    first = propose(drafter, texts, 3)
    assert torch.equal(propose(drafter, texts, 3).tokens, first.tokens)
    longer = [torch.cat((text, row[:2])) for text, row in zip(texts, first.tokens, strict=True)]
    again = propose(drafter, longer, 1)
    assert torch.equal(again.tokens[:, 0], first.tokens[:, 2])


def test_one_word_alone_is_no_reason_to_copy():
    for drafter in (PromptLookupDrafter(), RetrievalDrafter(torch.tensor([1, 7, 8, 9]))):
        assert propose(drafter, [torch.tensor([1, 2, 3, 1])], 4).lengths.tolist() == [0]


# ------------------------------------------------------------------ the student


@pytest.fixture(scope="module")
def student():
    from book.recordings import speculative_decoding_drafter as recording
    from pkg.data.smollm2 import smollm2

    return DistilledDrafter(smollm2(), recording.HERE / "speculative_decoding_drafter.npz")


def test_the_student_was_made_by_this_code():
    from book.recordings import speculative_decoding_drafter as recording
    from book.recordings.origin import fingerprint

    record = json.loads((recording.HERE / "speculative_decoding_drafter.json").read_text("utf-8"))
    assert record["code"] == fingerprint(recording.CODE), (
        "the code behind the recorded drafter has changed: run "
        "`python -m book.recordings.speculative_decoding_drafter`, then the measurements again"
    )
    path = recording.HERE / "speculative_decoding_drafter.npz"
    assert path.stat().st_size < 3_000_000
    with np.load(path) as stored:
        sizes = [stored[n].size for n in stored if n not in ("shortlist", "answers")]
        assert sum(sizes) == record["weights"]
        assert len(stored["answers"]) == record["tokens"]


def test_the_student_guesses_far_better_than_chance(student):
    """On an answer of its teacher to a question that it was not trained on."""
    from pkg.algos.language_model import generate
    from pkg.data.smollm2 import chat, smollm2

    question = chat("How do airplanes fly?")
    prompt = smollm2().encode(question)
    answer = generate(smollm2(), question, max_tokens=40, temperature=0.0).tokens[0]
    student.start(1, 49152)
    right = 0
    for i in range(len(answer)):
        text = torch.cat((prompt, answer[:i]))
        right += int(propose(student, [text], 1).tokens[0, 0]) == int(answer[i])
    # always the commonest token would be right 3 times in 40
    assert right >= 6


def test_the_student_gives_probability_to_its_shortlist_alone(student):
    student.start(1, 49152)
    law = propose(student, [TOKENS[:20]], 2, Options()).probs
    assert law.shape == (1, 2, 49152)
    torch.testing.assert_close(law.sum(-1), torch.ones(1, 2))
    outside = torch.ones(49152, dtype=torch.bool)
    outside[student.shortlist] = False
    assert not bool(law[..., outside].any())
    assert int((law > 0).sum(-1).min()) == len(student.shortlist)


def test_a_student_of_another_teacher_is_refused(student):
    from book.recordings import speculative_decoding_drafter as recording

    with pytest.raises(ValueError, match="a student of a teacher of width 8, got 576"):
        DistilledDrafter(tiny_model(), recording.HERE / "speculative_decoding_drafter.npz")


def test_a_student_begins_with_the_main_directions_and_weights_of_the_usual_size():
    from pkg.algos.speculative_decoding.student import (
        GATED,
        HEADS,
        KV_HEADS,
        LAYERS,
        WIDTH,
        initial_weights,
        student_model,
        student_shape,
    )  # fmt: skip

    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(700, 256, generator=generator) * torch.linspace(0.1, 3, 256)
    teacher = tiny_model()
    teacher.weights = {**teacher.weights, "token_embd.weight": rows}
    shortlist = torch.arange(0, 700, 2)
    own = initial_weights(teacher, shortlist, generator)
    # The embedding: orthogonal rows, along the directions in which the shortlist varies most.
    gram = own["shrink"] @ own["shrink"].T
    scale = float(gram.diagonal().mean())
    torch.testing.assert_close(gram / scale, torch.eye(WIDTH), rtol=0, atol=1e-4)
    chosen = rows[shortlist]
    kept = (chosen @ own["shrink"].T).square().sum() / scale
    main = torch.linalg.eigvalsh(chosen.T @ chosen)[-WIDTH:].sum()
    torch.testing.assert_close(kept, main, rtol=1e-3, atol=0)
    # An embedded token has mean square 1 (as a norm: the root of the width), and so has a logit's row.
    assert float((chosen @ own["shrink"].T).norm(dim=1).mean()) == pytest.approx(
        WIDTH**0.5, rel=1e-3
    )
    torch.testing.assert_close(own["read"], own["shrink"] / WIDTH**0.5)
    late = (2 * LAYERS) ** -0.5  # what adds to the residual stream, once or twice a layer
    expected = {
        "attn_q": (WIDTH, WIDTH, 1), "attn_k": (WIDTH // HEADS * KV_HEADS, WIDTH, 1),
        "attn_v": (WIDTH // HEADS * KV_HEADS, WIDTH, 1), "attn_output": (WIDTH, WIDTH, late),
        "ffn_gate": (GATED, WIDTH, 1), "ffn_up": (GATED, WIDTH, 1), "ffn_down": (WIDTH, GATED, late),
    }  # fmt: skip
    for layer in range(LAYERS):
        for name, (out, into, size) in expected.items():
            weight = own[f"blk.{layer}.{name}.weight"]
            assert weight.shape == (out, into)
            # 12,000 numbers or more: their deviation is known to within 2 % (three of its errors).
            assert float(weight.std()) == pytest.approx(size / into**0.5, rel=0.02)
            assert abs(float(weight.mean())) < 5 * float(weight.std()) / (out * into) ** 0.5
        for name in ("attn_norm", "ffn_norm"):
            assert torch.equal(own[f"blk.{layer}.{name}.weight"], torch.ones(WIDTH))
    assert torch.equal(own["output_norm.weight"], torch.ones(WIDTH))
    assert len(own) == 3 + LAYERS * 9
    shape = student_shape(teacher.shape)
    assert (shape.layers, shape.width, shape.heads, shape.kv_heads) == (2, 192, 3, 1)
    # Training embeds the used tokens alone, numbered from 0.
    whole = student_model(teacher, own, shortlist)
    part = student_model(teacher, own, shortlist, used=torch.tensor([9, 4]))
    table = whole.weights["token_embd.weight"]
    torch.testing.assert_close(table, rows @ own["shrink"].T)
    torch.testing.assert_close(part.weights["token_embd.weight"], table[[9, 4]])
    torch.testing.assert_close(part.weights["output.weight"], chosen @ own["read"].T)


# ------------------------------------------------------------------ the door


def test_at_the_door():
    for sizes, error, words in (
        ((2, 3), ValueError, "max_ngram must be at least 3, got 2"),
        ((2, 0), ValueError, "min_ngram must be at least 1, got 0"),
        ((2.5, 1), TypeError, "max_ngram must be an int, got 2.5"),
    ):
        with pytest.raises(error, match=words):
            PromptLookupDrafter(*sizes)
        with pytest.raises(error, match=words):
            RetrievalDrafter(TOKENS[:5], *sizes)
    with pytest.raises(TypeError, match="store must be an integer tensor, got list"):
        RetrievalDrafter([1, 2])
    with pytest.raises(ValueError, match=r"store must have shape \(tokens,\)"):
        RetrievalDrafter(TOKENS[:0])
    with pytest.raises(ValueError, match="store must hold ids from 0 to 4"):
        RetrievalDrafter(torch.tensor([1, 5])).start(1, 5)
    with pytest.raises(ValueError, match="the model's vocabulary of 6, got 5"):
        ModelDrafter(tiny_model()).start(1, 6)
    for layers in (0, 5, 1.0):
        with pytest.raises(ValueError, match="layers must be"):
            EarlyExitDrafter(short_model(), layers)
