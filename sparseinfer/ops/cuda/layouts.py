"""Finds the CUDA kernels for weights of a given dtype, without needing a GPU or a build with CUDA."""

from __future__ import annotations

import torch

from sparseinfer.ops.cuda.kernels import CudaKernel, format_of, kernels
from sparseinfer.ops.names import DTYPE_NAMES
from sparseinfer.ops.packed import PackedInfo


def panel_of(info: PackedInfo) -> int:
    """The block size of "bsr", else 0: other packings have a fixed panel."""
    return info.block_size[0] if format_of(info.packing) == "bsr" else 0


def panel_for(kernel: CudaKernel) -> int:
    """The same for the packing that a kernel reads."""
    return kernel.block if kernel.format == "bsr" else 0


def rows(isa: str = "") -> tuple[CudaKernel, ...]:
    """The kernels of all architectures; those of one base name have the same limits."""
    return kernels()


def computing(dtype: torch.dtype, x_dtype: torch.dtype, isa: str = "") -> tuple[CudaKernel, ...]:
    """Every kernel for weights of this dtype, to which x is rounded."""
    return tuple(row for row in rows() if row.dtype == DTYPE_NAMES[dtype])


def preferred(dtype: torch.dtype, x_dtype: torch.dtype, *, conv: bool = False) -> tuple[CudaKernel, ...]:
    """The kernels that plans choose from: all, since images are unfolded for any kernel."""
    return computing(dtype, x_dtype)
