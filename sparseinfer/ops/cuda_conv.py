"""Convolution on CUDA: windows of the images, one row each, then the product of each group."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer.ops import cuda
from sparseinfer.ops.conv_shapes import checked_size
from sparseinfer.ops.plan import Bucket, format_plan, parse_plan
from sparseinfer.ops.schema import in_channels_last, library


def run(
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
    """As `cpu_conv.run`, but y is in channels_last where x is.

    x is written once for each weight of the kernel, and y once more where x is not in channels_last. In
    channels_last a kernel of one weight, without padding and of stride 1, copies neither.
    """
    out_h, out_w = checked_size(x, n, kernel_size, stride, padding, dilation, groups)
    tokens = x.shape[0] * out_h * out_w
    bucket = next(b for b in parse_plan(plan) if b.max_tokens is None or tokens <= b.max_tokens)
    first = bucket.packing * groups
    if first + groups > len(packings):
        raise ValueError(f"packings: expected at least {first + groups} for plan {plan}, got {len(packings)}")
    own = format_plan((Bucket(None, 0, bucket.kernel),))
    windows = _windows(x, kernel_size, stride, padding, dilation)
    channels, rows = x.shape[1] // groups, n // groups
    parts = []
    for group in range(groups):
        columns = windows[:, :, :, group * channels : (group + 1) * channels].flatten(3)
        own_bias = None if bias is None else bias[group * rows : (group + 1) * rows]
        product = cuda.run(columns, [packings[first + group]], own_bias, rows, own, activation)
        parts.append(product.permute(0, 3, 1, 2))
    y = parts[0] if groups == 1 else torch.cat(parts, 1)
    return y.contiguous(memory_format=torch.channels_last if in_channels_last(x) else torch.contiguous_format)


def _windows(
    x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """What each pixel of y sees of x [b, c, h, w]: [b, h', w', c, kh, kw], a view of x padded."""
    if any(padding):
        x = F.pad(x, [padding[1], padding[1], padding[0], padding[0]])
    for dim in (0, 1):
        reach = dilation[dim] * (kernel_size[dim] - 1) + 1
        x = x.unfold(2 + dim, reach, stride[dim])[..., :: dilation[dim]]
    return x.permute(0, 2, 3, 1, 4, 5)


def register() -> None:
    library.impl("conv", run, "CUDA")
