"""The kernels of dilated convolution: what they become on an H100."""

from __future__ import annotations

import pytest

from tests.cuda.dilated_oracle import DTYPES, launchers


def gated():
    """Every row of the table, in both directions and both types of 16 bits."""
    try:
        from pkg.cuda.dilated_convolution import CONFIGS
    except ImportError:
        return []
    cases = []
    for key in CONFIGS:
        dtype = "bf16" if key[1] == 16 else "fp32"
        if key[0] in ("correlate", "depthwise"):
            cases += [(key, dtype, "backward", True, 3)]
        cases += [(key, dtype, "forward", True, 3)]
        if key[0].startswith("depthwise"):  # the dense kernels always get a multiple of 16
            cases += [(key, dtype, "forward", False, 3)]
        if key[0] == "depthwise":  # all taps unrolled, and a loop
            cases += [(key, dtype, "forward", True, size) for size in (5, 7)]
    last = [key for key in CONFIGS if key[1:] in ((16, 256, 64), (16, 128, 128), (16, 64, 0))]
    return cases + [(key, "fp16", "forward", True, 3) for key in last]


@pytest.mark.gate
@pytest.mark.parametrize(("key", "dtype", "variant", "even", "size"), gated(), ids=str)
def test_every_configuration_fits_an_h100(key, dtype, variant, even, size):
    from tests.cuda.dilated_gate import compile_dilated
    from tests.cuda.gate import admit

    compiled = compile_dilated(key, dtype, variant, even=even, size=size)
    admit(compiled)
    if key[0] not in ("correlate", "weight"):
        assert not even or ".v4." in compiled.ptx  # vectors of 16 bytes
    elif dtype == "fp32":  # exact products are not made by the tensor cores
        assert compiled.wgmma == 0
        assert "mma.sync" not in compiled.ptx
    else:
        assert compiled.wgmma > 0
    if key[0] in ("correlate", "weight"):  # a pipeline that is filled 16 bytes at a time
        assert "cp.async.cg.shared.global" in compiled.ptx


@pytest.mark.gate
def test_the_table_has_a_row_for_every_type_and_width():
    module = launchers()
    for dtype in DTYPES:
        for outputs in (1, 16, 17, 65, 1000):
            for inputs in (1, 16, 17, 65, 1000):
                for name in ("correlate", "weight"):
                    config = module.choose(name, dtype, outputs, inputs)
                    assert min(config.block_m, config.block_n, config.block_k) >= 16
        for taps in (1, 4, 5, 9, 100):
            config = module.choose("depthwise weight", dtype, 64, taps)
            assert config.block_k >= min(taps, 16)
        config = module.choose("depthwise", dtype)
        assert config.block_m % config.rows == 0
