"""The gate itself: it admits an ordinary kernel, and refuses a spill and too much shared memory."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.gate
gate = pytest.importorskip("tests.cuda.gate")
from tests.cuda import oversized  # noqa: E402


def test_a_spilling_kernel_is_refused():
    compiled = gate.compile_for_sm90(
        oversized.spilling_kernel, {"x": "*fp32", "y": "*fp32"}, {"N": 8192}, num_warps=1
    )
    assert compiled.spills > 0
    with pytest.raises(gate.Refused, match="spill"):
        gate.admit(compiled)


def test_the_same_kernel_with_enough_warps_is_admitted():
    compiled = gate.compile_for_sm90(
        oversized.spilling_kernel, {"x": "*fp32", "y": "*fp32"}, {"N": 8192}, num_warps=16
    )
    gate.admit(compiled)


GREEDY = {"a": "*fp16", "b": "*fp16", "c": "*fp32", "steps": "i32"}


def test_too_much_shared_memory_is_refused():
    compiled = gate.compile_for_sm90(
        oversized.greedy_kernel, GREEDY, {"M": 128, "K": 128}, num_warps=8, num_stages=5,
        aligned=("a", "b", "c"),
    )  # fmt: skip
    with pytest.raises(gate.Refused, match="shared memory"):
        gate.admit(compiled)


def test_fewer_stages_are_admitted_and_use_the_tensor_cores():
    compiled = gate.compile_for_sm90(
        oversized.greedy_kernel, GREEDY, {"M": 128, "K": 64}, num_warps=8, num_stages=3,
        aligned=("a", "b", "c"),
    )  # fmt: skip
    gate.admit(compiled)
    assert compiled.wgmma > 0
