"""The operators: a path drawn in one pass, and a step of a sampler in one pass.

Their CPU forms are plain PyTorch, the kernels are in `pkg.cuda.rectified_flow`. Doors are not here: the
public functions of `fused` and `sampler` check what they are given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pkg.operators import register

#: The streams of random numbers that belong to a seed: for times, and for noise.
_TIMES, _NOISE = 0, 1
#: Uniform times are (k + 1/2) / 2^23: exact in float32, symmetric, never 0 or 1.
TIME_BITS = 23


def wide(x: Tensor) -> torch.dtype:
    """Return the type that is computed in: float64 for float64, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def column(values: Tensor, x: Tensor) -> Tensor:
    """Return values (B,) as (B, 1, …, 1), in the type that x is computed in."""
    return values.to(wide(x)).view(-1, *(1,) * (x.ndim - 1))


def direct(*tensors: Tensor | None) -> bool:
    """Tell whether the CPU form can be called itself, which saves the way through the operator."""
    if torch.compiler.is_compiling():
        return False
    learning = torch.is_grad_enabled()
    for x in tensors:
        if x is not None and (
            type(x) is not Tensor or not x.is_cpu or (learning and x.requires_grad)
        ):
            return False
    return True


def _stream(seed: Tensor, stream: int) -> torch.Generator:
    # Twice the seed, and one more for the second stream: no two seeds share a stream.
    return torch.Generator().manual_seed((int(seed) * 2 + stream) % 2**63)


def _times(like: Tensor, kind: str, mean: float, std: float, seed: Tensor) -> Tensor:
    """Draw a time for each sample of `like`: "uniform", or "logit_normal" with mean and std."""
    generator, count = _stream(seed, _TIMES), (like.shape[0],)
    if kind == "uniform":
        drawn = torch.randint(2**TIME_BITS, count, generator=generator).to(wide(like))
        return (drawn + 0.5) * 2.0**-TIME_BITS
    normal = torch.randn(count, generator=generator, dtype=wide(like))
    return torch.sigmoid(mean + std * normal)


def _noise(like: Tensor, seed: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=_stream(seed, _NOISE), dtype=wide(like))


def _times_fake(like: Tensor, kind: str, mean: float, std: float, seed: Tensor) -> Tensor:
    return like.new_empty(like.shape[:1], dtype=wide(like))


flow_times = register(
    "flow_times", cpu=_times, cuda="pkg.cuda.rectified_flow:draw_times", fake=_times_fake
)


# ---------------------------------------------------------------- any Gaussian path


