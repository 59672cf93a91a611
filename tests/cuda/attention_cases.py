"""What the tests of attention's kernels share: a run by the launchers, one by the oracle, a bound."""

from __future__ import annotations

import pytest
import torch

from tests.algos.attention_oracle import band, oracle
from tests.cuda.where import DEVICE

quiet = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero)")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def launchers():
    return pytest.importorskip("pkg.cuda.flash_attention")


def to_device(*tensors):
    return [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in tensors]


def ours(tensors, arriving, visible_arguments, scale):
    """Output, log-sum-exp and gradients by the kernels, on the CPU in float64."""
    mask, words, left, right, shift = visible_arguments
    module = launchers()
    x = to_device(*tensors)
    rest = (*to_device(mask, words), left, right, shift, scale)
    output, lse = module.attention_forward(*x, *rest)
    grads = module.attention_backward(*to_device(*arriving), *x, output, lse, *rest)
    return [part.cpu() for part in (output, lse, *grads)]


def by_autograd(tensors, arriving, visible, scale, kind):
    """The same by the oracle in type `kind`."""
    leaves = [x.to(kind).requires_grad_() for x in tensors]
    output, lse = oracle(*leaves, visible, scale)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    total = (output * arriving[0].to(kind)).sum() + (finite * arriving[1].to(kind)).sum()
    grads = torch.autograd.grad(total, leaves)
    return [output.detach(), lse.detach(), *grads]


def agree(tensors, visible_arguments, visible=None, scale=0.2, seed=0):
    """Compare kernels and oracle: error at most twice plain PyTorch's in the same type."""
    q, dtype = tensors[0], tensors[0].dtype
    generator = torch.Generator().manual_seed(seed)
    shape = q.shape
    arriving = [
        torch.randn(shape, generator=generator).to(dtype),
        torch.randn(shape[:3], generator=generator),
    ]
    arriving[1] = arriving[1].to(dtype).float()  # so that plain PyTorch gets the same number
    got = ours(tensors, arriving, visible_arguments, scale)
    exact = by_autograd(tensors, arriving, visible, scale, torch.float64)
    plain = by_autograd(tensors, arriving, visible, scale, dtype)
    names = ("output", "lse", "dq", "dk", "dv")
    for name, mine, true, theirs in zip(names, got, exact, plain, strict=True):
        assert mine.dtype == (torch.float32 if name == "lse" else dtype), name
        lost = true == -torch.inf
        assert torch.equal(mine == -torch.inf, lost), name
        error, allowed = ((x.double() - true).masked_fill(lost, 0.0).norm() for x in (mine, theirs))
        # One rounding of the result more, for a plain error that is zero by luck in a small case.
        floor = torch.finfo(dtype).eps * true.masked_fill(lost, 0.0).norm()
        # A float32 sum of a hundred terms in another order: 8 roundings where sums are float32.
        floor *= 8 if dtype == torch.float32 else 1
        assert error <= 2 * allowed + floor, (name, float(error), float(allowed))


def plain_band(left=-1, right=-1, shift=0):
    return (None, None, left, right, shift)


def band_of(q_len, k_len, left, right, shift):
    return band(
        q_len, k_len, left=None if left < 0 else left, right=None if right < 0 else right,
        shift=shift,
    )  # fmt: skip
