"""The kernels of coupling flows: what they become on an H100."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.gate


def gated():
    """Every row of the table for one coupling: in 16 bits, and some in 32."""
    try:
        from pkg.cuda.coupling_flows import CONFIGS
    except ImportError:
        return []
    rows = [key for key in CONFIGS if key[0] != "stack"]
    return [(key, "bf16") for key in rows] + [(key, "fp32") for key in rows if key[2] in (64, 1024)]


def accesses(ptx):
    """Return how many loads and stores of global memory there are, by their bytes."""
    found: dict[int, int] = {}
    for vector, bits in re.findall(
        r"(?:ld|st)\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bfus](\d+)\b", ptx
    ):
        width = int(bits) // 8 * int(vector or 1)
        found[width] = found.get(width, 0) + 1
    return found


@pytest.mark.parametrize(("key", "dtype"), gated(), ids=str)
def test_every_configuration_of_the_coupling_is_lean(key, dtype):
    from tests.cuda.coupling_gate import compile_affine
    from tests.cuda.gate import admit

    compiled = compile_affine(key, dtype, inverse=key[2] in (64, 1024))
    admit(compiled)
    assert compiled.stack == 0
    # Programs of 128 threads: with 96 registers each, five fill a multiprocessor's 65,536.
    assert compiled.registers <= 96
    # Eight elements for each thread: x, raw and shift are read and z is written 16 bytes at a time,
    # twice that in float32; the gradients of all three come on top. What is left is a number a row.
    passes = (1 if dtype == "bf16" else 2) * (4 if key[0] == "couple" else 6)
    widths = accesses(compiled.ptx)
    assert widths.pop(16) in (passes, passes * 7 // 6)  # the inverse's gradient reads the shift too
    assert sum(widths.values()) <= 2


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kernel", ["couple", "gradient"])
@pytest.mark.parametrize(("mask", "bounded", "even"), [(True, True, True), (False, False, False)])
def test_the_other_forms_of_the_coupling_fit_too(kernel, mask, bounded, even, inverse):
    from tests.cuda.coupling_gate import compile_affine
    from tests.cuda.gate import admit

    if mask == inverse:  # a kernel costs seconds: each direction in one of the two forms
        key = (kernel, 0, 1024)
        admit(compile_affine(key, "fp16", inverse=inverse, mask=mask, bounded=bounded, even=even))


def test_the_gate_sees_what_is_not_lean():
    """Rows that begin anywhere are loaded number by number."""
    from tests.cuda.coupling_gate import compile_affine

    widths = accesses(compile_affine(("couple", 0, 256), "bf16", even=False).ptx)
    assert 16 not in widths
    assert widths[2] >= 4


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("bits", "hidden", "dtype", "dims"),
    [(16, 64, "bf16", 64), (16, 128, "fp16", 64), (32, 64, "fp32", 16), (32, 128, "fp32", 64)],
)
def test_the_whole_stack_stays_on_the_chip(bits, hidden, dtype, dims, inverse):
    """No spill: samples and activations never leave the registers and the shared memory."""
    from tests.cuda.coupling_gate import compile_stack
    from tests.cuda.gate import admit

    compiled = compile_stack(("stack", bits, hidden), dtype, dims=dims, inverse=inverse)
    admit(compiled)
    assert compiled.stack == 0
    if dtype == "fp32":  # three products of TF32 for one
        assert compiled.ptx.count("mma.sync") % 3 == 0
        assert "tf32" in compiled.ptx
    else:
        assert compiled.wgmma > 0
    assert compiled.shared <= 113 * 1024  # two programs share a multiprocessor's 227 KB


def test_the_table_covers_what_the_launcher_takes():
    import torch

    from pkg.cuda.coupling_flows import choose

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for hidden in (16, 32, 64, 128):
            config = choose("stack", hidden, dtype)
            assert hidden % min(config.columns, hidden) == 0
    for size in (1, 16, 17, 300, 10**6):
        for kernel in ("couple", "gradient"):
            assert choose(kernel, size).columns >= min(size, 1024)
