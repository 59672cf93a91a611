"""The decoder: the same logits by every way of reading, and bad input is refused at the door."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pkg.algos.flash_attention import AncestorMask, attention, flash_attention
from pkg.algos.language_model import KeyValueCache, rotate
from pkg.data.smollm2 import smollm2
from tests.algos.language_model_cases import TOKENS, allowed, bf16_model, short_model


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=allowed())


def test_the_bound_would_notice_a_mistake():
    """A shifted position or one key too many is a million times above what is allowed."""
    model, tokens = short_model(), TOKENS[:12]
    right = model(tokens).logits
    shifted = model(tokens, positions=torch.arange(12) * 2).logits
    peeking = torch.ones(12, 12, dtype=torch.bool).tril()
    peeking[5, 6] = True
    assert allowed() < 1e-9
    for wrong in (shifted, model(tokens, mask=peeking).logits):
        assert float((wrong - right).abs().max()) > 1e6 * allowed()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(deadline=None, max_examples=8)
def test_in_pieces_with_a_cache_as_in_one_pass(pieces):
    model, total = short_model(), sum(pieces)
    tokens, cache = TOKENS[:total], model.new_cache(capacity=total)
    parts = [model(part, cache=cache).logits for part in tokens.split(pieces)]
    close(torch.cat(parts), model(tokens).logits)
    assert cache.lengths.tolist() == [total]


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(1, 4))
@settings(deadline=None, max_examples=8)
def test_in_a_batch_as_alone(lengths, more):
    """Texts of different lengths, and a second pass over caches that end at different places."""
    model, longest = short_model(), max(lengths)
    texts = [TOKENS[7 * i : 7 * i + n + more] for i, n in enumerate(lengths)]
    first = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
        first[row, :n] = text[:n]
    cache = model.new_cache(len(texts), longest + more)
    one = model(first, cache=cache, lengths=lengths).logits
    assert cache.lengths.tolist() == lengths
    two = model(torch.stack([t[-more:] for t in texts]), cache=cache).logits
    for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
        alone = model(text).logits
        close(one[row, :n], alone[:n])
        close(two[row], alone[n:])


def test_padding_is_not_seen_whatever_it_is():
    model, n = short_model(), 6
    rows = torch.stack((TOKENS[:9], TOKENS[20:29]))
    other = rows.clone()
    other[0, n:] = 17
    logits = [model(x, lengths=[n, 9]).logits for x in (rows, other)]
    assert torch.equal(logits[0][0, :n], logits[1][0, :n])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("before", [[5], [5, 5], [3, 8]])
def test_a_tree_reads_each_path_as_a_text(packed, before):
    """Nodes of a tree, each with its ancestors, as if every path were a text of its own."""
    model, parents = short_model(), torch.tensor([-1, 0, 0, 1, 1, 3, -1])
    tree = AncestorMask.from_parents(parents)
    seen = tree.to_dense()[0]
    nodes = TOKENS[50:57]
    depth = seen.sum(1) - 1
    cache = model.new_cache(len(before), 16)
    rows = torch.stack([F.pad(TOKENS[:n], (0, 8 - n)) for n in before])[:, : max(before)]
    model(rows, cache=cache, lengths=before)
    starts = cache.lengths.clone()
    logits, _ = model(
        nodes.expand(len(before), -1), cache=cache, mask=tree if packed else seen,
        positions=starts[:, None] + depth,
    )  # fmt: skip
    for row, n in enumerate(before):
        for node in range(7):
            path = seen[node].nonzero()[:, 0]
            close(logits[row, node], model(torch.cat((TOKENS[:n], nodes[path]))).logits[-1])
    # keep one path, forget the rest, read on: as if the other branches had never been
    paths = torch.tensor([[0, 1, 3, 5], [0, 2, -1, -1]])[: len(before)]
    cache.keep(paths, starts)
    last = model(TOKENS[60:61].expand(len(before), 1), cache=cache).logits
    for row, n in enumerate(before):
        path = paths[row][paths[row] >= 0]
        whole = torch.cat((TOKENS[:n], nodes[path], TOKENS[60:61]))
        close(last[row, -1], model(whole).logits[-1])


def test_rolled_back_as_if_never_read():
    model, cache = short_model(), short_model().new_cache(2, 20)
    model(torch.stack((TOKENS[:9], TOKENS[30:39])), cache=cache)
    cache.rollback([4, 7])
    logits = model(torch.stack((TOKENS[60:63], TOKENS[70:73])), cache=cache).logits
    close(logits[0], model(torch.cat((TOKENS[:4], TOKENS[60:63]))).logits[4:])
    close(logits[1], model(torch.cat((TOKENS[30:37], TOKENS[70:73]))).logits[7:])


def test_rows_are_selected_and_doubled():
    model, cache = short_model(), short_model().new_cache(3, 20)
    rows = torch.stack((TOKENS[:5], TOKENS[30:35], TOKENS[60:65]))
    model(rows, cache=cache)
    cache.rollback([5, 3, 4])
    cache.select([2, 0, 2])
    assert cache.batch == 3
    assert cache.lengths.tolist() == [4, 5, 4]
    logits = model(TOKENS[90:92].expand(3, -1), cache=cache).logits
    close(logits[0], model(torch.cat((rows[2, :4], TOKENS[90:92]))).logits[4:])
    close(logits[0], logits[2])


def test_hidden_states_read_out_are_the_logits():
    model = short_model()
    logits, hidden = model(TOKENS[:10])
    assert hidden.shape == (10, 576)
    assert torch.equal(model.read_out(hidden), logits)
    close(model.first_layers(2)(TOKENS[:10]).logits, model(TOKENS[:10], layers=2).logits)
    own = short_model().weights | {"output.weight": model.weights["token_embd.weight"][:7]}
    few = type(model)(own, model.shape)(TOKENS[:10]).logits
    close(few, logits[:, :7])


def test_half_and_single_precision_err_as_their_roundings_say():
    """The error is proportional to the unit roundoff: bfloat16's is 2^16 times float32's."""
    tokens = TOKENS[:60]
    wide = short_model()(tokens).logits
    scale = float(wide.std())
    for dtype, unit in ((torch.float32, 2.0**-24), (torch.bfloat16, 2.0**-8)):
        error = short_model(dtype)(tokens).logits.double() - wide
        # sums of up to 1,536 terms err like a random walk, of some 39 steps
        assert unit * scale / 10 < float(error.std()) < 39 * unit * scale, dtype


def test_perplexity_is_the_same_in_half_precision():
    """Per token the losses differ by hundredths of a nat, to both sides: the mean barely moves."""
    tokens = TOKENS[:400]
    losses = [
        F.cross_entropy(m(tokens).logits[:-1].float(), tokens[1:], reduction="none")
        for m in (smollm2(), bf16_model())
    ]
    difference = losses[1] - losses[0]
    error = float(difference.std()) / len(difference) ** 0.5
    assert abs(float(difference.mean())) < 4 * error + 0.002
    assert abs(float(losses[1].mean() / losses[0].mean()) - 1) < 0.005  # 2.9 nats, to two digits
    assert 1.0 < float(losses[0].mean()) < 4.0


def test_gradients_reach_the_weights():
    model = short_model(layers=2)
    weights = {k: w.clone().requires_grad_() for k, w in model.weights.items()}
    fresh = type(model)(weights, model.shape)
    F.cross_entropy(fresh(TOKENS[:8]).logits[:-1], TOKENS[1:8]).backward()
    assert all(w.grad is not None and bool(w.grad.any()) for w in weights.values())


def test_attention_of_the_book_gives_the_same():
    tokens, model = TOKENS[:30], short_model()
    for attend in (attention, flash_attention):
        ours = model(tokens, attend=lambda q, k, v, f=attend: f(q, k, v, causal=True)).logits
        close(ours, model(tokens).logits)


def test_by_the_chapters_own_attention_as_by_the_fused_one(monkeypatch):
    """The way of the GPU, run on the CPU: flash_attention, flash_decode, and masks of trees."""
    model, parents = short_model(), torch.tensor([-1, 0, 0, 1])
    tree = AncestorMask.from_parents(parents)

    def read(lengths):
        cache = model.new_cache(len(lengths), 100)
        rows = torch.stack([TOKENS[40 * i : 40 * i + 9] for i in range(len(lengths))])
        found = [model(rows, cache=cache, lengths=lengths).logits[:, : min(lengths)]]
        found.append(model(rows[:, :1], cache=cache).logits)
        found.append(model(rows[:, :3], cache=cache).logits)
        found.append(model(rows[:, :4], cache=cache, mask=tree).logits)
        cache.rollback(cache.lengths - 4)
        found.append(model(TOKENS[:70].expand(len(lengths), -1), cache=cache).logits)
        return found

    for lengths in ([5, 9], [9, 9]):
        fused = read(lengths)
        with monkeypatch.context() as patch:
            patch.setattr("pkg.algos.language_model.attention.has_fused", lambda device: False)
            ours = read(lengths)
        for a, b in zip(fused, ours, strict=True):
            close(a, b)


# ------------------------------------------------------------------ rotation


def test_a_score_depends_on_the_distance_alone():
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 64, dtype=torch.float64, generator=draw) for _ in "qk")
    at = torch.tensor([0, 1, 5, 100, 4000])
    scores = rotate(q.expand(1, 1, 5, 64), at + 7) * rotate(k.expand(1, 1, 5, 64), at)
    # angles reach 4,000 radians, whose last place is 2^-41
    torch.testing.assert_close(scores.sum(-1), scores.sum(-1)[..., :1].expand(1, 1, 5),
                               rtol=0, atol=64 * 2.0**-41)  # fmt: skip


def test_rotation_is_that_of_the_definition():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[0, 1, 2, 3], [9, 4, 4, 100]])
    ours = rotate(x, positions, 500.0)
    for b in range(2):
        for t in range(4):
            for i in range(3):
                angle = positions[b, t] * torch.tensor(500.0, dtype=torch.float64) ** (-2 * i / 6)
                c, s = torch.cos(angle), torch.sin(angle)
                turned = torch.stack((c, -s, s, c)).view(2, 2) @ x[b, :, t, 2 * i : 2 * i + 2].mT
                torch.testing.assert_close(ours[b, :, t, 2 * i : 2 * i + 2].mT, turned)


# ------------------------------------------------------------------ the door


@pytest.mark.parametrize(
    ("tokens", "options", "error", "words"),
    [
        ([], {}, ValueError, "tokens must have shape"),
        ([[[1]]], {}, ValueError, "tokens must have shape"),
        ([1.5], {}, TypeError, "tokens must be integer"),
        ([1, 49152], {}, ValueError, "tokens must be between 0 and 49151, got 49152"),
        ([-1], {}, ValueError, "got -1"),
        (list(range(8193)), {}, ValueError, "context of 8192, got 8193"),
        ([1, 2], {"positions": torch.tensor([0])}, ValueError, "positions must have shape"),
        (
            [1, 2],
            {"positions": torch.tensor([0, 8192])},
            ValueError,
            "between 0 and 8191, got 8192",
        ),
        ([1, 2], {"positions": torch.tensor([0.0, 1.0])}, TypeError, "positions must be integer"),
        ([1, 2], {"mask": torch.ones(2, 2)}, TypeError, "mask must be boolean"),
        ([1, 2], {"mask": torch.ones(2, 3).bool()}, ValueError, "mask must have shape"),
        ([1, 2], {"mask": torch.zeros(2, 2).bool()}, ValueError, "see itself"),
        ([1, 2], {"lengths": [3]}, ValueError, "lengths must be between 0 and 2"),
        ([1, 2], {"lengths": [1, 1]}, ValueError, "lengths must have shape"),
        ([1, 2], {"lengths": [1.0]}, TypeError, "lengths must be integer"),
        ([1, 2], {"layers": 5}, ValueError, "layers must be between 0 and 4, got 5"),
    ],
)
def test_at_the_door(tokens, options, error, words):
    with pytest.raises(error, match=words):
        short_model()(tokens, **options)


def test_the_cache_at_its_door():
    model = short_model()
    cache = model.new_cache(1, 4)
    model([1, 2, 3], cache=cache)
    with pytest.raises(ValueError, match="the cache holds 4 tokens of a text, got 5"):
        model([1, 2], cache=cache)
    with pytest.raises(ValueError, match="attend is for passes without a cache"):
        model([1], cache=cache, attend=flash_attention)
    with pytest.raises(ValueError, match="a row for each of the cache's 1 texts, got 2"):
        model([[1], [2]], cache=cache)
    with pytest.raises(ValueError, match=r"lengths must be between 0 and \[3\], got \[4\]"):
        cache.rollback([4])
    with pytest.raises(ValueError, match="lengths must have shape"):
        cache.rollback([1, 1])
    with pytest.raises(ValueError, match="rows must be between 0 and 0"):
        cache.select([1])
    for path in ([[1, 0]], [[3]], [[0, 0]]):
        with pytest.raises(ValueError, match="does not fit"):
            cache.keep(torch.tensor(path), [0])
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        KeyValueCache(layers=1, batch=1, kv_heads=1, capacity=0, head_dim=2)


@pytest.mark.parametrize(
    ("x", "positions", "base", "error", "words"),
    [
        (torch.ones(1, 1, 2, 4).long(), torch.arange(2), 10.0, TypeError, "x must be floating"),
        (torch.ones(1, 2, 4), torch.arange(2), 10.0, ValueError, "x must have shape"),
        (torch.ones(1, 1, 2, 3), torch.arange(2), 10.0, ValueError, "even head_dim"),
        (torch.ones(1, 1, 2, 4), torch.arange(3), 10.0, ValueError, "positions must have shape"),
        (torch.ones(1, 1, 2, 4), torch.ones(2), 10.0, TypeError, "positions must be integer"),
        (torch.ones(1, 1, 2, 4), torch.arange(2), 0.0, ValueError, "base must be above 0"),
    ],
)
def test_rotation_at_its_door(x, positions, base, error, words):
    with pytest.raises(error, match=words):
        rotate(x, positions, base)
