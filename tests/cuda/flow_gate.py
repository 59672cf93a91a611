"""Compile a kernel of rectified flow for sm_90 exactly as its launcher does."""

from __future__ import annotations

from pkg.cuda.rectified_flow import CONFIGS, tile
from pkg.cuda.rectified_flow.kernels import path_kernel, step_kernel, times_kernel
from tests.cuda.gate import Compiled, compile_for_sm90


def compile_path(
    kind: str, law: str, draw: bool, size: int = 784, aligned: bool = True
) -> Compiled:
    """Compile the path for samples of `size` elements of type "fp32", "bf16", "fp16" or "fp64"."""
    config = CONFIGS["path"]
    wide = "fp64" if kind == "fp64" else "fp32"
    down, across = tile(size, config.block)
    data = ("x0", "x1", "drawn", "xt", "velocity")
    signature = dict.fromkeys(data, f"*{kind}")
    # What the kernel does not look at is given as the data.
    signature |= dict.fromkeys(
        ("alpha", "sigma", "d_alpha", "d_sigma"), f"*{wide if law == 'given' else kind}"
    )
    signature |= {"t_out": f"*{kind if law == 'given' else 'fp32'}", "rows": "i32", "size": "i32"}
    signature |= {"seed": "*i64" if draw or law != "given" else f"*{kind}"}
    signature |= dict.fromkeys(("mean", "std", "shrink"), "fp32")
    pointers = tuple(name for name, type_ in signature.items() if type_.startswith("*"))
    return compile_for_sm90(
        path_kernel, signature, {"LAW": law, "DRAW": draw, "ROWS": down, "COLUMNS": across},
        num_warps=config.num_warps,
        aligned=(*pointers, "size") if aligned and size % 16 == 0 else pointers,
    )  # fmt: skip


def compile_step(
    state: str, slopes: str, guidance: str, point: bool, a: float, b: float, size: int = 2**20
) -> Compiled:
    """Compile a stage (with `point`) or a step; `guidance` is "none", "one" or "each"."""
    config = CONFIGS["step"]
    down, across = tile(size, config.block)
    signature = dict.fromkeys(("x", "base", "total"), f"*{state}")
    signature |= {"cond": f"*{slopes}", "point": f"*{slopes if point else state}"}
    signature |= {"uncond": f"*{state if guidance == 'none' else slopes}"}
    wide = "fp64" if state == "fp64" else "fp32"
    signature |= {"guidance": f"*{state if guidance == 'none' else wide}", "schedule": f"*{wide}"}
    pointers = tuple(signature)
    signature |= dict.fromkeys(("index", "rows", "size", "far"), "i32")
    constants = {
        "A": a, "B": b, "GUIDED": guidance != "none", "EACH": guidance == "each",
        "POINT": point, "ROWS": down, "COLUMNS": across,
    }  # fmt: skip
    if guidance != "each":
        constants["rows"] = 1  # as a launch finds it
    return compile_for_sm90(
        step_kernel, signature, constants, num_warps=config.num_warps,
        aligned=(*pointers, "size", "far"),
    )  # fmt: skip


def compile_times(kind: str, law: str) -> Compiled:
    """Compile the draw of times, float32 or float64."""
    config = CONFIGS["times"]
    signature = {"out": f"*{kind}", "seed": "*i64", "rows": "i32", "mean": "fp32", "std": "fp32"}
    return compile_for_sm90(
        times_kernel, signature, {"LAW": law, "BLOCK": config.block},
        num_warps=config.num_warps, aligned=("out", "seed"),
    )  # fmt: skip
