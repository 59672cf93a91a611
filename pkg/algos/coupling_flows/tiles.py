"""Couplings of vectors on the CPU, tile by tile: a tile of samples stays in the cache for all layers.

Features are the rows of a tile and samples its columns. So the parameters of a coupling, which its
network gives one below the other, are blocks of memory without gaps, and where the layers take turns
at changing the same two halves, so are the halves: they are changed in place, and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

#: Samples in a tile, for each thread: with 64 hidden units some 400 KB of activations.
TILE = 512


@dataclass
class _Step:
    """One layer at work on a tile: where it reads and writes, all of it memory that exists already."""

    weights: list[Tensor]
    seen: Tensor
    rest: Tensor
    first: Tensor
    second: Tensor
    numbers: Tensor
    raw: Tensor
    shift: Tensor
    total: Tensor
    rows: tuple[Tensor, Tensor] | None


class TiledStack(nn.Module):
    """The layers of a stack, on the CPU, without gradients.

    Parameters
    ----------
    layers
        For each: its mask (D,), True where it keeps, and the weights and biases of its network.
    bound
        Of the log-scales; 0 for none.
    """

    order: Tensor
    back: Tensor

    def __init__(self, layers: list[tuple[Tensor, ...]], bound: float) -> None:
        super().__init__()
        self.bound, self.count = bound, len(layers)
        masks = [layer[0] for layer in layers]
        self.halves = all(torch.equal(a, ~b) or torch.equal(a, b) for a, b in pairwise(masks))
        order = torch.arange(len(masks[0]))
        if self.halves:  # what the first layer keeps comes first
            order = masks[0].logical_not().long().argsort(stable=True)
        self.plain = bool((order == torch.arange(len(order))).all())
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        for number, (kept, *weights, w3, b3) in enumerate(layers):
            changed = len(b3) // 2
            if bound > 0:  # tanh(u) = 2 sigmoid(2 u) - 1, and the sigmoid is fast
                w3[:changed] *= 2 / bound
                b3[:changed] *= 2 / bound
            kept = kept[order]
            rows = (kept.nonzero()[:, 0], (~kept).nonzero()[:, 0])
            tensors = [t if t.ndim == 2 else t[:, None] for t in (*weights, w3, b3)]
            for place, tensor in enumerate((*rows, *tensors)):
                self.register_buffer(f"t{number}_{place}", tensor, persistent=False)

    def forward(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Return z (N, D) and its log-determinants (N,), or with `inverse` x and its own."""
        out = torch.empty(x.shape, dtype=x.dtype)
        log_det = torch.empty(len(x), dtype=x.dtype)
        tile = min(len(x), TILE * torch.get_num_threads())
        with torch.inference_mode():
            for start in range(0, len(x), tile or 1):
                here = slice(start, start + tile)
                part = x[here].T
                if start == 0 or part.shape[1] < tile:
                    value = torch.empty(part.shape, dtype=x.dtype)
                    totals, steps = self._lay_out(value)
                if self.plain:
                    value.copy_(part)
                else:
                    torch.index_select(part, 0, self.order, out=value)
                totals.zero_()
                for step in reversed(steps) if inverse else steps:
                    self._couple(value, step, inverse)
                torch.sum(totals, 0, out=log_det[here])
                out[here] = (value if self.plain else value.index_select(0, self.back)).T
            factor = (2 * self.bound or 1.0) * (-1 if inverse else 1)
            log_det.mul_(factor)
        return out, log_det

    def _lay_out(self, value: Tensor) -> tuple[Tensor, list[_Step]]:
        """Return what collects the log-scales, and the layers with their memory in a tile."""
        samples = value.shape[1]
        layers = [[getattr(self, f"t{n}_{i}") for i in range(8)] for n in range(self.count)]
        most = max(len(rest) for _, rest, *_ in layers)
        hidden = len(layers[0][2])
        first, second, numbers, totals = (
            value.new_empty(size, samples) for size in (hidden, hidden, 2 * most, most)
        )
        steps = []
        for seen, rest, *weights in layers:
            changed, rows = len(rest), None
            if self.halves:
                places = [value[int(some[0]) : int(some[-1]) + 1] for some in (seen, rest)]
            else:
                places = [value.new_empty(len(some), samples) for some in (seen, rest)]
                rows = (seen, rest)
            steps.append(
                _Step(
                    weights, places[0], places[1], first, second, numbers[: 2 * changed], numbers[:changed],
                    numbers[changed : 2 * changed], totals[:changed], rows,
                )
            )  # fmt: skip
        return totals, steps

    def _couple(self, value: Tensor, step: _Step, inverse: bool) -> None:
        """Change some rows of a tile (D, samples) in place, and collect what log_det is made of."""
        if step.rows is not None:
            for rows, part in zip(step.rows, (step.seen, step.rest), strict=True):
                torch.index_select(value, 0, rows, out=part)
        w1, b1, w2, b2, w3, b3 = step.weights
        torch.addmm(b1, w1, step.seen, out=step.first).relu_()
        torch.addmm(b2, w2, step.first, out=step.second).relu_()
        torch.addmm(b3, w3, step.second, out=step.numbers)
        # s = bound · tanh(raw / bound) = 2 bound · (sigmoid(2 raw / bound) - 1/2)
        if self.bound > 0:
            step.raw.sigmoid_().sub_(0.5)
        step.total.add_(step.raw)
        scale = step.raw.mul_(2 * self.bound).exp_() if self.bound > 0 else step.raw.exp_()
        if inverse:
            step.rest.sub_(step.shift).div_(scale)
        else:
            torch.addcmul(step.shift, step.rest, scale, out=step.rest)
        if step.rows is not None:
            value.index_copy_(0, step.rows[1], step.rest)
