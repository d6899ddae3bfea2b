"""Bitmap: the format that marks the non-zero weights by one bit each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats import checks
from sparseinfer.formats._scaled import STORED_DTYPES, checked_scales, padded_rows, scaled
from sparseinfer.formats._stored import Stored
from sparseinfer.formats.csr import CSR


@dataclass(frozen=True, eq=False, repr=False)
class Bitmap(Stored):
    """One bit for each weight of a matrix [n, k], and the values of the set bits, in CPU memory.

    values  [nnz]             float32, bfloat16, float16 or int8, row by row
    mask    [n, ceil(k / 8)]  uint8: bit c % 8, counted from the least, of byte c // 8 stands for column c.
            Bits
                              behind column k - 1 are zero
    shape   (n, k)
    scales  [n]               float32, for int8 only: a weight is value · scale of its row

    Smaller than CSR unless fewer than one weight in 32 is kept. Construction checks everything and raises
    TypeError (not a tensor, wrong dtype) or ValueError (wrong device, rank or length, bits that are not as
    many as the values or lie outside of the shape).
    """

    values: Tensor
    mask: Tensor
    shape: tuple[int, int]
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        n, k = shape = checks.pair("shape", self.shape, minimum=0)
        values = checks.plain("values", self.values, STORED_DTYPES, 1)
        mask = checks.plain("mask", self.mask, (torch.uint8,), 2)
        if mask.shape != (n, padded_rows(k, 1)):
            raise ValueError(f"mask: expected shape {(n, padded_rows(k, 1))}, got {tuple(mask.shape)}")
        self._set(values=values, mask=mask, shape=shape, scales=checked_scales(self.scales, values.dtype, n))
        self.validate()

    def validate(self) -> None:
        """Raise ValueError unless the mask has as many bits as there are values, all inside the shape.

        Construction calls it; call it again if the tensors may have been modified since.
        """
        core.check_mask(self._bits())

    @classmethod
    def from_dense(cls, w: Tensor, scales: Tensor | None = None) -> Bitmap:
        """Keep the non-zero elements of w [n, k], any strides. NaN and Inf are kept; -0.0 counts as zero.

        scales   float32 [n], for w of int8 only
        """
        w = checks.plain("weight", w, STORED_DTYPES, 2)
        kept = (w != 0).numpy()
        mask = packed_bits(kept)
        values = torch.empty(int(np.count_nonzero(kept)), dtype=w.dtype, device="cpu")
        bits = (checks.address("mask", mask), *w.shape, len(values))
        core.gather_by_mask(bits, w.itemsize, checks.address("weight", w), checks.address("values", values))
        return cls(values, mask, (w.shape[0], w.shape[1]), scales)

    @classmethod
    def from_csr(cls, csr: CSR) -> Bitmap:
        """The same matrix. Stored zeros stay stored; the values are shared, not copied."""
        n, k = csr.shape
        kept = np.zeros((n, k), dtype=bool)
        rows = np.repeat(np.arange(n), np.diff(csr.crow_indices.numpy()))
        kept[rows, csr.col_indices.numpy()] = True
        return cls(csr.values, packed_bits(kept), csr.shape, getattr(csr, "scales", None))

    def to_csr(self) -> CSR:
        """The same matrix. Stored zeros stay stored; the values are shared, not copied."""
        crow = torch.empty(self.shape[0] + 1, dtype=torch.int64, device="cpu")
        col = torch.empty(self.nnz, dtype=torch.int32, device="cpu")
        core.mask_to_csr(
            self._bits(), checks.address("crow_indices", crow), checks.address("col_indices", col)
        )
        scales = {} if self.scales is None else {"scales": self.scales}
        return CSR(self.values, crow, col, self.shape, **scales)

    @classmethod
    def from_torch(cls, t: Tensor) -> Bitmap:
        """Copy a torch.sparse_csr tensor [n, k]; errors as for CSR."""
        return cls.from_csr(CSR.from_torch(t))

    def to_torch_sparse(self) -> Tensor:
        """The same matrix as a torch.sparse_csr tensor with int64 indices. The values are shared, not
        copied.
        """
        return self.to_csr().to_torch_sparse()

    def to_stored(self) -> Tensor:
        """The stored values as a matrix [n, k], without scales, zeros elsewhere."""
        w = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        core.scatter_by_mask(
            self._bits(),
            self.values.itemsize,
            checks.address("values", self.values),
            checks.address("weight", w),
        )
        return w

    def to_dense(self) -> Tensor:
        """The matrix [n, k], bit for bit what was stored, zeros elsewhere; of int8 values · scales,
        float32.
        """
        return scaled(self.to_stored(), self.scales)

    def _bits(self) -> tuple[int, int, int, int]:
        return checks.address("mask", self.mask), *self.shape, self.nnz


def packed_bits(kept: np.ndarray) -> Tensor:
    """Rows of bools as bits, the first in the least of each byte; the last byte of a row is padded by
    zeros.
    """
    return torch.from_numpy(np.packbits(kept, axis=1, bitorder="little"))


def unpacked_bits(packed: Tensor, columns: int) -> np.ndarray:
    """The inverse of `packed_bits`, as uint8 of 0 and 1."""
    return np.unpackbits(packed.numpy(), axis=1, count=columns, bitorder="little")
