"""The CPU's short ways: the fused kernel, the keys that everyone sees, trees unpacked by words."""

import pytest
import torch

from pkg.algos.flash_attention import AncestorMask, attention, flash_attention, flash_decode
from pkg.algos.flash_attention.fused import fused_backward, fused_forward
from pkg.algos.flash_attention.masks import Visibility
from pkg.algos.flash_attention.tiled import tiled_backward, tiled_forward
from tests.algos.attention_oracle import random_parents


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_tree(nodes, batch=1):
    parents = [random_parents(nodes, seed) for seed in range(batch)]
    return AncestorMask.from_parents(torch.stack(parents))


def dense(seen):
    """Pairs by definition, pair by pair of an outer comparison."""
    i = torch.arange(seen.q_len)[:, None] + seen.shift
    j = torch.arange(seen.k_len)
    pairs = torch.ones(seen.q_len, seen.k_len, dtype=torch.bool)
    if seen.left >= 0:
        pairs &= j >= i - seen.left
    if seen.right >= 0:
        pairs &= j <= i + seen.right
    if seen.ancestors is not None:
        inside = AncestorMask(seen.ancestors).to_dense()[0]
        before = seen.k_len - seen.q_len
        pairs &= torch.nn.functional.pad(inside, (before, 0), value=True)
    return pairs


BANDS = [
    Visibility(5, 9), Visibility(5, 9, right=0, shift=4), Visibility(5, 9, right=0),
    Visibility(5, 9, right=2, shift=-3), Visibility(9, 5, right=0, shift=-4),
    Visibility(1, 9, right=0, shift=8), Visibility(5, 9, left=3, right=0, shift=4),
    Visibility(5, 9, right=20, shift=4), Visibility(6, 9, ancestors=random_tree(6).words, shift=3),
    Visibility(6, 9, right=0, shift=2, ancestors=random_tree(6).words),
]  # fmt: skip


@pytest.mark.parametrize("seen", BANDS, ids=range(len(BANDS)))
def test_common_keys_count_for_every_query_and_the_rest_follows(seen):
    pairs, common = dense(seen), seen.common
    assert pairs[:, :common].all()
    if seen.left < 0 and seen.ancestors is None:  # and there is no more to be had
        assert common == seen.k_len or not pairs[:, common].all()
    rest = seen.after(common)
    tile = rest.tile(0, rest.q_len, 0, rest.k_len) if rest.k_len else None
    expected = pairs[:, common:]
    found = torch.ones_like(expected) if tile is None else tile.reshape(expected.shape)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("seen", [seen for seen in BANDS if seen.ancestors is None])
def test_a_tile_has_a_mask_only_where_it_needs_one_and_is_left_out_if_nothing_is_seen(seen):
    pairs = dense(seen)
    for block in (1, 2, 3):
        for q0 in range(0, seen.q_len, block):
            q1 = min(q0 + block, seen.q_len)
            tiles = {k0: (k1, tile) for k0, k1, tile in seen.tiles(q0, q1, block)}
            for k0 in range(0, seen.k_len, block):
                expected = pairs[q0:q1, k0 : k0 + block]
                assert (k0 in tiles) == bool(expected.any())
                if k0 in tiles:
                    end, tile = tiles[k0]
                    assert end == min(k0 + block, seen.k_len)
                    assert (tile is None) == bool(expected.all())
                    assert tile is None or torch.equal(tile, expected)


@pytest.mark.parametrize("block", [7, 64, 100, 128])
@pytest.mark.parametrize("prefix", [0, 1, 63, 100])
def test_a_tree_is_unpacked_right_wherever_a_tile_begins(block, prefix):
    tree = random_tree(150)
    seen = Visibility(150, prefix + 150, shift=prefix, ancestors=tree.words)
    pairs, found = dense(seen), torch.zeros(150, prefix + 150, dtype=torch.bool)
    for q0 in range(0, 150, block):
        q1 = min(q0 + block, 150)
        for k0, k1, tile in seen.tiles(q0, q1, block):
            found[q0:q1, k0:k1] = True if tile is None else tile[0, 0]
    assert torch.equal(found, pairs)


