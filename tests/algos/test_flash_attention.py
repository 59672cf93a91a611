"""Every form of attention against the definition: values, gradients, masks, lengths, types."""

from __future__ import annotations

import pytest
import torch

from pkg.algos.flash_attention import (
    AncestorMask,
    Traffic,
    attention,
    flash_attention,
    tiled_attention,
)
from tests.algos.attention_oracle import band, draw, gradients, oracle, random_parents


def tiled(*args, **keywords):
    return tiled_attention(*args, **keywords, block_q=16, block_k=24)


FORMS = [attention, tiled, flash_attention]
LENGTHS = [(1, 1), (1, 33), (17, 17), (65, 130), (130, 65), (200, 300), (300, 300)]
# Float64, sums of at most 300 terms of size 1: 64 ulp of 1 is far above what rounding does here, and
# far below any mistake.
CLOSE = {"rtol": 0.0, "atol": 64 * torch.finfo(torch.float64).eps}


def bands(q_len, k_len):
    """Arguments, and the pairs that they should leave visible."""
    shift = k_len - q_len
    return [
        ({}, band(q_len, k_len)),
        ({"causal": True}, band(q_len, k_len, right=0, shift=shift)),
        ({"causal": True, "align": "top_left"}, band(q_len, k_len, right=0)),
        ({"window": (5, 3)}, band(q_len, k_len, left=5, right=3, shift=shift)),
        ({"window": (None, 2), "align": "top_left"}, band(q_len, k_len, right=2)),
        ({"window": (7, 9), "causal": True}, band(q_len, k_len, left=7, right=0, shift=shift)),
        ({"window": (0, None)}, band(q_len, k_len, left=0, shift=shift)),
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("q_len", "k_len"), LENGTHS)
def test_values_and_gradients_on_every_band(form, q_len, k_len):
    tensors = draw(1, (2, 4, q_len, 20), k_len, kv_heads=2)
    for arguments, visible in bands(q_len, k_len):
        expected = gradients(lambda *x, m=visible: oracle(*x, m)[0], tensors)
        got = gradients(lambda *x, a=arguments: form(*x, **a), tensors)
        torch.testing.assert_close(got[0], expected[0], **CLOSE)
        for mine, theirs in zip(got[1], expected[1], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0.0, atol=CLOSE["atol"] * 8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "shape",
    [
        (37, 50), (1, 1, 37, 50), (2, 1, 37, 50), (6, 37, 50), (2, 6, 37, 50), (1, 50), (37, 1),
    ],
)  # fmt: skip
def test_boolean_masks_of_every_broadcast_shape(form, shape):
    tensors = draw(2, (2, 6, 37, 16), 50, kv_heads=3)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.4
    visible = mask & band(37, 50, right=0, shift=13)
    expected = gradients(lambda *x: oracle(*x, visible)[0], tensors)
    got = gradients(lambda *x: form(*x, mask=mask, causal=True), tensors)
    torch.testing.assert_close(got[0], expected[0], **CLOSE)
    for mine, theirs in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=CLOSE["atol"] * 8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("nodes", "prefix"), [(1, 0), (5, 0), (7, 20), (64, 9), (70, 131)])
def test_trees_of_draft_tokens(form, nodes, prefix):
    parents = torch.stack([random_parents(nodes, seed) for seed in (4, 5)])
    visible = torch.ones(2, 1, nodes, prefix + nodes, dtype=torch.bool)
    for tree in range(2):
        for node in range(nodes):
            line, at = set(), node
            while at >= 0:
                line.add(at)
                at = int(parents[tree, at])
            for other in range(nodes):
                visible[tree, 0, node, prefix + other] = other in line
    mask = AncestorMask.from_parents(parents)
    assert torch.equal(mask.to_dense(), visible[:, 0, :, prefix:])
    assert torch.equal(AncestorMask.from_dense(mask.to_dense()).words, mask.words)
    tensors = draw(6, (2, 2, nodes, 16), prefix + nodes)
    expected = gradients(lambda *x: oracle(*x, visible)[0], tensors)
    got = gradients(lambda *x: form(*x, mask=mask), tensors)
    torch.testing.assert_close(got[0], expected[0], **CLOSE)
    for mine, theirs in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=CLOSE["atol"] * 8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("arguments", [{}, {"causal": True}, {"window": (20, 4)}])
