"""The kernels of rectified flow as machine code for sm_90: nothing spills, and memory moves in vectors."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.gate

#: Bytes of 8 elements, which a thread has, over the 16 of a vector.
VECTORS = {"fp64": 4, "fp32": 2, "bf16": 1, "fp16": 1}


def lean(compiled, loads, stores, registers):
    """No spill, no stack; all data moves in vectors of 16 bytes, and so many of them."""
    from tests.cuda.gate import admit

    admit(compiled)
    assert compiled.stack == 0
    assert compiled.registers <= registers
    wide = {"ld": 0, "st": 0}
    for kind in re.findall(r"(ld|st)\.global(?:\.[\w:]+)*?\.(?:v4\.b32|v2\.b64)", compiled.ptx):
        wide[kind] += 1
    assert wide == {"ld": loads, "st": stores}


def single_loads(compiled):
    """Count the loads of one number."""
    every = re.findall(r"ld\.global\S*", compiled.ptx)
    return sum(not re.search(r"\.v[24]\.", load) for load in every)


@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize("law", ["given", "uniform", "logit_normal"])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_a_path_is_lean(kind, law, draw):
    from tests.cuda.flow_gate import compile_path

    compiled = compile_path(kind, law, draw)
    n = VECTORS[kind]
    # At 42 registers a thread, a multiprocessor is three quarters full.
    lean(compiled, n * (1 if draw else 2), n * (3 if draw else 2), registers=42)
    # Four coefficients; the seed for the time, and for the noise.
    coefficients, time = (4, 0) if law == "given" else (0, 1)
    assert single_loads(compiled) == coefficients + time + draw


def test_a_path_of_float64_is_lean():
    from tests.cuda.flow_gate import compile_path

    lean(compile_path("fp64", "given", draw=True), 4, 12, registers=64)


@pytest.mark.parametrize("size", [2, 37])
def test_short_samples_do_not_spill(size):
    """Several samples share a program; rows that begin anywhere cannot move in vectors."""
    from tests.cuda.flow_gate import compile_path
    from tests.cuda.gate import admit

    admit(compile_path("fp32", "logit_normal", draw=True, size=size))


@pytest.mark.parametrize(
    ("state", "slopes"), [("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"), ("fp64", "fp64")]
)
@pytest.mark.parametrize(("guidance", "point"), [("none", False), ("one", True), ("each", True)])
def test_a_step_is_lean(state, slopes, guidance, point):
    from tests.cuda.flow_gate import compile_step

    compiled = compile_step(state, slopes, guidance, point, 1 / 2, 1 / 6)
    n, m, guided = VECTORS[state], VECTORS[slopes], guidance != "none"
    loads = n * (2 if point else 1) + m * (2 if guided else 1)
    stores = n + (m * (2 if guided else 1) if point else 0)
    lean(compiled, loads, stores, registers=64)
    assert single_loads(compiled) == 2 + guided  # two times, and the weight


def test_the_constants_of_float64_are_float64():
    from tests.cuda.flow_gate import compile_step

    ptx = compile_step("fp64", "fp64", "none", False, 1 / 2, 1 / 6).ptx
    assert "0d3FC5555555555555" in ptx  # 1/6; rounded to float32 it would end in zeros
    assert not re.search(r"0f[0-9A-F]{8}", ptx)


@pytest.mark.parametrize("kind", ["fp32", "fp64"])
def test_times_are_lean(kind):
    from tests.cuda.flow_gate import compile_times

    lean(compile_times(kind, "logit_normal"), 0, 0, registers=42)


def test_the_gate_sees_narrow_loads():
    """Of a size that 16 does not divide, the compiler must fall back, and `lean` must notice."""
    from tests.cuda.flow_gate import compile_path

    with pytest.raises(AssertionError):
        lean(compile_path("fp32", "given", draw=False, aligned=False), 4, 4, registers=64)
