"""Published bugs of dilated convolution."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import conv2d, pad

from book.recordings import dilated_convolution as recording
from pkg.algos.dilated_convolution import (
    ASPP,
    dilated_conv2d,
    output_size,
    receptive_field,
)
from pkg.algos.segmentation_metrics import confusion_matrix, mean_iou
from pkg.data import voc_masks
from tests.museum import Exhibit, Museum


def forgets_the_rate(size, kernel_size, *, dilation, stride, padding):
    """Gives the size of an undilated layer."""
    return (size + sum(padding) - kernel_size) // stride + 1


def bracket_misplaced(size, kernel_size, *, dilation, stride, padding):
    """Takes r (K - 1) away and adds 1, where r (K - 1) + 1 is to be taken away."""
    return (size + sum(padding) - dilation * (kernel_size - 1) + 1) // stride + 1


def ignores_the_rate(x, w, b, *, dilation, stride, padding):
    """Convolves without gaps, and gives the shape of the dilated layer."""
    right = dilated_conv2d(x, w, b, dilation=dilation, stride=stride, padding=padding)
    wrong = conv2d(x, w, b, stride, padding)
    return wrong[:, :, : right.shape[2], : right.shape[3]]


def padding_forgets_the_rate(x, w, b, *, dilation, stride, padding):
    """Puts a `rate`-th part of the zeros before the image, and all the others behind it."""
    top, left = (zeros // rate for zeros, rate in zip(padding, dilation, strict=True))
    padded = pad(x, (left, 2 * padding[1] - left, top, 2 * padding[0] - top))
    return conv2d(padded, w, b, stride, 0, dilation)


class NormalisedMean(ASPP):
    """Normalises the branch of the mean over the batch, as the other branches."""

    pooled: Any

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.pooled = nn.Sequential(self.pooled, nn.BatchNorm2d(self.pooled.out_channels))


def _cost_of_the_rate() -> str:
    right = output_size(65, 3, dilation=12)
    wrong = forgets_the_rate(65, 3, dilation=12, stride=1, padding=(0, 0))
    return (
        f"a layer at rate 12 without padding makes {right} × {right} of a map of 65 × 65, and is "
        f"announced with {wrong} × {wrong}: {wrong**2 / right**2:.1f} times as many values as come."
    )


def _cost_of_the_bracket() -> str:
    right = wrong = 64
    for _ in range(3):
        right = output_size(right, 3, dilation=2, stride=2, padding=1)
        wrong = bracket_misplaced(wrong, 3, dilation=2, stride=2, padding=(1, 1))
    return (
        f"three layers with stride 2 make {right} × {right} of 64 × 64, and {wrong} × {wrong} by the "
        f"manual. With the 512 channels of the thread, {512 * wrong**2:,} values are asked of a map "
        f"that has {512 * right**2:,}, and the network stops there."
    )


@cache
def _trained(rate: int | None = None) -> tuple[nn.Sequential, float]:
    """Return the recorded network with the rates 1, 2, 3 (or `rate` everywhere) and its mean IoU."""
    network = recording.mask_network((1, 2, 3)).eval()
    with np.load(recording.HERE / "dilated_convolution.npz") as stored:
        names = {name.removeprefix("1-2-3/"): name for name in stored if "1-2-3/" in name}
        network.load_state_dict({k: torch.from_numpy(stored[v]) for k, v in names.items()})
    for layer in network.modules():
        if rate is not None and isinstance(layer, nn.Conv2d):
            layer.dilation = (rate, rate)
    return network, recording.score_masks(network, voc_masks()[2])


def _cost_of_the_fast_path() -> str:
    fields = [receptive_field([(3, rate) for rate in rates]) for rates in ((1, 2, 3), (1, 1, 1))]
    return (
        f"the trained network of this chapter with rates 1, 2, 3 sees {fields[1]} × {fields[1]} pixels "
        f"instead of {fields[0]} × {fields[0]}, and its mean IoU falls from {_trained()[1]:.0f} to "
        f"{_trained(1)[1]:.0f} %."
    )


def _cost_of_the_padding() -> str:
    mask = torch.from_numpy(voc_masks()[2].mask > 0)
    middle = torch.zeros(1, 1, 3, 3)
    middle[..., 1, 1] = 1  # gives the image itself
    moved = padding_forgets_the_rate(
        mask[None, None].float(), middle, None, dilation=(6, 6), stride=1, padding=(6, 6)
    )
    score: Any = mean_iou(confusion_matrix(mask.long(), moved[0, 0].long(), 2))
    return (
        "at rate 6 a layer moves what it gives by 5 pixels up and 5 to the left. The true mask of "
        f"the chapter's third photograph, so moved, scores {100 * float(score):.0f} % instead of 100."
    )


def _cost_of_the_normalised_mean() -> str:
    torch.manual_seed(0)
    branch = NormalisedMean(3, 64, (1, 2)).train().pooled
    photographs = [torch.from_numpy(sample.image).double() / 255 for sample in voc_masks()]
    means = torch.stack([image.mean((0, 1)) for image in photographs]).float()[..., None, None]
    try:
        branch(means[:1])
    except ValueError as error:
        message = str(error).split(" when ")[0]
    pairs = means[:2], means[1:3]
    shares = [float((branch(pair).abs() > 0.9).float().mean()) for pair in pairs]
    return (
        f'with one image training stops ("{message}"). With two photographs it goes on, and at least '
        f"{100 * min(shares):.0f} % of the branch's numbers are within a tenth of -1 or 1, whatever "
        "the photographs show."
    )


museum = Museum(
    "dilated_convolution",
    Exhibit(
        name="forgets_the_rate",
        title="The output size that forgets the rate",
        project="PaddlePaddle",
        threads=(
            ("Paddle #5242", "https://github.com/PaddlePaddle/Paddle/issues/5242"),
            ("pytorch #14099", "https://github.com/pytorch/pytorch/issues/14099"),
        ),
        story="""PaddlePaddle's Python layer computed the size of the output from the number of taps
        alone. The same slip stood in the documentation of PyTorch's transposed convolutions, and
        people had copied the formula into their code.""",
        entry="output_size",
        variant=forgets_the_rate,
        cost=_cost_of_the_rate,
    ),
    Exhibit(
        name="bracket_misplaced",
        title="A bracket in the wrong place",
        project="Torch 7",
        threads=(("torch/nn #945", "https://github.com/torch/nn/issues/945"),),
        story="""The manual of Torch 7 subtracted $r(K-1)$ and *added* the 1. The code was right. A
        reader of the manual built three layers with stride 2, expected 8 × 8 and got 7 × 7.""",
        entry="output_size",
        variant=bracket_misplaced,
        cost=_cost_of_the_bracket,
    ),
    Exhibit(
        name="ignores_the_rate",
        title="A fast path that ignores the rate",
        project="Deeplearning4j",
        threads=(
            (
                "deeplearning4j #8320",
                "https://github.com/deeplearning4j/deeplearning4j/issues/8320",
            ),
        ),
        story="""Deeplearning4j handed its convolutions to a fast library and did not hand over the
        dilation. All shapes were right where the padding was "same", so nothing failed.""",
        entry="conv2d",
        variant=ignores_the_rate,
        cost=_cost_of_the_fast_path,
    ),
    Exhibit(
        name="padding_forgets_the_rate",
        title="A padding that is not multiplied by the rate",
        project="darknet",
        threads=(("darknet #4836", "https://github.com/AlexeyAB/darknet/issues/4836"),),
        story="""darknet has two ways to convolve. With cuDNN the padding was multiplied by the rate,
        without cuDNN it was not. Shapes were the same, so a network trained on one machine gave
        other results on the next.""",
        entry="conv2d",
        variant=padding_forgets_the_rate,
        cost=_cost_of_the_padding,
    ),
    Exhibit(
        name="normalised_mean",
        title="ASPP that cannot be trained on one image",
        project="pytorch-deeplab-xception, mmsegmentation",
        threads=(
            (
                "pytorch-deeplab-xception #41",
                "https://github.com/jfzhang95/pytorch-deeplab-xception/issues/41",
            ),
            (
                "mmsegmentation #272",
                "https://github.com/open-mmlab/mmsegmentation/issues/272",
            ),
        ),
        story="""The branch of the mean has one number per channel and image, and is normalised over
        the batch like the others. With one image there is nothing to normalise over. The usual
        advice is a larger batch. `ASPP` of this chapter has no normalisation there.""",
        entry="aspp_mean",
        variant=NormalisedMean,
        cost=_cost_of_the_normalised_mean,
    ),
)
