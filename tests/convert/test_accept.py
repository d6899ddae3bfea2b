"""What a conversion may change: as much as rounding does, in the model at hand, and no more."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from convert_helpers import K, N, Script, linear
from generators import tokens, weight
from torch import Tensor, nn

from sparseinfer import SparseLinear, convert, convert_, explain

pytestmark = pytest.mark.usefixtures("script")
X = tokens(6, K)


@pytest.fixture(params=[convert, convert_])
def function(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


def inexact(n: int, k: int, seed: int = 0) -> nn.Linear:
    """Of numbers whose sums are rounded."""
    layer = linear(n, k)
    layer.weight.data = weight("random", n, k, 0.5, seed=seed)
    return layer


class Chaotic(nn.Module):
    """Results depend on the last bits of what a layer returns."""

    def __init__(self, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.choose = inexact(N, K), inexact(K, N, seed=1), choose

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.choose(self.first(x)))
        return y


class Doubling(nn.Module):
    """Changes the weight of one of its layers for the time of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.doubled, self.last = linear(K, K), linear(K, K, seed=1), linear(K, K, seed=2)
        self.held = [self.doubled.weight]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).sign()
        self.held[0].data.mul_(2)
        x = self.doubled(x)
        self.held[0].data.div_(2)
        y: Tensor = self.last(x)
        return y


# One bit more or less is another choice: of a wave, or of an integer's last digit.
CHOICES = {
    "wave": lambda y: (y * 1e8).sin(),
    "digit": lambda y: (y * 2**21).round() % 2,
    "argmax": lambda y: nn.functional.one_hot((y * 1e8).sin().argmax(-1), N).to(y.dtype),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_what_a_models_own_rounding_does_is_accepted(function: Callable[..., Any], choice: str) -> None:
    dense = Chaotic(CHOICES[choice]).eval()
    with torch.no_grad():
        expected = dense(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = function(dense, example_inputs=X)
    with torch.no_grad():
        moved = float((fast(X) - expected).norm() / expected.norm())
    assert moved > 1e-3, "the conversion changed nothing, so that nothing had to be accepted"
    assert isinstance(fast.first, SparseLinear)
    assert isinstance(fast.last, SparseLinear)


def test_so_is_what_permitted_rounding_does(script: Script) -> None:
    script.ratio = lambda layout, m: 0.5 if layout.storage == "bf16" else 0.9
    dense = Chaotic(lambda y: (y * 1e3).sin()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = convert(dense, example_inputs=X, precision="bf16")
    assert explain(fast).rows[0].dtype == "bfloat16"


def test_what_it_does_not_explain_stays_dense(function: Callable[..., Any]) -> None:
    dense = Doubling().eval()
    x = tokens(6, K, integer=True)
    with torch.no_grad():
        expected = dense(x)
    with pytest.warns(UserWarning, match=r"got results that differ by .* \(these stay dense: doubled\)"):
        fast = function(dense, example_inputs=x)
    with torch.no_grad():
        assert torch.equal(fast(x), expected)
    assert [type(fast.first), type(fast.doubled), type(fast.last)] == [SparseLinear, nn.Linear, SparseLinear]
    reasons = {row.layer: row.reason for row in explain(fast).rows}
    assert "rounding explains" in reasons["doubled"]
    assert "rounding" not in reasons["first"] + reasons["last"]
    assert torch.equal(fast.doubled.weight, linear(K, K, seed=1).weight)


def test_other_shapes_are_not_explained() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear(K, K)
            self.held = [self.layer.weight]

        def forward(self, x: Tensor) -> Tensor:
            self.held[0].data.mul_(-1)
            y = self.layer(x)
            self.held[0].data.mul_(-1)
            return y[y > 0]

    x = tokens(7, K)
    with pytest.warns(UserWarning, match="got results of other shapes"):
        fast = convert(Counting().eval(), example_inputs=x)
    assert isinstance(fast.layer, nn.Linear)
