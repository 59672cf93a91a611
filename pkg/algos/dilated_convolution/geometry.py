"""Sizes: of a kernel with gaps, of its output, of the field that a stack of layers sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pkg.arguments import whole


def effective_kernel_size(kernel_size: int, dilation: int) -> int:
    """Return how far a dilated kernel reaches, its first and last tap included.

    Parameters
    ----------
    kernel_size
        Taps along the axis.
    dilation
        Distance between neighbouring taps; 1 is an ordinary convolution.

    Returns
    -------
    int
        k + (k - 1)(r - 1), in samples.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an int of at least 1.

    Notes
    -----
    Chen et al. (2017), section 3.1. Ledger: `dilated_convolution:effective_kernel`.

    Examples
    --------
    >>> effective_kernel_size(3, 2), effective_kernel_size(3, 18), effective_kernel_size(1, 18)
    (5, 37, 1)
    """
    k, r = whole("kernel_size", kernel_size, 1), whole("dilation", dilation, 1)
    return k + (k - 1) * (r - 1)


def output_size(
    size: int,
    kernel_size: int,
    *,
    dilation: int = 1,
    stride: int = 1,
    padding: int | Sequence[int] = 0,
) -> int:
    """Return how many outputs a convolution has along one axis.

    Parameters
    ----------
    size
        Samples of the input along the axis.
    kernel_size, dilation, stride
        The layer.
    padding
        Zeros on each side, or a pair (before, after).

    Returns
    -------
    int
        The number of places where the whole kernel fits on the padded input, `stride` apart.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an int in range, or if the kernel does not fit once: the message says
        how long it is. Nothing is rounded up to 0.

    Notes
    -----
    Ledger: `dilated_convolution:output_size`. A formula that forgets the dilation was published in
    PaddlePaddle/Paddle#5242, one with a misplaced bracket in torch/nn#945.

    Examples
    --------
    >>> output_size(65, 3, dilation=12, padding=12)
    65
    >>> output_size(35, 3, dilation=2, padding=1)
    33
    """
    whole("size", size, 0)
    reach = effective_kernel_size(kernel_size, dilation)
    whole("stride", stride, 1)
    before, after = _sides(padding)
    room = size + before + after
    if room < reach:
        raise ValueError(
            f"size {size} with padding ({before}, {after}) is shorter than the kernel: "
            f"{kernel_size} taps at dilation {dilation} reach over {reach}"
        )
    return (room - reach) // stride + 1


def _sides(padding: int | Sequence[int]) -> tuple[int, int]:
    pair = padding if isinstance(padding, tuple | list) else (padding, padding)
    if len(pair) != 2:
        raise TypeError(f"padding must be an int or a pair (before, after), got {padding!r}")
    return whole("padding", pair[0], 0), whole("padding", pair[1], 0)


def input_sizes(
    outputs: int,
    kernel_size: int,
    *,
    dilation: int = 1,
    stride: int = 1,
    padding: int | Sequence[int] = 0,
) -> range:
    """Return every input size that gives `outputs` outputs: `stride` neighbouring sizes.

    Parameters
    ----------
    outputs
        The wanted size of the output, at least 1.
    kernel_size, dilation, stride, padding
        The layer, as for `output_size`.

    Returns
    -------
    range
        The sizes; fewer than `stride` of them where padding alone would do for the others, since no
        input is shorter than 0.

    Raises
    ------
    TypeError, ValueError
        As `output_size`; or if `outputs` is less than 1.

    Notes
    -----
    This is why a transposed convolution needs `output_padding`: from the output size alone, the
    input size is known only up to `stride` choices. Ledger: `dilated_convolution:output_size_rule`.

    Examples
    --------
    >>> input_sizes(33, 3, dilation=2, stride=2, padding=2)
    range(65, 67)
    """
    whole("outputs", outputs, 1)
    whole("stride", stride, 1)
    before, after = _sides(padding)
    shortest = (outputs - 1) * stride + effective_kernel_size(kernel_size, dilation)
    shortest -= before + after
    return range(max(shortest, 0), max(shortest + stride, 0))


def receptive_field(layers: Iterable[Sequence[int]]) -> int:
    """Return how many neighbouring inputs one output of a stack can see.

    Parameters
    ----------
    layers
        From the input on, each (kernel_size,), (kernel_size, dilation) or
        (kernel_size, dilation, stride). Pooling counts as a layer.

    Returns
    -------
    int
        From the first to the last input that reaches the output, in samples, both included. What
        lies between need not be covered: see `coverage`.

    Raises
    ------
    TypeError, ValueError
        If a layer is no such tuple of ints of at least 1.

    Notes
    -----
    Ledger: `dilated_convolution:receptive_field`; for dilations 1, 2, 4, ...
    `dilated_convolution:receptive_field_doubling`.

    Examples
    --------
    >>> receptive_field([(3,), (3,), (3,)])
    7
    >>> receptive_field([(3, 1), (3, 2), (3, 4)])
    15
    >>> receptive_field([(3, 1, 2), (3, 1, 2), (3, 1)])
    15
    """
    field, step = 1, 1
    for index, layer in enumerate(layers):
        kernel, dilation, stride = _layer(index, layer)
        field += (effective_kernel_size(kernel, dilation) - 1) * step
        step *= stride  # one step here is so many steps of the input
    return field


def _layer(index: int, layer: Sequence[int]) -> tuple[int, int, int]:
    if not isinstance(layer, tuple | list) or not 1 <= len(layer) <= 3:
        raise TypeError(
            f"layers[{index}] must be (kernel_size, dilation, stride), the last two optional, "
            f"got {layer!r}"
        )
    kernel, dilation, stride = (*layer, 1, 1)[:3] if len(layer) < 3 else layer
    names = ("kernel_size", "dilation", "stride")
    for name, value in zip(names, (kernel, dilation, stride), strict=True):
        whole(f"{name} of layers[{index}]", value, 1)
    return kernel, dilation, stride
