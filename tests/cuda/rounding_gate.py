"""Compile a kernel of mixed precision for sm_90 exactly as its launcher does."""

from __future__ import annotations

import torch

from pkg.cuda.mixed_precision import CONFIGS
from pkg.cuda.mixed_precision.adamw import adamw_kernel
from pkg.cuda.mixed_precision.casts import round_kernel
from pkg.cuda.mixed_precision.launch import TARGETS, format_constants
from tests.cuda.gate import Compiled, compile_for_sm90

NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


def compile_cast(source: torch.dtype, target: torch.dtype, saturate: bool = False) -> Compiled:
    """Compile the stochastic cast between two types."""
    constants = format_constants(source, *TARGETS[target])
    half = source == torch.float32 and target == torch.bfloat16
    out = "*u8" if target.itemsize == 1 else "*i16"
    flags = {"ROUNDING": "stochastic", "SATURATE": saturate, "CODES": True, "HALFWORDS": half}
    return _compile_round(NAMES[source], out, "*i64", {**constants, **flags})


def compile_quantize(
    source: torch.dtype, parameters: tuple, rounding: str, saturate: bool = False
) -> Compiled:
    """Compile rounding to a format, given by the operator's five parameters."""
    carrier = torch.float64 if source == torch.float64 else torch.float32
    constants = format_constants(carrier, *parameters)
    flags = {"ROUNDING": rounding, "SATURATE": saturate, "CODES": False, "HALFWORDS": False}
    seed = "*i64" if rounding == "stochastic" else f"*{NAMES[source]}"
    return _compile_round(NAMES[source], f"*{NAMES[source]}", seed, {**constants, **flags})


def _compile_round(source: str, out: str, seed: str, constants: dict) -> Compiled:
    config = CONFIGS["round"]
    signature = {"x": f"*{source}", "out": out, "seed": seed, "count": "i32"}
    return compile_for_sm90(
        round_kernel, signature, {**constants, "BLOCK": config.block},
        num_warps=config.num_warps, aligned=("x", "out", "seed"),
    )  # fmt: skip


def compile_adamw(param: str, moments: str) -> Compiled:
    """Compile the step for types "bf16" or "fp32" of weights and moments."""
    config = CONFIGS["adamw"]
    signature = dict.fromkeys(adamw_kernel.arg_names, "fp32")
    signature |= {"param": f"*{param}", "grad": f"*{param}", "seed": "*i64", "count": "i32"}
    signature |= {"exp_avg": f"*{moments}", "exp_avg_sq": f"*{moments}"}
    return compile_for_sm90(
        adamw_kernel, signature, {"BLOCK": config.block}, num_warps=config.num_warps,
        aligned=("param", "exp_avg", "exp_avg_sq", "grad", "seed"),
    )  # fmt: skip
