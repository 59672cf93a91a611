"""Dilated convolution against what people run: PyTorch's own, unfolding, space-to-batch, a compiler.

Rates 1 to 16 with "same" padding, so that the work hardly changes and a price of the dilation would
show: notes of each case give its time as a multiple of rate 1. On the CPU every contender gets both
memory formats. On a GPU all are channels-last in bfloat16, and the larger of two limits is noted:
the products at the speed of a large matrix product, the bytes at the speed of a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, unfold

from benchmarks.harness import Case, copy_bandwidth, measure
from pkg.algos.dilated_convolution import dilated_conv2d, space_to_batch_conv2d

RATES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Layer:
    """A 3 × 3 convolution that keeps the size of a map."""

    name: str
    batch: int
    channels: int
    size: int
    depthwise: bool

    @property
    def groups(self) -> int:
        """One group, or one for each channel."""
        return self.channels if self.depthwise else 1

    @property
    def products(self) -> int:
        """Multiplications of the forward pass, padding counted."""
        return 9 * self.batch * self.channels**2 * self.size**2 // self.groups


#: A segmentation head's map at output stride 8, VOC's size; MobileNet's depthwise layers; and a map
#: so small that the call costs more than the work.
CPU_LAYERS = (
    Layer("dense", 1, 64, 65, False),
    Layer("depthwise", 4, 256, 65, True),
    Layer("depthwise", 2, 96, 112, True),
    Layer("depthwise", 1, 32, 33, True),
)
GPU_LAYERS = (
    Layer("dense", 16, 256, 65, False),
    Layer("dense", 16, 512, 64, False),
    Layer("depthwise", 32, 256, 65, True),
    Layer("depthwise", 32, 96, 112, True),
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
        by_columns = unfolded_depthwise if layer.depthwise else unfolded
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
    if torch.backends.cudnn.is_available():
        found["cuDNN"] = partial(_with_cudnn, plain, True)
    else:
        print("cuDNN is not available: left out")
    if layer.depthwise:
        found["native"] = partial(_with_cudnn, plain, False)
    found["torch.compile"] = torch.compile(plain, mode="max-autotune-no-cudagraphs", dynamic=False)
    return found


def _with_cudnn(function: Callable[..., Tensor], on: bool, x: Tensor, weight: Tensor) -> Tensor:
    with torch.backends.cudnn.flags(enabled=on, benchmark=on):
        return function(x, weight)


def same(ours: Any, theirs: Any) -> bool:
    """Tell whether outputs (and gradients) agree to a hundredth of their size.

    Whoever computes the right sums is off by a rounding of bfloat16 at most, 1/256; a tap in the
    wrong place is off by about a third. The tests are the place for tighter bounds.
    """
    mine = ours if isinstance(ours, list) else [ours]
    others = theirs if isinstance(theirs, list) else [theirs]
    return all(
        bool((a.float() - b.float()).norm() <= 0.01 * b.float().norm())
        for a, b in zip(mine, others, strict=True)
    )


def run(device: str, threads: tuple[int, ...], rounds: int) -> list[Case]:
    """Measure every layer at every rate, forward; at two rates also with the backward pass."""
    if device == "cuda":
        return _run_cuda(rounds)
    cases = []
    for layer in CPU_LAYERS:
        for last in (False, True):
            form = torch.channels_last if last else torch.contiguous_format
            for count in threads:
                first: dict[str, float] = {}
                for rate in RATES:
                    tensors = draw(layer, torch.float32, device, form)
                    calls = cpu_contenders(layer, rate, last)
                    name = f"{_title(layer, rate)}, {'channels last' if last else 'contiguous'}"
                    case = _measured(name, calls, tensors, False, device, count, rounds)
                    _add_price(case, first)
                    cases.append(case)
                for rate in (2, 8):
                    tensors = draw(layer, torch.float32, device, form)
                    calls = dict(list(cpu_contenders(layer, rate, last).items())[:2])
                    name = f"{_title(layer, rate)}, {'channels last' if last else 'contiguous'}"
                    cases.append(
                        _measured(f"{name}, training", calls, tensors, True, device, count, rounds)
                    )
    return cases


def _run_cuda(rounds: int) -> list[Case]:
    bandwidth, speed = copy_bandwidth(), _product_speed()
    cases = []
    for layer in GPU_LAYERS:
        for training in (False, True):
            first: dict[str, float] = {}
            for rate in RATES:
                tensors = draw(layer, torch.bfloat16, "cuda", torch.channels_last)
                calls = gpu_contenders(layer, rate)
                name = f"{_title(layer, rate)}, bf16{', training' if training else ''}"
                case = _measured(name, calls, tensors, training, "cuda", 1, rounds)
                _add_price(case, first)
                if not training:
                    moved = 2 * tensors[0].nbytes + tensors[1].nbytes
                    limit = max(2 * layer.products / speed, moved / bandwidth)
                    case.notes["share of the limit"] = limit / case.timings["ours"].median
                cases.append(case)
    return cases


def _measured(
    name: str, calls: dict[str, Callable[..., Tensor]], tensors: list[Tensor], training: bool,
    device: str, threads: int, rounds: int,
) -> Case:  # fmt: skip
    if training:
        ready = {label: partial(trained, call, *tensors) for label, call in calls.items()}
        case = measure(name, ready, same, device=device, threads=threads, rounds=rounds)
    else:
        with torch.inference_mode():
            ready = {label: partial(call, *tensors) for label, call in calls.items()}
            case = measure(name, ready, same, device=device, threads=threads, rounds=rounds)
    print(name, f"{threads} threads:", {k: round(v, 2) for k, v in case.ratios.items()})
    return case


def _add_price(case: Case, first: dict[str, float]) -> None:
    """Note each contender's time as a multiple of its time at rate 1."""
    for label, timing in case.timings.items():
        first.setdefault(label, timing.median)
    case.notes["times as long as rate 1"] = {
        label: timing.median / first[label] for label, timing in case.timings.items()
    }


def _product_speed() -> float:
    """Return operations per second of a large bfloat16 matrix product: the other ceiling."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    case = measure("product", {"product": lambda: a @ a}, lambda *_: True, device="cuda", rounds=10)
    return 2 * 8192**3 / case.timings["product"].median


def _title(layer: Layer, rate: int) -> str:
    return f"{layer.name} {layer.batch}x{layer.channels}x{layer.size}x{layer.size}, rate {rate}"
