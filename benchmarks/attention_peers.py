"""What a user would call instead of our attention, and how a benchmark knows that it is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

#: PyTorch's fused kernels on a GPU, each chosen by name.
BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "FlashAttention-2": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def naive(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """The usual four lines: every score in memory."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1) @ v


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None = None,
    causal: bool = False,
    backend: str | None = None,
) -> Tensor:
    """PyTorch's own attention, by the backend that it chooses or by one named in `BACKENDS`."""
    grouped = q.shape[1] != k.shape[1]
    if backend is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=causal, enable_gqa=grouped
        )
    with sdpa_kernel(BACKENDS[backend]):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=causal, enable_gqa=grouped
        )


@cache
def _compiled() -> Callable[..., Any]:
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch
    from torch.nn.attention.flex_attention import flex_attention

    # Backward is timed alone, many times on one graph; by default its buffers are given away.
    functorch.donated_buffer = False
    dynamo.recompile_limit = 64  # a compilation for each case; past 8 it would run uncompiled
    return torch.compile(flex_attention, dynamic=False)


class Flex:
    """FlexAttention, compiled at the first call; `rule(b, h, i, j)` says what is visible."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, rule: Callable[..., Tensor] | None = None,
        batch: int | None = None,
    ) -> None:  # fmt: skip
        self.inputs, self.rule, self.batch = (q, k, v), rule, batch

    @cached_property
    def blocks(self) -> Any:
        """The tiles that hold a visible pair: made once, as its users do."""
        from torch.nn.attention.flex_attention import create_block_mask

        q, k, _ = self.inputs
        if self.rule is None:
            return None
        return create_block_mask(
            self.rule, self.batch, None, q.shape[2], k.shape[2], device=q.device.type
        )

    def __call__(self) -> Tensor:
        """Return the output."""
        q, k, v = self.inputs
        return _compiled()(q, k, v, block_mask=self.blocks, enable_gqa=q.shape[1] != k.shape[1])


class Backward:
    """The backward pass alone: the forward pass runs at the first call, and its graph is kept."""

    def __init__(
        self, forward: Callable[[], Tensor], inputs: tuple[Tensor, ...], gradient: Tensor
    ) -> None:
        self.forward, self.inputs, self.gradient = forward, inputs, gradient
        self.output: Tensor | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        """Return the gradients of the inputs."""
        if self.output is None:
            self.output = self.forward()
        return torch.autograd.grad(self.output, self.inputs, self.gradient, retain_graph=True)

    def training(self) -> tuple[Tensor, ...]:
        """Forward and backward, nothing kept: what a training step holds in memory."""
        return torch.autograd.grad(self.forward(), self.inputs, self.gradient)


@dataclass(frozen=True, eq=False)
class Problem:
    """Inputs of attention, (batch, heads, length, head_dim), and the pairs that count.

    `visible` is None or boolean, (q_len, k_len) or (batch, 1, q_len, k_len).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    visible: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def pairs(self) -> int:
        """Visible pairs of query and key in one head, over the whole batch."""
        batch, _, q_len, _ = self.q.shape
        if self.visible is None:
            return batch * q_len * self.k.shape[2]
        each = int(self.visible.sum())
        return each if self.visible.ndim == 4 else each * batch

    def same(self, ours: Any, theirs: Any) -> bool:
        """Tell whether a result is right: the gate before every timing.

        For the first and the last key/value head, the error against float64 is at most twice that
        of the naive form in the same type, and a rounding of the result. Backward, forms that do
        not keep P make it again as exp(score - lse): the difference is rounded too, which is a
        relative error of P of the size of the scores, in roundings. Elsewhere a result may differ
        from ours by twice as much as is allowed.
        """
        results, base = _tensors(theirs), _tensors(ours)
        bounds = [0.0] * len(base)
        for places, exact, allowed in self._exact:
            for i, (place, want, bound) in enumerate(zip(places, exact, allowed, strict=True)):
                error = (results[i][place].double() - want).abs().max().item()
                if not error <= bound:  # a NaN is no small error
                    return False
                bounds[i] = max(bounds[i], bound)
        return all(
            (a - b).abs().max().item() <= 2 * bound
            for a, b, bound in zip(results, base, bounds, strict=True)
        )

    @cached_property
    def _exact(self) -> list[tuple[list[Any], list[Tensor], list[float]]]:
        """For two heads: where they are in the results, the float64 results, allowed errors."""
        found = []
        for places, inputs, visible, gradient in self._parts():
            exact = _evaluate([x.double() for x in inputs], visible, gradient)
            plain = _evaluate(inputs, visible, gradient)
            rounding = torch.finfo(self.q.dtype).eps
            if gradient is not None:  # scores are float32, whatever the inputs are
                rounding += torch.finfo(torch.float32).eps * _largest_score(inputs)
            allowed = [
                2 * (a.double() - b).abs().max().item() + rounding * b.abs().max().item()
                for a, b in zip(plain, exact, strict=True)
            ]
            found.append((places, exact, allowed))
        return found

    def _parts(self) -> Iterator[tuple[list[Any], list[Tensor], Tensor | None, Tensor | None]]:
        group = self.q.shape[1] // self.k.shape[1]
        for batch, head in ((0, 0), (self.q.shape[0] - 1, self.k.shape[1] - 1)):
            own = (slice(batch, batch + 1), slice(head * group, (head + 1) * group))
            shared = (slice(batch, batch + 1), slice(head, head + 1))
            inputs = [self.q[own], self.k[shared], self.v[shared]]
            visible = self.visible
            if visible is not None and visible.ndim == 4:
                visible = visible[batch : batch + 1]
            if self.gradient is None:
                yield [own], inputs, visible, None
            else:
                yield [own, shared, shared], inputs, visible, self.gradient[own]


def _evaluate(
    inputs: list[Tensor], visible: Tensor | None, gradient: Tensor | None
) -> list[Tensor]:
    if gradient is None:
        with torch.no_grad():
            return [naive(inputs[0], inputs[1], inputs[2], visible)]
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = naive(leaves[0], leaves[1], leaves[2], visible)
    return list(torch.autograd.grad(output, leaves, gradient.to(output.dtype)))


def _largest_score(inputs: list[Tensor]) -> float:
    q, k = (x.detach().float() for x in inputs[:2])
    return (q @ k.mT).abs().max().item() / math.sqrt(q.shape[-1])


def _tensors(result: Any) -> list[Tensor]:
    return [x.detach() for x in (result if isinstance(result, tuple) else (result,))]