@pytest.mark.parametrize("dim", [16, 40, 64, 80, 128, 256])
def test_the_error_is_at_most_twice_that_of_plain_pytorch(form, dtype, arguments, dim):
    """In the same type, against float64 on the same rounded inputs: the FlashAttention rule."""
    tensors = draw(7, (1, 4, 130, dim), 130, kv_heads=2, dtype=dtype)
    visible = {
        0: None, 1: band(130, 130, right=0), 2: band(130, 130, left=20, right=4)
    }[len(arguments) if "window" not in arguments else 2]  # fmt: skip
    exact = gradients(lambda *x: oracle(*x, visible)[0], [x.double() for x in tensors])
    plain = gradients(lambda *x: oracle(*x, visible)[0], tensors)
    ours = gradients(lambda *x: form(*x, **arguments), tensors)

    def flat(outcome):
        return [outcome[0], *outcome[1]]

    for e, p, o in zip(flat(exact), flat(plain), flat(ours), strict=True):
        assert o.dtype == dtype
        allowed, mine = (p.double() - e).norm(), (o.double() - e).norm()
        # The root mean square over thousands of entries: the largest single entry is luck.
        assert mine <= 2 * allowed


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_see_nothing_are_zero_with_gradient_zero(form):
    tensors = draw(8, (1, 2, 40, 16), 30)
    for arguments in ({"causal": True}, {"mask": torch.zeros(40, 30, dtype=torch.bool)}):
        output, found = gradients(lambda *x, a=arguments: form(*x, **a), tensors)
        blind = 10 if "causal" in arguments else 40
        assert bool((output[:, :, :blind] == 0).all())
        assert bool((found[0][:, :, :blind] == 0).all())
        assert all(bool(x.isfinite().all()) for x in found)
        assert bool((output[:, :, blind:] != 0).any()) == (blind < 40)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("by", ["causal", "mask", "window", "tree"])
def test_nan_in_what_a_query_does_not_see_does_not_reach_it(form, bad, which, by):
    q, k, v = draw(9, (1, 2, 60, 16), 60)
    at = 21
    visible = band(60, 60, right=0)
    arguments = {"causal": True}
    if by == "mask":
        visible = torch.rand(60, 60, generator=torch.Generator().manual_seed(1)) < 0.5
        arguments = {"mask": visible}
    if by == "window":
        visible = band(60, 60, left=9, right=4)
        arguments = {"window": (9, 4)}
    if by == "tree":
        tree = AncestorMask.from_parents(random_parents(60, 2))
        visible, arguments = tree.to_dense()[0], {"mask": tree}
    clean = gradients(lambda *x: oracle(*x, visible)[0], (q, k, v))
    poisoned = {"k": k, "v": v}[which].clone()
    poisoned[:, :, at] = bad
    k, v = (poisoned, v) if which == "k" else (k, poisoned)
    sees = visible[:, at]
    assert bool(sees.any())
    assert not bool(sees.all())
    output, found = gradients(lambda *x: form(*x, **arguments), (q, k, v))
    torch.testing.assert_close(output[:, :, ~sees], clean[0][:, :, ~sees], **CLOSE)
    assert not bool(output[:, :, sees].isfinite().any())
    assert bool(found[0][:, :, ~sees].isfinite().all())
    torch.testing.assert_close(
        found[0][:, :, ~sees], clean[1][0][:, :, ~sees], rtol=0.0, atol=CLOSE["atol"] * 8
    )
    if form is not flash_attention:
        return  # their gradients are autograd's: what a poisoned row sends back, it sends to all keys
    # Keys that no poisoned row sees keep their gradients.
    apart = ~(visible & sees[:, None]).any(0)
    for mine, theirs in zip(found[1:], clean[1][1:], strict=True):
        torch.testing.assert_close(
            mine[:, :, apart], theirs[:, :, apart], rtol=0.0, atol=CLOSE["atol"] * 8
        )


