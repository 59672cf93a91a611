"""Verification against gpt-fast's way and transformers'; decoding with and without speculation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Case, each, measure
from pkg.algos.language_model import generate
from pkg.algos.speculative_decoding import (
    PromptLookupDrafter,
    speculative_generate,
    verify_chain,
    verify_chain_logits,
)

#: Batch, draft tokens, vocabulary: SmolLM2's, alone and in a batch, and Llama 3's.
SHAPES = ((1, 4, 49152), (8, 4, 49152), (8, 8, 49152), (32, 4, 49152), (8, 4, 128256))
#: What is decoded: text that repeats, and text that does not, where speculation has little to gain.
TEXTS = {
    "text that repeats": "Copy this text word for word: Lighthouses once stood watch on every dangerous "
    "coast. Their keepers lit oil lamps at dusk, trimmed the wicks through the night, and polished the "
    "great lenses by day. In the twentieth century electric lamps and automatic switches took over the "
    "work, one tower after another, and the keepers went ashore.",
    "a poem": "Write a short poem about a lighthouse in winter.",
}
TOKENS, GAMMA, AGREE = 64, 8, 16


@dataclass(frozen=True)
class Batch:
    """Drafts and the logits of both models, which differ as a good small model's do."""

    tokens: Tensor
    draft_logits: Tensor
    target_logits: Tensor
    uniforms: Tensor

    @property
    def laws(self) -> tuple[Tensor, Tensor]:
        """The probabilities of the draft and the target."""
        return self.draft_logits.softmax(-1), self.target_logits.softmax(-1)


def draw(shape: tuple[int, int, int], device: str) -> Batch:
    """Return a batch of which about three drafts in four are accepted."""
    batch, gamma, vocabulary = shape
    g = torch.Generator().manual_seed(0)
    target = 3 * torch.randn(batch, gamma + 1, vocabulary, generator=g)
    draft = target[:, :gamma] + 0.6 * torch.randn(batch, gamma, vocabulary, generator=g)
    flat = draft.softmax(-1).reshape(-1, vocabulary)
    tokens = torch.multinomial(flat, 1, generator=g).view(batch, gamma)
    uniforms = torch.rand(batch, gamma + 1, generator=g, dtype=torch.float64)
    return Batch(*(x.to(device) for x in (tokens, draft, target, uniforms)))


def gpt_fast_way(tokens: Tensor, q: Tensor, p: Tensor, uniforms: Tensor) -> Tensor:
    """Row by row: ratios, the place of the first rejection, residual, an exponential race."""
    gamma = tokens.shape[1]
    out = tokens.new_full((len(tokens), gamma + 1), -1)
    order = torch.arange(gamma, device=tokens.device)
    for row, drafted in enumerate(tokens):
        ratio = (p[row, order, drafted] / q[row, order, drafted]).clamp(max=1.0)
        rejected = (uniforms[row, :gamma] >= ratio).nonzero()
        stop = int(rejected[0]) if len(rejected) else gamma
        law = p[row, stop]
        if stop < gamma:
            rest = law - q[row, stop]
            rest = torch.where(rest > 0, rest, 0.0)
            law = rest / rest.sum()
        out[row, :stop] = drafted[:stop]
        out[row, stop] = (law / torch.empty_like(law).exponential_(1)).argmax()
    return out


def transformers_way(batch: Batch) -> Tensor:
    """Transformers' verifier, which takes one row at a time and draws its own numbers."""
    from transformers.generation.utils import _speculative_sampling

    gamma = batch.tokens.shape[1]
    out = batch.tokens.new_full((len(batch.tokens), gamma + 1), -1)
    for row in range(len(out)):
        one = slice(row, row + 1)
        found, _ = _speculative_sampling(
            batch.tokens[one], batch.draft_logits[one], gamma, batch.target_logits[one]
        )
        out[row, : found.shape[1]] = found[0]
    return out


def plausible(batch: Batch, same_numbers: bool, ours: Tensor, theirs: Tensor) -> bool:
    """Tell whether a contender's tokens can come from a right verification.

    Drafts stand in front; with the same numbers as ours just as many; and the last token is one that
    the residual allows. It is drawn in different ways, so it need not be the same.
    """
    q, p = batch.laws
    counts = (theirs >= 0).sum(1) - 1
    if same_numbers and not torch.equal(counts, (ours >= 0).sum(1) - 1):
        return False
    for row, count in enumerate(counts.tolist()):
        last = theirs[row, count]
        rest = p[row, count, last] - (q[row, count, last] if count < q.shape[1] else 0.0)
        if not torch.equal(theirs[row, :count], batch.tokens[row, :count]) or not rest > -1e-7:
            return False
    return True


