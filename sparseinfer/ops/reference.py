"""The reference results that every kernel is compared with: in float64, and of int8 exactly."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.backend import unpack
from sparseinfer.ops.names import ACTIVATIONS


def reference_linear(
    x: Tensor, weight: CSR | BSR | Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """activation(x [..., k] · Wᵀ + bias [n]) in float64; W is a format or a packing (a uint8 tensor)."""
    fmt = unpack(weight) if isinstance(weight, Tensor) else weight
    y = x.to(torch.float64) @ fmt.to_dense().to(torch.float64).T
    if bias is not None:
        y = y + bias.to(torch.float64)
    return ACTIVATIONS[activation](y)


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, zero and scale of tokens x [..., k]: x = scale * (q - zero), up to rounding.

    The integers q [..., k] and zero [..., 1] are from 0 to 255, as int64. scale [..., 1] is float32, for each
    token (max - min) / 255 of its values and 0; NaN where a value is NaN or infinite, and then q is 0.
    """
    x = x.to(torch.float32)
    finite = x.isfinite().all(-1, keepdim=True)
    x = torch.where(finite, x, 0.0)
    with_zero = torch.cat([x, x.new_zeros((*x.shape[:-1], 1))], -1)
    low, high = with_zero.amin(-1, keepdim=True), with_zero.amax(-1, keepdim=True)
    scale = ((high.double() - low.double()) / 255.0).to(torch.float32)
    scale = scale.clamp(min=torch.finfo(torch.float32).smallest_normal)
    inverse = 1.0 / scale
    zero = (0.5 - low * inverse).floor().to(torch.int64)
    q = ((x * inverse).round().to(torch.int64) + zero).clamp(0, 255)
    nan = torch.full_like(scale, float("nan"))
    return torch.where(finite, q, 0), torch.where(finite, zero, 0), torch.where(finite, scale, nan)


def reference_int8(
    x: Tensor, weight: CSR | BSR | Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """What storage "i8" computes of int8 weights: the same integers, exactly, then float32 to the last bit.

    activation(sum (q - zero) * w * scale of the row * scale of the token + bias); see `quantize_tokens`. In
    float32; kernels differ from it by the rounding of the activation and of y's dtype alone.
    """
    fmt = unpack(weight) if isinstance(weight, Tensor) else weight
    if fmt.scales is None:
        raise TypeError(f"weight: expected values of int8, got {fmt.dtype}")
    q, zero, scale = quantize_tokens(x)
    one = torch.ones_like(fmt.scales)
    integers = type(fmt)(fmt.values, fmt.crow_indices, fmt.col_indices, fmt.shape, one).to_dense()
    sums = (q - zero).to(torch.float64) @ integers.to(torch.float64).T  # below 2^31: exact
    y = sums.to(torch.float32) * fmt.scales * scale
    if bias is not None:
        y = y + bias.to(torch.float32)
    return ACTIVATIONS[activation](y)


def reference_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """activation(F.conv2d(x [b, c, h, w], weight [n, c / groups, kh, kw])) in float64; weight is dense."""
    f64 = torch.float64
    y = F.conv2d(
        x.to(f64),
        weight.to(f64),
        None if bias is None else bias.to(f64),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    return ACTIVATIONS[activation](y)