def test_the_log_sum_exp_and_its_gradient():
    q, k, v = draw(10, (2, 4, 33, 16), 47, kv_heads=2)
    for arguments, visible in bands(33, 47):
        output, lse = flash_attention(q, k, v, **arguments, return_lse=True)
        exact = oracle(q, k, v, visible)
        torch.testing.assert_close(output, exact[0], **CLOSE)
        torch.testing.assert_close(lse, exact[1], rtol=0.0, atol=CLOSE["atol"] * 4)

        def both(function, tensors=(q, k, v)):
            leaves = [x.clone().requires_grad_() for x in tensors]
            o, s = function(*leaves)
            kept = s.masked_fill(s == -torch.inf, 0.0)
            ((o.sin()).sum() + (kept * kept).sum()).backward()
            return [leaf.grad for leaf in leaves]

        mine = both(lambda *x, a=arguments: flash_attention(*x, **a, return_lse=True))
        theirs = both(lambda *x, m=visible: oracle(*x, m))
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=CLOSE["atol"] * 64)


@pytest.mark.parametrize("form", FORMS)
def test_shapes_without_a_query_or_key(form):
    for q_len, k_len in ((0, 5), (5, 0), (0, 0)):
        tensors = draw(11, (2, 2, q_len, 16), k_len)
        output, found = gradients(lambda *x: form(*x, causal=True), tensors)
        assert output.shape == (2, 2, q_len, 16)
        assert bool((output == 0).all())
        assert all(bool((x == 0).all()) for x in found)
    assert form(*draw(12, (0, 2, 3, 16), 4)).shape == (0, 2, 3, 16)


@pytest.mark.parametrize("form", FORMS)
def test_strided_inputs_and_a_scale(form):
    q, k, v = (x.transpose(1, 2) for x in draw(13, (2, 9, 6, 32), 6))  # (batch, 6, 9, 32)
    expected = oracle(q, k, v, scale=0.3)[0]
    torch.testing.assert_close(form(q, k, v, scale=0.3), expected, **CLOSE)
    half = form(q[..., ::2], k[..., ::2], v[..., ::2], scale=-2.0)
    torch.testing.assert_close(
        half, oracle(q[..., ::2], k[..., ::2], v[..., ::2], scale=-2.0)[0], **CLOSE
    )


@pytest.mark.parametrize("form", [attention, tiled])
def test_values_may_have_another_width_where_no_kernel_is_behind_it(form):
    q, k, v = draw(14, (1, 2, 9, 16), 12)
    wide = torch.cat([v, v * 2, v * 3], -1)
    torch.testing.assert_close(form(q, k, wide), oracle(q, k, wide)[0], **CLOSE)


def test_scores_far_apart_neither_overflow_nor_vanish():
    q, k, v = draw(15, (1, 1, 20, 16), 64)
    for form in FORMS:
        output = form(q * 1e4, k * 1e4, v)
        torch.testing.assert_close(output, oracle(q * 1e4, k * 1e4, v)[0], **CLOSE)


def test_traffic_is_counted_by_the_tiles_that_are_visible():
    q, k, v = draw(16, (1, 1, 64, 16), 96)
    counted = Traffic()
    tiled_attention(q, k, v, block_q=16, block_k=32, traffic=counted)
    # 4 row tiles, each reads 16 queries and all 96 keys and values, and writes 16 rows.
    assert counted == Traffic(loads=64 * 16 + 4 * 2 * 96 * 16, stores=64 * 16)
    causal = Traffic()
    tiled_attention(q, k, v, causal=True, block_q=16, block_k=32, traffic=causal)
    # Row tile t ends at query 16 t + 15, which belongs to key 16 t + 47: 2, 2, 3, 3 key tiles.
    assert causal.loads == 64 * 16 + (2 + 2 + 3 + 3) * 2 * 32 * 16
    assert causal.total == causal.loads + causal.stores


def test_the_window_alone_decides_the_work():
    q, k, v = draw(17, (1, 1, 1024, 16), 1024)
    counted = Traffic()
    tiled_attention(q, k, v, window=(16, 16), block_q=16, block_k=16, traffic=counted)
    assert counted.loads <= 1024 * 16 + 64 * 3 * 2 * 16 * 16
