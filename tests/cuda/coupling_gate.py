"""Compile a kernel of coupling flows for sm_90 exactly as its launcher does."""

from __future__ import annotations

import torch

from pkg.cuda.coupling_flows import CONFIGS
from pkg.cuda.coupling_flows.affine import couple_kernel, gradient_kernel
from pkg.cuda.coupling_flows.configs import precision
from pkg.cuda.coupling_flows.resident import stack_kernel
from tests.cuda.gate import Compiled, compile_for_sm90

KERNELS = {"couple": couple_kernel, "gradient": gradient_kernel}
_KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_FLOAT32 = ("sums", "arriving_sum")
_TENSORS = ("arriving", "x", "raw", "shift", "out", "by_x", "by_raw", "by_shift")


def compile_affine(
    key: tuple[str, int, int], dtype: str, *, inverse=False, mask=False, bounded=True, even=True
) -> Compiled:
    """Compile the row `key` of CONFIGS for `dtype` ("bf16", "fp16", "fp32").

    `even` says that sizes and strides divide by 16, as a launch finds them in most networks.
    """
    kernel, config = KERNELS[key[0]], CONFIGS[key]
    constants = {
        "BOUNDED": bounded, "HAS_MASK": mask, "INVERSE": inverse,
        "BLOCK_R": config.rows, "BLOCK_C": config.columns,
    }  # fmt: skip
    signature = dict.fromkeys(kernel.arg_names, "i32")
    signature |= dict.fromkeys(_TENSORS, f"*{dtype}") | dict.fromkeys(_FLOAT32, "*fp32")
    signature |= {"mask": "*u8" if mask else f"*{dtype}", "bound": "fp32"}
    signature = {name: signature[name] for name in kernel.arg_names}
    aligned = [name for name, kind in signature.items() if kind.startswith("*")]
    if even:
        aligned += [name for name in signature if name.startswith("stride_")]
        aligned += ["columns", "changed", "part"]
        if mask:
            constants["first"] = 0
        else:
            aligned.append("first")
    return compile_for_sm90(
        kernel, signature, constants, num_warps=config.num_warps, aligned=aligned
    )


def compile_stack(
    key: tuple[str, int, int], dtype: str, *, dims=64, inverse=False, bounded=True
) -> Compiled:
    """Compile the row `key` of CONFIGS for the whole stack, of `dims` features."""
    config, hidden = CONFIGS[key], key[2]
    constants = {
        "BOUNDED": bounded, "INVERSE": inverse, "DIMS": dims, "HIDDEN": hidden, "BLOCK": config.rows,
        "CHUNK": min(config.columns, hidden), "PRECISION": precision(_KINDS[dtype]),
        "STAGES": config.num_stages,
    }  # fmt: skip
    signature = dict.fromkeys(stack_kernel.arg_names, "i32")
    weights = ("x", "w1", "b1", "w2", "b2", "w3", "b3", "out")
    signature |= dict.fromkeys(weights, f"*{dtype}")
    signature |= {"kept": "*u8", "sums": "*fp32", "bound": "fp32"}
    aligned = [name for name, kind in signature.items() if kind.startswith("*")]
    return compile_for_sm90(
        stack_kernel, signature, constants, num_warps=config.num_warps,
        num_stages=config.num_stages, aligned=[*aligned, "stride_x", "dims"],
    )  # fmt: skip
