"""Convolution on CUDA: images unfolded by torch, then the product of each group."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sparseinfer.ops import cuda
from sparseinfer.ops.conv_shapes import checked_size
from sparseinfer.ops.plan import Bucket, format_plan, parse_plan
from sparseinfer.ops.schema import library


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
    """As `cpu_conv.run`. Unfolding writes x once for each weight of the kernel; y is turned at the end."""
    out_h, out_w = checked_size(x, n, kernel_size, stride, padding, dilation, groups)
    tokens = x.shape[0] * out_h * out_w
    bucket = next(b for b in parse_plan(plan) if b.max_tokens is None or tokens <= b.max_tokens)
    if (bucket.packing + 1) * groups > len(packings):
        wanted = (bucket.packing + 1) * groups
        raise ValueError(f"packings: expected at least {wanted} for plan {plan}, got {len(packings)}")
    own = format_plan((Bucket(None, 0, bucket.kernel),))
    sizes = [tuple(pair) for pair in (kernel_size, dilation, padding, stride)]
    channels, rows = x.shape[1] // groups, n // groups
    y = x.new_empty(x.shape[0], n, out_h, out_w)
    for group in range(groups):
        images = x[:, group * channels : (group + 1) * channels]
        columns = F.unfold(images, *sizes).transpose(1, 2)
        packed = packings[bucket.packing * groups + group]
        own_rows = slice(group * rows, (group + 1) * rows)
        product = cuda.run(columns, [packed], None if bias is None else bias[own_rows], rows, own, activation)
        y[:, own_rows] = product.transpose(1, 2).unflatten(2, (out_h, out_w))
    return y


def register() -> None:
    library.impl("conv", run, "CUDA")
