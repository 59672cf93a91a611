"""The kernels of mixed precision: their machine code for sm_90, and their operators on the CPU."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from pkg.algos.mixed_precision import BF16, FP8_E4M3, FP16, formats, quantize
from pkg.algos.mixed_precision.casts import cast_operator, stochastic_round
from pkg.algos.mixed_precision.operator import quantize_operator
from pkg.algos.mixed_precision.optimizers import update_operator
from pkg.algos.mixed_precision.quantize import round_with_uniforms
from pkg.algos.mixed_precision.randomness import halfwords, stream, uniforms
from pkg.algos.mixed_precision.rounding import ROUNDINGS, parameters
from tests.cuda.calls import Calls

TARGETS = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)

# ---------------------------------------------------------------- compile gate


def lean(compiled, width, loads, stores):
    """No spill; all loads and stores but those of the masked last block are 16 bytes wide."""
    from tests.cuda.gate import admit

    admit(compiled)
    assert compiled.stack == 0
    # Four blocks of 128 threads, 512 in all, fill a multiprocessor's threads by a quarter and more.
    assert compiled.registers <= width
    wide = {"ld": 0, "st": 0}
    for kind, vector in re.findall(
        r"(ld|st)\.global(?:\.[\w:]+)*?\.(v4\.b32|v2\.b64)", compiled.ptx
    ):
        wide[kind] += bool(vector)
    assert wide == {"ld": loads, "st": stores}


@pytest.mark.gate
@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_cast_of_float32_is_lean(target, saturate):
    from tests.cuda.rounding_gate import compile_cast

    # 16 elements for each thread, 4 bytes in, and 2 or 1 out.
    compiled = compile_cast(torch.float32, target, saturate)
    lean(compiled, 96, loads=4, stores=target.itemsize)
    assert compiled.shared == 0  # the random words reach their elements within the thread


@pytest.mark.gate
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_cast_of_float64_is_lean(target):
    from tests.cuda.rounding_gate import compile_cast

    lean(compile_cast(torch.float64, target), 128, loads=8, stores=target.itemsize)


@pytest.mark.gate
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("source", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_rounding_to_a_format_is_lean(source, rounding):
    from tests.cuda.rounding_gate import compile_quantize

    passes = 16 * source.itemsize // 16
    lean(compile_quantize(source, parameters(FP8_E4M3), rounding), 128, loads=passes, stores=passes)


@pytest.mark.gate
@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
@pytest.mark.parametrize("fmt", [BF16, FP16, formats.FP4_E2M1, formats.TF32], ids=str)
def test_other_formats_are_lean_too(fmt, rounding):
    from tests.cuda.rounding_gate import compile_quantize

    lean(compile_quantize(torch.float32, parameters(fmt), rounding), 96, loads=4, stores=4)


@pytest.mark.gate
@pytest.mark.parametrize("param", ["bf16", "fp32"])
@pytest.mark.parametrize("moments", ["bf16", "fp32"])
def test_the_step_of_adamw_is_lean(param, moments):
    from tests.cuda.rounding_gate import compile_adamw

    p, m = (1 if kind == "bf16" else 2 for kind in (param, moments))
    lean(compile_adamw(param, moments), 96, loads=2 * (p + m), stores=p + 2 * m)


@pytest.mark.gate
def test_the_gate_sees_narrow_loads():
    """Without alignment, the compiler must fall back, and `lean` must notice."""
    from pkg.cuda.mixed_precision.casts import round_kernel
    from pkg.cuda.mixed_precision.launch import TARGETS as PARAMETERS
    from pkg.cuda.mixed_precision.launch import format_constants
    from tests.cuda.gate import compile_for_sm90

    constants = {
        **format_constants(torch.float32, *PARAMETERS[torch.bfloat16]), "ROUNDING": "stochastic",
        "SATURATE": False, "CODES": True, "HALFWORDS": True, "BLOCK": 2048,
    }  # fmt: skip
    signature = {"x": "*fp32", "out": "*i16", "seed": "*i64", "count": "i32"}
    with pytest.raises(AssertionError):
        lean(compile_for_sm90(round_kernel, signature, constants), 96, loads=4, stores=2)


# ---------------------------------------------------------------- operators on the CPU


def numbers(shape=(5, 7), dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        dtype
    )


SEED = torch.tensor(12345)


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("source", [torch.float32, torch.float64])
def test_opcheck_of_the_cast(source, target, saturate):
    x = numbers(dtype=source).requires_grad_(target.itemsize == 2)
    torch.library.opcheck(cast_operator, (x, target, saturate, SEED))
    torch.library.opcheck(cast_operator, (x.detach().T, target, saturate, SEED))


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic", "up"])
@pytest.mark.parametrize("fmt", [FP16, FP8_E4M3], ids=str)
def test_opcheck_of_rounding(fmt, rounding, straight):
    given = SEED if rounding == "stochastic" else None
    x = numbers().requires_grad_()
    torch.library.opcheck(
        quantize_operator, (x, *parameters(fmt), rounding, False, straight, given)
    )  # fmt: skip


def held(param, moments):
    return [numbers(dtype=param), numbers(dtype=moments), numbers(dtype=moments) ** 2,
            numbers(dtype=param)]  # fmt: skip


@pytest.mark.parametrize("param", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("moments", [torch.bfloat16, torch.float32])
def test_opcheck_of_the_step(param, moments):
    arguments = (*held(param, moments), 1e-3, 0.9, 0.999, 1e-8, 0.01, 3, SEED)
    torch.library.opcheck(update_operator, arguments)


def test_the_cpu_forms_are_the_reference_on_their_own_numbers():
    """So the CPU form and the kernel differ in the random numbers alone."""
    x = numbers((300, 501))
    for target, fmt in ((torch.bfloat16, BF16), (torch.float8_e4m3fn, FP8_E4M3)):
        bits, parts = stream(SEED), []
        for part in x.flatten().split(2**16):
            if target == torch.bfloat16:
                drawn = (halfwords(bits, part.numel()).double() + 2**15) * 2.0**-16
            else:
                drawn = uniforms(bits, part.numel())
            parts.append(round_with_uniforms(part, fmt, drawn).to(target))
        found = cast_operator(x, target, False, SEED)
        assert torch.equal(found.float(), torch.cat(parts).view(x.shape).float())


@pytest.mark.parametrize("dynamic", [False, True])
def test_each_compiles_into_one_graph(dynamic):
    x = numbers((33, 5)).requires_grad_()

    def cast(x, seed):
        return (cast_operator(x * 2, torch.bfloat16, False, seed).float() * 3).sum()

    def rounded(x, seed):
        fmt = parameters(FP8_E4M3)
        return (quantize_operator(x * 2, *fmt, "stochastic", True, True, seed) * 3).sum()

    for function in (cast, rounded):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        torch.testing.assert_close(compiled(x, SEED), function(x, SEED), rtol=0, atol=0)
        (gradient,) = torch.autograd.grad(compiled(x, SEED), x)
        assert torch.equal(gradient, torch.full_like(x, 6.0))  # straight through

    def step(p, m, v, g, seed):
        update_operator(p, m, v, g * 2, 1e-3, 0.9, 0.999, 1e-8, 0.01, 3, seed)
        return p.float().sum()

    mine, theirs = held(torch.bfloat16, torch.float32), held(torch.bfloat16, torch.float32)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert compiled(*mine, SEED) == step(*theirs, SEED)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(mine[0], held(torch.bfloat16, torch.float32)[0])


def test_the_public_cast_compiles_too():
    generator = torch.Generator().manual_seed(3)
    x = numbers((64,))
    before = generator.get_state()
    plain = stochastic_round(x, torch.bfloat16, generator=generator)
    generator.set_state(before)

    @torch.compile(backend="aot_eager")  # a generator breaks the graph; the result is the same
    def compiled(x):
        return stochastic_round(x, torch.bfloat16, generator=generator)

    assert torch.equal(compiled(x), plain)


@pytest.mark.parametrize(("straight", "slope"), [(True, 1.0), (False, 0.0)])
def test_the_gradient_of_rounding_is_that_of_a_line_or_of_a_staircase(straight, slope):
    x = numbers().requires_grad_()
    y = quantize_operator(x, *parameters(FP8_E4M3), "nearest_even", False, straight, None)
    (gradient,) = torch.autograd.grad(y, x, numbers() * 5)
    assert torch.equal(gradient, numbers() * 5 * slope)


def test_gradcheck_on_the_steps_of_a_staircase():
    """Between two jumps the staircase is flat, and its numerical derivative is what we say."""
    x = (torch.arange(1, 9, dtype=torch.float64) / 8 + 0.01).requires_grad_()

    def steps(x):
        return quantize_operator(x, *parameters(FP8_E4M3), "nearest_even", False, False, None)

    assert torch.autograd.gradcheck(steps, (x,))


def test_gradcheck_of_the_straight_line_as_seen_from_afar():
    """Over many jumps the staircase rises like a line: a difference quotient gives the slope 1."""
    x = numbers((200,), torch.float64).requires_grad_()

    def rounded(x):
        return quantize_operator(x, *parameters(BF16), "nearest_even", False, True, None)

    (gradient,) = torch.autograd.grad(rounded(x).sum(), x)
    quotient = (rounded(x + 4) - rounded(x - 4)).detach() / 8
    # Each value is off by at most half a spacing of numbers below 8: 2⁻⁶, so the slope by 2⁻⁸.
    torch.testing.assert_close(quotient, gradient, rtol=0, atol=2.0**-8)


def test_cuda_tensors_reach_the_operators():
    """On tensors that say they are on a GPU and hold nothing, as a compiler sees them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def last_call(function):
        with FakeTensorMode():
            x = torch.empty(3, 5, device="cuda")
            with Calls() as calls:
                y = function(x)
            assert y.shape == (3, 5)
            assert y.device.type == "cuda"
        return calls.names[-1]

    drawn = torch.Generator()
    assert last_call(lambda x: quantize(x, FP8_E4M3)) == "checked.quantize.default"
    assert (
        last_call(lambda x: quantize(x, FP8_E4M3, rounding="stochastic", generator=drawn))
        == "checked.quantize.default"
    )
    assert (
        last_call(lambda x: stochastic_round(x, torch.bfloat16, generator=drawn))
        == "checked.stochastic_cast.default"
    )


def test_the_kernels_are_not_imported_for_cpu_tensors():
    script = (
        "import sys, torch; from pkg.algos.mixed_precision.casts import stochastic_round;"
        "from pkg.algos.mixed_precision.optimizers import StochasticRoundingAdamW;"
        "stochastic_round(torch.ones(3), torch.bfloat16, generator=torch.Generator());"
        "assert not [m for m in sys.modules if m.startswith('pkg.cuda')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
