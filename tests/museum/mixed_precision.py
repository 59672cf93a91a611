"""Published bugs of mixed precision."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from pkg.algos.mixed_precision import (
    FP16,
    FloatFormat,
    LossScaler,
    StochasticRoundingAdamW,
    quantize,
)
from tests.museum import Exhibit, Museum


class ClipsScaledGradients(LossScaler):
    """Leaves the gradients scaled until the step, so that clipping sees them so."""

    def unscale_(self, optimizer):
        pass

    def step(self, optimizer):
        super().unscale_(optimizer)
        return super().step(optimizer)


class ChecksBeforeUnscaling(LossScaler):
    """Looks for infinities while the gradients still carry the scale."""

    def unscale_(self, optimizer):
        params = [param for group in optimizer.param_groups for param in group["params"]]
        found = [~param.grad.isfinite().all() for param in params]
        super().unscale_(optimizer)
        self._progress[optimizer].checks[:] = found


def keeps_small_numbers(x, fmt):
    """Rounds to the precision of the format, and believes that its exponents never end."""
    return quantize(x, FloatFormat("no end", 11, fmt.mantissa_bits))


def through_float32(x, fmt):
    """Rounds to float32 first."""
    return quantize(x.float(), fmt)


def noise_of_normal_numbers(x, fmt, *, rounding, generator):
    """Adds noise of one spacing, as if x were a normal number, and rounds to nearest."""
    spacing = x.double().abs() * fmt.eps
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64) - 0.5
    return quantize(x.double() + noise * spacing, fmt)


class DecaysInBfloat16(StochasticRoundingAdamW):
    """Decays the bfloat16 weights themselves, and leaves the rest of the step in float32."""

    def __init__(self, params, *, lr, weight_decay, **options):
        super().__init__(params, lr=lr, weight_decay=0.0, **options)
        self.kept = 1 - lr * weight_decay

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.mul_(self.kept)
        return super().step()


# ------------------------------------------------------------------ what they cost


@cache
def _digits():
    """The chapter's handwritten digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(digits.data / 16).float(), torch.from_numpy(digits.target)


