"""What the tests of chains share: what layers do themselves, counted, and results against float64."""

from __future__ import annotations

import copy
import importlib.util
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from convert_helpers import K, N, linear
from generators import tokens, values
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer import SparseConv1d, SparseConv2d, SparseLinear, convert, ops
from sparseinfer.modules import PrepackedLinear

EPS = torch.finfo(torch.float32).eps
_numbers = itertools.count()


def watch(monkeypatch: pytest.MonkeyPatch, *, functions: bool = True) -> list[str]:
    """A list that grows: "silu" where a layer does it itself, "F.silu" where a module calls torch for it.

    functions   False: torch's functions stay themselves, for models that call them by these names
    """
    done: list[str] = []

    def counted(kind: Any) -> None:
        activated = kind.activated

        def counting(self: nn.Module, x: Tensor, name: str) -> Tensor:
            if name != "none":
                done.append(name)
            result: Tensor = activated(self, x, name)
            return result

        monkeypatch.setattr(kind, "activated", counting)

    def called(name: str) -> None:
        function = getattr(F, name)

        def calling(*args: Any, **kwargs: Any) -> Any:
            done.append(f"F.{name}")
            return function(*args, **kwargs)

        monkeypatch.setattr(F, name, calling)

    def counting_block(x: Tensor, products: Any, norm: Any = None) -> Tensor:
        done.extend(product.activation for product in products if product.activation != "none")
        return block(x, products, norm)

    block = ops.linear_block
    monkeypatch.setattr(ops, "linear_block", counting_block)
    for kind in (SparseLinear, SparseConv1d, SparseConv2d, PrepackedLinear):
        counted(kind)
    for name in ("relu", "gelu", "silu") if functions else ():
        called(name)
    return done


def ints(m: int = 6, k: int = K, seed: int = 0) -> Tensor:
    return tokens(m, k, integer=True, seed=seed)


def square(seed: int = 0) -> nn.Linear:
    return linear(K, K, seed=seed)


def converted(dense: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    """Of a model in eval mode, by default for 3 tokens."""
    return convert(dense.eval(), example_inputs=inputs or (torch.ones(3, K),), **options)


def assert_same(fast: Any, dense: Any, *inputs: Tensor) -> None:
    """Results equal float64's, for at most two layers of integers with an activation after each.

    The sums are exact, and an activation is off by 4·eps of its input. What comes before the last one is at
    most (nnz_row·4 + 1)·4 times larger for each layer of weights in -4..4, with rows of at most 16 weights,
    and two such terms may be added.
    """
    bound = 2 * 4 * EPS * ((16 * 4 + 1) * 4) ** 2
    assert bound < 0.1  # the next integer is farther
    with torch.no_grad():
        wanted = copy.deepcopy(dense).double()(*(x.double() for x in inputs))
        got = fast(*inputs)
    assert got.shape == wanted.shape
    assert (got.double() - wanted).abs().max() <= bound


def imported(path: Path, text: str) -> ModuleType:
    """Source text written to a file, as a module of its own."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(f"written_{next(_numbers)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Block(nn.Module):
    """A forward that is joined, in a model with a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = square(), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """What a block does."""
        x = self.fc(x)
        return self.act(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.tail = Block(), nn.Sequential(square(3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.block(x).round())


def chain(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(linear(), activation, linear(K, N, seed=3)).eval()


def batch_norm(kind: type[nn.Module], n: int, **options: object) -> Any:
    norm: Any = kind(n, **options)
    for i, t in enumerate((*norm.parameters(), *norm.buffers())):
        if t.is_floating_point():
            t.data = values(*t.shape, seed=i).abs() + 0.5
    return norm


def folding_bound(layer: Any, norm: Any, x: Tensor) -> float:
    """2·eps·(nnz_row + 3)·max|x|·max|w|: w · scale and the bias are rounded too; times the scale."""
    layer, norm = (copy.deepcopy(module).requires_grad_(False) for module in (layer, norm))
    scale = (norm.running_var + norm.eps).rsqrt().double()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    nnz = int((layer.weight != 0).flatten(1).sum(1).max())
    terms = x.abs().max() * layer.weight.abs().max() + norm.running_mean.abs().max()
    if layer.bias is not None:
        terms = terms + layer.bias.abs().max()
    shift = 0.0 if norm.bias is None else float(norm.bias.abs().max())
    return float(2 * EPS * (nnz + 3) * (terms * scale.abs().max() + shift))
