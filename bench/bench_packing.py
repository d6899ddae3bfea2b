"""What a layer costs before its first call: making a format, packing it, and going back."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from sparseinfer import ops
from sparseinfer.bench.layer import random_layer
from sparseinfer.formats import BSR, CSR

SHAPE = (3072, 768)
BLOCK = (16, 16)
SPARSITY = 0.8
LAYOUTS = [
    *(layout for tokens in (1, 16) for layout in ops.layouts(torch.float32, torch.float32, tokens)),
    ops.Layout("bsr"),
]


def fmt_for(packing: str) -> CSR | BSR:
    block = BLOCK if packing == "bsr" else None
    weight, _ = random_layer(*SHAPE, SPARSITY, block=block)
    return CSR.from_dense(weight) if block is None else BSR.from_dense(weight, block)


@pytest.mark.benchmark(group="format")
@pytest.mark.parametrize("fmt", ["csr", "bsr"])
def test_from_dense(benchmark: BenchmarkFixture, fmt: str) -> None:
    weight = fmt_for(fmt).to_dense()
    benchmark(lambda: CSR.from_dense(weight) if fmt == "csr" else BSR.from_dense(weight, BLOCK))


@pytest.mark.benchmark(group="pack")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pack(benchmark: BenchmarkFixture, layout: ops.Layout) -> None:
    benchmark(layout.pack, fmt_for(layout.packing))


@pytest.mark.benchmark(group="unpack")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_unpack(benchmark: BenchmarkFixture, layout: ops.Layout) -> None:
    benchmark(ops.unpack, layout.pack(fmt_for(layout.packing)))
