"""Dilated convolution on the GPU, dense and depthwise, with both gradients, in Triton."""

from pkg.cuda.dilated_convolution.configs import CONFIGS, Config, choose
from pkg.cuda.dilated_convolution.launch import backward_input, backward_weight, forward

__all__ = ["CONFIGS", "Config", "backward_input", "backward_weight", "choose", "forward"]
