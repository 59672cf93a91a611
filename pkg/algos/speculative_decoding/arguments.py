"""The checks at the door: every public function of the chapter names what does not fit."""

from __future__ import annotations

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_floats(name: str, tensor: Tensor) -> None:
    """Raise unless `tensor` is a tensor of floating-point numbers."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def check_integers(name: str, tensor: Tensor) -> None:
    """Raise unless `tensor` is a tensor of int64 (or int32)."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {tensor.dtype}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], words: str) -> None:
    """Raise unless `tensor` has `shape`; `words` names its axes."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {words} = {shape}, got {tuple(tensor.shape)}")


def check_same_device(name: str, tensor: Tensor, other: Tensor) -> None:
    """Raise unless both tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on {other.device}, got {tensor.device}")


def check_distributions(name: str, probs: Tensor, ignored: Tensor | None = None) -> None:
    """Raise unless every row of `probs` is a distribution; rows that are `ignored` may be anything.

    A sum may miss 1 by the rounding of the numbers to their type, and of a softmax in float32 that
    adds the vocabulary in 16 lanes: one unit of float32 for every addition of a lane.
    """
    if not probs.numel():
        if probs.ndim and probs.shape[-1] == 0:
            raise ValueError(f"{name} must have a vocabulary of at least 1, got 0")
        return
    wide = torch.finfo(torch.float64 if probs.dtype == torch.float64 else torch.float32).eps
    slack = 2 * torch.finfo(probs.dtype).eps + max(64, probs.shape[-1] / 16) * wide
    sums = probs.sum(-1, dtype=torch.float64 if probs.dtype == torch.float64 else torch.float32)
    bad = ~((sums - 1).abs() <= slack)  # NaN compares false: a sum that holds one is bad
    negative = probs.amin(-1) < 0
    wrong = bad | negative
    if ignored is not None:
        wrong &= ~ignored
    if not bool(wrong.any()):
        return
    at = tuple(int(i) for i in wrong.nonzero()[0])
    if bool(probs[at].isnan().any()):
        what = "holds NaN"
    elif bool(negative[at]):
        what = f"holds {float(probs[at].amin()):.6g}, which is negative"
    else:
        what = f"sums to {float(sums[at]):.6g}"
    row = f" at row {at if len(at) > 1 else at[0]}" if at else ""
    raise ValueError(f"{name} must be distributions, each row summing to 1;{row} it {what}")


def check_same_vocabulary(draft: Tensor, target: Tensor) -> None:
    """Raise unless both models speak of the same tokens."""
    if draft.shape[-1] != target.shape[-1]:
        raise ValueError(
            "draft_probs and target_probs must be over one vocabulary, got "
            f"{draft.shape[-1]} and {target.shape[-1]} tokens"
        )


def check_draft(
    draft_tokens: Tensor, draft_probs: Tensor | None, target_probs: Tensor, unit: str, draft_rows: int
) -> None:  # fmt: skip
    """Raise unless tokens (batch, unit) and the laws of both models belong together.

    The target has one row more than there are tokens; the draft has `draft_rows` more (0 in a chain).
    """
    check_integers("draft_tokens", draft_tokens)
    check_floats("target_probs", target_probs)
    if draft_tokens.ndim != 2:
        raise ValueError(
            f"draft_tokens must have shape (batch, {unit}), got {tuple(draft_tokens.shape)}"
        )
    if target_probs.ndim != 3 or target_probs.shape[-1] < 1:
        raise ValueError(
            f"target_probs must have shape (batch, {unit} + 1, vocab), got "
            f"{tuple(target_probs.shape)}"
        )
    batch, count = draft_tokens.shape
    vocab, more = target_probs.shape[-1], f"(batch, {unit} + 1, vocab)"
    check_shape("target_probs", target_probs, (batch, count + 1, vocab), more)
    check_same_device("draft_tokens", draft_tokens, target_probs)
    if draft_probs is None:
        return
    check_floats("draft_probs", draft_probs)
    check_same_vocabulary(draft_probs, target_probs)
    words = more if draft_rows else f"(batch, {unit}, vocab)"
    check_shape("draft_probs", draft_probs, (batch, count + draft_rows, vocab), words)
    check_same_device("draft_probs", draft_probs, target_probs)


def resolve_uniforms(
    uniforms: Tensor | None,
    generator: torch.Generator | None,
    shape: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Return float64 uniforms of `shape`, the caller's or newly drawn."""
    if (uniforms is None) == (generator is None):
        raise ValueError("give exactly one of uniforms and generator")
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        # float64 has 53 bits: float32 would give exactly 0 once in 17 million draws.
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
        return drawn.to(device)
    assert uniforms is not None
    check_floats("uniforms", uniforms)
    check_shape("uniforms", uniforms, shape, "(batch, tests + 1)")
    if uniforms.device != device:
        raise ValueError(f"uniforms must be on {device}, got {uniforms.device}")
    if uniforms.device.type == "cpu" and not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError("uniforms must be in [0, 1), got a number outside it")
    return uniforms.double()


def resolve_lengths(lengths: Tensor | None, batch: int, gamma: int, like: Tensor) -> Tensor:
    """Return the length of each row's draft, (batch,), int64."""
    if lengths is None:
        return torch.full((batch,), gamma, dtype=torch.int64, device=like.device)
    check_integers("lengths", lengths)
    check_shape("lengths", lengths, (batch,), "(batch,)")
    known = lengths.device.type == "cpu" and batch > 0
    if known and not 0 <= int(lengths.min()) <= int(lengths.max()) <= gamma:
        raise ValueError(f"lengths must be in 0..{gamma}, got {lengths.tolist()}")
    return lengths.to(torch.int64)


def check_tokens(tokens: Tensor, vocab: int, ignored: Tensor) -> None:
    """Raise unless the draft tokens that count are in the vocabulary."""
    wrong = ((tokens < 0) | (tokens >= vocab)) & ~ignored
    if bool(wrong.any()):
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"draft_tokens must be in 0..{vocab - 1}, got {int(tokens[at])} at index {at}"
        )


def check_drawn(chances: Tensor, ignored: Tensor) -> None:
    """Raise if a draft token has probability 0 under the law that it is said to come from."""
    wrong = (chances <= 0) & ~ignored
    if bool(wrong.any()):
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"draft_probs must be what the draft was sampled from: the token at index {at} has "
            "probability 0"
        )
