"""The plain loop of decoding: one token per pass, for one text or for several side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pkg.algos.language_model.cache import KeyValueCache
from pkg.algos.language_model.model import LanguageModel
from pkg.algos.language_model.sampling import check_options, sample, sampling_distribution

#: Called with the number of the request and the token that it has just got.
OnToken = Callable[[int, int], None]
Prompts = str | Tensor | Sequence[str] | Sequence[Tensor] | Sequence[Sequence[int]]
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Generation:
    """What was written: for each request its new tokens, (tokens,), and the time in all.

    Attributes
    ----------
    tokens
        One tensor of ids per request, the stop token included if it came.
    passes
        How often the model ran after it had read the prompts.
    seconds
        Of reading the prompts ("read") and of writing ("write").
    """

    tokens: tuple[Tensor, ...]
    passes: int
    seconds: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all requests after their first, per second of writing."""
        written = sum(max(0, len(row) - 1) for row in self.tokens)
        return written / self.seconds["write"] if written else 0.0


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Prompts,
    *,
    max_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[int] | None = None,
    generator: Generators = None,
    on_token: OnToken | None = None,
    progress: bool = False,
) -> Generation:
    """Let the model write on, one token per pass.

    Parameters
    ----------
    model
        The model.
    prompts
        One request or several, of any lengths: text, or ids (tokens,). At least one token each.
    max_tokens
        New tokens per request, at most; at least 0.
    temperature, top_k, top_p
        As for `sampling_distribution`; temperature 0 takes the likeliest token.
    stop
        Tokens that end a request; None is the model's own end of a text, () is none.
    generator
        One per request; a single one will do for a single request. None is PyTorch's global one. Each
        token takes one number from its request's generator, so what a request draws does not depend
        on its neighbours.
    on_token
        Called with (request, token) as soon as a token is there.
    progress
        Show a bar.

    Returns
    -------
    Generation
        The new tokens of each request.

    Raises
    ------
    TypeError, ValueError
        If a prompt is empty or does not leave room for `max_tokens` in the context, the number of
        generators is not that of the requests, or an option of sampling is out of range.

    Notes
    -----
    The probability of a text is the product of its tokens' conditional ones, which is why drawing
    one after the other draws from the whole. Ledger: `speculative_decoding:chain_rule`.

    Examples
    --------
    >>> from pkg.data.smollm2 import smollm2
    >>> model = smollm2()
    >>> written = generate(model, "The capital of Italy is", max_tokens=2, temperature=0.0)
    >>> model.tokenizer.decode(written.tokens[0].tolist())
    ' Rome.'
    """
    check_options(temperature, top_k, top_p)
    requests = request_ids(model, prompts)
    check_room(model, requests, max_tokens)
    generators = request_generators(generator, len(requests))
    ends = stop_tokens(model, stop)
    written: list[list[int]] = [[] for _ in requests]
    active = list(range(len(requests))) if max_tokens else []
    bar = progress_bar(max_tokens * len(active), progress)
    begun = time.perf_counter()
    cache = model.new_cache(len(active), max(map(len, requests), default=1) + max(1, max_tokens))
    last = read_prompts(model, requests, cache) if active else None
    middle, passes = time.perf_counter(), 0
    while last is not None:
        law = sampling_distribution(
            model.read_out(last), temperature=temperature, top_k=top_k, top_p=top_p
        )
        new = _draw(law, [generators[row] for row in active], temperature)
        for row, token in zip(active, new.tolist(), strict=True):
            written[row].append(token)
            if on_token is not None:
                on_token(row, token)
        bar.update(len(active))
        going = [
            i for i, row in enumerate(active)
            if written[row][-1] not in ends and len(written[row]) < max_tokens
        ]  # fmt: skip
        active = [active[i] for i in going]
        if not active:
            break
        cache.select(going)
        last = model.hidden(new[going].unsqueeze(1), cache=cache)[:, -1]
        passes += 1
    bar.close()
    seconds = {"read": middle - begun, "write": time.perf_counter() - middle}
    return Generation(tuple(map(torch.tensor, written)), passes, seconds)


def _draw(law: Tensor, generators: list[torch.Generator | None], temperature: float) -> Tensor:
    if temperature == 0:
        return law.argmax(-1)
    return sample(law, uniforms(generators, 1, law.device).squeeze(1))


class _NoBar:
    def update(self, tokens: int) -> None: ...
    def close(self) -> None: ...


def progress_bar(total: int, shown: bool) -> Any:
    """Return a bar for so many tokens, or something that shows nothing."""
    if not shown:
        return _NoBar()
    from tqdm import tqdm  # here alone: a machine with nothing but PyTorch can decode too

    return tqdm(total=total, unit="token")


def uniforms(
    generators: Sequence[torch.Generator | None], count: int, device: torch.device
) -> Tensor:
    """Draw `count` numbers in [0, 1) from each request's generator, (requests, count), float64."""
    rows = [
        torch.rand(count, dtype=torch.float64, generator=g, device="cpu" if g is None else g.device)
        for g in generators
    ]
    return torch.stack([row.to(device) for row in rows]) if rows else torch.empty(0, count)


def read_prompts(model: LanguageModel, requests: list[Tensor], cache: KeyValueCache) -> Tensor:
    """Read the prompts into the cache; return the hidden state of each one's last token."""
    lengths = torch.tensor([len(row) for row in requests])
    padded = pad_sequence(requests, batch_first=True)  # (batch, longest)
    even = len(set(lengths.tolist())) < 2
    hidden = model.hidden(padded, cache=cache, lengths=None if even else lengths)
    return hidden[torch.arange(len(requests)), (lengths - 1).to(hidden.device)]


def request_ids(model: LanguageModel, prompts: Prompts) -> list[Tensor]:
    """Return the ids of each request, (tokens,) on the CPU."""
    if isinstance(prompts, str) or (isinstance(prompts, Tensor) and prompts.ndim == 1):
        prompts = [prompts]  # type: ignore[assignment]
    elif not isinstance(prompts, Tensor) and len(prompts) and isinstance(prompts[0], int):
        prompts = [torch.as_tensor(prompts)]
    found = []
    for i, prompt in enumerate(prompts):
        ids = model.encode(prompt) if isinstance(prompt, str) else torch.as_tensor(prompt).cpu()
        if ids.ndim != 1 or not len(ids):
            raise ValueError(f"prompt {i} must have at least one token, got {tuple(ids.shape)}")
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError(f"prompt {i} must hold integers, got {ids.dtype}")
        found.append(ids.long())
    return found


def check_room(model: LanguageModel, requests: list[Tensor], max_tokens: int) -> None:
    """Raise unless every request has room for its new tokens."""
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 0:
        raise ValueError(f"max_tokens must be an integer of at least 0, got {max_tokens!r}")
    for i, row in enumerate(requests):
        if len(row) + max_tokens > model.shape.context:
            raise ValueError(
                f"prompt {i} has {len(row)} tokens: with max_tokens {max_tokens} it leaves the "
                f"context of {model.shape.context}"
            )


def request_generators(generator: Generators, count: int) -> list[torch.Generator | None]:
    """Return one generator per request."""
    if generator is None:
        return [None] * count
    given = [generator] if isinstance(generator, torch.Generator) else list(generator)
    if len(given) != count:
        raise ValueError(f"generator must be one per request, {count} of them, got {len(given)}")
    return list(given)


def stop_tokens(model: LanguageModel, stop: Sequence[int] | None) -> frozenset[int]:
    """Return the tokens that end a request."""
    if stop is None:
        return frozenset() if model.shape.end is None else frozenset({model.shape.end})
    return frozenset(int(token) for token in stop)
