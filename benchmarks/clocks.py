"""Seconds and bytes of one call, on the CPU and on a CUDA device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

#: Cycles for which the GPU waits (about a millisecond) while the CPU fills its queue.
_SPIN = 2_000_000


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Return wall-clock and processor seconds."""
    busy, start = time.process_time(), time.perf_counter()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def cuda_seconds(call: Callable[[], Any], flush: bool = True) -> tuple[float, float]:
    """Return seconds on the GPU between two events, and processor seconds of launching.

    The second-level cache is overwritten before, or with `flush=False` filled by a first call. The
    events enclose no gap: while the GPU waits for the first, the CPU has already launched the rest.
    """
    if flush:
        torch.empty(64 * 2**20, dtype=torch.int32, device="cuda").zero_()
    else:
        call()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(_SPIN)
    start.record()  # type: ignore[no-untyped-call]
    busy = time.process_time()
    call()
    busy = time.process_time() - busy
    stop.record()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1000, busy


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Return the most bytes that PyTorch's allocator held above what it held before the call."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as recorded:
        result = call()
    assert recorded.profiler is not None
    told = recorded.profiler.kineto_results
    assert told is not None
    events = [event for event in told.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative where memory is given back
        most = max(most, held)
    del result
    return most
