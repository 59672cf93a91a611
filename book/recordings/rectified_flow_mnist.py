"""The flow on MNIST that the chapter on rectified flow shows, before and after reflow.

    python -m book.recordings.rectified_flow_mnist [--checkpoint FILE]

Trains a small U-Net on 50,000 pictures of 28 by 28 pixels, and a second one on the pairs that the first
makes, on one core of a CPU in some half an hour. Writes `rectified_flow_mnist.json` (scores, and what made
them) and `rectified_flow_mnist.npz` (samples). With a checkpoint file, trainings that the same code has
done before are not done again. The tests compare the recorded fingerprints with the code as it is now.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, silu

from book.recordings.origin import fingerprint, made_by
from pkg.algos.rectified_flow.continuous import ContinuousFlow
from pkg.algos.rectified_flow.distance import projections, sliced_wasserstein
from pkg.algos.rectified_flow.fused import draw_path
from pkg.algos.rectified_flow.losses import conditional_flow_matching_loss
from pkg.algos.rectified_flow.networks import time_features
from pkg.algos.rectified_flow.paths import LinearPath, PathSample
from pkg.algos.rectified_flow.sampler import sample_fixed
from pkg.algos.rectified_flow.solvers import Solver
from pkg.algos.rectified_flow.straight import straightness
from pkg.algos.rectified_flow.times import UniformTime
from pkg.data import mnist

HERE = Path(__file__).parent
_THIS, _PKG = "book/recordings/rectified_flow_mnist.py", "pkg/algos/rectified_flow"
#: The definitions that the two networks come from, by file; and those that the scores come from.
TRAINING: dict[str, tuple[str, ...]] = {
    _THIS: (
        "CHANNELS", "EMBEDDING", "WAVES", "NONE", "BATCH", "STEPS", "RATES", "DROPPED", "AVERAGE",
        "PAIRS", "Block", "VelocityUNet", "pictures", "spread", "first_batches", "train_first", "make_pairs",
        "second_batches", "train_second", "optimise", "PAIR_STEPS",
    ),
    f"{_PKG}/operator.py": ("wide", "column", "_stream", "_times", "_noise", "_draw", "TIME_BITS"),
    f"{_PKG}/fused.py": ("draw_path", "_law", "_shrink"),
    f"{_PKG}/steps.py": (
        "CHUNK", "_size", "_slope", "_fill", "_step", "_stage", "step", "stage",
    ),
    f"{_PKG}/sampler.py": ("STAGES", "sample_fixed", "_Run"),
    f"{_PKG}/losses.py": ("conditional_flow_matching_loss", "_mean_square"),
    f"{_PKG}/networks.py": ("time_features",),
}  # fmt: skip
SCORING: dict[str, tuple[str, ...]] = {
    _THIS: (
        "NFE", "GROUPS", "GROUP", "DIRECTIONS", "SHOWN", "SEEN", "RULES", "test_loss", "distances",
        "samples", "_told", "_other_pictures", "straight", "bits_per_dimension", "portraits", "main",
    ),
    f"{_PKG}/distance.py": ("projections", "sliced_wasserstein"),
    f"{_PKG}/straight.py": ("straightness",),
    f"{_PKG}/continuous.py": ("ContinuousFlow", "divergence", "draw_probes"),
}  # fmt: skip

CHANNELS, EMBEDDING, WAVES = (32, 64), 64, 16
NONE = 10  # the label that means "no label"
BATCH, DROPPED, AVERAGE = 64, 0.1, 0.999
STEPS, RATES = (4500, 2000), (2e-3, 5e-4)
PAIRS, PAIR_STEPS = 6144, 16

NFE = (1, 2, 4, 8, 16, 32)
RULES = (("heun", 4), ("rk4", 2), ("heun", 8), ("rk4", 4))
GROUPS, GROUP, DIRECTIONS = 4, 500, 512
SHOWN, SEEN = (1, 2, 4, 8, 32), 256


# ---------------------------------------------------------------- the network


class Block(nn.Module):
    """Two convolutions whose result is added to what came in; time and label scale and shift it."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8, channels), nn.GroupNorm(8, out, affine=False)])
        self.first = nn.Conv2d(channels, out, 3, padding=1)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.modulation = nn.Linear(EMBEDDING, 2 * out)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return features (N, out, H, W) from x (N, channels, H, W) and e (N, EMBEDDING)."""
        h = self.first(silu(self.norms[0](x)))
        scale, shift = self.modulation(e)[:, :, None, None].chunk(2, 1)
        return self.second(silu(self.norms[1](h) * (1 + scale) + shift)) + self.skip(x)


class VelocityUNet(nn.Module):
    """A velocity (N, 1, 28, 28) from pictures, times (N,) and labels (N,), at 14 and 7 pixels a side."""

    def __init__(self) -> None:
        super().__init__()
        wide, deep = CHANNELS
        self.embed = nn.Sequential(
            nn.Linear(2 * WAVES, EMBEDDING), nn.SiLU(), nn.Linear(*[EMBEDDING] * 2)
        )
        self.label = nn.Embedding(11, EMBEDDING)
        self.enter, self.leave = nn.Conv2d(4, wide, 3, padding=1), nn.Conv2d(wide, 4, 3, padding=1)
        self.down = nn.Conv2d(wide, deep, 3, stride=2, padding=1)
        self.up = nn.Conv2d(deep, wide, 1)
        self.before, self.after = Block(wide, wide), Block(2 * wide, wide)
        self.middle = nn.ModuleList([Block(deep, deep), Block(deep, deep)])
        self.half = True  # products in bfloat16

    def forward(self, x: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
        """Return the velocity, of x's shape and dtype."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            e = silu(self.embed(time_features(t, WAVES)) + self.label(label))
            h = self.enter(pixel_unshuffle(x, 2))  # (N, 32, 14, 14)
            near = self.before(h, e)
            h = self.down(near)  # (N, 64, 7, 7)
            for block in self.middle:
                h = block(h, e)
            h = torch.cat([interpolate(self.up(h), scale_factor=2), near], 1)
            found = pixel_shuffle(self.leave(self.after(h, e)), 2)
        return found.to(x.dtype)


