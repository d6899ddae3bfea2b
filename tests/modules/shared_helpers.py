"""What the tests of Linears that are one matrix share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from convert_helpers import K, linear
from torch import Tensor, nn

from sparseinfer import SparseLinear, convert
from sparseinfer.modules import SharedInputLinear


class QKV(nn.Module):
    """Three Linears of one input, of different sizes, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = linear(24, K), linear(8, K, seed=5), linear(16, K, seed=9)
        self.k.bias = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


def pair() -> tuple[QKV, QKV]:
    dense = QKV().eval()
    fast = convert(dense, example_inputs=torch.ones(3, K))
    assert all(type(part) is SharedInputLinear for part in (fast.q, fast.k, fast.v))
    return dense, fast


def count_parts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, ...]]:
    """Grows by which rows are computed, at every product."""
    calls: list[tuple[bool, ...]] = []
    parts = SparseLinear.parts

    def counting(self: SparseLinear, x: Tensor, sizes: Any, wanted: Any) -> Any:
        calls.append(tuple(wanted))
        return parts(self, x, sizes, wanted)

    monkeypatch.setattr(SparseLinear, "parts", counting)
    return calls
