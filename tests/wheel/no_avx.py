"""The installed `_core` on a CPU without AVX: every kernel that such a CPU has, on integers, so exactly.

    qemu-x86_64 -cpu Nehalem python tests/wheel/no_avx.py

It is loaded by itself: torch is not needed, and would take minutes to start in an emulator.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import site
import sys
from pathlib import Path
from typing import Any

import numpy as np

N, K, TOKENS = 24, 40, (1, 5, 70)


def core() -> Any:
    """The extension module of the installed package, without the package."""
    (path,) = (
        file for folder in site.getsitepackages() for file in Path(folder).glob("sparseinfer/_core*.so")
    )
    loader = importlib.machinery.ExtensionFileLoader("sparseinfer._core", str(path))
    spec = importlib.util.spec_from_file_location("sparseinfer._core", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def main() -> None:
    module = core()
    if module.isa_levels() != ["scalar"]:
        sys.exit(f"expected a CPU with the level scalar only, got {', '.join(module.isa_levels())}")
    for isa in ("avx2", "avx512"):
        sys.stdout.write(f"{isa}: {module.isa_refusal(isa)}\n")
    rng = np.random.default_rng(0)
    weight = rng.integers(-3, 4, (N, K)).astype(np.float32) * (rng.random((N, K)) < 0.3)
    crow = np.concatenate([[0], (weight != 0).sum(1).cumsum()]).astype(np.int64)
    col, values = weight.nonzero()[1].astype(np.int32), weight[weight != 0]
    parts = ("f32", N, K, len(values), 1, 1, crow.ctypes.data, col.ctypes.data, values.ctypes.data, 0)
    bias = rng.integers(-3, 4, N).astype(np.float32)
    run = 0
    for number, kernel in enumerate(module.kernels()):
        if not kernel["available"] or (kernel["storage"], kernel["format"]) != ("f32", "csr"):
            continue
        packed = module.pack(kernel["packing"], parts, "f32", kernel["isa"])
        for m in TOKENS:
            if 0 < kernel["max_tokens"] < m:
                continue
            x = rng.integers(-3, 4, (m, K)).astype(np.float32)
            y = np.empty((m, N), np.float32)
            f32, none = module.dtypes.index("f32"), module.activations.index("none")
            module.spmm(
                number,
                (x.ctypes.data, f32, m, K, K),
                packed.ctypes.data,
                (bias.ctypes.data, f32, none),
                (y.ctypes.data, N),
            )
            if not np.array_equal(y, x @ weight.T + bias):
                sys.exit(f"{kernel['name']}: expected integers, exactly, got others with {m} tokens")
            run += 1
    if not run:
        sys.exit("expected kernels of level scalar, got none")
    sys.stdout.write(f"{run} products by kernels of level scalar are exact\n")


if __name__ == "__main__":
    main()
