"""What the tests of folded batch norms share: models, and results against float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fusion_helpers import batch_norm, folding_bound
from generators import values, weight
from torch import Tensor, nn

from sparseinfer import convert

X = values(2, 6, 9, 9)


def conv_model(dims: int = 2, *, bias: bool = True, act: bool = True, **options: object) -> Any:
    conv = (nn.Conv1d, nn.Conv2d)[dims - 1](6, 8, 3, bias=bias)
    conv.weight.data = weight("random", 8, 6 * 3**dims).view(conv.weight.shape)
    norm = batch_norm((nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1], 8, **options)
    return nn.Sequential(conv, norm, *([nn.ReLU()] if act else [])).eval()


def fold(dense: Any, x: Any = X, **options: Any) -> Any:
    return convert(dense, example_inputs=x, fold_batch_norm=True, **options)


def assert_close(fast: Any, dense: Any, x: Tensor, times: float = 1.0, norm: Any = None) -> None:
    """Of a layer, its batch norm and at most an activation that makes errors at most 1.1 times larger."""
    norm = dense[1] if norm is None else norm
    bound = 2 * times * folding_bound(dense[0], norm, x)
    assert bound < 0.1
    with torch.no_grad():
        wanted = copy.deepcopy(dense).double()(x.double())
        got = fast(x)
    assert got.shape == wanted.shape
    # Statistics of the batch are sums of all of its elements.
    assert (got - wanted).abs().max() <= bound


def folds(fast: Any, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a call takes the product of layer and batch norm."""
    called: list[bool] = []
    layer = fast[0].folded
    with monkeypatch.context() as m:
        name = "activated" if hasattr(layer, "activated") else "forward"
        real = getattr(type(layer), name)

        def counting(self: Any, *args: Any) -> Any:
            called.append(self is layer)
            return real(self, *args)

        m.setattr(type(layer), name, counting)
        with torch.no_grad():
            fast(x)
    return any(called)
