"""What every implementation of the convolution checks of its arguments."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.ops.schema import conv_size


def checked_size(
    x: Tensor,
    n: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[int, int]:
    """Height and width of y [b, n, h', w'] for x [b, c, h, w]. ValueError that names what does not fit."""
    pairs = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    for name, pair in pairs.items():
        least = 0 if name == "padding" else 1
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(f"{name}: expected 2 numbers of at least {least}, got {pair}")
    if x.dim() != 4:
        raise ValueError(f"x: expected 4 dimensions [b, c, h, w], got shape {tuple(x.shape)}")
    _, c, h, w = x.shape
    if groups < 1 or n < 0 or c % groups or n % groups:
        raise ValueError(f"groups: expected a divisor of {c} channels and of {n} out_channels, got {groups}")
    out_h, out_w = map(conv_size, (h, w), kernel_size, stride, padding, dilation)
    if out_h < 1 or out_w < 1:
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
        size = [h + 2 * padding[0], w + 2 * padding[1]]
        raise ValueError(f"x: expected images of at least {reach} with their padding, got {size}")
    return out_h, out_w
