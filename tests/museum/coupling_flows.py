"""Published bugs of coupling flows."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from book.recordings import coupling_flows as recording
from pkg.algos.coupling_flows import (
    AffineCoupling,
    ChannelMask,
    Compose,
    Flow,
    Invertible1x1Conv,
    Logit,
    dequantise,
)
from pkg.algos.coupling_flows.networks import MLP
from tests.museum import Exhibit, Museum


class SignOfForward(AffineCoupling):
    """Its inverse returns the log-determinant of the forward map."""

    def inverse(self, z):
        x, log_det = super().inverse(z)
        return x, -log_det


class Overwritten(Compose):
    """Its inverse keeps the log-determinant of the layer that it undid last."""

    def inverse(self, z):
        for layer in reversed(self.transforms):
            z, log_det = layer.inverse(z)
        return z, log_det


class OneAfterTheOther(AffineCoupling):
    """Splits even from odd places, and joins the halves end to end."""

    def forward(self, x):
        kept, rest = x[:, ::2], x[:, 1::2]
        raw, shift = self.network(kept).chunk(2, 1)
        return torch.cat((kept, rest * raw.exp() + shift), 1), raw.sum(1)

    def inverse(self, z):
        kept, rest = z[:, ::2], z[:, 1::2]
        raw, shift = self.network(kept).chunk(2, 1)
        return torch.cat((kept, (rest - shift) / raw.exp()), 1), -raw.sum(1)


class AlphaNotUndone(Logit):
    """Draws pixels in by alpha, and does not draw them out again."""

    def inverse(self, z):
        x = z.sigmoid()
        return x, (x.log() + (1 - x).log()).flatten(1).sum(1)


class LogOfDeterminant(Invertible1x1Conv):
    """Takes the determinant first and its logarithm afterwards."""

    def log_abs_det(self):
        return self.weight().det().abs().log()


def scaled_to_one(counts, *, bins, generator, dtype):
    """Scales the largest count to 1, and spreads by 1 / bins."""
    u = torch.rand(counts.shape, generator=generator, dtype=dtype)
    return counts / (bins - 1) + u / bins


# ------------------------------------------------------------------ what they cost


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def _counts() -> torch.Tensor:
    """The test digits, counts from 0 to 16."""
    return recording.counts_of("test")


def _others(x: Any) -> float:
    """How many per cent of the pixels are another count than they were."""
    return 100 * float(((x * 17).floor().long() != _counts()).double().mean())


@cache
def _scored_as_drawn(kind: str) -> float:
    """Bits per pixel of drawn digits, scored with the log-determinants that come with them."""
    flow: Flow = recording.load("RealNVP").flow
    with torch.no_grad():
        z = flow.base.sample(256, generator=_seeded())
        _, log_det = flow.transform.inverse(z)
        if kind == "overwritten":
            _, log_det = Overwritten(*flow.transform.transforms).inverse(z)
        log_p = flow.base.log_prob(z) + (log_det if kind == "sign" else -log_det)
    return float((math.log(17) - log_p / 64).mean()) / math.log(2)


def _cost_of_sign() -> str:
    right, wrong = _scored_as_drawn("right"), _scored_as_drawn("sign")
    return (
        "256 digits drawn from the recorded RealNVP, and scored as they are drawn, seem to cost "
        f"{wrong:.1f} bits a pixel; it is {right:.1f}."
    )


def _cost_of_overwriting() -> str:
    right, wrong = _scored_as_drawn("right"), _scored_as_drawn("overwritten")
    return (
        "256 digits drawn from the recorded RealNVP, and scored as they are drawn, seem to cost "
        f"{wrong:.1f} bits a pixel; it is {right:.1f}."
    )


def _cost_of_order() -> str:
    coupling = OneAfterTheOther(ChannelMask.alternating(64), MLP(32, 64))  # a new one: the identity
    x = dequantise(_counts(), bins=17, generator=_seeded())
    with torch.no_grad():
        back = coupling.inverse(coupling(x.flatten(1))[0])[0]
    return (
        "a single coupling, untrained, so that it changes no number, already gives the test digits "
        f"back with {_others(back.view_as(x)):.0f} % of their pixels wrong."
    )


def _cost_of_alpha() -> str:
    x, wrong = dequantise(_counts(), bins=17, generator=_seeded()), []
    for alpha in (1e-5, 0.05):
        wrong.append(_others(AlphaNotUndone(alpha).inverse(Logit(alpha)(x)[0])[0]))
    return (
        f"with the tutorial's small alpha, 0.00001, {wrong[0]:.0f} % of the test digits' pixels come back "
        f"as another count, and nobody looks twice; with RealNVP's 0.05 it is {wrong[1]:.0f} %."
    )


def _cost_of_the_largest() -> str:
    x = scaled_to_one(_counts(), bins=17, generator=_seeded(), dtype=torch.float64)
    outside = 100 * float((x >= 1).double().mean())
    return (
        f"{_others(x):.0f} % of the pixels of the test digits fall into the bin of another count, and "
        f"{outside:.0f} % beyond 1, where a flow with a logit in front refuses them."
    )


def _cost_of_underflow() -> str:
    sizes = range(1, 100)
    lost = next(n for n in sizes if float((0.1 * torch.eye(n)).det()) == 0)
    return (
        f"a float32 matrix that shrinks everything tenfold has determinant 0 from {lost} channels on, "
        f"and the loss is infinite; its log-determinant is only {lost * math.log(0.1):.0f}."
    )


museum = Museum(
    "coupling_flows",
    Exhibit(
        name="sign_of_forward",
        title="The wrong sign of the inverse's log-determinant",
        project="pytorch-flows, normalizing-flows, FlowJAX",
        threads=(
            ("pytorch-flows #16", "https://github.com/ikostrikov/pytorch-flows/issues/16"),
            (
                "normalizing-flows #27",
                "https://github.com/VincentStimper/normalizing-flows/issues/27",
            ),
            ("FlowJAX #208", "https://github.com/danielward27/flowjax/issues/208"),
        ),
        story="""Three libraries shipped it. Training runs a flow one way only, so nothing shows until
        someone scores samples as they are drawn: then every density is off by twice the
        log-determinant. FlowJAX had a test for it, on a map whose log-determinant is 0.""",
        entry="affine_inverse_log_det",
        variant=SignOfForward,
        cost=_cost_of_sign,
    ),
    Exhibit(
        name="overwritten",
        title="Log-determinants overwritten instead of added up",
        project="tensorflow/models",
        threads=(("tensorflow/models #7465", "https://github.com/tensorflow/models/issues/7465"),),
        story="""The decoder of the published RealNVP code assigned a new log-determinant where its
        encoder adds one. Pictures come out right, and their densities are those of a part of the flow.""",
        entry="inverse_log_det",
        variant=Overwritten,
        cost=_cost_of_overwriting,
    ),
    Exhibit(
        name="one_after_the_other",
        title="A coupling that cannot be undone in more than two dimensions",
        project="pytorch-normalizing-flows",
        threads=(
            (
                "pytorch-normalizing-flows #5",
                "https://github.com/karpathy/pytorch-normalizing-flows/issues/5",
            ),
            ("#10", "https://github.com/karpathy/pytorch-normalizing-flows/issues/10"),
        ),
        story="""It takes the even and the odd places apart, and puts them together again one *after*
        the other. In two dimensions that is the same thing, and all its examples have two. In four, the
        inverse takes other numbers for the kept ones.""",
        entry="there_and_back",
        variant=OneAfterTheOther,
        cost=_cost_of_order,
    ),
    Exhibit(
        name="alpha_not_undone",
        title="Pixels drawn in, and not drawn out again",
        project="UvA DL notebooks",
        threads=(
            ("uvadlc_notebooks #57", "https://github.com/phlippe/uvadlc_notebooks/issues/57"),
        ),
        story="""The tutorial's logit draws pixels away from 0 and 1 on the way in. On the way out it
        left that step out, of the pixels and of the log-determinant. Its own test of the round trip
        failed, and the text blamed rounding. A reader counted the terms: three one way, two back.""",
        entry="logit_inverse",
        variant=AlphaNotUndone,
        cost=_cost_of_alpha,
    ),
    Exhibit(
        name="scaled_to_one",
        title="255 steps between counts, and bins of 1/256",
        project="rosinality/glow-pytorch",
        threads=(("glow-pytorch #17", "https://github.com/rosinality/glow-pytorch/issues/17"),),
        story="""The image loader had scaled the largest count to 1, so the counts lay 1/255 apart. The
        noise that spreads them, and the bits that were reported, took them to be 1/256 apart.""",
        entry="dequantise",
        variant=scaled_to_one,
        cost=_cost_of_the_largest,
    ),
    Exhibit(
        name="log_of_determinant",
        title="The logarithm of a determinant that underflows",
        project="chaiyujin/glow-pytorch",
        threads=(("glow-pytorch #7", "https://github.com/chaiyujin/glow-pytorch/issues/7"),),
        story="""The 1 × 1 convolution took `log(abs(det(W)))`. A determinant is a product of as many
        numbers as there are channels, and leaves the range of floating point long before its logarithm
        does. `slogdet` adds logarithms instead.""",
        entry="conv1x1_log_det",
        variant=LogOfDeterminant,
        cost=_cost_of_underflow,
    ),
)
