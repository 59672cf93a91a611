"""Where kernel tests run: on CPU tensors under Triton's interpreter, on a GPU without it."""

from __future__ import annotations

import os

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETING else "cuda"
#: The mark of a test that is right in both.
everywhere = pytest.mark.interpreter if INTERPRETING else pytest.mark.gpu
