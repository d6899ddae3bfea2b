"""Every CUDA kernel of this build against fp64, for gpu_report.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.cuda import linear, packing
from sparseinfer.ops.cuda.kernels import CudaKernel, cuda, cuda_kernels
from sparseinfer.ops.cuda.tiles import TILED
from sparseinfer.ops.names import DTYPE_NUMBERS, DTYPES

POISON = 0xFF  # a NaN in every dtype
_GUARD = 4096  # bytes behind y that must stay poisoned
# Rows of x begin at multiples of so many elements, of 16 bytes in every dtype.
_PITCH = 8


@dataclass(frozen=True)
class Check:
    """One launch: integers, so that any difference is an index error, or reals."""

    kernel: CudaKernel
    n: int
    k: int
    m: int
    integer: bool


def checks() -> Iterator[Check]:
    """Every kernel of this build, with sizes of less than one of its tiles, of just more, and of several."""
    for kernel in cuda_kernels():
        b = kernel.block
        if kernel.packing == "bsr":
            shapes, counts = [(b, b), (3 * b, 5 * b), (9 * b, 7 * b)], (1, 31, 64, 129, 300)
        elif kernel.packing in TILED:
            shapes, counts = [(1, 1), (64, 64), (65, 130), (200, 1000)], (1, 7, 8, 16, 33, 64, 130)
        else:
            shapes, counts = [(1, 1), (64, 480), (65, 481), (300, 1000)], (1, 2, 3, 4, 31, 64, 129, 300)
        if kernel.op == "decompress":
            counts = (1,)
        for n, k in shapes:
            for m in counts:
                if not kernel.most_tokens or m <= kernel.most_tokens:
                    yield from (Check(kernel, n, k, m, integer) for integer in (True, False))


def failure(check: Check, generator: torch.Generator) -> str | None:
    """What is wrong with the result, or None. y begins as NaN, and so does what lies behind x and y."""
    kernel, dtype = check.kernel, DTYPES[check.kernel.dtype]
    w = _random(check.n, check.k, generator, dtype, check.integer)
    block = kernel.block if kernel.packing == "bsr" else 1
    kept = torch.rand(check.n // block, check.k // block, generator=generator) >= 0.7
    w = w * kept.repeat_interleave(block, 0).repeat_interleave(block, 1)
    if kernel.packing == "bsr":
        packed = packing.pack(BSR.from_dense(w, (block, block)))
    else:
        packed = packing.pack(CSR.from_dense(w), packing=kernel.packing)
    if kernel.op == "decompress":
        return None if torch.equal(linear.decompress(packed).cpu(), w) else "another matrix"
    x = _random(check.m, check.k, generator, dtype, check.integer)
    bias = _random(1, check.n, generator, torch.float32, check.integer)[0]
    room = torch.full(
        (check.m * check.n * dtype.itemsize + _GUARD,), POISON, dtype=torch.uint8, device="cuda"
    )
    _launch(kernel, packed, _between_poison(x).cuda()[:, : check.k], bias.cuda(), room)
    host = room.cpu()
    if not (host[-_GUARD:] == POISON).all():
        return "wrote behind y"
    y = host[:-_GUARD].view(dtype).view(check.m, check.n)
    reference = x.double() @ w.double().T + bias.double()
    if check.integer:
        return None if torch.equal(y, reference.to(dtype)) else "integers differ"
    error = float((y.double() - reference).norm() / reference.norm())
    limit = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    return None if error <= limit else f"relative error {error:.2g}"  # NaN is not <=


def _between_poison(x: Tensor) -> Tensor:
    """[m, more than k], x first, then zeros up to a multiple of 16 bytes, as kernels may read, then NaN."""
    pitch = -(-x.shape[1] // _PITCH) * _PITCH
    rows = x.new_full((x.shape[0], pitch + _PITCH), float("nan"))
    rows[:, :pitch] = 0
    rows[:, : x.shape[1]] = x
    return rows


def _launch(kernel: CudaKernel, packed: Tensor, x: Tensor, bias: Tensor, room: Tensor) -> None:
    resident, (m, k) = packing.resident(packed), x.shape
    cuda().spmm(
        cuda_kernels().index(kernel),
        (packed.device.index, torch.cuda.current_stream().cuda_stream),
        (resident.header.data_ptr(), packed.data_ptr(), packed.numel()),
        (x.data_ptr(), DTYPE_NUMBERS[DTYPES[kernel.dtype]], m, k, x.stride(0)),
        (bias.data_ptr(), DTYPE_NUMBERS[torch.float32], 0),
        (room.data_ptr(), resident.info.n),
    )


def _random(n: int, k: int, generator: torch.Generator, dtype: torch.dtype, integer: bool) -> Tensor:
    if integer:
        return torch.randint(-3, 4, (n, k), generator=generator).to(dtype)
    return torch.randn(n, k, generator=generator).to(dtype)
