"""The kernels of rectified flow: the formulas in float64, fed the same random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from pkg.algos.rectified_flow import operator, steps
from pkg.algos.rectified_flow.sampler import STAGES, sample_fixed
from tests.cuda import flow_oracle as oracle
from tests.cuda.where import DEVICE, everywhere

EPS = torch.finfo(torch.float32).eps
TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: One element, less than a quad, quads and their neighbours, MNIST, and beyond a program's columns.
SHAPES = (
    (1, 1),
    (3, 2),
    (300, 3),
    (5, 4),
    (7, 5),
    (3, 784),
    (2, 1024),
    (2, 5, 5, 41),
    (1, 2051),
    (0, 3),
)
LAWS = (("uniform", 0.0, 1.0), ("logit_normal", 0.5, 1.25))


def launchers():
    return pytest.importorskip("pkg.cuda.rectified_flow")


def rounds():
    return launchers().PHILOX_ROUNDS


def seed():
    return torch.tensor(oracle.SEED, device=DEVICE)


def numbers(shape, dtype=torch.float32, start=0):
    generator = torch.Generator().manual_seed(start)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn.to(dtype).to(DEVICE)


def near(got, exact, scale, dtype):
    """Within `scale` times a few roundings of what was computed in, and one rounding to `dtype`."""
    assert got.dtype == dtype
    assert got.shape == exact.shape
    inner = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    # At most five operations, each off by half an eps of a number no larger than `scale`.
    allowed = 2.5 * inner * scale
    if dtype in (torch.bfloat16, torch.float16):
        info = torch.finfo(dtype)
        # Half a spacing: the number's own, or that of the smallest normal one.
        allowed = allowed + info.eps / 2 * exact.abs().clamp(min=info.tiny)
    error = (got.cpu().double() - exact).abs()
    assert bool((error <= allowed).all()), float((error / allowed).max())


# ---------------------------------------------------------------- memory


class Fenced:
    """PyTorch, but what it allocates lies between fences, and all of it is NaN at first."""

    WIDTH = 64

    def __init__(self):
        self.fields = []

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, shape, **options):
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        count = int(np.prod(shape))
        field = torch.full((count + 2 * self.WIDTH,), torch.nan, **options)
        self.fields.append(field)
        return field[self.WIDTH : self.WIDTH + count].view(shape)

    def check(self):
        assert self.fields
        for field in self.fields:
            inside = field[self.WIDTH : -self.WIDTH]
            assert not bool(inside.isnan().any())
            assert bool(field[: self.WIDTH].isnan().all())
            assert bool(field[-self.WIDTH :].isnan().all())
        self.fields.clear()


@everywhere
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (7, 5), (2, 1030)], ids=str)
def test_every_number_is_written_and_none_beyond(shape, monkeypatch):
    """A mask that is one too wide writes into memory that is somebody else's."""
    run, fence = launchers(), Fenced()
    monkeypatch.setattr("pkg.cuda.rectified_flow.launch.torch", fence)
    x, other = numbers(shape), numbers(shape, start=1)
    coefficients = [numbers(shape[:1], start=3 + i) for i in range(4)]
    for noise in (None, other):
        run.draw_linear_path(noise, x, "uniform", 0.0, 1.0, 1.0, seed())
        fence.check()
        run.affine_path(noise, x, *coefficients, seed())
        fence.check()
    run.draw_times(x, "uniform", 0.0, 1.0, seed())
    fence.check()
    for how in ("none", "one", "each"):
        u = None if how == "none" else other
        given = (x, other, u, guides(shape, how), schedule(), 1)
        run.step(*given, 0.5)
        fence.check()
        run.stage(x, *given, 0.5, 0.25, torch.float32)
        fence.check()


# ---------------------------------------------------------------- random numbers