def pictures(split: str) -> tuple[Tensor, Tensor]:
    """Return grey levels 0 to 255, (N, 1, 28, 28) uint8, and labels (N,)."""
    data = mnist(split)
    return torch.from_numpy(data.images), torch.from_numpy(data.labels)


def spread(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Return grey levels as numbers in [-1, 1], each spread evenly over its bin."""
    return (grey.float() + torch.rand(grey.shape, generator=generator)) / 128 - 1


# ---------------------------------------------------------------- training


def optimise(
    network: VelocityUNet, batches: Iterator[tuple[PathSample, Tensor]], steps: int, rate: float
) -> VelocityUNet:
    """Train, and return the exponential average of the weights."""
    average = copy.deepcopy(network)
    optimiser = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.05)
    begun, running = time.time(), 0.0
    for step in range(steps):
        drawn, label = next(batches)
        loss = conditional_flow_matching_loss(network, drawn, label=label)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(AVERAGE, (1 + step) / (10 + step)))
        running += (float(loss.detach()) - running) * max(0.01, 1 / (1 + step))
        if step % 200 == 0:
            print(f"{step}: {running:.4f}, {time.time() - begun:.0f} s", flush=True)
    return average


def first_batches(generator: torch.Generator) -> Iterator[tuple[PathSample, Tensor]]:
    """Draw pictures with noise of their own; now and then the label is dropped."""
    grey, labels = pictures("train")
    while True:
        chosen = torch.randint(len(grey), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < DROPPED
        x1 = spread(grey[chosen], generator)
        drawn = draw_path(x1, path=LinearPath(), time=UniformTime(), generator=generator)
        yield drawn, labels[chosen].masked_fill(dropped, NONE)


def train_first() -> VelocityUNet:
    """Train on noise and pictures that have nothing to do with one another."""
    torch.manual_seed(0)
    batches = first_batches(torch.Generator().manual_seed(0))
    return optimise(VelocityUNet(), batches, STEPS[0], RATES[0])


@torch.no_grad()
def make_pairs(network: VelocityUNet) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the first flow from noise; return where it began and ended, and the labels."""
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(PAIRS, 1, 28, 28, generator=generator)
    labels = torch.randint(NONE, (PAIRS,), generator=generator)
    ends = [
        sample_fixed(network, x, PAIR_STEPS, method="heun", label=label)
        for x, label in zip(x0.split(256), labels.split(256), strict=True)
    ]
    return x0, torch.cat(ends), labels


def second_batches(
    pairs: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
) -> Iterator[tuple[PathSample, Tensor]]:
    """Draw pairs, all but the last 512."""
    x0, x1, labels = pairs
    while True:
        chosen = torch.randint(PAIRS - 512, (BATCH,), generator=generator)
        drawn = draw_path(
            x1[chosen], path=LinearPath(), time=UniformTime(), generator=generator, x0=x0[chosen]
        )
        yield drawn, labels[chosen]


def train_second(first: VelocityUNet, pairs: tuple[Tensor, Tensor, Tensor]) -> VelocityUNet:
    """Go on from the first flow's weights, on its own pairs: reflow."""
    batches = second_batches(pairs, torch.Generator().manual_seed(2))
    return optimise(copy.deepcopy(first), batches, STEPS[1], RATES[1])


# ---------------------------------------------------------------- scores


@torch.no_grad()
def test_loss(network: VelocityUNet, x0: Tensor, x1: Tensor, label: Tensor) -> dict[str, float]:
    """Return the loss per element on pairs that were held back, and its standard error."""
    generator = torch.Generator().manual_seed(3)
    losses = []
    for noise, data, digit in zip(x0.split(256), x1.split(256), label.split(256), strict=True):
        drawn = draw_path(
            data, path=LinearPath(), time=UniformTime(), generator=generator, x0=noise
        )
        found = network(drawn.xt, drawn.t, label=digit)
        losses.append((found - drawn.velocity).square().flatten(1).mean(1))
    return _told(torch.cat(losses))


def _told(values: Tensor) -> dict[str, float]:
    mean, error = values.mean(), values.std() / math.sqrt(len(values))
    return {"mean": round(float(mean), 4), "standard_error": round(float(error), 4)}


@torch.no_grad()
def samples(network: VelocityUNet, labels: Tensor, method: Any, steps: int, seed: int) -> Tensor:
    """Return a picture for each label, from noise that the seed fixes."""
    x0 = torch.randn(len(labels), 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    return torch.cat([
        sample_fixed(network, x, steps, method=method, label=label)
        for x, label in zip(x0.split(250), labels.split(250), strict=True)
    ])  # fmt: skip


def distances(make: Any) -> dict[str, float]:
    """Return the sliced Wasserstein distance of what `make` gives to the test pictures, in groups."""
    grey, labels = pictures("test")
    directions = projections(DIRECTIONS, 784, generator=torch.Generator().manual_seed(4))
    found = []
    for group in range(GROUPS):
        here = slice(group * GROUP, (group + 1) * GROUP)
        real = spread(grey[here], torch.Generator().manual_seed(5 + group))
        found.append(sliced_wasserstein(make(group, labels[here]), real, directions))
    return _told(torch.stack(found))


def _other_pictures(group: int, _: Tensor) -> Tensor:
    here = slice(group * GROUP, (group + 1) * GROUP)
    return spread(pictures("validation")[0][here], torch.Generator().manual_seed(50 + group))


def straight(network: VelocityUNet) -> float:
    """Return the straightness, per element."""
    generator = torch.Generator().manual_seed(6)
    x0 = torch.randn(SEEN, 1, 28, 28, generator=generator)
    label = torch.arange(SEEN) % 10
    solver = Solver(method="rk4", steps=1)
    with torch.no_grad():
        return round(float(straightness(network, x0, solver=solver, nodes=8, label=label)) / 784, 5)


def bits_per_dimension(network: VelocityUNet, steps: int) -> dict[str, float]:
    """Return bits per dimension of test pictures given their labels, by Hutchinson's estimator."""
    grey, labels = (x[:SEEN] for x in pictures("test"))
    x = spread(grey, torch.Generator().manual_seed(7))
    flow = ContinuousFlow(network)
    generator = torch.Generator().manual_seed(8)
    solver = Solver(method="rk4", steps=steps)
    with torch.no_grad():
        nats = torch.cat([
            flow.log_prob(
                part, exact=False, probes=1, solver=solver, generator=generator, label=label
            )
            for part, label in zip(x.split(64), labels.split(64), strict=True)
        ])  # fmt: skip
    # A bin of grey is 1/128 wide: seven bits more than the density at unit width.
    return _told(-nats / (784 * math.log(2)) + 7)


def portraits(network: VelocityUNet) -> np.ndarray:
    """Return the ten digits after each number of Euler steps, uint8, (len(SHOWN), 10, 28, 28)."""
    rows = [samples(network, torch.arange(10), "euler", steps, 9) for steps in SHOWN]
    return ((torch.stack(rows)[:, :, 0] + 1) * 128).clamp(0, 255).byte().numpy()


# ---------------------------------------------------------------- record


def trained(
    checkpoint: Path | None,
) -> tuple[VelocityUNet, VelocityUNet, tuple[Tensor, ...], float, str]:
    """Return both flows, the pairs, training's minutes, and a note; from the file, if it fits."""
    code, begun = fingerprint(TRAINING), time.time()
    first, second = VelocityUNet(), VelocityUNet()
    if checkpoint is not None and checkpoint.is_file():
        kept = torch.load(checkpoint, weights_only=True)
        if kept["code"] == code:
            first.load_state_dict(kept["first"])
            second.load_state_dict(kept["second"])
            return first, second, kept["pairs"], kept["minutes"], kept.get("note", "")
    first = train_first()
    pairs = make_pairs(first)
    second = train_second(first, pairs)
    minutes = (time.time() - begun) / 60
    if checkpoint is not None:
        states = {"first": first.state_dict(), "second": second.state_dict()}
        torch.save({"code": code, "pairs": pairs, "minutes": minutes, **states}, checkpoint)
    return first, second, pairs, minutes, ""


def main() -> None:
    """Train both flows, or load them, and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="keeps what was trained")
    checkpoint = parser.parse_args().checkpoint
    torch.set_num_threads(1)
    origin = made_by(TRAINING, "one core, products in bfloat16")
    origin["code"] = {"training": origin["code"], "scoring": fingerprint(SCORING)}
    first, second, pairs, minutes, note = trained(checkpoint)
    grey, labels = (x[:2000] for x in pictures("test"))
    generator = torch.Generator().manual_seed(10)
    x1 = spread(grey, generator)
    held = (torch.randn(x1.shape, generator=generator), x1, labels)
    scores: dict[str, Any] = {"between_real_pictures": distances(_other_pictures)}
    for name, network, last in (
        ("first", first, held),
        ("reflowed", second, [x[-512:] for x in pairs]),
    ):
        scores[name] = {"test_loss": test_loss(network, *last)}
        rules = [("euler", n) for n in NFE] + [r for r in RULES if name == "first"]
        scores[name]["distance"] = [
            {"method": rule, "steps": n, **distances(
                lambda group, label, rule=rule, n=n, network=network: samples(
                    network, label, rule, n, 100 + group
                )
            )} for rule, n in rules
        ]  # fmt: skip
        network.half = False
        scores[name]["straightness"] = straight(network)
        network.half = True
        print(name, scores[name], flush=True)
    first.half = False
    scores["first"]["bits_per_dimension"] = {n: bits_per_dimension(first, n) for n in (16, 32, 64)}
    first.half = True
    shown = {name: portraits(flow) for name, flow in (("first", first), ("reflowed", second))}
    np.savez_compressed(HERE / "rectified_flow_mnist.npz", **shown)
    record = {
        "command": "python -m book.recordings.rectified_flow_mnist",
        **origin,
        "minutes_of_training": round(minutes, 1),
        "note": note,
        "weights": sum(p.numel() for p in first.parameters()),
        "steps": STEPS, "batch": BATCH, "pairs": PAIRS,
        "scores": scores,
    }  # fmt: skip
    path = HERE / "rectified_flow_mnist.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
