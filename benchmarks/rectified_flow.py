"""Drawing a path and stepping along it, beside flow_matching and diffusers.

Contenders are equal in what they take and give. A path: data (and noise) in; times, noise, places and
velocities out. A step: samples and velocities in, samples out; with guidance both halves of a network's
output come in. A sampler: the same velocity, which costs nothing here, followed for the same schedule.
torchcfm is not measured: it is not among the packages that the tests install.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Case, copy_bandwidth, measure, peer
from pkg.algos import rectified_flow as flow
from pkg.algos.rectified_flow.fused import draw_path
from pkg.algos.rectified_flow.sampler import guided_step, sample_fixed

Contenders = dict[str, Callable[[], Any]]

#: Samples and their elements: points of the plane, MNIST, 32 by 32 photographs, latents of SD3 at 1024².
PATHS = {
    "cpu": ((4096, 2), (256, 784), (64, 3072), (16, 65536)),
    "cuda": ((65536, 2), (4096, 784), (1024, 3072), (256, 262144)),
}
#: Latents of Stable Diffusion 3 with 16 channels: two of 256², one and four of 1024².
LATENTS = {
    "cpu": ((2, 16, 32, 32), (1, 16, 128, 128), (4, 16, 128, 128)),
    "cuda": ((1, 16, 128, 128), (16, 16, 128, 128), (128, 16, 128, 128)),
}
STEPS, WEIGHT, INDEX = 20, 4.5, 7
TYPES = (torch.float32, torch.bfloat16)
EPS = torch.finfo(torch.float32).eps


def numbers(
    shape: tuple[int, ...], device: str, seed: int, dtype: torch.dtype = TYPES[0]
) -> Tensor:
    """Normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


# ---------------------------------------------------------------- paths


