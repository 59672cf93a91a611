"""The kernels of mixed precision: the same bits as the CPU form, fed the same random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.optim.adamw import adamw

from pkg.algos.mixed_precision import formats
from pkg.algos.mixed_precision.formats import FloatFormat
from pkg.algos.mixed_precision.quantize import quantize, round_with_uniforms
from pkg.algos.mixed_precision.rounding import ROUNDINGS, parameters
from tests.cuda import philox
from tests.cuda.where import DEVICE, everywhere

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero)")

SEED = 0x1234_5678_9ABC_DEF0 >> 1
TARGETS = {
    torch.bfloat16: formats.BF16, torch.float16: formats.FP16,
    torch.float8_e4m3fn: formats.FP8_E4M3, torch.float8_e5m2: formats.FP8_E5M2,
}  # fmt: skip
FORMATS = {
    fmt.name: fmt
    for fmt in (
        formats.TF32, formats.FP16, formats.BF16, formats.FP8_E4M3, formats.FP8_E5M2,
        formats.FP6_E3M2, formats.FP6_E2M3, formats.FP4_E2M1,
        FloatFormat("no mantissa", 5, 0, has_infinity=False, has_nan=False),
        FloatFormat("powers of two", 7, 0, bias=127, has_infinity=False, has_nan=False),
        FloatFormat("two bits of float32", 8, 2),
        FloatFormat("full mantissa", 5, 23),
        FloatFormat("no room below", 4, 3, bias=120),
    )
}  # fmt: skip


def launchers():
    return pytest.importorskip("pkg.cuda.mixed_precision")


GUARD = 4096  # elements behind a tensor, more than a block: a store past its end shows


def guarded(shape, dtype, value):
    """A tensor filled with a value, and the elements that lie behind it in memory."""
    count = torch.Size(shape).numel()
    whole = torch.full((count + GUARD,), value, dtype=dtype, device=DEVICE)
    return whole[:count].view(shape), whole[count:]


@pytest.fixture(autouse=True)
def poison(monkeypatch, request):
    """Fill what the launchers allocate, and what lies behind it, with NaN or nonsense.

    An element never written shows, and so does one that is written past the end.
    """
    if request.node.get_closest_marker("interpreter") is None:
        yield
        return
    module = pytest.importorskip("pkg.cuda.mixed_precision.launch")
    behind = []

    class Torch:
        def __getattr__(self, name):
            return getattr(torch, name)

        @staticmethod
        def empty(shape, *, dtype, device):
            fresh, rest = guarded(shape, dtype, torch.nan if dtype.is_floating_point else 0x5A)
            behind.append((rest, rest.clone()))
            return fresh

    monkeypatch.setattr(module, "torch", Torch())
    yield
    for rest, before in behind:
        assert torch.equal(rest.nan_to_num(7), before.nan_to_num(7)), "a store past the end"


def rounds():
    return launchers().PHILOX_ROUNDS


def numbers(fmt, dtype, count=1500, seed=0):
    """Every kind of number there is in `dtype`, around what `fmt` has."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    integer = {torch.float64: torch.int64, torch.float32: torch.int32}[wide]
    largest = torch.iinfo(integer).max
    anything = torch.randint(-largest - 1, largest, (count,), generator=generator, dtype=integer)
    scale = torch.randint(-6, fmt.bits + 4, (count,), generator=generator).double()
    near = fmt.smallest_subnormal * torch.exp2(scale) * (1 + torch.rand(count, generator=generator))
    held = fmt.values() if fmt.bits <= 16 else torch.tensor([1.0, fmt.max, fmt.smallest_normal])
    held = held[held.isfinite()].double()
    held = held[torch.randperm(len(held), generator=generator)[:count]].sort().values
    ties = (held[1:] + held[:-1]) / 2
    edges = [fmt.max, fmt.smallest_normal, fmt.smallest_subnormal, 2 * fmt.max, fmt.max * 1.001]
    edges = torch.tensor([*edges, 0.0, torch.inf, torch.nan], dtype=torch.float64)
    around = torch.cat([ties, held, near, edges]).to(wide)
    zero = torch.zeros_like(around)
    around = torch.cat([around, around.nextafter(zero), around.nextafter(zero + torch.inf)])
    x = torch.cat(
        [around, -around, anything.view(wide), torch.finfo(wide).tiny * around.sign() / 4]
    )
    return x.to(dtype)


