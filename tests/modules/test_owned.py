"""Activations in place: only where nobody else can see the memory, which is asked at every call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from convert_helpers import K, linear
from torch import Tensor, nn

from sparseinfer import convert, convert_, densify_
from sparseinfer.modules.owned import may_take, take

pytestmark = pytest.mark.usefixtures("script")

ACTIVATIONS = [nn.ReLU(), nn.SiLU(), nn.ReLU6(), nn.Hardswish(), nn.LeakyReLU(0.3)]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def taken(make: Callable[[], Tensor], keep: Callable[[Tensor], Any] = lambda x: None) -> bool:
    """Whether `take` wrote over a tensor of which the test keeps something."""
    x = make()
    kept, before, address, held = keep(x), x.clone(), x.data_ptr(), [x]
    del x
    with torch.no_grad():
        y = take(nn.ReLU(), held)
    assert torch.equal(y, before.relu())
    assert kept is None or y.data_ptr() != address
    return y.data_ptr() == address


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
def test_in_place_of_a_tensor_that_nobody_else_holds(activation: nn.Module, form: str) -> None:
    x = drawn(2, 3, 4, 5)
    if form == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    expected, address, held = activation(x), x.data_ptr(), [x]
    del x
    with torch.no_grad():
        y = take(activation, held)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    assert y.data_ptr() == address


@pytest.mark.parametrize(
    "keep",
    [
        lambda x: x,
        lambda x: [x],
        lambda x: x[0],
        lambda x: x.detach(),
        lambda x: x.view(-1),
        lambda x: x.numpy(),
        lambda x: x.untyped_storage(),
        lambda x: x.__dlpack__(),
        lambda x: memoryview(x.numpy()),
    ],
    ids=["name", "list", "slice", "detached", "view", "numpy", "storage", "dlpack", "memoryview"],
)
def test_not_of_one_that_somebody_holds(keep: Callable[[Tensor], Any]) -> None:
    assert not taken(lambda: drawn(4, 4), keep)


ARRAY = np.ones((4, 4), np.float32)
LIVE = drawn(4, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.from_numpy(ARRAY),
        lambda: torch.frombuffer(bytearray(64), dtype=torch.float32),
        lambda: LIVE[1:],
        lambda: drawn(1, 4).expand(4, 4),
        lambda: drawn(4, 3).t(),
        lambda: drawn(4).share_memory_(),
        lambda: torch.zeros(0, 4),
        lambda: nn.Parameter(drawn(4)).detach()[1:3].t(),
    ],
    ids=["numpy", "buffer", "slice", "expanded", "transposed", "shared", "empty", "of a parameter"],
)
def test_not_of_memory_of_somebody_else(make: Callable[[], Tensor]) -> None:
    before = ARRAY.copy(), LIVE.clone()
    x = make()
    expected, held = x.clone().relu(), [x]
    address = x.data_ptr()
    del x
    with torch.no_grad():
        y = take(nn.ReLU(), held)
    assert torch.equal(y, expected)
    assert y.data_ptr() != address or not y.numel() or not address
    assert np.array_equal(ARRAY, before[0])
    assert torch.equal(LIVE, before[1])


def test_not_where_a_graph_needs_it() -> None:
    x = drawn(3).requires_grad_()
    held = [x * 2]
    take(nn.ReLU(), held).sum().backward()
    assert torch.equal(x.grad, 2.0 * (x.detach() > 0))


def test_which_may() -> None:
    class Mine(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return input + 1

    assert all(map(may_take, ACTIVATIONS))
    assert not any(map(may_take, [Mine(), nn.Tanh(), nn.PReLU(), nn.Softmax(-1), torch.relu, None]))


class Residual(nn.Module):
    """An activation behind an addition, which no layer can take over."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first, self.act = linear(K, K), act
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor, keep: bool = False) -> Tensor:
        x = self.first(x) + x
        if keep:
            self.kept.append(x)
        return self.act(x)


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("function", [convert, convert_])
def test_of_a_model(act: nn.Module, function: Any) -> None:
    dense, x = Residual(copy.deepcopy(act)).eval(), drawn(5, K)
    given = x.clone()
    fast = function(copy.deepcopy(dense), example_inputs=x)
    assert not fast.act.inplace if hasattr(fast.act, "inplace") else True
    with torch.no_grad():
        for keep in (False, True, False):
            torch.testing.assert_close(fast(x, keep), dense(x, keep))
        torch.testing.assert_close(fast.kept[0], dense.kept[0])
    assert torch.equal(x, given)


def test_really_in_place_in_a_model() -> None:
    fast, seen = convert(Residual(nn.ReLU()).eval(), example_inputs=drawn(5, K)), []
    relu_ = Tensor.relu_
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Tensor, "relu_", lambda x: seen.append(x.shape) or relu_(x))
        fast(drawn(5, K))
        fast(drawn(5, K), keep=True)
    assert seen == [(5, K)]


def test_hooks_see_what_they_saw() -> None:
    dense, x = Residual(nn.ReLU()).eval(), drawn(5, K)

    def seen(model: Any) -> list[Tensor]:
        model.first.register_forward_hook(lambda module, args, y: model.kept.append(y))
        model.act.register_forward_hook(lambda module, args, y: model.kept.extend([args[0], y]))
        with torch.no_grad():
            model(x)
        return list(model.kept)

    for a, b in zip(seen(convert(dense, example_inputs=x)), seen(dense), strict=True):
        torch.testing.assert_close(a, b)


def test_densify_gives_the_class_back() -> None:
    dense = Residual(nn.ReLU()).eval()
    fast = convert(dense, example_inputs=drawn(5, K))
    assert isinstance(fast, Residual)
    assert type(fast) is not Residual
    assert type(densify_(fast)) is Residual
