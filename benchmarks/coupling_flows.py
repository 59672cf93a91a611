"""Coupling flows against what people run: zuko and nflows, with the same weights and the same function.

The peers bound their log-scales in their own ways. Here their elementwise map is replaced by ours,
bound · tanh(raw / bound), and nothing else: so all contenders compute the same numbers. Densities and
inverses run without gradients; "layer by layer" is our own flow before it is fused. Training keeps
what the backward pass needs, or makes it again: those cases tell the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.harness import Case, Work, ceilings, each, measure
from pkg.algos.coupling_flows import (
    Flow,
    FusedCouplings,
    RealNVP,
    functional,
    invertible_checkpoint,
)
from pkg.algos.coupling_flows.operator import affine_coupling_cpu

#: Seconds of a case.
SECONDS = 5.0
#: Calls that are timed together where one takes well below a millisecond.
REPEATS = {1: 10, 256: 4}
Plan = tuple[str, Callable[[], Case]]


@dataclass(frozen=True)
class Size:
    """A RealNVP on vectors: features, couplings, and the width of two hidden layers."""

    features: int
    couplings: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.features} features, {self.couplings} couplings, hidden {self.hidden}"

    def products(self) -> int:
        """Return the multiplications of the networks for one sample."""
        half = self.features // 2
        return self.couplings * self.hidden * (half + self.hidden + 2 * half)


SIZES = (Size(16, 6, 64), Size(64, 8, 128))
BATCHES = (1, 256, 8192)
DEEP, DEEP_BATCH = Size(64, 48, 64), 1024
IMAGE = (64, 12, 32, 32)


def build(size: Size) -> RealNVP:
    """Return a flow with drawn weights; the last layers, which begin at 0, as after some training."""
    generator = torch.Generator().manual_seed(0)
    flow = RealNVP(
        size.features, couplings=size.couplings, hidden=size.hidden, alpha=None, generator=generator
    )
    for parameter in flow.parameters():
        if not parameter.any() and parameter.ndim == 2:
            spread = 0.5 * (parameter.shape[1] * size.couplings) ** -0.5
            nn.init.normal_(parameter, std=spread, generator=generator)
    return flow


# ---------------------------------------------------------------- the peers, with our weights


def zuko_flow(flow: RealNVP) -> nn.Module:
    """Return zuko's RealNVP, which has the same masks, with the weights of ours."""
    import zuko
    from zuko.transforms import MonotonicAffineTransform

    layers, size, bound = _read(flow)

    class Bounded(MonotonicAffineTransform):
        def __init__(self, shift: Tensor, scale: Tensor, **options: Any) -> None:
            super().__init__(shift, scale, **options)
            self.log_scale = bound * torch.tanh(scale / bound)
            self.scale = self.log_scale.exp()

    theirs: nn.Module = zuko.flows.RealNVP(
        size.features, transforms=size.couplings, hidden_features=(size.hidden,) * 2,
        univariate=Bounded,
    )  # fmt: skip
    for one, (weights, biases) in zip(theirs.transform.transforms, layers, strict=True):  # type: ignore[union-attr, arg-type]
        _fill([m for m in one.hyper if hasattr(m, "weight")], weights, biases, interleave=True)  # type: ignore[union-attr]
    return theirs.requires_grad_(True)