def without_what_has_no_pattern(x, fmt, saturate):
    if fmt.has_nan:
        return x
    return x[~x.isnan()] if saturate else x[x.abs().double() <= fmt.max]


def same_bits(got, wanted):
    """Equal to the last bit, signs of zeros included; a NaN is a NaN."""
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    got = got.cpu()
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    lost = wanted.float().isnan()
    assert torch.equal(got.float().isnan(), lost)
    assert torch.equal(got.view(bits)[~lost], wanted.view(bits)[~lost])


def uniforms_of_cast(x, dtype):
    """What the kernel draws for each element of x."""
    if x.dtype == torch.float32 and dtype == torch.bfloat16:
        drawn = philox.halfwords(SEED, x.numel(), rounds()).double() * 2.0**-16
    else:
        drawn = philox.words(SEED, x.numel(), rounds()).double() * 2.0**-32
    return drawn.view(x.shape)


def seed():
    return torch.tensor(SEED, device=DEVICE)


# ---------------------------------------------------------------- random numbers


def test_the_oracle_gives_the_published_words_of_philox():
    """Known answers that come with the authors' library (Random123)."""
    zero, ones = np.zeros((1, 4), dtype=np.uint64), np.full((1, 4), 0xFFFFFFFF, dtype=np.uint64)
    known = {
        (7, 0): (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48),
        (10, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        (10, 1): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    }
    for (count, filled), answer in known.items():
        key = (0xFFFFFFFF,) * 2 if filled else (0, 0)
        found = philox.philox(ones if filled else zero, key, count)
        assert tuple(int(word) for word in found[0]) == answer


@everywhere
@pytest.mark.parametrize("stream", [0, 2])
@pytest.mark.parametrize("start", [0, 4096, 2**34 + 1024, 2**40])
def test_the_kernels_draw_philox_by_the_index_of_the_element(stream, start):
    from tests.cuda.random_kernels import halfwords_kernel, words_kernel

    out = torch.full((256,), -1, dtype=torch.int64, device=DEVICE)
    words_kernel[(1,)](out, seed(), start, STREAM=stream, BLOCK=256)
    assert torch.equal(out.cpu(), philox.words(SEED, 256, rounds(), stream, first=start))
    halfwords_kernel[(1,)](out, seed(), start, STREAM=stream, BLOCK=256)
    full = philox.words(SEED, 128, rounds(), stream, first=start // 2)
    halves = torch.stack([full & 0xFFFF, full >> 16], dim=1).reshape(-1)
    assert torch.equal(out.cpu(), halves << 16)


# ---------------------------------------------------------------- the cast


@everywhere
@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("source", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_cast_agrees_with_the_reference_on_the_same_uniforms(source, target, saturate):
    fmt = TARGETS[target]
    x = numbers(fmt, source)
    drawn = uniforms_of_cast(x, target)
    wanted = round_with_uniforms(x, fmt, drawn, saturate=saturate).to(target)
    same_bits(launchers().stochastic_cast(x.to(DEVICE), target, saturate, seed()), wanted)


@everywhere
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2047,), (2048,), (2049,), (3, 5, 701)])
def test_shapes_that_fill_no_block(shape, target):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    wanted = round_with_uniforms(x, TARGETS[target], uniforms_of_cast(x, target)).to(target)
    same_bits(launchers().stochastic_cast(x.to(DEVICE), target, False, seed()), wanted)