def _path(
    x0: Tensor | None, x1: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (x0 if it was drawn, else nothing; α x1 + σ x0; α' x1 + σ' x0)."""
    kind, data = x1.dtype, x1.to(wide(x1))
    noise = _noise(x1, _needed(seed)) if x0 is None else x0.to(wide(x1))
    found = []
    for of_noise, of_data in ((sigma, alpha), (d_sigma, d_alpha)):
        mixed = noise * column(of_noise, x1)
        found.append(mixed.addcmul_(data, column(of_data, x1)).to(kind).contiguous())
    drawn = noise.to(kind).contiguous() if x0 is None else x1.new_empty(0)
    return drawn, found[0], found[1]


def _needed(seed: Tensor | None) -> Tensor:
    if seed is None:
        raise ValueError("seed must be given where x0 is not")
    return seed


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _path_fake(
    x0: Tensor | None, x1: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _like(x1) if x0 is None else x1.new_empty(0), _like(x1), _like(x1)


def _remember_path(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x0, x1, *coefficients, _ = inputs
    ctx.given = x0 is not None
    ctx.save_for_backward(x0 if ctx.given else output[0], x1, *coefficients)


def _path_gradient(ctx: Any, _: Tensor, by_xt: Tensor, by_velocity: Tensor) -> tuple[Any, ...]:
    x0, x1, alpha, sigma, d_alpha, d_sigma = ctx.saved_tensors
    ours, theirs = by_xt.to(wide(x1)), by_velocity.to(wide(x1))

    def back(of_xt: Tensor, of_velocity: Tensor) -> Tensor:
        return (column(of_xt, x1) * ours + column(of_velocity, x1) * theirs).to(x1.dtype)

    def summed(gradient: Tensor, x: Tensor, like: Tensor) -> Tensor:
        return (gradient * x.to(wide(x1))).flatten(1).sum(1).to(like.dtype)

    return (
        back(sigma, d_sigma) if ctx.given else None, back(alpha, d_alpha),
        summed(ours, x1, alpha), summed(ours, x0, sigma),
        summed(theirs, x1, d_alpha), summed(theirs, x0, d_sigma), None,
    )  # fmt: skip


flow_path = register(
    "flow_path",
    cpu=_path,
    cuda="pkg.cuda.rectified_flow:affine_path",
    fake=_path_fake,
    setup_context=_remember_path,
    backward=_path_gradient,
)


# ---------------------------------------------------------------- a linear path, all of it drawn


def _draw(
    x0: Tensor | None, x1: Tensor, kind: str, mean: float, std: float, shrink: float, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (x0 if it was drawn; x_t; velocity; t) of the path (1 − shrink · t) x0 + t x1."""
    t = _times(x1, kind, mean, std, seed)
    noise = _noise(x1, seed) if x0 is None else x0.to(wide(x1))
    velocity = torch.sub(x1.to(wide(x1)), noise, alpha=shrink)
    xt = torch.addcmul(noise, column(t, x1), velocity)  # the same line: it starts in x0
    drawn = noise.to(x1.dtype).contiguous() if x0 is None else x1.new_empty(0)
    return drawn, xt.to(x1.dtype).contiguous(), velocity.to(x1.dtype).contiguous(), t


def _draw_fake(
    x0: Tensor | None, x1: Tensor, kind: str, mean: float, std: float, shrink: float, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    drawn = _like(x1) if x0 is None else x1.new_empty(0)
    return drawn, _like(x1), _like(x1), _times_fake(x1, kind, mean, std, seed)


def _remember_draw(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.given, ctx.shrink = inputs[0] is not None, inputs[5]
    ctx.save_for_backward(output[3])


def _draw_gradient(
    ctx: Any, _: Tensor, by_xt: Tensor, by_velocity: Tensor, by_t: Tensor
) -> tuple[Any, ...]:
    ours, theirs = by_xt.to(wide(by_xt)), by_velocity.to(wide(by_xt))
    t = column(ctx.saved_tensors[0], by_xt)
    by_x1 = (t * ours + theirs).to(by_xt.dtype)
    by_x0 = ((1 - ctx.shrink * t) * ours - ctx.shrink * theirs).to(by_xt.dtype)
    return by_x0 if ctx.given else None, by_x1, *(None,) * 5


flow_draw = register(
    "flow_draw",
    cpu=_draw,
    cuda="pkg.cuda.rectified_flow:draw_linear_path",
    fake=_draw_fake,
    setup_context=_remember_draw,
    backward=_draw_gradient,
)


# ---------------------------------------------------------------- what the public functions call


def times_operator(like: Tensor, *arguments: Any) -> Tensor:
    """Draw a time for each sample of `like`, of which a time does not depend."""
    like = like.detach()
    return (_times if direct(like) else flow_times)(like, *arguments)  # type: ignore[no-any-return]


def path_operator(x0: Tensor | None, x1: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mix noise and data, or drawn noise and data, by given coefficients."""
    call = _path if direct(x0, x1, *arguments[:4]) else flow_path
    return call(x0, x1, *arguments)  # type: ignore[no-any-return]


def draw_operator(
    x0: Tensor | None, x1: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw times, and the noise if there is none, and mix along a straight line."""
    return (_draw if direct(x0, x1) else flow_draw)(x0, x1, *arguments)  # type: ignore[no-any-return]
