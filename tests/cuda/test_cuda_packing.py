"""Packings of the CUDA kernels, made and read on the CPU: against the layout as its header describes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from generators import PATTERNS, block_weight, weight
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.names import DTYPES

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SHAPES = [(1, 1), (63, 479), (64, 480), (65, 481), (130, 961), (7, 2000)]


def section(packed: Tensor, name: str, dtype: str, count: int) -> np.ndarray:
    info = core.gpu_describe(packed.data_ptr(), packed.numel())
    size = np.dtype(dtype).itemsize
    return packed.numpy()[info[name] : info[name] + count * size].view(dtype)


def decoded_csr(packed: Tensor) -> Tensor:
    """The dense matrix, read list by list as gpu_packings.h says, with plain numpy."""
    info = core.gpu_describe(packed.data_ptr(), packed.numel())
    n, k, panels = info["n"], info["k"], info["panels"]
    wide = info["dtype"] == "f32"
    per_vector, bits = (4, "u4") if wide else (8, "u2")
    order = section(packed, "order", "u1", n).astype(int)
    starts = section(packed, "starts", "u4", panels * n + 1).astype(int)
    columns = section(packed, "columns", "u2", info["units"] * per_vector).astype(int)
    values = section(packed, "values", bits, info["units"] * per_vector)
    dense = np.zeros((n, k), bits)
    lengths = np.zeros(n, int)
    for panel in range(panels):
        for position in range(n):
            row = position // 64 * 64 + order[position]
            list_ = range(
                starts[panel * n + position] * per_vector, starts[panel * n + position + 1] * per_vector
            )
            for i in list_:
                c = columns[i] // 128
                assert columns[i] % 128 == ((c // 4) ^ (c // 32)) % 8 * 16
                if c == 480:
                    assert values[i] == 0
                else:
                    dense[row, panel * 480 + c] = values[i]
                    lengths[row] += 1
    for window in range(0, n, 64):
        sorted_rows = window + order[window : window + 64]
        assert (np.diff(lengths[sorted_rows]) <= 0).all()
    return torch.from_numpy(dense.view("i4" if wide else "i2")).view(DTYPES[info["dtype"]])


def decoded_bsr(packed: Tensor) -> Tensor:
    info = core.gpu_describe(packed.data_ptr(), packed.numel())
    n, k, b = info["n"], info["k"], info["block"]
    width = min(b, 64)
    row_bytes = 2 * width
    order = section(packed, "order", "i4", n // b)
    starts = section(packed, "starts", "u4", n // b + 1).astype(int)
    columns = section(packed, "columns", "i4", info["units"])
    values = section(packed, "values", "u2", info["units"] * b * width).reshape(-1, b * width)
    dense = np.zeros((n, k), "u2")
    assert (np.diff(np.diff(starts)) <= 0).all()
    assert (np.diff(starts) % (64 // width) == 0).all()
    r, c = np.mgrid[:b, :width]
    chunk = c // 8 ^ (r % 8 if row_bytes == 128 else r // 2 % 4 if row_bytes == 64 else r // 4 % 2)
    for position in range(n // b):
        for slab in range(starts[position], starts[position + 1]):
            block = values[slab][r * width + chunk * 8 + c % 8]
            if columns[slab] == k // width:
                assert not block.any()
            else:
                dense[order[position] * b + r, columns[slab] * width + c] = block
    return torch.from_numpy(dense.view("i2")).view(DTYPES[info["dtype"]])


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_csr(dtype: torch.dtype, pattern: str) -> None:
    for n, k in SHAPES:
        w = weight(pattern, n, k, 0.8, seed=n + k, dtype=dtype)
        fmt = CSR.from_dense(w)
        packed = cuda_packing.pack(fmt, "cpu")
        assert same_bits(decoded_csr(packed), w)
        back = cuda_packing.unpack(packed)
        assert isinstance(back, CSR)
        for part in ("values", "crow_indices", "col_indices"):
            assert same_bits(getattr(back, part), getattr(fmt, part)), part
        assert torch.equal(cuda_packing.pack_dense(w), packed)


def test_csr_keeps_stored_zeros_nan_and_infinity() -> None:
    values = torch.tensor([0.0, float("nan"), float("-inf"), -0.0, 1e-40])
    fmt = CSR(
        values, torch.tensor([0, 2, 2, 5]), torch.tensor([3, 500, 0, 1, 480], dtype=torch.int32), (3, 501)
    )
    back = cuda_packing.unpack(cuda_packing.pack(fmt, "cpu"))
    assert same_bits(back.values, values)
    assert torch.equal(back.col_indices, fmt.col_indices)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("block", cuda_packing.BLOCKS)
def test_bsr(dtype: torch.dtype, block: int) -> None:
    for rows, columns, sparsity in ((1, 1, 0.0), (3, 5, 0.5), (2, 3, 1.0)):
        w = block_weight(rows * block, columns * block, (block, block), sparsity, seed=block, dtype=dtype)
        fmt = BSR.from_dense(w, (block, block))
        packed = cuda_packing.pack(fmt, "cpu")
        assert same_bits(decoded_bsr(packed), w)
        back = cuda_packing.unpack(packed)
        assert isinstance(back, BSR)
        for part in ("values", "crow_indices", "col_indices"):
            assert same_bits(getattr(back, part), getattr(fmt, part)), part


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0)])
def test_empty_sizes(shape: tuple[int, int]) -> None:
    back = cuda_packing.unpack(cuda_packing.pack(CSR.from_dense(torch.zeros(shape)), "cpu"))
    assert back.shape == shape
    assert back.nnz == 0


def test_bytes_are_what_the_paper_says() -> None:
    """16-bit columns: 6 bytes a weight in float32 and 4 in 16 bits, and filling of half a vector a list."""
    n, k = 512, 4800
    for dtype, size, half in ((F32, 6, 2), (BF16, 4, 4)):
        packed = cuda_packing.pack(CSR.from_dense(weight("random", n, k, 0.9, dtype=dtype)), "cpu")
        info = cuda_packing.describe(packed)
        lists = n * k // 480
        assert info.nbytes <= size * (info.nnz + half * lists) + 4 * lists + 2 * n + 2048


def test_other_blocks_and_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="block_size: expected square blocks of 16, 32, 64, 128"):
        cuda_packing.pack(BSR.from_dense(torch.ones(8, 8, dtype=BF16), (8, 8)), "cpu")
    with pytest.raises(TypeError, match="values: expected bfloat16 or float16 for packing bsr on CUDA, got"):
        cuda_packing.pack(BSR.from_dense(torch.ones(16, 16), (16, 16)), "cpu")


@pytest.mark.parametrize("nbytes", [0, 64, 128, 4096])
def test_other_bytes_are_not_a_packing(nbytes: int) -> None:
    with pytest.raises(ValueError, match="packed: expected"):
        cuda_packing.describe(torch.zeros(nbytes, dtype=torch.uint8))


@pytest.mark.parametrize("kind", ["csr", "bsr"])
def test_damage_is_refused_or_harmless(kind: str) -> None:
    """Only values may change without a word: no index may lead a kernel out of its memory."""
    if kind == "csr":
        fmt: CSR | BSR = CSR.from_dense(weight("random", 70, 500, 0.9, dtype=BF16))
    else:
        fmt = BSR.from_dense(block_weight(64, 96, (16, 16), 0.5, dtype=BF16), (16, 16))
    packed = cuda_packing.pack(fmt, "cpu")
    values = core.gpu_describe(packed.data_ptr(), packed.numel())["values"]
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(300):
        damaged = packed.clone()
        at = int(torch.randint(0, values, (1,), generator=generator))
        damaged[at] ^= int(torch.randint(1, 256, (1,), generator=generator))
        try:
            back = cuda_packing.unpack(damaged)
        except ValueError:
            refused += 1
        else:
            back.validate()
    assert refused > 100


def test_a_written_packing_is_looked_at_again() -> None:
    packed = cuda_packing.pack(CSR.from_dense(torch.eye(8)), "cpu")
    known = cuda_packing.resident(packed)
    assert cuda_packing.resident(packed) is known
    packed[0] = 0
    with pytest.raises(ValueError, match="packed: expected a packing of the CUDA kernels"):
        cuda_packing.resident(packed)
