"""Seeded random matrices for every test of the package.

Everything here is a pure function of its arguments: the same call gives the same matrix in every test file
and on every machine. Integer-valued data is exact in float32, bfloat16 and float16, so a result that differs
from the reference by one bit is an index error and never rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

PATTERNS = ("random", "empty_rows", "all_zero", "all_dense", "one_dense_row")
SPARSITIES = (0.0, 0.5, 0.8, 0.95)


def ragged(tile: int) -> tuple[int, ...]:
    """Sizes around a tile, ascending and without 0 or repeats: 1, tile - 1, tile, tile + 1."""
    return tuple(sorted({1, max(tile - 1, 1), tile, tile + 1}))


def mask(pattern: str, n: int, k: int, sparsity: float = 0.8, *, seed: int = 0) -> Tensor:
    """Bool mask [n, k], True = kept. Each pattern is defined for every size, 0 included.

    random: each weight kept with probability 1 - sparsity. empty_rows: random, every other row (the first one
    included) empty. one_dense_row: all zero but row n // 2.
    """
    kept = torch.rand(n, k, generator=_generator(seed)) >= sparsity
    if pattern == "random":
        return kept
    if pattern == "empty_rows":
        kept[::2] = False
        return kept
    if pattern == "one_dense_row":
        return (torch.arange(n) == n // 2)[:, None].expand(n, k).clone()
    if pattern in ("all_zero", "all_dense"):
        return torch.full((n, k), pattern == "all_dense")
    raise ValueError(f"pattern: expected one of {PATTERNS}, got {pattern!r}")


def block_mask(n: int, k: int, block: tuple[int, int], sparsity: float = 0.8, *, seed: int = 0) -> Tensor:
    """Bool mask [n, k] that keeps or drops whole blocks (r, c); n and k are multiples of r and c."""
    r, c = block
    kept = torch.rand(n // r, k // c, generator=_generator(seed)) >= sparsity
    return kept.repeat_interleave(r, 0).repeat_interleave(c, 1)


def values(*shape: int, seed: int = 0, integer: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """Non-zero values of any shape: standard normal, or integers in -4..4."""
    generator = _generator(seed)
    if integer:
        magnitude = torch.randint(1, 5, shape, generator=generator)
        sign = 2 * torch.randint(0, 2, shape, generator=generator) - 1
        return (magnitude * sign).to(dtype)
    drawn = torch.randn(shape, generator=generator).to(dtype)
    return torch.where(drawn == 0, torch.ones((), dtype=dtype), drawn)


def weight(
    pattern: str,
    n: int,
    k: int,
    sparsity: float = 0.8,
    *,
    seed: int = 0,
    integer: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Dense weight [n, k] whose non-zeros are exactly mask(pattern, n, k, sparsity, seed=seed)."""
    kept = mask(pattern, n, k, sparsity, seed=seed)
    return _masked(values(n, k, seed=seed + 1, integer=integer, dtype=dtype), kept)


def block_weight(
    n: int,
    k: int,
    block: tuple[int, int],
    sparsity: float = 0.8,
    *,
    seed: int = 0,
    integer: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Dense weight [n, k] whose non-zeros are exactly block_mask(n, k, block, sparsity, seed=seed)."""
    kept = block_mask(n, k, block, sparsity, seed=seed)
    return _masked(values(n, k, seed=seed + 1, integer=integer, dtype=dtype), kept)


def tokens(
    m: int, k: int, *, seed: int = 0, integer: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Activations [m, k], drawn from other seeds than the weights."""
    return values(m, k, seed=seed + 1000, integer=integer, dtype=dtype)


def noncontiguous(t: Tensor) -> Tensor:
    """The same matrix [n, k] as every second row and column of a larger one that is NaN elsewhere.

    A reader that ignores the strides meets a NaN.
    """
    n, k = t.shape
    store = torch.full((2 * n + 1, 2 * k + 1), float("nan")).to(t.dtype)
    view = store[1::2, 1::2]
    view.copy_(t)
    return view


def _masked(drawn: Tensor, kept: Tensor) -> Tensor:
    # where, not a product: a product would leave -0.0 behind.
    return torch.where(kept, drawn, torch.zeros((), dtype=drawn.dtype))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
