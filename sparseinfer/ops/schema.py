"""The operators as torch sees them: schema and fake. No kernel is named here."""

from __future__ import annotations

import torch
from torch import Tensor

LINEAR = "linear(Tensor x, Tensor[] packings, Tensor? bias, int n, str plan, str activation) -> Tensor"
CONV = (
    "conv(Tensor x, Tensor[] packings, Tensor? bias, int n, int[] kernel_size, int[] stride, int[] padding, "
    "int[] dilation, int groups, str plan, str activation) -> Tensor"
)

library = torch.library.Library("sparseinfer", "DEF")


def linear_fake(
    x: Tensor, packings: list[Tensor], bias: Tensor | None, n: int, plan: str, activation: str
) -> Tensor:
    """y [..., n] like x [..., k]."""
    return x.new_empty((*x.shape[:-1], n))


def conv_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Output height or width, of ints or of symbols."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def in_channels_last(x: Tensor) -> bool:
    """Whether torch's own convolutions say so of images [b, c, h, w]: by strides, also of a slice of such."""
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
    """A copy in channels_last, whose strides say so even where y has but one pixel or one channel."""
    return torch.empty_like(y, memory_format=torch.channels_last).copy_(y)


def conv_fake(
    x: Tensor,
    packings: list[Tensor],
    bias: Tensor | None,
    n: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    plan: str,
    activation: str,
) -> Tensor:
    """y [b, n, h', w'] like x [b, c, h, w], in channels_last if x is."""
    b, _, *size = x.shape
    y = x.new_empty((b, n, *map(conv_size, size, kernel_size, stride, padding, dilation)))
    return torch.empty_like(y, memory_format=torch.channels_last) if in_channels_last(x) else y


def define() -> None:
    for schema, name, fake in ((LINEAR, "linear", linear_fake), (CONV, "conv", conv_fake)):
        library.define(schema)
        torch.library.register_fake(f"sparseinfer::{name}", fake, lib=library)
