"""The products that gpu_report.py times, and everything that can compute each of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from cublas import DENSE_WAYS
from gpu_timing import Call, Maker
from torch import Tensor

from sparseinfer import ops
from sparseinfer.bench.candidate import DENSE, OTHER, SPARSE
from sparseinfer.convert.candidates.cuda_model import H100
from sparseinfer.formats import BSR
from sparseinfer.ops.cuda import linear as cuda_linear
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.cuda.kernels import CudaKernel, cuda, cuda_kernels
from sparseinfer.ops.names import DTYPES


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

    @property
    def least_us(self) -> float:
        """On an H100: by its bytes, or by the products that are not by zero."""
        rate = H100.dense_f32 if self.dtype == "f32" else H100.dense
        return max(self.least_bytes / H100.hbm, self.flops * (1 - self.sparsity) / rate)


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


def candidates(cell: Cell) -> dict[str, tuple[str, Maker, int]]:
    """Name -> kind, maker of calls, bytes of one copy of the weight."""
    w = _weight(cell.n, cell.k, cell.dtype, cell.sparsity, cell.block)
    x = torch.randn(cell.m, cell.k, device="cuda").to(w.dtype)
    candidates: dict[str, tuple[str, Maker, int]] = {}

    def add(name: str, kind: str, nbytes: int, make: Maker) -> None:
        candidates[name] = kind, make, nbytes

    def maker(copy: Callable[[], Tensor], call: Callable[[Tensor, Tensor], Tensor]) -> Maker:
        def make() -> Call:
            weight = copy()
            return lambda: call(x, weight)

        return make

    for name, way in DENSE_WAYS.items():
        add(f"cublas {name}", DENSE, w.nbytes, maker(lambda way=way: way.hold(w.clone()), way.call))
    linear, transposed = DENSE_WAYS["linear"].call, DENSE_WAYS["transposed"].call
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's sparse layouts are in beta
        csr_bytes = int(w.count_nonzero()) * (w.itemsize + 4)
        add("cusparse csr", OTHER, csr_bytes, maker(lambda: w.to_sparse_csr().to(w.device), transposed))
        if cell.block >= 16:
            bsr = w.to_sparse_bsr((cell.block, cell.block))
            add("torch bsr", OTHER, bsr.values().nbytes, maker(bsr.clone, linear))
        if cell.block == 0:
            add(
                "torch 2:4",
                OTHER,
                w.nbytes * 9 // 16,
                maker(lambda: torch.sparse.to_sparse_semi_structured(w), linear),
            )
    for name, packed in _packings(cell, w):
        add(name, SPARSE, packed.nbytes, _ours(name, packed, x, cell.n))
    return candidates


def _packings(cell: Cell, w: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Kernels for this product by name, each with its packing; of tiled packings those that plans name."""
    device = w.device.index or 0
    for kernel in cuda_kernels():
        packing = kernel.packing
        if kernel.dtype != cell.dtype or (kernel.most_tokens and cell.m > kernel.most_tokens):
            continue
        if not cuda().runs_on(cuda_kernels().index(kernel), device):
            continue
        if packing == "bsr":
            if kernel.block == cell.block:
                size = (cell.block, cell.block)
                yield kernel.name, cuda_packing.pack(BSR.from_dense(w.cpu(), size), w.device)
        elif packing == "csr" or _is_planned(kernel, cell):
            yield kernel.name, _packed(packing, cell.n, cell.k, cell.dtype, cell.sparsity, cell.block)


def _is_planned(kernel: CudaKernel, cell: Cell) -> bool:
    return kernel.serves(cell.m) and kernel.suits(cell.sparsity)


def _ours(name: str, packed: Tensor, x: Tensor, n: int) -> Maker:
    plan = ops.format_plan((ops.Bucket(None, 0, name),))

    def make() -> Call:
        copy = packed.clone()
        cuda_packing.resident(copy)
        return lambda: cuda_linear.run(x, [copy], None, n, plan, "none")

    return make
