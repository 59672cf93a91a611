"""Published bugs of attention."""

from __future__ import annotations

import math
import re

import torch

from pkg.data import play
from tests.museum import Exhibit, Museum


def zero_is_kept(row, block_size=2):
    """Sweeps in blocks; a maximum of -inf becomes 0, and stays in the running maximum."""
    maximum, total = torch.tensor(-torch.inf), torch.tensor(0.0)
    for block in row.split(block_size):
        higher = torch.maximum(maximum, block.max())
        higher = torch.where(higher == -torch.inf, 0.0, higher)
        total = total * (maximum - higher).exp() + (block - higher).exp().sum()
        maximum = higher
    return (row - maximum).exp() / torch.where(total == 0, 1.0, total)


def finite_start(row):
    """A running maximum that begins at -50,000, taken for less than any score."""
    maximum = row.max().clamp(min=-50_000)
    total = (row - maximum).exp().sum()
    return (row - maximum).exp() / torch.where(total == 0, 1.0, total)


def finite_infinity(q, k, v, mask):
    """Hidden scores are a large negative number."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -1e30).softmax(-1) @ v


def mended_afterwards(q, k, v, mask):
    """The mask is added as 0 or -inf; NaN is replaced by 0 after the softmax."""
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + torch.where(mask, 0.0, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


def top_left(q, k, v, causal):
    """The first query belongs to the first key, where the last to the last was meant."""
    pairs = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if causal:
        pairs = pairs.tril()
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~pairs, -torch.inf).softmax(-1) @ v


def computes_nan(q, k, v):
    """A broken kernel: a term of the running sum is missing."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    total = torch.zeros_like(scores[..., :1])  # never added to
    return 0.0 * scores @ v / total


def _cost_of_kept_zero() -> str:
    """The thread's shape: 88 queries, 448 keys, tiles of 128 keys, the last tile first."""
    lost = 0
    for query in range(88):
        row = torch.full((512,), -torch.inf, dtype=torch.float64)
        row[: query + 1 + 448 - 88] = -1000.0
        lost += int(zero_is_kept(row.flip(0), block_size=128).sum() == 0)
    return (
        f"in the thread's example {lost} of 88 queries begin with a hidden block. In a head whose "
        "scores are far below 0 these get the output 0 instead of a mean of values."
    )


def _cost_of_finite_start() -> str:
    low = -245_000.0 + torch.arange(448, dtype=torch.float64)
    whole, lost = float(low.softmax(0).sum()), float(finite_start(low).sum())
    return (
        f"at the scores of the thread's model the weights of a row sum to {lost:.0f} instead of "
        f"{whole:.0f}: the head is silent at every step, and nothing says so."
    )


def _cost_of_finite_infinity() -> str:
    """Sentences of the chapter's play, padded to the longest in a batch of 32."""
    sentences = re.split(r"(?<=[.!?])\s+", play("hamlet").partition("To be, or not to be")[2])[:32]
    words = [len(sentence.split()) for sentence in sentences]
    padding = 1 - sum(words) / (len(words) * max(words))
    return (
        f"of 32 sentences of Hamlet in one batch {100 * padding:.0f} % of the rows are padding. "
        "Each of them would hold the mean of all values, and pass it on, instead of 0."
    )


def _cost_of_mending() -> str:
    generator = torch.Generator().manual_seed(0)
    texts, weight = (torch.randn(s, generator=generator) for s in ((8, 1, 5, 4), (4, 4)))
    weight.requires_grad_()
    mask = torch.ones(8, 1, 5, 5, dtype=torch.bool).tril()
    mask[7, :, 0] = False  # one row of one sentence sees nothing
    output = mended_afterwards(texts @ weight, texts, texts, mask)
    (gradient,) = torch.autograd.grad(output[:7].sum(), weight)
    return (
        f"one blind row in a batch of 8 sentences makes {int(gradient.isnan().sum())} of "
        f"{gradient.numel()} gradients of the query projection NaN, even if that sentence is left "
        "out of the loss."
    )


def _cost_of_top_left() -> str:
    cache, new = 8000, 4
    equal = torch.zeros(1, 1, new, 1), torch.zeros(1, 1, cache + new, 1)
    values = torch.ones(1, 1, cache + new, 1)
    values[:, :, new:] = 0  # so that the output is the weight on the first tokens
    weight = float(top_left(*equal, values, causal=True)[..., -1, 0])
    return (
        f"{new} new tokens over a cache of {cache:,} would give {100 * weight:.0f} % of their weight "
        f"to the first {new} tokens of the text, and see nothing of the rest, themselves included."
    )


