"""Coupling flows on the GPU, in Triton: one coupling in one pass, and a whole stack on the chip."""

from pkg.cuda.coupling_flows.configs import CONFIGS, Config, choose
from pkg.cuda.coupling_flows.launch import backward, forward, inverse, inverse_backward
from pkg.cuda.coupling_flows.stack_launch import stack

__all__ = [
    "CONFIGS",
    "Config",
    "backward",
    "choose",
    "forward",
    "inverse",
    "inverse_backward",
    "stack",
]
