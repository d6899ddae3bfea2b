"""The price of a call: a layer so small that nothing but the way to the kernel is left."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from sparseinfer.bench.candidates import all_candidates
from sparseinfer.bench.problem import random_layer

CANDIDATES = {candidate.name: candidate for candidate in all_candidates(*random_layer(16, 16, 0.5), 1)}


@pytest.mark.benchmark(group="call of a 16x16 layer, m=1")
@pytest.mark.parametrize("name", CANDIDATES)
def test_overhead(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(CANDIDATES[name].make(), torch.ones(1, 16))
