"""Stores a weight in the smallest of the formats, without changing a bit that matters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparseinfer._int8 import products, rounded
from sparseinfer.formats import BSR, CSR, NM, Bitmap
from sparseinfer.formats.dtypes import VALUE_DTYPES
from sparseinfer.io.manifest import Sparse

AnyFormat = Bitmap | CSR | BSR | NM

# Blocks and patterns that are tried; blocks are those that kernels read.
BLOCKS = ((4, 4), (8, 8), (16, 16), (16, 1))
GROUPS = (4, 8, 16)

# Below it a weight is not worth a description. Chosen, not measured.
_FEWEST_BYTES = 4096
# Looked at first, because they mostly show that there is no such pattern.
_FIRST_ROWS = 8


def compressed(
    weight: Tensor, narrower: Sequence[torch.dtype] = (), scales: Tensor | None = None
) -> AnyFormat | None:
    """A weight [n, ...] as a matrix in its smallest format; None: nothing is smaller than the tensor itself.

    narrower   dtypes to store values in where that is exact, the first that is
    scales     float32 [n] of a weight that is integers · scale: stored as int8 where that is exact

    Negative zeros become positive.
    """
    if weight.dtype not in VALUE_DTYPES or weight.dim() < 2 or weight.nbytes < _FEWEST_BYTES:
        return None
    matrix = weight.detach().flatten(1).contiguous()
    if max(matrix.shape) >= 2**31:
        return None
    integers = None if scales is None else _integers(matrix, scales)
    if integers is None:
        scales, stored = None, _narrowed(matrix, narrower)
    else:
        stored = integers
    kind = _smallest(stored, weight.nbytes)
    if kind is None:
        return None
    name, detail = kind
    given = {} if scales is None else {"scales": scales}
    if name == "bitmap":
        return Bitmap.from_dense(stored, **given)
    if name == "nm":
        return NM.from_dense(stored, detail, **given)
    return CSR.from_dense(stored) if name == "csr" else BSR.from_dense(stored, detail)


def described(fmt: AnyFormat, weight: Tensor) -> Sparse:
    """The manifest's words for it."""
    pattern = fmt.pattern if isinstance(fmt, NM) else None
    scales = getattr(fmt, "scales", None) is not None
    return Sparse(type(fmt).__name__.lower(), weight.dtype, tuple(weight.shape), pattern, scales)


def _integers(matrix: Tensor, scales: Tensor) -> Tensor | None:
    """int8 of which matrix is the product with scales, to the bit; None if there are none."""
    if matrix.dtype == torch.int8 or scales.shape != matrix.shape[:1] or scales.dtype != torch.float32:
        return None
    if not bool(matrix.isfinite().all()):
        return None
    integers = rounded(matrix, scales.detach())
    return integers if torch.equal(products(integers, scales.detach(), matrix.dtype), matrix) else None


def _narrowed(matrix: Tensor, narrower: Sequence[torch.dtype]) -> Tensor:
    for dtype in narrower:
        if dtype.itemsize < matrix.itemsize:
            narrow = matrix.to(dtype)
            if torch.equal(narrow.to(matrix.dtype), matrix):
                return narrow
    return matrix


def _smallest(matrix: Tensor, dense_bytes: int) -> tuple[str, tuple[int, int]] | None:
    """The format of fewest bytes that holds this matrix, with its pattern or block size."""
    (n, k), size = matrix.shape, matrix.itemsize
    kept = (matrix != 0).numpy()
    nnz = int(np.count_nonzero(kept))
    sizes: dict[tuple[str, tuple[int, int]], int] = {("bitmap", (0, 0)): nnz * size + n * ((k + 7) // 8)}
    if matrix.dtype != torch.int8:
        sizes["csr", (0, 0)] = nnz * (size + 4) + 8 * (n + 1)
        for block in BLOCKS:
            if (blocks := _blocks(kept, block)) is not None:
                r, c = block
                sizes["bsr", block] = blocks * (r * c * size + 4) + 8 * (n // r + 1)
    for m in GROUPS:
        if k % m == 0 and n * k:
            sizes |= _nm_sizes(kept, m, size, min(sizes.values()))
    # A table for which nothing is smaller stays a tensor, that every reader understands.
    best = min(sizes, key=lambda kind: sizes[kind])
    return best if sizes[best] < dense_bytes else None


def _nm_sizes(kept: np.ndarray, m: int, size: int, least: int) -> dict[tuple[str, tuple[int, int]], int]:
    """Bytes of N:M, with the least N that holds everything; none if they are not below `least`."""
    n, k = kept.shape
    for rows in (kept[:_FIRST_ROWS], kept):
        most = max(1, int(rows.reshape(len(rows), k // m, m).sum(axis=2, dtype=np.uint8).max()))
        nbytes = n * (k // m) * most * size + n * ((k // m * most * (m - 1).bit_length() + 7) // 8)
        if nbytes >= least:
            return {}
    return {("nm", (most, m)): nbytes}


def _blocks(kept: np.ndarray, block: tuple[int, int]) -> int | None:
    """How many blocks hold anything; None: they do not divide the matrix."""
    (n, k), (r, c) = kept.shape, block
    if n % r or k % c:
        return None
    rows = np.ascontiguousarray(np.bitwise_or.reduce(kept.reshape(n // r, r, k), axis=1))
    if c > 8:
        rows = np.bitwise_or.reduce(rows.view(np.uint64).reshape(n // r, k // c, c // 8), axis=2)
    elif c > 1:
        rows = rows.view(f"u{c}")
    return int(np.count_nonzero(rows))
