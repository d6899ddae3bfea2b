"""The kernels of the tiled packings, run on the CPU by the emulator, against fp64."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_emulator import call, needs_compiler
from generators import PATTERNS, tokens, weight
from torch import Tensor

from sparseinfer import ops
from sparseinfer.formats import CSR
from sparseinfer.ops.names import DTYPES

pytestmark = [pytest.mark.slow, needs_compiler]

ARCHES = ("sm80", "sm90")
PACKINGS = ("bitmap", "delta4", "delta8")


def aligned(x: Tensor) -> Tensor:
    """x with rows that begin at multiples of 16 bytes, and zeros behind them."""
    m, k = x.shape
    wide = torch.zeros(m, -(-k // 8) * 8, dtype=x.dtype)
    wide[:, :k] = x
    return wide[:, :k]


def agrees(
    library: ctypes.CDLL,
    kernel: str,
    w: Tensor,
    m: int,
    activation: str = "none",
    bias: Tensor | None = None,
) -> bool:
    packing, dtype = kernel.split("_")[1:3]
    assert w.dtype == DTYPES[dtype]
    fmt, x = CSR.from_dense(w), aligned(tokens(m, w.shape[1], integer=True, dtype=w.dtype))
    y = call(library, kernel, fmt, x, bias, activation, packing=packing)
    return torch.equal(y, ops.reference_linear(x, fmt, bias, activation).to(w.dtype))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("tile", "m"), [(8, 5), (16, 16), (32, 19), (64, 70)])
def test_integers_are_exact(library: ctypes.CDLL, arch: str, packing: str, tile: int, m: int) -> None:
    for dtype, n, k, sparsity in (("bf16", 65, 130, 0.5), ("f16", 64, 64, 0.9), ("bf16", 3, 700, 0.8)):
        w = weight("random", n, k, sparsity, integer=True, dtype=DTYPES[dtype])
        bias = torch.arange(n) % 7
        own = bias.float() if n % 2 else bias.to(w.dtype)
        assert agrees(library, f"spmm_{packing}_{dtype}_t{tile}__{arch}", w, m, "relu", own), (n, k)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(library: ctypes.CDLL, arch: str, packing: str, pattern: str) -> None:
    w = weight(pattern, 130, 200, 0.7, integer=True, dtype=torch.bfloat16)
    assert agrees(library, f"spmm_{packing}_bf16_t8__{arch}", w, 3)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("packing", PACKINGS)
def test_streams_that_go_round_the_ring(library: ctypes.CDLL, arch: str, packing: str) -> None:
    """Pieces of 4 to 12 tiles, dense ones and sparse ones, are several times as long as a ring."""
    for sparsity in (0.0, 0.6):
        w = weight("random", 20, 64 * 150, sparsity, integer=True, dtype=torch.float16)
        assert agrees(library, f"spmm_{packing}_f16_t8__{arch}", w, 2)


@pytest.mark.parametrize("arch", ARCHES)
def test_lanes_that_drift_apart(library: ctypes.CDLL, arch: str) -> None:
    """One lane of a bitmap has everything, then another one: the others skip ahead."""
    w = torch.zeros(64, 64 * 40, dtype=torch.bfloat16)
    tiles = w.view(64, 40, 64)
    tiles[0, ::2, :16], tiles[40, 1::2, 20:30], tiles[:, 7] = 1.0, 2.0, 3.0
    assert agrees(library, f"spmm_bitmap_bf16_t8__{arch}", w, 4)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_decompression_is_exact(library: ctypes.CDLL, packing: str, dtype: str) -> None:
    for n, k, sparsity in ((66, 971, 0.7), (64, 128, 0.0), (1, 8, 0.5)):
        w = weight("random", n, k, sparsity, dtype=DTYPES[dtype])
        w[0, 0] = float("nan")
        pitch = -(-k // 8) * 8
        name = f"decompress_{packing}_{dtype}_p64__sm80"
        shape = (n, pitch)
        dense = call(library, name, CSR.from_dense(w), torch.empty(0, k), shape=shape, packing=packing)
        assert torch.equal(dense[:, :k].view(torch.int16), w.view(torch.int16))
        assert (dense[:, k:] == 0).all()
