"""Dilated convolution: a kernel with gaps between its taps.

`dilated_conv1d` and `dilated_conv2d` are the functions to use, with their own gradients and kernels
for the GPU; `gathered_conv1d` and `gathered_conv2d` are the definition that they are held to, and
`space_to_batch_conv2d` is the other way to compute it. `output_size`, `receptive_field` and
`coverage` say what a stack of layers sees, `has_gridding` and `hole_free_rates` whether it leaves
holes. `ASPP`, `HybridDilatedStack` and `CausalDilatedStack` are the networks built from it.

Images are (batch, channels, height, width), sequences (batch, channels, length), as in PyTorch. The
chapter "Dilated convolution" derives each of them and compares it with this code.
"""

from pkg.algos.dilated_convolution.causal import CausalDilatedStack
from pkg.algos.dilated_convolution.convolution import dilated_conv1d, dilated_conv2d
from pkg.algos.dilated_convolution.coverage import (
    coverage,
    field_moments,
    has_gridding,
    useful_taps,
)
from pkg.algos.dilated_convolution.geometry import (
    effective_kernel_size,
    input_sizes,
    output_size,
    receptive_field,
)
from pkg.algos.dilated_convolution.hdc import hdc_max_gap, hole_free_rates
from pkg.algos.dilated_convolution.modules import ASPP, HybridDilatedStack
from pkg.algos.dilated_convolution.reference import gathered_conv1d, gathered_conv2d
from pkg.algos.dilated_convolution.space_to_batch import space_to_batch_conv2d

__all__ = [
    "ASPP",
    "CausalDilatedStack",
    "HybridDilatedStack",
    "coverage",
    "dilated_conv1d",
    "dilated_conv2d",
    "effective_kernel_size",
    "field_moments",
    "gathered_conv1d",
    "gathered_conv2d",
    "has_gridding",
    "hdc_max_gap",
    "hole_free_rates",
    "input_sizes",
    "output_size",
    "receptive_field",
    "space_to_batch_conv2d",
    "useful_taps",
]
