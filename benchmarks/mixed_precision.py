"""Rounding and small updates beside what people use: PyTorch's recipe, torchao, gfloat, ml_dtypes, AdamW.

Contenders are equal in what they take and give: float32 in; bfloat16 out of a stochastic cast, float32
that holds values of the format out of a rounding; of an optimizer's step, the new bfloat16 weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Case, copy_bandwidth, measure, peer
from pkg.algos import mixed_precision as mp
from pkg.algos.mixed_precision import FloatFormat, StochasticRoundingAdamW

Contenders = dict[str, Callable[[], Any]]
BF16 = torch.bfloat16

#: Elements of a cast: a small layer's, a large one's, and more than any cache holds.
CASTS = {"cpu": (2**16, 2**20, 2**24), "cuda": (2**20, 2**24, 2**28)}
#: Elements of a rounding.
ROUNDED = {"cpu": (2**16, 2**22), "cuda": (2**24, 2**28)}
#: gfloat's scalar function is called number by number: on so many.
SCALAR = 2**12
#: Weights of a step: one layer of a small transformer, and of a large one.
STEPS = {"cpu": (2**16, 2**22), "cuda": (2**22, 2**27)}
#: Formats, their names in gfloat and ml_dtypes, and PyTorch's type where it has one.
FORMATS: tuple[tuple[FloatFormat, str, str, torch.dtype | None], ...] = (
    (mp.FP16, "binary16", "", torch.float16),
    (mp.BF16, "bfloat16", "bfloat16", torch.bfloat16),
    (mp.FP8_E4M3, "ocp_e4m3", "float8_e4m3fn", torch.float8_e4m3fn),
    (mp.FP8_E5M2, "ocp_e5m2", "float8_e5m2", torch.float8_e5m2),
    (mp.FP6_E2M3, "ocp_e2m3", "float6_e2m3fn", None),
    (mp.FP4_E2M1, "ocp_e2m1", "float4_e2m1fn", None),
)


# ---------------------------------------------------------------- the stochastic cast


def recipe(x: Tensor, generator: torch.Generator) -> Tensor:
    """The usual lines: 16 random bits below those that stay, and the rest cut off."""
    random = torch.randint(
        0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator
    )
    return ((x.view(torch.int32) + random) & -65536).view(torch.float32).to(BF16)


def cast_contenders(x: Tensor) -> Contenders:
    """Return the casts to bfloat16; ours first."""
    ours, generator = (torch.Generator(x.device).manual_seed(seed) for seed in (0, 1))
    found: Contenders = {
        "ours": partial(mp.stochastic_round, x, BF16, generator=ours),
        "recipe": partial(recipe, x, generator),
    }
    if x.is_cuda:
        found["compiled"] = partial(torch.compile(recipe_without_generator), x)
    if torchao := peer("torchao.optim.quant_utils"):
        found["torchao"] = partial(torchao._fp32_to_bf16_sr, x)
    return found


def recipe_without_generator(x: Tensor) -> Tensor:
    """The recipe as it is compiled into one kernel: with the default generator."""
    random = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device)
    return ((x.view(torch.int32) + random) & -65536).view(torch.float32).to(BF16)


def unbiased(x: Tensor, ours: Tensor, theirs: Tensor) -> bool:
    """Both are neighbours of x in bfloat16, and right on average.

    The mean error in spacings is of deviation at most 1 / (2 · √n); 6 are allowed.
    """
    spacing = torch.exp2(x.double().abs().log2().floor()) * 2.0**-7
    for y in (ours, theirs):
        error = (y.double() - x) / spacing
        if y.dtype != BF16 or not bool((error.abs() < 1).all()):
            return False
        if not abs(float(error.mean())) < 6 / (2 * math.sqrt(x.numel())):
            return False
    return True


# ---------------------------------------------------------------- any format


def rounding_contenders(
    x: Tensor, fmt: FloatFormat, gfloat_name: str, ml_name: str, dtype: torch.dtype | None
) -> Contenders:
    """Return the roundings to nearest of float32 to values of a format; ours first."""
    found: Contenders = {"ours": partial(mp.quantize, x, fmt)}
    if dtype is not None:
        found["torch casts"] = lambda: x.to(dtype).to(torch.float32)
    if x.is_cuda:
        return found
    values = x.numpy()
    if ml_dtypes := peer("ml_dtypes"):
        kind = getattr(ml_dtypes, ml_name) if ml_name else np.float16
        found["ml_dtypes"] = lambda: values.astype(kind).astype(np.float32)
    if gfloat := peer("gfloat"):
        info = getattr(import_module("gfloat.formats"), f"format_info_{gfloat_name}")
        found["gfloat"] = partial(gfloat.round_ndarray, info, values)
        if x.numel() <= SCALAR:
            found["gfloat scalar"] = lambda: np.array(
                [gfloat.round_float(info, float(value)) for value in values], dtype=np.float32
            )
    return found


def equal(ours: Any, theirs: Any) -> bool:
    """Tell if two results are the same numbers, to the last bit but for signs of zero."""
    a, b = (torch.as_tensor(y).cpu().double() for y in (ours, theirs))
    return torch.equal(a, b)


def stochastic_contenders(x: Tensor, fmt: FloatFormat, gfloat_name: str) -> Contenders:
    """Return the stochastic roundings to any format; ours first."""
    generator = torch.Generator().manual_seed(0)
    on_device = torch.Generator(x.device).manual_seed(0)
    found: Contenders = {
        "ours": partial(mp.quantize, x, fmt, rounding="stochastic", generator=on_device)
    }
    if not x.is_cuda and (gfloat := peer("gfloat")):
        info = getattr(import_module("gfloat.formats"), f"format_info_{gfloat_name}")
        mode, values = gfloat.RoundMode.Stochastic, x.numpy()

        def by_gfloat() -> Any:
            bits = torch.randint(2**16, x.shape, generator=generator).numpy()
            return gfloat.round_ndarray(info, values, mode, srbits=bits, srnumbits=16)

        found["gfloat"] = by_gfloat
    return found


def neighbours(x: Tensor, fmt: FloatFormat, ours: Any, theirs: Any) -> bool:
    """Both go to a neighbour in the format, and right on average, as in `unbiased`."""
    spacing = mp.ulp(x.cpu(), fmt)
    for y in (ours, theirs):
        error = (torch.as_tensor(y).cpu().double() - x.cpu()) / spacing
        # A power of two has the smaller spacing below it.
        if not bool((error.abs() <= 1).all()):
            return False
        if not abs(float(error.mean())) < 6 / (2 * math.sqrt(x.numel())):
            return False
    return True


# ---------------------------------------------------------------- a step of AdamW


def weights(count: int, device: str) -> tuple[Tensor, Tensor]:
    """Return weights and gradients in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, count, generator=generator)
    return (0.02 * drawn[0]).to(BF16).to(device), (1e-3 * drawn[1]).to(BF16).to(device)