@everywhere
def test_strides_do_not_change_which_element_gets_which_number():
    whole = torch.randn(60, 90, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    for x in (whole.T, whole[::3, 1::2], whole[:, 5].expand(4, 60)):
        plain = launchers().stochastic_cast(x.contiguous(), torch.bfloat16, False, seed())
        same_bits(launchers().stochastic_cast(x, torch.bfloat16, False, seed()), plain.cpu())


@everywhere
@pytest.mark.parametrize("short", [0, 1])
def test_the_last_bit_of_a_random_number_decides(short):
    """u + f = 1 goes up, and what is 2⁻³² (for bfloat16, 2⁻¹⁶) short of it goes down."""
    count = 1500
    words = philox.words(SEED, count, rounds()).double()
    x = 1 + (2.0**32 - words - short) * 2.0**-32 * formats.FP8_E4M3.eps
    y = launchers().stochastic_cast(x.to(DEVICE), torch.float8_e4m3fn, False, seed())
    assert bool((y.cpu().double() == 1 + (1 - short) * formats.FP8_E4M3.eps).all())
    halves = philox.halfwords(SEED, count, rounds()).double()
    x = (1 + (2.0**16 - halves - short) * 2.0**-16 * formats.BF16.eps).float()
    y = launchers().stochastic_cast(x.to(DEVICE), torch.bfloat16, False, seed())
    assert bool((y.cpu().double() == 1 + (1 - short) * formats.BF16.eps).all())


# ---------------------------------------------------------------- any format


@everywhere
@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_rounding_to_every_format(name, rounding, saturate):
    fmt = FORMATS[name]
    for dtype in (torch.float32, torch.float64):
        x = without_what_has_no_pattern(numbers(fmt, dtype), fmt, saturate)
        agree(x, fmt, rounding, saturate)


def agree(x, fmt, rounding, saturate):
    given = None
    if rounding == "stochastic":
        drawn = philox.words(SEED, x.numel(), rounds()).double() * 2.0**-32
        wanted, given = round_with_uniforms(x, fmt, drawn.view(x.shape), saturate=saturate), seed()
    else:
        wanted = quantize(x, fmt, rounding=rounding, saturate=saturate)
    got = launchers().quantize(
        x.to(DEVICE), *parameters(fmt), rounding, saturate, False, given
    )  # fmt: skip
    same_bits(got, wanted)


@everywhere
@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_in_and_goes_out(dtype, rounding):
    for name in ("FP8_E4M3", "FP8_E5M2"):
        patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
        agree(patterns.view(dtype)[::5], FORMATS[name], rounding, saturate=False)


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_format_that_is_normal_where_its_carrier_is_subnormal(dtype):
    """Numbers below the carrier's smallest normal one have fewer bits, and may need no rounding."""
    bias, bits = (1023, 11) if dtype == torch.float64 else (127, 8)
    fmt = FloatFormat("lower", bits, 2, bias=bias + 10)
    tiny = torch.finfo(dtype).tiny
    near, far = (torch.linspace(0, 1.5, 3001, dtype=dtype) * size for size in (tiny, tiny / 500))
    x = torch.cat([near, far, -near])
    drawn = philox.words(SEED, x.numel(), rounds()).double() * 2.0**-32
    got = launchers().quantize(x.to(DEVICE), *parameters(fmt), "stochastic", False, False, seed())
    same_bits(got, by_fractions(x, fmt, drawn))


def by_fractions(x, fmt, drawn):
    """Stochastic rounding in Python's fractions."""
    from fractions import Fraction
    from math import copysign

    found = []
    for value, chance in zip(x.tolist(), drawn.tolist(), strict=True):
        exact = Fraction(abs(value))
        exponent = fmt.smallest_exponent
        while exact >= Fraction(2) ** (exponent + 1):
            exponent += 1
        spacing = Fraction(2) ** (exponent - fmt.mantissa_bits)
        low, rest = exact // spacing, exact % spacing / spacing
        up = Fraction(chance) >= 1 - rest
        found.append(copysign(float((low + up) * spacing), value))
    return torch.tensor(found, dtype=torch.float64).to(x.dtype)


# ---------------------------------------------------------------- AdamW

SETTINGS = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}


def state(shape, param_type, moment_type, seed=3):
    generator = torch.Generator().manual_seed(seed)
    p, m, v, g = (torch.randn(shape, generator=generator) for _ in range(4))
    return [p.to(param_type), m.to(moment_type), (v**2).to(moment_type), g.to(param_type)]


