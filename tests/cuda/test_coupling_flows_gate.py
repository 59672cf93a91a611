"""The kernels of coupling flows: what they become on an H100."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.gate


def rows(kernel):
    try:
        from pkg.cuda.coupling_flows import CONFIGS
    except ImportError:
        return []
    return [key for key in CONFIGS if key[0] == kernel]


def wide_accesses(ptx):
    """Return how many loads and stores of 16 bytes, of 8, and narrower ones there are."""
    found = {16: 0, 8: 0, 4: 0}
    for vector, bits in re.findall(
        r"(?:ld|st)\.global(?:\.[\w:]+)*?(?:\.(v[24]))?\.b(\d+)\b", ptx
    ):
        width = int(bits) // 8 * int(vector[1:] or 1) if vector else int(bits) // 8
        found[16 if width >= 16 else 8 if width >= 8 else 4] += 1
    return found


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("key", [*rows("couple"), *rows("gradient")], ids=str)
def test_every_configuration_of_the_coupling_is_lean(key, dtype):
    from tests.cuda.coupling_gate import compile_affine
    from tests.cuda.gate import admit

    compiled = compile_affine(key, dtype, inverse=key[2] in (64, 1024))
    admit(compiled)
    assert compiled.stack == 0
    # Four warps each: 16 programs fill the threads of a multiprocessor with 32 registers, 4 with 128.
    assert compiled.registers <= 128, compiled.registers
    print(key, dtype, compiled.registers, compiled.shared, wide_accesses(compiled.ptx))


@pytest.mark.parametrize("key", [("couple", 0, 1024), ("gradient", 0, 1024)], ids=str)
@pytest.mark.parametrize(("mask", "bounded", "even"), [(True, True, True), (False, False, False)])
def test_the_other_forms_of_the_coupling_fit_too(key, mask, bounded, even):
    from tests.cuda.coupling_gate import compile_affine
    from tests.cuda.gate import admit

    for inverse in (False, True):
        compiled = compile_affine(key, "fp16", inverse=inverse, mask=mask, bounded=bounded, even=even)
        admit(compiled)
        print(key, mask, inverse, compiled.registers, wide_accesses(compiled.ptx))
