"""Microscaling (MX): a block of small numbers that share one power of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pkg.algos.mixed_precision.formats import FloatFormat, power_of_two
from pkg.algos.mixed_precision.quantize import quantize
from pkg.algos.mixed_precision.rounding import Rounding
from pkg.algos.mixed_precision.ulps import check_format, check_numbers
from pkg.arguments import whole

# E8M0: eight bits of exponent and nothing else. Its largest pattern is NaN.
SCALE_BIAS = 127
SCALE_NAN = 255


@dataclass(frozen=True)
class MXTensor:
    """A tensor in a microscaling format.

    Parameters
    ----------
    elements
        Values of `element_format`, before the scale; the shape of what was quantised, float32.
    scale_codes
        E8M0 patterns, uint8: the scale is 2^(code - 127), and 255 is NaN. One for each block along
        `dim`.
    element_format, block_size, dim
        As they were given.
    dtype
        The type that `dequantize` returns.
    """

    elements: Tensor
    scale_codes: Tensor
    element_format: FloatFormat
    block_size: int
    dim: int
    dtype: torch.dtype

    @property
    def scales(self) -> Tensor:
        """The scales, float64, shape of `scale_codes`."""
        exponent = self.scale_codes.to(torch.int64) - SCALE_BIAS
        return torch.where(self.scale_codes == SCALE_NAN, torch.nan, power_of_two(exponent))

    @property
    def bits_per_element(self) -> float:
        """The bits of an element and its share of the scale's eight."""
        return self.element_format.bits + 8 / self.block_size

    def dequantize(self) -> Tensor:
        """Return elements times scales, in the type that was quantised."""
        size = self.elements.shape[self.dim]
        wide = self.scales.repeat_interleave(self.block_size, self.dim).narrow(self.dim, 0, size)
        return (self.elements.double() * wide).to(self.dtype)


def mx_quantize(
    x: Tensor, element_format: FloatFormat, block_size: int = 32, *, dim: int = -1,
    rounding: Rounding = "nearest_even", generator: torch.Generator | None = None,
) -> MXTensor:  # fmt: skip
    """Quantise to a microscaling format: blocks of `block_size` elements share a power of two.

    Parameters
    ----------
    x
        Floating point, at least one axis.
    element_format
        The format of the elements: FP8_E4M3, FP8_E5M2, FP6_E3M2, FP6_E2M3 and FP4_E2M1 are those of
        the standard.
    block_size
        k; 32 in the standard. The last block may be shorter.
    dim
        The axis along which blocks are cut: the one that a matrix product sums over.
    rounding, generator
        How elements are rounded: see `quantize`.

    Returns
    -------
    MXTensor
        With `dequantize()`, which returns x's type.

    Raises
    ------
    TypeError, ValueError, IndexError
        If an argument is not what it should be.

    Notes
    -----
    OCP Microscaling Formats v1.0, section 6.3: the scale is the largest power of two not above the
    block's largest magnitude, over the largest power of two of the element format; elements that
    still overflow saturate. So the block's largest element can lose up to a quarter of its value in
    FP4 (7.99 becomes 6), which is what the standard's rule costs. A block with NaN or an infinity
    has the scale NaN. Ledger: `mixed_precision:mx_scale`, `mixed_precision:mx_element`.

    Examples
    --------
    >>> from pkg.algos.mixed_precision import FP4_E2M1, mx_quantize
    >>> mx = mx_quantize(torch.tensor([0.1, -0.2, 0.35, 0.0]), FP4_E2M1, block_size=4)
    >>> mx.scales.tolist(), mx.elements.tolist()
    ([0.0625], [1.5, -3.0, 6.0, 0.0])
    >>> mx.dequantize()
    tensor([ 0.0938, -0.1875,  0.3750,  0.0000])
    """
    check_numbers("x", x)
    check_format(element_format)
    whole("block_size", block_size, 1)
    if x.ndim == 0:
        raise ValueError("x must have an axis to cut into blocks, got a scalar")
    rows = x.detach().movedim(dim, -1).to(torch.float64)
    count = rows.shape[-1]
    blocks = -(-count // block_size)
    padded = torch.nn.functional.pad(rows, (0, blocks * block_size - count))
    padded = padded.unflatten(-1, (blocks, block_size))  # (..., blocks, block_size)
    largest = padded.abs().amax(-1)
    broken = ~largest.isfinite()  # a maximum keeps NaN
    _, binary = torch.frexp(torch.where(broken, 1.0, largest))
    exponent = binary.to(torch.int64) - 1 - element_format.largest_exponent
    exponent = torch.where(largest == 0, -SCALE_BIAS, exponent).clamp(-SCALE_BIAS, SCALE_BIAS)
    scaled = padded * power_of_two(-exponent).unsqueeze(-1)
    scaled = torch.where(broken.unsqueeze(-1), 0.0, scaled)
    elements = quantize(
        scaled, element_format, rounding=rounding, saturate=True, generator=generator
    )
    elements = elements.flatten(-2)[..., :count].movedim(-1, dim).to(torch.float32)
    codes = torch.where(broken, SCALE_NAN, exponent + SCALE_BIAS).to(torch.uint8)
    place = dim if dim >= 0 else dim + x.ndim
    return MXTensor(elements, codes.movedim(-1, dim), element_format, block_size, place, x.dtype)
