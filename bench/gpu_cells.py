"""What gpu_report.py checks and times: kernels against fp64, products against what torch has for them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from gpu_timing import Call, Maker
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer.convert.cuda_case import HALF_BOUNDS
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.cuda import linear as cuda
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.cuda.kernels import CudaKernel, cuda_kernels
from sparseinfer.ops.cuda.kernels import cuda as cuda_module
from sparseinfer.ops.cuda.tiles import TILED
from sparseinfer.ops.names import DTYPE_NUMBERS, DTYPES

POISON = 0xFF  # a NaN in every dtype
_GUARD = 4096
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
    """Every kernel of this build with sizes around its tiles."""
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
    """What is wrong with the result, or None. y is poisoned before, and so is what lies behind it and x."""
    kernel, dtype = check.kernel, DTYPES[check.kernel.dtype]
    w = _random(check.n, check.k, generator, dtype, check.integer)
    block = kernel.block if kernel.packing == "bsr" else 1
    kept = torch.rand(check.n // block, check.k // block, generator=generator) >= 0.7
    w = w * kept.repeat_interleave(block, 0).repeat_interleave(block, 1)
    if kernel.packing == "bsr":
        packed = cuda_packing.pack(BSR.from_dense(w, (block, block)))
    else:
        packed = cuda_packing.pack(CSR.from_dense(w), packing=kernel.packing)
    if kernel.op == "decompress":
        return None if torch.equal(cuda.decompress(packed).cpu(), w) else "another matrix"
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
    wanted = x.double() @ w.double().T + bias.double()
    if check.integer:
        return None if torch.equal(y, wanted.to(dtype)) else "integers differ"
    error = float((y.double() - wanted).norm() / wanted.norm())
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
    known, (m, k) = cuda_packing.resident(packed), x.shape
    cuda_module().spmm(
        cuda_kernels().index(kernel),
        packed.device.index,
        torch.cuda.current_stream().cuda_stream,
        known.header.data_ptr(),
        packed.data_ptr(),
        packed.numel(),
        x.data_ptr(),
        DTYPE_NUMBERS[DTYPES[kernel.dtype]],
        m,
        k,
        x.stride(0),
        bias.data_ptr(),
        DTYPE_NUMBERS[torch.float32],
        room.data_ptr(),
        known.info.n,
        0,
    )


def _random(n: int, k: int, generator: torch.Generator, dtype: torch.dtype, integer: bool) -> Tensor:
    if integer:
        return torch.randint(-3, 4, (n, k), generator=generator).to(dtype)
    return torch.randn(n, k, generator=generator).to(dtype)


@dataclass(frozen=True)
class Cell:
    """One product to be timed; block 1: zeros lie scattered, 0: two of four are zero."""

    n: int
    k: int
    m: int
    dtype: str
    sparsity: float
    block: int

    def __str__(self) -> str:
        zeros = {0: "2:4", 1: "scattered"}.get(self.block, f"{self.block}x{self.block}")
        return f"{self.n}x{self.k} m={self.m} {self.dtype} {self.sparsity:.0%} {zeros}"

    @property
    def flops(self) -> float:
        """Of the dense product."""
        return 2.0 * self.m * self.n * self.k

    @property
    def least_bytes(self) -> float:
        """Non-zero values, x and y once each."""
        size = DTYPES[self.dtype].itemsize
        return size * (self.n * self.k * (1 - self.sparsity) + self.m * (self.n + self.k))


def cells() -> list[Cell]:
    """The most important first: time may run out. Those of one weight follow each other."""
    decode = [
        Cell(n, k, m, "bf16", sparsity, 1)
        for n, k in ((11008, 4096), (28672, 8192))
        for sparsity in (0.5, 0.8, 0.7, 0.9, 0.25)
        for m in (1, 16, 64, 8)
    ]
    blocks = [
        Cell(4096, 4096, m, "bf16", sparsity, block)
        for block in (128, 64, 32, 16)
        for sparsity in (0.5, 0.8, 0.9)
        for m in (1024, 4096)
    ]
    prompts = [Cell(11008, 4096, m, "bf16", sparsity, 1) for sparsity in (0.7, 0.9) for m in (128, 1024)]
    f32 = [Cell(4096, 4096, m, "f32", sparsity, 1) for sparsity in (0.7, 0.9) for m in (1, 4, 16, 128, 1024)]
    return [*decode, *blocks, *prompts, *f32, *(Cell(4096, 4096, m, "bf16", 0.5, 0) for m in (16, 1024))]


@lru_cache(maxsize=1)
def _weight(n: int, k: int, dtype: str, sparsity: float, block: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(n + k + block)
    drawn = torch.randn(n, k, device="cuda", generator=generator).to(DTYPES[dtype])
    if block == 0:
        return drawn * torch.tensor([1, 0, 0, 1], device="cuda").repeat(k // 4)
    kept = torch.rand(n // block, k // block, device="cuda", generator=generator) >= sparsity
    return drawn * kept.repeat_interleave(block, 0).repeat_interleave(block, 1)


@lru_cache(maxsize=4)
def _packed(packing: str, n: int, k: int, dtype: str, sparsity: float, block: int) -> Tensor:
    return cuda_packing.pack_dense(_weight(n, k, dtype, sparsity, block), packing)


DENSE, OTHER, SPARSE = "dense", "other", "sparse"


def candidates(cell: Cell) -> dict[str, tuple[str, Maker, int]]:
    """Name -> kind, maker of calls, bytes of one copy of the weight."""
    w = _weight(cell.n, cell.k, cell.dtype, cell.sparsity, cell.block)
    x = torch.randn(cell.m, cell.k, device="cuda").to(w.dtype)
    found: dict[str, tuple[str, Maker, int]] = {}

    def add(name: str, kind: str, nbytes: int, make: Maker) -> None:
        found[name] = kind, make, nbytes

    def held(make: Call, call: str) -> Maker:
        def maker() -> Call:
            own = make()
            return {
                "linear": lambda: F.linear(x, own),
                "matmul": lambda: x @ own,
                "turned": lambda: (own @ x.t()).t(),
            }[call]

        return maker

    # cuBLAS: W by its rows, W turned, and y turned.
    add("cublas linear", DENSE, w.nbytes, held(w.clone, "linear"))
    add("cublas matmul", DENSE, w.nbytes, held(lambda: w.t().contiguous(), "matmul"))
    add("cublas turned", DENSE, w.nbytes, held(w.clone, "turned"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's sparse layouts are in beta
        csr_bytes = int(w.count_nonzero()) * (w.itemsize + 4)
        add("cusparse csr", OTHER, csr_bytes, held(lambda: w.to_sparse_csr().to(w.device), "turned"))
        if cell.block >= 16:
            bsr = w.to_sparse_bsr((cell.block, cell.block))
            add("torch bsr", OTHER, bsr.values().nbytes, held(bsr.clone, "linear"))
        if cell.block == 0:
            add(
                "torch 2:4",
                OTHER,
                w.nbytes * 9 // 16,
                held(lambda: torch.sparse.to_sparse_semi_structured(w), "linear"),
            )
    for name, packed in _packings(cell, w):
        add(name, SPARSE, packed.nbytes, _ours(name, packed, x, cell.n))
    return found


def _packings(cell: Cell, w: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Kernels for this product by name, each with its packing; of tiled ones those that plans name."""
    device = w.device.index or 0
    for kernel in cuda_kernels():
        packing = kernel.packing
        if kernel.dtype != cell.dtype or (kernel.most_tokens and cell.m > kernel.most_tokens):
            continue
        if not cuda_module().runs_on(cuda_kernels().index(kernel), device):
            continue
        if packing == "bsr":
            if kernel.block == cell.block:
                size = (cell.block, cell.block)
                yield kernel.name, cuda_packing.pack(BSR.from_dense(w.cpu(), size), w.device)
        elif packing == "csr" or _is_planned(kernel, cell):
            yield kernel.name, _packed(packing, cell.n, cell.k, cell.dtype, cell.sparsity, cell.block)


def _is_planned(kernel: CudaKernel, cell: Cell) -> bool:
    low, high = HALF_BOUNDS[kernel.packing]
    named = ops.Layout(kernel.packing, kernel.dtype, device="cuda").kernel(cell.m)
    return low <= cell.sparsity <= high and kernel.base_name == named


def _ours(name: str, packed: Tensor, x: Tensor, n: int) -> Maker:
    plan = ops.format_plan((ops.Bucket(None, 0, name),))

    def make() -> Call:
        own = packed.clone()
        cuda_packing.resident(own)
        return lambda: cuda.run(x, [own], None, n, plan, "none")

    return make
