"""The operators behind the functions: opcheck, gradcheck, one graph, autocast, lazy kernels."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pkg.algos.flash_attention import (
    AncestorMask,
    attention,
    flash_attention,
    flash_attention_varlen,
    flash_decode,
)
from pkg.algos.flash_attention.decode import decode_operator
from pkg.algos.flash_attention.operator import backward_operator, forward_operator
from pkg.algos.flash_attention.varlen import varlen_backward_operator, varlen_forward_operator


def inputs(dtype=torch.float32, gradient=True):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 7, 16), (2, 2, 9, 16), (2, 2, 9, 16))
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [x.requires_grad_(gradient) for x in drawn]


MASK = torch.rand(1, 1, 7, 9, generator=torch.Generator().manual_seed(1)) < 0.6
TREE = AncestorMask.from_parents(torch.tensor([-1, 0, 0, 1, 1, 2, 5])).words
VARIANTS = [
    (None, None, -1, -1, 2),
    (None, None, -1, 0, 2),
    (None, None, 3, 1, 0),
    (MASK.expand(2, 1, 7, 9), None, -1, 0, 2),
    (None, TREE, -1, -1, 2),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck_of_the_dense_operators(variant, dtype):
    tensors = inputs(dtype)
    torch.library.opcheck(forward_operator, (*tensors, *variant, 0.25))
    plain = [x.detach() for x in tensors]
    output, lse = forward_operator(*plain, *variant, 0.25)
    ones = torch.ones_like(output), torch.zeros_like(lse)
    torch.library.opcheck(backward_operator, (*ones, *plain, output, lse, *variant, 0.25))


def packed(dtype=torch.float64, gradient=True):
    q, k, v = inputs(dtype, gradient=False)
    return [x[0].transpose(0, 1).contiguous().requires_grad_(gradient) for x in (q, k, v)]


PLACES = (
    torch.tensor([0, 3, 3, 7], dtype=torch.int32),
    torch.tensor([0, 2, 4, 9], dtype=torch.int32),
)


def test_opcheck_of_the_packed_operators_and_of_decoding():
    rest = (*PLACES, 4, 5, -1, 0, True, 0.25)
    tensors = packed()
    torch.library.opcheck(varlen_forward_operator, (*tensors, *rest))
    plain = [x.detach() for x in tensors]
    output, lse = varlen_forward_operator(*plain, *rest)
    zeros = torch.ones_like(output), torch.zeros_like(lse)
    torch.library.opcheck(varlen_backward_operator, (*zeros, *plain, output, lse, *rest))
    q, k, v = inputs(gradient=False)
    torch.library.opcheck(decode_operator, (q, k, v, torch.tensor([9, 4]), 3, 0.25))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant):
    def both(q, k, v):
        return forward_operator(q, k, v, *variant, 0.25)

    assert torch.autograd.gradcheck(both, inputs(torch.float64))


def test_gradcheck_of_packed_sequences():
    def output(q, k, v):  # each sequence sees a key, so that no log-sum-exp is -inf
        return flash_attention_varlen(q, k, v, *PLACES, return_lse=True)

    assert torch.autograd.gradcheck(output, packed())


@pytest.mark.parametrize("dynamic", [False, True])
def test_each_function_compiles_into_one_graph(dynamic):
    q, k, v = inputs()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def dense(q, k, v):
        return flash_attention(q * 2, k, v, causal=True).sin()

    expected = attention(q * 2, k, v, causal=True).sin()
    torch.testing.assert_close(dense(q, k, v), expected)
    grads = [torch.autograd.grad(x.sum(), (q, k, v)) for x in (dense(q, k, v), expected)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def sequences(q, k, v):
        return flash_attention_varlen(q, k, v, *PLACES, max_seqlen_q=4, max_seqlen_k=5) * 2

    x = packed(torch.float32, gradient=False)
    torch.testing.assert_close(sequences(*x), flash_attention_varlen(*x, *PLACES) * 2)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def step(q, k, v, lengths):
        return flash_decode(q, k, v, lengths, splits=2) * 2

    x, lengths = inputs(gradient=False), torch.tensor([9, 8])
    torch.testing.assert_close(step(*x, lengths), flash_decode(*x, lengths) * 2)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_casts_to_the_type_in_force(kind):
    q, k, v = inputs()
    with torch.autocast("cpu", kind):
        output = flash_attention(q, k, v, causal=True)
    assert output.dtype == kind
    plain = flash_attention(*(x.to(kind) for x in (q, k, v)), causal=True)
    assert torch.equal(output, plain)
    output.float().sum().backward()
    assert q.grad.dtype == torch.float32
    assert flash_attention(q, k, v).dtype == torch.float32


def test_second_derivatives_are_refused_rather_than_wrong():
    q, k, v = inputs()
    (first,) = torch.autograd.grad(flash_attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), k)


def test_no_kernel_is_imported_for_cpu_tensors():
    script = (
        "import sys, torch; from pkg.algos.flash_attention import flash_attention;"
        "x = torch.ones(1, 1, 2, 16); flash_attention(x, x, x);"
        "assert not [m for m in sys.modules if m.startswith('pkg.cuda')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
