"""WaveNet's stack: dilated, causal, gated; and the same network one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

from pkg.algos.dilated_convolution.convolution import dilated_conv1d
from pkg.algos.dilated_convolution.geometry import receptive_field
from pkg.arguments import whole


@dataclass
class CausalState:
    """What a stack remembers between two steps: of each layer, the inputs its taps still need.

    Attributes
    ----------
    past
        For each layer (batch, channels, (k - 1) r): a ring in which step t writes at t mod length.
    step
        The number of steps taken.
    """

    past: list[Tensor]
    step: int = 0


class CausalDilatedStack(nn.Module):
    """A network over a sequence whose output at t depends on nothing after t.

    Each layer convolves at its rate with zeros before the beginning only, passes the result through
    tanh · sigmoid, and adds it to its input; the sum of what all layers give makes the output.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the input and of the output.
    channels
        Channels inside.
    rates
        The dilation of each layer, from the input on: WaveNet repeats 1, 2, 4, ..., 512.
    kernel_size
        Taps of each layer, at least 2.

    Raises
    ------
    TypeError, ValueError
        If an argument is not made of ints in range; from `forward` and `step`, if a shape is wrong.

    Notes
    -----
    van den Oord et al. (2016). A step costs the same however long the past is (Le Paine et al., 2016).
    Ledger: `dilated_convolution:causal_field`, `dilated_convolution:causal_step`.

    Examples
    --------
    >>> stack = CausalDilatedStack(4, 2, rates=(1, 2, 4))
    >>> stack.receptive_field
    8
    >>> x = torch.linspace(-1, 1, 40).view(1, 4, 10)
    >>> state = stack.start(1)
    >>> one_by_one = torch.stack([stack.step(x[:, :, t], state) for t in range(10)], 2)
    >>> bool(torch.allclose(one_by_one, stack(x), atol=1e-6))
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int = 32,
        rates: Sequence[int] = (1, 2, 4, 8),
        kernel_size: int = 2,
    ) -> None:
        super().__init__()
        self.in_channels = whole("in_channels", in_channels, 1)
        whole("out_channels", out_channels, 1)
        self.channels = whole("channels", channels, 1)
        self.kernel_size = whole("kernel_size", kernel_size, 2)
        if not rates:
            raise ValueError("rates must have at least one layer, got none")
        self.rates = tuple(whole(f"rates[{i}]", r, 1) for i, r in enumerate(rates))
        self.enter = nn.Conv1d(in_channels, channels, 1)
        self.gates = nn.ModuleList(
            nn.Conv1d(channels, 2 * channels, kernel_size, dilation=r) for r in self.rates
        )
        self.stays = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in self.rates)
        self.skips = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in self.rates)
        self.leave = nn.Sequential(
            nn.ReLU(), nn.Conv1d(channels, channels, 1), nn.ReLU(),
            nn.Conv1d(channels, out_channels, 1),
        )  # fmt: skip

    @property
    def receptive_field(self) -> int:
        """How many inputs, the present one included, can influence an output."""
        return receptive_field([(self.kernel_size, rate) for rate in self.rates])

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out_channels, time) for x (batch, in_channels, time)."""
        self._check("x", x, "(batch, {}, time)", 3)
        hidden = self.enter(x)  # (N, C, T)
        total = torch.zeros_like(hidden)
        for layer, rate in enumerate(self.rates):
            gate = cast(nn.Conv1d, self.gates[layer])
            before = ((self.kernel_size - 1) * rate, 0)
            gated = dilated_conv1d(hidden, gate.weight, gate.bias, dilation=rate, padding=before)
            hidden, total = self._after(layer, gated, hidden, total)
        return self.leave(total)

    def start(self, batch: int) -> CausalState:
        """Return the state before the first step of `batch` sequences: a past of zeros."""
        whole("batch", batch, 1)
        like = self.enter.weight
        lengths = [(self.kernel_size - 1) * rate for rate in self.rates]
        return CausalState([like.new_zeros(batch, self.channels, n) for n in lengths])

    def step(self, x: Tensor, state: CausalState) -> Tensor:
        """Return (batch, out_channels) for the next x (batch, in_channels), and advance `state`.

        Step after step this gives what `forward` gives for the whole sequence. The state is changed
        in place and without gradient.
        """
        self._check("x", x, "(batch, {})", 2)
        if x.shape[0] != state.past[0].shape[0]:
            raise ValueError(
                f"x must have the state's batch size {state.past[0].shape[0]}, got {x.shape[0]}"
            )
        hidden = self.enter(x[:, :, None])  # (N, C, 1)
        total = torch.zeros_like(hidden)
        for layer, rate in enumerate(self.rates):
            gate = cast(nn.Conv1d, self.gates[layer])
            past = state.past[layer]
            length = past.shape[2]
            # Tap j is (k - 1 - j) r steps back; the last tap is the present.
            back = [(self.kernel_size - 1 - j) * rate for j in range(self.kernel_size - 1)]
            seen = past[:, :, [(state.step - b) % length for b in back]]  # (N, C, k - 1)
            gated = conv1d(torch.cat((seen, hidden), 2), gate.weight, gate.bias)  # (N, 2C, 1)
            past[:, :, state.step % length] = hidden[:, :, 0].detach()
            hidden, total = self._after(layer, gated, hidden, total)
        state.step += 1
        return self.leave(total)[:, :, 0]

    def _after(
        self, layer: int, gated: Tensor, hidden: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the next layer's input and the sum so far."""
        signal, gate = gated.chunk(2, 1)
        passed = torch.tanh(signal) * torch.sigmoid(gate)
        return hidden + self.stays[layer](passed), total + self.skips[layer](passed)

    def _check(self, name: str, x: Tensor, shape: str, ndim: int) -> None:
        if x.ndim != ndim or x.shape[1] != self.in_channels:
            wanted = shape.format(self.in_channels)
            raise ValueError(f"{name} must have shape {wanted}, got {tuple(x.shape)}")
