"""Attention against PyTorch's fused kernels, FlexAttention and the four lines most people write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention_peers import BACKENDS, Backward, Flex, Problem, naive, sdpa
from benchmarks.harness import ROUNDS, Case, Work, ceilings, each, measure
from pkg.algos.flash_attention import (
    AncestorMask,
    flash_attention,
    flash_attention_varlen,
    flash_decode,
    tiled_attention,
)

Calls = dict[str, Callable[[], Any]]
Plan = tuple[str, Callable[[], Case]]
#: The naive form is left out where its scores alone would take more.
LARGEST_SCORES = {"cpu": 3e9, "cuda": 12e9}
#: Lengths of documents that people pack: a few long ones, many short ones, 4,096 tokens in all.
DOCUMENTS = (700, 800, 300, 1300, 900, 96)


@dataclass(frozen=True)
class Setting:
    """How a run is made: its device, and what bounds its time."""

    device: str
    rounds: int
    threads: int = 1
    flex: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The type in which people run attention on this device."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @property
    def seconds(self) -> float:
        """What a case may take, of five rounds or more."""
        return 3.0 if self.device == "cuda" else 10.0


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    k_len: int
    dim: int

    def __str__(self) -> str:
        length = f"{self.q_len}" if self.q_len == self.k_len else f"{self.q_len} of {self.k_len}"
        return f"{self.batch} x {self.heads}/{self.kv_heads} heads x {length} x {self.dim}"


def smol(length: int) -> Shape:
    """SmolLM2-135M: nine heads of 64, three of keys and values."""
    return Shape(1, 9, 3, length, length, 64)


def qwen(length: int) -> Shape:
    """Qwen3-0.6B: sixteen heads of 128, eight of keys and values."""
    return Shape(1, 16, 8, length, length, 128)


def wide(length: int, dim: int) -> Shape:
    """The shapes of FlashAttention's papers: 16k tokens, a width of 2,048."""
    heads = 2048 // dim
    return Shape(16384 // length, heads, heads, length, length, dim)


# ------------------------------------------------------------------ inputs


@lru_cache(maxsize=1)
def problem(
    shape: Shape, kind: str, dtype: torch.dtype, device: str, backward: bool = False
) -> Problem:
    """Return the inputs of a case; normal numbers, as a normalised layer gives them."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int, length: int) -> Tensor:
        size = (shape.batch, heads, length, shape.dim)
        x = torch.randn(size, generator=generator, device=device)
        return x.to(dtype).requires_grad_(backward)

    q = draw(shape.heads, shape.q_len)
    k, v = (draw(shape.kv_heads, shape.k_len) for _ in range(2))
    gradient = draw(shape.heads, shape.q_len).detach() if backward else None
    return Problem(q, k, v, visible_pairs(shape, kind, device), gradient)


def visible_pairs(shape: Shape, kind: str, device: str) -> Tensor | None:
    """Return the dense mask of a kind: what the naive form and SDPA are given."""
    j = torch.arange(shape.k_len, device=device)
    i = torch.arange(shape.q_len, device=device)[:, None] + shape.k_len - shape.q_len
    if kind == "full":
        return None
    if kind == "tree":
        inside = tree(shape.q_len).to_dense()[0].to(device)
        return torch.nn.functional.pad(inside, (shape.k_len - shape.q_len, 0), value=True)
    if kind == "ragged":
        return (j < lengths(shape, device)[:, None])[:, None, None]
    seen = j <= i
    if kind == "window":
        seen &= i - j <= window(shape)
    if kind == "documents":
        name = document_names(shape, device)
        seen &= name[:, None] == name
    return seen


def window(shape: Shape) -> int:
    """Return how many earlier keys a query sees in the window's case."""
    return shape.k_len // 8


def tree(nodes: int) -> AncestorMask:
    """Return a tree of draft tokens in which every node has three children, breadth first."""
    return AncestorMask.from_parents((torch.arange(nodes) - 1).div(3, rounding_mode="floor"))


def lengths(shape: Shape, device: str) -> Tensor:
    """Return how much of each cache is filled: from an eighth to all of it."""
    steps = torch.linspace(shape.k_len / 8, shape.k_len, shape.batch)
    return steps.round().int().to(device)


def document_starts(shape: Shape) -> Tensor:
    """Return where each packed document begins, and the end."""
    sizes = torch.tensor(DOCUMENTS * (shape.q_len // sum(DOCUMENTS)))
    return torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()


def document_names(shape: Shape, device: str) -> Tensor:
    """Return for each token which document it is in."""
    starts = document_starts(shape)
    return torch.arange(len(starts) - 1, device=device).repeat_interleave(starts.diff().to(device))


# ------------------------------------------------------------------ contenders


def dense_contenders(p: Problem, causal: bool, setting: Setting) -> Calls:
    """Return who takes part where all pairs count, or the causal ones."""
    q, k, v = p.q, p.k, p.v
    found: Calls = {"ours": partial(flash_attention, q, k, v, causal=causal)}
    if setting.device == "cpu":
        found["ours, tiled"] = partial(tiled_attention, q, k, v, causal=causal)
        found["SDPA"] = partial(sdpa, q, k, v, causal=causal)
    else:
        for backend in BACKENDS:
            found[backend] = partial(sdpa, q, k, v, causal=causal, backend=backend)
    if setting.flex:
        found["FlexAttention"] = Flex(q, k, v, _causal_rule if causal else None)
    return found | _naive(p, setting)


def _naive(p: Problem, setting: Setting) -> Calls:
    scores = p.q.shape[0] * p.q.shape[1] * p.q.shape[2] * p.k.shape[2] * p.q.element_size()
    if scores > LARGEST_SCORES[setting.device]:
        print(f"naive is left out: its scores take {scores / 1e9:.1f} GB")
        return {}
    return {"naive": partial(naive, p.q, p.k, p.v, p.visible)}


def sparse_contenders(p: Problem, kind: str, shape: Shape, setting: Setting) -> Calls:
    """Return who takes part where few pairs count: the peers without tiles take a dense mask."""
    q, k, v = p.q, p.k, p.v
    if kind == "window":
        left = window(shape)
        found: Calls = {"ours": partial(flash_attention, q, k, v, causal=True, window=(left, 0))}
        rule: Any = partial(_window_rule, left)
    elif kind == "documents":
        found = {"ours": _packed(p, shape)}
        if setting.device == "cpu":  # a bit for every pair: made for trees of some hundred nodes
            found["ours, bits"] = partial(flash_attention, q, k, v, mask=_chains(shape))
        rule = partial(_document_rule, document_names(shape, q.device.type))
    else:
        bits = AncestorMask(tree(shape.q_len).words.to(q.device))
        found = {"ours": partial(flash_attention, q, k, v, mask=bits)}
        rule = partial(_dense_rule, visible_pairs(shape, kind, q.device.type))
    found["SDPA"] = partial(sdpa, q, k, v, p.visible)
    if setting.flex:
        found["FlexAttention"] = Flex(q, k, v, rule)
    return found | _naive(p, setting) if kind == "tree" else found


def _packed(p: Problem, shape: Shape) -> Callable[[], Tensor]:
    """Return the call for packed documents; their layout has the sequence before the heads."""
    starts = document_starts(shape).to(p.q.device)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (p.q, p.k, p.v))
    longest = max(DOCUMENTS)

    def call() -> Tensor:
        output = flash_attention_varlen(
            q, k, v, starts, starts, causal=True, max_seqlen_q=longest, max_seqlen_k=longest
        )
        return output.transpose(0, 1).unsqueeze(0)

    return call


def _chains(shape: Shape) -> AncestorMask:
    parents = torch.arange(shape.q_len) - 1
    parents[document_starts(shape)[:-1].long()] = -1
    return AncestorMask.from_parents(parents)


def decode_contenders(p: Problem, kind: str, shape: Shape, setting: Setting) -> Calls:
    """Return who takes part in attending from one new token to a cache."""
    q, k, v = p.q, p.k, p.v
    filled = lengths(shape, q.device.type)
    if kind == "full":
        filled = torch.full_like(filled, shape.k_len)
    found: Calls = {
        "ours": partial(flash_decode, q, k, v, filled),
        "SDPA": partial(sdpa, q, k, v, p.visible),
    }
    if kind == "ragged":
        found["SDPA, one by one"] = partial(_one_by_one, q, k, v, filled.tolist())
    if setting.device == "cuda" and kind == "full":
        for backend in BACKENDS:
            found[backend] = partial(sdpa, q, k, v, backend=backend)
    if setting.flex:
        rule = partial(_length_rule, filled) if kind == "ragged" else None
        found["FlexAttention"] = Flex(q, k, v, rule, batch=shape.batch)
    return found


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, filled: list[int]) -> Tensor:
    """Each sequence by itself, without its padding."""
    parts = (slice(i, i + 1) for i in range(len(filled)))
    return torch.cat([
        sdpa(q[part], k[part, :, :length], v[part, :, :length])
        for part, length in zip(parts, filled, strict=True)
    ])  # fmt: skip


def _causal_rule(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return j <= i


def _window_rule(left: int, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (j <= i) & (i - j <= left)


def _document_rule(name: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (j <= i) & (name[i] == name[j])


def _dense_rule(seen: Any, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return seen[i, j]


def _length_rule(filled: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return j < filled[b]


# ------------------------------------------------------------------ cases


def case(work: str, kind: str, shape: Shape, setting: Setting) -> Case:
    """Measure one case: `work` is forward, backward or decode, `kind` which pairs count."""
    p = problem(shape, kind, setting.dtype, setting.device, work == "backward")
    if work == "decode":
        calls = decode_contenders(p, kind, shape, setting)
    elif kind in ("full", "causal"):
        calls = dense_contenders(p, kind == "causal", setting)
    else:
        calls = sparse_contenders(p, kind, shape, setting)
    peaks = calls
    if p.gradient is not None:
        steps = {n: Backward(call, (p.q, p.k, p.v), p.gradient) for n, call in calls.items()}
        calls = dict(steps)
        peaks = {n: step.training for n, step in steps.items()}
    found = measure(
        name(work, kind, shape), calls, p.same, device=setting.device, threads=setting.threads,
        rounds=setting.rounds, seconds=setting.seconds, work=amount(p, work), peaks=peaks,
        ceiling=ceilings(setting.device, setting.dtype, setting.threads),
        work_kind=work, pairs=kind, dtype=str(setting.dtype)[6:], **vars(shape),
    )  # fmt: skip
    flops = found.notes["limit"]["flops"]
    found.notes["TFLOP/s"] = {n: flops / t.median / 1e12 for n, t in found.timings.items()}
    return found


def name(work: str, kind: str, shape: Shape) -> str:
    """Return how the case is called in tables."""
    return f"{work}, {kind}, {shape}"


def amount(p: Problem, work: str) -> Work:
    """Return what cannot be saved: two products of the visible pairs (backward: five), tensors once.

    Keys and values behind a cache's length are not counted.
    """
    heads, dim = p.q.shape[1], p.q.shape[3]
    flops = 4.0 * p.pairs * heads * dim
    cache = p.k.numel() + p.v.numel()
    if work == "decode":
        cache = 2 * p.pairs * p.k.shape[1] * dim // p.q.shape[2]
    numbers = 2 * p.q.numel() + cache
    if work == "backward":  # q, k, v, output, its gradient and the three that are written
        flops, numbers = 2.5 * flops, 4 * p.q.numel() + 2 * cache
    return Work(flops, numbers * p.q.element_size())


def cpu_plans(threads: tuple[int, ...], rounds: int) -> Iterator[Plan]:
    """Yield what is measured on a CPU, smallest first; a quick run leaves out what takes long."""
    # FlexAttention has no backward pass on a CPU, and takes 20 s to compile: full runs only.
    full_run = rounds >= ROUNDS
    both = ("full", "causal")
    listed: list[tuple[str, str, Shape, bool]] = []
    for length in (512, 1024):
        listed += [(w, kind, smol(length), False) for w in ("forward", "backward") for kind in both]
    listed += [("forward", kind, smol(4096), full_run) for kind in ("window", "documents")]
    listed += [("backward", "window", smol(2048), False)]
    listed += [("forward", "tree", Shape(1, 9, 3, 64, 4096, 64), False)]
    listed += [("decode", kind, Shape(8, 9, 3, 1, 2048, 64), False) for kind in ("ragged", "full")]
    listed += [("forward", kind, qwen(1024), False) for kind in both]
    if full_run:
        listed += [(w, kind, smol(2048), False) for w in ("forward", "backward") for kind in both]
        listed += [("forward", kind, smol(4096), False) for kind in both]
    for work, kind, shape, flexible in listed:
        for count in threads:
            setting = Setting("cpu", rounds, count, flexible)
            yield name(work, kind, shape), partial(case, work, kind, shape, setting)
    if full_run:
        last, setting = smol(8192), Setting("cpu", rounds, threads[-1])
        yield name("forward", "causal", last), partial(case, "forward", "causal", last, setting)


def cuda_plans(rounds: int) -> Iterator[Plan]:
    """Yield what is measured on a GPU, the most important first: the time may end before the list."""
    both, full = ("full", "causal"), ("ragged", "full")
    cache = Shape(8, 32, 8, 1, 32768, 128)  # Llama 3 8B, eight sequences
    listed: list[tuple[str, str, Shape, bool]] = []
    for work in ("forward", "backward"):
        listed += [(work, kind, wide(4096, 128), True) for kind in both]
        listed += [(work, kind, wide(16384, 128), False) for kind in both]
    listed += [("decode", kind, cache, kind == "ragged") for kind in full]
    for dim in (64, 256):
        for work in ("forward", "backward"):
            listed += [(work, kind, wide(n, dim), False) for n in (4096, 16384) for kind in both]
    listed += [("forward", "tree", Shape(1, 32, 8, 64, 8256, 128), True)]
    listed += [("forward", kind, Shape(1, 16, 16, 16384, 16384, 128), True)
               for kind in ("window", "documents")]  # fmt: skip
    for dim in (128, 64, 256):
        for work in ("forward", "backward"):
            for n in (2048, 8192, 1024, 512):
                listed += [(work, kind, wide(n, dim), False) for kind in both]
    for work, kind, shape, flex in listed:
        setting = Setting("cuda", rounds, flex=flex)
        yield name(work, kind, shape), partial(case, work, kind, shape, setting)


def run(device: str, threads: tuple[int, ...], rounds: int) -> Iterator[Case]:
    """Measure dense, causal, block-sparse, tree and decoding attention, forward and backward."""
    return (yield from each(cpu_plans(threads, rounds) if device == "cpu" else cuda_plans(rounds)))
