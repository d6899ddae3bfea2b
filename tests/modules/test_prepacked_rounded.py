"""PrepackedLinear whose weight and products are shorter than x and y."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from copies import by_pickle
from generators import tokens, values, weight
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.formats.checks import WrongDtype
from sparseinfer.modules import PrepackedLinear, prepacked

N, K = 24, 200
BF16, F32 = torch.bfloat16, torch.float32


def layer(activation: str = "none", bias: bool = True) -> tuple[PrepackedLinear, Tensor, Tensor | None]:
    w, b = weight("random", N, K, 0.5), values(N) if bias else None
    return PrepackedLinear(w.to(BF16), b, activation=activation, dtype=F32), w, b


def bound(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Of rounding x and y to nearest, and of sums in float32. No activation makes errors 1.2 times larger."""
    eps = torch.finfo(BF16).eps / 2
    products = x.double().abs() @ w.double().abs().t()
    return 1.2 * (eps * products + 1.01 * eps * y.abs() + 2 * torch.finfo(F32).eps * (K + 1) * products)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reordered", [True, False])
def test_error_bounds(activation: str, bias: bool, reordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not reordered:
        monkeypatch.setattr(prepacked, "_multipliable", lambda weight: False)
    fast, w, b = layer(activation, bias)
    assert fast.prepacked == prepacked._multipliable(w.to(BF16))
    rounded = w.to(BF16).double()
    for m in (1, 5, 70):
        x = tokens(m, K)
        y = x.double() @ rounded.t() + (0 if b is None else b.double())
        with torch.no_grad():
            got = fast(x)
        assert got.dtype == F32
        error = (got - ops.ACTIVATIONS[activation](y)).abs()
        assert (error <= bound(x, rounded, y) + 0.02 * (activation in ("gelu", "gelu_tanh", "silu"))).all()
        # And x was rounded, or this would be a test of nothing.
        assert error.max() > 8 * torch.finfo(F32).eps * y.abs().max()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, by_pickle])
def test_copies(duplicate: Callable[[PrepackedLinear], PrepackedLinear]) -> None:
    fast, _, _ = layer()
    twin, x = duplicate(fast), tokens(3, K)
    assert (twin.dtype, twin.weight_dtype, twin.prepacked) == (F32, BF16, fast.prepacked)
    with torch.no_grad():
        assert torch.equal(twin(x), fast(x))


def test_weight_and_checkpoints_are_of_the_layers_dtype() -> None:
    fast, w, b = layer()
    linear = nn.Linear(K, N)
    linear.load_state_dict(fast.state_dict())
    assert linear.weight.dtype == fast.weight.dtype == F32
    assert torch.equal(linear.weight, w.to(BF16).float())
    assert torch.equal(fast.to_linear().weight, linear.weight)
    assert b is not None
    assert torch.equal(linear.bias, b)
    assert fast.nbytes == w.numel() * 2 + b.nbytes
    other, _, _ = layer()
    other.load_state_dict({"weight": -w, "bias": b})
    assert torch.equal(other.weight, -linear.weight)


def test_what_it_cannot_be() -> None:
    fast, w, _ = layer()
    with pytest.raises(
        TypeError, match=r"dtype: expected torch.float32 or that of the weight, got torch.float16"
    ):
        PrepackedLinear(w.to(BF16), dtype=torch.float16)
    with pytest.raises(TypeError, match=r"bias: expected dtype torch.float32, got torch.bfloat16"):
        PrepackedLinear(w.to(BF16), torch.ones(N, dtype=BF16), dtype=F32)
    with torch.no_grad(), pytest.raises(WrongDtype, match=r"x: expected torch.float32"):
        fast(tokens(3, K).to(BF16))
