"""Every kernel of the active level and every dense competitor on one layer, warm weights.

For ratios use `sparseinfer bench`: it lets the candidates take turns, which this plug-in cannot.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from sparseinfer.bench.candidates import Entry, dense_entries, sparse_entries
from sparseinfer.bench.layer import check, random_layer

SHAPE = (3072, 768)
SPARSITIES = (0.5, 0.8, 0.9)
TOKENS = (1, 16, 128)


@lru_cache(maxsize=1)
def layer(sparsity: float, tokens: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Entry]]:
    weight, bias = random_layer(*SHAPE, sparsity)
    found = [*dense_entries(weight, bias, tokens), *sparse_entries(weight, bias)]
    return weight, bias, {entry.name: entry for entry in found}


def names() -> list[str]:
    weight, bias = random_layer(16, 16, 0.5)
    return [entry.name for entry in (*dense_entries(weight, bias, 1), *sparse_entries(weight, bias))]


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("name", names())
def test_linear(benchmark: BenchmarkFixture, name: str, tokens: int, sparsity: float) -> None:
    benchmark.group = f"{SHAPE[0]}x{SHAPE[1]} m={tokens} sparsity={sparsity}"
    weight, bias, entries = layer(sparsity, tokens)
    x = torch.randn(tokens, SHAPE[1], generator=torch.Generator().manual_seed(0))
    check(entries[name], x, weight, bias)
    benchmark(entries[name].make(), x)
