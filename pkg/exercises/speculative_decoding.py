"""The exercises of the chapter "Speculative decoding"."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import sympy as sp
import torch

from pkg.algos.speculative_decoding import best_gamma, chain_law, total_variation, verify_chain
from pkg.exercises import Exercise, ExerciseSet, Rejected, agrees, equivalent

exercises = ExerciseSet("speculative_decoding")

alpha, c, gamma, a, b, k = sp.symbols("alpha c gamma a b k", positive=True)


def _laws(vocab: int, seed: int) -> tuple[list[float], list[float]]:
    draw = random.Random(seed)
    rows = [[draw.randint(0, 9) for _ in range(vocab)] for _ in range(2)]
    rows = [[part + (not any(row)) for part in row] for row in rows]
    return tuple([part / sum(row) for part in row] for row in rows)  # type: ignore[return-value]


_PAIRS = [_laws(vocab, seed) for seed, vocab in enumerate((2, 2, 3, 4, 5, 7))]
_PAIRS += [([0.5, 0.5], [0.5, 0.5]), ([1.0, 0.0], [0.0, 1.0])]

# ---------------------------------------------------------------- 1 acceptance of two tokens

exercises.add(
    Exercise(
        "two_tokens", "Chance of acceptance for a vocabulary of two",
        lambda answer: equivalent(1 - sp.Abs(a - b), answer, [a, b]),
        solution=1 - sp.Abs(a - b),
        wrong=(
            (a * b + (1 - a) * (1 - b), "the chance that independent draws agree"),
            (sp.Min(1, a / b), "the chance of one token, not averaged over drafts"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 2 acceptance, in code


def acceptance(p: list[float], q: list[float]) -> float:
    """Return the chance that a draft from q is accepted as one of p."""
    return sum(min(x, y) for x, y in zip(p, q, strict=True))


def chance_of_agreement(p: list[float], q: list[float]) -> float:
    """Two independent draws agree."""
    return sum(x * y for x, y in zip(p, q, strict=True))


def averaged_over_the_target(p: list[float], q: list[float]) -> float:
    """The ratio is averaged with the wrong weights."""
    return sum(x * min(1.0, x / y) for x, y in zip(p, q, strict=True) if y > 0)


def _half_distance(p: list[float], q: list[float]) -> float:
    return 1 - sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2


exercises.add(
    Exercise(
        "acceptance", "The chance of acceptance of any two laws",
        lambda answer: agrees(answer, _PAIRS, _half_distance),
        solution=acceptance,
        wrong=(
            (chance_of_agreement, "the draft is compared with a fresh sample of the target"),
            (averaged_over_the_target, "the draft is drawn from q, so q is the weight"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 3 the residual, in code


def residual_law(p: list[float], q: list[float]) -> list[float]:
    """Return the law to draw from after a rejection; p itself where none can happen."""
    rest = [max(x - y, 0.0) for x, y in zip(p, q, strict=True)]
    return [x / sum(rest) for x in rest] if sum(rest) else p


def keeps_the_target(p: list[float], q: list[float]) -> list[float]:
    """The target's law."""
    return p


def takes_the_distance(p: list[float], q: list[float]) -> list[float]:
    """Absolute differences."""
    rest = [abs(x - y) for x, y in zip(p, q, strict=True)]
    return [x / sum(rest) for x in rest] if sum(rest) else p


def _what_is_missing(p: list[float], q: list[float]) -> list[float]:
    taken = [min(x, y) for x, y in zip(p, q, strict=True)]
    missing = 1 - sum(taken)
    if missing <= 1e-12:
        return p
    return [(x - y) / missing for x, y in zip(p, taken, strict=True)]


