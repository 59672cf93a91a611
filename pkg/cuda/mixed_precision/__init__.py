"""Rounding on the GPU, in Triton: to any format, stochastically, and within AdamW's step."""

from pkg.cuda.mixed_precision.configs import CONFIGS, PHILOX_ROUNDS, Config
from pkg.cuda.mixed_precision.launch import (
    quantize,
    stochastic_cast,
    stochastic_rounding_adamw,
)

__all__ = [
    "CONFIGS",
    "PHILOX_ROUNDS",
    "Config",
    "quantize",
    "stochastic_cast",
    "stochastic_rounding_adamw",
]
