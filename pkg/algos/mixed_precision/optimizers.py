"""AdamW on bfloat16 weights without a master copy: the update survives by chance, on average exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from pkg.algos.mixed_precision.casts import CHUNK, to_bfloat16
from pkg.algos.mixed_precision.randomness import draw_seed, halfwords, stream
from pkg.operators import register


class StochasticRoundingAdamW(Optimizer):
    """AdamW that computes in float32 and rounds bfloat16 weights stochastically.

    A bfloat16 weight has 8 significant bits; most updates are less than half its spacing, and
    rounding to nearest loses them all. Rounded stochastically, the expected weight is the float32
    result, so small updates add up, without a float32 copy of the weights.

    Parameters
    ----------
    params
        Parameters, or groups of them as for any optimizer: bfloat16, or float32 (which are not
        rounded: for them this is `torch.optim.AdamW`).
    lr, betas, eps, weight_decay
        As for `torch.optim.AdamW`. `lr` is a number.
    moments
        The type that both moments are kept in: float32, or bfloat16, rounded stochastically as well.
        (Rounded to nearest, the second moment could not fall: with β₂ = 0.999 it shrinks by at most
        a thousandth a step, less than half a spacing of bfloat16.)
    generator
        Where the randomness comes from: a seed for each parameter and step. To go on exactly
        after a restart, save `generator.get_state()` beside the optimizer's state.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range, or a parameter is neither bfloat16 nor float32.

    Notes
    -----
    Loshchilov & Hutter (2019), algorithm 2; Zamirai et al. (2020) for the rounding. Bytes for each
    weight: 2 + 2 · 2 with bfloat16 moments, 2 + 2 · 4 with float32 ones; mixed precision with master
    weights takes 2 + 4 + 2 · 4. Ledger: `mixed_precision:stochastic_rounding_adamw`.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.ones(10_000, dtype=torch.bfloat16))
    >>> optimizer = StochasticRoundingAdamW(
    ...     [weight], lr=2.0**-13, weight_decay=0.0, moments=torch.bfloat16,
    ...     generator=torch.Generator().manual_seed(0),
    ... )
    >>> for _ in range(16):
    ...     weight.grad = torch.ones_like(weight)
    ...     optimizer.step()
    >>> round((1 - weight.detach().float().mean()).item() * 2**13)  # to nearest, not one step would count
    16
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2, *, moments: torch.dtype,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        if moments not in (torch.bfloat16, torch.float32):
            raise TypeError(f"moments must be torch.bfloat16 or torch.float32, got {moments}")
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        self.generator = generator
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
                    "moments": moments}  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; called for each group at construction, too.

        Raises
        ------
        TypeError, ValueError
            If a number of the group is out of its range, or a parameter of another type.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name in ("lr", "eps", "weight_decay"):
            if isinstance(group[name], Tensor):
                raise TypeError(f"{name} must be a number, got a tensor")
            if not group[name] >= 0:
                raise ValueError(f"{name} must be at least 0, got {group[name]}")
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']}")
        for param in group["params"]:
            if param.dtype not in (torch.bfloat16, torch.float32):
                raise TypeError(f"params must be bfloat16 or float32, got {param.dtype}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Parameters
        ----------
        closure
            As for any optimizer: computes the loss and its gradients anew.

        Returns
        -------
        object
            What the closure returns, or None.

        Raises
        ------
        TypeError
            If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, group)
        return loss

    def _update(self, param: Tensor, group: dict[str, Any]) -> None:
        if param.grad.is_sparse:  # type: ignore[union-attr]
            raise TypeError("params must have dense gradients, got a sparse one")
        state = self.state[param]
        if not state:
            state["step"] = 0
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(
                    param, dtype=group["moments"], memory_format=torch.contiguous_format
                )
        state["step"] += 1
        beta1, beta2 = group["betas"]
        update_operator(
            param, state["exp_avg"], state["exp_avg_sq"], param.grad, group["lr"], beta1, beta2,
            group["eps"], group["weight_decay"], state["step"],
            draw_seed(self.generator, param.device),
        )  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state that `state_dict` returned; moments keep the type they were saved in."""
        # PyTorch casts what it loads to the parameters' type: float32 moments would lose bits.
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        saved = {name: dict(entry) for name, entry in state_dict["state"].items()}
        super().load_state_dict(state_dict)
        params = [param for group in self.param_groups for param in group["params"]]
        for name, param in zip(names, params, strict=True):
            for key in ("exp_avg", "exp_avg_sq") if name in saved else ():
                self.state[param][key] = saved[name][key].to(param.device, copy=True)


def _update(
    param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor, lr: float, beta1: float,
    beta2: float, eps: float, weight_decay: float, step: int, seed: Tensor,
) -> None:  # fmt: skip
    """Widen a piece to float32, update it by PyTorch's own AdamW, and narrow it again."""
    bits, held = stream(seed), (param, exp_avg, exp_avg_sq)
    flat = [x.reshape(-1) for x in (*held, grad)]  # a view, where x is contiguous
    scratch = torch.empty(min(CHUNK, param.numel()), dtype=torch.int32)
    before = torch.tensor(float(step - 1))
    for start in range(0, param.numel(), CHUNK):
        parts = [x[start : start + CHUNK] for x in flat]
        wide = [x.float() for x in parts]  # float32 parts are worked on in place
        p, m, v, g = wide
        adamw(
            [p], [g], [m], [v], [], [before.clone()], fused=True, amsgrad=False, beta1=beta1,
            beta2=beta2, lr=lr, weight_decay=weight_decay, eps=eps, maximize=False,
        )  # fmt: skip
        for part, new in zip(parts[:3], wide[:3], strict=True):
            if part.dtype == torch.bfloat16:
                size = part.numel()
                to_bfloat16(new, halfwords(bits, size), part, scratch[:size])
    for x, updated in zip(held, flat[:3], strict=True):
        if not x.is_contiguous():
            x.copy_(updated.view(x.shape))


def _update_fake(
    param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor, lr: float, beta1: float,
    beta2: float, eps: float, weight_decay: float, step: int, seed: Tensor,
) -> None:  # fmt: skip
    return None


update_operator = register(
    "stochastic_rounding_adamw",
    cpu=_update,
    cuda="pkg.cuda.mixed_precision:stochastic_rounding_adamw",
    fake=_update_fake,
    mutates=("param", "exp_avg", "exp_avg_sq"),
)