def verifiers(batch: Batch) -> tuple[dict[str, Callable[[], Any]], dict[str, Callable[[], Any]]]:
    """Return the contenders from probabilities, and those from logits; ours first."""
    q, p = batch.laws
    numbers = batch.uniforms

    def ours(**options: Any) -> Tensor:
        return verify_chain(batch.tokens, q, p, uniforms=numbers, **options).tokens

    def from_logits() -> Tensor:
        return verify_chain_logits(
            batch.tokens, batch.draft_logits, batch.target_logits, uniforms=numbers
        ).tokens

    def softmax_first() -> Tensor:
        return gpt_fast_way(batch.tokens, *batch.laws, numbers)

    laws: dict[str, Callable[[], Any]] = {
        "ours": partial(ours, validate=False),
        "ours, checked": ours,
        "block": partial(ours, validate=False, method="block"),
        "gpt-fast's loop": partial(gpt_fast_way, batch.tokens, q, p, numbers),
    }
    logits: dict[str, Callable[[], Any]] = {
        "ours": from_logits,
        "gpt-fast's loop": softmax_first,
        "transformers": partial(transformers_way, batch),
    }
    return laws, logits


def verification(
    shape: tuple[int, int, int], source: str, device: str, threads: int, rounds: int
) -> Case:
    """Measure the verifiers on one shape, from probabilities or from logits."""
    batch = draw(shape, device)
    contenders = verifiers(batch)[source == "logits"]

    def same(ours: Tensor, theirs: Tensor) -> bool:
        if theirs.shape != ours.shape:
            return False
        return plausible(batch, False, ours, theirs)

    exact = {n: c for n, c in contenders.items() if n not in ("block", "transformers")}
    first = next(iter(exact.values()))()
    if not all(plausible(batch, True, first, call()) for call in exact.values()):
        raise AssertionError("with the same numbers as many drafts must be accepted")
    name = "verify {} x {} drafts, {:,} words, from {}".format(*shape, source)
    return measure(
        name, contenders, same, device=device, threads=threads, rounds=rounds, seconds=12.0
    )


def decoding(name: str, threads: int, rounds: int) -> Case:
    """Measure greedy decoding of one text in bfloat16: tokens per second are in the notes."""
    from benchmarks.language_model_peer import transformers_llama
    from pkg.data.smollm2 import chat, smollm2

    model = smollm2().to(torch.bfloat16)
    peer = transformers_llama(model)
    prompt = model.encode(chat(TEXTS[name]))
    drafter = PromptLookupDrafter()

    def speculative() -> Tensor:
        return speculative_generate(
            model, prompt, drafter, gamma=GAMMA, temperature=0.0, max_tokens=TOKENS, stop=()
        ).tokens[0]

    def plain() -> Tensor:
        return generate(model, prompt, max_tokens=TOKENS, temperature=0.0, stop=()).tokens[0]

    def theirs(**options: Any) -> Tensor:
        found = peer.generate(
            prompt[None], attention_mask=torch.ones_like(prompt[None]), do_sample=False,
            min_new_tokens=TOKENS, max_new_tokens=TOKENS, **options,
        )  # fmt: skip
        return found[0, len(prompt) :]

    contenders: dict[str, Callable[[], Any]] = {
        "ours": speculative,
        "ours, plain": plain,
        "transformers": theirs,
        "their lookup": partial(theirs, prompt_lookup_num_tokens=GAMMA),
    }

    def same(ours: Tensor, other: Tensor) -> bool:
        # in bfloat16 two logits may tie, and another order of sums may then choose the other one
        return len(other) == len(ours) and torch.equal(ours[:AGREE], other[:AGREE])

    torch.set_num_threads(threads)
    case = measure(f"decode {name}, {TOKENS} tokens", contenders, same, threads=threads,
                   rounds=min(rounds, 10), seconds=60.0, gamma=GAMMA)  # fmt: skip
    rates = {label: round(TOKENS / timing.median, 1) for label, timing in case.timings.items()}
    case.notes["tokens per second"] = rates
    return case


def run(device: str, threads: tuple[int, ...], rounds: int) -> Iterator[Case]:
    """Measure verification on every shape, and on a CPU decoding."""
    plans: list[tuple[str, Callable[[], Case]]] = []
    for count in threads:
        for shape in SHAPES:
            plans += [
                (f"verify {shape} from {source}",
                 partial(verification, shape, source, device, count, rounds))
                for source in ("probabilities", "logits")
            ]  # fmt: skip
        if device == "cpu":
            plans += [(name, partial(decoding, name, count, rounds)) for name in TEXTS]
    yield from each(plans)
