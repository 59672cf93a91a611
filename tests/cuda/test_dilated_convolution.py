"""The kernels of dilated convolution: their logic under the interpreter, their machine code."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.functional import conv2d, pad

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
# The same tests run on CPU tensors under the interpreter, and on a GPU without it.
DEVICE = "cpu" if INTERPRETING else "cuda"
everywhere = pytest.mark.interpreter if INTERPRETING else pytest.mark.gpu
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow)")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def launchers():
    return pytest.importorskip("pkg.cuda.dilated_convolution")


@pytest.fixture(autouse=True)
def poison(monkeypatch, request):
    """Fill what the launchers allocate with NaN, so that an element never written shows."""
    if request.node.get_closest_marker("gate"):
        return
    module = pytest.importorskip("pkg.cuda.dilated_convolution.launch")
    fresh = torch.empty

    class Torch:
        def __getattr__(self, name):
            return getattr(torch, name)

        empty = staticmethod(lambda *args, **keywords: fresh(*args, **keywords).fill_(torch.nan))

    monkeypatch.setattr(module, "torch", Torch())


@dataclass(frozen=True)
class Layer:
    """A convolution and the size of what it gets."""

    size: tuple[int, int, int] = (2, 9, 13)  # batch, height, width
    channels: tuple[int, int] = (5, 7)  # in, out
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)  # top, bottom, left, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True

    @property
    def rest(self):
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    def draw(self, dtype, seed=0):
        """Return x, weight and bias, or None for the last."""
        generator = torch.Generator().manual_seed(seed)
        batch, height, width = self.size
        inputs, outputs = self.channels
        shapes = [
            (batch, inputs, height, width),
            (outputs, inputs // self.groups, *self.kernel),
            (outputs,),
        ]
        x, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
        return x, weight, bias if self.bias else None

    def plain(self, x, weight, bias):
        """The same by PyTorch, in the type of its inputs."""
        top, bottom, left, right = self.padding
        x = pad(x, (left, right, top, bottom))
        return conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)


def on_device(x):
    return None if x is None else x.to(DEVICE)


def ours(layer, x, weight, bias, arriving):
    """Output and both gradients by the kernels, on the CPU."""
    module = launchers()
    x, weight, bias, arriving = (on_device(t) for t in (x, weight, bias, arriving))
    found = (
        module.forward(x, weight, bias, *layer.rest),
        module.backward_input(arriving, weight, *x.shape[2:], *layer.rest),
        module.backward_weight(arriving, x, *weight.shape[2:], *layer.rest),
    )
    return [part.cpu() for part in found]


def by_pytorch(layer, x, weight, bias, arriving, kind):
    leaves = [t.to(kind).requires_grad_() for t in (x, weight)]
    output = layer.plain(*leaves, None if bias is None else bias.to(kind))
    return [output.detach(), *torch.autograd.grad(output, leaves, arriving.to(kind))]


def agree(layer, dtype, tensors=None):
    """Compare kernels and PyTorch: error at most twice PyTorch's in the same type."""
    x, weight, bias = tensors or layer.draw(dtype)
    shape = layer.plain(x.double(), weight.double(), None).shape
    arriving = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = ours(layer, x, weight, bias, arriving)
    exact = by_pytorch(layer, x, weight, bias, arriving, torch.float64)
    plain = by_pytorch(layer, x, weight, bias, arriving, dtype)
    for name, mine, true, theirs in zip(("out", "dx", "dw"), got, exact, plain, strict=True):
        assert mine.dtype == dtype, name
        assert mine.shape == true.shape, name
        error, allowed = ((t.double() - true).norm() for t in (mine, theirs))
        # One rounding of the result more, for a plain error that is zero by luck in a small case;
        # in float32 the sum of a hundred products in another order: 8 roundings.
        floor = torch.finfo(dtype).eps * true.norm() * (8 if dtype == torch.float32 else 1)
        assert error <= 2 * allowed + floor, (name, float(error), float(allowed))


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [(1, 1), (3, 21), (16, 32), (40, 70), (20, 300), (130, 16)])
def test_dense_types_and_widths(dtype, channels):
    """Less than a tile, tiles filled up with zeros, whole tiles, several in each direction."""
    agree(Layer((1, 9, 15), channels, padding=(2, 2, 2, 2), dilation=(2, 2)), dtype)


