"""Kernels of speculative decoding: verification and sampling straight from logits."""

from pkg.cuda.speculative_decoding.configs import CONFIGS, Config
from pkg.cuda.speculative_decoding.launch import (
    sample_logits,
    verify_chain_logits,
    verify_tree_logits,
)

__all__ = ["CONFIGS", "Config", "sample_logits", "verify_chain_logits", "verify_tree_logits"]
