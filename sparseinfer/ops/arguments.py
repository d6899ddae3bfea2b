"""Checks the operators' arguments; the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.formats.checks import WrongDtype
from sparseinfer.ops.names import (
    ACTIVATION_NUMBERS,
    DTYPE_NUMBERS,
    one_of_activations,
    one_of_dtypes,
)


def as_rows(x: Tensor, shape: torch.Size) -> Tensor:
    """x of `shape` [..., k] as [m, k], copied only if its strides require it. ValueError: a scalar."""
    if not shape:
        raise ValueError("x: expected at least 1 dimension, got a scalar")
    k = shape[-1]
    return x.reshape(-1, k) if k else x.reshape(shape[:-1].numel(), 0)


def number_of_dtype(dtype: torch.dtype) -> int:
    """The number of x's dtype in native code. TypeError: unsupported dtype."""
    number = DTYPE_NUMBERS.get(dtype)
    if number is None:
        raise WrongDtype(f"x: expected dtype {one_of_dtypes()}, got {dtype}")
    return number


def number_of_activation(activation: str) -> int:
    """The number of an activation in native code. ValueError: unknown activation."""
    number = ACTIVATION_NUMBERS.get(activation)
    if number is None:
        raise ValueError(f"activation: expected one of {one_of_activations()}, got {activation!r}")
    return number


def check_bias_shape(bias: Tensor, n: int) -> None:
    """ValueError unless there is one bias for each of n outputs."""
    if bias.shape != (n,):
        raise ValueError(f"bias: expected shape ({n},), got {tuple(bias.shape)}")


def readable_bias(bias: Tensor, x_dtype: torch.dtype) -> Tensor:
    """bias [n] as kernels read it: contiguous, in float32 or in x's dtype. TypeError: another dtype."""
    dtype = bias.dtype
    if dtype not in DTYPE_NUMBERS:
        raise TypeError(f"bias: expected dtype {one_of_dtypes()}, got {dtype}")
    return (bias if dtype is torch.float32 or dtype is x_dtype else bias.to(torch.float32)).contiguous()
