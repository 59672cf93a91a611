"""The kernels of verification give the tokens of the reference, from the same uniforms."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.interpreter
pytest.importorskip("triton")
from pkg.algos.language_model import sampling_distribution  # noqa: E402
from pkg.algos.speculative_decoding import verify_chain, verify_tree  # noqa: E402
from pkg.algos.speculative_decoding.draws import draw  # noqa: E402
from tests.cuda import speculative_kernels  # noqa: E402
from tests.cuda.speculative_cases import OPTIONS, chain, launchers, logits, tree, uniforms  # noqa: E402

FILTERED = ("top_k", "top_p", "all")
FULL = {"temperature": 1.0, "top_k": None, "top_p": None}


def reference_chain(tokens, q, p, u, lengths, options, whole, *, drawn=True):
    laws = sampling_distribution(p, **options)
    drafts = sampling_distribution(q, **options) if drawn else None
    method = "block" if whole else "token"
    return verify_chain(
        tokens, drafts, laws, uniforms=u, lengths=lengths, method=method, validate=False
    )


def check_chain(case, options, *, whole, drawn=True):
    tokens, q, p, u, lengths = case
    expected = reference_chain(*case, options, whole, drawn=drawn)
    full = {**FULL, **options}
    found, accepted = launchers().verify_chain_logits(
        tokens, q if drawn else None, p, u, lengths, *full.values(), whole
    )
    assert torch.equal(accepted, expected.num_accepted)
    assert torch.equal(found, expected.tokens)
    return accepted


@pytest.mark.parametrize("whole", [False, True], ids=["token", "block"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_chain_from_logits(name, whole):
    """Blocks of the vocabulary, the last of them with a ragged end; drafts of several lengths.

    Three blocks are padded to four, which two need not be. The search for a filter's border takes the
    interpreter half a second a row, so those are small.
    """
    options = OPTIONS[name]
    batch, gamma, vocab = (2, 1, 300) if name in FILTERED else (4, 2, 4096 + 77)
    if name == "hot":
        batch, vocab = 3, 2 * 4096 + 77
    accepted = check_chain(chain(batch, gamma, vocab, options, seed=3), options, whole=whole)
    assert name in FILTERED or 0 < int(accepted.sum()) < 2 * batch


@pytest.mark.parametrize("whole", [False, True], ids=["token", "block"])
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "greedy"])
def test_the_number_at_which_a_token_is_refused(name, whole):
    """Just below it the token is kept, just above it refused: the weights are right to 1 in 10,000.

    Drawn numbers seldom fall where a wrong weight would show. The second token is always refused, so
    that in a block the first test decides.
    """
    options = OPTIONS[name]
    vocab = 120 if name in FILTERED else 2 * 4096 + 77  # three blocks of the vocabulary
    gamma = 2 if whole else 1
    _, q, p, *_ = chain(1, gamma, vocab, options, seed=13)
    laws, drafts = sampling_distribution(p, **options)[:, :-1], sampling_distribution(q, **options)
    tokens = (laws / drafts - 0.8).abs().nan_to_num(1.0).argmin(-1)  # four times in five, by itself
    lengths, last = torch.tensor([gamma]), 1 - 2.0**-53
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        u = torch.tensor([[middle, last, 0.5][: gamma + 1]], dtype=torch.float64)
        kept = reference_chain(tokens, q, p, u, lengths, options, whole).num_accepted
        low, high = (middle, high) if kept else (low, middle)
    assert 0.01 < low < 0.99
    sides = [[low * side, last, 0.5][: gamma + 1] for side in (0.9999, 1.0001)]
    u = torch.tensor(sides, dtype=torch.float64)
    case = (x.expand(2, *x.shape[1:]) for x in (tokens, q, p))
    tokens, q, p = (x.contiguous() for x in case)
    accepted = check_chain((tokens, q, p, u, lengths.expand(2)), options, whole=whole)
    assert accepted.tolist() == [1, 0]


@pytest.mark.parametrize("whole", [False, True], ids=["token", "block"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype, whole):
    options = {"temperature": 0.7}
    check_chain(chain(4, 2, 300, options, seed=9, dtype=dtype), options, whole=whole)


@pytest.mark.parametrize("whole", [False, True], ids=["token", "block"])
@pytest.mark.parametrize("gamma", [0, 1, 5])
def test_every_length_of_draft_and_drafts_that_were_not_drawn(gamma, whole):
    for vocab in (1, 40):
        case = chain(2, gamma, vocab, {}, seed=gamma + vocab)
        check_chain(case, {}, whole=whole)
        check_chain(case, {}, whole=whole, drawn=False)


@pytest.mark.parametrize("whole", [False, True], ids=["token", "block"])
def test_edges_of_a_chain(whole):
    """Equal laws, forbidden tokens, uniforms of 0 and just below 1, rows past the end that hold NaN."""
    p = logits(4, 3, 50, seed=1)
    p[:, :, 7] = -torch.inf
    tokens = torch.tensor([[1, 2], [7, 3], [4, 7], [5, 6]])
    top = torch.full((4, 3), 1 - 2.0**-53, dtype=torch.float64)
    lengths = torch.tensor([2, 2, 2, 1])
    case = tokens, p[:, :2].clone(), p, top, lengths
    accepted = check_chain(case, {}, whole=whole)
    assert accepted.tolist()[0] == 2
    check_chain(
        (tokens, logits(4, 2, 50, seed=2), p, torch.zeros_like(top), lengths), {}, whole=whole
    )
    p[3, 2], case[1][3, 1] = torch.nan, torch.nan
    found, _ = launchers().verify_chain_logits(*case[:2], p, top, lengths, *FULL.values(), whole)
    assert found[3, 2] == -1
    assert 0 <= found[3, 1] < 50


def test_filters_keep_ties_and_tiny_temperatures_do_not_overflow():
    """Small integers: many ties at every border; the reference keeps them all, and so must this."""
    rows = torch.randint(0, 4, (2, 200), generator=torch.Generator().manual_seed(0)).float()
    u = uniforms(2, seed=1)
    for options in (
        {"top_k": 1}, {"top_k": 30}, {"top_k": 199}, {"top_k": 400}, {"top_p": 0.05},
        {"top_p": 0.9}, {"top_k": 60, "top_p": 0.5}, {"temperature": 1e-6}, {"temperature": 0.0},
    ):  # fmt: skip
        full = {**FULL, **options}
        expected = draw(sampling_distribution(rows, **options), u)
        assert torch.equal(launchers().sample_logits(rows, u, *full.values()), expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_sampling_from_logits(name):
    rows = logits(2, 1200 if name in FILTERED else 4096 + 500, seed=5)
    u = uniforms(2, seed=6)
    rows[:, ::3] = -torch.inf
    full = {**FULL, **OPTIONS[name]}
    found = launchers().sample_logits(rows, u, *full.values())
    assert torch.equal(found, draw(sampling_distribution(rows, **OPTIONS[name]), u))


PARENTS = [-1, -1, -1, 0, 0, 1, 3, 5]


def check_tree(case, options, *, drawn=True):
    tokens, parents, q, p, u = case
    laws = sampling_distribution(p, **options)
    drafts = sampling_distribution(q, **options) if drawn else None
    expected = verify_tree(tokens, parents, drafts, laws, uniforms=u, validate=False)
    full = {**FULL, **options}
    depth = expected.path.shape[1]
    found, accepted, path = launchers().verify_tree_logits(
        tokens, parents, q if drawn else None, p, u, depth, *full.values()
    )
    assert torch.equal(accepted, expected.num_accepted)
    assert torch.equal(found, expected.tokens)
    assert torch.equal(path, expected.path)
    return accepted


@pytest.mark.parametrize("name", OPTIONS)
def test_a_tree_from_logits(name):
    if name in FILTERED:
        check_tree(tree(1, [-1, -1, 0], 300, OPTIONS[name], seed=11), OPTIONS[name])
        return
    accepted = check_tree(tree(3, PARENTS, 4096 + 55, OPTIONS[name], seed=11), OPTIONS[name])
    assert int(accepted.max()) >= 1


@pytest.mark.parametrize("parents", [[], [-1], [-1, 0, 1], [-1, -1, -1, -1]])
def test_other_trees_and_children_that_were_not_drawn(parents):
    for vocab in (4, 60)[: 1 + (len(parents) < 4)]:
        case = tree(2, parents, vocab, {}, seed=vocab)
        check_tree(case, {})
        check_tree(case, {}, drawn=False)


def siblings(p, q, options, drawn):
    """Three tokens below the root, and the number from which on each is refused after the others."""
    law = sampling_distribution(p, **options)
    draft = sampling_distribution(q, **options) if drawn else torch.ones_like(law)
    tokens, borders = [], []
    for _ in range(3):
        share = law / draft
        token = int((share - 0.6).abs().nan_to_num(1.0).argmin())
        tokens.append(token)
        borders.append(float(share[token]))
        if drawn:
            law = (law - draft).clamp_min(0)
            draft[token] = 0
            draft /= draft.sum()
        else:
            law[token] = 0
        law /= law.sum()
    return tokens, borders


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "copied"])
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "greedy"])
def test_the_number_at_which_a_sibling_is_refused(name, drawn):
    """What refusals leave is divided by its sum: just below the border kept, just above it refused."""
    options, vocab = OPTIONS[name], 120 if name in FILTERED else 4096 + 77
    _, parents, q, p, _ = tree(1, [-1, -1, -1], vocab, options, seed=17)
    tokens, borders = siblings(p[0, 0], q[0, 0], options, drawn)
    places = [place for place, border in enumerate(borders) if 1e-4 < border < 0.99]
    assert places[:2] == [0, 1]
    last = 1 - 2.0**-53
    rows = [
        [last] * place + [borders[place] * side] + [last] * (2 - place) + [0.5]
        for place in places
        for side in (0.9999, 1.0001)
    ]
    u = torch.tensor(rows, dtype=torch.float64)
    p, q, parents = (x.expand(len(rows), *x.shape[1:]).contiguous() for x in (p, q, parents))
    given = torch.tensor([tokens] * len(rows))
    accepted = check_tree((given, parents, q, p, u), options, drawn=drawn)
    assert accepted.tolist() == [1, 0] * len(places)


def test_one_child_at_the_largest_number():
    """Where p is q it is kept, however large the number is."""
    p = torch.zeros(1, 2, 5)
    tokens, parents = torch.tensor([[2]]), torch.tensor([[-1]])
    u = torch.full((1, 2), 1 - 2.0**-53, dtype=torch.float64)
    assert check_tree((tokens, parents, p.clone(), p, u), {}).tolist() == [1]


@pytest.mark.parametrize("vocab", [5, 4096 + 40])
def test_a_refusal_that_leaves_nothing(vocab):
    """Where p is q only a token that neither can give is refused; then p itself is drawn from."""
    p = logits(1, 2, vocab, seed=4).repeat(3, 1, 1)
    p[..., 2] = -torch.inf
    p[..., [0, -2, -1]] += 12  # nearly all of p is at its ends, in the first and the last block
    tokens, parents = torch.tensor([[2]] * 3), torch.tensor([[-1]] * 3)
    u = torch.tensor([[0.0, 0.02], [0.0, 0.9], [0.5, 0.02]], dtype=torch.float64)
    accepted = check_tree((tokens, parents, p.clone(), p, u), {})
    assert accepted.tolist() == [0, 0, 0]
    for whole in (False, True):
        case = tokens, p[:, :1].clone(), p, u, torch.tensor([1, 1, 1])
        assert check_chain(case, {}, whole=whole).tolist() == [0, 0, 0]


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "copied"])
def test_many_short_drafts_over_few_tokens(drawn):
    """With five tokens a draw often falls where another token's refusal would have left too much."""
    accepted = check_chain(chain(9, 3, 5, {}, seed=21), {}, whole=False, drawn=drawn)
    assert len(set(accepted.tolist())) > 2
    check_chain(chain(6, 3, 5, {}, seed=22), {}, whole=True, drawn=drawn)
    check_tree(tree(6, [-1, -1, 0, 1], 5, {}, seed=22), {}, drawn=drawn)


