"""Layers that mix or rescale channels: permutations, ActNorm, the 1 × 1 convolution, scalings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pkg.algos.coupling_flows.arguments import channels, event_shape, samples
from pkg.algos.coupling_flows.arguments import generator as checked_generator
from pkg.algos.coupling_flows.transform import Transform, per_sample
from pkg.arguments import whole


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Give one value for each channel the axes of x."""
    return values.view(-1, *(1,) * (x.ndim - 2))


def _positions(x: Tensor) -> int:
    """Return H · W for images and 1 for vectors: how often each channel occurs."""
    return math.prod(x.shape[2:])


class Permutation(Transform):
    """Reorders channels (or features): output channel i is input channel order[i].

    Parameters
    ----------
    order
        Each of 0 .. C - 1 once.

    Raises
    ------
    ValueError
        If `order` is no permutation; from `forward`, if x has another number of channels.

    Notes
    -----
    Its matrix has determinant 1 or -1, so log_det is 0. Ledger: `coupling_flows:permutation`.

    Examples
    --------
    >>> Permutation.reverse(3)(torch.tensor([[1.0, 2.0, 3.0]]))[0].tolist()
    [[3.0, 2.0, 1.0]]
    """

    order: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        places = [int(place) for place in order]
        if not places or sorted(places) != list(range(len(places))):
            raise ValueError(f"order must name each of 0..C-1 once, got {places}")
        self.register_buffer("order", torch.tensor(places))

    @classmethod
    def reverse(cls, channels: int) -> Permutation:
        """Return the permutation that turns the channels round."""
        return cls(range(whole("channels", channels, 1) - 1, -1, -1))

    @classmethod
    def random(cls, channels: int, *, generator: torch.Generator | None = None) -> Permutation:
        """Return a permutation drawn from `generator`."""
        return cls(torch.randperm(whole("channels", channels, 1), generator=generator).tolist())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reordered x and zeros, shape (N,)."""
        channels(x, len(self.order), "Permutation")
        return x.index_select(1, self.order), per_sample(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return z in its old order and zeros, shape (N,)."""
        channels(z, len(self.order), "Permutation", "z")
        return z.index_select(1, self.order.argsort()), per_sample(z)


class Squeeze(Transform):
    """Trades space for channels: (N, C, H, W) to (N, C f², H / f, W / f).

    Parameters
    ----------
    factor
        f, at least 2.

    Raises
    ------
    ValueError
        From `forward`, if x is no batch of images or f does not divide both H and W; from
        `inverse`, if f² does not divide the channels.

    Notes
    -----
    It only moves numbers about, so log_det is 0. Output channel (c f + i) f + j holds the pixels of
    channel c at offset (i, j) of each f × f square. Dinh et al. (2017), section 3.6. Ledger:
    `coupling_flows:squeeze`.

    Examples
    --------
    >>> Squeeze()(torch.arange(4.0).reshape(1, 1, 2, 2))[0].flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = whole("factor", factor, 2)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (C f², H / f, W / f)."""
        f = self.factor
        if len(shape) != 3 or shape[1] % f or shape[2] % f:
            raise ValueError(
                f"x must be images whose height and width {f} divides, (N, C, H, W); "
                f"got samples of shape {shape}"
            )
        return shape[0] * f * f, shape[1] // f, shape[2] // f

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, C f², H / f, W / f) and zeros, shape (N,)."""
        channels, height, width = self.output_shape(tuple(x.shape[1:]))
        f = self.factor
        squares = x.unflatten(3, (width, f)).unflatten(2, (height, f))  # (N, C, H, f, W, f)
        # F.pixel_unshuffle does the same, but leaves an empty batch in its old shape.
        return squares.permute(0, 1, 3, 5, 2, 4).reshape(
            len(x), channels, height, width
        ), per_sample(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, C / f², H f, W f) and zeros, shape (N,)."""
        if z.ndim != 4 or z.shape[1] % self.factor**2:
            raise ValueError(
                f"z must have shape (N, C, H, W) with C a multiple of {self.factor**2}, "
                f"got {tuple(z.shape)}"
            )
        f = self.factor
        count, height, width = z.shape[1] // f**2, *z.shape[2:]
        squares = z.unflatten(1, (count, f, f)).permute(0, 1, 4, 2, 5, 3)  # (N, C, H, f, W, f)
        return squares.reshape(len(z), count, height * f, width * f), per_sample(z)


