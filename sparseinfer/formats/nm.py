"""NM: the format of N:M sparsity, n weights of each m neighbours in a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparseinfer.formats import checks
from sparseinfer.formats._scaled import STORED_DTYPES, checked_scales, padded_rows, scaled
from sparseinfer.formats._stored import Stored
from sparseinfer.formats.bitmap import packed_bits, unpacked_bits
from sparseinfer.formats.csr import CSR

MAX_M = 256


@dataclass(frozen=True, eq=False, repr=False)
class NM(Stored):
    """A weight matrix [n, k] of which each group of M neighbours in a row keeps at most N, in CPU memory.

    values     [n, k / M, N]   float32, bfloat16, float16 or int8. A group that keeps fewer than N has zeros
    positions  [n, ceil(k / M * N * b / 8)]  uint8: for each value its place in the group, ascending, b bits
               each, the least first, where b = (M - 1).bit_length(). Bits behind the last place of a row
               are zero
    shape      (n, k)          M divides k
    pattern    (N, M)          1 <= N <= M <= 256
    scales     [n]             float32, for int8 only: a weight is value · scale of its row

    Construction checks everything and raises TypeError (not a tensor, wrong dtype) or ValueError (wrong
    device, rank or length, M that does not divide k, places that do not ascend or exceed the group).
    """

    values: Tensor
    positions: Tensor
    shape: tuple[int, int]
    pattern: tuple[int, int]
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        rows, _ = shape = checks.pair("shape", self.shape, minimum=0)
        pattern = _checked_pattern(self.pattern, shape)
        values = checks.plain("values", self.values, STORED_DTYPES, 3)
        positions = checks.plain("positions", self.positions, (torch.uint8,), 2)
        scales = checked_scales(self.scales, values.dtype, rows)
        self._set(values=values, positions=positions, shape=shape, pattern=pattern, scales=scales)
        self.validate()

    def validate(self) -> None:
        """Raise ValueError unless the tensors describe one matrix of this shape and pattern.

        Construction calls it; call it again if the tensors may have been modified since.
        """
        (rows, k), (n, m) = self.shape, self.pattern
        wanted = {"values": (rows, k // m, n), "positions": (rows, padded_rows(k // m * n, _width(m)))}
        for name, shape in wanted.items():
            if (got := tuple(getattr(self, name).shape)) != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {got}")
        places = self._places()
        if (places >= m).any():
            raise ValueError(f"positions: expected places below {m}, got {int(places.max())}")
        if n > 1 and (places[:, :, 1:] <= places[:, :, :-1]).any():
            raise ValueError("positions: expected places that ascend within a group, got others")
        if not torch.equal(_packed_places(places, m), self.positions):
            raise ValueError("positions: expected zero bits behind the last place of a row, got others")

    @classmethod
    def from_dense(cls, w: Tensor, pattern: tuple[int, int], scales: Tensor | None = None) -> NM:
        """Keep N of each M elements of w [n, k], any strides. NaN and Inf are kept; -0.0 counts as zero.

        pattern  (N, M). ValueError: a group with more than N that are not zero (prune with that pattern
                 first)
        scales   float32 [n], for w of int8 only
        """
        w = checks.plain("weight", w, STORED_DTYPES, 2)
        n, m = pattern = _checked_pattern(pattern, (w.shape[0], w.shape[1]))
        groups = w.view(len(w), w.shape[1] // m, m)
        kept = groups != 0
        if kept.numel() and (most := int(kept.sum(dim=2).max())) > n:
            raise ValueError(f"weight: expected at most {n} of each {m} that are not zero, got {most}")
        # A stable sort puts the kept ones first, in order; then zeros of the lowest places.
        order = (~kept).to(torch.uint8).argsort(dim=2, stable=True)[:, :, :n]
        places, _ = order.sort(dim=2)
        zero = torch.zeros((), dtype=w.dtype, device="cpu")
        values = groups.gather(2, places).where(kept.gather(2, places), zero)
        positions = _packed_places(places.numpy().astype(np.uint8), m)
        return cls(values, positions, (w.shape[0], w.shape[1]), pattern, scales)

    def to_csr(self) -> CSR:
        """The same matrix as CSR, without the zeros that fill up groups."""
        (rows, k), (n, m) = self.shape, self.pattern
        starts = np.arange(0, k, m, dtype=np.int32)[None, :, None]
        columns = torch.from_numpy((self._places() + starts).reshape(rows, k // m * n))
        values = self.values.view(rows, k // m * n)
        kept = values != 0
        crow = torch.zeros(rows + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(kept.sum(dim=1), dim=0, out=crow[1:])
        scales = {} if self.scales is None else {"scales": self.scales}
        return CSR(values[kept], crow, columns[kept], self.shape, **scales)

    @classmethod
    def from_torch(cls, t: Tensor, pattern: tuple[int, int]) -> NM:
        """Copy a torch.sparse_csr tensor [n, k] whose zeros lie in that pattern."""
        return cls.from_dense(CSR.from_torch(t).to_dense(), pattern)

    def to_torch_sparse(self) -> Tensor:
        """The same matrix as a torch.sparse_csr tensor with int64 indices."""
        return self.to_csr().to_torch_sparse()

    def to_stored(self) -> Tensor:
        """The stored values as a matrix [n, k], without scales, zeros elsewhere."""
        (rows, k), (_, m) = self.shape, self.pattern
        groups = torch.zeros((rows, k // m, m), dtype=self.dtype, device="cpu")
        groups.scatter_(2, torch.from_numpy(self._places().astype(np.int64)), self.values)
        return groups.view(rows, k)

    def to_dense(self) -> Tensor:
        """The matrix [n, k], bit for bit what was stored, zeros elsewhere; of int8 values · scales,
        float32.
        """
        return scaled(self.to_stored(), self.scales)

    def _places(self) -> np.ndarray:
        """Of each value in its group, uint8 [n, k / M, N]."""
        (rows, k), (n, m) = self.shape, self.pattern
        width = _width(m)
        if not width:
            return np.zeros((rows, k, 1), dtype=np.uint8)
        bits = unpacked_bits(self.positions, k // m * n * width)
        weights = (1 << np.arange(width)).astype(np.uint8)
        places: np.ndarray = (bits.reshape(rows, k // m, n, width) * weights).sum(axis=3, dtype=np.uint8)
        return places

    def _describe(self) -> str:
        return f"{super()._describe()}, pattern={self.pattern}"


def _checked_pattern(pattern: object, shape: tuple[int, int]) -> tuple[int, int]:
    n, m = checks.pair("pattern", pattern, minimum=1)
    if not n <= m <= MAX_M:
        raise ValueError(f"pattern: expected (N, M) with N <= M <= {MAX_M}, got {(n, m)}")
    if shape[1] % m:
        raise ValueError(f"pattern: expected (N, M) with M that divides {shape[1]} columns, got {(n, m)}")
    return n, m


def _width(m: int) -> int:
    """Bits of a place among m."""
    return (m - 1).bit_length()


def _packed_places(places: np.ndarray, m: int) -> Tensor:
    rows, groups, n = places.shape
    width = _width(m)
    bits = (places[..., None] >> np.arange(width, dtype=np.uint8)) & 1
    return packed_bits(bits.reshape(rows, groups * n * width))
