"""The online softmax and its state: any cut, any order, nothing there."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pkg.algos.flash_attention import SoftmaxState, merge_states, online_softmax

EPS = torch.finfo(torch.float64).eps


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 40)])
def test_online_softmax_is_softmax(block_size, shape):
    x = 30 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dim in range(-len(shape), len(shape)):
        got = online_softmax(x, dim, block_size=block_size)
        torch.testing.assert_close(got, x.softmax(dim), rtol=0.0, atol=8 * EPS)


def test_numbers_that_would_overflow_and_rows_that_are_empty():
    x = torch.tensor([[1e5, 1e5 - 1, -1e5], [-torch.inf, 0.0, -torch.inf], [-torch.inf] * 3])
    got = online_softmax(x, block_size=1)
    expected = torch.tensor([[0.7310586, 0.2689414, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-7)
    assert online_softmax(torch.tensor([1.0, torch.nan])).isnan().all()
    assert online_softmax(torch.zeros(2, 0)).shape == (2, 0)


def test_all_negative_numbers():
    """A running maximum that starts at 0 loses them: exp(-1000) is 0."""
    x = torch.tensor([-1000.0, -1001.0])
    torch.testing.assert_close(online_softmax(x, block_size=1), x.softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_sum_is_kept_in_float32(dtype):
    x = torch.zeros(5000, dtype=dtype)  # in float16 a running sum of ones stops at 2048
    got = online_softmax(x, block_size=1)
    assert got.dtype == dtype
    assert bool((got == torch.tensor(1 / 5000, dtype=dtype)).all())


def test_gradient_of_the_online_softmax():
    x = torch.randn(3, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: online_softmax(y, block_size=4), (x,))


def test_online_softmax_at_the_door():
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        online_softmax(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        online_softmax(torch.ones(2), block_size=0)
    with pytest.raises(IndexError):
        online_softmax(torch.ones(2), dim=3)


def parts(scores, values, cuts):
    edges = [0, *sorted(cuts), len(scores)]
    return [
        SoftmaxState.of(scores[a:b], values[a:b]) if b > a else SoftmaxState.empty(3, dtype=scores.dtype)
        for a, b in itertools.pairwise(edges)
    ]  # fmt: skip


number = st.floats(-700, 700) | st.just(float("-inf"))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(number, min_size=1, max_size=12), st.lists(st.integers(0, 12), max_size=5),
    st.randoms(use_true_random=False), st.integers(0, 1000),
)  # fmt: skip
def test_any_cut_in_any_order_gives_the_same_state(numbers, cuts, random, seed):
    scores = torch.tensor(numbers, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(numbers), 3, generator=generator, dtype=torch.float64)
    pieces = parts(scores, values, [min(cut, len(numbers)) for cut in cuts])
    while len(pieces) > 1:  # merge two at random places, in a random order
        a = pieces.pop(random.randrange(len(pieces)))
        b = pieces.pop(random.randrange(len(pieces)))
        pieces.append(a.merge(b) if random.random() < 0.5 else b.merge(a))
    whole = SoftmaxState.of(scores, values)
    assert torch.equal(pieces[0].maximum, whole.maximum)
    torch.testing.assert_close(pieces[0].total, whole.total, rtol=32 * EPS, atol=0.0)
    torch.testing.assert_close(
        pieces[0].output, whole.output, rtol=0.0, atol=32 * EPS * float(values.abs().max())
    )
    torch.testing.assert_close(pieces[0].lse, scores.logsumexp(0), rtol=4 * EPS, atol=4 * EPS)


def test_the_identity_adds_nothing_even_if_it_carries_rubbish():
    state = SoftmaxState.of(torch.tensor([0.5, 2.0]), torch.eye(2))
    rubbish = SoftmaxState(torch.tensor(-torch.inf), torch.tensor(0.0), torch.full((2,), torch.nan))
    for merged in (merge_states(state, rubbish), merge_states(rubbish, state)):
        assert torch.equal(merged.output, state.output)
        assert torch.equal(merged.lse, state.lse)
    none = SoftmaxState.of(torch.zeros(4, 0), torch.zeros(4, 0, 2))  # four rows over no keys
    assert none.maximum.shape == none.lse.shape == (4,)
    assert torch.equal(merge_states(none, state).output, state.output.expand(4, 2))
    nothing = merge_states(SoftmaxState.empty(2), SoftmaxState.empty(2))
    assert torch.equal(nothing.output, torch.zeros(2))
    assert nothing.lse == -torch.inf


def test_nan_is_not_hidden_by_a_merge():
    bad = SoftmaxState.of(torch.tensor([torch.nan]), torch.ones(1, 2))
    good = SoftmaxState.of(torch.tensor([1.0]), torch.ones(1, 2))
    assert merge_states(good, bad).output.isnan().all()
    assert merge_states(bad, good).output.isnan().all()


def test_from_output_and_log_sum_exp():
    scores, values = torch.randn(9, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    halves = [
        SoftmaxState.from_lse(scores[part].softmax(0) @ values[part], scores[part].logsumexp(0))
        for part in (slice(0, 4), slice(4, 9))
    ]
    merged = merge_states(*halves)
    torch.testing.assert_close(merged.output, scores.softmax(0) @ values, rtol=0.0, atol=16 * EPS)
    torch.testing.assert_close(merged.lse, scores.logsumexp(0), rtol=8 * EPS, atol=8 * EPS)
    empty = SoftmaxState.from_lse(torch.zeros(3), torch.tensor(-torch.inf))
    assert empty.total == 0


def test_gradients_through_a_merge():
    scores = torch.randn(6, dtype=torch.float64, requires_grad=True)
    values = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def merged(s, v):
        state = SoftmaxState.of(s[:2], v[:2]).merge(SoftmaxState.of(s[2:], v[2:]))
        return state.output, state.lse

    assert torch.autograd.gradcheck(merged, (scores, values))


def test_states_at_the_door():
    with pytest.raises(ValueError, match="maximum and total must have one shape"):
        SoftmaxState(torch.zeros(2), torch.zeros(3), torch.zeros(2, 4))
    with pytest.raises(TypeError, match="b must be a SoftmaxState, got Tensor"):
        merge_states(SoftmaxState.empty(2), torch.zeros(2))
