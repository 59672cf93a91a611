"""The checks at the door: every public function of the chapter names what does not fit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pkg.algos.flash_attention.masks import Align, AncestorMask, Visibility, Window, kind_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUT = "(batch, heads, sequence, head_dim)"


def check_tensors(q: Tensor, k: Tensor, v: Tensor, *, ndim: int = 4, layout: str = LAYOUT) -> None:
    """Raise unless q, k and v are floating-point tensors of one dtype, on one device."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}"
            )
        if tensor.ndim != ndim:
            raise ValueError(f"{name} must have shape {layout}, got {tuple(tensor.shape)}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {tensor.dtype}")
        check_device(name, tensor, q)


def check_shapes(q: Tensor, k: Tensor, v: Tensor, *, any_value_dim: bool = False) -> None:
    """Raise unless the shapes belong together; heads are on axis 1, head_dim is last."""
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"k must have q's batch size {q.shape[0]}, got {k.shape[0]}")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(
            "v must have k's batch size, heads and length "
            f"{tuple(k.shape[:3])}, got {tuple(v.shape[:3])}"
        )
    check_heads(q.shape[1], k.shape[1])
    check_head_dims(q, k, v, any_value_dim=any_value_dim)


def check_heads(heads: int, kv_heads: int) -> None:
    """Raise unless the key/value heads divide the query heads."""
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"k's heads must divide q's {heads} heads, got {kv_heads}")


def check_head_dims(q: Tensor, k: Tensor, v: Tensor, *, any_value_dim: bool = False) -> None:
    """Raise unless the last axes agree."""
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"k must have q's head_dim {q.shape[-1]}, got {k.shape[-1]}")
    if q.shape[-1] == 0:
        raise ValueError("q must have a head_dim of at least 1, got 0")
    if not any_value_dim and v.shape[-1] != q.shape[-1]:
        raise ValueError(f"v must have q's head_dim {q.shape[-1]}, got {v.shape[-1]}")


def check_device_limits(q: Tensor) -> None:
    """Raise if the kernel cannot take q: float64, or a head_dim outside 16 to 256."""
    if q.device.type != "cuda":
        return
    if q.dtype == torch.float64:
        raise TypeError("q must be float16, bfloat16 or float32 on the GPU, got torch.float64")
    if not 16 <= q.shape[-1] <= 256:
        raise ValueError(f"q must have a head_dim of 16 to 256 on the GPU, got {q.shape[-1]}")


def resolve_scale(scale: float | None, head_dim: int) -> float:
    """Return the factor of the scores: 1 / sqrt(head_dim) unless the caller says otherwise."""
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return float(scale)


def resolve_band(causal: bool, window: Window | None) -> tuple[int, int]:
    """Return how many keys to the left and right are visible; -1 for no limit."""
    left, right = (None, None) if window is None else _ends(window)
    if causal:
        right = 0
    return -1 if left is None else left, -1 if right is None else right


def _ends(window: Window) -> Window:
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise TypeError(f"window must be a pair (left, right), got {window!r}")
    for end in window:
        if end is not None and (isinstance(end, bool) or not isinstance(end, int)):
            raise TypeError(f"window must hold integers or None, got {window!r}")
        if end is not None and end < 0:
            raise ValueError(f"window must not be negative, got {window!r}; None means no limit")
    return window[0], window[1]


def resolve_shift(align: Align, q_len: int, k_len: int) -> int:
    """Return the key position that belongs to query 0."""
    check_align(align)
    return k_len - q_len if align == "bottom_right" else 0


def check_align(align: Align) -> None:
    """Raise unless the corner is one of the two."""
    if align not in ("bottom_right", "top_left"):
        raise ValueError(f'align must be "bottom_right" or "top_left", got {align!r}')


def resolve_mask(
    mask: Tensor | AncestorMask | None, q: Tensor, k: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return (boolean mask with four axes, words of an ancestor mask), each None if not given."""
    if mask is None:
        return None, None
    batch, heads, q_len, k_len = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
    if isinstance(mask, AncestorMask):
        if mask.nodes != q_len or k_len < q_len:
            raise ValueError(
                f"mask is a tree of {mask.nodes} nodes: it needs as many queries, and at least as "
                f"many keys; got {q_len} and {k_len}"
            )
        if mask.words.shape[0] not in (1, batch):
            raise ValueError(f"mask must have 1 or {batch} trees, got {mask.words.shape[0]}")
        check_device("mask", mask.words, q)
        return None, mask.words
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be boolean (True: may attend) or an AncestorMask, got {kind_of(mask)}"
        )
    check_device("mask", mask, q)
    full = (batch, heads, q_len, k_len)
    tail = full[len(full) - mask.ndim :]
    fits = mask.ndim <= 4 and all(
        have in (1, want) for have, want in zip(mask.shape, tail, strict=True)
    )
    if not fits:
        raise ValueError(f"mask must broadcast to {full}, got {tuple(mask.shape)}")
    mask = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    return mask.expand(-1, -1, q_len, k_len), None


def check_integers(name: str, tensor: Tensor, q: Tensor) -> None:
    """Raise unless a vector of places or lengths holds integers, on q's device."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be an int32 or int64 tensor, got {kind_of(tensor)}")
    check_device(name, tensor, q)


def check_device(name: str, tensor: Tensor, q: Tensor) -> None:
    """Raise unless a tensor is where q is."""
    if tensor.device != q.device:
        raise ValueError(f"{name} must be on q's device {q.device}, got {tensor.device}")


def resolve_visibility(
    q: Tensor, k: Tensor, *, mask: Tensor | AncestorMask | None, causal: bool,
    window: Window | None, align: Align,
) -> Visibility:  # fmt: skip
    """Return which pairs are visible, from the arguments as a caller gives them."""
    left, right = resolve_band(causal, window)
    shift = resolve_shift(align, q.shape[2], k.shape[2])
    dense, words = resolve_mask(mask, q, k)
    return Visibility(q.shape[2], k.shape[2], left, right, shift, dense, words)
