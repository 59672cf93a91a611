"""Coupling flows: densities from maps that can be undone, from NICE to RealNVP and Glow.

A transform is a module with `forward(x) -> (z, log_det)` and `inverse(z) -> (x, log_det)`; each
log_det is that of the map that was called, in nats, one number for each sample. `Flow(transform,
base)` makes a density of it, with `log_prob`, `sample` and `bits_per_dim`; `NICE`, `RealNVP` and
`Glow` are ready ones. `invertible_checkpoint` trains a deep one in the memory of a single layer.

The first axis is the batch, the second the channels (or the features of a vector). The chapter
"Coupling flows" derives each of them and compares it with this code.
"""

from pkg.algos.coupling_flows.checkpoint import invertible_checkpoint
from pkg.algos.coupling_flows.compose import Compose, MultiScale
from pkg.algos.coupling_flows.couplings import (
    AdditiveCoupling,
    AffineCoupling,
    RationalQuadraticCoupling,
    log_scale_bound,
)
from pkg.algos.coupling_flows.flow import (
    Flow,
    StandardLogistic,
    StandardNormal,
    bits_per_dim,
)
from pkg.algos.coupling_flows.fused import FusedCouplings
from pkg.algos.coupling_flows.linear import (
    ActNorm,
    Invertible1x1Conv,
    Permutation,
    Scaling,
    Squeeze,
)
from pkg.algos.coupling_flows.masks import ChannelMask, CheckerboardMask
from pkg.algos.coupling_flows.models import NICE, Glow, RealNVP
from pkg.algos.coupling_flows.pixels import Logit, VariationalDequantisation, dequantise

__all__ = [
    "NICE",
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "ChannelMask",
    "CheckerboardMask",
    "Compose",
    "Flow",
    "FusedCouplings",
    "Glow",
    "Invertible1x1Conv",
    "Logit",
    "MultiScale",
    "Permutation",
    "RationalQuadraticCoupling",
    "RealNVP",
    "Scaling",
    "Squeeze",
    "StandardLogistic",
    "StandardNormal",
    "VariationalDequantisation",
    "bits_per_dim",
    "dequantise",
    "invertible_checkpoint",
    "log_scale_bound",
]
