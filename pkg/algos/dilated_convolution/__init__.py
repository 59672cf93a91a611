"""Dilated convolution: a kernel with gaps between its taps."""

from pkg.algos.dilated_convolution.convolution import dilated_conv1d, dilated_conv2d
from pkg.algos.dilated_convolution.geometry import (
    effective_kernel_size,
    input_sizes,
    output_size,
    receptive_field,
)
from pkg.algos.dilated_convolution.reference import gathered_conv1d, gathered_conv2d

__all__ = [
    "dilated_conv1d",
    "dilated_conv2d",
    "effective_kernel_size",
    "gathered_conv1d",
    "gathered_conv2d",
    "input_sizes",
    "output_size",
    "receptive_field",
]
