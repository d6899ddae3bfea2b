"""SemiStructuredLinear without a GPU: a class that holds the dense weight plays the compressed one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from generators import tokens, values, weight
from torch import Tensor, nn

from sparseinfer.modules import SemiStructuredLinear, semi_structured


class Compressed(Tensor):
    """A tensor that says of itself that it is compressed, and is read like any other."""

    def to_dense(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()


def dense() -> nn.Linear:
    """Integer-valued, so that results are exact."""
    linear = nn.Linear(16, 8)
    linear.weight = nn.Parameter(weight("random", 8, 16, 0.5, integer=True))
    linear.bias = nn.Parameter(values(8, integer=True))
    return linear.eval()


@pytest.fixture
def compressing(monkeypatch: pytest.MonkeyPatch) -> None:
    def compress(w: Tensor) -> Tensor:
        return w.clone().as_subclass(Compressed)

    monkeypatch.setattr(semi_structured, "semi_structured_available", lambda w: True)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", compress)


def test_on_the_cpu_it_is_a_plain_layer() -> None:
    layer = SemiStructuredLinear.from_linear(dense())
    assert not layer.compressed
    assert "compressed=False" in repr(layer)


@pytest.mark.usefixtures("compressing")
class TestCompressed:
    def test_the_result_and_the_weight_are_those_of_the_dense_layer(self) -> None:
        linear = dense()
        layer = SemiStructuredLinear.from_linear(linear, activation="relu")
        assert layer.compressed
        assert type(layer._held[0]) is Compressed
        x = tokens(5, 16, integer=True)
        with torch.no_grad():
            assert torch.equal(layer(x), torch.relu(linear(x)))
        assert torch.equal(layer.weight, linear.weight)
        assert type(layer.dense_matrix()) is Tensor

    def test_another_weight_is_compressed(self) -> None:
        layer = SemiStructuredLinear.from_linear(dense())
        other = {"weight": 2 * dense().weight.detach(), "bias": dense().bias.detach()}
        layer.load_state_dict(other)
        assert layer.compressed
        assert torch.equal(layer.weight, other["weight"])
        assert list(layer.state_dict()) == ["weight", "bias"]

    def test_a_copy_is_compressed(self) -> None:
        layer = SemiStructuredLinear.from_linear(dense())
        twin = copy.deepcopy(layer)
        assert twin.compressed
        assert torch.equal(twin.weight, layer.weight)

    def test_what_cannot_be_read_back_is_held_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Compressed, "to_dense", lambda self: torch.zeros(8, 16))
        layer = SemiStructuredLinear.from_linear(dense())
        assert not layer.compressed
        assert torch.equal(layer.weight, dense().weight)
