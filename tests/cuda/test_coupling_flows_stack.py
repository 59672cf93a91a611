"""The kernel of a whole stack of couplings: its logic under the interpreter, and on a GPU."""

from __future__ import annotations

import pytest
import torch

from pkg.algos.coupling_flows import AffineCoupling, ChannelMask, Compose
from pkg.algos.coupling_flows.fused import FusedCouplings
from pkg.algos.coupling_flows.networks import MLP
from tests.cuda.coupling_oracle import DTYPES, Fenced, launchers
from tests.cuda.where import DEVICE, everywhere

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow)")
NAMES = ("w1", "b1", "w2", "b2", "w3", "b3", "kept")


def stack(features, hidden, layers=3, bound=2.0, seed=0):
    """Couplings whose masks are drawn, so that layers keep different numbers of features."""
    generator = torch.Generator().manual_seed(seed)
    couplings = []
    for number in range(layers):
        kept = torch.rand(features, generator=generator) < 0.5
        kept[number % features], kept[(number + 1) % features] = True, False
        count = int(kept.sum())
        network = MLP(count, 2 * (features - count), (hidden, hidden))
        for p in network.parameters():
            torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5, generator=generator)
        couplings.append(AffineCoupling(ChannelMask(kept.tolist()), network, bound=bound))
    return Compose(*couplings).requires_grad_(False)


def run(module, x, inverse):
    weights = [getattr(module, name).to(DEVICE) for name in NAMES]
    weights[:-1] = [w.to(x.dtype) for w in weights[:-1]]
    found = launchers().stack(x.to(DEVICE), *weights, module.bound, inverse)
    return [t.cpu() for t in found]


def agree(features, hidden, rows, dtype, inverse, bound=2.0, x=None):
    """Error at most twice that of the layers one by one in the same type, against float64."""
    layers = stack(features, hidden, bound=bound).to(dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, features, generator=generator).to(dtype) if x is None else x
    fused = FusedCouplings(layers)
    got = run(fused, x, inverse)
    theirs = (layers.inverse if inverse else layers)(x)
    exact = (layers.double().inverse if inverse else layers.double())(x.double())
    assert got[0].dtype == dtype
    assert got[1].dtype == torch.float32
    for mine, true, plain in zip(got, exact, theirs, strict=True):
        assert mine.shape == true.shape
        error, allowed = ((t.double() - true).norm() for t in (mine, plain))
        # float32: sums over the padding in another order, and on a GPU products of three TF32 that
        # keep 21 bits: 16 roundings of the size of the result.
        floor = torch.finfo(dtype).eps * true.norm() * (16 if dtype == torch.float32 else 1)
        assert error <= 2 * allowed + floor, (float(error), float(allowed))


@everywhere
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("features", "hidden", "rows"),
    [(2, 1, 1), (5, 16, 70), (16, 20, 64), (33, 64, 3), (64, 128, 40)],
)
def test_sizes_and_types(features, hidden, rows, dtype, inverse):
    agree(features, hidden, rows, dtype, inverse)


@everywhere
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_without_a_bound(inverse):
    agree(6, 32, 9, torch.float32, inverse, bound=None)


@everywhere
def test_rows_with_gaps_and_an_empty_batch():
    wide = torch.full((9, 20), torch.nan)
    wide[:, 3:10] = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    agree(7, 16, 9, torch.float32, False, x=wide[:, 3:10])
    agree(7, 16, 7, torch.float32, True, x=wide[:7, 3:10].clone().T.contiguous().T)
    out, log_det = run(FusedCouplings(stack(7, 16)), torch.zeros(0, 7), False)
    assert out.shape == (0, 7)
    assert log_det.shape == (0,)


@everywhere
def test_nothing_is_written_beside_the_results(monkeypatch):
    from pkg.cuda.coupling_flows import stack_launch

    fenced = Fenced()
    monkeypatch.setattr(stack_launch, "torch", fenced)
    for features, rows in ((5, 3), (16, 65)):
        run(FusedCouplings(stack(features, 16)), torch.ones(rows, features), False)
    fenced.check()


@everywhere
def test_a_nan_is_passed_on_and_stays_in_its_sample():
    """`maximum(NaN, 0)` is 0 on a GPU: a broken sample would come out looking sound."""
    layers = stack(6, 16)
    x = torch.randn(70, 6, generator=torch.Generator().manual_seed(0))
    x[3] = torch.nan
    x[5, 1] = torch.inf
    got, log_det = run(FusedCouplings(layers), x, False)
    assert got[3].isnan().all()
    assert log_det[3].isnan()
    rest = [i for i in range(70) if i not in (3, 5)]
    assert got[rest].isfinite().all()
    assert log_det[rest].isfinite().all()


@everywhere
def test_what_no_layer_changes_keeps_its_bits():
    network = MLP(3, 2, (16, 16))
    torch.nn.init.ones_(network.layers[-1].weight)
    layers = Compose(AffineCoupling(ChannelMask([True, False, True, True]), network))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) / 3
    out, _ = run(FusedCouplings(layers.requires_grad_(False)), x, False)
    assert torch.equal(out[:, [0, 2, 3]], x[:, [0, 2, 3]])
    assert (out[:, 1] != x[:, 1]).all()


@everywhere
def test_what_does_not_fit_the_chip_is_refused():
    for features, hidden in ((65, 16), (8, 129)):
        with pytest.raises(ValueError, match="64 features and 128 hidden"):
            run(FusedCouplings(stack(features, hidden)), torch.zeros(1, features), False)
    with pytest.raises(TypeError, match="float64"):
        run(FusedCouplings(stack(4, 16)), torch.zeros(1, 4, dtype=torch.float64), False)


@pytest.mark.gpu
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_larger_batches(dtype, inverse):
    agree(32, 64, 8192, dtype, inverse)
    agree(64, 128, 1000, dtype, inverse)
