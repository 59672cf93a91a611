"""The confusion matrix against torchmetrics, bincount, scikit-learn and the loop most people write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, copy_bandwidth, measure
from pkg.algos.segmentation_metrics import confusion_matrix

#: Images, height, width, classes: VOC's size alone and in a batch, Cityscapes, ADE20K's classes.
SHAPES = ((1, 512, 512, 21), (16, 512, 512, 21), (1, 1024, 2048, 19), (1, 512, 512, 150))


def label_maps(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """Label maps as networks give them: blobs, and a tenth of the pixels wrong."""
    images, height, width, classes = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, classes, (images, 1, height // 32, width // 32), generator=generator)
    target = torch.nn.functional.interpolate(coarse.float(), (height, width))[:, 0].long()
    wrong = torch.rand(target.shape, generator=generator) < 0.1
    drawn = torch.randint(0, classes, target.shape, generator=generator)
    prediction = torch.where(wrong, drawn, target)
    return target.to(dtype).to(device), prediction.to(dtype).to(device)


def bincount(target: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """The usual line, without any validation: a label out of range is counted somewhere."""
    code = target.flatten().long() * classes + prediction.flatten().long()
    return torch.bincount(code, minlength=classes**2).view(classes, classes)


def numpy_bincount(target: Any, prediction: Any, classes: int) -> Any:
    """The same in NumPy."""
    code = target.ravel().astype(np.int64) * classes + prediction.ravel()
    return np.bincount(code, minlength=classes**2).reshape(classes, classes)


def numpy_loop(target: Any, prediction: Any, classes: int) -> Any:
    """Class by class, as in most answers to the question."""
    rows = [
        [np.sum((target == i) & (prediction == j)) for j in range(classes)] for i in range(classes)
    ]
    return np.array(rows)


def contenders(
    target: Tensor, prediction: Tensor, classes: int, device: str
) -> dict[str, Callable[[], Any]]:
    """Return every contender that this machine has; ours first."""
    found: dict[str, Callable[[], Any]] = {
        "ours": partial(confusion_matrix, target, prediction, classes),
        "torch.bincount": partial(bincount, target, prediction, classes),
    }
    try:
        from torchmetrics.functional.classification import multiclass_confusion_matrix as peer
    except ImportError:
        print("torchmetrics is not installed: left out")
    else:
        found["torchmetrics"] = partial(peer, prediction, target, classes)
        found["tm unchecked"] = partial(peer, prediction, target, classes, validate_args=False)
    if device == "cuda":
        return found
    t, p = target.numpy(), prediction.numpy()
    found["np.bincount"] = partial(numpy_bincount, t, p, classes)
    if target.numel() <= 2**18:  # a minute a call on the larger shapes
        if classes <= 32:
            found["numpy loop"] = partial(numpy_loop, t, p, classes)
        try:
            from sklearn.metrics import confusion_matrix as sklearn_matrix
        except ImportError:
            print("scikit-learn is not installed: left out")
        else:
            labels = np.arange(classes)
            found["scikit-learn"] = partial(sklearn_matrix, t.ravel(), p.ravel(), labels=labels)
    return found


def _same(ours: Any, theirs: Any) -> bool:
    return bool(np.array_equal(np.asarray(torch.as_tensor(ours).cpu()),
                               np.asarray(torch.as_tensor(theirs).cpu())))  # fmt: skip


def run(device: str, threads: tuple[int, ...], rounds: int) -> Iterator[Case]:
    """Measure every shape and label type; torchmetrics as shipped, and with validation off."""
    ceiling = copy_bandwidth() if device == "cuda" else None
    for shape in SHAPES:
        for dtype in (torch.int64, torch.uint8):
            for count in threads:
                target, prediction = label_maps(shape, dtype, device)
                classes = shape[3]
                name = f"{'x'.join(map(str, shape[:3]))}, {classes} classes, {str(dtype)[6:]}"
                case = measure(
                    name, contenders(target, prediction, classes, device), _same,
                    device=device, threads=count, rounds=rounds,
                )  # fmt: skip
                if ceiling is not None:
                    read = 2 * target.numel() * target.element_size()
                    case.notes["share of copy bandwidth"] = (
                        read / case.timings["ours"].median / ceiling
                    )
                yield case
