"""Published bugs of speculative decoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import torch

from pkg.algos.speculative_decoding import chain_law, residual, total_variation, verify_chain
from tests.museum import Exhibit, Museum


def softmaxed_residual(p, q):
    """Makes a law of the residual by a softmax, where it has to be divided by its sum."""
    return (p - q).clamp(min=0).softmax(-1)


def divides_by_the_unfiltered_law(tokens, draft, laws, *, uniforms, **how):
    """The filter that made `draft` took away half of the mass; test and residual get the law before."""
    removed = draft == 0
    number = removed.sum(-1, keepdim=True)
    before = torch.where(removed, 0.5 / number, draft / 2)
    before = torch.where(number > 0, before, draft)
    return verify_chain(tokens, before, laws, uniforms=uniforms, **how)


def one_number_for_two(tokens, draft, laws, *, uniforms, **how):
    """The number that refused the draft also draws the replacement."""
    kept = verify_chain(tokens, draft, laws, uniforms=uniforms, **how).num_accepted
    again = uniforms.clone()
    again[:, -1] = uniforms.gather(-1, kept[:, None])[:, 0]
    return verify_chain(tokens, draft, laws, uniforms=again, **how)


def forgets_the_weight(tokens, draft, laws, *, uniforms, method):
    """Verifies a block, but draws the replacement from the residual of a single token."""
    right = verify_chain(tokens, draft, laws, uniforms=uniforms, method=method)
    row, at = torch.arange(len(tokens)), right.num_accepted
    stopped = at < draft.shape[1]
    rest = laws[row, at]
    taken = draft[row, at.clamp(max=draft.shape[1] - 1)]
    rest = torch.where(stopped[:, None], (rest - taken).clamp(min=0), rest)
    total = rest.sum(-1, keepdim=True)
    drawn = (rest.cumsum(-1) <= uniforms[:, -1:] * total).sum(-1).clamp(max=rest.shape[-1] - 1)
    return type(right)(right.tokens.scatter(-1, at[:, None], drawn[:, None]), at)


def log_of_one_minus(log_p, log_q):
    """Takes log(1 - ratio), after 1 - ratio has rounded a small ratio away."""
    ratio = (log_q - log_p).exp()
    return torch.where(ratio < 1, log_p + torch.log(1 - ratio), -torch.inf)


# ------------------------------------------------------------------ what they cost


def _tenths(*parts: int) -> Callable[[Any], list[Fraction]]:
    """A model that always has the same law."""
    return lambda prefix: [Fraction(part, sum(parts)) for part in parts]


def _off(verify: Any, target: Any, draft: Any, gamma: int, *also: Fraction) -> Fraction:
    """Total variation between what is emitted and the target, in fractions."""
    return total_variation(chain_law(verify, target, draft, gamma, also=also), target)


def _cost_of_softmax() -> str:
    vocab = 49_152
    once = round((math.e + vocab - 1) / math.e, -3)
    return (
        f"a softmax of {vocab:,} numbers between 0 and 1 is all but uniform. Where only one token is "
        f"left to say, it would come at most once in {once:,.0f} replacements; the rest is noise."
    )


def _cost_of_unfiltered() -> str:
    target, argmax = _tenths(5, 3, 2), _tenths(0, 0, 1)
    before = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)

    def verify(tokens: Any, draft: Any, laws: Any, *, uniforms: Any) -> Any:
        return verify_chain(tokens, before.expand_as(draft), laws, uniforms=uniforms)

    off = _off(verify, target, argmax, 1, Fraction(2, 5))
    return (
        "if the draft is the likeliest token of (.2, .3, .5), a target of (.5, .3, .2) becomes "
        f"(.6, 0, .4). Of the second token nothing is left, and {off} of all texts are wrong."
    )


def _cost_of_one_number() -> str:
    off = _off(one_number_for_two, _tenths(3, 4, 1), _tenths(1, 1, 6), 1, Fraction(2, 5))
    return (
        "with a target of (3, 4, 1)/8 and a draft of (1, 1, 6)/8 the total variation is exactly "
        f"{off}. The rate of acceptance is right, so nothing that is usually watched would show it."
    )


def _cost_of_weight() -> str:
    target, draft = _tenths(3, 2, 5), _tenths(1, 1, 8)

    def verify(tokens: Any, draft: Any, laws: Any, *, uniforms: Any) -> Any:
        return forgets_the_weight(tokens, draft, laws, uniforms=uniforms, method="block")

    return (
        "with a target of (.3, .2, .5) and a draft of (.1, .1, .8), drafts of two, the total variation "
        f"is exactly {_off(verify, target, draft, 2)}. For a vocabulary of two it is always 0, "
        "so a test with a coin shows nothing."
    )


@cache
def _shift(rounded: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """How far a logarithm in float32 moves the residual of two laws over SmolLM2's vocabulary."""
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(2, 49_152, generator=generator, dtype=torch.float64)
    log_p, log_q = logits.log_softmax(-1)
    ratio = (log_q - log_p).exp().float()
    found = torch.where(ratio < 1, log_p + rounded(ratio).double(), -torch.inf).softmax(-1)
    return float((found - residual(log_p.exp(), log_q.exp())).abs().sum() / 2)


