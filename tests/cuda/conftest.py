"""Each kind of kernel test runs in a process of its own, and is skipped in the others.

- `interpreter`: `TRITON_INTERPRET=1` must be set before a kernel is imported;
- `gate`: it must not be set, or there is nothing to compile;
- `gpu`: needs a CUDA device;
- no mark: operators on the CPU.
"""

from __future__ import annotations

import pytest
import torch

from tests.cuda.where import INTERPRETING

if INTERPRETING:  # before any kernel is imported
    from tests.cuda import repair

    repair.install()


def pytest_collection_modifyitems(items):
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if "interpreter" in marks and not INTERPRETING:
            item.add_marker(pytest.mark.skip(reason="set TRITON_INTERPRET=1"))
        elif "gate" in marks and INTERPRETING:
            item.add_marker(pytest.mark.skip(reason="unset TRITON_INTERPRET"))
        elif "gpu" in marks and (INTERPRETING or not torch.cuda.is_available()):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def poison(request):
    """Fill fresh memory with NaN, so that what a kernel never wrote shows in its result."""
    marks = {mark.name for mark in request.node.iter_markers()}
    if not marks & {"interpreter", "gpu"}:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    # This mode fills; `warn_only` lets the references of PyTorch run on a GPU.
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before, warn_only=warned)
