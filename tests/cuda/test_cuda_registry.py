"""Which kernel a GPU gets, and what is said of GPUs that get none; no GPU is needed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparseinfer.ops.cuda import kernels as cuda_registry
from sparseinfer.ops.cuda.kernels import CudaKernel, cuda_kernel_id, refusal

BLOCKS = [
    CudaKernel(f"spmm_bsr_bf16_b64__{arch}", "spmm", "bsr", "bf16", "b64", arch, 64, 0)
    for arch in ("sm90", "sm80")
]


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    for clear in (refusal.cache_clear, cuda_kernel_id.cache_clear):
        clear()
    yield
    for clear in (refusal.cache_clear, cuda_kernel_id.cache_clear):
        clear()


def module(monkeypatch: pytest.MonkeyPatch, device: Any, runs: tuple[bool, bool] = (True, True)) -> None:
    def described(index: int) -> Any:
        if isinstance(device, Exception):
            raise device
        return device

    native = SimpleNamespace(device=described, runs_on=lambda kernel, index: runs[kernel])
    monkeypatch.setattr(cuda_registry, "cuda", lambda: native)
    monkeypatch.setattr(cuda_registry, "cuda_module", lambda: native)
    monkeypatch.setattr(cuda_registry, "cuda_kernels", lambda: tuple(BLOCKS))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_the_first_kernel_that_runs_is_taken_and_a_full_name_forces_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module(monkeypatch, {})
    assert cuda_kernel_id("spmm_bsr_bf16_b64", 0) == 0
    assert cuda_kernel_id("spmm_bsr_bf16_b64__sm80", 0) == 1
    cuda_kernel_id.cache_clear()
    module(monkeypatch, {}, (False, True))
    assert cuda_kernel_id("spmm_bsr_bf16_b64", 0) == 1


def test_a_gpu_that_no_kernel_runs_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, {"name": "A GPU", "capability": (7, 5)}, (False, False))
    message = r"for this GPU, got spmm_bsr_bf16_b64 \(A GPU has compute capability 7\.5\)"
    with pytest.raises(RuntimeError, match=message):
        cuda_kernel_id("spmm_bsr_bf16_b64", 0)
    assert refusal(0) == "A GPU has compute capability 7.5, the kernels need 8.0"


def test_why_a_layer_on_a_gpu_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, {"name": "A GPU", "capability": (9, 0)})
    assert refusal(0) is None
    refusal.cache_clear()
    module(monkeypatch, RuntimeError("cuda: expected a driver for CUDA 13.0 or newer, got one for 12.4"))
    assert refusal(0) == "cuda: expected a driver for CUDA 13.0 or newer, got one for 12.4"
    refusal.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(0) == "torch finds no usable GPU"
