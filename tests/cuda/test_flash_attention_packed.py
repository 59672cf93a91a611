"""Packed sequences and decoding: the kernels' logic under the interpreter, and on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.algos.attention_oracle import band, draw, oracle
from tests.cuda.attention_cases import launchers, ours, plain_band, quiet, to_device
from tests.cuda.where import everywhere

pytestmark = quiet


@everywhere
@pytest.mark.parametrize(
    ("dtype", "left", "right", "bottom"),
    [(torch.float16, -1, -1, True), (torch.float32, -1, 0, True), (torch.bfloat16, 9, 4, False)],
)
def test_packed_sequences(dtype, left, right, bottom):
    q_lens, k_lens = [40, 0, 3, 130], [90, 7, 0, 50]
    generator = torch.Generator().manual_seed(16)
    q, k, v, g = (
        torch.randn(sum(lens), heads, 32, generator=generator).to(dtype)
        for lens, heads in ((q_lens, 4), (k_lens, 2), (k_lens, 2), (q_lens, 4))
    )
    dlse = torch.randn(4, sum(q_lens), generator=generator)
    starts = [
        torch.tensor([0, *torch.tensor(lens).cumsum(0)], dtype=torch.int32)
        for lens in (q_lens, k_lens)
    ]
    module = launchers()
    x = to_device(q, k, v)
    rest = (*to_device(*starts), 130, 90, left, right, bottom, 0.2)
    output, lse = module.varlen_forward(*x, *rest)
    grads = module.varlen_backward(*to_device(g, dlse), *x, output, lse, *rest)
    row = column = 0
    for q_len, k_len in zip(q_lens, k_lens, strict=True):
        here_q, here_k = slice(row, row + q_len), slice(column, column + k_len)
        row, column = row + q_len, column + k_len
        shift = k_len - q_len if bottom else 0
        alone = [y[here].transpose(0, 1)[None].contiguous()
                 for y, here in ((q, here_q), (k, here_k), (v, here_k))]  # fmt: skip
        arriving = [g[here_q].transpose(0, 1)[None].contiguous(), dlse[None, :, here_q]]
        expected = ours(alone, arriving, plain_band(left, right, shift), 0.2)
        parts = [output[here_q], grads[0][here_q], grads[1][here_k], grads[2][here_k]]
        # The same kernel on the same numbers in the same tiles: equal to the last bit.
        for part, wanted in zip(parts, (expected[0], *expected[2:]), strict=True):
            assert torch.equal(part.cpu(), wanted[0].transpose(0, 1))
        assert torch.equal(lse[:, here_q].cpu(), expected[1][0])


@everywhere
@pytest.mark.parametrize(
    ("dtype", "splits", "q_len", "kv_heads"),
    [(torch.bfloat16, 0, 1, 1), (torch.bfloat16, 1, 5, 2), (torch.bfloat16, 40, 1, 2),
     (torch.float16, 2, 40, 2), (torch.float16, 7, 5, 1),
     (torch.float32, 0, 40, 2), (torch.float32, 3, 1, 1)],
)  # fmt: skip
def test_decoding(dtype, splits, q_len, kv_heads):
    lengths = [0, 1, 150, 301]
    q, k, v = draw(17, (4, 4, q_len, 48), 301, kv_heads=kv_heads, dtype=dtype)
    for i, length in enumerate(lengths):
        k[i, :, length:], v[i, :, length:] = torch.nan, torch.inf
    found = launchers().decode(*to_device(q, k, v, torch.tensor(lengths)), splits, 0.2)
    output, lse = (x.cpu() for x in found)
    for i, length in enumerate(lengths):
        here = slice(i, i + 1)
        if not length:
            assert bool((output[here] == 0).all())
            assert bool((lse[here] == -torch.inf).all())
            continue
        visible = band(q_len, length, right=0, shift=length - q_len)
        parts = q[here], k[here, :, :length], v[here, :, :length]
        exact = oracle(*(x.double() for x in parts), visible, 0.2)
        plain = oracle(*parts, visible, 0.2)
        lost = exact[1] == -torch.inf
        assert torch.equal(lse[here] == -torch.inf, lost)
        eps = torch.finfo(dtype).eps * (8 if dtype == torch.float32 else 1)  # as in agree()
        error = (output[here].double() - exact[0]).norm()
        assert error <= 2 * (plain[0].double() - exact[0]).norm() + eps * exact[0].norm()
        torch.testing.assert_close(
            lse[here].double().masked_fill(lost, 0), exact[1].masked_fill(lost, 0),
            rtol=2e-6, atol=2e-6,  # float32 keeps the log-sum-exp, whatever the inputs' type
        )  # fmt: skip


@everywhere
def test_a_nan_among_the_new_tokens_stays_with_those_that_see_it():
    q, k, v = draw(18, (1, 2, 4, 16), 60, dtype=torch.float32)
    k[:, :, 58] = torch.nan  # the third of four new tokens
    output, _ = launchers().decode(*to_device(q, k, v, torch.tensor([60])), 3, 0.25)
    assert bool(output[:, :, :2].isfinite().all())
    assert not bool(output[:, :, 2:].isfinite().any())
