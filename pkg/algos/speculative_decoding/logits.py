"""Verification and sampling straight from logits: operators with kernels on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from pkg.algos.language_model.sampling import check_options, sampling_distribution
from pkg.algos.speculative_decoding import arguments
from pkg.algos.speculative_decoding.chain import Method, verify_chain
from pkg.algos.speculative_decoding.draws import draw
from pkg.algos.speculative_decoding.result import VerifyResult
from pkg.algos.speculative_decoding.tree import resolve_parents, verify_tree
from pkg.operators import register


def verify_chain_logits(
    draft_tokens: Tensor,
    draft_logits: Tensor | None,
    target_logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
    lengths: Tensor | None = None,
    method: Method = "token",
) -> VerifyResult:
    """Verify a chain from logits: temperature, filters and softmax of both models are made here.

    Parameters
    ----------
    draft_tokens
        (batch, gamma), int64 or int32.
    draft_logits
        (batch, gamma, vocab): the logits from which, with the same temperature and filters, the
        drafts were sampled. None for drafts that were not sampled.
    target_logits
        (batch, gamma + 1, vocab); float64 on the CPU only.
    temperature, top_k, top_p
        As `pkg.algos.language_model.sampling_distribution`, for both models.
    uniforms, generator, lengths, method
        As `verify_chain`.

    Returns
    -------
    VerifyResult
        As `verify_chain`. On the GPU nothing waits for the device, so what cannot be seen from
        shapes and types (a token or length out of range, NaN) is not checked there.

    Raises
    ------
    TypeError, ValueError
        As `verify_chain` and `sampling_distribution`.

    Notes
    -----
    The operator `checked::verify_chain_logits`. Ledger: `speculative_decoding:from_logits`.

    Examples
    --------
    >>> target = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]]).log()
    >>> u = torch.tensor([[0.5, 0.0]])
    >>> verify_chain_logits(torch.tensor([[2]]), None, target, uniforms=u).tokens
    tensor([[ 0, -1]])
    """
    check_options(temperature, top_k, top_p)
    if method not in ("token", "block"):
        raise ValueError(f'method must be "token" or "block", got {method!r}')
    _check("draft_tokens", draft_tokens, draft_logits, target_logits, extra=1, names="gamma")
    batch, gamma = draft_tokens.shape
    device = target_logits.device
    uniforms = arguments.resolve_uniforms(uniforms, generator, (batch, gamma + 1), device)
    lengths = arguments.resolve_lengths(lengths, batch, gamma, draft_tokens)
    tokens, accepted = chain_operator(
        draft_tokens, draft_logits, target_logits, uniforms, lengths, float(temperature), top_k,
        top_p, method == "block",
    )  # fmt: skip
    return VerifyResult(tokens, accepted)


def verify_tree_logits(
    draft_tokens: Tensor,
    parents: Tensor,
    draft_logits: Tensor | None,
    target_logits: Tensor,
    *,
    depth: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> VerifyResult:
    """Verify a tree from logits: temperature, filters and softmax of both models are made here.

    Parameters
    ----------
    draft_tokens, parents
        (batch, nodes), and (nodes,) or (batch, nodes), as `verify_tree`.
    draft_logits
        (batch, nodes + 1, vocab): row i + 1 gives the law of the children of node i; None for
        children that were not sampled.
    target_logits
        (batch, nodes + 1, vocab); float64 on the CPU only.
    depth
        Depth of the deepest node. If it is given, nothing waits for the device.
    temperature, top_k, top_p
        As `pkg.algos.language_model.sampling_distribution`, for both models.
    uniforms, generator
        As `verify_tree`.

    Returns
    -------
    VerifyResult
        As `verify_tree`.

    Raises
    ------
    TypeError, ValueError
        As `verify_tree` and `sampling_distribution`; or if `depth` is less than the tree's, where
        the tree is on the CPU.

    Notes
    -----
    The operator `checked::verify_tree_logits`. Ledger: `speculative_decoding:from_logits`.

    Examples
    --------
    >>> target = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.9, 0.1, 0.0]]]).log()
    >>> tokens, parents = torch.tensor([[1, 0]]), torch.tensor([-1, -1])
    >>> u = torch.tensor([[0.4, 0.6, 0.95]])
    >>> verify_tree_logits(tokens, parents, None, target, uniforms=u).tokens
    tensor([[0, 1]])
    """
    check_options(temperature, top_k, top_p)
    _check("draft_tokens", draft_tokens, draft_logits, target_logits, extra=0, names="nodes")
    batch, nodes = draft_tokens.shape
    uniforms = arguments.resolve_uniforms(
        uniforms, generator, (batch, nodes + 1), target_logits.device
    )
    if depth is None or parents.device.type == "cpu":
        parents, deepest = resolve_parents(parents, draft_tokens, validate=False)
        if depth is not None and depth < deepest:
            raise ValueError(f"depth must be at least the tree's, {deepest}, got {depth}")
        depth = deepest if depth is None else depth
    tokens, accepted, path = tree_operator(
        draft_tokens, parents.expand(batch, nodes), draft_logits, target_logits, uniforms, depth,
        float(temperature), top_k, top_p,
    )  # fmt: skip
    return VerifyResult(tokens, accepted, path)


def sample_logits(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token from each row of logits, with temperature, top-k and top-p.

    Parameters
    ----------
    logits
        (rows, vocab); float64 on the CPU only.
    temperature, top_k, top_p
        As `pkg.algos.language_model.sampling_distribution`.
    uniforms
        (rows,), in [0, 1).
    generator
        Draws the uniforms, in float64, if they are not given.

    Returns
    -------
    Tensor
        (rows,), int64.

    Raises
    ------
    TypeError, ValueError
        As `sampling_distribution`; or if not exactly one of `uniforms` and `generator` is given.

    Notes
    -----
    The operator `checked::sample_logits`. Ledger: `speculative_decoding:sample_logits`.

    Examples
    --------
    >>> logits = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    >>> sample_logits(logits, uniforms=torch.tensor([0.6, 0.1]))
    tensor([1, 1])
    """
    check_options(temperature, top_k, top_p)
    arguments.check_floats("logits", logits)
    if logits.ndim != 2 or logits.shape[-1] < 1:
        raise ValueError(f"logits must have shape (rows, vocab), got {tuple(logits.shape)}")
    _check_device_type("logits", logits)
    if uniforms is not None:
        arguments.check_floats("uniforms", uniforms)
        arguments.check_shape("uniforms", uniforms, (len(logits),), "(rows,)")
        uniforms = uniforms[:, None]
    uniforms = arguments.resolve_uniforms(uniforms, generator, (len(logits), 1), logits.device)
    drawn: Tensor = sample_operator(logits, uniforms[:, 0], float(temperature), top_k, top_p)
    return drawn


