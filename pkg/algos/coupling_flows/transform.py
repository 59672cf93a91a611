"""What every layer of a flow is: a map that can be undone and knows its log-determinant."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Transform(nn.Module):
    """An invertible map of samples, with the logarithm of its Jacobian's determinant.

    `forward(x)` gives (z, log_det) and `inverse(z)` gives (x, log_det). Each log_det belongs to the
    map that was called: log|det ∂z/∂x| forward, log|det ∂x/∂z| backward. It is in nats, one number
    for each sample, shape (N,), and at the same point the two have opposite signs.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log|det ∂z/∂x|, shape (N,), in nats."""
        raise NotImplementedError

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log|det ∂x/∂z|, shape (N,), in nats."""
        raise NotImplementedError

    def initialise(self, x: Tensor) -> Tensor:
        """Set what depends on data from the batch x; return what x becomes. Most have nothing to set."""
        return self(x)[0]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one z for the shape of one x. Most leave it as it is."""
        return shape


def check_transforms(transforms: Any, name: str = "transforms") -> tuple[Transform, ...]:
    """Return them as a tuple; raise TypeError unless each can be undone."""
    found = tuple(transforms)
    for place, one in enumerate(found):
        if not isinstance(one, nn.Module) or not callable(getattr(one, "inverse", None)):
            raise TypeError(
                f"{name}[{place}] must be a transform with forward and inverse, "
                f"got {type(one).__name__}"
            )
    return found


def per_sample(x: Tensor) -> Tensor:
    """Return zeros, one for each sample of x: the log-determinant of a map that keeps volume."""
    return x.new_zeros(x.shape[0])


def total(values: Tensor) -> Tensor:
    """Add up everything but the batch: (N, *event) to (N,)."""
    return values.flatten(1).sum(1)