class Scaling(Transform):
    """NICE's last layer: each number of a sample has a scale of its own, z = x · exp(log_scale).

    Parameters
    ----------
    shape
        The shape of one sample, (D,) or (C, H, W).

    Raises
    ------
    TypeError, ValueError
        If `shape` is none; from `forward` and `inverse`, if the samples have another.

    Notes
    -----
    Dinh et al. (2014), section 3.3. Additive couplings keep volume; this is where the density gets
    its different widths. Ledger: `coupling_flows:scaling`.

    Examples
    --------
    >>> Scaling(3)(torch.ones(2, 3))[1].tolist()
    [0.0, 0.0]
    """

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(event_shape("shape", shape)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and Σ log_scale for each sample."""
        samples(x, tuple(self.log_scale.shape), "Scaling")
        return x * self.log_scale.exp(), per_sample(x) + self.log_scale.sum()

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and -Σ log_scale for each sample."""
        samples(z, tuple(self.log_scale.shape), "Scaling", "z")
        return z / self.log_scale.exp(), per_sample(z) - self.log_scale.sum()


class ActNorm(Transform):
    """A scale and a shift for each channel, z = exp(log_scale) · (x + bias), set from the first batch.

    Parameters
    ----------
    channels
        C.

    Raises
    ------
    TypeError, ValueError
        If `channels` is no int of at least 1; from `forward`, if x has another number, and from
        `initialise` if a channel of the batch is constant or not finite.

    Notes
    -----
    The first batch in training mode (or a call of `initialise`) sets bias to minus the mean and
    exp(log_scale) to one over the standard deviation (of the population: divided by the count) of
    each channel; after that both are trained like any weight. Under DistributedDataParallel call
    `Flow.initialise` before wrapping, so that all processes begin alike. Kingma and Dhariwal
    (2018), section 3.1. Ledger: `coupling_flows:actnorm`, `coupling_flows:actnorm_init`,
    `coupling_flows:actnorm_shift`.

    Examples
    --------
    >>> z, log_det = ActNorm(1)(torch.tensor([[-2.0], [2.0]]))
    >>> z.flatten().tolist(), [round(v, 4) for v in log_det.tolist()]
    ([-1.0, 1.0], [-0.6931, -0.6931])
    """

    initialised: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        whole("channels", channels, 1)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialised", torch.tensor(False))

    def initialise(self, x: Tensor) -> Tensor:
        """Set bias and log_scale so that each channel of x gets mean 0 and variance 1."""
        channels(x, len(self.bias), "ActNorm")
        with torch.no_grad():
            values = x.detach().transpose(0, 1).flatten(1).double()  # (C, N · H · W)
            mean, deviation = values.mean(1), values.std(1, correction=0)
            bad = ~(deviation.isfinite() & (deviation > 0))
            if bool(bad.any()):
                where = int(bad.nonzero()[0])
                raise ValueError(
                    f"x must vary and be finite in every channel to initialise ActNorm; "
                    f"channel {where} has standard deviation {deviation[where].item():g}"
                )
            self.bias.copy_(-mean)
            self.log_scale.copy_(-deviation.log())
            self.initialised.fill_(True)
        return self._apply_to(x)[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and H · W · Σ log_scale, shape (N,), in nats."""
        channels(x, len(self.bias), "ActNorm")
        if self.training and not self.initialised:
            self.initialise(x)
        return self._apply_to(x)

    def _apply_to(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x + _along(self.bias, x)) * _along(self.log_scale.exp(), x)
        return z, per_sample(x) + _positions(x) * self.log_scale.sum()

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and -H · W · Σ log_scale, shape (N,), in nats."""
        channels(z, len(self.bias), "ActNorm", "z")
        x = z / _along(self.log_scale.exp(), z) - _along(self.bias, z)
        return x, per_sample(z) - _positions(z) * self.log_scale.sum()


class Invertible1x1Conv(Transform):
    """Multiplies the channels at every position by the same invertible matrix W.

    Parameters
    ----------
    channels
        C.
    decomposed
        Hold W as P L (U + diag(s)), where P is a fixed permutation, L has ones on its diagonal, U
        is 0 on and below it, and the signs of s are fixed: log|det W| is then Σ log|s|, and W can
        never become singular. Otherwise W is one free matrix.
    generator
        Draws the first W, a random rotation or reflection.

    Raises
    ------
    TypeError, ValueError
        If `channels` is no int of at least 1; from `from_weight`, `forward` and `inverse` if W is
        singular.

    Notes
    -----
    Kingma and Dhariwal (2018), section 3.2. Ledger: `coupling_flows:conv1x1`,
    `coupling_flows:plu_log_det`, `coupling_flows:first_weight`.

    Examples
    --------
    >>> Invertible1x1Conv.from_weight(torch.tensor([[0.0, 2.0], [3.0, 0.0]])).weight().tolist()
    [[0.0, 2.0], [3.0, 0.0]]
    """

    permutation: Tensor
    sign: Tensor

    def __init__(
        self, channels: int, *, decomposed: bool = True, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        whole("channels", channels, 1)
        self.decomposed = decomposed
        draw = torch.randn(
            channels, channels, generator=checked_generator(generator), dtype=torch.float64
        )
        self._hold(torch.linalg.qr(draw)[0].to(torch.get_default_dtype()))

    @classmethod
    def from_weight(cls, weight: Tensor, *, decomposed: bool = True) -> Invertible1x1Conv:
        """Return the layer whose matrix is `weight`, (C, C)."""
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise TypeError("weight must be a floating-point tensor")
        if weight.ndim != 2 or weight.shape[0] != weight.shape[1] or not len(weight):
            raise ValueError(f"weight must have shape (C, C), got {tuple(weight.shape)}")
        layer = cls(len(weight), decomposed=decomposed)
        layer._hold(weight.detach())
        return layer

    def _hold(self, weight: Tensor) -> None:
        _refuse_singular(weight)
        if not self.decomposed:
            self.full = nn.Parameter(weight.clone())
            return
        P, L, U = (part.to(weight.dtype) for part in torch.linalg.lu(weight.double()))
        self.register_buffer("permutation", P)
        self.register_buffer("sign", U.diagonal().sign())
        self.log_s = nn.Parameter(U.diagonal().abs().log())
        self.lower = nn.Parameter(L.tril(-1))
        self.upper = nn.Parameter(U.triu(1))

    def _triangles(self) -> tuple[Tensor, Tensor]:
        one = torch.eye(len(self.log_s), dtype=self.log_s.dtype, device=self.log_s.device)
        lower = self.lower.tril(-1) + one
        return lower, self.upper.triu(1) + (self.sign * self.log_s.exp()).diag()

    def weight(self) -> Tensor:
        """Return W, (C, C)."""
        if not self.decomposed:
            return self.full
        lower, upper = self._triangles()
        return self.permutation @ lower @ upper

    def log_abs_det(self) -> Tensor:
        """Return log|det W|, a single number, in nats."""
        return self.log_s.sum() if self.decomposed else _logdet(self.full)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return W x at every position, and H · W · log|det W|, shape (N,)."""
        weight = self.weight()
        channels(x, len(weight), "Invertible1x1Conv")
        z = (weight @ x.flatten(2)).reshape(x.shape) if x.ndim > 2 else x @ weight.mT
        return z, per_sample(x) + _positions(x) * self.log_abs_det()

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return W⁻¹ z at every position, and -H · W · log|det W|, shape (N,)."""
        count = len(self.log_s if self.decomposed else self.full)
        channels(z, count, "Invertible1x1Conv", "z")
        columns = z.flatten(2) if z.ndim > 2 else z.mT  # (..., C, positions)
        log_det = self.log_abs_det()
        if self.decomposed:
            lower, upper = self._triangles()
            columns = self.permutation.mT @ columns
            columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
            columns = torch.linalg.solve_triangular(upper, columns, upper=True)
        else:
            columns = torch.linalg.solve(self.full, columns)
        x = columns.reshape(z.shape) if z.ndim > 2 else columns.mT
        return x, per_sample(z) - _positions(z) * log_det


def _logdet(weight: Tensor) -> Tensor:
    """Return log|det weight|; raise where the matrix is singular."""
    found = torch.linalg.slogdet(weight).logabsdet
    if not bool(found.isfinite()):
        _refuse_singular(weight)
        raise ValueError("weight must be finite")
    return found


def _refuse_singular(weight: Tensor) -> None:
    """Raise ValueError unless the matrix has full rank, to the precision of its type."""
    exact = weight.detach().double()
    if not bool(exact.isfinite().all()):
        raise ValueError("weight must be finite, it holds NaN or infinity")
    rank = int(torch.linalg.matrix_rank(exact, rtol=len(exact) * torch.finfo(weight.dtype).eps))
    if rank < len(exact):
        raise ValueError(
            f"weight must be invertible, but it is singular: rank {rank} of {len(exact)}"
        )
