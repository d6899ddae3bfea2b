"""What the convert tests share: small integer-valued models, and a scripted stand-in for the measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import torch
from generators import tokens, values, weight
from torch import nn

from sparseinfer import densify_
from sparseinfer.convert.candidates.base import Candidates
from sparseinfer.convert.timing.times import Times
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import PLAIN

K, N = 40, 24


class Script:
    """Stands in for the measurement: sparse takes `ratio(layout, tokens)` times 10 us.

    dense         microseconds of the dense ways, for a number of tokens
    is_slower     whether a converted model, as a whole, is slower than the original; None: there is no time
    than_dense    the same of its best dense form
    whole_layer   why torch's own recurrent layer or attention is faster than one of several products, if so
    """

    def __init__(self) -> None:
        self.ratio: Callable[[Layout, int], float] = lambda layout, m: 0.5
        self.dense: Callable[[int], dict[str, float]] = lambda m: {PLAIN: 10.0}
        self.calls: list[tuple[tuple[Layout, ...], int]] = []
        self.whole_layer: str | None = None
        self.is_slower: Callable[[nn.Module], bool | None] = lambda converted: False
        self.than_dense: Callable[[nn.Module], bool | None] = lambda converted: False

    def __call__(self, candidates: Candidates, layouts: Iterable[Layout], m: int) -> Times:
        layouts = tuple(layouts)
        self.calls.append((layouts, m))
        return Times(m, self.dense(m), {layout: 10.0 * self.ratio(layout, m) for layout in layouts})

    def comparison(self, model: nn.Module, inputs: object, budget_s: float) -> SimpleNamespace:
        dense = SimpleNamespace(is_slower=lambda converted: self.than_dense(converted()))

        def against(made: Callable[[], nn.Module]) -> SimpleNamespace:
            self.best_dense = made()
            return dense

        return SimpleNamespace(is_slower=lambda converted: self.is_slower(converted()), against=against)


def linear(n: int = N, k: int = K, sparsity: float = 0.8, seed: int = 0) -> nn.Linear:
    """Integer-valued: exact in any float dtype."""
    layer = nn.Linear(k, n)
    with torch.no_grad():
        layer.weight.copy_(weight("random", n, k, sparsity, integer=True, seed=seed))
        layer.bias.copy_(values(n, integer=True, seed=seed))
    return layer


def pruned(module: nn.Module, *, integer: bool = False, scale: float = 1.0) -> nn.Module:
    """Every matrix with 80 % zeros, scaled; in eval mode."""
    for seed, parameter in enumerate(module.parameters()):
        if parameter.dim() > 1:
            drawn = weight("random", len(parameter), parameter[0].numel(), 0.8, seed=seed, integer=integer)
            parameter.data = drawn.view(parameter.shape) * scale
        else:
            parameter.data = values(*parameter.shape, seed=seed, integer=integer) * scale
    return module.eval()


def model() -> nn.Sequential:
    """Two sparse Linears and one without zeros; integer-valued: results are compared with equality."""
    return nn.Sequential(linear(), nn.ReLU(), linear(K, N), linear(8, K, sparsity=0.0)).eval()


def kinds(module: nn.Module) -> list[type]:
    return [type(child) for child in module.children()]


def assert_unchanged(module: nn.Module, before: nn.Module) -> None:
    assert kinds(module) == kinds(before)
    state, expected = module.state_dict(), before.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)


def assert_restored(fast: nn.Module, dense: nn.Module) -> None:
    densify_(fast)
    assert [type(m) for m in fast.modules()] == [type(m) for m in dense.modules()]
    state, expected = fast.state_dict(), dense.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)


def outputs_equal(fast: nn.Module, dense: nn.Module, m: int = 20) -> bool:
    x = tokens(m, K, integer=True)
    with torch.no_grad():
        return torch.equal(fast(x), dense(x))
