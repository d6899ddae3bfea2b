"""A stand-in for the native CUDA module, for tests of what calls it: it computes on CPU memory."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer._native import core
from sparseinfer.convert.survey.weights import Weights
from sparseinfer.ops.cuda import conv as cuda_conv
from sparseinfer.ops.cuda import kernels as cuda_registry
from sparseinfer.ops.cuda import linear as cuda
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.cuda.kernels import CudaKernel
from sparseinfer.ops.geometry import Geometry
from sparseinfer.ops.names import ACTIVATIONS, DTYPES

STREAM = 77


def at(address: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory at an address, as the native module would see it."""
    length = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * (length * dtype.itemsize)).from_address(address))
    return torch.from_numpy(raw).view(dtype).as_strided(shape, stride)


class Native:
    """Computes in float64 from the addresses of a call; holds the calls."""

    activations = list(ACTIVATIONS).index("silu") + 1

    def __init__(self) -> None:
        self.calls: list[str] = []
        scattered = [row for row in core.gpu_kernels() if row["packing"] != "bsr"]
        rows = {name.rsplit("__", 1)[0]: row for row in scattered for name in [row["name"]]}
        self.rows = [row | {"name": f"{base}__simt", "arch": "simt"} for base, row in rows.items()]

    def kernels(self) -> list[dict[str, Any]]:
        return self.rows

    def runs_on(self, kernel: int, index: int) -> bool:
        return True

    def _weight(self, header: int, packed: int, nbytes: int) -> Tensor:
        assert torch.equal(at(header, (128,), (1,), torch.uint8), at(packed, (128,), (1,), torch.uint8))
        return cuda_packing.unpack(at(packed, (nbytes,), (1,), torch.uint8).clone()).to_dense()

    def spmm(
        self,
        kernel: int,
        place: tuple[int, int],
        packing: tuple[int, int, int],
        tokens: tuple[int, int, int, int, int],
        epilogue: tuple[int, int, int],
        result: tuple[int, int],
    ) -> None:
        (_, stream), (header, packed, nbytes), (x, x_dtype, m, k, ldx) = place, packing, tokens
        (bias, bias_dtype, activation), (y, n) = epilogue, result
        assert activation < self.activations
        assert stream == STREAM
        self.calls.append(self.rows[kernel]["name"])
        assert self.rows[kernel]["most_tokens"] in (0, *range(m, 65))
        assert self.rows[kernel]["packing"] == "csr" or (x % 16, ldx * 2 % 16) == (0, 0)
        w = self._weight(header, packed, nbytes)
        dtypes = list(DTYPES.values())
        rows = at(x, (m, k), (ldx, 1), dtypes[x_dtype]).double()
        result = rows @ w.double().T
        if bias:
            result = result + at(bias, (n,), (1,), dtypes[bias_dtype]).double()
        at(y, (m, n), (n, 1), w.dtype).copy_(list(ACTIVATIONS.values())[activation](result))

    def decompress(
        self, kernel: int, place: tuple[int, int], packing: tuple[int, int, int], result: tuple[int, int]
    ) -> None:
        (_, stream), (header, packed, nbytes), (y, ldy) = place, packing, result
        assert stream == STREAM
        assert ldy % 8 == 0
        self.calls.append(self.rows[kernel]["name"])
        w = self._weight(header, packed, nbytes)
        at(y, tuple(w.shape), (ldy, 1), w.dtype).copy_(w)


def installed(monkeypatch: pytest.MonkeyPatch) -> Native:
    """In the place of the native module. Operators are to be called by their `run`."""
    module = Native()
    rows = tuple(CudaKernel(**row) for row in module.rows)
    for place in (cuda, cuda_registry):
        monkeypatch.setattr(place, "cuda", lambda: module)
        monkeypatch.setattr(place, "cuda_kernels", lambda: rows)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    cuda_registry.cuda_kernel_id.cache_clear()
    cuda_registry.chosen.cache_clear()
    return module


def pretend_to_be_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Native:
    """Besides, `convert` and the layers it makes take the CPU for a GPU."""
    module = installed(monkeypatch)

    def parts(x: Tensor, packings: Any, bias: Any, sizes: Any, wanted: Any, plan: str) -> Any:
        y = cuda.run(x, packings, bias, sum(sizes), plan, "none")
        return [part.contiguous() for part in y.split(sizes, -1)]

    def conv(x: Tensor, packings: Any, bias: Any, n: int, *, plan: str, activation: str, **sizes: Any) -> Any:
        return cuda_conv.run(x, packings, bias, n, Geometry(**sizes), plan, activation)

    monkeypatch.setattr(Weights, "on_gpu", True)
    for name, own in (
        ("linear", cuda.run),
        ("linear_parts", parts),
        ("conv", conv),
        ("describe", cuda_packing.describe),
        ("unpack", cuda_packing.unpack),
    ):
        monkeypatch.setattr(ops, name, own)
    return module
