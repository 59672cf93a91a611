"""Attention over a sequence that several processes hold in parts: keys and values go round a ring."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pkg.algos.flash_attention import arguments
from pkg.algos.flash_attention.operator import backward_operator, forward_operator
from pkg.algos.flash_attention.products import accumulation_dtype
from pkg.algos.flash_attention.softmax import SoftmaxState


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: Any = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention over the whole sequence, of which this process holds one part.

    Each process calls it with its own part; the parts, in the order of the ranks, make the sequence.
    Keys and values travel round the ring once, and every process merges what its queries find.
    With one process, or without `torch.distributed`, it is `flash_attention`.

    Parameters
    ----------
    q
        This process's queries, (batch, heads, sequence / processes, head_dim).
    k, v
        Its keys and values, (batch, kv_heads, sequence / processes, head_dim).
    group
        The process group; None means all processes.
    causal
        A query sees its own position in the whole sequence and earlier ones.
    scale
        Factor of the scores; 1 / sqrt(head_dim) if None.

    Returns
    -------
    Tensor
        The output for this process's queries, in q's shape and dtype. Differentiable: the gradients
        of keys and values go round the ring as well, and arrive where those came from.

    Raises
    ------
    TypeError, ValueError
        As `flash_attention`; or, in every process, if the parts have different shapes or dtypes, or
        queries and keys have different lengths where `causal` is asked for.

    Notes
    -----
    Liu, Zaharia and Abbeel (2023). The backward pass needs of the forward pass only its output and
    log-sum-exp. Causal parts are not balanced: the last process works most. Ledger:
    `flash_attention:ring`.

    Examples
    --------
    >>> x = torch.eye(2).reshape(1, 1, 2, 2)
    >>> ring_attention(x, x, x, causal=True, scale=1.0)  # a ring of one
    tensor([[[[1.0000, 0.0000],
              [0.2689, 0.7311]]]])
    """
    arguments.check_tensors(q, k, v)
    arguments.check_shapes(q, k, v)
    arguments.check_device_limits(q)
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(
            f"k must have q's length {q.shape[2]} for causal attention, got {k.shape[2]}"
        )
    factor = arguments.resolve_scale(scale, q.shape[-1])
    if dist.is_available() and dist.is_initialized():
        _check_parts(q, k, group)
    return _Ring.apply(q, k, v, group, causal, factor)  # type: ignore[no-any-return]


def _check_parts(q: Tensor, k: Tensor, group: Any) -> None:
    """Raise, in every process alike, unless all parts have one shape and dtype."""
    mine = torch.tensor(
        [*q.shape, *k.shape, arguments.DTYPES.index(q.dtype)], dtype=torch.int64, device=q.device
    )
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, mine, group=group)
    for rank, part in enumerate(parts):
        if not torch.equal(part, parts[0]):
            shapes = tuple(part[:4].tolist()), tuple(parts[0][:4].tolist())
            raise ValueError(
                "q, k and v must have the same shapes and dtype in every process: "
                f"q of process {rank} has {shapes[0]}, that of process 0 has {shapes[1]}"
            )


def _size_and_rank(group: Any) -> tuple[int, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return 1, 0
    return dist.get_world_size(group), dist.get_rank(group)


def _pass_on(tensors: list[Tensor], group: Any) -> list[Tensor]:
    """Send tensors to the next process of the ring, and return those of the one before."""
    size, rank = _size_and_rank(group)
    if size == 1:
        return tensors
    found = [torch.empty_like(tensor) for tensor in tensors]
    after, before = (rank + 1) % size, (rank - 1) % size
    if group is not None:
        after, before = (dist.get_global_rank(group, place) for place in (after, before))
    operations = []
    for tag, (mine, theirs) in enumerate(zip(tensors, found, strict=True)):
        operations.append(dist.P2POp(dist.isend, mine, after, group, tag))
        operations.append(dist.P2POp(dist.irecv, theirs, before, group, tag))
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return found


def _steps(group: Any, causal: bool) -> Iterator[tuple[bool, int]]:
    """Yield for each step of the ring whether its keys are needed, and the band's right end."""
    size, rank = _size_and_rank(group)
    for step in range(size):
        owner = (rank - step) % size  # whose keys are here now
        yield not causal or owner <= rank, 0 if causal and owner == rank else -1


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: Any, causal: bool, scale: float
    ) -> Tensor:
        state = SoftmaxState.empty(*q.shape, dtype=accumulation_dtype(q.dtype))
        state = SoftmaxState(*(x.to(q.device) for x in (state.maximum, state.total, state.output)))
        parts = [k.contiguous(), v.contiguous()]
        for step, (needed, right) in enumerate(_steps(group, causal)):
            if step:
                parts = _pass_on(parts, group)
            if needed:
                found = forward_operator(q, *parts, None, None, -1, right, 0, scale)
                state = state.merge(SoftmaxState.from_lse(*found))
        output = state.output.to(q.dtype)
        ctx.save_for_backward(q, k, v, output, state.lse)
        ctx.rest = group, causal, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, k, v, output, lse = ctx.saved_tensors
        group, causal, scale = ctx.rest
        kind = accumulation_dtype(q.dtype)
        dq, nothing = torch.zeros_like(q, dtype=kind), torch.zeros_like(lse)
        # The gradients of keys and values travel with them, and are home after a full round.
        parts = [k.contiguous(), v.contiguous()]
        sums = [torch.zeros_like(x, dtype=kind) for x in parts]
        for step, (needed, right) in enumerate(_steps(group, causal)):
            if step:
                *parts, sums[0], sums[1] = _pass_on([*parts, *sums], group)
            if needed:
                found = backward_operator(
                    gradients[0].contiguous(), nothing, q, *parts, output, lse, None, None,
                    -1, right, 0, scale,
                )  # fmt: skip
                for whole, part in zip((dq, *sums), found, strict=True):
                    whole += part
        sums = _pass_on(sums, group)
        return dq.to(q.dtype), sums[0].to(k.dtype), sums[1].to(v.dtype), None, None, None
