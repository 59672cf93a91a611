"""The exercises of the chapter "Segmentation metrics"."""

from __future__ import annotations

from typing import Any

import sympy as sp
import torch
from torch import Tensor

from pkg.algos import segmentation_metrics as metrics
from pkg.exercises import Exercise, ExerciseSet, Rejected, agrees, equivalent

exercises = ExerciseSet("segmentation_metrics")

D, u, v, R, P = sp.symbols("D u v R P", positive=True)
k, w = sp.symbols("k w", positive=True)


# ---------------------------------------------------------------- 1 IoU from Dice

exercises.add(
    Exercise(
        "iou_of_dice", "IoU from Dice",
        lambda answer: equivalent(D / (2 - D), answer, [D]),
        solution=D / (2 - D),
        wrong=(
            (D / (2 + D), "a sign is lost when the equation is solved for IoU"),
            (2 * D / (1 + D), "the map from IoU to Dice, applied the same way round again"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 2 IoU from precision and recall

exercises.add(
    Exercise(
        "iou_of_precision_and_recall", "IoU from precision and recall",
        lambda answer: equivalent(P * R / (P + R - P * R), answer, [P, R]),
        solution=P * R / (P + R - P * R),
        wrong=(
            (P * R / (P + R), "half of the harmonic mean, which is Dice / 2"),
            (P * R, "the product, as if the two errors were independent"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 3 means that disagree


def _check_orders(answer: Any) -> None:
    try:
        first, second = [[float(score) for score in scores] for scores in answer]
    except (TypeError, ValueError) as error:
        raise Rejected("two lists of IoUs are asked for, one per method") from error
    if len(first) != len(second) or not first:
        raise Rejected("both methods need the same number of classes, at least one")
    if not all(0 <= score <= 1 for score in first + second):
        raise Rejected("an IoU lies between 0 and 1")

    def mean(scores: list[float]) -> float:
        return sum(scores) / len(scores)

    def dice(scores: list[float]) -> list[float]:
        return [2 * score / (1 + score) for score in scores]

    by_iou = mean(first) - mean(second)
    by_dice = mean(dice(first)) - mean(dice(second))
    if by_iou <= 1e-9 or by_dice >= -1e-9:
        raise Rejected(
            f"the first method leads by {by_iou:+.3f} in mean IoU and by {by_dice:+.3f} in mean "
            "Dice; the signs should be + and -"
        )


exercises.add(
    Exercise(
        "means_that_disagree", "Two methods that mean IoU and mean Dice order differently",
        _check_orders,
        solution=[[1.0, 0.1], [0.5, 0.5]],
        wrong=(
            ([[0.9, 0.5], [0.8, 0.4]], "better in every class: every mean agrees"),
            ([[0.6], [0.5]], "one class: Dice rises with IoU, so the order is the same"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 4 a useless prediction


def _check_useless(answer: Any) -> None:
    cm = torch.as_tensor(answer)
    if cm.shape != (2, 2):
        raise Rejected(f"a 2 x 2 matrix is asked for, not shape {tuple(cm.shape)}")
    accuracy, mean = float(metrics.pixel_accuracy(cm)), float(metrics.mean_iou(cm))
    if not (accuracy >= 0.99 and mean < 0.5):
        raise Rejected(f"its pixel accuracy is {accuracy:.3f} and its mean IoU {mean:.3f}")


exercises.add(
    Exercise(
        "useless", "99 % of the pixels right, mean IoU below one half", _check_useless,
        solution=[[995, 0], [5, 0]],
        wrong=(
            ([[990, 0], [0, 10]], "a rare class, but found: nothing is wrong"),
            ([[500, 5], [5, 490]], "1 % errors, but between two large classes"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 5 IoU in code


def class_iou(cm: Tensor) -> Tensor:
    """Return the IoU of each class, NaN where a class is absent."""
    both = cm.diagonal().double()
    return both / (cm.sum(0) + cm.sum(1) - cm.diagonal())


def diagonal_counted_twice(cm: Tensor) -> Tensor:
    """Divide by the sum of both sizes: half of Dice."""
    return cm.diagonal().double() / (cm.sum(0) + cm.sum(1))


def absent_is_zero(cm: Tensor) -> Tensor:
    """Guard the division by adding a small number."""
    both = cm.diagonal().double()
    return both / (cm.sum(0) + cm.sum(1) - both + 1e-15)


def only_the_truth(cm: Tensor) -> Tensor:
    """Divide by the pixels of the truth: accuracy."""
    return cm.diagonal().double() / cm.sum(1)


_MATRICES = [
    (torch.tensor([[3, 1], [0, 4]]),),
    (torch.tensor([[2, 1, 0], [1, 5, 0], [0, 0, 0]]),),
    (torch.tensor([[0, 2], [3, 0]]),),
]
exercises.add(
    Exercise(
        "class_iou", "The IoU of each class, in code",
        lambda answer: agrees(answer, _MATRICES, metrics.iou),
        solution=class_iou,
        wrong=(
            (diagonal_counted_twice, "the common part is in both sums"),
            (absent_is_zero, "a small number in the denominator keeps the division safe"),
            (only_the_truth, "the columns are forgotten"),
        ),
    )
)  # fmt: skip


# ---------------------------------------------------------------- 6 the table in code


def count_table(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """Return the confusion matrix; truth 255 is void."""
    seen = truth != 255
    code = truth[seen] * classes + prediction[seen]
    return torch.bincount(code, minlength=classes**2).reshape(classes, classes)


def transposed(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """Swap the roles of the two maps."""
    seen = truth != 255
    code = prediction[seen] * classes + truth[seen]
    return torch.bincount(code, minlength=classes**2).reshape(classes, classes)


def void_by_prediction(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """Clamp the truth, and look for void in the prediction."""
    seen = prediction != 255
    code = truth.clamp(max=classes - 1)[seen] * classes + prediction[seen]
    return torch.bincount(code, minlength=classes**2).reshape(classes, classes)


_LABELS = [
    (torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 2]), 3),
    (torch.tensor([0, 255, 1, 255]), torch.tensor([1, 1, 1, 0]), 2),
]
exercises.add(
    Exercise(
        "count_table", "The confusion matrix in three lines",
        lambda answer: agrees(
            answer, _LABELS,
            lambda *case: metrics.confusion_matrix(*case, ignore_index=255),
        ),
        solution=count_table,
        wrong=(
            (transposed, "rows and columns change places, and so do the two kinds of error"),
            (void_by_prediction, "void is looked for on the wrong side"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 7 a prediction of one class

exercises.add(
    Exercise(
        "frequency_of_the_lazy", "FWIoU of a prediction that calls everything background",
        lambda answer: equivalent(w**2, answer, [w, k]),
        solution=w**2,
        wrong=(
            (w, "that is its pixel accuracy"),
            (w / (k + 1), "that is its mean IoU"),
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------- 8 why one half


def _check_threshold(answer: Any) -> None:
    """Compare with every prediction that covers two segments of 1 to 8 pixels."""
    if isinstance(answer, bool) or not isinstance(answer, int | float | sp.Rational):
        raise Rejected("a number is asked for")
    overlaps = [(a, b) for a in range(1, 9) for b in range(1, 9)]
    first_double = max(min(a / (a + b), b / (a + b)) for a, b in overlaps)
    if float(answer) > first_double + 1e-12:
        raise Rejected("two segments cannot both have so much")
    if not float(answer) >= first_double - 1e-12:
        raise Rejected("a prediction that covers two equal segments has more with both")


exercises.add(
    Exercise(
        "smallest_threshold", "The largest IoU that two true segments can both have",
        _check_threshold,
        solution=sp.Rational(1, 2),
        wrong=(
            (sp.Rational(1, 3), "three segments, but the question is about two"),
            (1, "the IoU of a perfect match, which only one can have"),
        ),
    )
)  # fmt: skip
