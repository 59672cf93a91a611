"""Compile a kernel of dilated convolution for sm_90 exactly as its launcher does."""

from __future__ import annotations

from pkg.cuda.dilated_convolution import CONFIGS
from pkg.cuda.dilated_convolution.dense import correlate_kernel, weight_kernel
from pkg.cuda.dilated_convolution.depthwise import depthwise_kernel, depthwise_weight_kernel
from tests.cuda.gate import Compiled, compile_for_sm90

KERNELS = {
    "correlate": correlate_kernel, "weight": weight_kernel,
    "depthwise": depthwise_kernel, "depthwise weight": depthwise_weight_kernel,
}  # fmt: skip
_TENSORS = ("x", "weight", "bias", "out", "gradient")


def compile_dilated(
    key: tuple[str, int, int, int], dtype: str, variant: str = "forward", *, even: bool = True,
    size: int = 3,
) -> Compiled:  # fmt: skip
    """Compile the row `key` of CONFIGS for `dtype` ("bf16", "fp16", "fp32").

    `variant` is "forward" (with bias) or "backward" (the input's gradient: the weight read the other
    way). `even` says that channels divide by 16, as a launch finds them; then vectors are loaded.
    `size` is the kernel's height and width.
    """
    name, config = key[0], CONFIGS[key]
    forward = variant == "forward"
    constants: dict[str, object] = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    if name in ("correlate", "weight"):
        constants |= {
            "BLOCK_K": config.block_k, "STAGES": config.num_stages,
            "PRECISION": "ieee" if dtype == "fp32" else "tf32",
        }  # fmt: skip
    if name in ("correlate", "depthwise"):
        constants["HAS_BIAS"] = forward
    if name == "correlate":
        constants["stride_wi" if forward else "stride_wo"] = 1  # a launch makes a 1 constant
    if name == "depthwise":
        constants |= {"KERNEL_H": size, "KERNEL_W": size, "ROWS": config.rows, "SUM": 1, "SHARE": 1}
    if name == "depthwise weight":
        constants |= {"BLOCK_K": config.block_k, "SHARE": 1}
    kernel = KERNELS[name]
    signature = {}
    for argument in kernel.arg_names:
        if argument in _TENSORS:
            signature[argument] = f"*{dtype}"
        else:
            signature[argument] = "*fp32" if argument == "partial" else "i32"
    whole = ("stride_", "channels") if even else ()
    aligned = [
        argument for argument, kind in signature.items()
        if argument not in constants and (kind.startswith("*") or argument.startswith(whole or "*"))
    ]  # fmt: skip
    return compile_for_sm90(
        kernel, signature, constants,
        num_warps=config.num_warps, num_stages=config.num_stages, aligned=aligned,
    )  # fmt: skip
