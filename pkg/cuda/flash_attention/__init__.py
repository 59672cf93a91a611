"""FlashAttention on the GPU: forward, backward, packed sequences and decoding, in Triton."""

from pkg.cuda.flash_attention.configs import CONFIGS, Config, choose
from pkg.cuda.flash_attention.launch import (
    attention_backward,
    attention_forward,
    decode,
    varlen_backward,
    varlen_forward,
)

__all__ = [
    "CONFIGS",
    "Config",
    "attention_backward",
    "attention_forward",
    "choose",
    "decode",
    "varlen_backward",
    "varlen_forward",
]