@pytest.mark.parametrize("batch", [2, 6])  # 6 is also the number of heads
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("causal", [False, True])
def test_the_fused_kernel_is_the_same_function(kv_heads, causal, batch):
    q, gradient = draw(batch, 6, 40, 16), draw(batch, 6, 40, 16, seed=1)
    k, v = draw(2, batch, kv_heads, 40, 16, seed=2)
    q, k = q.mT.contiguous().mT, k.transpose(1, 2).contiguous().transpose(1, 2)  # with gaps
    seen = Visibility(40, 40, right=0 if causal else -1)
    fused, tiled = fused_forward(q, k, v, 0.3, causal), tiled_forward(q, k, v, seen, 0.3, 16, 16)
    nothing = torch.zeros_like(tiled[1])
    found = fused_backward(gradient, q, k, v, *tiled, 0.3, causal)
    expected = tiled_backward(gradient, nothing, q, k, v, *tiled, seen, 0.3, 16, 16)
    for ours, theirs in zip((*fused, *found), (*tiled, *expected), strict=True):
        assert ours.shape == theirs.shape
        # float64 sums of at most 240 terms of size 10: 240 · 10 · 2⁻⁵³ < 1e-12
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["suffix", "tree"])
def test_shared_keys_and_own_keys_merge(case):
    q, (k, v) = draw(2, 4, 20, 16), draw(2, 2, 2, 320, 16, seed=1)
    how = {"causal": True} if case == "suffix" else {"mask": random_tree(20, batch=2)}
    dense_how = how
    if case == "tree":
        inside = how["mask"].to_dense().unsqueeze(1)
        dense_how = {"mask": torch.nn.functional.pad(inside, (300, 0), value=True)}
    torch.testing.assert_close(flash_attention(q, k, v, **how), attention(q, k, v, **dense_how),
                               rtol=0, atol=1e-13)  # fmt: skip


@pytest.mark.parametrize("q_len", [1, 3])
def test_decoding_goes_by_each_length(q_len):
    q, (k, v) = draw(5, 4, q_len, 16), draw(2, 5, 2, 300, 16, seed=1)
    lengths = torch.tensor([0, 1, 2, 299, 300])
    for i, length in enumerate(lengths.tolist()):
        k[i, :, length:], v[i, :, length:] = torch.nan, torch.nan  # not looked at
    found, lse = flash_decode(q, k, v, lengths, return_lse=True)
    for i, length in enumerate(lengths.tolist()):
        part = (x[i : i + 1, :, :length] for x in (k, v))
        torch.testing.assert_close(
            found[i : i + 1], attention(q[i : i + 1], *part, causal=True), rtol=0, atol=1e-13
        )
    assert (lse[0] == -torch.inf).all()


@pytest.mark.parametrize(("splits", "parts"), [(2, [5, 5]), (4, [3, 3, 3, 1]), (99, [1] * 10)])
def test_a_cache_is_cut_into_so_many_parts(splits, parts, monkeypatch):
    from pkg.algos.flash_attention import decode

    cut = []

    def spy(q, k, *rest):
        cut.append(k.shape[2])
        return tiled_forward(q, k, *rest)

    monkeypatch.setattr(decode, "tiled_forward", spy)
    q, k = draw(1, 1, 1, 16), draw(1, 1, 12, 16)
    flash_decode(q, k, k, torch.tensor([10]), splits=splits)
    assert cut == parts


@pytest.mark.parametrize("splits", [None, 3])
def test_decoding_many_tokens_and_empty_caches(splits):
    q, (k, v) = draw(2, 2, 70, 16), draw(2, 2, 1, 90, 16, seed=1)
    found = flash_decode(q, k, v, torch.tensor([90, 80]), splits=splits)
    for i, length in enumerate((90, 80)):
        part = (x[i : i + 1, :, :length] for x in (k, v))
        alone = attention(q[i : i + 1], *part, causal=True)
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-13)
    nothing = flash_decode(q, k, v, torch.tensor([0, 0]), splits=splits)
    assert not nothing.any()
    assert (
        flash_decode(q[:0], k[:0], v[:0], torch.tensor([], dtype=torch.int64)).shape == q[:0].shape
    )


def test_a_gradient_at_the_log_sum_exp_is_not_lost():
    q, (k, v) = draw(1, 2, 8, 16), draw(2, 1, 2, 8, 16, seed=1)
    q.requires_grad_()
    _, lse = flash_attention(q, k, v, return_lse=True)
    (found,) = torch.autograd.grad(lse.sum(), q)
    (expected,) = torch.autograd.grad((q @ k.mT / 4).logsumexp(-1).sum(), q)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
