"""Compile a kernel of verification for sm_90 exactly as its launcher does."""

from __future__ import annotations

import triton

from pkg.cuda.speculative_decoding import CONFIGS, Config
from pkg.cuda.speculative_decoding.chain import mass_kernel, pick_kernel, test_kernel
from pkg.cuda.speculative_decoding.laws import partial_kernel, settle_kernel
from pkg.cuda.speculative_decoding.tree import tree_kernel
from tests.cuda.gate import Compiled, compile_for_sm90

KERNELS = {
    "partial": partial_kernel, "settle": settle_kernel, "test": test_kernel, "mass": mass_kernel,
    "pick": pick_kernel, "tree": tree_kernel,
}  # fmt: skip
_TYPES = {
    "tops": "*fp32", "firsts": "*i32", "cuts": "*i32", "top_out": "*fp32", "cut_out": "*i32",
    "first_out": "*i32", "stops": "*i32", "temperature": "fp32", "top_k": "fp32", "top_p": "fp32",
}  # fmt: skip
_INT64 = ("tokens", "lengths", "out", "accepted", "parents", "path")
_NUMBERS = ("draft_rows", "vocab", "chunks", "gamma", "nodes", "depth")


def compile_verification(
    name: str,
    dtype: str,
    *,
    vocab: int,
    gamma: int = 4,
    config: Config | None = None,
    **flags: bool,
) -> Compiled:
    """Compile kernel `name` for logits of `dtype`, a vocabulary and a length of draft."""
    kernel, config = KERNELS[name], config or CONFIGS[name]
    chunks = triton.cdiv(vocab, CONFIGS["mass"].block)
    values = {
        "GREEDY": flags.get("GREEDY", False), "DRAWN": flags.get("DRAWN", True),
        "WHOLE": flags.get("WHOLE", False), "HAS_K": flags.get("HAS_K", False),
        "HAS_P": flags.get("HAS_P", False), "STEPS": triton.next_power_of_2(gamma + 1),
        "CHUNKS": triton.next_power_of_2(chunks), "BLOCK": config.block,
    }  # fmt: skip
    constants = {key: value for key, value in values.items() if key in kernel.arg_names}
    signature = {}
    for argument in kernel.arg_names:
        if argument in ("draft", "target"):
            signature[argument] = f"*{dtype}"
        elif argument in _INT64:
            signature[argument] = "*i64"
        elif argument in _NUMBERS:
            signature[argument] = "i32"
        else:
            signature[argument] = _TYPES.get(argument, "*fp64")
    aligned = [a for a, kind in signature.items() if a not in constants and kind.startswith("*")]
    if "vocab" in signature and vocab % 16 == 0:
        aligned.append("vocab")
    return compile_for_sm90(
        kernel, signature, constants, num_warps=config.num_warps, num_stages=3, aligned=aligned
    )
