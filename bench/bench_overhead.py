"""The price of a call: a layer so small that nothing but the way to the kernel is left."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from sparseinfer.bench.candidates import dense_entries, sparse_entries
from sparseinfer.bench.layer import random_layer

WEIGHT, BIAS = random_layer(16, 16, 0.5)
ENTRIES = {entry.name: entry for entry in (*dense_entries(WEIGHT, BIAS, 1), *sparse_entries(WEIGHT, BIAS, 1))}


@pytest.mark.benchmark(group="call of a 16x16 layer, m=1")
@pytest.mark.parametrize("name", ENTRIES)
def test_overhead(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(ENTRIES[name].make(), torch.ones(1, 16))