@everywhere
@pytest.mark.parametrize("rate", range(1, 10))
@pytest.mark.parametrize("channels", [(6, 9), (20, 20)])
def test_every_rate(rate, channels):
    layer = Layer((1, 11, 14), channels, padding=(rate,) * 4, dilation=(rate, rate))
    if channels[0] == channels[1]:
        layer = replace(layer, groups=channels[0])
    agree(layer, torch.float16)


SHAPES = [
    Layer(kernel=(2, 4), dilation=(3, 2), padding=(1, 2, 0, 6)),  # even kernel, unequal sides
    Layer(kernel=(1, 1), padding=(0, 0, 0, 0)),
    Layer(kernel=(1, 5), size=(3, 1, 40), padding=(0, 0, 16, 0), dilation=(1, 4)),  # causal, 1-D
    Layer(kernel=(5, 1), padding=(4, 4, 2, 0), dilation=(2, 7)),  # more padding than it needs
    Layer((1, 20, 23), stride=(2, 3), padding=(2, 0, 1, 4), dilation=(3, 2)),
    Layer((1, 20, 23), stride=(2, 2), padding=(4, 4, 4, 4), dilation=(4, 4)),  # classes with no tap
    Layer((1, 20, 23), stride=(4, 5), kernel=(2, 2), padding=(0, 0, 0, 0), dilation=(2, 3)),
    Layer((2, 3, 3), padding=(9, 9, 9, 9), dilation=(9, 9)),  # only the middle tap meets a pixel
    Layer((1, 16, 3), kernel=(7, 6), padding=(9, 9, 9, 9), dilation=(3, 3)),
    Layer((1, 5, 4), padding=(8, 8, 8, 8), dilation=(2, 2)),  # outputs that see padding alone
]


@everywhere
@pytest.mark.parametrize("layer", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("channels", "groups"), [((5, 7), 1), ((6, 9), 3), ((4, 4), 4), ((3, 6), 3)],
    ids=["dense", "groups", "depthwise", "multiplier"],
)  # fmt: skip
def test_shapes(layer, channels, groups):
    agree(replace(layer, channels=channels, groups=groups, bias=groups != 1), torch.float32)


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [(1, 3), (4, 4), (5, 6)])  # 3 taps, 16, and a loop over 30
@pytest.mark.parametrize("channels", [(3, 3), (70, 70), (10, 20)])
def test_depthwise_types_and_kernels(dtype, kernel, channels):
    layer = Layer((1, 6, 9), channels, kernel, padding=(3, 3, 3, 3), dilation=(2, 1))
    agree(replace(layer, groups=channels[0]), dtype)


@everywhere
@pytest.mark.parametrize(("rate", "stride", "height", "width"), [(2, 1, 15, 31), (6, 2, 46, 93)])
def test_depthwise_tiles_of_pixels_that_lie_apart(rate, stride, height, width):
    from pkg.cuda.dilated_convolution.launch import _spread

    sides = (rate,) * 4
    layer = Layer((1, height, width), (3, 3), (3, 3), (stride,) * 2, sides, (rate, rate), 3)
    rows, columns = layer.plain(*layer.draw(torch.float32)).shape[2:]
    for size, block in ((rows, 4), (columns, 8)):  # several tiles on each axis, pixels apart
        apart, tiles = _spread(size, stride, rate, 3, block)
        assert apart == rate // stride
        assert tiles > 1
    agree(layer, torch.float32)


@everywhere
@pytest.mark.parametrize("groups", [1, 20])
def test_the_parts_of_a_long_sum(groups):
    from pkg.cuda.dilated_convolution import choose
    from pkg.cuda.dilated_convolution.launch import _parts

    layer = Layer((2, 17, 19), (20, 20), (1, 3), (1, 1), (0, 0, 4, 4), (1, 4), groups)
    config = choose("weight", torch.float32, 20, 20)
    assert _parts(2 * 17 * 19, 3, config.block_k)[1] > 1
    assert _parts(2 * 17 * 19, 1, choose("depthwise weight", torch.float32, 20, 3).block_m)[1] > 1
    agree(layer, torch.float32)


