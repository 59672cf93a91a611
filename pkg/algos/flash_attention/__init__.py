"""Attention, from the definition to FlashAttention.

`attention` keeps the whole matrix of scores and is the reference. `online_softmax` and
`SoftmaxState` are the idea: maximum, sum and output can be merged in any order. `tiled_attention` is
the algorithm in plain PyTorch. `flash_attention` is the operator to use, with its own gradient and a
kernel for the GPU; `flash_attention_varlen` takes packed sequences, `flash_decode` a few new tokens
over a cache, `ring_attention` a sequence spread over processes.

The layout is (batch, heads, sequence, head_dim), as in PyTorch. The chapter "FlashAttention" derives
each of them and compares it with this code.
"""

from pkg.algos.flash_attention.decode import flash_decode
from pkg.algos.flash_attention.masks import AncestorMask
from pkg.algos.flash_attention.operator import flash_attention
from pkg.algos.flash_attention.reference import attention
from pkg.algos.flash_attention.ring import ring_attention
from pkg.algos.flash_attention.softmax import SoftmaxState, merge_states, online_softmax
from pkg.algos.flash_attention.tiled import Traffic, tiled_attention
from pkg.algos.flash_attention.varlen import flash_attention_varlen

#: Results: they carry numbers that the functions computed, and compute none themselves.
RESULTS = ("Traffic",)

__all__ = [
    "AncestorMask",
    "SoftmaxState",
    "Traffic",
    "attention",
    "flash_attention",
    "flash_attention_varlen",
    "flash_decode",
    "merge_states",
    "online_softmax",
    "ring_attention",
    "tiled_attention",
]
