"""The trained flows that the chapter on rectified flow shows: two-dimensional sets, and 8x8 digits.

    python -m book.recordings.rectified_flow

Trains on the CPU, in some fifteen minutes on one core, and writes `rectified_flow.json` (scores, and
what made them) and `rectified_flow.npz` (the weights, those of the digits in half precision). The
tests compare the recorded fingerprint with the code as it is now.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from book.recordings.origin import made_by
from pkg.algos.rectified_flow import (
    ContinuousFlow,
    LinearPath,
    LogitNormalTime,
    Solver,
    UniformTime,
    VelocityMLP,
    conditional_flow_matching_loss,
    integrate,
    minibatch_coupling,
    projections,
    reflow,
    sliced_wasserstein,
    straightness,
    transport_cost,
)
from pkg.data import digits

HERE = Path(__file__).parent
PACKAGE = "pkg/algos/rectified_flow"
#: The code that the results come from: a file, and the definitions in it (none: all of it).
CODE: dict[str, tuple[str, ...]] = {
    "book/recordings/rectified_flow.py": (),
    f"{PACKAGE}/networks.py": ("time_features", "VelocityMLP"),
    f"{PACKAGE}/paths.py": ("PathSample", "LinearPath"),
    f"{PACKAGE}/times.py": ("UniformTime", "LogitNormalTime"),
    f"{PACKAGE}/losses.py": ("conditional_flow_matching_loss", "_mean_square"),
    f"{PACKAGE}/coupling.py": ("minibatch_coupling", "assignment_coupling", "transport_cost"),
    f"{PACKAGE}/solvers.py": (),
    f"{PACKAGE}/straight.py": (),
    f"{PACKAGE}/continuous.py": ("ContinuousFlow", "divergence"),
    f"{PACKAGE}/distance.py": (),
}

PLANE_SETS, PLANE_STEPS, PLANE_BATCH = ("moons", "checkerboard"), 3000, 256
PLANE_FLOWS = ("independent", "assigned", "reflowed")
EULER_STEPS = (1, 2, 4, 8, 16, 32)
DIGIT_STEPS, REFLOW_STEPS, DIGIT_BATCH, REFLOW_PAIRS = 8000, 4000, 256, 20_000
DRAWS, DRAWN = 10, 512  # sets of samples, and samples in each
PROBES = 8  # of Hutchinson's estimator, for each picture
FINE = Solver("rk4", steps=20)
#: The logit of a share between 5 and 95 % has no ends; divided by 1.5 it is about as wide as noise.
EDGE, SPREAD = 0.05, 1.5
#: Where to train the digits: more often near the data, where a likelihood is won or lost.
LATE = LogitNormalTime(mean=1.0, std=1.5)
NONE = 10  # the label that stands for no label


def train(
    network: VelocityMLP, draw: Callable[[], tuple[Tensor, Tensor, Tensor | None]], steps: int,
    rate: float, generator: torch.Generator, law: UniformTime | LogitNormalTime,
) -> VelocityMLP:  # fmt: skip
    """Train on pairs (x0, x1, label) and return the running mean of the networks."""
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    average = copy.deepcopy(network)
    for step in range(steps):
        x0, x1, label = draw()
        t = law.sample(len(x1), generator=generator)
        conditions = {} if label is None else {"label": label}
        sample = LinearPath().sample(x0, x1, t)
        loss = conditional_flow_matching_loss(network, sample, **conditions)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            share = max(0.005, 1 / (step + 1))
            for mean, now in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(now, share)
    return average


# ---------------------------------------------------------------- the plane


def plane_set(name: str, count: int, generator: torch.Generator) -> Tensor:
    """Return points of a two-dimensional set, shape (count, 2), about as wide as the noise."""
    u, v = torch.rand(2, count, generator=generator)
    if name == "moons":
        upper = torch.rand(count, generator=generator) < 0.5
        angle = math.pi * u
        x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
        y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
        return 1.4 * torch.stack([x, y], 1) + 0.08 * torch.randn(count, 2, generator=generator)
    if name == "checkerboard":
        row = (4 * u).floor()
        column = 2 * (2 * v).floor() + row % 2
        inside = torch.rand(2, count, generator=generator)
        return torch.stack([column + inside[0], row + inside[1]], 1) - 2
    raise ValueError(f"name must be one of {PLANE_SETS}, got {name!r}")


def plane_network() -> VelocityMLP:
    """Return the network of the two-dimensional flows, untrained."""
    return VelocityMLP(2, hidden=64, depth=3, frequencies=4)


def train_plane(name: str, kind: str, first: VelocityMLP | None = None) -> VelocityMLP:
    """Train one flow of a set: on independent, assigned, or reflowed pairs."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(PLANE_FLOWS.index(kind))

    if first is not None:
        pairs = reflow(first, torch.randn(REFLOW_PAIRS, 2, generator=rng), solver=FINE)

    def draw() -> tuple[Tensor, Tensor, None]:
        if kind == "reflowed":
            chosen = torch.randint(REFLOW_PAIRS, (PLANE_BATCH,), generator=rng)
            return pairs[0][chosen], pairs[1][chosen], None
        x0 = torch.randn(PLANE_BATCH, 2, generator=rng)
        x1 = plane_set(name, PLANE_BATCH, rng)
        return *((x0, x1) if kind == "independent" else minibatch_coupling(x0, x1)), None

    network = plane_network() if first is None else copy.deepcopy(first)
    return train(network, draw, PLANE_STEPS, 4e-3, rng, UniformTime())


