"""Compile a kernel of coupling flows for sm_90 exactly as its launcher does."""

from __future__ import annotations

from pkg.cuda.coupling_flows import CONFIGS
from pkg.cuda.coupling_flows.affine import couple_kernel, gradient_kernel
from tests.cuda.gate import Compiled, compile_for_sm90

KERNELS = {"couple": couple_kernel, "gradient": gradient_kernel}
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