def stepper(count: int, device: str, make: Callable[[nn.Parameter], Any]) -> Callable[[], Tensor]:
    """Return a call that makes one step and returns the weights."""
    value, gradient = weights(count, device)
    param = nn.Parameter(value)
    optimizer = make(param)

    def step() -> Tensor:
        param.grad = gradient
        optimizer.step()
        return param.detach()

    return step


class CopiedMaster:
    """Master weights as in most training loops: float32 parameters, copied to bfloat16 after a step."""

    def __init__(self, param: nn.Parameter, **keywords: Any) -> None:
        self.param, self.master = param, nn.Parameter(param.detach().float())
        self.optimizer = torch.optim.AdamW([self.master], **keywords)

    @torch.no_grad()
    def step(self) -> None:
        """Take the gradient over, step, copy the weights back."""
        assert self.param.grad is not None
        self.master.grad = self.param.grad.float()
        self.optimizer.step()
        self.param.copy_(self.master)


def step_contenders(count: int, device: str) -> Contenders:
    """Return the steps; ours first, with half the state, then ours with float32 moments."""

    def ours(moments: torch.dtype) -> Callable[[nn.Parameter], Any]:
        generator = torch.Generator().manual_seed(0)
        return lambda p: StochasticRoundingAdamW([p], moments=moments, generator=generator)

    make: dict[str, Callable[[nn.Parameter], Any]] = {
        "ours": ours(BF16),
        "ours, fp32 moments": ours(torch.float32),
        "fused + master": partial(CopiedMaster, fused=True),
        "foreach + master": partial(CopiedMaster, foreach=True),
    }
    if torchao := peer("torchao.optim"):
        make["torchao"] = lambda p: torchao._AdamW([p], bf16_stochastic_round=True)
    return {label: stepper(count, device, maker) for label, maker in make.items()}


