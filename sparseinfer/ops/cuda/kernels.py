"""Lists the CUDA kernels of this build, and says why none runs on a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch

from sparseinfer._native import core, cuda_module
from sparseinfer.ops.kernel import Kernel
from sparseinfer.ops.plan import bucket_for


@dataclass(frozen=True)
class CudaKernel(Kernel):
    """One row of csrc/cuda/kernels.inc; `arch` is "simt", "sm80" or "sm90".

    A launch with more than `most_tokens` tokens raises an error (0: no limit). `block`: rows and columns of
    the packing's blocks or tiles. `panel`: columns that a thread block of a decompress kernel writes.
    """

    name: str
    op: str
    packing: str
    dtype: str
    tile: str
    arch: str
    block: int
    most_tokens: int
    tile_tokens: int = 0
    panel: int = 0
    min_tokens: int = 1
    max_tokens: int = 0
    min_sparsity: float = 0.0
    max_sparsity: float = 1.0

    bucket_tokens = 0  # a plan changes only where a kernel's tokens end
    wide_panel = 0
    conv = True  # of images that are unfolded into rows, which any kernel takes

    @property
    def storage(self) -> str:
        """The storage of the weights, which is their dtype."""
        return self.dtype

    @property
    def format(self) -> str:
        """The format that its packing is made from."""
        return format_of(self.packing)


def format_of(packing: str) -> str:
    """The format that a packing is made from, "csr" or "bsr"."""
    return "bsr" if packing == "bsr" else "csr"


def cuda() -> ModuleType:
    """The native module. RuntimeError: this build has none."""
    module = cuda_module()
    if module is None:
        hint = "install with nvcc and -C cmake.define.SPARSEINFER_CUDA=ON"
        raise RuntimeError(f"cuda: expected a build with CUDA kernels, got one without ({hint})")
    return module


@lru_cache(maxsize=1)
def cuda_kernels() -> tuple[CudaKernel, ...]:
    """Every CUDA kernel of this build; none in a build without CUDA."""
    module = cuda_module()
    return () if module is None else tuple(CudaKernel(**row) for row in module.kernels())


@lru_cache(maxsize=1)
def kernels() -> tuple[CudaKernel, ...]:
    """Every row of csrc/cuda/kernels.inc, for planning; also in a build without CUDA."""
    return tuple(CudaKernel(**row) for row in core.gpu_kernels())


@lru_cache(maxsize=64)
def refusal(index: int) -> str | None:
    """Why the kernels do not run on this GPU; None if they do."""
    if cuda_module() is None:
        return "this build has no CUDA kernels"
    if not torch.cuda.is_available():
        return "torch finds no usable GPU"
    try:
        device = cuda().device(index)
    except RuntimeError as error:
        return str(error)
    if device["capability"] < (8, 0):
        return f"{_described(device)}, the kernels need 8.0"
    return None


@lru_cache(maxsize=1024)
def cuda_kernel_id(base_name: str, index: int) -> int:
    """Id, for `_cuda`, of the kernel of this name that is best on this GPU; a full name forces one.

    ValueError: no such kernel. RuntimeError: none that runs there.
    """
    module = cuda()
    named = [i for i, kernel in enumerate(cuda_kernels()) if base_name in (kernel.base_name, kernel.name)]
    if not named:
        names = sorted({kernel.base_name for kernel in cuda_kernels()})
        raise ValueError(f"kernel: expected one of {', '.join(names)}, got {base_name}")
    for i in named:
        if module.runs_on(i, index):
            return i
    raise RuntimeError(
        f"kernel: expected one for this GPU, got {base_name} ({_described(module.device(index))})"
    )


@lru_cache(maxsize=1 << 14)
def chosen(plan: str, tokens: int, index: int) -> tuple[int, int]:
    """Packing number and kernel id that a plan uses for this number of tokens on GPU `index`."""
    bucket = bucket_for(plan, tokens)
    return bucket.packing, cuda_kernel_id(bucket.kernel, index)


def _described(device: dict[str, Any]) -> str:
    major, minor = device["capability"]
    return f"{device['name']} has compute capability {major}.{minor}"
