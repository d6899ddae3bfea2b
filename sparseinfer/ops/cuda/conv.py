"""Convolution on CUDA: unfolds the images into one row per output pixel, then multiplies each group."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer.ops.cuda import linear
from sparseinfer.ops.cuda.kernels import chosen
from sparseinfer.ops.geometry import Geometry
from sparseinfer.ops.plan import check_packings
from sparseinfer.ops.schema import in_channels_last


def run(
    x: Tensor,
    packings: list[Tensor],
    bias: Tensor | None,
    n: int,
    geometry: Geometry,
    plan: str,
    activation: str,
) -> Tensor:
    """As on the CPU, but y is in channels_last where x is.

    Unfolding writes each x once per kernel position, and y is copied if x is not in channels_last. In
    channels_last a 1×1 kernel with stride 1 and without padding copies neither.
    """
    out_h, out_w = geometry.checked_size(x, n)
    groups = geometry.groups
    packing, kernel = chosen(plan, x.shape[0] * out_h * out_w, x.device.index)
    check_packings(plan, (packing + 1) * groups, packings)
    windows = _windows(x, geometry)
    channels, rows = x.shape[1] // groups, n // groups
    parts = []
    for group in range(groups):
        columns = windows[:, :, :, group * channels : (group + 1) * channels].flatten(3)
        part_bias = None if bias is None else bias[group * rows : (group + 1) * rows]
        packed = packings[packing * groups + group]
        product = linear.product(columns, packed, part_bias, rows, kernel, activation)
        parts.append(product.permute(0, 3, 1, 2))
    y = parts[0] if groups == 1 else torch.cat(parts, 1)
    return y.contiguous(memory_format=torch.channels_last if in_channels_last(x) else torch.contiguous_format)


def _windows(x: Tensor, geometry: Geometry) -> Tensor:
    """What each pixel of y sees of x [b, c, h, w]: [b, h', w', c, kh, kw], a view of x padded."""
    kernel_size, stride, padding, dilation, _ = geometry
    if any(padding):
        x = F.pad(x, [padding[1], padding[1], padding[0], padding[0]])
    for dim in (0, 1):
        reach = dilation[dim] * (kernel_size[dim] - 1) + 1
        x = x.unfold(2 + dim, reach, stride[dim])[..., :: dilation[dim]]
    return x.permute(0, 2, 3, 1, 4, 5)
