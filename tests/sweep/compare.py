"""How far results lie apart: tensors in whatever a model returns, by the norm of the difference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4
# A model that is this sensitive to rounding says nothing of what convert did.
SENSITIVE = 1e-2


def call(model: nn.Module, example: Any) -> list[Tensor]:
    """The model's floating-point results. With the same seed: some models draw numbers in eval mode too."""
    torch.manual_seed(0)
    result = model(*example) if isinstance(example, tuple) else model(**example)
    return [t.detach().clone() for t in tensors(result) if t.is_floating_point()]


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from tensors(inner)
    elif isinstance(getattr(value, "layers", None), list):  # a cache of keys and values
        for layer in value.layers:
            yield from tensors([t for t in vars(layer).values() if isinstance(t, Tensor)])


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same inputs with the function applied to each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: mapped(inner, function) for name, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(inner, function) for inner in value)
    return value


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_floating_point():
        return bool(torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()))
    return torch.equal(a, b)


def distance(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest relative error of any tensor; infinite where shapes or places of inf and nan differ."""
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return float("inf")
    return max((_distance(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)


def _distance(got: Tensor, wanted: Tensor) -> float:
    finite = wanted.isfinite()
    if not torch.equal(got.isfinite(), finite):
        return float("inf")
    a, b = got[finite].double(), wanted[finite].double()
    difference, size = float((a - b).norm()), float(b.norm())
    return difference / size if size else float(difference > 0)


def rounding(dense: nn.Module, example: Any, wanted: list[Tensor]) -> float:
    """How far the dense model in float32 lies from itself in float64; 0 where it cannot run in float64."""
    double = mapped(example, lambda t: t.double() if t.is_floating_point() else t)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        return distance(wanted, call(copy.deepcopy(dense).double(), double))
    except Exception:
        return 0.0
    finally:
        torch.set_default_dtype(default)
