"""Values with a scale for each row: those of a weight quantized to int8."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.formats import checks
from sparseinfer.formats.dtypes import WEIGHT_DTYPES

# Of the values of a format.
STORED_DTYPES = tuple(WEIGHT_DTYPES.values())


def checked_scales(scales: object, dtype: torch.dtype, rows: int) -> Tensor | None:
    """The scales float32 [rows], finite and not negative, of int8 values; None, which other values have."""
    if (dtype == torch.int8) != (scales is not None):
        wanted = "one of each row for int8 values" if dtype == torch.int8 else f"none for {dtype} values"
        raise ValueError(f"scales: expected {wanted}, got {'none' if scales is None else 'some'}")
    if scales is None:
        return None
    plain = checks.plain("scales", scales, (torch.float32,), 1)
    checks.length("scales", plain, rows, "rows")
    if not bool((plain.isfinite() & (plain >= 0)).all()):
        raise ValueError("scales: expected finite numbers from 0, got others")
    return plain


def scaled(dense: Tensor, scales: Tensor | None) -> Tensor:
    """What the stored values [n, k] stand for: with scales, values · scale of their row in float32."""
    return dense if scales is None else dense.to(torch.float32) * scales[:, None]


def padded_rows(columns: int, bits: int) -> int:
    """Bytes of so many entries of `bits` each."""
    return (columns * bits + 7) // 8
