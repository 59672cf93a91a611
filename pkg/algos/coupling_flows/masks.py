"""Masks: which part of a sample a coupling keeps, and which part it changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pkg.algos.coupling_flows.arguments import batch, channels
from pkg.arguments import whole


class ChannelMask(nn.Module):
    """Keeps some channels (or features of a vector) and lets the others be changed.

    Calling it on x gives the mask itself, which is 1 where x is kept.

    Parameters
    ----------
    kept
        One bool for each channel: True where the coupling leaves it alone and its network reads it.

    Raises
    ------
    TypeError
        If `kept` is not a sequence of bools.
    ValueError
        If it keeps nothing (the network would have no input), or keeps everything (the coupling
        would do nothing).

    Notes
    -----
    Dinh et al. (2014), section 3.2, and (2017), section 3.4. Ledger: `coupling_flows:channel_mask`,
    `coupling_flows:alternating_mask`.

    Examples
    --------
    >>> mask = ChannelMask.first_half(5)
    >>> mask.kept.tolist()
    [True, True, False, False, False]
    >>> seen, rest = mask.split(torch.arange(5.0)[None])
    >>> seen.tolist(), rest.tolist()
    ([[0.0, 1.0]], [[2.0, 3.0, 4.0]])
    """

    kept: Tensor
    _seen: Tensor
    _rest: Tensor
    _back: Tensor

    def __init__(self, kept: Sequence[bool]) -> None:
        super().__init__()
        flags = list(kept)
        for place, flag in enumerate(flags):
            if not isinstance(flag, bool):
                raise TypeError(f"kept[{place}] must be a bool, got {flag!r}")
        if not any(flags) or all(flags):
            what = "change" if flags and all(flags) else "keep"
            raise ValueError(
                f"kept must keep at least one channel and change at least one; "
                f"of {len(flags)} channels it leaves nothing to {what}"
            )
        seen = [place for place, flag in enumerate(flags) if flag]
        rest = [place for place, flag in enumerate(flags) if not flag]
        self._first = flags == sorted(flags, reverse=True)  # kept ones first: no copies needed
        # Where the changed channels begin, if they are neighbours: then one kernel does it all.
        self.start = rest[0] if rest[-1] - rest[0] == len(rest) - 1 else None
        self.register_buffer("kept", torch.tensor(flags), persistent=False)
        self.register_buffer("_seen", torch.tensor(seen), persistent=False)
        self.register_buffer("_rest", torch.tensor(rest), persistent=False)
        self.register_buffer("_back", torch.tensor(seen + rest).argsort(), persistent=False)

    @classmethod
    def first_half(cls, channels: int, *, swap: bool = False) -> ChannelMask:
        """Keep the first half of the channels (the smaller one); with `swap`, change just these."""
        whole("channels", channels, 2)
        return cls([(place < channels // 2) != swap for place in range(channels)])

    @classmethod
    def alternating(cls, channels: int, *, swap: bool = False) -> ChannelMask:
        """Keep channels 0, 2, 4, ...; with `swap`, change just these."""
        whole("channels", channels, 2)
        return cls([(place % 2 == 0) != swap for place in range(channels)])

    @property
    def changed(self) -> int:
        """How many channels are changed."""
        return len(self._rest)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mask with the shape of one sample of x: 1 where it is kept."""
        channels(x, len(self.kept), "ChannelMask")
        shape = (-1,) + (1,) * (x.ndim - 2)
        return self.kept.view(shape).expand(x.shape[1:]).to(x.dtype)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network sees, (N, K, ...), and what will be changed, (N, C - K, ...)."""
        channels(x, len(self.kept), "ChannelMask")
        if self._first:
            return x[:, : len(self._seen)], x[:, len(self._seen) :]
        return x.index_select(1, self._seen), x.index_select(1, self._rest)

    def join(self, x: Tensor, rest: Tensor) -> Tensor:
        """Return x with its changed channels replaced by `rest`."""
        if self._first:
            return torch.cat((x[:, : len(self._seen)], rest), 1)
        return torch.cat((x.index_select(1, self._seen), rest), 1).index_select(1, self._back)

    def core(self, rest: Tensor) -> None:
        """Return the mask for elementwise work on `rest`: none, since all of it is changed."""


class CheckerboardMask(nn.Module):
    """Keeps the pixels of one colour of a checkerboard, in every channel.

    Calling it on x gives the mask itself, which is 1 where x is kept.

    Parameters
    ----------
    swap
        Keep the pixels with i + j odd, where i + j even is kept otherwise.

    Raises
    ------
    TypeError
        If `swap` is not a bool.
    ValueError
        When used on something that is no batch of images, or on images of one pixel: nothing would
        be left to keep or to change.

    Notes
    -----
    Dinh et al. (2017), section 3.4. The network sees all pixels, those to be changed as 0.
    Ledger: `coupling_flows:checkerboard_mask`.

    Examples
    --------
    >>> CheckerboardMask()(torch.zeros(1, 1, 2, 3)).tolist()
    [[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]
    """

    def __init__(self, *, swap: bool = False) -> None:
        super().__init__()
        if not isinstance(swap, bool):
            raise TypeError(f"swap must be a bool, got {swap!r}")
        self.swap = swap
        self.start = 0  # every channel has parameters

    def forward(self, x: Tensor) -> Tensor:
        """Return the mask with the shape of one sample of x: 1 where it is kept."""
        return self.core(x).expand(x.shape[1:]).to(x.dtype)

    def core(self, x: Tensor) -> Tensor:
        """Return the mask as bools, (H, W): True where a pixel is kept."""
        batch(x, axes=4)
        height, width = x.shape[2:]
        if height * width < 2:
            raise ValueError(
                f"a checkerboard needs at least two pixels, got images of {height} x {width}: "
                "it would leave nothing to keep or to change"
            )
        rows = torch.arange(height, device=x.device)[:, None]
        columns = torch.arange(width, device=x.device)
        return (rows + columns) % 2 == int(self.swap)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x with the pixels to be changed as 0, and x itself."""
        return torch.where(self.core(x), x, 0), x

    def join(self, x: Tensor, rest: Tensor) -> Tensor:
        """Return x with its changed pixels replaced by those of `rest`."""
        return torch.where(self.core(x), x, rest)


Mask = ChannelMask | CheckerboardMask
