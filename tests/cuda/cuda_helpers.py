"""The CUDA module of `make cuda-build`, which tests load from its build folder: it needs no GPU for that."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build-cuda"

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no usable GPU")


@cache
def built_module() -> ModuleType:
    """Skips the test where it has not been built."""
    from sparseinfer._native import cuda_module

    installed = cuda_module()
    if installed is not None:
        return installed
    found = sorted(BUILD.glob("_cuda.*.so"))
    if not found:
        pytest.skip("no CUDA module: `make cuda-build` has not run")
    spec = importlib.util.spec_from_file_location("_cuda", found[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("_cuda", module)
    spec.loader.exec_module(module)
    return module
