"""The CUDA kernels' own sources, run on the CPU by an emulator (tests/cuda/stubs), against fp64.

It finds wrong indices, missing waits for copies and deadlocks. It does not find races between threads, nor
what a GPU's memory model allows and the emulator does not do; bench/gpu/gpu_report.py is for that.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_emulator import call, needs_compiler
from generators import block_weight, tokens, weight

from sparseinfer import ops
from sparseinfer._native import core
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.names import ACTIVATIONS, DTYPES

pytestmark = [pytest.mark.slow, needs_compiler]

TILES = {"f32": "t32", "bf16": "t64", "f16": "t64"}


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_csr_is_exact_on_integers(library: ctypes.CDLL, dtype: str) -> None:
    few, many = f"spmm_csr_{dtype}_t4__simt", f"spmm_csr_{dtype}_{TILES[dtype]}__simt"
    for n, k in ((1, 1), (65, 481), (130, 1000)):
        fmt = CSR.from_dense(weight("random", n, k, 0.8, integer=True, dtype=DTYPES[dtype]))
        bias = torch.arange(n) % 7
        # One multiprocessor is busy with tall tiles, many are not.
        for name, m, processors in ((few, 1, 132), (few, 2, 1), (few, 3, 132), (many, 1, 132), (many, 70, 1)):
            x = tokens(m, k, integer=True, dtype=DTYPES[dtype])
            own = bias.float() if m % 2 else bias.to(x.dtype)
            y = call(library, name, fmt, x, own, "relu", processors)
            assert torch.equal(y, ops.reference_linear(x, fmt, own, "relu").to(x.dtype)), (name, n, k, m)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_csr_rows_that_are_not_aligned(library: ctypes.CDLL, dtype: str) -> None:
    fmt = CSR.from_dense(weight("empty_rows", 70, 490, 0.6, integer=True, dtype=DTYPES[dtype]))
    wide = tokens(9, 503, integer=True, dtype=DTYPES[dtype])
    for x in (wide[:, 3:493], wide[:, :490]):
        y = call(library, f"spmm_csr_{dtype}_{TILES[dtype]}__simt", fmt, x)
        assert torch.equal(y, ops.reference_linear(x, fmt).to(x.dtype))


def test_csr_with_more_columns_than_fit_at_once(library: ctypes.CDLL) -> None:
    fmt = CSR.from_dense(weight("random", 5, 30_001, 0.99, integer=True))
    x = tokens(4, 30_001, integer=True)
    y = call(library, "spmm_csr_f32_t4__simt", fmt, x, multiprocessors=1)
    assert torch.equal(y.double(), ops.reference_linear(x, fmt))


def test_csr_nan_reaches_only_its_own_outputs(library: ctypes.CDLL) -> None:
    w = torch.zeros(64, 500)
    w[3, 5], w[20, 499] = 1.0, 3.0
    x = torch.ones(4, 500)
    x[0, 5], x[1, 499], x[2, 11], x[3, 0] = float("nan"), float("inf"), float("nan"), float("nan")
    for name in ("spmm_csr_f32_t4__simt", "spmm_csr_f32_t32__simt"):
        y = call(library, name, CSR.from_dense(w), x)
        assert y[0, 3].isnan()
        assert y[1, 20] == float("inf")
        assert y.isfinite().sum() == y.numel() - 2


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "silu"])
def test_activations(library: ctypes.CDLL, activation: str) -> None:
    x = torch.linspace(-30, 30, 64 * 16).view(64, 16)
    y = call(library, "spmm_csr_f32_t32__simt", CSR.from_dense(torch.eye(16)), x, None, activation)
    error = (y.double() - ACTIVATIONS[activation](x.double())).abs()
    assert (error <= 4 * torch.finfo(torch.float32).eps * x.abs()).all()


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_decompression_is_exact(library: ctypes.CDLL, dtype: str) -> None:
    w = weight("random", 66, 971, 0.7, dtype=DTYPES[dtype])
    fmt = CSR.from_dense(w)
    dense = call(library, f"decompress_csr_{dtype}_p480__simt", fmt, torch.empty(0, 971), shape=(66, 976))
    assert torch.equal(dense[:, :971], w)
    assert (dense[:, 971 : 972 if dtype == "f32" else 976] == 0).all()  # up to 16 bytes


@pytest.mark.parametrize("arch", ["sm80", "sm90"])
@pytest.mark.parametrize("block", cuda_packing.BLOCKS)
def test_bsr_is_exact_on_integers(library: ctypes.CDLL, arch: str, block: int) -> None:
    # Tiles of 128 tokens and, on the one multiprocessor, of 256; ragged; more items than multiprocessors.
    cells = (("bf16", 2, 3, 40, 132, "none"), ("f16", 3, 2, 130, 1, "relu"), ("bf16", 1, 1, 1, 132, "none"))
    for dtype, rows, columns, m, processors, activation in cells:
        w = block_weight(
            rows * block, columns * block, (block, block), 0.4, seed=block, integer=True, dtype=DTYPES[dtype]
        )
        fmt = BSR.from_dense(w, (block, block))
        x, bias = tokens(m, columns * block, integer=True, dtype=fmt.dtype), torch.arange(rows * block) % 7
        own = bias.float() if m % 2 else bias.to(x.dtype)
        y = call(library, f"spmm_bsr_{dtype}_b{block}__{arch}", fmt, x, own, activation, processors)
        assert torch.equal(y, ops.reference_linear(x, fmt, own, activation).to(x.dtype)), (dtype, m)


@pytest.mark.parametrize("arch", ["sm80", "sm90"])
def test_bsr_filling_keeps_nan_out(library: ctypes.CDLL, arch: str) -> None:
    """Stages of small blocks are filled up with zeros, which meet no x."""
    w = torch.zeros(32, 64, dtype=torch.bfloat16)
    w[0, 16], w[16:, :] = 1.0, 1.0
    x = torch.ones(2, 64, dtype=torch.bfloat16)
    x[0, 0], x[1, 40] = float("nan"), float("inf")
    y = call(library, f"spmm_bsr_bf16_b16__{arch}", BSR.from_dense(w, (16, 16)), x)
    assert (y[:, 0] == 1).all()
    assert (y[:, 1:16] == 0).all()
    assert not y[:, 16:].isfinite().any()


def spmm_names() -> list[str]:
    return [row["name"] for row in core.gpu_kernels() if row["op"] == "spmm"]


@pytest.mark.parametrize("name", spmm_names())
def test_no_columns_no_weights_and_one_row(library: ctypes.CDLL, name: str) -> None:
    _, packing, storage, tile = name.partition("__")[0].split("_")
    dtype, blocks = DTYPES[storage], packing == "bsr"
    n_unit, k_unit = (int(tile[1:]),) * 2 if blocks else (1, 8)
    for n, k in ((n_unit, 0), (3 * n_unit, 0), (3 * n_unit, 2 * k_unit), (n_unit, 2 * k_unit)):
        w = torch.zeros(n, k, dtype=dtype)
        if n == n_unit and k:
            w[0, 0] = 2
        fmt = BSR.from_dense(w, (n_unit, n_unit)) if blocks else CSR.from_dense(w)
        bias = torch.arange(n) - 1.0
        for m in (1, 3):
            x = tokens(m, k, integer=True, dtype=dtype)
            y = call(library, name, fmt, x, bias, "relu", packing=None if blocks else packing)
            assert torch.equal(y, ops.reference_linear(x, fmt, bias, "relu").to(dtype)), (n, k, m)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_decompression_of_no_weights_and_one_row(library: ctypes.CDLL, dtype: str) -> None:
    for n, k in ((1, 1), (3, 8)):
        w = torch.zeros(n, k, dtype=DTYPES[dtype])
        w[:, :1] = torch.eye(n, 1) * (n == 1)
        name = f"decompress_csr_{dtype}_p480__simt"
        dense = call(library, name, CSR.from_dense(w), torch.empty(0, k), shape=(n, 8))
        assert torch.equal(dense[:, :k], w)
