"""The base of CSR and BSR: values and column indices listed row by row, and the offset of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats import checks
from sparseinfer.formats._scaled import checked_scales, scaled
from sparseinfer.formats._stored import Stored
from sparseinfer.formats.dtypes import WEIGHT_DTYPES

Self = TypeVar("Self", bound="Compressed")


@dataclass(frozen=True, eq=False, repr=False)
class Compressed(Stored):
    """Base of the compressed-row formats; holds plain, contiguous CPU tensors without gradients.

    A unit is one weight (CSR) or one block (BSR). Tensors that already are contiguous are kept, not copied.
    Values of int8 are integers that `scales`, float32 [n], one of each row, multiply; other dtypes have none.
    """

    values: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    shape: tuple[int, int]
    scales: Tensor | None = None

    _layout: ClassVar[torch.layout]
    _values_ndim: ClassVar[int]

    def __post_init__(self) -> None:
        checked = {
            "values": checks.plain("values", self.values, tuple(WEIGHT_DTYPES.values()), self._values_ndim),
            "crow_indices": checks.plain("crow_indices", self.crow_indices, (torch.int64,), 1),
            "col_indices": checks.plain("col_indices", self.col_indices, (torch.int32,), 1),
            "shape": checks.pair("shape", self.shape, minimum=0),
        }
        self._set(**checked)
        self.validate()

    def validate(self) -> None:
        """Raise ValueError unless the three tensors describe one matrix of this shape.

        Offsets start at 0, never decrease and end at the number of units; columns ascend strictly within a
        row and lie inside the shape; scales are finite and not negative. Construction calls it; call it again
        if the tensors may have been modified since.
        """
        rows, columns = self._grid()
        if columns > checks.INT32_MAX:
            raise ValueError(f"shape: expected at most {checks.INT32_MAX} columns, got {columns}")
        units = self.values.shape[0]
        checks.length("crow_indices", self.crow_indices, rows + 1, "rows + 1")
        checks.length("col_indices", self.col_indices, units, "values.shape[0]")
        crow, col = (checks.address(name, getattr(self, name)) for name in ("crow_indices", "col_indices"))
        core.check_csr(crow, col, rows, columns, units)
        self._set(scales=checked_scales(self.scales, self.dtype, self.shape[0]))

    @classmethod
    def from_torch(cls: type[Self], t: Tensor) -> Self:
        """Copy a CPU tensor [n, k] of the same layout, torch.sparse_csr or torch.sparse_bsr.

        Stored zeros stay stored. TypeError: another layout or dtype. ValueError: another device, a batch, bad
        indices.
        """
        t = checks.on_cpu("tensor", t).detach()
        if t.layout != cls._layout:
            hint = "from_dense takes dense tensors"
            raise TypeError(f"tensor: expected layout {cls._layout}, got {t.layout} ({hint})")
        if t.ndim != 2:
            raise ValueError(f"tensor: expected 2 dimensions, got shape {tuple(t.shape)}")
        values = t.values().clone()
        block_columns = values.shape[2] if values.ndim == 3 else 1
        return cls(
            values,
            checks.wide_indices("crow_indices", t.crow_indices()),
            checks.narrow_indices("col_indices", t.col_indices(), t.shape[1] // block_columns),
            (t.shape[0], t.shape[1]),
        )

    def to_torch_sparse(self) -> Tensor:
        """The same matrix as a torch tensor with int64 indices. The values are shared, not copied.

        TypeError: int8, whose scales it could not hold.
        """
        if self.scales is not None:
            raise TypeError("values: expected a dtype without scales, got int8 (to_dense multiplies by them)")
        return torch.sparse_compressed_tensor(
            self.crow_indices,
            self.col_indices.to(torch.int64),
            self.values,
            size=self.shape,
            layout=self._layout,
            dtype=self.dtype,
            device=self.values.device,
            check_invariants=False,
        )

    def _scaled(self, dense: Tensor) -> Tensor:
        """The matrix [n, k] of which `dense` holds the values."""
        return scaled(dense, self.scales)

    def _grid(self) -> tuple[int, int]:
        """(rows, columns) that the indices count."""
        return self.shape

    def _unit_rows(self) -> Tensor:
        """Row of each unit, int64 [values.shape[0]]."""
        rows = torch.arange(self.crow_indices.numel() - 1, dtype=torch.int64, device="cpu")
        return rows.repeat_interleave(self.crow_indices.diff(), output_size=self.values.shape[0])


def offsets(kept: Tensor) -> Tensor:
    """Row offsets, int64 [rows + 1], of the units kept by a bool mask [rows, columns]."""
    crow = torch.zeros(kept.shape[0] + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(kept.sum(dim=1), dim=0, out=crow[1:])
    return crow
