"""The geometry of a convolution: kernel size, stride, padding, dilation, groups, and the output size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Geometry(NamedTuple):
    """Sizes for height and width, as in torch's convolutions; zero padding on both sides."""

    kernel_size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def out_size(self, h: int, w: int) -> tuple[int, int]:
        """Height and width of the output, for ints or symbolic sizes."""
        out_h, out_w = map(_out_size, (h, w), *self[:4])
        return out_h, out_w

    def checked_size(self, x: Tensor, n: int) -> tuple[int, int]:
        """Height and width of y [b, n, h', w'] for x [b, c, h, w]. ValueError names what does not fit."""
        for name in ("kernel_size", "stride", "padding", "dilation"):
            pair, least = getattr(self, name), 0 if name == "padding" else 1
            if len(pair) != 2 or min(pair) < least:
                raise ValueError(f"{name}: expected 2 numbers of at least {least}, got {pair}")
        if x.dim() != 4:
            raise ValueError(f"x: expected 4 dimensions [b, c, h, w], got shape {tuple(x.shape)}")
        _, c, h, w = x.shape
        if self.groups < 1 or n < 0 or c % self.groups or n % self.groups:
            expected = f"a divisor of {c} channels and of {n} out_channels"
            raise ValueError(f"groups: expected {expected}, got {self.groups}")
        out_h, out_w = self.out_size(h, w)
        if out_h < 1 or out_w < 1:
            reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            size = [h + 2 * self.padding[0], w + 2 * self.padding[1]]
            raise ValueError(f"x: expected images of at least {reach} with their padding, got {size}")
        return out_h, out_w


def _out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
