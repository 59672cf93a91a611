"""Floating-point formats and mixed precision: what rounding does, and how to train in spite of it.

`FloatFormat` describes any binary format; `quantize` rounds to it, correctly and in one step.
`ulp`, `ulp_distance` and `error_bound` measure and bound rounding errors; `pairwise_sum`,
`blocked_sum` and `kahan_sum` keep them small; `mx_quantize` shares one scale among a block.
`LossScaler`, `MasterWeights` and `StochasticRoundingAdamW` carry small gradients and small updates
through training.

The chapter "Mixed precision" derives each of them and compares it with this code.
"""

from pkg.algos.mixed_precision.blocks import MXTensor, mx_quantize
from pkg.algos.mixed_precision.bounds import error_bound
from pkg.algos.mixed_precision.casts import stochastic_round
from pkg.algos.mixed_precision.formats import (
    BF16,
    FP4_E2M1,
    FP6_E2M3,
    FP6_E3M2,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    FP64,
    TF32,
    FloatFormat,
)
from pkg.algos.mixed_precision.master_weights import MasterWeights
from pkg.algos.mixed_precision.optimizers import StochasticRoundingAdamW
from pkg.algos.mixed_precision.quantize import quantize
from pkg.algos.mixed_precision.scaler import LossScaler
from pkg.algos.mixed_precision.steady_state import scale_steady_state
from pkg.algos.mixed_precision.sums import blocked_sum, kahan_sum, pairwise_sum
from pkg.algos.mixed_precision.ulps import ulp, ulp_distance

#: Constants and results: they are described by parameters or carry numbers, and compute none.
RESULTS = (
    "BF16",
    "FP4_E2M1",
    "FP6_E2M3",
    "FP6_E3M2",
    "FP8_E4M3",
    "FP8_E5M2",
    "FP16",
    "FP32",
    "FP64",
    "TF32",
    "MXTensor",
)

__all__ = [
    "BF16",
    "FP4_E2M1",
    "FP6_E2M3",
    "FP6_E3M2",
    "FP8_E4M3",
    "FP8_E5M2",
    "FP16",
    "FP32",
    "FP64",
    "TF32",
    "FloatFormat",
    "LossScaler",
    "MXTensor",
    "MasterWeights",
    "StochasticRoundingAdamW",
    "blocked_sum",
    "error_bound",
    "kahan_sum",
    "mx_quantize",
    "pairwise_sum",
    "quantize",
    "scale_steady_state",
    "stochastic_round",
    "ulp",
    "ulp_distance",
]
