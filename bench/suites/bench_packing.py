"""What a layer costs before its first call: making a format, packing it, and going back."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from sparseinfer import ops
from sparseinfer.bench.kernel_rows import kernel_rows
from sparseinfer.bench.problem import random_layer
from sparseinfer.formats import BSR, CSR

SHAPE = (3072, 768)
BLOCK = (16, 16)
SPARSITY = 0.8
# Every layout of float32 by its format; for one token none is left out.
LAYOUTS = {row.layout: row.kernel.format for row in kernel_rows(torch.float32, 1, ops.active_isa(), BLOCK)}


def made(fmt: str) -> CSR | BSR:
    """A random layer in the format "csr" or "bsr"."""
    weight, _ = random_layer(*SHAPE, SPARSITY, block=BLOCK if fmt == "bsr" else None)
    return BSR.from_dense(weight, BLOCK) if fmt == "bsr" else CSR.from_dense(weight)


@pytest.mark.benchmark(group="format")
@pytest.mark.parametrize("fmt", ["csr", "bsr"])
def test_from_dense(benchmark: BenchmarkFixture, fmt: str) -> None:
    weight = made(fmt).to_dense()
    benchmark(lambda: CSR.from_dense(weight) if fmt == "csr" else BSR.from_dense(weight, BLOCK))


@pytest.mark.benchmark(group="pack")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pack(benchmark: BenchmarkFixture, layout: ops.Layout) -> None:
    benchmark(layout.pack, made(LAYOUTS[layout]))


@pytest.mark.benchmark(group="unpack")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_unpack(benchmark: BenchmarkFixture, layout: ops.Layout) -> None:
    benchmark(ops.unpack, layout.pack(made(LAYOUTS[layout])))
