"""BSR: the block-sparse format, compressed rows of dense blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparseinfer.formats import checks
from sparseinfer.formats._compressed import Compressed, offsets
from sparseinfer.formats.csr import CSR
from sparseinfer.formats.dtypes import WEIGHT_DTYPES


@dataclass(frozen=True, eq=False, repr=False)
class BSR(Compressed):
    """Block compressed rows of a weight matrix [n, k] with blocks of r rows and c columns, in CPU memory.

    values        [nblocks, r, c]  float32, bfloat16, float16 or int8, block row by block row, each row-major
    crow_indices  [n / r + 1]      int64, block row i owns values[crow_indices[i] : crow_indices[i + 1]]
    col_indices   [nblocks]        int32, block column, strictly ascending within a block row
    shape         (n, k)           r divides n, c divides k
    scales        [n]              of int8, as of CSR; else None

    Construction checks everything and raises like CSR, and ValueError for a block that does not divide the
    shape. nnz counts every value of a stored block.
    """

    _layout: ClassVar[torch.layout] = torch.sparse_bsr
    _values_ndim: ClassVar[int] = 3

    @classmethod
    def from_dense(cls, w: Tensor, block_size: tuple[int, int], scales: Tensor | None = None) -> BSR:
        """Keep the blocks of w [n, k], any strides, in which any element is not zero (NaN is not zero).

        scales   float32 [n], of a w of int8
        """
        w = checks.plain("weight", w, tuple(WEIGHT_DTYPES.values()), 2)
        r, c = checks.pair("block_size", block_size, minimum=1)
        rows, columns = checks.blocks_divide((w.shape[0], w.shape[1]), (r, c))
        blocks = w.view(rows, r, columns, c).transpose(1, 2)
        kept = (blocks != 0).flatten(2).any(dim=2)
        block_rows, block_columns = kept.nonzero(as_tuple=True)
        values = blocks[block_rows, block_columns]
        return cls(values, offsets(kept), block_columns.to(torch.int32), (w.shape[0], w.shape[1]), scales)

    def to_dense(self) -> Tensor:
        """The matrix [n, k], bit for bit what was stored, zeros elsewhere; of int8 in float32, scaled."""
        (rows, columns), (r, c) = self._grid(), self.block_size
        blocks = torch.zeros((rows, columns, r, c), dtype=self.dtype, device="cpu")
        blocks[self._unit_rows(), self.col_indices.to(torch.int64)] = self.values
        return self._scaled(blocks.transpose(1, 2).reshape(self.shape))

    def to_csr(self) -> CSR:
        """The same matrix, value by value: all values of a stored block stay stored, zeros too."""
        (n, k), (r, c) = self.shape, self.block_size
        per_row = self.crow_indices.diff().repeat_interleave(r) * c
        crow = torch.zeros(n + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(per_row, 0, out=crow[1:])
        rows = self._unit_rows()[:, None, None] * r + torch.arange(r, device="cpu")[:, None]
        columns = self.col_indices.to(torch.int64)[:, None, None] * c + torch.arange(c, device="cpu")
        rows, columns = (t.expand(-1, r, c).flatten() for t in (rows, columns))
        order = (rows * max(k, 1) + columns).argsort()
        return CSR(self.values.flatten()[order], crow, columns[order].to(torch.int32), (n, k), self.scales)

    @property
    def block_size(self) -> tuple[int, int]:
        """(r, c)."""
        return self.values.shape[1], self.values.shape[2]

    def _grid(self) -> tuple[int, int]:
        block_size = checks.pair("block_size", self.block_size, minimum=1)
        return checks.blocks_divide(self.shape, block_size)

    def _describe(self) -> str:
        return f"{super()._describe()}, block_size={self.block_size}"