def inside_nan(x, margin=2):
    """Return x as a view, channels last, into a larger tensor whose rest is NaN."""
    batch, channels, height, width = x.shape
    big = torch.full((batch, height + 2 * margin, width + 2 * margin, channels), torch.nan).to(x)
    view = big[:, margin:-margin, margin:-margin].permute(0, 3, 1, 2)
    return view.copy_(x)


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("channels", "groups"), [((16, 32), 1), ((12, 12), 12)])
def test_what_surrounds_a_tensor_is_never_read(dtype, channels, groups):
    from pkg.cuda.dilated_convolution.launch import _dense_channels, _wide_channels

    layer = Layer((2, 7, 9), channels, padding=(3, 3, 3, 3), dilation=(3, 3), groups=groups)
    x, weight, bias = layer.draw(dtype)
    view = inside_nan(x)
    # The kernels get the view itself, not a copy.
    assert (_dense_channels(view) if groups > 1 else _wide_channels(view, 1)) is view
    agree(layer, dtype, (view, weight, bias))
    arriving = torch.ones(2, channels[1], 7, 9, dtype=dtype)
    for mine, same in zip(ours(layer, view, weight, bias, inside_nan(arriving)),
                          ours(layer, x, weight, bias, arriving), strict=True):  # fmt: skip
        assert torch.equal(mine, same)


@everywhere
@pytest.mark.parametrize("how", ["transposed", "every second channel", "shifted", "channels last"])
@pytest.mark.parametrize("groups", [1, 16])
def test_strided_tensors(how, groups):
    layer = Layer((2, 8, 11), (16, 16), padding=(2, 2, 2, 2), dilation=(2, 2), groups=groups)
    x, weight, bias = layer.draw(torch.float32)
    if how == "transposed":
        x, weight = x.mT.contiguous().mT, weight.mT.contiguous().mT
    elif how == "every second channel":
        x = x.repeat_interleave(2, 1)[:, ::2]
        bias = bias.repeat_interleave(2)[::2]
    elif how == "shifted":  # an address that no vector of 16 bytes can be loaded from
        from pkg.cuda.dilated_convolution.launch import _wide_channels

        last = x.permute(0, 2, 3, 1)
        x = torch.cat([last] * 2, 3)[..., 3:19].permute(0, 3, 1, 2)
        assert x.stride() == (32 * 88, 1, 32 * 11, 32)
        assert x.data_ptr() % 16
        moved = _wide_channels(x, 1)
        assert moved.data_ptr() % 16 == 0
        assert torch.equal(moved, x)
    else:
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    agree(layer, torch.float32, (x, weight, bias))


