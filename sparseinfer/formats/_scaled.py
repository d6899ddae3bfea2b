"""Values with a scale for each row: those of a weight quantized to int8."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.formats import checks
from sparseinfer.formats.dtypes import WEIGHT_DTYPES

# Of the values of a format.
STORED_DTYPES = tuple(WEIGHT_DTYPES.values())


def checked_scales(scales: object, dtype: torch.dtype, rows: int) -> Tensor | None:
    """The scales float32 [rows] of int8 values, or None, which other values have."""
    if dtype != torch.int8:
        if scales is not None:
            raise TypeError(f"scales: expected None for values of {dtype}, got {type(scales).__name__}")
        return None
    if scales is None:
        raise TypeError("scales: expected a tensor for values of torch.int8, got None")
    plain = checks.plain("scales", scales, (torch.float32,), 1)
    checks.length("scales", plain, rows, "rows")
    return plain


def scaled(dense: Tensor, scales: Tensor | None) -> Tensor:
    """What the stored values [n, k] stand for: with scales, values · scale of their row in float32."""
    return dense if scales is None else dense.to(torch.float32) * scales[:, None]


def padded_rows(columns: int, bits: int) -> int:
    """Bytes of so many entries of `bits` each."""
    return (columns * bits + 7) // 8
