"""The reference results in float64 that every kernel is compared with."""

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
