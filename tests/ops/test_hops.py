"""How many calls lie between a layer and its kernel, on either device, and that no call is the other's."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch
from cuda_native import Native

from sparseinfer import SparseLinear
from sparseinfer.formats import CSR
from sparseinfer.ops import backend, cuda, eager
from sparseinfer.ops.cpu import linear as on_cpu
from sparseinfer.ops.cuda import linear as on_cuda
from sparseinfer.ops.cuda import packing


def frames_since_forward(frame: FrameType | None) -> list[str]:
    """Files of the frames from SparseLinear.forward to this one, both included."""
    files = []
    while frame is not None:
        files.append(frame.f_code.co_filename)
        if frame.f_code is SparseLinear.forward.__code__:
            return files
        frame = frame.f_back
    raise AssertionError("forward was not called")


class Recorder:
    """In the place of a native module; holds the frames that called it."""

    def __init__(self, module: Any) -> None:
        self.module, self.files = module, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def spmm(self, *args: Any) -> None:
        self.files = frames_since_forward(sys._getframe())
        self.module.spmm(*args)


def test_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    native = Recorder(on_cpu.core)
    monkeypatch.setattr(on_cpu, "core", native)
    layer, x = SparseLinear.from_format(CSR.from_dense(torch.eye(8))), torch.randn(3, 8)
    with torch.inference_mode():
        assert torch.equal(layer(x), x)
    assert len(native.files) <= 5
    assert not [file for file in native.files if "/ops/cuda/" in file]


def test_cuda_never_visits_the_cpu(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors are on the CPU here; only what asks where they are says otherwise."""
    recorder = Recorder(native)
    monkeypatch.setattr(on_cuda, "cuda", lambda: recorder)
    for module in (backend, eager):
        monkeypatch.setattr(module, "backend_of", lambda t: cuda)
    layer, x = SparseLinear([packing.pack(CSR.from_dense(torch.eye(8)), "cpu")]), torch.randn(3, 8)
    with torch.inference_mode():
        assert torch.equal(layer(x), x)
    assert native.calls == ["spmm_csr_f32_t4__simt"]
    assert len(recorder.files) <= 6
    assert not [file for file in recorder.files if "/ops/cpu/" in file]
