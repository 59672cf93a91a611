"""Choosing rates: the rule of hybrid dilated convolution, and every list without holes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pkg.arguments import whole


def hdc_max_gap(rates: Sequence[int]) -> int:
    """Return M₂ of hybrid dilated convolution, the "maximum distance between two nonzero values".

    Parameters
    ----------
    rates
        The dilation of each layer, from the input on; at least two.

    Returns
    -------
    int
        M₂ from M_n = r_n and M_i = max(M_{i+1} - 2 r_i, 2 r_i - M_{i+1}, r_i). The paper's rule asks
        for M₂ <= K. It is the rule as published; `has_gridding` is the fact.

    Raises
    ------
    TypeError, ValueError
        If `rates` is not a list of at least two ints of at least 1.

    Notes
    -----
    Wang et al. (2018), equation 2, which writes the middle term M_{i+1} - 2 (M_{i+1} - r_i).
    For K = 3, r_1 = 1 and rates that do not fall, the rule is right; the chapter shows where it is
    not. Ledger: `dilated_convolution:hdc_recursion`.

    Examples
    --------
    >>> hdc_max_gap([1, 2, 5]), hdc_max_gap([1, 2, 9])
    (2, 5)
    """
    if not isinstance(rates, tuple | list) or len(rates) < 2:
        raise TypeError(f"rates must be a list of at least two ints, got {rates!r}")
    for index, rate in enumerate(rates):
        whole(f"rates[{index}]", rate, 1)
    gap = rates[-1]
    for rate in reversed(rates[1:-1]):
        gap = max(gap - 2 * rate, gap - 2 * (gap - rate), rate)
    return gap


def hole_free_rates(kernel_size: int, depth: int, max_rate: int) -> list[tuple[int, ...]]:
    """Return every list of rates without holes, widest receptive field first.

    The order of the layers does not change which inputs are reached (a product commutes), so each
    list stands here once, in rising order.

    Parameters
    ----------
    kernel_size
        Taps of every layer, at least 2.
    depth
        Number of layers.
    max_rate
        The largest rate allowed.

    Returns
    -------
    list of tuples
        By falling receptive field, then in the order of numbers.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an int in range.

    Notes
    -----
    In rising order, a list has no hole exactly if each rate is at most 1 more than what the layers
    before it span: r_1 = 1 and r_(i+1) <= 1 + (K - 1)(r_1 + ... + r_i).
    Ledger: `dilated_convolution:widest_field`, `dilated_convolution:no_holes`.

    Examples
    --------
    >>> hole_free_rates(3, 3, 9)[:3]
    [(1, 3, 9), (1, 3, 8), (1, 3, 7)]
    """
    whole("kernel_size", kernel_size, 2)
    whole("depth", depth, 1)
    whole("max_rate", max_rate, 1)
    found = list(_rising(kernel_size, depth, max_rate, ()))
    return sorted(found, key=lambda rates: (-sum(rates), rates))


def _rising(
    kernel_size: int, depth: int, max_rate: int, start: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    if len(start) == depth:
        yield start
        return
    lowest = start[-1] if start else 1
    highest = min(1 + (kernel_size - 1) * sum(start), max_rate)
    for rate in range(lowest, highest + 1):
        yield from _rising(kernel_size, depth, max_rate, (*start, rate))
