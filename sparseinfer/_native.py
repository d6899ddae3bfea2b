"""Loads the native module `_core` and passes it torch's thread pool.

All other modules import `core` from here, never from `sparseinfer._core`, so that no kernel runs
before the pool is in place.
"""

from __future__ import annotations

import ctypes
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from sparseinfer import _core as core

__all__ = ["build_of", "core", "cuda_module", "torch_function"]


def torch_function(name: str) -> int:
    """Address of a C function of torch (torch >= 2.10), or 0 where it is missing."""
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            function = getattr(ctypes.CDLL(str(library)), name)
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


core.set_parallel_for(torch_function("torch_parallel_for"), torch_function("torch_get_num_threads"))


def build_of(module: ModuleType) -> list[int]:
    """Tells builds of a native module apart: its size and when it was written; [] if that is unknown."""
    if module.__file__ is None:
        return []
    status = Path(module.__file__).stat()
    return [status.st_size, status.st_mtime_ns]


@cache
def cuda_module() -> ModuleType | None:
    """`sparseinfer._cuda`, loaded at the first call, which needs no driver; None in a build without it."""
    try:
        return importlib.import_module("sparseinfer._cuda")
    except ModuleNotFoundError:
        return None
