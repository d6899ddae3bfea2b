"""Helpers for the parts of attention and recurrent layers: modules like nn.Linear, sparse or dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def checked_part(name: str, part: object, n: int, k: int) -> nn.Module:
    """Returns part if it is a module like nn.Linear(k, n); TypeError or ValueError otherwise."""
    if not isinstance(part, nn.Module) or not hasattr(part, "weight"):
        raise TypeError(f"{name}: expected a module like nn.Linear, got {type(part).__name__}")
    shape = features(name, part)
    if shape != (n, k):
        raise ValueError(f"{name}: expected out_features, in_features = {(n, k)}, got {shape}")
    activation = getattr(part, "activation", "none")
    if activation != "none":
        raise ValueError(f"{name}: expected no activation, got {activation!r} (it is applied elsewhere)")
    return part


def features(name: str, part: object) -> tuple[int, int]:
    """out_features and in_features of a module; TypeError if it has none."""
    n, k = getattr(part, "out_features", None), getattr(part, "in_features", None)
    if not isinstance(n, int) or not isinstance(k, int):
        raise TypeError(f"{name}: expected a module like nn.Linear, got {type(part).__name__}")
    return n, k


def dense_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """nn.Linear with this weight [n, k] and bias [n], without copying them."""
    # Built tiny and without data: nothing to initialise, no random numbers drawn, no warning if k = 0.
    linear = nn.Linear(1, 1, bias=bias is not None, device="meta")
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.detach())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach())
    return linear


def dtype_of(part: nn.Module) -> torch.dtype:
    """The dtype of the part's inputs and results."""
    dtype = getattr(part, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype
    weight = part.weight
    assert isinstance(weight, Tensor)
    return weight.dtype


def dense_weight(part: nn.Module) -> Tensor:
    """A copy of the part's dense weight [n, k]."""
    dense_matrix: Any = getattr(part, "dense_matrix", None)
    weight: Any = part.weight if dense_matrix is None else dense_matrix()
    if dense_matrix is None:
        weight = weight.detach().clone()
    assert isinstance(weight, Tensor)
    return weight


def dense_bias(part: nn.Module) -> Tensor | None:
    """A copy of the part's bias [n]."""
    bias = getattr(part, "bias", None)
    return bias.detach().clone() if isinstance(bias, Tensor) else None