@everywhere
@pytest.mark.parametrize(("channels", "groups"), [((5, 7), 1), ((6, 12), 6)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_reaches_those_whose_taps_see_it_and_no_other(channels, groups, bad):
    layer = Layer((2, 11, 13), channels, (3, 2), (1, 2), (2, 2, 2, 2), (2, 3), groups)
    x, weight, _ = layer.draw(torch.float32)
    weight = weight.abs() + 1  # no infinities of opposite signs, no zero
    arriving = torch.ones_like(layer.plain(x, weight, None))
    exact = by_pytorch(layer, x, weight, None, arriving, torch.float64)

    def same_but_where_hit(mine, true, hit):
        assert torch.equal(~mine.isfinite(), hit)
        assert bool(hit.any())
        # Six float32 products of numbers around 1, in another order.
        torch.testing.assert_close(mine.double()[~hit], true[~hit], rtol=1e-5, atol=1e-5)

    spot = torch.zeros_like(x)
    spot[1, 2, 4, 6] = 1
    hit = layer.plain(spot, weight, None) != 0
    output, _, _ = ours(layer, x.masked_fill(spot != 0, bad), weight, None, arriving)
    same_but_where_hit(output, exact[0], hit)

    # An output at the corner: its first taps lie on padding and have no share in any gradient.
    spot = torch.zeros_like(arriving)
    spot[1, 3, 0, 0] = 1
    hits = [
        part != 0
        for part in by_pytorch(layer, torch.ones_like(x), weight, None, spot, torch.float64)
    ]
    found = ours(layer, x, weight, None, arriving.masked_fill(spot != 0, bad))
    for mine, true, hit in zip(found[1:], exact[1:], hits[1:], strict=True):
        same_but_where_hit(mine, true, hit)


@everywhere
@pytest.mark.parametrize(("channels", "groups"), [((4, 8), 1), ((4, 4), 4)])
def test_empty_shapes(channels, groups):
    layer = Layer((0, 6, 7), channels, groups=groups)
    x, weight, bias = layer.draw(torch.float32)
    out, dx, dw = ours(layer, x, weight, bias, torch.zeros(0, channels[1], 6, 7))
    assert out.shape == (0, channels[1], 6, 7)
    assert dx.shape == x.shape
    assert bool((dw == 0).all())
    # No pixel, yet outputs: they are the bias.
    layer = Layer((2, 0, 7), channels, padding=(2, 2, 1, 1), groups=groups)
    x, weight, bias = layer.draw(torch.float32)
    out, dx, dw = ours(layer, x, weight, bias, torch.ones(2, channels[1], 2, 7))
    assert torch.equal(out, bias[:, None, None].expand(2, -1, 2, 7))
    assert dx.shape == x.shape
    assert bool((dw == 0).all())


@everywhere
@pytest.mark.parametrize("groups", [1, 6])
def test_the_memory_format_of_the_first_argument_is_kept(groups):
    layer = Layer(channels=(6, 6), groups=groups)
    x, weight, bias = layer.draw(torch.float32)
    for form in (torch.contiguous_format, torch.channels_last):
        y = x.contiguous(memory_format=form)
        out, dx, dw = ours(layer, y, weight, bias, y)
        assert out.is_contiguous(memory_format=form)
        assert dx.is_contiguous(memory_format=form)
        assert dw.is_contiguous()


@everywhere
def test_other_types_and_too_many_pixels_are_refused():
    module = launchers()
    x, weight, bias = (on_device(t.double()) for t in Layer().draw(torch.float32))
    for call in (
        lambda: module.forward(x, weight, bias, *Layer().rest),
        lambda: module.backward_input(x, weight.transpose(0, 1), 9, 13, *Layer().rest),
        lambda: module.backward_weight(x, x, 3, 3, *Layer().rest),
    ):
        with pytest.raises(TypeError, match="float64"):
            call()
    # 2^31 pixels without storage: refused before anything is allocated.
    many = torch.zeros(1, dtype=torch.float16, device=DEVICE).expand(2, 1, 2**15, 2**15)
    with pytest.raises(ValueError, match="2147483648"):
        module.forward(many, many[:1, :, :1, :1], None, [1, 1], [0] * 4, [1, 1], 1)


def test_pixels_of_a_depthwise_tile_are_a_dilation_apart():
    module = pytest.importorskip("pkg.cuda.dilated_convolution.launch")
    assert module._spread(64, 1, 8, 3, 4) == (8, 2)
    assert module._spread(64, 2, 8, 3, 4) == (4, 4)  # with stride 2, taps meet after 8 / gcd
    assert module._spread(64, 1, 8, 1, 4) == (1, 16)  # one tap overlaps with nothing
    assert module._spread(64, 1, 40, 3, 4) == (1, 16)  # too far for a map of 64
    for size in range(1, 40):
        for gap in range(1, 12):
            for step in (1, 2, 3):
                apart, tiles = module._spread(size, step, gap, 3, 4)
                places = {
                    first + apart * (tile * 4 + i)
                    for first in range(apart) for tile in range(tiles) for i in range(4)
                }  # fmt: skip
                assert places >= set(range(size))


# ---------------------------------------------------------------- on a GPU alone


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "groups"), [((256, 256), 1), ((256, 256), 256), ((96, 64), 2)]
)
@pytest.mark.parametrize("rate", [1, 8])
def test_larger_shapes(dtype, channels, groups, rate):
    agree(
        Layer((4, 65, 63), channels, padding=(rate,) * 4, dilation=(rate, rate), groups=groups),
        dtype,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 64])
def test_the_weight_gradient_is_the_same_in_every_run(groups):
    module = launchers()
    layer = Layer((8, 65, 65), (64, 64), padding=(2,) * 4, dilation=(2, 2), groups=groups)
    x, _, _ = (on_device(t) for t in layer.draw(torch.bfloat16))
    runs = [module.backward_weight(x, x, 3, 3, *layer.rest) for _ in range(3)]
    assert all(torch.equal(runs[0], again) for again in runs[1:])


# ---------------------------------------------------------------- compile gate


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
