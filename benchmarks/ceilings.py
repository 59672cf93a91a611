"""How fast this machine can be: a large copy and a large matrix product, measured in the same run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from benchmarks.clocks import cpu_seconds, cuda_seconds

_REPEATS = 5


@dataclass(frozen=True)
class Work:
    """What a case cannot do without: operations, and bytes read and written once."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Ceilings:
    """The best of a large copy (read and write counted) and of a large matrix product."""

    bytes_per_second: float
    flops_per_second: float

    def limit(self, work: Work) -> tuple[float, str]:
        """Return the seconds that `work` takes at least, and which ceiling says so."""
        moving, computing = work.bytes / self.bytes_per_second, work.flops / self.flops_per_second
        return (computing, "flops") if computing >= moving else (moving, "bytes")


@cache
def ceilings(device: str, dtype: torch.dtype, threads: int = 1) -> Ceilings:
    """Measure both ceilings, once in a run for each device, dtype and number of threads."""
    if device == "cpu":
        torch.set_num_threads(threads)
    return Ceilings(copy_bandwidth(device), _product(device, dtype))


def copy_bandwidth(device: str = "cuda") -> float:
    """Return bytes per second of a large copy on `device`, read and write counted."""
    source = torch.zeros(2**30 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)
    return 2 * source.numel() / _best(device, lambda: goal.copy_(source))


def _product(device: str, dtype: torch.dtype) -> float:
    size = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _best(device, lambda: torch.mm(a, b, out=out))


def _best(device: str, call: Any) -> float:
    clock = cuda_seconds if device == "cuda" else cpu_seconds
    call()
    return min(clock(call)[0] for _ in range(_REPEATS))


def roofline(
    work: Work, ceiling: Ceilings, seconds: dict[str, float]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return each contender's share of the nearer ceiling, and the numbers behind it."""
    limit, bound = ceiling.limit(work)
    told = {**asdict(work), "bound": bound, "seconds": limit, "ceilings": asdict(ceiling)}
    return {label: limit / taken for label, taken in seconds.items()}, told
