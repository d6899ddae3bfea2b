"""Loads the native module and hands it torch's own thread pool.

Everything above this file imports `core` from here, never from `sparseinfer._core`, so that no kernel runs
before the pool is in place.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from sparseinfer import _core as core

__all__ = ["core"]


def _torch_parallel_for() -> int | None:
    """Address of torch's C function `torch_parallel_for` (torch >= 2.10), or None where it is missing."""
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            function = ctypes.CDLL(str(library)).torch_parallel_for
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None


core.set_parallel_for(_torch_parallel_for() or 0)
