"""Runs the CUDA kernels' own sources on the CPU. What that finds: see tests/cuda/stubs/emulator.h."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.names import ACTIVATIONS, DTYPES

ROOT = Path(__file__).parents[2]
GUARD = 64
MULTIPROCESSORS = 132

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")


def build(folder: Path) -> ctypes.CDLL:
    """All kernels of csrc/cuda, compiled for the emulator."""
    sources = [*sorted((ROOT / "csrc/cuda").rglob("*.cu")), ROOT / "csrc/cuda/registry.cpp"]
    sources.append(ROOT / "tests/cuda/emulated.cpp")
    search = [f"-I{ROOT / path}" for path in ("tests/cuda/stubs", "csrc", "csrc/include")]
    options = ["-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wno-unknown-pragmas"]

    def compiled(number: int) -> str:
        target = str(folder / f"{number}.o")
        subprocess.run(
            ["c++", "-x", "c++", *options, *search, "-c", str(sources[number]), "-o", target], check=True
        )
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, range(len(sources))))
    shared = folder / "libemulated.so"
    subprocess.run(["c++", "-shared", *objects, "-o", str(shared)], check=True)
    return ctypes.CDLL(str(shared))


def call(
    library: ctypes.CDLL,
    name: str,
    fmt: CSR | BSR,
    x: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    multiprocessors: int = MULTIPROCESSORS,
    shape: tuple[int, int] | None = None,
    packing: str | None = None,
) -> Tensor:
    """y [m, n], or of another shape; poisoned before, as what lies behind it is."""
    packed = cuda_packing.pack(fmt, "cpu", packing)
    rows, columns = (x.shape[0], fmt.shape[0]) if shape is None else shape
    y = torch.full((rows * columns + GUARD,), float("nan"), dtype=fmt.dtype)
    message = ctypes.create_string_buffer(200)

    def address(t: Tensor | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(0 if t is None else t.data_ptr())

    failed = library.emulated(
        name.encode(),
        address(cuda_packing.resident(packed).header),
        address(packed),
        address(x),
        ctypes.c_int64(x.shape[0]),
        ctypes.c_int64(x.stride(0)),
        address(bias),
        0 if bias is None or bias.dtype == torch.float32 else list(DTYPES.values()).index(bias.dtype),
        address(y),
        ctypes.c_int64(columns),
        list(ACTIVATIONS).index(activation),
        multiprocessors,
        message,
    )
    assert not failed, message.value.decode()
    assert y[rows * columns :].isnan().all()
    return y[: rows * columns].view(rows, columns)