def path_contenders(x0: Tensor | None, x1: Tensor, preserving: bool) -> Contenders:
    """Return draws of a training sample: (t, x0, x_t, velocity); ours first."""
    ours, theirs, plain = (torch.Generator(x1.device).manual_seed(seed) for seed in range(3))
    path = (
        flow.VariancePreservingPath(beta_min=0.1, beta_max=20.0)
        if preserving
        else flow.LinearPath()
    )

    def drawn() -> tuple[Tensor, ...]:
        found = draw_path(x1, path=path, time=flow.UniformTime(), generator=ours, x0=x0)
        return found.t, found.x0, found.xt, found.velocity

    def start(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        device = x1.device
        t = torch.rand(len(x1), generator=generator, device=device)
        noise = torch.randn(x1.shape, generator=generator, device=device) if x0 is None else x0
        return t, noise

    found: Contenders = {"ours": drawn}
    if module := peer("flow_matching.path"):
        schedulers = import_module("flow_matching.path.scheduler")
        other = (
            module.AffineProbPath(schedulers.VPScheduler(beta_min=0.1, beta_max=20.0))
            if preserving
            else module.CondOTProbPath()
        )

        def peers() -> tuple[Tensor, ...]:
            t, noise = start(theirs)
            sample = other.sample(x_0=noise, x_1=x1, t=t)
            return t, noise, sample.x_t, sample.dx_t

        found["flow_matching"] = peers
    if not preserving:

        def lines() -> tuple[Tensor, ...]:
            t, noise = start(plain)
            u = t.view(-1, 1)
            return t, noise, (1 - u) * noise + u * x1, x1 - noise

        found["plain lines"] = lines
    return found


def on_the_path(path: flow.GaussianPath, x1: Tensor, ours: Any, theirs: Any) -> bool:
    """Both are points of the path at their own times and noise, to a few roundings of float32."""
    preserving = isinstance(path, flow.VariancePreservingPath)
    for t, x0, xt, velocity in (ours, theirs):
        at = path.coefficients(t.double())
        parts = [c[:, None] for c in (at.alpha, at.sigma, at.d_alpha, at.d_sigma)]
        data, noise = x1.double(), x0.double()
        # σ of a preserving path comes from 1 − α², which cancels near the data: a relative error of
        # eps / σ². Elsewhere there are some ten roundings of coefficients and sums.
        lost = 4 * EPS / parts[1] ** 2 if preserving else 0.0
        for got, a, s in ((xt, *parts[:2]), (velocity, *parts[2:])):
            exact = a * data + s * noise
            allowed = 10 * EPS * ((1 + a.abs()) * data.abs() + (1 + s.abs()) * noise.abs())
            allowed = allowed + lost * s.abs() * noise.abs()
            if not bool(((got.double() - exact).abs() <= allowed).all()):
                return False
    return True


# ---------------------------------------------------------------- steps


def scheduler(device: str) -> Any:
    """Return diffusers' scheduler on our schedule, or None.

    Its own with shift=3 is another one: it shifts the smallest time twice (diffusers#13243).
    """
    if module := peer("diffusers"):
        found = module.FlowMatchEulerDiscreteScheduler(shift=1.0)
        found.set_timesteps(sigmas=sigmas("cpu")[:-1].tolist(), device=device)
        found.set_begin_index(0)
        return found
    return None


def sigmas(device: str) -> Tensor:
    """Return the schedule: SD3's shifted times, falling from 1 to 0."""
    even = torch.linspace(1, 1 / 1000, STEPS)
    shifted = 3 * even / (1 + 2 * even)
    return torch.cat([shifted, torch.zeros(1)]).to(device)


def step_contenders(x: Tensor, output: Tensor, guided: bool, device: str) -> Contenders:
    """Return one Euler step; `output` holds (unconditional, conditional) halves if guided."""
    times, outside = sigmas(device), scheduler(device)
    uncond, cond = output.chunk(2) if guided else (None, output)
    weight = torch.tensor(WEIGHT, device=device) if guided else None

    def mixed() -> Tensor:
        if not guided:
            return output
        first, second = output.chunk(2)
        return first + WEIGHT * (second - first)

    def of_diffusers() -> Tensor:
        v = mixed()
        outside._step_index = INDEX
        return outside.step(v, outside.timesteps[INDEX], x, return_dict=False)[0]  # type: ignore[no-any-return]

    def lines() -> Tensor:
        h = times[INDEX + 1] - times[INDEX]
        return (x.float() + h * mixed()).to(x.dtype)

    found: Contenders = {
        "ours": partial(
            guided_step, x, cond, times=times, index=INDEX, unconditional=uncond, guidance=weight
        )
    }
    if outside is not None:
        found["diffusers"] = of_diffusers
    found["plain lines"] = lines
    if device == "cuda":
        found["compiled"] = torch.compile(lines)
    return found


def stepped(x: Tensor, output: Tensor, guided: bool, ours: Tensor, theirs: Tensor) -> bool:
    """Both are the step of float64, to the roundings of the type that they are computed in."""
    times = sigmas(str(x.device.type)).double()
    halves = output.double().chunk(2) if guided else (output.double(),) * 2
    v = halves[0] + WEIGHT * (halves[1] - halves[0])
    exact = x.double() + (times[INDEX + 1] - times[INDEX]) * v
    size = 1 + 2 * WEIGHT if guided else 1.0
    # diffusers and the plain lines form the guided velocity in the network's type: three roundings.
    eps = torch.finfo(output.dtype).eps
    allowed = eps * (2 * exact.abs() + 0.2 * size * (halves[0].abs() + halves[1].abs())) + 1e-6
    return all(bool(((y.double() - exact).abs() <= allowed).all()) for y in (ours, theirs))


# ---------------------------------------------------------------- samplers


def sampler_contenders(x: Tensor, output: Tensor, guided: bool, device: str) -> Contenders:
    """Return whole runs of STEPS Euler steps along a velocity that is there already."""
    times, outside = sigmas(device), scheduler(device)
    weight = torch.tensor(WEIGHT, device=device) if guided else None
    label = torch.zeros(len(x), device=device)
    extra: dict[str, Any] = {"unconditional": {"label": label}} if guided else {}
    swapped = (
        torch.cat(output.chunk(2)[::-1]) if guided else output
    )  # ours has the other half first

    def ours() -> Tensor:
        with torch.no_grad():
            return sample_fixed(
                lambda x, t, label: swapped, x, times, method="euler", guidance=weight, label=label,
                **extra,
            )  # fmt: skip

    def of_diffusers() -> Tensor:
        outside._step_index = None
        state = x
        with torch.no_grad():
            for t in outside.timesteps:
                _ = torch.cat([state] * 2) if guided else state  # what the network gets
                _ = t.expand(2 * len(x) if guided else len(x))
                v = output
                if guided:
                    first, second = output.chunk(2)
                    v = first + WEIGHT * (second - first)
                state = outside.step(v, t, state, return_dict=False)[0]
        return state

    found: Contenders = {"ours": ours}
    if outside is not None:
        found["diffusers"] = of_diffusers
    if not guided and (module := peer("flow_matching.solver")):
        solver = module.ODESolver(velocity_model=lambda x, t: output)
        found["flow_matching"] = lambda: solver.sample(
            x_init=x, step_size=None, method="euler", time_grid=times
        )
    return found


def followed(x: Tensor, output: Tensor, guided: bool, ours: Tensor, theirs: Tensor) -> bool:
    """Both went from 1 to 0 along the same velocity; the peers round the state at every step."""
    halves = output.double().chunk(2) if guided else (output.double(),) * 2
    v = halves[0] + WEIGHT * (halves[1] - halves[0])
    exact = x.double() - v
    scale = x.double().abs() + (1 + 2 * WEIGHT) * (halves[0].abs() + halves[1].abs())
    allowed = STEPS * torch.finfo(x.dtype).eps * scale + 1e-6
    return all(bool(((y.double() - exact).abs() <= allowed).all()) for y in (ours, theirs))


# ---------------------------------------------------------------- all of it


def run(device: str, threads: tuple[int, ...], rounds: int) -> Iterator[Case]:
    """Measure paths, steps and samplers; on a GPU, with the share of a copy's bandwidth."""
    ceiling = copy_bandwidth() if device == "cuda" else None
    for count in threads:
        common: dict[str, Any] = {"device": device, "threads": count, "rounds": rounds}
        yield from _paths(device, ceiling, common)
        for shape in LATENTS[device]:
            for dtype in TYPES:
                for guided in (False, True):
                    yield from _steps(shape, dtype, guided, device, ceiling, common)


def _paths(device: str, ceiling: float | None, common: dict[str, Any]) -> Iterator[Case]:
    for shape in PATHS[device]:
        x1, x0 = (numbers(shape, device, seed) for seed in range(2))
        name = "x".join(map(str, shape))
        for preserving in (False, True):
            path = (
                flow.VariancePreservingPath(beta_min=0.1, beta_max=20.0)
                if preserving
                else flow.LinearPath()
            )
            kind = "preserving path" if preserving else "linear path"
            for noise in (x0, None):
                found = path_contenders(noise, x1, preserving)
                title = f"{kind}, {name}" + (", noise drawn" if noise is None else "")
                case = measure(title, found, partial(on_the_path, path, x1), **common)
                yield _share(case, 4 * 4 * x1.numel(), ceiling)  # 2 + 2, or 1 + 3


def _steps(
    shape: tuple[int, ...], dtype: torch.dtype, guided: bool, device: str, ceiling: float | None,
    common: dict[str, Any],
) -> Iterator[Case]:  # fmt: skip
    x = numbers(shape, device, 0, dtype)
    output = numbers((len(x) * (2 if guided else 1), *shape[1:]), device, 1, dtype)
    name = f"{'x'.join(map(str, shape))}, {str(dtype)[6:]}" + (", guided" if guided else "")
    for title, contenders, same in (
        ("step", step_contenders, stepped),
        (f"{STEPS} steps", sampler_contenders, followed),
    ):
        found = contenders(x, output, guided, device)
        case = measure(f"{title}, {name}", found, partial(same, x, output, guided), **common)
        moved = (4 if guided else 3) * x.numel() * x.element_size()
        yield _share(case, moved, ceiling) if title == "step" else case


def _share(case: Case, moved: int, ceiling: float | None) -> Case:
    if ceiling is not None:
        case.notes["share of copy bandwidth"] = moved / case.timings["ours"].median / ceiling
    return case
