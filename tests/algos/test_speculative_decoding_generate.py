"""The loop: the plain greedy text, the plain law, and statistics that count what happened."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2 as chi2_law
from scipy.stats import chisquare, ncx2

from pkg.algos.language_model import generate
from pkg.algos.speculative_decoding.drafters import EarlyExitDrafter, ModelDrafter
from pkg.algos.speculative_decoding.drafts import Draft, Options
from pkg.algos.speculative_decoding.generate import speculative_generate
from pkg.algos.speculative_decoding.lookup import PromptLookupDrafter, RetrievalDrafter
from pkg.data.smollm2 import chat, smollm2
from tests.algos.language_model_cases import TOKENS, bf16_model, short_model
from tests.algos.tiny_models import law_of_texts, tiny_model

TEXTS = [TOKENS[:9], TOKENS[30:35], TOKENS[60:90]]


def drafters(model):
    return {
        "model": ModelDrafter(model),
        "early exit": EarlyExitDrafter(model, 2),
        "lookup": PromptLookupDrafter(2, 1),
        "retrieval": RetrievalDrafter(TOKENS[:200], 3, 1),
    }


# ------------------------------------------------------------------ greedy


@pytest.fixture(scope="module")
def plain():
    return generate(short_model(), TEXTS, max_tokens=16, temperature=0.0, stop=()).tokens


@pytest.mark.parametrize("name", ["model", "early exit", "lookup", "retrieval"])
def test_greedily_it_is_the_plain_text(name, plain):
    """Token for token, in a batch of different lengths; float64 leaves no ties."""
    found = speculative_generate(
        short_model(), TEXTS, drafters(short_model())[name], gamma=3, temperature=0.0,
        max_tokens=16, stop=(),
    )  # fmt: skip
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in plain]


@pytest.mark.parametrize("gamma", [0, 1, 7, 40])
def test_greedily_with_any_gamma(gamma, plain):
    found = speculative_generate(
        short_model(), TEXTS, PromptLookupDrafter(), gamma=gamma, temperature=0.0, max_tokens=16,
        stop=(),
    )  # fmt: skip
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in plain]
    assert found.tested.shape == (gamma,)


def test_the_real_model_in_single_precision_writes_the_same():
    """30 layers in float32: the two largest logits are rarely as near as 1e-3."""
    prompt = chat("Repeat three times: the quick brown fox jumps over the lazy dog.")
    usual = generate(smollm2(), prompt, max_tokens=24, temperature=0.0).tokens[0]
    found = speculative_generate(
        smollm2(), prompt, PromptLookupDrafter(), gamma=6, temperature=0.0, max_tokens=24
    )
    assert found.tokens[0].tolist() == usual.tolist()
    assert found.tokens_per_step > 1.5


def test_where_half_precision_parts_the_two_logits_are_a_tie():
    """bfloat16: a block of tokens adds up in another order than one token does.

    The two texts may part where the two largest logits are nearer than the roundings; there, and
    only there. A logit is rounded to 2^-9 of its size, and the layers before it err by a few such
    steps: 16 of them are allowed.
    """
    model, prompt = bf16_model(), smollm2().encode(chat("Write a short poem about the sea."))
    usual = generate(model, prompt, max_tokens=20, temperature=0.0).tokens[0]
    found = speculative_generate(
        model, prompt, PromptLookupDrafter(2, 1), gamma=4, temperature=0.0, max_tokens=20
    ).tokens[0]
    same = next((i for i, (a, b) in enumerate(zip(usual, found, strict=False)) if a != b), None)
    single, block = [], []
    for width, rows in ((1, single), (5, block)):
        cache = model.new_cache(1, len(prompt) + 40)
        model(prompt[None], cache=cache)
        for part in usual[:18].split(width):
            rows.append(model(part[None], cache=cache).logits[0].float())
    one, many = torch.cat(single), torch.cat(block)
    step = 2.0**-9 * float(one.abs().max())
    assert 0 < float((one - many).abs().max()) <= 16 * step
    if same is not None and same > 0:
        gap = one[same - 1, int(usual[same])] - one[same - 1, int(found[same])]
        assert float(gap.abs()) <= 2 * 16 * step
    ties = (one.argmax(-1) != many.argmax(-1)).nonzero()[:, 0]
    top = one.topk(2).values
    assert bool((top[ties, 0] - top[ties, 1] <= 2 * 16 * step).all())


# ------------------------------------------------------------------ the law


class Fixed:
    """Always proposes the same tokens: nothing is drawn."""

    def start(self, requests, vocabulary):
        pass

    def select(self, rows):
        pass

    def propose(self, texts, gamma, options, uniforms):
        tokens = torch.tensor([0, 3, 1])[:gamma].expand(len(texts), -1)
        lengths = torch.tensor([len(t) % (gamma + 1) for t in texts])  # of every length
        return Draft(tokens, lengths)


PROMPT = torch.tensor([1, 4])
COUNT = 6000
STORE = torch.randint(5, (80,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", ["token", "block"])
@pytest.mark.parametrize("name", ["model", "fixed", "retrieval"])
@pytest.mark.parametrize("options", [Options(), Options(0.7, top_k=3), Options(1.5, top_p=0.7)])
def test_the_law_of_the_text_is_the_plain_one(name, method, options):
    """6,000 texts of three tokens against the exact law, at significance 1e-3, with a fixed seed."""
    model = tiny_model()
    drafter = {"model": ModelDrafter(tiny_model(seed=5)), "fixed": Fixed(),
               "retrieval": RetrievalDrafter(STORE, 2, 1)}[name]  # fmt: skip
    torch.manual_seed(11)
    found = speculative_generate(
        model, [PROMPT] * COUNT, drafter, gamma=2, temperature=options.temperature,
        top_k=options.top_k, top_p=options.top_p, max_tokens=3, method=method,
    )  # fmt: skip
    statistic, degrees = fit(found.tokens, law_of_texts(model, PROMPT, 3, options))
    assert chi2_law.sf(statistic, degrees) > 1e-3
    assert found.steps < 3 * COUNT  # it did speculate


def fit(texts, law):
    """Return the chi-square statistic and its degrees of freedom; rare texts are put together."""
    counts = dict.fromkeys(law, 0)
    for text in texts:
        counts[tuple(text.tolist())] += 1
    assert all(not count or law[text] > 0 for text, count in counts.items())
    common = [text for text in law if law[text] * len(texts) >= 5]
    expected = np.array([law[t] for t in common] + [max(1e-12, 1 - sum(law[t] for t in common))])
    observed = np.array([counts[t] for t in common])
    observed = np.append(observed, len(texts) - observed.sum())
    keep = expected * len(texts) >= 1
    assert observed[~keep].sum() <= 12  # at most one expected: more than 12 has chance 1e-10
    scaled = expected[keep] / expected[keep].sum() * observed[keep].sum()
    return float(chisquare(observed[keep], scaled).statistic), int(keep.sum()) - 1


def test_the_test_of_the_law_would_find_a_wrong_verification(monkeypatch):
    """A published mistake, resampling from p and not from the residual, is found; and so, by the
    power of the test, is any law whose chi-square distance from ours is above 0.02.
    """
    from pkg.algos.language_model import sample
    from pkg.algos.speculative_decoding import generate as loop
    from pkg.algos.speculative_decoding.result import VerifyResult

    def wrong(tokens, draft_probs, target_probs, *, uniforms, **rest):
        right = verify(tokens, draft_probs, target_probs, uniforms=uniforms, **rest)
        rows = torch.arange(len(tokens))
        again = sample(target_probs[rows, right.num_accepted], uniforms[:, -1])
        out = right.tokens.clone()
        out[rows, right.num_accepted] = again
        return VerifyResult(out, right.num_accepted)

    verify = loop.verify_chain
    monkeypatch.setattr(loop, "verify_chain", wrong)
    model = tiny_model()
    torch.manual_seed(11)
    found = speculative_generate(model, [PROMPT] * COUNT, ModelDrafter(tiny_model(seed=5)), gamma=2,
                                 max_tokens=3)  # fmt: skip
    statistic, degrees = fit(found.tokens, law_of_texts(model, PROMPT, 3, Options()))
    threshold = chi2_law.isf(1e-3, degrees)
    assert statistic > 2 * threshold
    assert ncx2.sf(threshold, degrees, 0.02 * COUNT) > 0.95


def test_the_law_of_the_real_model():
    """The real weights, first layers: 400 pairs of tokens at top_k = 3, at significance 1e-3."""
    model, prompt, options = short_model(torch.float32), TOKENS[:8], Options(1.0, top_k=3)
    first = options.law(model(prompt).logits[-1])
    law = {}
    for a in first.nonzero()[:, 0].tolist():
        second = options.law(model(torch.cat((prompt, torch.tensor([a])))).logits[-1])
        law |= {(a, b): float(first[a] * second[b]) for b in second.nonzero()[:, 0].tolist()}
    torch.manual_seed(4)
    found = speculative_generate(
        model, [prompt] * 400, EarlyExitDrafter(model, 3), gamma=2, top_k=3, max_tokens=2
    )
    statistic, degrees = fit(found.tokens, law)
    assert chi2_law.sf(statistic, degrees) > 1e-3
    # any law at chi-square distance 0.1 from ours would be found with this probability
    assert ncx2.sf(chi2_law.isf(1e-3, degrees), degrees, 0.1 * 400) > 0.9


def seeds(*numbers):
    return [torch.Generator().manual_seed(n) for n in numbers]


@pytest.mark.parametrize("name", ["early exit", "lookup"])
def test_a_request_does_not_depend_on_its_neighbours(name):
    options = {"gamma": 3, "max_tokens": 10, "top_p": 0.95, "stop": ()}
    together = speculative_generate(
        short_model(), TEXTS, drafters(short_model())[name], generator=seeds(1, 2, 3), **options
    )
    alone = speculative_generate(
        short_model(), TEXTS[1], drafters(short_model())[name], generator=seeds(2)[0], **options
    )
    assert alone.tokens[0].tolist() == together.tokens[1].tolist()


# ------------------------------------------------------------------ what is counted


def test_a_model_that_agrees_with_itself_is_always_accepted():
    model = tiny_model()
    found = speculative_generate(
        model, PROMPT, ModelDrafter(model), gamma=3, max_tokens=12, stop=()
    )
    assert found.acceptance.tolist() == [1, 1, 1]
    assert found.rate == 1
    assert (found.steps, found.passes, found.tokens_per_step) == (3, 3, 4)
    assert set(found.seconds) == {"read", "draft", "model", "verify"}
    assert found.tokens_per_second > 0


def test_the_counts_add_up():
    """Each step gives its accepted tokens and one more; a token is tested if those before it pass."""
    found = speculative_generate(
        short_model(), TEXTS, drafters(short_model())["early exit"], gamma=3, temperature=0.0,
        max_tokens=10, stop=(),
    )  # fmt: skip
    assert sum(map(len, found.tokens)) == int(found.accepted.sum()) + found.steps
    assert bool((found.tested[1:] <= found.accepted[:-1]).all())
    assert bool((found.accepted <= found.tested).all())
    nothing = speculative_generate(short_model(), TEXTS[0], Nothing(), gamma=3, max_tokens=2)
    assert np.isnan(nothing.rate)
    assert nothing.steps == 2
    wrong = speculative_generate(
        short_model(), TEXTS[0], Wrong(), gamma=3, temperature=0.0, max_tokens=6, stop=()
    )
    # The first of each draft was looked at and refused; the last step had no room for a draft.
    assert (wrong.tested.tolist(), wrong.accepted.tolist()) == ([5, 0, 0], [0, 0, 0])
    assert (wrong.steps, wrong.rate) == (6, 0.0)


class Wrong:
    """Always drafts a token that the greedy text does not have."""

    def start(self, requests, vocabulary):
        text = generate(short_model(), TEXTS[0], max_tokens=6, temperature=0.0, stop=()).tokens[0]
        self.token = next(i for i in range(vocabulary) if i not in text.tolist())

    def select(self, rows):
        pass

    def propose(self, texts, gamma, options, uniforms):
        size = len(texts), gamma
        return Draft(torch.full(size, self.token), torch.full((len(texts),), gamma))


class Nothing(Fixed):
    def propose(self, texts, gamma, options, uniforms):
        return Draft(
            torch.full((len(texts), gamma), -1), torch.zeros(len(texts), dtype=torch.int64)
        )


def test_it_stops_at_the_stop_token_and_streams_in_order(plain):
    end = int(plain[0][5])
    where = [row.tolist().index(end) + 1 if end in row else 16 for row in plain]
    streamed = [[] for _ in TEXTS]
    found = speculative_generate(
        short_model(), TEXTS, ModelDrafter(short_model()), gamma=4, temperature=0.0, max_tokens=16,
        stop=(end,), on_token=lambda row, token: streamed[row].append(token),
    )  # fmt: skip
    for row in range(3):
        expected = plain[row][: where[row]].tolist()
        assert found.tokens[row].tolist() == streamed[row] == expected


def test_one_token_of_prompt_none_to_write_none_to_write_for(capfd):
    model = tiny_model()
    options = {"gamma": 2, "temperature": 0.0, "stop": ()}
    for prompts in ([torch.tensor([3])], [torch.tensor([3]), torch.tensor([1, 2, 3])]):
        usual = generate(model, prompts, max_tokens=5, temperature=0.0, stop=()).tokens
        found = speculative_generate(
            model, prompts, ModelDrafter(tiny_model(1)), max_tokens=5, **options
        )
        assert [r.tolist() for r in found.tokens] == [r.tolist() for r in usual]
    empty = speculative_generate(model, PROMPT, Fixed(), max_tokens=0, **options)
    assert (empty.tokens[0].tolist(), empty.steps, empty.tokens_per_step) == ([], 0, 0)
    assert speculative_generate(model, [], Fixed(), max_tokens=4, **options).tokens == ()
    speculative_generate(model, PROMPT, Fixed(), max_tokens=4, progress=True, **options)
    assert "4/4" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"gamma": -1}, ValueError, "gamma must be at least 0, got -1"),
        ({"gamma": 2.0}, TypeError, "gamma must be an int, got 2.0"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite"),
        ({"max_tokens": 100}, ValueError, "it leaves the context of 64"),
        ({"generator": seeds(1, 2)}, ValueError, "one per request, 1 of them, got 2"),
        ({"method": "hope"}, ValueError, "method must be"),
        ({"drafter": ModelDrafter(tiny_model(vocabulary=6))}, ValueError, "vocabulary of 5, got 6"),
    ],
)
def test_at_the_door(options, error, words):
    given = {"drafter": Fixed(), "gamma": 2, "max_tokens": 4, **options}
    with pytest.raises(error, match=words):
        speculative_generate(tiny_model(), PROMPT, given.pop("drafter"), **given)