@everywhere
@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize(("sample", "quad"), [(0, 0), (7, 1000), (2**32 + 5, 3), (2**31, 2**29)])
def test_the_words_of_a_sample_are_those_of_philox(stream, sample, quad):
    from tests.cuda.flow_kernels import words_kernel

    out = torch.full((64,), -1, dtype=torch.int64, device=DEVICE)
    words_kernel[(1,)](out, seed(), sample, quad, STREAM=stream, BLOCK=16)
    samples = np.full(16, sample, dtype=np.uint64)
    wanted = oracle.words(samples, quad + np.arange(16, dtype=np.uint64), stream, rounds())
    assert out.view(16, 4).tolist() == wanted.astype(np.int64).tolist()


@everywhere
def test_sine_cosine_and_normal_numbers_at_every_corner():
    from tests.cuda.flow_kernels import normal_kernel

    corners = [k * 2**29 + d for k in range(8) for d in (-1, 0, 1)] + [2**32 - 1, 12345, 2**24 + 1]
    b = torch.tensor(corners, dtype=torch.int64) % 2**32
    b = torch.cat(
        [b, torch.randint(2**32, (256 - len(b),), generator=torch.Generator().manual_seed(0))]
    )
    a = b.roll(17)
    a[:4] = torch.tensor([0, 1, 2**32 - 1, 2**31])
    out = torch.full((4, 256), torch.nan, device=DEVICE)
    normal_kernel[(1,)](a.to(DEVICE), b.to(DEVICE), out, BLOCK=256)
    c, s, x, y = out.cpu().double()
    angle = b.double() * (2 * torch.pi / 2**32)
    # Taylor's remainder is below 2e-9; the polynomial and its argument are rounded a few times.
    for got, wanted in ((c, angle.cos()), (s, angle.sin())):
        assert float((got - wanted).abs().max()) < 2 * EPS
    wanted = [torch.from_numpy(z) for z in oracle.normal_pairs(a.numpy(), b.numpy())]
    for got, exact in zip((x, y), wanted, strict=True):
        # Near 0 the radius comes from a logarithm near 0, whose error the root enlarges.
        assert float((got - exact).abs().max()) < 2e-3
        assert float((got - exact)[a < 0.99 * 2**32].abs().max()) < 2e-5
    assert float(out[2:].abs().max()) < 6.8
    assert bool(out.isfinite().all())


@everywhere
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rows", [1, 255, 256, 1000])
def test_times_follow_their_law_number_for_number(rows, law):
    wanted = oracle.times(rows, *law, rounds())
    for dtype in TYPES:
        like = torch.empty(rows, 2, dtype=dtype, device=DEVICE)
        t = launchers().draw_times(like, *law, seed())
        assert t.dtype == operator.wide(like)
        # Uniform times are exact. The logistic function's slope is at most 1/4.
        tolerance = 0 if law[0] == "uniform" else 1e-5
        torch.testing.assert_close(t.cpu().double(), wanted, rtol=0, atol=tolerance)
    assert bool(((t > 0) & (t < 1)).all())


