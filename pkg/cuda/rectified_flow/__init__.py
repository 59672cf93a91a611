"""Flow matching on the GPU, in Triton: paths drawn in one pass, and steps of a sampler."""

from pkg.cuda.rectified_flow.configs import CONFIGS, PHILOX_ROUNDS, Config, tile
from pkg.cuda.rectified_flow.launch import (
    affine_path,
    draw_linear_path,
    draw_times,
    stage,
    step,
)

__all__ = [
    "CONFIGS",
    "PHILOX_ROUNDS",
    "Config",
    "affine_path",
    "draw_linear_path",
    "draw_times",
    "stage",
    "step",
    "tile",
]
