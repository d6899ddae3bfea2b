"""Every layout at the active level and every competitor on one layer, warm weights.

For ratios use `sparseinfer bench`: it lets the candidates take turns, which this plug-in cannot.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from sparseinfer.bench.candidates import Entry, dense_entries, sparse_entries
from sparseinfer.bench.layer import DTYPES, check, random_layer

SHAPE = (3072, 768)
SPARSITIES = (0.5, 0.8, 0.9)
TOKENS = (1, 16, 128)
CASES = [(dtype, tokens) for dtype in ("f32", "bf16") for tokens in TOKENS]


@lru_cache(maxsize=1)
def layer(
    dtype: str, tokens: int, sparsity: float, shape: tuple[int, int] = SHAPE
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Entry]]:
    weight, bias = (t.to(DTYPES[dtype]) for t in random_layer(*shape, sparsity))
    found = [*dense_entries(weight, bias, tokens), *sparse_entries(weight, bias, tokens)]
    return weight, bias, {entry.name: entry for entry in found}


def names() -> list[tuple[str, int, str]]:
    return [(*case, name) for case in CASES for name in layer(*case, 0.5, (16, 16))[2]]


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize(("dtype", "tokens", "name"), names())
def test_linear(benchmark: BenchmarkFixture, dtype: str, tokens: int, name: str, sparsity: float) -> None:
    benchmark.group = f"{SHAPE[0]}x{SHAPE[1]} {dtype} m={tokens} sparsity={sparsity}"
    weight, bias, entries = layer(dtype, tokens, sparsity)
    x = torch.randn(tokens, SHAPE[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    check(entries[name], x, weight, bias)
    benchmark(entries[name].make(), x.to(entries[name].dtype))
