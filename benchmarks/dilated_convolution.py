"""Dilated convolution against what people run: PyTorch's own, unfolding, space-to-batch, a compiler.

Rates 1 to 16 with "same" padding, so that the work hardly changes and a price of the dilation would
show: notes of each case give its time as a multiple of rate 1. On the CPU every contender gets both
memory formats; the dense form is there PyTorch's own (oneDNN skips the gaps), so parity is all there
is to see. On a GPU all tensors are bfloat16 with channels last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, unfold

from benchmarks.harness import Case, Work, ceilings, each, measure
from pkg.algos.dilated_convolution import dilated_conv2d, space_to_batch_conv2d

RATES = (1, 2, 4, 8, 16)
#: Seconds of a case.
SECONDS = 4.0
#: How far two right results may be apart, as a share of their size.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
Plan = tuple[str, Callable[[], Case]]


@dataclass(frozen=True)
class Layer:
    """A 3 × 3 convolution that keeps the size of a map."""

    kind: str
    batch: int
    channels: int
    size: int

    @property
    def groups(self) -> int:
        """One group, or one for each channel."""
        return self.channels if self.kind == "depthwise" else 1

    def __str__(self) -> str:
        return f"{self.kind} {self.batch}x{self.channels}x{self.size}x{self.size}"


@dataclass(frozen=True)
class Setting:
    """Where and how a case is measured."""

    device: str
    form: torch.memory_format
    threads: int
    rounds: int

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16 on a GPU, float32 on the CPU."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32


#: A segmentation head's map at output stride 8, VOC's size; MobileNet's depthwise layers; and a map
#: so small that the call costs more than the work.
CPU_LAYERS = (
    Layer("dense", 1, 64, 65),
    Layer("depthwise", 4, 256, 65),
    Layer("depthwise", 2, 96, 112),
    Layer("depthwise", 1, 32, 33),
)
GPU_LAYERS = (
    Layer("dense", 16, 256, 65),
    Layer("dense", 16, 512, 64),
    Layer("depthwise", 32, 256, 65),
    Layer("depthwise", 32, 96, 112),
)


def unfolded(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    """Copy every tap's pixels into columns, then multiply: im2col, as it is usually written."""
    batch, _, height, width = x.shape
    columns = unfold(x, 3, dilation=rate, padding=rate)
    return (weight.flatten(1) @ columns).view(batch, -1, height, width)


def unfolded_depthwise(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    """The same, channel by channel."""
    batch, channels = x.shape[:2]
    columns = unfold(x, 3, dilation=rate, padding=rate).view(batch, channels, 9, -1)
    return torch.einsum("nctp,ct->ncp", columns, weight.flatten(1)).view(x.shape)


def trained(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> Any:
    """Run forward and backward; return the output and both gradients."""
    leaves = [t.detach().requires_grad_() for t in (x, weight)]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, x)]


def draw(layer: Layer, dtype: torch.dtype, device: str, form: torch.memory_format) -> list[Tensor]:
    """Return x, and a weight that keeps its variance."""
    generator = torch.Generator().manual_seed(0)
    inputs = layer.channels // layer.groups
    x = torch.randn(layer.batch, layer.channels, layer.size, layer.size, generator=generator)
    weight = torch.randn(layer.channels, inputs, 3, 3, generator=generator) / (9 * inputs) ** 0.5
    x = x.to(device, dtype).contiguous(memory_format=form)
    return [x, weight.to(device, dtype).contiguous(memory_format=form)]


def cpu_contenders(layer: Layer, rate: int, last: bool) -> dict[str, Callable[..., Tensor]]:
    """Return the contenders for one memory format; ours first."""
    groups = layer.groups
    found: dict[str, Callable[..., Tensor]] = {
        "ours": partial(dilated_conv2d, dilation=rate, padding=rate, groups=groups),
        "F.conv2d": partial(conv2d, dilation=rate, padding=rate, groups=groups),
    }
    if not last:
        by_columns = unfolded_depthwise if layer.kind == "depthwise" else unfolded
        found["unfold"] = partial(by_columns, rate=rate)
        found["space to batch"] = partial(
            space_to_batch_conv2d, dilation=rate, padding=rate, groups=groups
        )
    return found


def gpu_contenders(layer: Layer, rate: int) -> dict[str, Callable[..., Tensor]]:
    """Return cuDNN, PyTorch's native depthwise kernel, and the compiler, where there are such."""
    plain = partial(conv2d, dilation=rate, padding=rate, groups=layer.groups)
    found: dict[str, Callable[..., Tensor]] = {
        "ours": partial(dilated_conv2d, dilation=rate, padding=rate, groups=layer.groups)
    }
    found["cuDNN"] = partial(_with_cudnn, plain, True)
    if layer.kind == "depthwise":
        found["native"] = partial(_with_cudnn, plain, False)
    found["torch.compile"] = torch.compile(plain, mode="max-autotune-no-cudagraphs", dynamic=False)
    return found


