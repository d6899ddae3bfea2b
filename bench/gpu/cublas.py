"""The three ways to ask cuBLAS for y = x · Wᵀ: which is fastest depends on the product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class DenseWay:
    """hold: weight [n, k] as it lies in memory, maybe itself; call: x [m, k] and that, to y [m, n]."""

    hold: Callable[[Tensor], Tensor]
    call: Callable[[Tensor, Tensor], Tensor]


# W by its rows, W transposed in memory, and y computed transposed.
DENSE_WAYS = {
    "linear": DenseWay(lambda weight: weight, F.linear),
    "matmul": DenseWay(lambda weight: weight.t().contiguous(), lambda x, w: x @ w),
    "transposed": DenseWay(lambda weight: weight, lambda x, w: (w @ x.t()).t()),
}
