"""The operators as torch sees them: schema, fake, autograd. No kernel is named here."""

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
    """Whether images [b, c, h, w] lie with their channels next to each other, and not as usual besides."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


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
    """y [b, n, h', w'] like x [b, c, h, w]; on a GPU in channels_last if x is."""
    b, _, *size = x.shape
    y = x.new_empty((b, n, *map(conv_size, size, kernel_size, stride, padding, dilation)))
    return y.to(memory_format=torch.channels_last) if x.is_cuda and in_channels_last(x) else y


def define() -> None:
    for schema, name, fake in ((LINEAR, "linear", linear_fake), (CONV, "conv", conv_fake)):
        library.define(schema)
        torch.library.register_fake(f"sparseinfer::{name}", fake, lib=library)
        # Inference only. Gradients would be dropped without a word, so the sparse layers refuse them aloud.
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
