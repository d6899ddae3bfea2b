"""What gpu_report.py checks and times: kernels against fp64, products against what torch has for them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from gpu_timing import Call, Maker
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops import cuda, cuda_packing
from sparseinfer.ops.cuda_registry import DTYPE_NUMBERS, CudaKernel, cuda_kernels
from sparseinfer.ops.packing import DTYPES

POISON = 0xFF  # a NaN in every dtype
_GUARD = 4096


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
        if kernel.packing == "bsr":
            b = kernel.block
            shapes = [(b, b), (3 * b, 5 * b), (9 * b, 7 * b)]
        else:
            shapes = [(1, 1), (64, 480), (65, 481), (300, 1000)]
        counts = (
            (1,)
            if kernel.op == "decompress"
            else (1, 2, 3, 4)
            if kernel.max_tokens
            else (1, 31, 64, 129, 300)
        )
        for (n, k), m, integer in ((s, m, i) for s in shapes for m in counts for i in (True, False)):
            yield Check(kernel, n, k, m, integer)


def failure(check: Check, generator: torch.Generator) -> str | None:
    """What is wrong with the result, or None. y is poisoned before, and so is what lies behind it."""
    kernel, dtype = check.kernel, DTYPES[check.kernel.dtype]
    w = _random(check.n, check.k, generator, dtype, check.integer)
    block = kernel.block
    kept = torch.rand(check.n // block, check.k // block, generator=generator) >= 0.7
    w = w * kept.repeat_interleave(block, 0).repeat_interleave(block, 1)
    packed = cuda_packing.pack(
        BSR.from_dense(w, (block, block)) if kernel.packing == "bsr" else CSR.from_dense(w)
    )
    if kernel.op == "decompress":
        return None if torch.equal(cuda.decompress(packed).cpu(), w) else "another matrix"
    x = _random(check.m, check.k, generator, dtype, check.integer)
    bias = _random(1, check.n, generator, torch.float32, check.integer)[0]
    room = torch.full(
        (check.m * check.n * dtype.itemsize + _GUARD,), POISON, dtype=torch.uint8, device="cuda"
    )
    _launch(kernel, packed, x.cuda(), bias.cuda(), room)
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


def _launch(kernel: CudaKernel, packed: Tensor, x: Tensor, bias: Tensor, room: Tensor) -> None:
    known, (m, k) = cuda_packing.resident(packed), x.shape
    cuda.cuda().spmm(
        cuda_kernels().index(kernel),
        packed.device.index,
        torch.cuda.current_stream().cuda_stream,
        known.header.data_ptr(),
        packed.data_ptr(),
        packed.numel(),
        x.data_ptr(),
        DTYPE_NUMBERS[kernel.dtype],
        m,
        k,
        k,
        bias.data_ptr(),
        DTYPE_NUMBERS["f32"],
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
    found = [
        Cell(n, 4096, m, dtype, sparsity, 1)
        for n in (4096, 11008)
        for dtype in ("f32", "bf16")
        for sparsity in (0.7, 0.9)
        for m in (1, 4, 16, 128, 1024)
    ]
    found += [
        Cell(4096, 4096, m, "bf16", sparsity, block)
        for block in (128, 64, 32, 16)
        for sparsity in (0.5, 0.8, 0.9)
        for m in (1024, 4096)
    ]
    return found + [Cell(4096, 4096, m, "bf16", 0.5, 0) for m in (16, 1024)]


def weight_of(cell: Cell) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(cell.n + cell.k + cell.block)
    drawn = torch.randn(cell.n, cell.k, device="cuda", generator=generator).to(DTYPES[cell.dtype])
    if cell.block == 0:
        return drawn * torch.tensor([1, 0, 0, 1], device="cuda").repeat(cell.k // 4)
    b = cell.block
    kept = torch.rand(cell.n // b, cell.k // b, device="cuda", generator=generator) >= cell.sparsity
    return drawn * kept.repeat_interleave(b, 0).repeat_interleave(b, 1)


DENSE, OTHER, SPARSE = "dense", "other", "sparse"


def candidates(cell: Cell) -> dict[str, tuple[str, Maker, int]]:
    """Name -> kind, maker of calls, bytes of one copy of the weight."""
    w = weight_of(cell)
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
    device = w.device.index or 0
    csr = cuda_packing.pack_dense(w)
    for kernel in cuda_kernels():
        if kernel.dtype != cell.dtype or (kernel.max_tokens and cell.m > kernel.max_tokens):
            continue
        if not cuda.cuda().runs_on(cuda_kernels().index(kernel), device):
            continue
        if kernel.packing == "csr":
            yield kernel.name, csr
        elif kernel.block == cell.block:
            size = (cell.block, cell.block)
            yield kernel.name, cuda_packing.pack(BSR.from_dense(w.cpu(), size), w.device)


def _ours(name: str, packed: Tensor, x: Tensor, n: int) -> Maker:
    plan = ops.format_plan((ops.Bucket(None, 0, name),))

    def make() -> Call:
        own = packed.clone()
        cuda_packing.resident(own)
        return lambda: cuda.run(x, [own], None, n, plan, "none")

    return make
