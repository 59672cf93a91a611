"""Drafts, trees and logits on which the kernels of verification are tried."""

from __future__ import annotations

import torch

from pkg.algos.language_model import sampling_distribution

OPTIONS = {
    "plain": {},
    "hot": {"temperature": 2.5},
    "cold": {"temperature": 0.3},
    "greedy": {"temperature": 0.0},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.7},
    "all": {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
}


def launchers():
    import pkg.cuda.speculative_decoding as module

    return module


def logits(*shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=generator)).to(dtype)


def uniforms(*shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drafted(q_logits, options, seed):
    """Tokens drawn from the rows of q, (..., vocab) to (...)."""
    law = sampling_distribution(q_logits, **options)
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(law.flatten(0, -2), 1, generator=generator).reshape(law.shape[:-1])


def chain(batch, gamma, vocab, options, *, seed, dtype=torch.float32):
    """A draft near its target, so that some of it is accepted: tokens, q, p, uniforms, lengths."""
    p = logits(batch, gamma + 1, vocab, seed=seed, dtype=dtype)
    noise = logits(batch, gamma, vocab, seed=seed + 1)
    q = (p[:, :gamma].float() + 0.4 * noise).to(dtype)
    tokens = drafted(q, options, seed + 2) if gamma else torch.zeros(batch, 0, dtype=torch.int64)
    lengths = torch.arange(batch) % (gamma + 1)
    lengths[: batch // 2] = gamma
    return tokens, q, p, uniforms(batch, gamma + 1, seed=seed + 3), lengths


def tree(batch, parents, vocab, options, *, seed, dtype=torch.float32):
    """Siblings drawn without replacement: tokens, parents, q, p, uniforms."""
    nodes = len(parents)
    p = logits(batch, nodes + 1, vocab, seed=seed, dtype=dtype)
    q = (p.float() + 0.2 * logits(batch, nodes + 1, vocab, seed=seed + 1)).to(dtype)
    law = sampling_distribution(q, **options)
    generator = torch.Generator().manual_seed(seed + 2)
    tokens = torch.zeros(batch, nodes, dtype=torch.int64)
    for place in range(-1, nodes):
        children = [n for n, parent in enumerate(parents) if parent == place]
        if children:
            weights = law[:, place + 1] + 1e-30  # where a filter leaves too few, any token will do
            tokens[:, children] = torch.multinomial(weights, len(children), generator=generator)
    return (
        tokens,
        torch.tensor(parents, dtype=torch.int64).expand(batch, -1),
        q,
        p,
        uniforms(batch, nodes + 1, seed=seed + 3) ** 2,
    )
