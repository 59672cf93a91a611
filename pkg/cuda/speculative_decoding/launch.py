"""Launch the kernels of verification: allocate, choose, and never wait for the device."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from pkg.cuda.speculative_decoding.chain import mass_kernel, pick_kernel, test_kernel
from pkg.cuda.speculative_decoding.configs import CONFIGS
from pkg.cuda.speculative_decoding.laws import partial_kernel, settle_kernel
from pkg.cuda.speculative_decoding.tree import tree_kernel

Filters = tuple[float, int | None, float | None]


def verify_chain_logits(
    draft_tokens: Tensor, draft_logits: Tensor | None, target_logits: Tensor, uniforms: Tensor,
    lengths: Tensor, temperature: float, top_k: int | None, top_p: float | None, whole: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the five kernels of a chain; see `pkg.algos.speculative_decoding.logits`."""
    batch, gamma = draft_tokens.shape
    vocab, device = target_logits.shape[-1], target_logits.device
    out = torch.empty(batch, gamma + 1, dtype=torch.int64, device=device)
    accepted = torch.empty(batch, dtype=torch.int64, device=device)
    if not batch:
        return out, accepted
    draft, target = _pair(draft_logits, target_logits)
    tokens, lengths = draft_tokens.long().contiguous(), lengths.long().contiguous()
    uniforms = uniforms.double().contiguous()
    with _on(target):
        tables, draft_rows = _describe(draft, target, draft_logits, (temperature, top_k, top_p))
        block, chunks = _chunks(vocab)
        slots = gamma + 1 if whole else 1
        stops = torch.empty(batch, dtype=torch.int32, device=device)
        weights = torch.empty(batch, gamma + 1, dtype=torch.float64, device=device)
        masses = torch.empty(batch, slots, chunks, dtype=torch.float64, device=device)
        flags = {"GREEDY": temperature == 0, "DRAWN": draft_logits is not None, "WHOLE": whole}
        steps = triton.next_power_of_2(gamma + 1)
        test_kernel[(batch,)](
            tokens, draft, target, uniforms, lengths, stops, weights, *tables,
            gamma, vocab, draft_rows, temperature, **flags, STEPS=steps,
            num_warps=CONFIGS["test"].num_warps,
        )  # fmt: skip
        mass_kernel[(batch, chunks, slots)](
            tokens, draft, target, lengths, stops, weights, masses, *tables,
            gamma, vocab, chunks, draft_rows, temperature, **flags, BLOCK=block,
            num_warps=CONFIGS["mass"].num_warps,
        )  # fmt: skip
        pick_kernel[(batch,)](
            tokens, draft, target, uniforms, lengths, stops, weights, masses, out, accepted, *tables,
            gamma, vocab, chunks, draft_rows, temperature, **flags, STEPS=steps,
            CHUNKS=triton.next_power_of_2(chunks), BLOCK=block, num_warps=CONFIGS["pick"].num_warps,
        )  # fmt: skip
    return out, accepted


def verify_tree_logits(
    draft_tokens: Tensor, parents: Tensor, draft_logits: Tensor | None, target_logits: Tensor,
    uniforms: Tensor, depth: int, temperature: float, top_k: int | None, top_p: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the three kernels of a tree; see `pkg.algos.speculative_decoding.logits`."""
    batch, nodes = draft_tokens.shape
    vocab, device = target_logits.shape[-1], target_logits.device
    out = torch.full((batch, depth + 1), -1, dtype=torch.int64, device=device)
    path = torch.full((batch, depth), -1, dtype=torch.int64, device=device)
    accepted = torch.empty(batch, dtype=torch.int64, device=device)
    if not batch:
        return out, accepted, path
    draft, target = _pair(draft_logits, target_logits)
    drawn = draft_logits is not None
    config = CONFIGS["tree"]
    with _on(target):
        tables, draft_rows = _describe(draft, target, draft_logits, (temperature, top_k, top_p))
        left_p = torch.empty(batch, vocab, dtype=torch.float64, device=device)
        left_q = torch.empty_like(left_p) if drawn else left_p
        tree_kernel[(batch,)](
            draft_tokens.long().contiguous(), parents.long().expand(batch, nodes).contiguous(),
            draft, target, uniforms.double().contiguous(), left_p, left_q, out, accepted, path,
            *tables, nodes, vocab, draft_rows, depth, temperature,
            GREEDY=temperature == 0, DRAWN=drawn, BLOCK=config.block, num_warps=config.num_warps,
        )  # fmt: skip
    return out, accepted, path


def sample_logits(
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """Draw one token for each row, (rows,): a chain without a draft."""
    rows, device = len(logits), logits.device
    none = torch.empty(rows, 0, dtype=torch.int64, device=device)
    lengths = torch.zeros(rows, dtype=torch.int64, device=device)
    drawn, _ = verify_chain_logits(
        none, None, logits[:, None], uniforms[:, None], lengths, temperature, top_k, top_p, False
    )
    return drawn[:, 0]


# ------------------------------------------------------------------ inside


def _describe(
    draft: Tensor, target: Tensor, draft_logits: Tensor | None, filters: Filters
) -> tuple[tuple[Tensor, ...], int]:
    """Return top, cut, total and first of every row, those of the draft before those of the target."""
    temperature, top_k, top_p = filters
    vocab, device = target.shape[-1], target.device
    draft_rows = 0 if draft_logits is None else draft.numel() // vocab
    rows = draft_rows + target.numel() // vocab
    block, chunks = _chunks(vocab)
    tops = torch.empty(rows, chunks, dtype=torch.float32, device=device)
    sums = torch.empty(rows, chunks, dtype=torch.float64, device=device)
    firsts = torch.empty(rows, chunks, dtype=torch.int32, device=device)
    kinds = (torch.float32, torch.int32, torch.float64, torch.int32)
    tables = tuple(torch.empty(rows, dtype=kind, device=device) for kind in kinds)
    greedy = temperature == 0
    partial_kernel[(rows, chunks)](
        draft, target, tops, sums, firsts, draft_rows, vocab, chunks, temperature,
        GREEDY=greedy, BLOCK=block, num_warps=CONFIGS["partial"].num_warps,
    )  # fmt: skip
    settle_kernel[(rows,)](
        draft, target, tops, sums, firsts, *tables, draft_rows, vocab, chunks, temperature,
        float(top_k or 0), float(top_p or 0), GREEDY=greedy,
        HAS_K=top_k is not None and top_k < vocab, HAS_P=top_p is not None and top_p < 1,
        CHUNKS=triton.next_power_of_2(chunks), BLOCK=CONFIGS["settle"].block,
        num_warps=CONFIGS["settle"].num_warps,
    )  # fmt: skip
    return tables, draft_rows


def _chunks(vocab: int) -> tuple[int, int]:
    block = CONFIGS["mass"].block
    return block, triton.cdiv(vocab, block)


def _pair(draft: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both tensors of logits, contiguous and of one type; the target twice without a draft."""
    target = target.contiguous()
    if draft is None:
        return target, target
    if draft.dtype != target.dtype:
        wide = torch.promote_types(draft.dtype, target.dtype)
        return draft.to(wide).contiguous(), target.to(wide)
    return draft.contiguous(), target


def _on(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
