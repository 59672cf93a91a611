"""The plain loop: what it writes, when it stops, and that requests do not disturb each other."""

from __future__ import annotations

import pytest
import torch

from pkg.algos.language_model import generate
from pkg.data.smollm2 import chat, smollm2
from tests.algos.language_model_cases import TOKENS, short_model


def test_greedily_it_writes_what_whole_passes_say():
    """Each token is the likeliest after a fresh pass over everything before it."""
    model, prompt = short_model(), TOKENS[:9]
    written = generate(model, prompt, max_tokens=6, temperature=0.0, stop=()).tokens[0]
    text = prompt
    for token in written.tolist():
        assert token == int(model(text).logits[-1].argmax())
        text = torch.cat((text, torch.tensor([token])))


def test_it_answers_a_question():
    model = smollm2()
    question = chat("What is the capital of France? Answer with one word.")
    written = generate(model, question, max_tokens=12, temperature=0.0).tokens[0]
    assert "Paris" in model.tokenizer.decode(written.tolist())


def seeds(*numbers):
    return [torch.Generator().manual_seed(n) for n in numbers]


def test_a_request_does_not_depend_on_its_neighbours():
    """In float64: the numbers drawn are the same, and the laws equal to 1e-9."""
    model, texts = short_model(), [TOKENS[:5], TOKENS[30:42], TOKENS[70:73]]
    options = {"max_tokens": 8, "temperature": 1.0, "top_p": 0.95, "stop": ()}
    together = generate(model, texts, generator=seeds(1, 2, 3), **options).tokens
    for row, text in enumerate(texts):
        alone = generate(model, text, generator=seeds(row + 1)[0], **options).tokens[0]
        assert alone.tolist() == together[row].tolist()
    other = generate(model, texts[0], generator=seeds(9)[0], **options).tokens[0]
    assert other.tolist() != together[0].tolist()


def test_one_stops_and_the_others_go_on():
    model, texts = short_model(), [TOKENS[:5], TOKENS[30:42]]
    free = generate(model, texts, max_tokens=7, temperature=0.0, stop=()).tokens
    end = int(free[0][2])
    where = [row.tolist().index(end) + 1 if end in row else 7 for row in free]
    streamed = [[], []]
    stopped = generate(
        model, texts, max_tokens=7, temperature=0.0, stop=(end,),
        on_token=lambda row, token: streamed[row].append(token),
    )  # fmt: skip
    for row in (0, 1):
        assert stopped.tokens[row].tolist() == free[row][: where[row]].tolist() == streamed[row]
    assert stopped.passes == max(where) - 1


def test_nothing_to_write_and_nobody_to_write_for(capfd):
    assert generate(short_model(), TOKENS[:3], max_tokens=0).tokens[0].tolist() == []
    assert generate(short_model(), [], max_tokens=3).tokens == ()
    generate(short_model(), TOKENS[:3], max_tokens=2, temperature=0.0, progress=True)
    assert "2/2" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "options", "error", "words"),
    [
        (torch.tensor([], dtype=torch.int64), {}, ValueError, "prompt 0 must have at least one"),
        ([[1], []], {}, ValueError, "prompt 1 must have at least one token"),
        (torch.tensor([1.0]), {}, TypeError, "prompt 0 must hold integers"),
        ([1, 2], {"max_tokens": -1}, ValueError, "max_tokens must be an integer of at least 0"),
        ([1, 2], {"max_tokens": 8191}, ValueError, "it leaves the context of 8192"),
        ([[1], [2]], {"generator": torch.Generator()}, ValueError, "one per request, 2 of them"),
        ([1], {"temperature": -0.5}, ValueError, "temperature must be finite"),
        ([1], {"top_k": 0}, ValueError, "top_k must be at least 1"),
    ],
)
def test_at_the_door(prompt, options, error, words):
    with pytest.raises(error, match=words):
        generate(short_model(), prompt, **{"max_tokens": 2, **options})
