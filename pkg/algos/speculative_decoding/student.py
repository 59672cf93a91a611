"""The small model behind `DistilledDrafter`: a language model that borrows its teacher's embedding.

Its own weights are few: two layers, a matrix that shrinks the teacher's embedding, and one that reads
the next token from the teacher's rows of the commonest tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pkg.algos.language_model import LanguageModel, Shape

WIDTH, HEADS, KV_HEADS, LAYERS, GATED = 192, 3, 1, 2, 384


def student_shape(teacher: Shape) -> Shape:
    """Return the sizes of the student of such a teacher."""
    return replace(teacher, layers=LAYERS, width=WIDTH, heads=HEADS, kv_heads=KV_HEADS)


def student_model(
    teacher: LanguageModel, own: dict[str, Tensor], shortlist: Tensor, used: Tensor | None = None
) -> LanguageModel:
    """Return the student: its logits (…, len(shortlist)) are those of the shortlist's tokens.

    Parameters
    ----------
    teacher
        The model whose embedding E is used.
    own
        The student's weights; `shrink` and `read`, (WIDTH, teacher's width), make its embedding
        E · shrinkᵀ and its last product E[shortlist] · readᵀ.
    shortlist
        Token ids, (tokens,).
    used
        Token ids, (tokens,): embed these alone, numbered from 0, as training does; all if None.
    """
    table = teacher.weights["token_embd.weight"]
    rows = table if used is None else table[used]
    kind = own["shrink"].dtype
    weights = {name: w for name, w in own.items() if name not in ("shrink", "read")}
    weights["token_embd.weight"] = rows.to(kind) @ own["shrink"].T  # (vocabulary, WIDTH)
    weights["output.weight"] = table[shortlist].to(kind) @ own["read"].T  # (shortlist, WIDTH)
    return LanguageModel(weights, student_shape(teacher.shape), teacher.tokenizer)


def initial_weights(
    teacher: LanguageModel, shortlist: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return weights to train: the embedding's main directions, and small random layers."""
    table = teacher.weights["token_embd.weight"][shortlist].float()
    main = torch.linalg.eigh(table.T @ table)[1][:, -WIDTH:].T  # (WIDTH, width), orthonormal rows

    def random(rows: int, columns: int, size: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * size / math.sqrt(columns)

    scale = math.sqrt(WIDTH) / float((table @ main.T).norm(dim=1).mean())
    own = {"shrink": main * scale, "read": main * scale / math.sqrt(WIDTH)}
    keys, late = WIDTH // HEADS * KV_HEADS, 1 / math.sqrt(2 * LAYERS)
    for layer in range(LAYERS):
        parts = {
            "attn_q": random(WIDTH, WIDTH), "attn_k": random(keys, WIDTH),
            "attn_v": random(keys, WIDTH), "attn_output": random(WIDTH, WIDTH, late),
            "ffn_gate": random(GATED, WIDTH), "ffn_up": random(GATED, WIDTH),
            "ffn_down": random(WIDTH, GATED, late),
            "attn_norm": torch.ones(WIDTH), "ffn_norm": torch.ones(WIDTH),
        }  # fmt: skip
        own |= {f"blk.{layer}.{name}.weight": weight for name, weight in parts.items()}
    return {**own, "output_norm.weight": torch.ones(WIDTH)}
