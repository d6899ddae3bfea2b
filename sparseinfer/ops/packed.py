"""Common to the packings of both devices: their figures, their version, and unpacking to a format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.formats import BSR, CSR
from sparseinfer.formats.checks import address
from sparseinfer.formats.dtypes import WEIGHT_DTYPES

# What packings are made from, by the name that rows of kernels have for it.
FORMATS: dict[str, type[CSR] | type[BSR]] = {"csr": CSR, "bsr": BSR}


@dataclass(frozen=True)
class PackedInfo:
    """The figures of a packing. `nbytes` includes indices and header."""

    packing: str
    dtype: str
    storage: str
    n: int
    k: int
    nnz: int
    nbytes: int
    panel: int
    block_size: tuple[int, int]
    device: str = "cpu"

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are not stored."""
        return 1.0 - self.nnz / (self.n * self.k) if self.n * self.k else 0.0


def check_made_from(fmt: object, wanted: str, packing: str) -> None:
    """TypeError unless fmt is the format, one of FORMATS, that a packing is made from."""
    if not isinstance(fmt, FORMATS[wanted]):
        expected, got = FORMATS[wanted].__name__, type(fmt).__name__
        raise TypeError(f"format: expected {expected} for packing {packing}, got {got}")


def version(packed: Tensor) -> int:
    """A number that changes when the tensor is written to; -1 for an inference tensor, which has none."""
    return -1 if packed.is_inference() else packed._version


def unpacked(info: PackedInfo, fmt: str, fill: Callable[..., None]) -> CSR | BSR:
    """The format (one of FORMATS) with these figures, in CPU memory.

    `fill` writes row offsets int64, column indices int32 and values to the three addresses it is given, and
    of int8 scales to a fourth.
    """
    r, c = info.block_size
    units = info.nnz // (r * c)
    shape = (units, r, c) if fmt == "bsr" else (units,)
    values = torch.empty(shape, dtype=WEIGHT_DTYPES[info.dtype], device="cpu")
    crow = torch.empty(info.n // r + 1, dtype=torch.int64, device="cpu")
    col = torch.empty(units, dtype=torch.int32, device="cpu")
    is_scaled = values.dtype == torch.int8
    scales = torch.empty(info.n, dtype=torch.float32, device="cpu") if is_scaled else None
    parts = [address("crow_indices", crow), address("col_indices", col), address("values", values)]
    fill(*parts, *([] if scales is None else [address("scales", scales)]))
    return FORMATS[fmt](values, crow, col, (info.n, info.k), scales)