# ------------------------------------------------------------------ the checks


def _check(
    name: str, tokens: Tensor, draft: Tensor | None, target: Tensor, *, extra: int, names: str
) -> None:
    """Raise unless the shapes and types belong together; draft rows are `extra` fewer."""
    arguments.check_integers(name, tokens)
    if tokens.ndim != 2:
        raise ValueError(f"{name} must have shape (batch, {names}), got {tuple(tokens.shape)}")
    batch, count = tokens.shape
    for called, logits, rows in (
        ("target_logits", target, count + 1), ("draft_logits", draft, count + 1 - extra),
    ):  # fmt: skip
        if logits is None:
            continue
        arguments.check_floats(called, logits)
        _check_device_type(called, logits)
        if logits.ndim != 3 or logits.shape[-1] < 1:
            raise ValueError(
                f"{called} must have shape (batch, {names}, vocab), got {tuple(logits.shape)}"
            )
        if logits.shape[-1] != target.shape[-1]:
            raise ValueError(
                "draft_logits and target_logits must be over one vocabulary, got "
                f"{logits.shape[-1]} and {target.shape[-1]} tokens"
            )
        shape = (batch, rows, logits.shape[-1])
        arguments.check_shape(called, logits, shape, f"(batch, {names}, vocab)")
        arguments.check_same_device(called, logits, tokens)


