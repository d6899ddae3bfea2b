"""Defines the operators for torch: schemas, fake implementations, and argument conversion.

This module is independent of kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparseinfer.ops.geometry import Geometry

LINEAR = "linear(Tensor x, Tensor[] packings, Tensor? bias, int n, str plan, str activation) -> Tensor"
CONV = (
    "conv(Tensor x, Tensor[] packings, Tensor? bias, int n, int[] kernel_size, int[] stride, int[] padding, "
    "int[] dilation, int groups, str plan, str activation) -> Tensor"
)

library = torch.library.Library("sparseinfer", "DEF")


def with_geometry(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """run(x, packings, bias, n, geometry, plan, activation) with the arguments of the schema CONV."""

    def conv(x: Tensor, packings: list[Tensor], bias: Tensor | None, n: int, *rest: Any) -> Tensor:
        *sizes, plan, activation = rest
        return run(x, packings, bias, n, Geometry(*sizes), plan, activation)

    return conv


def linear_fake(
    x: Tensor, packings: list[Tensor], bias: Tensor | None, n: int, plan: str, activation: str
) -> Tensor:
    """y [..., n] like x [..., k]."""
    return x.new_empty((*x.shape[:-1], n))


def conv_fake(
    x: Tensor,
    packings: list[Tensor],
    bias: Tensor | None,
    n: int,
    geometry: Geometry,
    plan: str,
    activation: str,
) -> Tensor:
    """y [b, n, h', w'] like x [b, c, h, w], in channels_last if x is."""
    b, _, h, w = x.shape
    y = x.new_empty((b, n, *geometry.out_size(h, w)))
    return torch.empty_like(y, memory_format=torch.channels_last) if in_channels_last(x) else y


def in_channels_last(x: Tensor) -> bool:
    """Whether torch's convolutions treat images [b, c, h, w] as channels_last: by strides, also of slices."""
    stride = x.stride()
    if stride[3] < stride[1]:  # as usual, which this is asked at every call about
        return False
    size, least = x.shape, 0
    for dim in (1, 3, 2, 0):
        if stride[dim] < least or size[dim] == 0 or stride[dim] == 0 or (dim == 0 and least == stride[1]):
            return False
        least = stride[dim] * max(size[dim], 1)
    return True


def as_channels_last(y: Tensor) -> Tensor:
    """A copy in channels_last, with its strides even if y has only one pixel or one channel."""
    return torch.empty_like(y, memory_format=torch.channels_last).copy_(y)


def define() -> None:
    for schema, name, fake in ((LINEAR, "linear", linear_fake), (CONV, "conv", with_geometry(conv_fake))):
        library.define(schema)
        torch.library.register_fake(f"sparseinfer::{name}", fake, lib=library)