def test_steps_of_a_block_are_put_together_in_any_order():
    """A GPU scans in parallel, the interpreter from the left: x to min(bound, factor x), thrice."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(3, 64, generator=generator, dtype=torch.float64) + 0.5
    bounds = factors.clamp_max(1)
    out = torch.empty(4, 64, dtype=torch.float64)
    speculative_kernels.together_kernel[(1,)](factors, bounds, out, N=64)
    x = torch.ones(64, dtype=torch.float64)
    for factor, bound in zip(factors, bounds, strict=True):
        x = torch.minimum(bound, factor * x)
    for factor, bound in (out[:2], out[2:]):
        torch.testing.assert_close(torch.minimum(bound, factor), x, rtol=1e-15, atol=0)
        torch.testing.assert_close(factor, factors.prod(0), rtol=1e-15, atol=0)
        torch.testing.assert_close(bound, out[1], rtol=1e-15, atol=0)


@pytest.mark.parametrize("one", [1.0, 1 + 1e-9])  # at the total, or surely past it
@pytest.mark.parametrize("drawn", [False, True], ids=["copied", "drawn"])
def test_a_number_that_rounding_makes_1_gives_the_last_possible_token(drawn, one):
    """Sums of float64 differ in their last bit, so the goal may lie at the total or past it."""
    vocab = 4096 + 40
    p, q = logits(1, 2, vocab, seed=1), logits(1, 2, vocab, seed=2)
    p[..., 3000:] = -torch.inf  # the second block is empty, and the first one ends early
    laws, drafts = p.double().softmax(-1)[0, 0], q.double().softmax(-1)[0, 0]
    token = int((drafts - laws).argmax())  # refused by a number below 1
    u = torch.tensor([[1 - 2.0**-53, one]], dtype=torch.float64)
    rest = (laws - drafts).clamp_min(0) if drawn else laws * (torch.arange(vocab) != token)
    wanted = int(rest.nonzero()[-1])
    tokens, full = torch.tensor([[token]]), (1.0, None, None)
    found, _ = launchers().verify_chain_logits(
        tokens, q[:, :1] if drawn else None, p, u, torch.tensor([1]), *full, False
    )
    assert found.tolist() == [[wanted, -1]]
    found, accepted, _ = launchers().verify_tree_logits(
        tokens, torch.tensor([[-1]]), q if drawn else None, p, u, 1, *full
    )
    assert (found.tolist(), accepted.tolist()) == ([[wanted, -1]], [0])


def test_an_empty_batch():
    none = torch.zeros(0, 2, dtype=torch.int64)
    arguments = (
        none,
        None,
        torch.zeros(0, 3, 5),
        torch.zeros(0, 3),
        torch.zeros(0, dtype=torch.int64),
    )
    found, accepted = launchers().verify_chain_logits(*arguments, *FULL.values(), False)
    assert found.shape == (0, 3)
    assert accepted.shape == (0,)
