"""The kernels of dilated convolution: their logic under the interpreter, and on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.cuda.dilated_oracle import (
    DTYPES,
    Layer,
    agree,
    by_pytorch,
    inside_nan,
    launchers,
    on_device,
    ours,
)
from tests.cuda.where import DEVICE, everywhere

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow)")


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fill what the launchers allocate with NaN, so that an element never written shows."""
    module = pytest.importorskip("pkg.cuda.dilated_convolution.launch")
    fresh = torch.empty

    class Torch:
        def __getattr__(self, name):
            return getattr(torch, name)

        empty = staticmethod(lambda *args, **keywords: fresh(*args, **keywords).fill_(torch.nan))

    monkeypatch.setattr(module, "torch", Torch())


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


@everywhere
@pytest.mark.parametrize("channels", [(6, 33), (42, 63), (96, 48)])
@pytest.mark.parametrize("groups", [1, 3])
def test_dense_launches_are_those_that_the_gate_compiles(channels, groups, monkeypatch):
    """Vectors of 16 bytes can be loaded, one stride of the weight is 1, tiles are the table's."""
    from pkg.cuda.dilated_convolution import launch

    seen = []

    class Watched:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def call(*args, **keywords):
                named = dict(zip(self.kernel.arg_names, args, strict=False)) | keywords
                seen.append((self.kernel, named))
                return self.kernel[grid](*args, **keywords)

            return call

    for name in ("correlate_kernel", "weight_kernel"):
        monkeypatch.setattr(launch, name, Watched(getattr(launch, name)))
    layer = Layer((1, 7, 10), channels, stride=(1, 2), groups=groups)
    x, weight, bias = layer.draw(torch.float16)
    agree(layer, torch.float16, (inside_nan(x), weight, bias))
    assert len(seen) == 4  # forward, two classes of the input's gradient, the weight's gradient
    for kernel, named in seen:
        for argument, value in named.items():
            if isinstance(value, torch.Tensor):
                assert value.data_ptr() % 16 == 0, argument
            elif argument.startswith(("stride_", "channels")):
                assert value % 16 == 0 or (value == 1 and argument in ("stride_wi", "stride_wo"))
        row = "correlate" if kernel is launch.correlate_kernel.kernel else "weight"
        if row == "correlate":
            assert 1 in (named["stride_wi"], named["stride_wo"])
        wide, deep = named["channels_out"], named["channels_in"]
        config = launch.choose(row, torch.float16, wide, deep)
        tile = (config.block_m, config.block_n, config.block_k, config.num_warps, config.num_stages)
        names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")
        assert tuple(named[n] for n in names) == tile


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