def plane_scores(name: str, network: VelocityMLP) -> dict[str, Any]:
    """Return straightness, transport cost and distance after so many Euler steps."""
    rng = torch.Generator().manual_seed(100)
    x0, x1 = torch.randn(2000, 2, generator=rng), plane_set(name, 2000, rng)
    directions = projections(100, 2, generator=rng)
    with torch.no_grad():
        _, end = reflow(network, x0, solver=FINE)
        straight = straightness(network, x0, solver=Solver("rk4", steps=2))
        distances = [
            sliced_wasserstein(integrate(network, x0, solver=Solver("euler", steps=n))[-1], x1,
                               directions)
            for n in EULER_STEPS
        ]  # fmt: skip
    return {
        "straightness": round(float(straight), 5),
        "cost": round(float(transport_cost(x0, end)), 4),
        "distance": [round(float(d), 4) for d in distances],
    }


# ---------------------------------------------------------------- digits


def digit_network() -> VelocityMLP:
    """Return the network of the digits, untrained."""
    return VelocityMLP(64, hidden=256, depth=4, frequencies=8, classes=NONE)


def dequantise(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Return grey levels 0 ... 16 with a uniform draw added, on a scale without ends."""
    share = (levels + torch.rand(levels.shape, generator=generator)) / 17
    return torch.logit(EDGE + (1 - 2 * EDGE) * share) / SPREAD


def log_scale(x: Tensor) -> Tensor:
    """Return the log-determinant of `dequantise`, in nats per sample: of x by level + u."""
    s = torch.sigmoid(SPREAD * x)
    return (math.log((1 - 2 * EDGE) / 17 / SPREAD) - torch.log(s) - torch.log1p(-s)).sum(1)


def quantise(x: Tensor) -> Tensor:
    """Return the grey level 0 ... 16 in whose bin x falls; beyond the ends, the last one."""
    share = (torch.sigmoid(SPREAD * x) - EDGE) / (1 - 2 * EDGE)
    return (17 * share).floor().clamp(0, 16)


def load(split: str) -> tuple[Tensor, Tensor]:
    """Return the levels (N, 64) and the labels (N,) of a split."""
    found = digits(split)
    return torch.from_numpy(found.images).flatten(1), torch.from_numpy(found.labels)


def hidden_labels(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the labels, half of them replaced by "none", so that both flows are learnt."""
    return torch.where(torch.rand(labels.shape, generator=generator) < 0.5, NONE, labels)


def train_digits() -> VelocityMLP:
    """Train the first flow, on independent pairs."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    levels, labels = load("train")

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(levels), (DIGIT_BATCH,), generator=rng)
        x1 = dequantise(levels[chosen], rng)
        return torch.randn(x1.shape, generator=rng), x1, hidden_labels(labels[chosen], rng)

    return train(digit_network(), draw, DIGIT_STEPS, 2e-3, rng, LATE)


def train_reflowed(first: VelocityMLP) -> VelocityMLP:
    """Train the second flow, on the pairs of the first."""
    rng = torch.Generator().manual_seed(1)
    x0 = torch.randn(REFLOW_PAIRS, 64, generator=rng)
    labels = hidden_labels(torch.randint(10, (REFLOW_PAIRS,), generator=rng), rng)
    _, x1 = reflow(first, x0, solver=FINE, label=labels)

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(REFLOW_PAIRS, (DIGIT_BATCH,), generator=rng)
        return x0[chosen], x1[chosen], labels[chosen]

    return train(copy.deepcopy(first), draw, REFLOW_STEPS, 1e-3, rng, UniformTime())


def bits_per_dimension(network: VelocityMLP, split: str) -> Tensor:
    """Return the bits per dimension of each picture of a split, dequantised once."""
    levels, _ = load(split)
    rng = torch.Generator().manual_seed(17)
    x = dequantise(levels, rng)
    with torch.no_grad():
        nats = ContinuousFlow(network).log_prob(x, probes=PROBES, generator=rng)
    return -(nats + log_scale(x)) / (64 * math.log(2))


def held_out() -> Tensor:
    """Return the levels of the validation and the test split together, (512, 64)."""
    return torch.cat([load("validation")[0], load("test")[0]]).float()


def digit_directions() -> Tensor:
    """Return the directions along which the digits' distances are measured, (200, 64)."""
    return projections(200, 64, generator=torch.Generator().manual_seed(2026))


def draw_digits(network: VelocityMLP, steps: int, seed: int) -> Tensor:
    """Return the levels (512, 64) of digits made in so many Euler steps."""
    noise = torch.randn(DRAWN, 64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return quantise(integrate(network, noise, solver=Solver("euler", steps=steps))[-1])


def digit_distances(network: VelocityMLP, steps: int) -> list[float]:
    """Return the distance from the held-out digits, in grey levels, of each set of samples."""
    real, directions = held_out(), digit_directions()
    sets = (draw_digits(network, steps, 1000 + seed) for seed in range(DRAWS))
    return [round(float(sliced_wasserstein(a, real, directions)), 4) for a in sets]


def real_distances() -> list[float]:
    """Return the same distance of as many sets of real training digits."""
    real, directions, (levels, _) = held_out(), digit_directions(), load("train")
    rng = torch.Generator().manual_seed(5)
    sets = (levels[torch.randperm(len(levels), generator=rng)[:DRAWN]] for _ in range(DRAWS))
    return [round(float(sliced_wasserstein(a.float(), real, directions)), 4) for a in sets]


def digit_scores(network: VelocityMLP) -> dict[str, Any]:
    """Return everything that the chapter shows of one flow of digits."""
    x0 = torch.randn(500, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        _, end = reflow(network, x0, solver=FINE)
        straight = straightness(network, x0, solver=Solver("rk4", steps=2))
    scores: dict[str, Any] = {
        "straightness": round(float(straight), 4),
        "cost": round(float(transport_cost(x0, end)), 3),
        "distance": {str(n): digit_distances(network, n) for n in EULER_STEPS},
    }
    for split in ("validation", "test"):
        bits = bits_per_dimension(network, split)
        margin = 1.96 * float(bits.std()) / len(bits) ** 0.5
        scores[split] = {"bits": round(float(bits.mean()), 4), "margin": round(margin, 4)}
    return scores


# ---------------------------------------------------------------- record


def stored(key: str, network: VelocityMLP) -> VelocityMLP:
    """Return `network` with the recorded weights of `key`, such as "moons/reflowed"."""
    with np.load(HERE / "rectified_flow.npz") as archive:
        weights = {
            name.removeprefix(f"{key}/"): torch.from_numpy(archive[name]).float()
            for name in archive
            if name.startswith(f"{key}/")
        }
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def weights_of(key: str, network: VelocityMLP, half: bool) -> dict[str, Any]:
    """Return the weights under names that begin with `key`; with `half`, rounded for good."""
    if half:
        network.half().float()
    kind = np.float16 if half else np.float32
    return {f"{key}/{n}": v.numpy().astype(kind) for n, v in network.state_dict().items()}


def train_all() -> None:
    """Train every flow and write the weights."""
    weights: dict[str, Any] = {}
    for name in PLANE_SETS:
        first = None
        for kind in PLANE_FLOWS:
            flow = train_plane(name, kind, first if kind == "reflowed" else None)
            first = flow if kind == "independent" else first
            weights |= weights_of(f"{name}/{kind}", flow, half=False)
    first_digits = train_digits()
    weights |= weights_of("digits/independent", first_digits, half=True)
    second_digits = train_reflowed(first_digits)
    weights |= weights_of("digits/reflowed", second_digits, half=True)
    np.savez_compressed(HERE / "rectified_flow.npz", **weights)


def score_all() -> dict[str, Any]:
    """Return the scores of the stored flows."""
    plane = {
        name: {
            kind: plane_scores(name, stored(f"{name}/{kind}", plane_network()))
            for kind in PLANE_FLOWS
        }
        for name in PLANE_SETS
    }
    kinds = ("independent", "reflowed")
    scored = {kind: digit_scores(stored(f"digits/{kind}", digit_network())) for kind in kinds}
    return {"plane": plane, "digits": {**scored, "real": real_distances()}}


def main() -> None:
    """Train everything, or only score again what is stored, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stored", action="store_true", help="keep the weights, score them again")
    torch.set_num_threads(1)
    origin = made_by(CODE)
    if not parser.parse_args().stored:
        train_all()
    record = {
        "command": "python -m book.recordings.rectified_flow",
        **origin,
        **score_all(),
    }
    path = HERE / "rectified_flow.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