def _with_cudnn(function: Callable[..., Tensor], on: bool, x: Tensor, weight: Tensor) -> Tensor:
    if on and not torch.backends.cudnn.is_available():
        raise RuntimeError("cuDNN is not available")
    with torch.backends.cudnn.flags(enabled=on, benchmark=on):
        return function(x, weight)


def same(ours: Any, theirs: Any) -> bool:
    """Tell whether outputs (and gradients) are the same numbers, up to rounding.

    Both have the error of their own sums: in float32 some 1e-6 of the size, in bfloat16 1/256 for
    the last rounding alone. A tap in the wrong place is off by a third of the size.
    """
    mine = ours if isinstance(ours, list) else [ours]
    others = theirs if isinstance(theirs, list) else [theirs]
    return len(mine) == len(others) and all(
        a.shape == b.shape
        and bool((a.float() - b.float()).norm() <= ROUNDING[a.dtype] * b.float().norm())
        for a, b in zip(mine, others, strict=True)
    )


def case(
    layer: Layer, rate: int, setting: Setting, training: bool, first: dict[str, float]
) -> Case:
    """Measure one layer at one rate; `first` keeps the times at rate 1 of the same setting."""
    tensors = draw(layer, setting.dtype, setting.device, setting.form)
    if setting.device == "cuda":
        calls = gpu_contenders(layer, rate)
    else:
        calls = cpu_contenders(layer, rate, setting.form == torch.channels_last)
    if training:  # whoever unfolds by hand has lost long before
        calls = {n: call for n, call in calls.items() if n not in ("unfold", "space to batch")}
    ready = {
        label: partial(trained if training else _inference, call, *tensors)
        for label, call in calls.items()
    }
    found = measure(
        name(layer, rate, setting, training), ready, same, device=setting.device,
        threads=setting.threads, rounds=setting.rounds, seconds=SECONDS, peaks=ready,
        work=amount(layer, rate, training, tensors), layer=layer.kind, rate=rate, training=training,
        ceiling=ceilings(setting.device, setting.dtype, setting.threads),
    )  # fmt: skip
    for label, timing in found.timings.items():
        if rate == 1:
            first[label] = timing.median
    found.notes["times as long as rate 1"] = {
        label: timing.median / first[label]
        for label, timing in found.timings.items() if label in first
    }  # fmt: skip
    return found


def _inference(call: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    with torch.inference_mode():
        return call(*tensors)


def name(layer: Layer, rate: int, setting: Setting, training: bool) -> str:
    """Return how the case is called in tables."""
    form = "channels last" if setting.form == torch.channels_last else "contiguous"
    return f"{layer}, rate {rate}, {form}{', training' if training else ''}"


def amount(layer: Layer, rate: int, training: bool, tensors: list[Tensor]) -> Work:
    """Return what cannot be saved: products with pixels of the map, tensors read and written once.

    Padding needs no product: a tap that is `rate` away misses the map in `rate` rows or columns.
    Training is the forward pass and two more of the same size: six tensors, not two.
    """
    seen = (layer.size + 2 * max(0, layer.size - rate)) ** 2
    products = seen * layer.batch * layer.channels**2 // layer.groups
    factor = 3 if training else 1
    return Work(2.0 * factor * products, factor * (2 * tensors[0].nbytes + tensors[1].nbytes))


def plans(device: str, threads: tuple[int, ...], rounds: int) -> Iterator[Plan]:
    """Yield what is measured: every layer at every rate forward, at three rates with gradients."""
    forms = (torch.contiguous_format, torch.channels_last)
    for layer in CPU_LAYERS if device == "cpu" else GPU_LAYERS:
        for form in forms if device == "cpu" else forms[1:]:
            for count in threads:
                setting = Setting(device, form, count, rounds)
                for training in (False, True):
                    first: dict[str, float] = {}
                    for rate in RATES[::2] if training and device == "cpu" else RATES:
                        yield (
                            name(layer, rate, setting, training),
                            partial(case, layer, rate, setting, training, first),
                        )


def run(device: str, threads: tuple[int, ...], rounds: int) -> Iterator[Case]:
    """Measure dense and depthwise layers at rates from 1 to 16, forward and training."""
    return (yield from each(plans(device, threads, rounds)))