def by_torch(tensors, step):
    """PyTorch's step in float64, and what float32 may differ from it by."""
    p, m, v, g = (x.double().clone() for x in tensors)
    before = [x.clone() for x in (p, m, v)]
    adamw(
        [p], [g], [m], [v], [], [torch.tensor(float(step - 1))], amsgrad=False, maximize=False,
        **SETTINGS,
    )  # fmt: skip
    # A weight: some four roundings of the update (and of the moments in it), two of the decay.
    eps = torch.finfo(torch.float32).eps
    update = (p - before[0]).abs()
    size = [before[0].abs() + 8 * update, before[1].abs() + g.abs(), before[2].abs() + 2 * g * g]
    return [p, m, v], [2 * eps * x for x in size]


def step_agrees(tensors, step=3):
    """The kernel's step: within float32's error, or what stochastic rounding makes of that."""
    wanted, errors = by_torch(tensors, step)
    held, behind = [], []
    for x in tensors:
        if x.is_contiguous():
            inside, rest = guarded(x.shape, x.dtype, 7.0)
            held.append(inside.copy_(x))
            behind.append(rest)
        else:
            held.append(x.to(DEVICE))
    launchers().stochastic_rounding_adamw(*held, *SETTINGS.values(), step, seed())
    assert all(bool((rest == 7).all()) for rest in behind), "a store past the end"
    undecided = 0.0
    for stream, (got, exact, error) in enumerate(zip(held[:3], wanted, errors, strict=True)):
        got = got.cpu()
        if got.dtype == torch.float32:
            assert bool(((got.double() - exact).abs() <= error).all())
            continue
        drawn = philox.halfwords(SEED, got.numel(), rounds(), stream).double() * 2.0**-16
        drawn = drawn.view(got.shape)
        low, high = (
            round_with_uniforms(x, formats.BF16, drawn) for x in (exact - error, exact + error)
        )
        assert bool(((low <= got.double()) & (got.double() <= high)).all())
        undecided = max(undecided, float((low != high).double().mean()))
    # The bound decides nearly all: otherwise this would test nothing.
    assert undecided < 0.01


@everywhere
@pytest.mark.parametrize("param_type", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("moment_type", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1,), (1023,), (1024,), (3, 7, 111)])
def test_the_step_agrees_with_pytorch(shape, param_type, moment_type):
    step_agrees(state(shape, param_type, moment_type))


@everywhere
@pytest.mark.parametrize("step", [1, 2, 1000, 10**6])
def test_the_bias_correction_of_early_and_late_steps(step):
    step_agrees(state((500,), torch.bfloat16, torch.bfloat16), step)


@everywhere
def test_a_strided_parameter_is_updated_in_place():
    tensors = state((40, 30), torch.bfloat16, torch.bfloat16)
    strided = [x.T.contiguous().T for x in tensors[:1]] + tensors[1:3] + [tensors[3].T.clone().T]
    step_agrees(strided)


@everywhere
def test_a_nan_stays_a_nan_and_stays_where_it_is():
    p, m, v, g = state((300,), torch.bfloat16, torch.bfloat16)
    g[17] = torch.nan
    held = [x.to(DEVICE) for x in (p, m, v, g)]
    launchers().stochastic_rounding_adamw(*held, *SETTINGS.values(), 2, seed())
    for x in held[:3]:
        assert x.cpu().isnan().nonzero().flatten().tolist() == [17]


@everywhere
def test_a_nan_with_every_bit_set_does_not_become_a_zero():
    """A GPU makes NaN of this pattern: with any random number added, it would carry into the sign."""
    p, m, v, g = state((300,), torch.bfloat16, torch.float32)
    m.view(torch.int32)[::3] = 0x7FFFFFFF
    held = [x.to(DEVICE) for x in (p, m, v, g)]
    launchers().stochastic_rounding_adamw(*held, *SETTINGS.values(), 2, seed())
    lost = torch.arange(300) % 3 == 0
    assert torch.equal(held[0].cpu().isnan(), lost)


@everywhere
def test_nothing_to_update():
    tensors = [x.to(DEVICE) for x in state((0,), torch.bfloat16, torch.float32)]
    launchers().stochastic_rounding_adamw(*tensors, *SETTINGS.values(), 1, seed())