def _check_device_type(name: str, logits: Tensor) -> None:
    if logits.is_cuda and logits.dtype == torch.float64:
        raise TypeError(
            f"{name} must be float16, bfloat16 or float32 on the GPU, got torch.float64"
        )


# ------------------------------------------------------------------ the operators


def _law(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Return what `sampling_distribution` does, in one pass where there is nothing but a softmax."""
    if temperature != 1 or top_k is not None or top_p not in (None, 1):
        return sampling_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    law = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32).softmax(-1)
    # NaN, +inf, or nothing but -inf anywhere in a row makes all of it NaN.
    if bool(law[..., 0].isnan().any()):
        raise ValueError("logits must not hold NaN or +inf, and every row needs a finite entry")
    return law


def _chain(
    draft_tokens: Tensor, draft_logits: Tensor | None, target_logits: Tensor, uniforms: Tensor,
    lengths: Tensor, temperature: float, top_k: int | None, top_p: float | None, whole: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    unused = torch.arange(target_logits.shape[1], device=lengths.device) > lengths[:, None]
    q, p = draft_logits, target_logits
    if bool(unused.any()):  # rows past the end of a draft may hold anything
        p = p.masked_fill(unused[..., None], 0.0)
        q = None if q is None else q.masked_fill(unused[:, 1:, None], 0.0)
    q = None if q is None else _law(q, temperature, top_k, top_p)
    p = _law(p, temperature, top_k, top_p)
    found = verify_chain(
        draft_tokens, q, p, uniforms=uniforms, lengths=lengths,
        method="block" if whole else "token", validate=False,
    )  # fmt: skip
    return found.tokens, found.num_accepted.clone()


def _chain_fake(
    draft_tokens: Tensor, draft_logits: Tensor | None, target_logits: Tensor, uniforms: Tensor,
    lengths: Tensor, temperature: float, top_k: int | None, top_p: float | None, whole: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, gamma = draft_tokens.shape
    new = draft_tokens.new_empty
    return new(batch, gamma + 1, dtype=torch.int64), new(batch, dtype=torch.int64)


def _tree(
    draft_tokens: Tensor, parents: Tensor, draft_logits: Tensor | None, target_logits: Tensor,
    uniforms: Tensor, depth: int, temperature: float, top_k: int | None, top_p: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    q = None if draft_logits is None else _law(draft_logits, temperature, top_k, top_p)
    p = _law(target_logits, temperature, top_k, top_p)
    found = verify_tree(draft_tokens, parents, q, p, uniforms=uniforms, validate=False)
    assert found.path is not None
    more = (0, depth - found.path.shape[-1])
    pad = torch.nn.functional.pad
    return (
        pad(found.tokens, more, value=-1), found.num_accepted.clone(), pad(found.path, more, value=-1)
    )  # fmt: skip


def _tree_fake(
    draft_tokens: Tensor, parents: Tensor, draft_logits: Tensor | None, target_logits: Tensor,
    uniforms: Tensor, depth: int, temperature: float, top_k: int | None, top_p: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, new = len(draft_tokens), draft_tokens.new_empty
    return (
        new(batch, depth + 1, dtype=torch.int64), new(batch, dtype=torch.int64),
        new(batch, depth, dtype=torch.int64),
    )  # fmt: skip


def _sample(
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    return draw(_law(logits, temperature, top_k, top_p), uniforms)


def _sample_fake(
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    return logits.new_empty(len(logits), dtype=torch.int64)


_LAUNCHERS = "pkg.cuda.speculative_decoding"
chain_operator = register(
    "verify_chain_logits", cpu=_chain, cuda=f"{_LAUNCHERS}:verify_chain_logits", fake=_chain_fake
)
tree_operator = register(
    "verify_tree_logits", cpu=_tree, cuda=f"{_LAUNCHERS}:verify_tree_logits", fake=_tree_fake
)
sample_operator = register(
    "sample_logits", cpu=_sample, cuda=f"{_LAUNCHERS}:sample_logits", fake=_sample_fake
)
