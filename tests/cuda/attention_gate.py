"""Compile a kernel of attention for sm_90 exactly as its launcher does."""

from __future__ import annotations

import json

import torch

from pkg.cuda.flash_attention import choose
from pkg.cuda.flash_attention.backward import delta_kernel, dkv_kernel, dq_kernel
from pkg.cuda.flash_attention.configs import (
    DELTA_BLOCK,
    DELTA_WARPS,
    MERGE_BLOCK,
    MERGE_WARPS,
    Config,
    block_d,
    precision,
)
from pkg.cuda.flash_attention.decode import decode_kernel, merge_kernel
from pkg.cuda.flash_attention.forward import forward_kernel
from pkg.cuda.flash_attention.tiles import PLAIN
from tests.cuda.gate import Compiled, compile_for_sm90

KERNELS = {
    "forward": forward_kernel, "dq": dq_kernel, "dkv": dkv_kernel, "decode": decode_kernel,
}  # fmt: skip
KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_INT64 = ("lengths",)
_INT32 = ("words", "cu_q", "cu_k")
_FLOAT32 = ("lse", "delta", "top", "partial_out", "partial_lse", "lse_gradient")
_TYPES = {"factor": "fp32", "scale": "fp32", "mask": "*u8"}
_TENSORS = ("q", "k", "v", "out", "gradient", "dq", "dk", "dv")
_FLAGS = ("HAS_LEFT", "HAS_RIGHT", "HAS_MASK", "HAS_TREE", "PACKED", "BOTTOM_RIGHT")
# Strides of what the launcher allocates: multiples of 16 only where head_dim is one.
_OURS = ("stride_on", "stride_oh", "stride_ob", "stride_dn", "stride_dh", "stride_db")


def compile_attention(
    name: str, dtype: str, dim: int, config: Config | None = None, rows: int = 0, **flags: bool
) -> list[Compiled]:
    """Compile kernel `name` for `dtype` ("bf16", "fp16", "fp32"), head_dim and what is visible.

    One result for each launch: dK and dV may be made apart. `config` stands in for the table's.
    """
    general = bool(flags.get("HAS_MASK") or flags.get("HAS_TREE"))
    kind = KINDS[dtype]
    config = config or choose(name, kind, dim, general, rows)
    constants = {
        "DIM": dim, "BLOCK_D": block_d(dim), "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
        "BLOCK_P": config.partial, "STAGES": config.num_stages, "PRECISION": precision(kind),
    }  # fmt: skip
    if name != "decode":
        constants |= {flag: flags.get(flag, False) for flag in _FLAGS}
    if flags.get("HAS_MASK"):
        constants["mask_column"] = 1  # a launch makes a constant of a 1
    variants = [{}]
    if name == "dkv":
        both = [(True, False), (False, True)] if config.apart else [(True, True)]
        variants = [{"WANT_K": k, "WANT_V": v} for k, v in both]
    return [
        _compile(KERNELS[name], dtype, constants | wanted, config.num_warps, config.num_stages)
        for wanted in variants
    ]


def compile_helper(name: str, dtype: str, dim: int) -> Compiled:
    """Compile one of the two small kernels without a configuration: "delta" or "merge"."""
    constants = {"DIM": dim, "BLOCK_D": block_d(dim)}
    if name == "delta":
        return _compile(delta_kernel, dtype, {**constants, "BLOCK_M": DELTA_BLOCK}, DELTA_WARPS, 3)
    return _compile(merge_kernel, dtype, {**constants, "BLOCK_S": MERGE_BLOCK}, MERGE_WARPS, 3)


def _compile(kernel, dtype: str, constants: dict, warps: int, stages: int) -> Compiled:
    signature = {}
    for argument in kernel.arg_names:
        if argument in _TENSORS:
            signature[argument] = f"*{dtype}"
        elif argument in _INT64:
            signature[argument] = "*i64"
        elif argument in _INT32:
            signature[argument] = "*i32"
        elif argument in _FLOAT32:
            signature[argument] = "*fp32"
        else:
            signature[argument] = _TYPES.get(argument, "i32")
    # What a launch finds divisible by 16: pointers, and the strides of rows; see `_aligned`. The
    # cache of a decoding step is not copied, so its rows may begin anywhere.
    odd = constants["DIM"] % 16 != 0
    cache = kernel is decode_kernel and odd
    aligned = [
        argument for argument, kind in signature.items()
        if argument not in constants and argument not in PLAIN
        and (kind.startswith("*") or (argument.startswith("stride_") and not cache))
        and not (odd and argument in _OURS)
    ]  # fmt: skip
    return compile_for_sm90(
        kernel, signature, constants, num_warps=warps, num_stages=stages, aligned=aligned
    )


def main() -> None:
    """Compile the 16-bit rows of the table for causal attention, and store what each needs."""
    from benchmarks.record import RESULTS, provenance
    from pkg.cuda.flash_attention import CONFIGS

    rows = []
    for (name, bits, dim), config in CONFIGS.items():
        kernel, _, kind = name.partition(", ")
        if bits != 16 or kind:
            continue
        flags = {} if kernel == "decode" else {"HAS_RIGHT": True}
        for part, compiled in enumerate(compile_attention(kernel, "bf16", dim, **flags)):
            need = {"registers": compiled.registers, "shared": compiled.shared}
            need |= {"spills": compiled.spills, "wgmma": compiled.wgmma}
            rows.append({"kernel": kernel, "dim": dim, "launch": part, **vars(config), **need})
    made = {key: value for key, value in provenance("cpu").items() if key != "machine"}
    path = RESULTS / "flash_attention-gate.json"
    path.write_text(json.dumps({**made, "target": "sm_90", "rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