def nflows_flow(flow: RealNVP) -> nn.Module:
    """Return nflows' affine couplings, with the weights of ours."""
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow as TheirFlow
    from nflows.nn.nets import MLP
    from nflows.transforms import AffineCouplingTransform, CompositeTransform

    layers, size, bound = _read(flow)

    class Bounded(AffineCouplingTransform):
        def _scale_and_shift(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
            shift, raw = parameters.chunk(2, 1)
            return (bound * torch.tanh(raw / bound)).exp(), shift

    class Network(MLP):
        def forward(self, inputs: Tensor, context: Any = None) -> Tensor:
            return super().forward(inputs)

    couplings = []
    for number, (weights, biases) in enumerate(layers):
        mask = (torch.arange(size.features) % 2 != number % 2).int()  # 1: to be changed
        one = Bounded(mask, lambda a, b: Network([a], [b], [size.hidden] * 2))
        net = one.transform_net
        _fill([net._input_layer, *net._hidden_layers, net._output_layer], weights, biases)
        couplings.append(one)
    return TheirFlow(CompositeTransform(couplings), StandardNormal([size.features]))


def _read(flow: RealNVP) -> tuple[list[tuple[list[Tensor], list[Tensor]]], Size, float]:
    """Return the weights and biases of every coupling, the size, and the bound."""
    couplings: list[Any] = list(flow.transform.transforms)  # type: ignore[arg-type]
    found = []
    for one in couplings:
        linear = [m for m in one.network.layers if isinstance(m, nn.Linear)]
        found.append(([m.weight.detach() for m in linear], [m.bias.detach() for m in linear]))
    hidden = couplings[0].network.layers[0].out_features
    return found, Size(len(couplings[0].mask.kept), len(couplings), hidden), couplings[0].bound


@torch.no_grad()
def _fill(
    linear: list[Any], weights: list[Tensor], biases: list[Tensor], interleave: bool = False
) -> None:
    """Copy; our last layer gives raw scales, then shifts: nflows shifts first, zuko in pairs."""
    for place, (into, weight, bias) in enumerate(zip(linear, weights, biases, strict=True)):
        if place == len(linear) - 1:
            order = torch.arange(len(bias)).view(2, -1).flip(0)
            order = (order.mT if interleave else order).reshape(-1)
            weight, bias = weight[order], bias[order]
        into.weight.copy_(weight)
        into.bias.copy_(bias)


# ---------------------------------------------------------------- what is timed


def without_gradients(call: Callable[[Tensor], Any], x: Tensor, repeats: int) -> Any:
    """Call some times."""
    with torch.no_grad():
        for _ in range(repeats):
            found = call(x)
    return found


def density(flow: RealNVP, size: Size, device: str) -> dict[str, Callable[[Tensor], Any]]:
    """Return log p(x) by each contender; ours first."""
    fused = Flow(FusedCouplings(flow.transform), flow.base).to(device)
    theirs, other = zuko_flow(flow).to(device), nflows_flow(flow).to(device)
    found: dict[str, Callable[[Tensor], Any]] = {
        "ours": fused.log_prob,
        "layer by layer": flow.to(device).log_prob,
        "zuko": lambda x: theirs().log_prob(x),
        "nflows": other.log_prob,  # type: ignore[dict-item]
    }
    if device == "cuda":
        compiled = torch.compile(flow.log_prob, mode="max-autotune", dynamic=False)
        found["torch.compile"] = lambda x: compiled(x).clone()
    return found


def inverses(flow: RealNVP, size: Size, device: str) -> dict[str, Callable[[Tensor], Any]]:
    """Return x of given latents: what sampling does after it has drawn them."""
    fused = FusedCouplings(flow.transform).to(device)
    theirs, other = zuko_flow(flow).to(device), nflows_flow(flow).to(device)
    undo: Any = flow.to(device).transform.inverse
    theirs_undo: Any = other._transform.inverse  # type: ignore[union-attr]
    return {
        "ours": lambda z: fused.inverse(z)[0],
        "layer by layer": lambda z: undo(z)[0],
        "zuko": lambda z: theirs().transform.inv(z),
        "nflows": lambda z: theirs_undo(z)[0],
    }


def trained(call: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the loss, and the norm of all gradients, which the contenders order differently."""
    loss = -call(x).mean()
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    squares = torch.stack([g.double().square().sum() for g in gradients])
    return [loss.detach(), squares.sum().sqrt().float()]


def training(flow: RealNVP, size: Size, device: str) -> dict[str, Callable[[Tensor], Any]]:
    """Return a loss and its gradients by each contender."""
    theirs, other = zuko_flow(flow).to(device), nflows_flow(flow).to(device)
    flow.to(device)
    return {
        "ours": partial(trained, flow.log_prob, flow),
        "zuko": partial(trained, lambda x: theirs().log_prob(x), theirs),
        "nflows": partial(trained, other.log_prob, other),  # type: ignore[arg-type]
    }


def lean_training(flow: RealNVP, size: Size, device: str) -> dict[str, Callable[[Tensor], Any]]:
    """Return the same for a deep flow: by inverting, by storing, by PyTorch's checkpoints."""
    inverting = Flow(invertible_checkpoint(flow.transform), flow.base).to(device)

    class Checkpointed(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            log_det = x.new_zeros(len(x))
            for layer in flow.transform.transforms:  # type: ignore[union-attr]
                x, more = checkpoint(layer, x, use_reentrant=False)
                log_det = log_det + more
            return x, log_det

    def by_checkpoints(x: Tensor) -> Tensor:
        z, log_det = Checkpointed()(x)
        return flow.base.log_prob(z) + log_det  # type: ignore[operator]

    return {
        "ours": partial(trained, inverting.log_prob, flow),
        "checkpoint": partial(trained, by_checkpoints, flow),
        **{
            "stored" if name == "ours" else name: call
            for name, call in training(flow, size, device).items()
        },
    }


def same(ours: Any, theirs: Any) -> bool:
    """Tell whether results are the same numbers, up to rounding.

    The flows end in numbers with an error of 1e-6 of their size; a wrong sign, mask or bound is off
    by a tenth. Gradients by inverting are taken at reconstructions, off by the error of 48 inverses.
    """
    mine, others = (r if isinstance(r, list) else [r] for r in (ours, theirs))
    return len(mine) == len(others) and all(
        a.shape == b.shape and bool((a - b).norm() <= 1e-4 * b.norm())
        for a, b in zip(mine, others, strict=True)
    )


# ---------------------------------------------------------------- cases

KINDS: dict[str, Callable[[RealNVP, Size, str], dict[str, Callable[[Tensor], Any]]]] = {
    "density": density, "inverse": inverses, "training": training, "lean training": lean_training,
}  # fmt: skip


def case(kind: str, size: Size, batch: int, device: str, threads: int, rounds: int) -> Case:
    """Measure one kind of work on one flow and batch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, size.features, generator=generator).to(device)
    flow = build(size)
    grown = kind.endswith("training")
    calls: dict[str, Callable[[], Any]] = {}
    for label, call in KINDS[kind](flow, size, device).items():
        if grown:
            calls[label] = partial(call, x)
        else:
            calls[label] = partial(without_gradients, call, x, REPEATS.get(batch, 1))
    factor = (3 if grown else 1) * (1 if grown else REPEATS.get(batch, 1))
    weights = sum(p.nbytes for p in flow.parameters())
    found = measure(
        name(kind, size, batch), calls, same, device=device, threads=threads, rounds=rounds,
        seconds=SECONDS, peaks=calls if grown else None, kind=kind, batch=batch,
        peers={peer: version(peer) for peer in ("zuko", "nflows")},
        work=Work(2.0 * factor * batch * size.products(), factor * (2 * x.nbytes + weights)),
        ceiling=ceilings(device, torch.float32, threads),
    )  # fmt: skip
    if kind == "lean training":
        ours = found.peak_bytes["ours"]
        found.notes["times the memory of ours"] = {
            label: peak / ours for label, peak in found.peak_bytes.items()
        }
    return found


def name(kind: str, size: Size, batch: int) -> str:
    """Return how the case is called in tables."""
    return f"{kind}, {size}, batch {batch}"


def coupling_case(device: str, threads: int, rounds: int) -> Case:
    """Measure the elementwise work of a coupling of images alone: half of the channels are changed."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(IMAGE, generator=generator).to(device)
    half = IMAGE[1] // 2
    both = torch.randn(IMAGE, generator=generator).to(device)
    bound = 2.5

    def ours(x: Tensor) -> list[Tensor]:
        raw, shift = both.chunk(2, 1)
        if device == "cpu":
            return list(affine_coupling_cpu(x, raw, shift, None, half, bound))
        return list(functional.by_kernel(x, raw, shift, None, half, bound))

    def plain(x: Tensor) -> list[Tensor]:
        raw, shift = both.chunk(2, 1)
        s = bound * torch.tanh(raw / bound)
        z = x[:, half:] * s.exp() + shift
        return [torch.cat((x[:, :half], z), 1), s.flatten(1).sum(1)]

    calls: dict[str, Callable[[], Any]] = {
        label: partial(without_gradients, call, x, 1)
        for label, call in (("ours", ours), ("plain PyTorch", plain))
    }
    return measure(
        COUPLING, calls, same, device=device, threads=threads, rounds=rounds, seconds=SECONDS,
        # x and z whole, raw and shift for half of the channels
        work=Work(10.0 * x.numel() / 2, 3 * x.nbytes), kind="coupling", batch=IMAGE[0],
        ceiling=ceilings(device, torch.float32, threads),
    )  # fmt: skip


COUPLING = "one coupling of images, elementwise, " + "x".join(map(str, IMAGE))


def plans(device: str, threads: tuple[int, ...], rounds: int) -> Iterator[Plan]:
    """Yield what is measured."""
    for count in threads:
        todo = [(kind, size, batch) for size in SIZES for kind in ("density", "inverse", "training")
                for batch in BATCHES if kind != "training" or batch == 256]  # fmt: skip
        for kind, size, batch in [*todo, ("lean training", DEEP, DEEP_BATCH)]:
            yield name(kind, size, batch), partial(case, kind, size, batch, device, count, rounds)
        yield COUPLING, partial(coupling_case, device, count, rounds)


def run(device: str, threads: tuple[int, ...], rounds: int) -> Iterator[Case]:
    """Measure densities, inverses and training of flows on vectors, and one coupling of images."""
    return (yield from each(plans(device, threads, rounds)))
