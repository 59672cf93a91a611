"""Random bits for rounding: a seed from a `torch.Generator`, and on the CPU a stream made of it.

An operator cannot take a generator, so it takes a seed. The kernels turn it into Philox numbers. On
the CPU PyTorch's own generator would cost more than all the rest, so the bits come from NumPy's
SFC64, seeded by it: same seed, same bits, on every machine, but not those of the GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor


def draw_seed(generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw a seed, an int64 scalar on `device`."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    drawn = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    return drawn.to(device)


class _Filled(ISeedSequence):  # type: ignore[misc]  # NumPy's own annotation is Any
    """The seed in all three words of SFC64's state, as its author starts it from one number.

    NumPy turns the generator twelve times before its first number. Its own hashing of a seed takes
    longer than the rounding of a bias.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> Any:
        return np.full(n_words, self.seed, dtype=dtype)


def stream(seed: Tensor) -> np.random.SFC64:
    """Return the stream of random bits that belongs to a seed."""
    return np.random.SFC64(_Filled(int(seed)))  # type: ignore[arg-type]  # as documented


def halfwords(bits: np.random.SFC64, count: int) -> Tensor:
    """Return int16, (count,), uniform on all values: four from each 64-bit number."""
    return torch.from_numpy(bits.random_raw((count + 3) // 4)).view(torch.int16)[:count]


def uniforms(bits: np.random.SFC64, count: int) -> Tensor:
    """Return float64, (count,): multiples of 2⁻³² in [0, 1), two from each 64-bit number."""
    words = torch.from_numpy(bits.random_raw((count + 1) // 2)).view(torch.int32)[:count]
    return (words.double() + 2.0**31) * 2.0**-32
