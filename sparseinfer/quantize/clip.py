"""Clipping: scales smaller than the largest weight of a row asks for, where the others gain more by it."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from sparseinfer._int8 import products, rounded, row_blocks, row_scales

Clip = Literal["none", "mse"]

# Candidates of "mse": the part of the largest magnitude that becomes 127. Chosen, not measured.
_PARTS = tuple(1 - 0.05 * i for i in range(11))


def check_clip(clip: object) -> None:
    if clip not in get_args(Clip):
        raise ValueError(f"clip: expected one of {', '.join(get_args(Clip))}, got {clip!r}")


def clipped_scales(matrix: Tensor, scale: Tensor, peak: Tensor) -> Tensor:
    """Scales [groups, n] of the least squared change of each row of a matrix [groups, n, k]."""
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    clipped = torch.empty_like(scale)
    for rows, whole, most, result in row_blocks(matrix, scale, peak, clipped):
        wide = rows.to(dtype)
        best, least = whole, torch.full_like(most, torch.inf, dtype=dtype)
        for part in _PARTS:
            candidate = row_scales(most.double() * part, matrix.dtype)
            error = (products(rounded(wide, candidate), candidate, dtype) - wide).square_().sum(-1)
            better = error < least
            best = torch.where(better, candidate, best)
            least = torch.where(better, error, least)
        result.copy_(best)
    return clipped