@cache
def _trained(made: type[LossScaler]) -> tuple[torch.nn.Parameter, float]:
    """Train one layer on the digits for 100 steps, clipped to norm 1; return it and its loss."""
    images, labels = _digits()
    weights = torch.nn.Parameter(torch.zeros(10, 64))
    optimizer, scaler = torch.optim.SGD([weights], lr=0.5), made()
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(images @ weights.T, labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([weights], 1.0)
        scaler.step(optimizer)
        scaler.update()
    return weights, float(loss.detach())


def _cost_of_clipping() -> str:
    right, wrong = _trained(LossScaler)[1], _trained(ClipsScaledGradients)[1]
    return (
        "with PyTorch's first scale the limit is 65,536 times as strict as was meant. One layer on the "
        f"chapter's digits, clipped to norm 1, has a loss of {wrong:.1f} after 100 steps, as it "
        f"had before the first, in place of {right:.1f}."
    )


def _cost_of_unscaling() -> str:
    images, labels = _digits()
    trained, right_on = _trained(LossScaler)[0].detach(), {}
    for made in (LossScaler, ChecksBeforeUnscaling):
        weights = torch.nn.Parameter(trained.clone())
        optimizer, scaler = torch.optim.SGD([weights], lr=0.5), made(2.0**-3)
        scaler.scale(torch.ones(()))
        weights.grad = torch.full_like(weights, 1e38)
        scaler.step(optimizer)
        guesses = (images @ weights.detach().T).argmax(1)
        right_on[made] = 100 * float((guesses == labels).double().mean())
    return (
        "at a scale of 1/8 one step with gradients of 1e38 makes every weight infinite. The layer on the "
        f"digits was right on {right_on[LossScaler]:.0f} % of them, and is right on "
        f"{right_on[ChecksBeforeUnscaling]:.0f} %, which is chance."
    )


def _cost_of_epsilon() -> str:
    half = torch.zeros(1, dtype=torch.float16)
    shipped, mended = (half / (half + torch.tensor(e).half()) for e in (1e-12, 1e-7))
    assert bool(shipped.isnan()), "0 / (0 + 0)"
    return (
        f"1e-12 is {FP16.smallest_subnormal / 1e-12:,.0f} times smaller than the smallest FP16 number. "
        f"With a gradient of 0 the step is {shipped.item()}, and so is every weight after it; with "
        f"1e-7, as the thread proposes, it is {mended.item()}."
    )


def _cost_of_rounding_twice() -> str:
    drawn = torch.from_numpy(np.random.default_rng(0).uniform(1, 2, 1 << 21))
    wrong = int((through_float32(drawn, FP16) != quantize(drawn, FP16)).sum())
    return (
        f"about one float64 number in {round(len(drawn) / wrong, -3):,.0f} becomes the wrong FP16 "
        "number. It is off by little more than half a spacing, so what breaks is the comparison with a "
        "correct implementation."
    )


def _cost_of_subnormals() -> str:
    update, counts = 2.0**-26, {}
    for name, way in (("right", quantize), ("wrong", noise_of_normal_numbers)):
        generator = torch.Generator().manual_seed(0)
        weights = torch.zeros(1000)
        for _ in range(500):
            weights = way(
                weights + update, FP16, rounding="stochastic", generator=generator
            ).float()
        counts[name] = float(weights.mean()) / update
    return (
        f"500 updates of a quarter of the smallest FP16 number should, on average, move a weight of 0 by "
        f"all 500. They move it by {counts['wrong']:.0f}; rounded rightly, by "
        f"{round(counts['right'], -1):.0f}."
    )


def _cost_of_decay() -> str:
    left = {}
    for made in (StochasticRoundingAdamW, DecaysInBfloat16):
        weights = torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
        optimizer = made(
            [weights], lr=1e-3, weight_decay=1.0, moments=torch.float32,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        for _ in range(1000):
            weights.grad = torch.zeros_like(weights)
            optimizer.step()
        left[made] = float(weights.detach().double().mean())
    return (
        f"1,000 steps with learning rate 0.001 and decay 1 should leave {0.999**1000:.2f} of a weight "
        f"without a gradient. They leave {left[DecaysInBfloat16]:.2f}: there is no weight decay. "
        f"`StochasticRoundingAdamW` leaves {left[StochasticRoundingAdamW]:.2f} on average."
    )


museum = Museum(
    "mixed_precision",
    Exhibit(
        name="clipped_before_unscaling",
        title="Gradients clipped while they carry the scale",
        project="Pytorch-UNet",
        threads=(
            ("Pytorch-UNet #468", "https://github.com/milesial/Pytorch-UNet/issues/468"),
            ("mended in #470", "https://github.com/milesial/Pytorch-UNet/pull/470"),
        ),
        story="""The training script clipped gradients to a norm and left unscaling to the step that
        follows. So the norm was that of the scaled gradients, and nearly every step was cut to
        almost nothing.""",
        entry="clip_after_unscale",
        variant=ClipsScaledGradients,
        cost=_cost_of_clipping,
    ),
    Exhibit(
        name="checked_before_unscaling",
        title="Infinities looked for before they arise",
        project="PyTorch",
        threads=(
            ("pytorch #99640", "https://github.com/pytorch/pytorch/issues/99640"),
            ("#96755", "https://github.com/pytorch/pytorch/issues/96755"),
        ),
        story="""`GradScaler` checks the scaled gradients. A scale that was halved again and again can
        fall below 1. Then a finite gradient divided by it can be infinite, after the check, and
        the optimizer gets it.""",
        entry="step_taken",
        variant=ChecksBeforeUnscaling,
        cost=_cost_of_unscaling,
    ),
    Exhibit(
        name="vanished_epsilon",
        title="An epsilon that is zero",
        project="simple-sam",
        threads=(("simple-sam #5", "https://github.com/Jannoshh/simple-sam/issues/5"),),
        story="""A gradient is divided by its norm plus 1e-12, which cannot divide by zero, in FP32. In
        FP16 the epsilon is far below half of the smallest number and becomes 0, like the norm of
        small gradients. Here is FP16 as the line of code believes it to be.""",
        entry="underflow",
        variant=keeps_small_numbers,
        cost=_cost_of_epsilon,
    ),
    Exhibit(
        name="rounded_twice",
        title="float64 rounded twice on its way to 16 bits",
        project="ml_dtypes",
        threads=(
            ("ml_dtypes #401", "https://github.com/jax-ml/ml_dtypes/pull/401"),
            ("julia #57809", "https://github.com/JuliaLang/julia/pull/57809"),
            ("Halide #8906", "https://github.com/halide/Halide/pull/8906"),
        ),
        story="""Conversions go from float64 to float32 and then to FP16 or BF16. Where the first
        rounding lands on a tie, the second one does not know on which side the number was. Several
        projects had it; `torch.Tensor.half()` still does.""",
        entry="nearest_even",
        variant=through_float32,
        cost=_cost_of_rounding_twice,
    ),
    Exhibit(
        name="subnormals_forgotten",
        title="Stochastic rounding without the subnormal numbers",
        project="StochasticRounding.jl",
        threads=(
            (
                "StochasticRounding.jl #62",
                "https://github.com/milankl/StochasticRounding.jl/issues/62",
            ),
        ),
        story="""Random noise is added that is right for normal numbers. Subnormal numbers are spaced
        more widely for their size, so the noise is too small to carry: half of the smallest number
        should become 0 half of the time, and always did.""",
        entry="stochastic_rounding",
        variant=noise_of_normal_numbers,
        cost=_cost_of_subnormals,
    ),
    Exhibit(
        name="decay_in_bfloat16",
        title="A weight decay that is rounded away",
        project="OneTrainer",
        threads=(("OneTrainer #996", "https://github.com/Nerogar/OneTrainer/issues/996"),),
        story="""The update of AdamW was rounded stochastically, but the decay was a multiplication of
        the BF16 weights before it, rounded to nearest. A learning rate times a decay is far less
        than half a spacing, so nothing decayed.""",
        entry="stochastic_rounding_adamw",
        variant=DecaysInBfloat16,
        cost=_cost_of_decay,
    ),
)