@everywhere
def test_noise_is_normal_and_times_do_not_follow_it():
    """Kolmogorov and Smirnov on 2^16 numbers see a shift of 0.01 in nine of ten cases."""
    x1 = torch.zeros(64, 1024, device=DEVICE)
    noise, _, _, t = launchers().draw_linear_path(None, x1, "uniform", 0.0, 1.0, 1.0, seed())
    assert stats.kstest(noise.flatten().cpu().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(t.cpu().numpy(), "uniform").pvalue > 1e-3
    neighbours = torch.corrcoef(noise.view(-1, 4).T.cpu().double())
    assert (
        float((neighbours - torch.eye(4, dtype=torch.float64)).abs().max()) < 4 * 2**-7
    )  # 4 deviations
    assert abs(stats.pearsonr(noise[:, 0].cpu(), t.cpu()).statistic) < 0.5


# ---------------------------------------------------------------- paths


@everywhere
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("draw", [False, True])
def test_a_linear_path_is_the_formula(shape, dtype, draw):
    law, shrink = LAWS[len(shape) % 2], 0.75 if draw else 1.0
    x1 = numbers(shape, dtype, 1)
    x0 = None if draw else numbers(shape, dtype, 2)
    drawn, xt, velocity, t = launchers().draw_linear_path(x0, x1, *law, shrink, seed())
    rows, size = shape[0], int(np.prod(shape[1:]))
    torch.testing.assert_close(
        t.cpu().double(), oracle.times(rows, *law, rounds()), rtol=0, atol=1e-5
    )
    data, time = x1.cpu().double(), t.cpu().double().view(-1, *(1,) * (len(shape) - 1))
    if draw:
        noise = oracle.noise(rows, size, rounds()).view(shape)
        # The noise itself is off by what the logarithm and the polynomials are.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(drawn.cpu().double(), noise, rtol=eps, atol=2e-3)
        noise, slack = drawn.cpu().double(), eps if dtype.itemsize == 2 else 0.0
    else:
        assert drawn.numel() == 0
        noise, slack = x0.cpu().double(), 0.0
    size_of = data.abs() + 2 * noise.abs()
    # Stored noise is rounded, the sums are formed with what it was rounded from.
    scale = size_of * (1 + slack / (2.5 * EPS))
    near(velocity, data - shrink * noise, scale, dtype)
    near(xt, (1 - shrink * time) * noise + time * data, scale, dtype)


@everywhere
def test_a_sample_draws_the_same_whatever_comes_with_it():
    """Neither the number of samples nor the tile in which a sample lies changes what it gets."""
    few, many = (
        launchers().draw_linear_path(
            None, torch.zeros(count, 70, device=DEVICE), "logit_normal", 0.0, 1.0, 1.0, seed()
        )
        for count in (3, 50)
    )
    for a, b in zip(few, many, strict=True):
        assert torch.equal(a, b[:3])
    longer = launchers().draw_linear_path(
        None, torch.zeros(3, 3000, device=DEVICE), "uniform", 0.0, 1.0, 1.0, seed()
    )
    assert torch.equal(few[0], longer[0][:, :70])


@everywhere
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("draw", [False, True])
def test_any_gaussian_path_is_the_formula(shape, dtype, draw):
    x1, x0 = numbers(shape, dtype, 1), None if draw else numbers(shape, dtype, 2)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    coefficients = [numbers(shape[:1], kind, 3 + i) for i in range(4)]
    drawn, xt, velocity = launchers().affine_path(x0, x1, *coefficients, seed() if draw else None)
    noise = (drawn if draw else x0).cpu().double()
    alpha, sigma, d_alpha, d_sigma = (
        c.cpu().double().view(-1, *(1,) * (len(shape) - 1)) for c in coefficients
    )
    slack = torch.finfo(dtype).eps / (2.5 * EPS) if draw and dtype.itemsize == 2 else 0.0
    for got, of_data, of_noise in ((xt, alpha, sigma), (velocity, d_alpha, d_sigma)):
        data = of_data * x1.cpu().double()
        scale = data.abs() + (1 + slack) * (of_noise * noise).abs()
        near(got, data + of_noise * noise, scale, dtype)


@everywhere
def test_strides_are_no_matter():
    whole = numbers((60, 90))
    for x1 in (whole.T, whole[::3, 1::2], whole[:, 5].expand(4, 60)):
        for x0 in (None, x1.flip(0).T.contiguous().T):
            arguments = ("uniform", 0.0, 1.0, 1.0, seed())
            found = launchers().draw_linear_path(x0, x1, *arguments)
            plain = launchers().draw_linear_path(x0, x1.contiguous(), *arguments)
            for a, b in zip(found, plain, strict=True):
                assert torch.equal(a, b)


@everywhere
def test_noise_that_is_neither_given_nor_seeded_is_refused():
    x = torch.zeros(2, 2, device=DEVICE)
    with pytest.raises(ValueError, match="seed must be given"):
        launchers().affine_path(None, x, *[torch.zeros(2, device=DEVICE)] * 4, None)


# ---------------------------------------------------------------- steps


def schedule(dtype=torch.float32):
    return torch.tensor([0.0, 0.1, 0.35, 0.5, 1.0], dtype=dtype, device=DEVICE)


def guides(shape, how, dtype=torch.float32):
    if how == "none":
        return None
    return numbers((), dtype, 9) + 3 if how == "one" else numbers(shape[:1], dtype, 9) + 3


@everywhere
@pytest.mark.parametrize("how", ["none", "one", "each"])
@pytest.mark.parametrize(
    "slopes", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_stage_is_the_formula(shape, slopes, how):
    state = torch.float64 if slopes == torch.float64 else torch.float32
    x, base = numbers(shape, state, 1), numbers(shape, state, 2)
    c, u = numbers(shape, slopes, 3), None if how == "none" else numbers(shape, slopes, 4)
    w, times = guides(shape, how, state), schedule(state)
    for index, (a, b) in enumerate(((1 / 2, 1 / 6), (1 / 3, 1.0), (1.0, 0.0), (1.0, 1 / 2))):
        point, total = launchers().stage(x, base, c, u, w, times, index, a, b, slopes)
        h = float(times[index + 1] - times[index])
        slope = c.cpu().double()
        scale = slope.abs()
        if u is not None:
            weight = w.cpu().double()
            weight = weight if weight.ndim == 0 else weight.view(-1, *(1,) * (len(shape) - 1))
            other = u.cpu().double()
            scale = (1 + weight.abs()) * other.abs() + weight.abs() * slope.abs()
            slope = other + weight * (slope - other)
        far = x.cpu().double() + a * h * slope
        if how != "none":
            assert torch.equal(point[: len(x)], point[len(x) :])
        near(point[: len(x)], far, x.cpu().double().abs() + 2 * h * scale, slopes)
        exact = base.cpu().double() + b * h * slope
        near(total, exact, base.cpu().double().abs() + 2 * h * scale, state)
        again = launchers().step(base, c, u, w, times, index, b)
        assert torch.equal(again, total)


@everywhere
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_half_precision_state_is_rounded_once(kind):
    base, c, u = (numbers((3, 500), kind, i) for i in range(3))
    w, times = guides((3, 500), "one"), schedule()
    got = launchers().step(base, c, u, w, times, 2, 1.0)
    exact = base.cpu().double() + 0.15 * (u.double() + w * (c.double() - u.double())).cpu()
    scale = base.abs().double().cpu() + (4 + w.cpu()) * (u.abs() + c.abs()).double().cpu()
    near(got, exact, scale, kind)


@everywhere
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("method", STAGES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_the_sampler_goes_the_same_way_with_kernels(monkeypatch, method, guided, kind):
    def velocity(x, t, label):
        return torch.sin(x) * label.view(-1, 1) - t.to(x.dtype).view(-1, 1)

    x = numbers((4, 33), kind)
    label = numbers((4,), kind, 5)
    extra = {"guidance": 2.0, "unconditional": {"label": 0 * label}} if guided else {}

    def run():
        return sample_fixed(velocity, x, schedule(), method=method, label=label, **extra)

    plain = run()
    calls = []

    def counted(name):
        def call(*arguments):
            calls.append(name)
            return getattr(launchers(), name)(*arguments)

        return call

    for name in ("step", "stage"):
        monkeypatch.setattr(f"pkg.algos.rectified_flow.sampler.{name}", counted(name))
    found = run()
    assert len(calls) == 4 * len(STAGES[method])
    # Rounded states may fall to the other side of a tie, and the network answers to that.
    tolerance = 1e-5 if kind == torch.float32 else 2.0**-5
    torch.testing.assert_close(found, plain, rtol=tolerance, atol=tolerance)


@everywhere
def test_the_cpu_forms_and_the_kernels_agree_to_a_few_roundings():
    shape = (6, 130)
    x, base, c, u = (numbers(shape, start=i) for i in range(4))
    times = schedule()
    for w in (None, guides(shape, "one"), guides(shape, "each")):
        given = (c, None if w is None else u, w)
        cpu = [None if z is None else z.cpu() for z in given]
        found = launchers().stage(x, base, *given, times, 1, 0.5, 0.25, torch.float32)
        wanted = steps._stage(x.cpu(), base.cpu(), *cpu, times.cpu(), 1, 0.5, 0.25, torch.float32)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=0, atol=16 * EPS)
