"""CSR: the format that lists the non-zero weights row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats import checks
from sparseinfer.formats._compressed import Compressed
from sparseinfer.formats.dtypes import WEIGHT_DTYPE_NAMES, WEIGHT_DTYPES


@dataclass(frozen=True, eq=False, repr=False)
class CSR(Compressed):
    """Compressed sparse rows of a weight matrix [n, k], in CPU memory.

    values        [nnz]    float32, bfloat16, float16 or int8, row by row
    crow_indices  [n + 1]  int64, row i owns values[crow_indices[i] : crow_indices[i + 1]]
    col_indices   [nnz]    int32, strictly ascending within a row
    shape         (n, k)
    scales        [n]      of int8, float32: a weight is its value times the scale of its row; else None

    Construction checks everything and raises TypeError (not a tensor, wrong dtype) or ValueError (wrong
    device, rank or length, offsets not monotone, a column out of range, unsorted or repeated).
    """

    _layout: ClassVar[torch.layout] = torch.sparse_csr
    _values_ndim: ClassVar[int] = 1

    @classmethod
    def from_dense(cls, w: Tensor, scales: Tensor | None = None) -> CSR:
        """Keep the non-zero elements of w [n, k], any strides. NaN and Inf are kept; -0.0 counts as zero.

        scales   float32 [n], of a w of int8
        """
        w = checks.plain("weight", w, tuple(WEIGHT_DTYPES.values()), 2)
        n, k = w.shape
        dtype = WEIGHT_DTYPE_NAMES[w.dtype]
        dense, crow = checks.address("weight", w), torch.empty(n + 1, dtype=torch.int64, device="cpu")
        offsets = checks.address("crow_indices", crow)
        core.dense_row_offsets((dense, dtype, n, k), offsets)
        nnz = int(crow[-1])
        col = torch.empty(nnz, dtype=torch.int32, device="cpu")
        values = torch.empty(nnz, dtype=w.dtype, device="cpu")
        parts = checks.address("col_indices", col), checks.address("values", values)
        core.dense_to_csr((dense, dtype, n, k), offsets, *parts)
        return cls(values, crow, col, (n, k), scales)

    @classmethod
    def from_scipy(cls, matrix: Any) -> CSR:
        """Copy a scipy.sparse csr_matrix or csr_array [n, k] of float32 or float16.

        Stored zeros stay stored. TypeError: not scipy CSR, or another dtype (float64 is not narrowed
        silently). ValueError: bad indices (`matrix.sum_duplicates()` fixes unsorted and repeated columns).
        """
        if getattr(matrix, "format", None) != "csr":
            hint = "convert it with .tocsr()"
            raise TypeError(
                f"matrix: expected a scipy.sparse CSR matrix, got {type(matrix).__name__} ({hint})"
            )
        if matrix.dtype not in (np.float32, np.float16):
            hint = "convert it with .astype(numpy.float32)"
            raise TypeError(f"matrix: expected dtype float32 or float16, got {matrix.dtype} ({hint})")
        n, k = checks.pair("shape", matrix.shape, minimum=0)
        return cls(
            torch.from_numpy(np.array(matrix.data)),
            checks.wide_indices("crow_indices", torch.from_numpy(np.array(matrix.indptr))),
            checks.narrow_indices("col_indices", torch.from_numpy(np.array(matrix.indices)), k),
            (n, k),
        )

    def to_dense(self) -> Tensor:
        """The matrix [n, k], bit for bit what was stored, zeros elsewhere; of int8 in float32, scaled."""
        w = torch.zeros(self.shape, dtype=self.dtype, device="cpu")
        w[self._unit_rows(), self.col_indices.to(torch.int64)] = self.values
        return self._scaled(w)
