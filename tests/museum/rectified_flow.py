"""Published bugs of flow matching."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import torch

from book.recordings import rectified_flow as recording
from pkg.algos.rectified_flow import (
    ContinuousFlow,
    OptimalTransportPath,
    Solver,
    VelocityMLP,
    divergence,
    integrate,
)
from tests.museum import Exhibit, Museum


def probes_summed(velocity, place, time, *, probes):
    """Adds up the estimates of all probes."""
    found, trace = divergence(velocity, place, time, probes=probes)
    return found, trace * len(probes)


class TimeForPlace(OptimalTransportPath):
    """Has t where x_t belongs."""

    def sample(self, x0, x1, t):
        right, shrink = super().sample(x0, x1, t), 1 - self.sigma_min
        t = t.reshape(-1, *[1] * (x1.ndim - 1))
        return replace(right, velocity=(x1 - shrink * t) / (1 - shrink * t))


class TimesUnpadded(OptimalTransportPath):
    """Multiplies the data by the times as they come, which runs along the last axis."""

    def sample(self, x0, x1, t):
        right = super().sample(x0, x1, t)
        column = t.reshape(-1, *[1] * (x1.ndim - 1))
        return replace(right, xt=right.xt - column * x1 + t * x1)


class Detached(ContinuousFlow):
    """Returns the right value, cut off from what it was computed from."""

    def log_prob(self, x, **options):
        return super().log_prob(x, **options).detach()


@cache
def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 64 digits on the scale that the chapter's flows know, and the slope of that scale."""
    levels, _ = recording.load("test")
    x = recording.dequantise(levels[:64], torch.Generator().manual_seed(17))
    return x, recording.log_scale(x)


def _digit_flow() -> ContinuousFlow:
    return ContinuousFlow(recording.stored("digits/independent", recording.digit_network()))


def _cost_of_sum() -> str:
    x, slope = (part[:8] for part in _digits())
    flow, solver = _digit_flow(), Solver("rk4", steps=6)
    with torch.no_grad():
        start = integrate(flow.velocity, x, (1.0, 0.0), solver=solver)[-1]
        noise = flow.base_log_prob(start)
        trace = flow.log_prob(x, generator=torch.Generator().manual_seed(0), solver=solver) - noise
    right, wrong = (
        float(-(noise + probes * trace + slope).mean()) / (64 * math.log(2)) for probes in (1, 4)
    )
    return (
        f"with four probes the {right:.0f} bits per dimension of the chapter's digits would become "
        f"{wrong:.0f}. Nothing can be stored in less than 0, and every further probe improves the "
        "number."
    )


def _cost_of_time() -> str:
    path, target, starts = TimeForPlace(sigma_min=0.1), 2.0, torch.tensor([[-1.0], [1.0]]).double()

    def velocity(x, t):
        return path.sample(x, torch.full_like(x, target), t).velocity

    low, high = integrate(velocity, starts)[-1].flatten().tolist()
    return (
        f"around the data point {target:.0f} the noise should shrink to a bell of width 0.1; along "
        f"this field it keeps its width of {(high - low) / 2:.0f}, and its middle ends at "
        f"{(high + low) / 2:.1f}."
    )


def _cost_of_unpadded_times() -> str:
    x1, _ = _digits()
    generator = torch.Generator().manual_seed(0)
    x0, t = torch.randn(x1.shape, generator=generator), torch.rand(64, generator=generator)
    paths = TimesUnpadded(sigma_min=0.1), OptimalTransportPath(sigma_min=0.1)
    wrong, right = (path.sample(x0, x1, t).xt for path in paths)
    off = float((wrong - right).square().mean().sqrt())
    return (
        "a batch of 64 digits of 64 pixels raises no error, and its places are off by "
        f"{off:.1f} on average, where the data itself varies by {float(x1.std()):.1f}."
    )


def _cost_of_detaching() -> str:
    data = recording.plane_set("moons", 64, torch.Generator().manual_seed(0)) + 3

    def trained(kind: type[ContinuousFlow]) -> float:
        torch.manual_seed(0)
        flow = kind(VelocityMLP(2, hidden=16, depth=2, frequencies=3))
        optimiser = torch.optim.Adam(flow.parameters(), 0.05)

        def loss():
            return -flow.log_prob(data, exact=True, solver=Solver("heun2", steps=2)).mean()

        for _ in range(15):
            value = loss()
            if value.requires_grad:
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
        return float(loss().detach())

    return (
        f"from moons that lie 3 away from the noise, fifteen steps of training by likelihood leave "
        f"{trained(ContinuousFlow):.0f} nats; without a gradient they leave {trained(Detached):.0f}."
    )


museum = Museum(
    "rectified_flow",
    Exhibit(
        name="probes_summed",
        title="A sum where a mean belongs",
        project="BayesFlow",
        threads=(("bayesflow #772", "https://github.com/bayesflow-org/bayesflow/issues/772"),),
        story="""With fewer probes than dimensions BayesFlow's estimator added up the answers and did
        not divide by their number. The trace, and with it the likelihood, grew with the number of
        probes that were meant to make it more exact. A reviewer of the paper found it.""",
        entry="hutchinson",
        variant=probes_summed,
        cost=_cost_of_sum,
    ),
    Exhibit(
        name="time_for_place",
        title="The time where the place belongs",
        project="TorchCFM",
        threads=(
            ("torchcfm #175", "https://github.com/atong01/conditional-flow-matching/issues/175"),
        ),
        story="""The docstring of TorchCFM gave the optimal-transport velocity with t in its numerator
        where the place belongs. Its code was right: this was a mistake of the documentation alone.
        Whoever wrote theirs from the formula had a field that ignores where the sample is.""",
        entry="ot_velocity",
        variant=TimeForPlace,
        cost=_cost_of_time,
    ),
    Exhibit(
        name="times_unpadded",
        title="A time for each column instead of each sample",
        project="TorchCFM",
        threads=(
            ("torchcfm #68", "https://github.com/atong01/conditional-flow-matching/pull/68"),
            ("#71", "https://github.com/atong01/conditional-flow-matching/issues/71"),
        ),
        story="""TorchCFM multiplied the data, (batch, ...), by the times, (batch,), as they were. Most
        shapes raise an error then, and those were reported. Where the batch is as large as the
        last axis nothing is raised, and each column of a picture lives at a time of its own.""",
        entry="ot_path",
        variant=TimesUnpadded,
        cost=_cost_of_unpadded_times,
    ),
    Exhibit(
        name="detached",
        title="A likelihood that cannot be trained",
        project="flow_matching",
        threads=(
            ("flow_matching #59", "https://github.com/facebookresearch/flow_matching/issues/59"),
            ("#91", "https://github.com/facebookresearch/flow_matching/pull/91"),
        ),
        story="""`compute_likelihood` cut its result off from what it was computed from, even with
        `enable_grad=True`. The value was right, and gradients came out as `None`. No test of values
        can see that; one of gradients does.""",
        entry="flow_score",
        variant=Detached,
        cost=_cost_of_detaching,
    ),
)
