"""Which inputs a stack of dilated layers reaches, and how often: an exact count.

A layer with K taps at rate r is the polynomial 1 + z^r + ... + z^((K-1)r), and a stack is the product
of its layers' polynomials. The coefficient of z^s counts the ways in which the input at offset s
reaches the output. A coefficient of 0 inside the receptive field is a hole: the gridding effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pkg.algos.dilated_convolution.arguments import per_axis
from pkg.arguments import whole

Rates = Sequence[int] | Sequence[Sequence[int]]


def coverage(
    kernel_size: int | Sequence[int], rates: Rates, *, strides: Rates | None = None
) -> Tensor:
    """Count the ways in which each input of the receptive field reaches one output.

    Parameters
    ----------
    kernel_size
        Taps of every layer: an int for one axis, a pair (height, width) for an image.
    rates
        The dilation of each layer, from the input on. For an image each may be a pair.
    strides
        The stride of each layer, from the input on; 1 everywhere if not given. The layers behind a
        stride of s step s times as far on the input.

    Returns
    -------
    Tensor
        int64, shape (R,) or (R_height, R_width), where R is the receptive field: the count at each
        offset from the first input that is reached. For an image it is the product of the counts
        along its axes.

    Raises
    ------
    TypeError, ValueError
        If an argument is not made of ints of at least 1, the lengths differ, or a count would not
        fit in 63 bits.

    Notes
    -----
    Ledger: `dilated_convolution:coverage`, `dilated_convolution:coverage_recursion`.

    Examples
    --------
    >>> coverage(3, [1, 2])
    tensor([1, 1, 2, 1, 2, 1, 1])
    >>> coverage(3, [2, 2])
    tensor([1, 0, 2, 0, 3, 0, 2, 0, 1])
    >>> coverage((1, 2), [1, 1]).tolist()
    [[1, 2, 1]]
    """
    axes = [_counts(kernel, steps) for kernel, steps in _axes(kernel_size, rates, strides)]
    if math.prod(max(counts) for counts in axes) >= 2**63:
        raise ValueError("a count does not fit in 63 bits: the stack has too many paths")
    found = torch.tensor(axes[0])
    return found if len(axes) == 1 else found[:, None] * torch.tensor(axes[1])


def has_gridding(
    kernel_size: int | Sequence[int], rates: Rates, *, strides: Rates | None = None
) -> bool:
    """Tell whether an input inside the receptive field never reaches the output.

    Parameters
    ----------
    kernel_size, rates, strides
        The stack, as for `coverage`.

    Returns
    -------
    bool
        True if the product polynomial lacks an exponent. This is exact: no sampling, no rounding.

    Raises
    ------
    TypeError, ValueError
        As `coverage`, except that no count can be too large.

    Notes
    -----
    Wang et al. (2018), section 3.2, name the effect. Ledger: `dilated_convolution:no_holes`.

    Examples
    --------
    >>> has_gridding(3, [2, 2, 2]), has_gridding(3, [1, 2, 5]), has_gridding(3, [1, 2, 9])
    (True, False, True)
    >>> has_gridding(2, [1, 1], strides=[2, 1]), has_gridding(2, [1, 2], strides=[2, 1])
    (False, True)
    """
    for kernel, steps in _axes(kernel_size, rates, strides):
        reached = 1  # bit s: the input at offset s is reached
        for step in steps:
            reached = _spread(reached, kernel, step)
        if reached & (reached + 1):  # a zero below the highest one
            return True
    return False


def _spread(reached: int, kernel: int, step: int) -> int:
    found = 0
    for tap in range(kernel):
        found |= reached << (tap * step)
    return found


def _counts(kernel: int, steps: Sequence[int]) -> list[int]:
    """Return the coefficients of the product of (1 + z^step + ... + z^((kernel-1) step))."""
    counts = [1]
    for step in steps:
        product = [0] * (len(counts) + (kernel - 1) * step)
        for tap in range(kernel):
            for offset, count in enumerate(counts):
                product[offset + tap * step] += count
        counts = product
    return counts


def _axes(
    kernel_size: int | Sequence[int], rates: Rates, strides: Rates | None
) -> Iterator[tuple[int, list[int]]]:
    """Yield for each axis (kernel, distance of neighbouring taps in inputs, layer by layer)."""
    axes = 1 if isinstance(kernel_size, int) else 2
    kernels = per_axis("kernel_size", kernel_size, axes)
    layers = _layers("rates", rates, axes)
    jumps = [[1] * axes] * len(layers) if strides is None else _layers("strides", strides, axes)
    if len(jumps) != len(layers):
        raise ValueError(f"strides must have one stride per rate, {len(layers)}, got {len(jumps)}")
    for axis, kernel in enumerate(kernels):
        steps, jump = [], 1
        for rate, stride in zip(layers, jumps, strict=True):
            steps.append(rate[axis] * jump)
            jump *= stride[axis]
        yield kernel, steps


def _layers(name: str, values: Rates, axes: int) -> list[list[int]]:
    if not isinstance(values, tuple | list) or not values:
        raise TypeError(f"{name} must be a list with one entry per layer, got {values!r}")
    return [per_axis(f"{name}[{i}]", value, axes) for i, value in enumerate(values)]


def field_moments(
    kernel_size: int, rates: Sequence[int], *, strides: Sequence[int] | None = None
) -> tuple[float, float]:
    """Return mean and variance of the offset from which a random path through the stack comes.

    This is how wide the *effective* receptive field is: most paths come from near its middle.

    Parameters
    ----------
    kernel_size, rates, strides
        The stack along one axis, as for `coverage`.

    Returns
    -------
    (float, float)
        Mean, in inputs from the first one reached; variance, in inputs squared.

    Raises
    ------
    TypeError, ValueError
        As `coverage`.

    Notes
    -----
    Luo et al. (2016). Ledger: `dilated_convolution:field_mean`, `dilated_convolution:field_variance`.

    Examples
    --------
    >>> field_moments(3, [1, 2, 5])
    (8.0, 20.0)
    """
    whole("kernel_size", kernel_size, 1)
    _, steps = next(_axes(kernel_size, rates, strides))
    mean = sum(steps) * (kernel_size - 1) / 2
    variance = sum(step * step for step in steps) * (kernel_size**2 - 1) / 12
    return mean, variance


def useful_taps(size: int, kernel_size: int, dilation: int) -> Tensor:
    """Count, for each output of a "same" convolution, the taps that fall on the map.

    The others fall on the zeros of the padding and contribute nothing.

    Parameters
    ----------
    size
        Samples of the map along the axis.
    kernel_size, dilation
        The layer; its stride is 1.

    Returns
    -------
    Tensor
        int64, shape (size,). For an image, multiply the counts of its two axes.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an int of at least 1.

    Notes
    -----
    Chen et al. (2017), section 3.3 and figure 4. Ledger: `dilated_convolution:useful_taps`.

    Examples
    --------
    >>> useful_taps(7, 3, 2)
    tensor([2, 2, 3, 3, 3, 2, 2])
    >>> useful_taps(7, 3, 7)
    tensor([1, 1, 1, 1, 1, 1, 1])
    """
    whole("size", size, 1)
    whole("kernel_size", kernel_size, 1)
    whole("dilation", dilation, 1)
    first = torch.arange(size) - dilation * (kernel_size - 1) // 2
    taps = first[:, None] + dilation * torch.arange(kernel_size)  # (size, k)
    return ((taps >= 0) & (taps < size)).sum(1)
