"""The fp64 truth that every kernel is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.packing import unpack

_ACTIVATIONS = {
    "none": lambda y: y,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}


def reference_linear(
    x: Tensor, weight: CSR | BSR | Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """activation(x [..., k] · Wᵀ + bias [n]) in float64; W is a format or a packing (a uint8 tensor)."""
    fmt = unpack(weight) if isinstance(weight, Tensor) else weight
    y = x.to(torch.float64) @ fmt.to_dense().to(torch.float64).T
    if bias is not None:
        y = y + bias.to(torch.float64)
    return _ACTIVATIONS[activation](y)
