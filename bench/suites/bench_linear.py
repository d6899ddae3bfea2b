"""Every kernel of the active level and every competitor on one layer, warm weights.

For ratios use `sparseinfer bench`: it lets the candidates take turns, which this plug-in cannot.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from sparseinfer.bench.candidate import Candidate
from sparseinfer.bench.candidates import all_candidates
from sparseinfer.bench.problem import check, random_layer
from sparseinfer.ops.names import DTYPES

SHAPE = (3072, 768)
BLOCK = (16, 16)
SPARSITIES = (0.5, 0.8, 0.9)
TOKENS = (1, 16, 128)
CASES = [(dtype, tokens) for dtype in ("f32", "bf16", "f16") for tokens in TOKENS]


@lru_cache(maxsize=1)
def layer(
    dtype: str, tokens: int, sparsity: float, shape: tuple[int, int] = SHAPE
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Candidate]]:
    """Weight [n, k], bias [n] and the candidates by name. Zeros lie in blocks: BSR kernels take part too."""
    weight, bias = (t.to(DTYPES[dtype]) for t in random_layer(*shape, sparsity, block=BLOCK))
    candidates = all_candidates(weight, bias, tokens, block=BLOCK)
    return weight, bias, {candidate.name: candidate for candidate in candidates}


def names() -> list[tuple[str, int, str]]:
    """Of the candidates of every case: they do not depend on the shape, so a small one will do."""
    return [(*case, name) for case in CASES for name in layer(*case, 0.5, (32, 32))[2]]


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize(("dtype", "tokens", "name"), names())
def test_linear(benchmark: BenchmarkFixture, dtype: str, tokens: int, name: str, sparsity: float) -> None:
    benchmark.group = f"{SHAPE[0]}x{SHAPE[1]} {dtype} m={tokens} sparsity={sparsity}"
    weight, bias, candidates = layer(dtype, tokens, sparsity)
    x = torch.randn(tokens, SHAPE[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    check(candidates[name], x, weight, bias)
    benchmark(candidates[name].make(), x.to(candidates[name].dtype))