def _cost_of_log() -> str:
    shipped = _shift(lambda ratio: torch.log(1 - ratio))
    mended = _shift(lambda ratio: torch.log1p(-ratio))
    power = math.floor(math.log10(shipped / mended))
    return (
        "next to nothing. For two random laws over 49,152 tokens the replacements are off by a total "
        f"variation of {shipped:.0e}. The mended logarithm is better by a factor of more than "
        f"{10**power}, and nobody will ever read the difference. It is mended because it costs nothing."
    )


_TRANSFORMERS = "https://github.com/huggingface/transformers"
museum = Museum(
    "speculative_decoding",
    Exhibit(
        name="softmaxed_residual",
        title="The residual, through a softmax",
        project="transformers",
        threads=(("transformers #28508", f"{_TRANSFORMERS}/pull/28508"),),
        story="""The first version of speculative decoding in Hugging Face's transformers made the
        residual a law by a softmax, so that what replaces a rejected token comes from all over the
        vocabulary. It did not come to that, because another mistake, mended by the same pull
        request, accepted every draft.""",
        entry="residual",
        variant=softmaxed_residual,
        cost=_cost_of_softmax,
    ),
    Exhibit(
        name="unfiltered_draft_law",
        title="q is not what the draft was sampled from",
        project="transformers",
        threads=(
            ("transformers #47932", f"{_TRANSFORMERS}/issues/47932"),
            ("speculative-sampling #3", "https://github.com/jaymody/speculative-sampling/issues/3"),
            (
                "ml-recurrent-drafter #6",
                "https://github.com/apple/ml-recurrent-drafter/issues/6",
            ),
        ),
        story="""Three drafters of Hugging Face's assisted generation sampled after top-k, or took
        the argmax, and handed the law *before* that to the verification. The $q$ of a drafted token
        is then too small, so it is accepted too often, and the residual holds back mass from tokens
        that the draft can never say. With SmolLM2 and the default top-k of 50 the thread measured a
        total variation of 0.05 in the median and of 0.31 at worst. Two other programs drafted the
        argmax and divided by the softmax.""",
        entry="output_law",
        variant=divides_by_the_unfiltered_law,
        cost=_cost_of_unfiltered,
    ),
    Exhibit(
        name="one_number_for_two",
        title="One random number, used twice",
        project="vllm-ascend",
        threads=(("vllm-ascend #16370", "https://github.com/vllm-project/vllm-ascend/pull/16370"),),
        story="""The test of a draft token and the draw of its replacement took their random number
        from the same seed and position. After a refusal that number is known to be large, so the
        draw favours the tokens at the end of the vocabulary.""",
        entry="output_law",
        variant=one_number_for_two,
        cost=_cost_of_one_number,
    ),
    Exhibit(
        name="forgotten_weight",
        title="A block is tested, a single token replaced",
        project="vllm-ascend",
        threads=(("vllm-ascend #7807", "https://github.com/vllm-project/vllm-ascend/issues/7807"),),
        story="""Block verification was switched on, and the replacement was still drawn from
        $\\max(0, p - q)$, without the weight of the prefix. (The thread names a wrong test besides; here
        the test is right, and the law is wrong all the same.)""",
        entry="block_output_law",
        variant=forgets_the_weight,
        cost=_cost_of_weight,
    ),
    Exhibit(
        name="log_of_one_minus",
        title="log where log1p belongs",
        project="vllm",
        threads=(("vllm #46665", "https://github.com/vllm-project/vllm/pull/46665"),),
        story="""vLLM draws the replacement by adding Gumbel noise to the logarithm of the residual,
        $\\log p + \\log(1 - q/p)$. In float32, $1 - q/p$ is 1 for every ratio up to $2^{-25}$, so of a
        draft that gives a token so little, nothing is subtracted.""",
        entry="log_residual",
        variant=log_of_one_minus,
        cost=_cost_of_log,
    ),
)