exercises.add(
    Exercise(
        "residual", "The law after a rejection",
        lambda answer: agrees(answer, _PAIRS, _what_is_missing),
        solution=residual_law,
        wrong=(
            (keeps_the_target, "what the draft gives too much of is given once more"),
            (takes_the_distance, "tokens that the draft gives too much of come back"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 4 break even

exercises.add(
    Exercise(
        "break_even", "The largest cost at which drafts of two tokens do not lose",
        lambda answer: equivalent((alpha + alpha**2) / 2, answer, [alpha]),
        solution=(alpha + alpha**2) / 2,
        wrong=(
            (alpha, "the answer for drafts of one token"),
            (1 + alpha + alpha**2, "the tokens of a step, which must first pay for the step"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 5 the best length, in code


def best_length(chance: float, cost: float) -> int:
    """Return the number of draft tokens with the largest gain, for chance < 1 and cost > 0."""
    gains = [
        (1 - chance ** (length + 1)) / ((1 - chance) * (length * cost + 1)) for length in range(400)
    ]
    return gains.index(max(gains))


def longest_that_gains(chance: float, cost: float) -> int:
    """The last length that is faster than none."""
    gains = [
        (1 - chance ** (length + 1)) / ((1 - chance) * (length * cost + 1)) for length in range(400)
    ]
    return max((length for length, gain in enumerate(gains) if gain > 1), default=0)


def until_a_token_costs_more(chance: float, cost: float) -> int:
    """Goes on while the chance of the next token exceeds its cost."""
    length = 0
    while chance ** (length + 1) > cost:
        length += 1
    return length


exercises.add(
    Exercise(
        "best_length", "The best length of a draft",
        lambda answer: agrees(
            answer, [(0.75, 0.02), (0.6, 0.1), (0.9, 0.05), (0.3, 0.4), (0.5, 0.45)], best_gamma
        ),
        solution=best_length,
        wrong=(
            (longest_that_gains, "it is still faster than plain decoding, but not the fastest"),
            (until_a_token_costs_more, "a token must pay at the rate reached so far, not at rate 1"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 6 a lossless verifier, in code


def verify_one(token: int, q: list[float], p: list[float], u: float, v: float) -> tuple[int, bool]:
    """Return the token that leaves and whether it is the draft; u tests, v draws."""
    if u * q[token] < p[token]:
        return token, True
    rest = [max(x - y, 0.0) for x, y in zip(p, q, strict=True)]
    running, total = 0.0, sum(rest)
    for index, weight in enumerate(rest):
        running += weight
        if running > v * total:
            return index, False
    raise AssertionError("v must be below 1")


def compares_the_wrong_way(
    token: int, q: list[float], p: list[float], u: float, v: float
) -> tuple[int, bool]:
    """The ratio is upside down."""
    if u * p[token] < q[token]:
        return token, True
    return verify_one(token, q, p, 1.0, v)


def draws_from_the_target(
    token: int, q: list[float], p: list[float], u: float, v: float
) -> tuple[int, bool]:
    """A rejected token is replaced by one from the target's whole law."""
    if u * q[token] < p[token]:
        return token, True
    running = 0.0
    for index, weight in enumerate(p):
        running += weight
        if running > v:
            return index, False
    return len(p) - 1, False


def _check_lossless(answer: Callable[..., tuple[int, bool]]) -> None:
    """Put the answer into a chain of one, and ask the exact law."""
    if not callable(answer):
        raise Rejected(f"this is not a function: {answer!r}")

    def verify(tokens: Any, q: Any, p: Any, *, uniforms: Any) -> Any:
        right = verify_chain(tokens, q, p, uniforms=uniforms)
        rows = []
        for x, law_q, law_p, u in zip(
            tokens.tolist(), q.tolist(), p.tolist(), uniforms.tolist(), strict=True
        ):
            token, kept = answer(x[0], law_q[0], law_p[0], u[0], u[1])
            bonus = verify_chain(
                torch.empty(1, 0, dtype=torch.int64), None, torch.tensor([[law_p[1]]], dtype=torch.float64),
                uniforms=torch.tensor([[u[1]]], dtype=torch.float64),
            )  # fmt: skip
            rows.append([token, int(bonus.tokens)] if kept else [token, -1])
        return type(right)(torch.tensor(rows), right.num_accepted)

    for p, q in (((2, 5, 1), (4, 2, 2)), ((4, 2, 2), (4, 2, 2)), ((0, 4, 4), (4, 4, 0))):
        target = [Fraction(part, 8) for part in p]
        draft = [Fraction(part, 8) for part in q]
        ends = [y / x for x, y in zip(target, draft, strict=True) if x]
        law = chain_law(verify, lambda _, t=target: t, lambda _, d=draft: d, 1, also=ends)  # type: ignore[misc]
        distance = total_variation(law, lambda _, t=target: t)  # type: ignore[misc]
        if distance:
            raise Rejected(
                f"for p = {p} and q = {q} in eighths its law is {distance} away from the target"
            )


exercises.add(
    Exercise(
        "verify_one", "A lossless verifier of one token",
        _check_lossless,
        solution=verify_one,
        wrong=(
            (compares_the_wrong_way, "the test has p and q exchanged"),
            (draws_from_the_target, "the replacement comes from p, not from the residual"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 7 two children

exercises.add(
    Exercise(
        "two_children", "Two fixed children of a node, of target probabilities a and b",
        lambda answer: equivalent(a + b, answer, [a, b], shares=True),
        solution=a + (1 - a) * b / (1 - a),
        wrong=(
            (a + (1 - a) * b, "the second is tested against p, not against what the first has left"),
            (a * b, "both would have to be accepted"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 8 variance

exercises.add(
    Exercise(
        "variance_of_two", "The variance of the tokens of a step with one draft token",
        lambda answer: equivalent(alpha * (1 - alpha), answer, [alpha]),
        solution=alpha * (1 - alpha),
        wrong=(
            (alpha, "the mean of what is added"),
            (alpha / (1 - alpha) ** 2, "the variance of an endless draft"),
        ),
    )
)  # fmt: skip
