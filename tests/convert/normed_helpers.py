"""Sublayers as encoders have them, and what their tests share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from convert_helpers import K
from fusion_helpers import square
from torch import Tensor, nn

from sparseinfer import convert, ops

M = 5


class Out(nn.Module):
    """As the end of a sublayer in BERT."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.dense, self.dropout, self.norm = square(seed), nn.Dropout(0.5), nn.LayerNorm(K)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        h = self.dense(h)
        h = self.dropout(h)
        h = self.norm(h + residual)
        return h  # noqa: RET504


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.act = square(1), nn.GELU()

    def forward(self, h: Tensor) -> Tensor:
        h = self.dense(h)
        return self.act(h)


class Layer(nn.Module):
    """As a layer of BERT: the second half is in a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.out = Out(2), Up(), Out(3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.half(self.attention(x, y))

    def half(self, x: Tensor) -> Tensor:
        h = self.up(x)
        h = self.out(h, x)
        return h  # noqa: RET504


def given(m: int = M) -> tuple[Tensor, Tensor]:
    return torch.randn(m, K), torch.randn(m, K)


def fast_of(dense: nn.Module) -> Any:
    return convert(dense.eval(), example_inputs=given(), memory="compact", measure=False)


def assert_close(fast: Any, dense: Any, *inputs: Tensor, within: float = 1e-5) -> None:
    with torch.no_grad():
        got = fast(*inputs)
        expected = copy.deepcopy(dense).double()(*(t.double() for t in inputs))
    assert got.shape == expected.shape
    assert float((got.double() - expected).norm()) <= within * float(expected.norm()) + 1e-12


def watched_blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """(products, whether normed) of every block that runs."""
    done: list[tuple[int, bool]] = []
    run = ops.linear_block

    def counted(x: Tensor, products: Any, norm: Any = None) -> Tensor:
        done.append((len(products), norm is not None))
        return run(x, products, norm)

    monkeypatch.setattr(ops, "linear_block", counted)
    return done