def same_step(count: int, device: str, ours: Tensor, theirs: Tensor) -> bool:
    """After a first step both have gone lr · sign(gradient), but for one rounding each."""
    value, gradient = weights(count, device)
    exact = value.double() * (1 - 1e-3 * 1e-2) - 1e-3 * gradient.double().sign()
    spacing = torch.exp2(exact.abs().log2().floor()) * 2.0**-7
    # Where the gradient is above 1e-5, eps = 1e-8 takes at most a thousandth of a step; that may
    # also lead into a binade of twice the spacing.
    allowed, plain = spacing + 2 * 1e-3 * 1e-3, gradient.abs() > 1e-5
    return all(bool(((y.double() - exact).abs() <= allowed)[plain].all()) for y in (ours, theirs))


# ---------------------------------------------------------------- all of it


def numbers(count: int, device: str) -> Tensor:
    """Activations: normal, and of a size that every format holds."""
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(0))
    return drawn.clamp(-5.9, 5.9).to(device)


def run(device: str, threads: tuple[int, ...], rounds: int) -> Iterator[Case]:
    """Measure casts, roundings and steps; on a GPU, with the share of a copy's bandwidth."""
    ceiling = copy_bandwidth() if device == "cuda" else None
    for count in threads:
        common: dict[str, Any] = {"device": device, "threads": count, "rounds": rounds}
        for size in CASTS[device]:
            x = numbers(size, device)
            case = measure(f"cast, {size:,}", cast_contenders(x), partial(unbiased, x), **common)
            yield _share(case, 6 * size, ceiling)
        for size in ROUNDED[device]:
            x = numbers(size, device)
            for fmt, gfloat_name, ml_name, dtype in FORMATS:
                found = rounding_contenders(x, fmt, gfloat_name, ml_name, dtype)
                case = measure(f"{fmt.name}, {size:,}", found, equal, **common)
                yield _share(case, 8 * size, ceiling)
            agree = partial(neighbours, x, mp.FP8_E4M3)
            found = stochastic_contenders(x, mp.FP8_E4M3, "ocp_e4m3")
            case = measure(f"FP8_E4M3 stochastic, {size:,}", found, agree, **common)
            yield _share(case, 8 * size, ceiling)
        if device == "cpu":
            found = rounding_contenders(numbers(SCALAR, device), *FORMATS[2])
            yield measure(f"FP8_E4M3, {SCALAR:,}", found, equal, **common)
        for size in STEPS[device]:
            steps, agree = step_contenders(size, device), partial(same_step, size, device)
            case = measure(
                f"AdamW, {size:,}", steps, agree, **common,
                bytes_per_weight={"ours": 6, "ours, fp32 moments": 10, "fused + master": 14},
            )  # fmt: skip
            yield _share(case, 14 * size, ceiling)  # three numbers read and written, one read


def _share(case: Case, moved: int, ceiling: float | None) -> Case:
    if ceiling is not None:
        case.notes["share of copy bandwidth"] = moved / case.timings["ours"].median / ceiling
    return case
