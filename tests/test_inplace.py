"""Activations that work in place after conversion, because nothing needs their input afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from convert_helpers import K, linear
from torch import Tensor, nn

from sparseinfer import convert, convert_, densify_

pytestmark = pytest.mark.usefixtures("script")


class Residual(nn.Module):
    """An activation behind an addition, which no layer can take over."""

    def __init__(self, act: nn.Module, *, keep: bool = False) -> None:
        super().__init__()
        self.first, self.act, self.keep = linear(K, K), act, keep

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + x
        return self.act(y) + y if self.keep else self.act(y)


ACTIVATIONS = [nn.ReLU, nn.SiLU, nn.Hardswish, nn.ReLU6, nn.LeakyReLU]


def inputs() -> Tensor:
    return torch.randn(5, K, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_in_place_with_the_same_results(act: type[nn.Module]) -> None:
    model, x = Residual(act()).eval(), inputs()
    given = x.clone()
    fast = convert(model, example_inputs=x)
    assert fast.act.inplace
    assert not model.act.inplace
    seen = []
    fast.act.register_forward_hook(lambda module, args, y: seen.append(y.data_ptr() == args[0].data_ptr()))
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    assert seen == [True]
    assert torch.equal(x, given)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_densify_makes_it_what_it_was(act: type[nn.Module]) -> None:
    model = Residual(act()).eval()
    before = copy.deepcopy(vars(model.act))
    dense = densify_(convert_(model, example_inputs=inputs()))
    assert type(dense.act) is act
    assert vars(dense.act) == before


def hooked() -> nn.Module:
    act = nn.ReLU()
    act.register_forward_hook(lambda module, args, y: None)
    return act


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (Residual(nn.ReLU(), keep=True), {"example_inputs": inputs()}),
        (Residual(hooked()), {"example_inputs": inputs()}),
        (Residual(nn.ReLU()), {"example_inputs": inputs(), "fuse": False}),
        (Residual(nn.ReLU()), {}),
    ],
    ids=["read later", "hooked", "fuse=False", "no example"],
)
def test_not_where_it_may_be_seen(model: Residual, options: dict[str, object]) -> None:
    model, x = model.eval(), inputs()
    fast = convert(model, **options)
    assert not fast.act.inplace
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
