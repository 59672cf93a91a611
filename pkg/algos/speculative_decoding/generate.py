"""Speculative decoding: a drafter proposes, the model reads the proposal in one pass, a part is kept."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pkg.algos.language_model import KeyValueCache, LanguageModel
from pkg.algos.language_model.generate import (
    Generators,
    OnToken,
    Prompts,
    check_room,
    progress_bar,
    request_generators,
    request_ids,
    stop_tokens,
    uniforms,
)
from pkg.algos.language_model.sampling import check_options
from pkg.algos.speculative_decoding.chain import Method, verify_chain
from pkg.algos.speculative_decoding.drafts import Draft, Drafter, Options
from pkg.algos.speculative_decoding.result import VerifyResult
from pkg.arguments import whole


@dataclass
class Speculation:
    """What was written, and how the speculation went.

    Attributes
    ----------
    tokens
        For each request its new tokens, (tokens,), the stop token included if it came.
    steps
        Verifications of all requests together: a pass over a batch of three counts as three.
    passes
        How often the model ran after it had read the prompts.
    tested, accepted
        (gamma,), int64: how often draft token i was looked at, which takes that all before it were
        accepted, and how often it was accepted itself.
    seconds
        Of reading the prompts ("read"), of the drafter ("draft"), of the model ("model"), of making
        probabilities and verifying ("verify").
    """

    tokens: tuple[Tensor, ...]
    steps: int
    passes: int
    tested: Tensor
    accepted: Tensor
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def acceptance(self) -> Tensor:
        """Share of the draft tokens that were accepted where they were tested, (gamma,); NaN if never."""
        return self.accepted / self.tested

    @property
    def rate(self) -> float:
        """Share of all tested draft tokens that were accepted; NaN if there were none."""
        tested = int(self.tested.sum())
        return int(self.accepted.sum()) / tested if tested else float("nan")

    @property
    def tokens_per_step(self) -> float:
        """New tokens per verification."""
        return sum(map(len, self.tokens)) / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all requests per second of writing."""
        writing = sum(self.seconds[phase] for phase in ("draft", "model", "verify"))
        return sum(map(len, self.tokens)) / writing if writing else 0.0


@torch.inference_mode()
def speculative_generate(
    model: LanguageModel,
    prompt: Prompts,
    drafter: Drafter,
    *,
    gamma: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generators = None,
    max_tokens: int = 128,
    stop: Sequence[int] | None = None,
    method: Method = "token",
    on_token: OnToken | None = None,
    progress: bool = False,
) -> Speculation:
    """Let the model write on, several tokens per pass; the law of the text is that of `generate`.

    Parameters
    ----------
    model
        The model whose law the text follows.
    prompt
        One request or several, of any lengths: text, or ids (tokens,). At least one token each.
    drafter
        What proposes: any object with the methods of `Drafter`.
    gamma
        Draft tokens per pass, at most; at least 0. With 0 it is plain decoding.
    temperature, top_k, top_p
        As for `sampling_distribution`; they shape the draft's law and the model's alike.
    generator
        One per request; a single one will do for a single request. None is PyTorch's global one. A pass
        takes 2 gamma + 1 numbers from each, so what a request draws does not depend on its neighbours.
    max_tokens
        New tokens per request, at most; at least 0.
    stop
        Tokens that end a request; None is the model's own end of a text, () is none.
    method
        How `verify_chain` decides: `"token"` or `"block"`.
    on_token
        Called with (request, token) for each new token, in the order of the text.
    progress
        Show a bar.

    Returns
    -------
    Speculation
        The new tokens of each request, acceptance by position, and times.

    Raises
    ------
    TypeError, ValueError
        As `generate`; if `gamma` is negative or no integer, or the drafter's vocabulary is another.

    Notes
    -----
    At temperature 0 the text is that of `generate`, token for token, as long as the two largest logits
    are further apart than rounding: a pass over several tokens adds in another order than a pass over
    one. Ledger: `speculative_decoding:drafters`, `speculative_decoding:output_law`.

    Examples
    --------
    >>> from pkg.algos.speculative_decoding import PromptLookupDrafter
    >>> from pkg.data.smollm2 import smollm2
    >>> found = speculative_generate(
    ...     smollm2(), "1 2 3 4 1 2 3 4 1 2", PromptLookupDrafter(), gamma=4, temperature=0.0,
    ...     max_tokens=10,
    ... )
    >>> smollm2().tokenizer.decode(found.tokens[0].tolist())
    ' 3 4 1 2 3'
    """
    whole("gamma", gamma, 0)
    check_options(temperature, top_k, top_p)
    texts = request_ids(model, prompt)
    check_room(model, texts, max_tokens)
    drafter.start(len(texts), model.shape.vocabulary)
    options = Options(temperature, top_k, top_p)
    loop = _Loop(model, drafter, texts, options, gamma, max_tokens, method)
    loop.generators = request_generators(generator, len(texts))
    loop.ends, loop.on_token = stop_tokens(model, stop), on_token
    bar = progress_bar(max_tokens * len(texts), progress)
    loop.read()
    while loop.active:
        bar.update(loop.step())
    bar.close()
    return loop.found()