def _cost_of_no_check() -> str:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 64, 16, generator=generator) for _ in range(3))
    wrong = computes_nan(q, k, v)
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    largest = torch.zeros(())
    for difference in (wrong - right).abs().flatten():
        largest = torch.fmax(largest, difference)
    return (
        f"{int(wrong.isnan().sum()):,} of {wrong.numel():,} results are NaN, and the largest error "
        f"that the tutorial's loop finds is {float(largest):.0f}."
    )


museum = Museum(
    "flash_attention",
    Exhibit(
        name="maximum_kept_at_zero",
        title="A running maximum that is put to 0 and stays there",
        project="flash-attention",
        threads=(
            ("flash-attention #2082", "https://github.com/Dao-AILab/flash-attention/issues/2082"),
        ),
        story="""A block that is hidden throughout has the maximum $-\\infty$. A kernel put 0 in its
        place, so as not to subtract $-\\infty$ from $-\\infty$, and *kept* the 0. For a row whose
        true scores are all far below 0 every exponential then underflows. Whole heads came out as
        zero, in training runs too.""",
        entry="safe_softmax",
        variant=zero_is_kept,
        cost=_cost_of_kept_zero,
    ),
    Exhibit(
        name="maximum_from_minus_50000",
        title="A finite infinity, as the first maximum",
        project="flashinfer",
        threads=(
            ("flashinfer #4267", "https://github.com/flashinfer-ai/flashinfer/issues/4267"),
            ("#4401", "https://github.com/flashinfer-ai/flashinfer/pull/4401"),
        ),
        story="""The running maximum began at $-50{,}000$, small enough for anything. A model without
        query-key normalisation had products of $-245{,}000$ in its last layer. One of its heads was
        exactly zero at every step, and its texts fell into repetition.""",
        entry="safe_softmax",
        variant=finite_start,
        cost=_cost_of_finite_start,
    ),
    Exhibit(
        name="finite_infinity",
        title="A finite infinity, as the mask",
        project="onnxruntime",
        threads=(("onnxruntime #28904", "https://github.com/microsoft/onnxruntime/issues/28904"),),
        story="""Hidden scores are set to $-10^{30}$ instead of $-\\infty$. Where a row sees
        *something*, nobody notices. Where it sees nothing, all of its scores are equal, and it gets
        the mean of all values, padding included, where it should get 0.""",
        entry="visible",
        variant=finite_infinity,
        cost=_cost_of_finite_infinity,
    ),
    Exhibit(
        name="mended_afterwards",
        title="NaN mended after the softmax",
        project="PyTorch",
        threads=(("pytorch #41508", "https://github.com/pytorch/pytorch/issues/41508"),),
        story="""The softmax of a row of $-\\infty$ is NaN. Replacing the NaN by 0 afterwards mends
        the output and not the gradient, in which $0 \\cdot \\mathrm{NaN}$ is NaN again.""",
        entry="gradient_query_visible",
        variant=mended_afterwards,
        cost=_cost_of_mending,
    ),
    Exhibit(
        name="top_left",
        title="The other corner",
        project="onnxruntime",
        threads=(
            ("onnxruntime #28904", "https://github.com/microsoft/onnxruntime/issues/28904"),
            ("onnx #8068", "https://github.com/onnx/onnx/pull/8068"),
            ("flash-attention's README", "https://github.com/Dao-AILab/flash-attention"),
        ),
        story="""Bottom-right and top-left agree on every square test. They differ when new tokens
        meet a cache. A kernel laid the diagonal from the first query and the first key over a cache
        that was longer than the queries. The first versions of flash-attn were aligned that way too,
        and its README tells of the change.""",
        entry="visible_causal",
        variant=top_left,
        cost=_cost_of_top_left,
    ),
    Exhibit(
        name="test_that_cannot_fail",
        title="A test that cannot fail",
        project="CUDATutorial",
        threads=(("CUDATutorial #69", "https://github.com/PaddleJitLab/CUDATutorial/issues/69"),),
        story="""A reader of a tutorial took a term out of the kernel's running sum, and the program
        still printed "Results are correct". Every number was NaN. The test took the largest
        difference with `fmaxf`, which ignores NaN. Here NaN on one side never passes.""",
        entry="attention",
        variant=computes_nan,
        cost=_cost_of_no_check,
    ),
)
