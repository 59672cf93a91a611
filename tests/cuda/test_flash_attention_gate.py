"""The machine code of attention's kernels on an H100: registers, shared memory, tensor cores."""

from __future__ import annotations

import dataclasses

import pytest

pytestmark = pytest.mark.gate
pytest.importorskip("triton")
from pkg.cuda.flash_attention.launch import _MOST_ROWS  # noqa: E402
from tests.cuda.attention_cases import DTYPES, launchers  # noqa: E402
from tests.cuda.attention_gate import compile_attention, compile_helper  # noqa: E402
from tests.cuda.gate import SHARED_LIMIT, Refused, admit  # noqa: E402

CAUSAL, WINDOW = {"HAS_RIGHT": True}, {"HAS_RIGHT": True, "HAS_LEFT": True}
PACKED = {"HAS_RIGHT": True, "PACKED": True, "BOTTOM_RIGHT": True}
MASK, TREE = {"HAS_RIGHT": True, "HAS_MASK": True}, {"HAS_TREE": True}


def gated():
    """Every row of the table with what it is for, and each variant at the two usual widths."""
    try:
        from pkg.cuda.flash_attention import CONFIGS
    except ImportError:
        return []
    cases = []
    for name, bits, dim in CONFIGS:
        kernel, _, kind = name.partition(", ")
        dtype = "bf16" if bits == 16 else "fp32"
        if kernel == "decode":
            cases.append((kernel, dtype, dim, {}, 64 if kind else 0))
        elif not kind:
            usual = bits == 16 and dim == 128
            flags = (
                [WINDOW, PACKED, CAUSAL, {}]
                if usual
                else [WINDOW, PACKED]
                if bits == 16
                else [WINDOW]
            )
            general = [MASK, TREE] if bits == 16 and dim < 256 else [MASK] if dim != 64 else []
            cases += [(kernel, dtype, dim, variant, 0) for variant in flags + general]
    # Widths that are no power of two, with outputs (and a cache) whose rows begin anywhere.
    cache = [("decode", "fp16", dim, {}, 0) for dim in (40, 250)]
    odd = [(kernel, "fp16", 40, CAUSAL, 0) for kernel in ("forward", "dq", "dkv")]
    return [*cases, *odd, ("forward", "fp16", 80, WINDOW, 0), *cache]


@pytest.mark.parametrize(
    ("kernel", "dtype", "dim", "flags", "rows"), gated(),
    ids=lambda x: "+".join(k for k, v in x.items() if v) or "all" if isinstance(x, dict) else str(x),
)  # fmt: skip
def test_every_configuration_fits_an_h100(kernel, dtype, dim, flags, rows):
    for compiled in compile_attention(kernel, dtype, dim, rows=rows, **flags):
        admit(compiled)
        if dtype == "fp32":  # exact products are not made on the tensor cores
            assert compiled.wgmma == 0
            assert "mma.sync" not in compiled.ptx
        elif kernel == "decode" and not rows:  # 16 rows are too few for wgmma
            assert "mma.sync" in compiled.ptx
        else:
            assert compiled.wgmma > 0


def test_a_larger_step_through_partial_tiles_is_refused():
    """The row of the table for head_dim 128, but with partial tiles as large as the others."""
    import torch

    config = launchers().choose("forward", torch.bfloat16, 128)
    greedy = dataclasses.replace(config, partial=config.block_n)
    (compiled,) = compile_attention("forward", "bf16", 128, greedy, HAS_RIGHT=True)
    assert compiled.registers == 255  # the most that a thread can have
    assert compiled.shared <= SHARED_LIMIT
    with pytest.raises(Refused, match="spill"):
        admit(compiled)


def test_a_deeper_pipeline_is_refused():
    """The row for head_dim 64 with more stages: nothing spills, but shared memory ends."""
    import torch

    config = launchers().choose("dq", torch.bfloat16, 64)
    greedy = dataclasses.replace(config, num_stages=9)
    (compiled,) = compile_attention("dq", "bf16", 64, greedy, HAS_RIGHT=True)
    assert not compiled.spills
    with pytest.raises(Refused, match="shared memory"):
        admit(compiled)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["delta", "merge"])
@pytest.mark.parametrize("dim", [64, 256])
def test_the_small_kernels_fit(name, dtype, dim):
    admit(compile_helper(name, dtype, dim))


def test_the_table_has_a_row_for_every_type_and_width():
    module = launchers()
    for dtype in DTYPES:
        for dim in range(16, 257):
            for name in ("forward", "dq", "dkv"):
                for general in (False, True):
                    check(name, module.choose(name, dtype, dim, general))
            for rows in (1, 17):
                check("decode", module.choose("decode", dtype, dim, rows=rows))


def check(name, config):
    assert min(config.block_m, config.block_n, config.partial) >= 16
    # The launcher's bound on strides counts on it.
    assert max(config.block_m, config.block_n) <= _MOST_ROWS
    # Partial tiles step through a part that is a multiple of the ordinary tile.
    assert (config.block_m if name == "dkv" else config.block_n) % config.partial == 0
