"""The exercises of the chapter "Coupling flows"."""

from __future__ import annotations

from typing import Any

import sympy as sp
import torch
from torch import Tensor

from pkg.exercises import Exercise, ExerciseSet, Rejected, equivalent

exercises = ExerciseSet("coupling_flows")

a, b, x2 = sp.symbols("a b x_2", real=True)
nats, dims, bins = sp.symbols("N D n", positive=True)
h, w, c, d = sp.symbols("h w c d", positive=True)
p, q = sp.symbols("p q", positive=True)
ulps, level, size = sp.symbols("u l S", positive=True)


# ---------------------------------------------------------------- 1 a composition

exercises.add(
    Exercise(
        "composition", "The log-determinant of two couplings, one after the other",
        lambda answer: equivalent(a + b * x2 * sp.exp(a), answer, [a, b, x2]),
        solution=a + b * x2 * sp.exp(a),
        wrong=(
            (a + b * x2, "the second coupling is taken at x, but it sees what the first one made"),
            (a * b * x2 * sp.exp(a), "determinants multiply, so their logarithms add"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 2 the inverse, in code


def undo(z: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and the log-determinant of the inverse, one number for each sample."""
    return (z - t) / s.exp(), -s.flatten(1).sum(1)


def forward_sign(z: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-determinant of the forward map."""
    return (z - t) / s.exp(), s.flatten(1).sum(1)


def shift_after_scale(z: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Undo both steps in the order in which they were made."""
    return z / s.exp() - t, -s.flatten(1).sum(1)


def one_number(z: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Add up the whole batch."""
    return (z - t) / s.exp(), -s.sum()


def _check_undo(answer: Any) -> None:
    if not callable(answer):
        raise Rejected("a function of z, s and t is asked for")
    draw = torch.Generator().manual_seed(0)
    for shape in ((3, 2), (2, 3, 2, 5)):
        x, s, t = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(3))
        try:
            found, log_det = answer(x * s.exp() + t, s, t)
        except TypeError as error:
            raise Rejected("the function must give a pair, x and the log-determinant") from error
        if not isinstance(found, Tensor) or found.shape != x.shape:
            raise Rejected(f"for z of shape {shape} the first result must be a tensor like z")
        if not torch.allclose(found, x, rtol=0, atol=1e-12):
            raise Rejected(f"x comes back wrong by up to {float((found - x).abs().max()):.3g}")
        if not isinstance(log_det, Tensor) or log_det.shape != shape[:1]:
            raise Rejected(
                f"for a batch of {shape[0]} the log-determinant must have {shape[0]} numbers"
            )
        # What the inverse does to a volume, by the volume of its Jacobian.
        jacobians = [torch.diag((-s[i]).exp().flatten()) for i in range(len(s))]
        exact = torch.stack([torch.linalg.slogdet(j).logabsdet for j in jacobians])
        if not torch.allclose(log_det, exact, rtol=0, atol=1e-12):
            raise Rejected(
                f"the Jacobian of the inverse has log-determinant {float(exact[0]):.4g}, "
                f"the answer says {float(log_det[0]):.4g}"
            )


exercises.add(
    Exercise(
        "undo", "Undo an affine coupling, in code", _check_undo, solution=undo,
        wrong=(
            (forward_sign, "the sign of the forward map, a bug that was published more than once"),
            (shift_after_scale, "what was done last must be undone first"),
            (one_number, "a likelihood belongs to a sample, not to a batch"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 3 bits per dimension

exercises.add(
    Exercise(
        "bits", "Bits per dimension from nats on [0, 1)",
        lambda answer: equivalent(
            (nats + dims * sp.log(bins)) / (dims * sp.log(2)), answer, [nats, dims, bins]
        ),
        solution=(nats + dims * sp.log(bins)) / (dims * sp.log(2)),
        wrong=(
            (nats / (dims * sp.log(2)), "the width of a bin is forgotten: off by 8 bits for 256 bins"),
            (
                (nats - dims * sp.log(bins)) / (dims * sp.log(2)),
                "a bin is narrow, so its probability is below the density: the cost must rise",
            ),
            ((nats + sp.log(bins)) / (dims * sp.log(2)), "each of the D numbers has its own bin"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 4 the 1 × 1 convolution

exercises.add(
    Exercise(
        "convolution", "The log-determinant of a 1 × 1 convolution on an image",
        lambda answer: equivalent(h * w * d, answer, [h, w, c, d]),
        solution=h * w * d,
        wrong=(
            (d, "the matrix is applied at every pixel, not once"),
            (h * w * c * d, "log|det W| already speaks for all channels"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 5 its weights

exercises.add(
    Exercise(
        "weights", "How many numbers are learnt in W = P L (U + diag s)",
        lambda answer: equivalent(c**2, answer, [c]),
        solution=c * (c - 1) / 2 + c * (c - 1) / 2 + c,
        wrong=(
            (c * (c + 1), "both triangles with their diagonals: those of L are 1, and s is U's"),
            (c * (c - 1), "the diagonal s is learnt too"),
            (2 * c**2, "the permutation P is drawn once and stays"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 6 how many couplings


def _check_fewest(answer: Any) -> None:
    if isinstance(answer, bool) or not isinstance(answer, int) or not 1 <= answer <= 50:
        raise Rejected("a whole number of couplings is asked for")

    def reach(couplings: int) -> Tensor:
        """Which of 6 outputs depends on which input, where halves take turns."""
        known = torch.eye(6, dtype=torch.bool)
        for number in range(couplings):
            kept = (torch.arange(6) < 3) == (number % 2 == 0)
            known[~kept] |= known[kept].any(0)
        return known

    if not bool(reach(answer).all()):
        missing = (~reach(answer)).nonzero()[0].tolist()
        raise Rejected(
            f"after {answer} couplings output {missing[0]} still does not depend on input {missing[1]}"
        )
    if bool(reach(answer - 1).all()):
        raise Rejected(f"it is enough, but so are {answer - 1}")


exercises.add(
    Exercise(
        "fewest", "The fewest couplings after which every output depends on every input",
        _check_fewest, solution=3,
        wrong=(
            (2, "every number was changed once, but not every number has seen its own half"),
            (4, "each half changed twice: one time more than needed"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 7 what dequantisation costs

exercises.add(
    Exercise(
        "gap", "What even dequantisation loses on a bin with two densities",
        lambda answer: equivalent(
            sp.log((p + q) / 2) - (sp.log(p) + sp.log(q)) / 2, answer, [p, q]
        ),
        solution=sp.log((p + q) / 2) - (sp.log(p) + sp.log(q)) / 2,
        wrong=(
            (
                (sp.log(p) + sp.log(q)) / 2 - sp.log((p + q) / 2),
                "the bound lies below the likelihood, so what is lost is above 0",
            ),
            (
                sp.log(p + q) - (sp.log(p) + sp.log(q)) / 2,
                "each half of the bin has the width 1/2: equal densities must lose nothing",
            ),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 8 a bound for the scale


def _check_bound(answer: Any) -> None:
    try:
        given = sp.sympify(answer)
    except (sp.SympifyError, TypeError, AttributeError) as error:
        raise Rejected(f"this is not an expression: {answer!r}") from error
    if not isinstance(given, sp.Expr):
        raise Rejected(f"this is not an expression: {answer!r}")
    strange = given.free_symbols - {ulps}
    if strange:
        raise Rejected(f"it uses {', '.join(sorted(map(str, strange)))}, which is not given")
    for allowed in (6, 16, 100):
        found = sp.N(given.subs(ulps, allowed), 30)
        if not (found.is_real and found.is_finite):
            raise Rejected(f"for {allowed} ulps it gives {found}, no real number")
        cost = float(4 + sp.exp(found))
        if abs(cost - allowed) > 1e-9:
            raise Rejected(
                f"for {allowed} ulps it gives {float(found):.4g}, where a reconstruction is off by "
                f"up to {cost:.4g} ulps"
            )


exercises.add(
    Exercise(
        "scale_bound", "The largest log-scale whose reconstruction is off by at most u ulps",
        _check_bound, solution=sp.log(ulps - 4),
        wrong=(
            (sp.log(ulps), "the roundings that happen at any scale are left out"),
            (ulps - 4, "that bounds the scale, not its logarithm"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 9 multi-scale

exercises.add(
    Exercise(
        "leaving", "How many of S numbers leave after level l of a multi-scale flow",
        lambda answer: equivalent(size / 2**level, answer, [size, level]),
        solution=size / 2**level,
        wrong=(
            (size / 4**level, "a squeeze moves numbers into channels; none of them is lost"),
            (size / 2 ** (level - 1), "that many arrive at level l; half of them leave"),
            (size / 2, "from the second level on, half of what is left leaves, not half of all"),
        ),
    )
)  # fmt: skip