class _Loop:
    """The state of `speculative_generate`. The cache holds every text but its last token."""

    generators: list[torch.Generator | None]
    ends: frozenset[int]
    on_token: OnToken | None

    def __init__(
        self, model: LanguageModel, drafter: Drafter, texts: list[Tensor], options: Options,
        gamma: int, max_tokens: int, method: Method,
    ) -> None:  # fmt: skip
        self.model, self.drafter, self.options = model, drafter, options
        self.gamma, self.max_tokens, self.method = gamma, max_tokens, method
        self.texts, self.prompt_lengths = texts, [len(text) for text in texts]
        self.active = list(range(len(texts))) if max_tokens else []
        self.steps = self.passes = 0
        self.tested, self.accepted = (torch.zeros(gamma, dtype=torch.int64) for _ in "ab")
        self.seconds = dict.fromkeys(("read", "draft", "model", "verify"), 0.0)
        self.cache: KeyValueCache

    def read(self) -> None:
        """Read all of the prompts but their last tokens."""
        begun = time.perf_counter()
        longest = max(self.prompt_lengths, default=1)
        room = longest + self.max_tokens + self.gamma + 1
        self.cache = self.model.new_cache(len(self.active), room)
        if self.active and longest > 1:
            counts = torch.tensor(self.prompt_lengths) - 1
            even = len(set(self.prompt_lengths)) == 1
            padded = pad_sequence([text[:-1] for text in self.texts], batch_first=True)
            self.model.hidden(padded, cache=self.cache, lengths=None if even else counts)
        self.seconds["read"] = time.perf_counter() - begun

    def step(self) -> int:
        """Draft, read the draft, verify, and take what is kept; return how many tokens are new."""
        clock = [time.perf_counter()]
        generators = [self.generators[row] for row in self.active]
        drawn = self.options.temperature > 0
        numbers = uniforms(generators if drawn else [], 2 * self.gamma + 1, torch.device("cpu"))
        draft = self._draft(numbers[:, : self.gamma])
        clock.append(time.perf_counter())
        logits, starts = self._read_draft(draft)
        clock.append(time.perf_counter())
        result = self._verify(draft, logits, numbers[:, self.gamma :])
        self.cache.rollback(starts + result.num_accepted.cpu() + 1)
        kept = self._keep(draft, result)
        clock.append(time.perf_counter())
        for phase, (a, b) in zip(("draft", "model", "verify"), itertools.pairwise(clock),
                                 strict=True):  # fmt: skip
            self.seconds[phase] += b - a
        return kept

    def _draft(self, numbers: Tensor) -> Draft:
        """Ask the drafter, and cut what would be more than a request may still get."""
        left = [
            self.max_tokens + self.prompt_lengths[row] - len(self.texts[row]) for row in self.active
        ]
        gamma = min(self.gamma, max(left) - 1)
        texts = [self.texts[row] for row in self.active]
        draft = self.drafter.propose(texts, gamma, self.options, numbers[:, :gamma])
        lengths = draft.lengths.minimum(torch.tensor(left) - 1)
        longest = int(lengths.max())
        probs = None if draft.probs is None else draft.probs[:, :longest]
        return Draft(draft.tokens[:, :longest], lengths, probs)

    def _read_draft(self, draft: Draft) -> tuple[Tensor, Tensor]:
        """Run the model over each text's last token and its draft; return the logits, and where."""
        starts, counts = self.cache.lengths, draft.lengths + 1
        last = torch.stack([self.texts[row][-1] for row in self.active])
        block = torch.cat((last.unsqueeze(1), draft.tokens.clamp_min(0)), 1)  # (batch, gamma + 1)
        even = bool((counts == counts[0]).all())
        logits, _ = self.model(block, cache=self.cache, lengths=None if even else counts)
        self.passes += 1
        self.steps += len(self.active)
        return logits, starts

    def _verify(self, draft: Draft, logits: Tensor, numbers: Tensor) -> VerifyResult:
        gamma = draft.tokens.shape[1]
        if self.options.temperature > 0:
            numbers = torch.cat((numbers[:, :gamma], numbers[:, -1:]), 1)
        else:  # each law is one token: no number changes what happens
            numbers = torch.zeros(len(logits), gamma + 1, dtype=torch.float64)
        device = logits.device
        return verify_chain(
            draft.tokens.to(device), draft.probs, self.options.law(logits),
            uniforms=numbers.to(device), lengths=draft.lengths.to(device), method=self.method,
            validate=False,
        )  # fmt: skip

    def _keep(self, draft: Draft, result: VerifyResult) -> int:
        """Put the tokens behind the texts, and let those that have ended go; return how many."""
        before = sum(map(len, self.texts))
        going = []
        tokens, counts = result.tokens.cpu(), result.num_accepted.cpu()
        for i, row in enumerate(self.active):
            new = tokens[i, : int(counts[i]) + 1].tolist()
            ended = next((j for j, token in enumerate(new) if token in self.ends), None)
            new = new if ended is None else new[: ended + 1]
            looked = min(int(counts[i]) + 1, int(draft.lengths[i]))
            self.tested[:looked] += 1
            self.accepted[: int(counts[i])] += 1
            self.texts[row] = torch.cat((self.texts[row], torch.tensor(new)))
            if self.on_token is not None:
                for token in new:
                    self.on_token(row, token)
            full = len(self.texts[row]) - self.prompt_lengths[row] >= self.max_tokens
            if ended is None and not full:
                going.append(i)
        if len(going) < len(self.active):
            self.active = [self.active[i] for i in going]
            self.cache.select(going)
            self.drafter.select(going)
        return sum(map(len, self.texts)) - before

    def found(self) -> Speculation:
        """Return what was written."""
        new = [text[n:] for text, n in zip(self.texts, self.prompt_lengths, strict=True)]
        return Speculation(
            tuple(new), self.steps, self.passes, self.tested, self.accepted, self.seconds
        )
