"""Training a flow on counts by maximum likelihood, alone or in several processes.

Started by `torchrun`, the same program trains on all processes with DistributedDataParallel. Each
batch, and the noise that spreads its counts, is drawn for all of them together and then divided: so
the gradient, the mean over the processes, is that of one process with the whole batch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from pkg.algos.coupling_flows.flow import Flow, bits_per_dim
from pkg.algos.coupling_flows.pixels import check_counts, dequantise
from pkg.arguments import positive, whole

#: Called after each step with its number, from 1, and its bits per dimension; True ends the training.
Watcher = Callable[[int, float], bool | None]


@dataclass(frozen=True)
class Fit:
    """What a training leaves: how many steps were made, and the bits per dimension of each batch.

    `average` holds the mean of the weights over the last steps, which is better than the last ones.
    """

    steps: int
    bits: list[float]
    average: dict[str, Tensor]


@contextmanager
def processes(backend: str = "gloo") -> Iterator[tuple[int, int]]:
    """Join the processes that `torchrun` started; give this one's number, and how many there are."""
    if "WORLD_SIZE" not in os.environ:
        yield 0, 1
        return
    distributed.init_process_group(backend)
    try:
        yield distributed.get_rank(), distributed.get_world_size()
    finally:
        distributed.destroy_process_group()


def fit(
    flow: Flow, counts: Tensor, *, bins: int, steps: int, batch: int, lr: float, seed: int,
    momentum: float = 0.999, warm_up: int = 100, clip: float = 100.0, watch: Watcher | None = None,
) -> Fit:  # fmt: skip
    """Train a flow in place by Adam on the likelihood of counts, spread evenly over their bins.

    Parameters
    ----------
    flow
        In the type and on the device that it is to be trained in. Its data-dependent layers are set
        from the first batch.
    counts
        Integers from 0 to bins - 1, (N, ...), the same in all processes.
    bins
        How many values a count can have.
    steps, batch
        How many batches, and the samples in each, of all processes together.
    lr, warm_up
        Adam's rate, which rises to this from 0 over so many steps.
    seed
        Of batches and noise.
    momentum
        Of the average of the weights, corrected for its beginning.
    clip
        The largest norm of a gradient, in nats per sample.
    watch
        Told the bits per dimension after each step; may end the training.

    Returns
    -------
    Fit
        Steps, bits per dimension, averaged weights.

    Raises
    ------
    TypeError, ValueError
        If an argument is no such number, there are fewer samples than a batch has, the batch cannot
        be divided evenly among the processes, or the loss is not finite.
    """
    rank, world = _place(batch)
    for name, value in (("steps", steps), ("batch", batch), ("warm_up", warm_up)):
        whole(name, value, 1)
    check_counts(counts, bins)
    if len(counts) < batch:
        raise ValueError(f"counts must hold at least a batch of {batch}, got {len(counts)}")
    positive("lr", lr)
    dims = counts[0].numel()
    batches = _batches(counts, bins, batch, seed, next(flow.parameters()))
    optimizer = torch.optim.Adam(flow.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / warm_up))
    average = _Average(flow, momentum)
    bits: list[float] = []
    x = next(batches)
    flow.initialise(x)
    model = nn.parallel.DistributedDataParallel(flow) if world > 1 else flow
    for step in range(1, steps + 1):
        loss = -model(x[rank::world]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), clip)
        optimizer.step()
        schedule.step()
        average.update(flow)
        told = _mean(loss.detach(), world)
        if not math.isfinite(told):
            raise ValueError(f"the loss is {told} at step {step}: lower lr")
        bits.append(float(bits_per_dim(torch.tensor(-told, dtype=torch.float64), dims, bins)))
        if watch is not None and watch(step, bits[-1]):
            break
        x = next(batches)
    return Fit(len(bits), bits, average.state(flow))


def _place(batch: int) -> tuple[int, int]:
    """Return this process's number and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    world = distributed.get_world_size()
    if batch % world:
        raise ValueError(f"batch must be a multiple of the {world} processes, got {batch}")
    return distributed.get_rank(), world


def _batches(counts: Tensor, bins: int, batch: int, seed: int, like: Tensor) -> Iterator[Tensor]:
    """Yield batches in [0, 1), each epoch in a new order; the last, incomplete one is left out."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(counts), generator=draw)
        for start in range(0, len(counts) - batch + 1, batch):
            chosen = counts[order[start : start + batch]]
            x = dequantise(chosen, bins=bins, generator=draw, dtype=like.dtype)
            yield x.to(like.device)


def _mean(loss: Tensor, world: int) -> float:
    if world > 1:
        distributed.all_reduce(loss)
    return float(loss) / world


class _Average:
    """The exponential mean of a model's weights."""

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.momentum, self.weight = momentum, 0.0
        self.sums = [torch.zeros_like(p) for p in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.weight = self.momentum * self.weight + 1 - self.momentum
        torch._foreach_lerp_(self.sums, list(model.parameters()), 1 - self.momentum)

    def state(self, model: nn.Module) -> dict[str, Any]:
        """Return the model's state with its weights averaged."""
        found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for (name, _), total in zip(model.named_parameters(), self.sums, strict=True):
            found[name] = total / self.weight
        return found
