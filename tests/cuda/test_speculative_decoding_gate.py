"""The machine code of verification's kernels on an H100: registers, shared memory, no spills."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.gate
pytest.importorskip("triton")
from tests.cuda.gate import Refused, admit  # noqa: E402
from tests.cuda.speculative_gate import compile_verification  # noqa: E402

# The vocabulary is an argument: a compiled kernel knows only how many blocks it has at most. These
# are SmolLM2's 49,152 and Llama 3's 128,256 tokens.
VOCABULARIES = (49_152, 128_256)
CASES = [
    ("partial", "bf16", {}),
    ("partial", "fp32", {"GREEDY": True}),
    ("settle", "bf16", {}),
    ("settle", "bf16", {"HAS_K": True, "HAS_P": True}),
    ("settle", "fp32", {"HAS_P": True}),
    ("settle", "bf16", {"HAS_K": True}),
    ("test", "bf16", {"WHOLE": True, "gamma": 7}),
    ("test", "fp32", {"gamma": 3}),
    ("mass", "bf16", {}),
    ("mass", "fp32", {"WHOLE": True}),
    ("mass", "bf16", {"DRAWN": False}),
    ("pick", "bf16", {"WHOLE": True, "gamma": 7}),
    ("pick", "fp32", {"gamma": 0}),
    ("tree", "bf16", {}),
    ("tree", "fp32", {}),
    ("tree", "fp32", {"DRAWN": False}),
]


@pytest.mark.parametrize(("kernel", "dtype", "flags"), CASES, ids=lambda x: str(x))
def test_every_kernel_fits_an_h100(kernel, dtype, flags):
    admit(compile_verification(kernel, dtype, vocab=VOCABULARIES[1], **flags))


@pytest.mark.parametrize("kernel", ["settle", "pick"])
def test_the_smaller_vocabulary_fits_too(kernel):
    admit(compile_verification(kernel, "bf16", vocab=VOCABULARIES[0]))


def test_a_larger_block_is_refused():
    """Eight times the tokens at a time, with half the warps: they no longer fit into registers."""
    from pkg.cuda.speculative_decoding import Config

    greedy = Config(block=32_768, num_warps=4)
    with pytest.raises(Refused, match="spill"):
        admit(compile_verification("partial", "bf16", vocab=VOCABULARIES[1], config=greedy))


def test_what_is_summed_in_blocks_is_opened_in_the_same_blocks():
    from pkg.cuda.speculative_decoding import CONFIGS

    assert CONFIGS["partial"].block == CONFIGS["mass"].block == CONFIGS["pick"].block
