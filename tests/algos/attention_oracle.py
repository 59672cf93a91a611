"""Attention by its definition, in one line of einsum, sharing no code with the package."""

from __future__ import annotations

import math

import torch


def band(q_len, k_len, *, left=None, right=None, shift=0):
    """True where query i sees key j: i + shift - left <= j <= i + shift + right."""
    i, j = torch.arange(q_len)[:, None] + shift, torch.arange(k_len)[None]
    visible = torch.ones(q_len, k_len, dtype=torch.bool)
    if left is not None:
        visible &= j >= i - left
    if right is not None:
        visible &= j <= i + right
    return visible


def oracle(q, k, v, visible=None, scale=None):
    """Output and log-sum-exp in the inputs' own dtype; rows that see nothing are 0 and -inf."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * scale
    if visible is None:
        visible = torch.ones((), dtype=torch.bool)
    visible = visible.expand(scores.shape)
    rows = visible.any(-1)
    # An empty row gets a harmless softmax over all keys first, and is then put to 0.
    scores = scores.masked_fill(~visible & rows.unsqueeze(-1), -torch.inf)
    output = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
    lse = scores.logsumexp(-1).masked_fill(~rows, -torch.inf)
    return output.masked_fill(~rows.unsqueeze(-1), 0.0), lse


def draw(seed, q_shape, k_len, kv_heads=None, dtype=torch.float64):
    """Random q, k, v; q of `q_shape`, k and v with `kv_heads` heads and `k_len` positions."""
    batch, heads, _, dim = q_shape
    generator = torch.Generator().manual_seed(seed)
    shapes = (q_shape, *((batch, kv_heads or heads, k_len, dim),) * 2)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def random_parents(nodes, seed):
    """The parents of a random tree of `nodes` nodes; -1 is a root."""
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(
        [int(torch.randint(-1, node, (), generator=generator)) for node in range(nodes)]
    )


def gradients(function, tensors, seed=0):
    """Return the outcome of `function` on leaves made of `tensors`, and the leaves' gradients."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    outcome = function(*leaves)
    generator = torch.Generator().manual_seed(seed)
    arriving = torch.randn(outcome.shape, generator=generator, dtype=torch.float64)
    outcome.backward(arriving.to(outcome.dtype))
    return outcome.detach(), [leaf.grad for leaf in leaves]
