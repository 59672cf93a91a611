"""Master weights: a float32 copy of half-precision parameters, so that small updates add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

HALF = (torch.float16, torch.bfloat16)


class MasterWeights:
    """Let an optimizer work on float32 copies of its float16 and bfloat16 parameters.

    In half precision a weight swallows an update that is below half its spacing: in float16 one that
    is 2,048 times as small, or more. The copy keeps it; after each step the parameters
    are the copies, rounded to nearest.

    Parameters
    ----------
    optimizer
        Any `torch.optim.Optimizer`. It is changed: from now on its `param_groups` hold the copies,
        and what state it has in half precision becomes float32. Parameters of other types stay in
        it as they are. Give learning rate schedulers this optimizer, not the wrapper.

    Raises
    ------
    TypeError
        If `optimizer` is no `torch.optim.Optimizer`.
    ValueError
        If it has no half-precision parameter.

    Notes
    -----
    Micikevicius et al. (2018), section 3.1. Works with `LossScaler` and `torch.amp.GradScaler`, which
    find float32 gradients in `param_groups`. To clip, call `scaler.unscale_(master)` and clip
    `master.parameters()`, whose gradients are unscaled; the model's own have been taken by then.
    Ledger: `mixed_precision:absorption`.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))
    >>> master = MasterWeights(torch.optim.SGD([weight], lr=2.0**-12))
    >>> for _ in range(8):
    ...     master.zero_grad()
    ...     weight.grad = torch.ones_like(weight)
    ...     master.step()
    >>> 1 - weight.item()  # float16 alone stays at 1: an update of 2⁻¹² is a tie, and 1 is even
    0.001953125
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        self.optimizer = optimizer
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for group in optimizer.param_groups:
            # In place: some optimizers (LBFGS) hold on to this list.
            group["params"][:] = [self._master(param) for param in group["params"]]
        if not self._pairs:
            raise ValueError("optimizer must have a float16 or bfloat16 parameter, got none")
        self._versions: list[int] = []
        self._spread()

    def _master(self, param: Tensor) -> Tensor:
        if param.dtype not in HALF:
            return param
        copy = param.detach().float().requires_grad_()
        self._pairs.append((param, copy))
        if param in self.optimizer.state:  # it has stepped, or starts with a state as Adagrad does
            state = self.optimizer.state.pop(param)
            self.optimizer.state[copy] = {name: _widened(value) for name, value in state.items()}
        return copy

    # ------------------------------------------------------------ as an optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, which hold the copies; asking for them brings gradients along."""
        self._gather()
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        """The optimizer's state, by copy."""
        return self.optimizer.state

    def parameters(self) -> Iterator[Tensor]:
        """Return the float32 copies, and the parameters that need none, with their gradients."""
        self._gather()
        return iter(_all(self.optimizer))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the parameters and of the copies."""
        for param, _ in self._pairs:
            param.grad = None
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step on the copies, then round them to the parameters.

        Parameters
        ----------
        closure
            As for any optimizer: computes the loss and its gradients anew.

        Returns
        -------
        object
            What the optimizer's `step` returns.

        Raises
        ------
        RuntimeError
            If somebody else changed a parameter since the last step: the step would undo it. Call
            `adopt()` to take the change over.
        """
        if self._versions != [param._version for param, _ in self._pairs]:
            raise RuntimeError(
                "a parameter was changed since the last step, which would undo it: call adopt() to "
                "take the change over into the float32 copy"
            )
        if closure is None:
            self._gather()
            result = self.optimizer.step()
        else:
            result = self.optimizer.step(self._around(closure))
        self._spread()
        return result

    def adopt(self) -> None:
        """Make the copies equal to the parameters, after these were loaded or changed."""
        with torch.no_grad():
            for param, copy in self._pairs:
                copy.copy_(param)
        self._versions = [param._version for param, _ in self._pairs]

    # ------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state and the copies, which the parameters do not determine."""
        copies = [copy.detach().clone() for _, copy in self._pairs]
        return {"optimizer": self.optimizer.state_dict(), "master_weights": copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that `state_dict` returned, and set the parameters to it.

        Raises
        ------
        ValueError
            If it is the state of other parameters.
        """
        copies = state["master_weights"]
        mine, theirs = [tuple(c.shape) for _, c in self._pairs], [tuple(c.shape) for c in copies]
        if mine != theirs:
            raise ValueError(f"state must have master weights of shapes {mine}, got {theirs}")
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for (_, copy), saved in zip(self._pairs, copies, strict=True):
                copy.copy_(saved)
        self._spread()

    # ------------------------------------------------------------ inside

    def _gather(self) -> None:
        """Move the parameters' gradients to the copies, in float32."""
        for param, copy in self._pairs:
            if param.grad is None:
                continue
            grad = param.grad.float()
            copy.grad = grad if copy.grad is None else copy.grad + grad
            param.grad = None

    @torch.no_grad()
    def _spread(self) -> None:
        """Round the copies to the parameters."""
        for param, copy in self._pairs:
            param.copy_(copy)
        self._versions = [param._version for param, _ in self._pairs]

    def _around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return the closure as the optimizer needs it: at the copies, with their gradients."""

        def evaluate() -> Any:
            self._spread()
            with torch.enable_grad():
                loss = closure()
            self._gather()
            return loss

        return evaluate


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def _all(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]
