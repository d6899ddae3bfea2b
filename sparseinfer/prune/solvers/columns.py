"""The loop of SparseGPT and GPTQ: columns get their final values one by one, later ones make up for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def settle_columns(
    weight: Tensor, factor: Tensor, settle: Callable[[Tensor, int], Tensor], *, block_size: int
) -> Tensor:
    """The settled weight [groups, n, k].

    weight      [groups, n, k], float32 or float64
    factor      [groups, k, k], same dtype: U of `hessian.inverse_factor`
    settle      (columns [groups, k, n] as the updates so far have left them, i) -> final values of column i
    block_size  number of columns after which all others are updated; `settle` may look as far ahead
    """
    k = weight.shape[2]
    # A column of the weight is a row here: contiguous.
    w = weight.mT.clone(memory_format=torch.contiguous_format)
    scale = factor.diagonal(dim1=-2, dim2=-1)[..., None]
    for start in range(0, k, block_size):
        end = min(start + block_size, k)
        errors = torch.empty_like(w[:, start:end])
        for i in range(start, end):
            settled = settle(w, i)
            error = (w[:, i] - settled) / scale[:, i]
            w[:, i:end].baddbmm_(factor[:, i, i:end, None], error[:, None], alpha=-1)
            w[:, i] = settled
            errors[:, i - start] = error
        w[:, end:].baddbmm_(factor[:, start:end, end:].mT, errors, alpha=-1)
    return w.mT
