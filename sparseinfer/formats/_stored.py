"""The base of all formats: their figures, counted from the tensors they hold."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor


class Stored:
    """Base of dataclasses: `values`, further tensors that say where they are in a matrix, and its `shape`."""

    values: Tensor
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        """Stored values, stored zeros included."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """nnz / (n * k); 1.0 for a matrix without elements."""
        n, k = self.shape
        return self.nnz / (n * k) if n * k else 1.0

    @property
    def sparsity(self) -> float:
        """1 - density."""
        return 1.0 - self.density

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.parts().values())

    def parts(self) -> dict[str, Tensor]:
        """The tensors by name; those that are None are left out."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        held = {name: getattr(self, name) for name in names}
        return {name: t for name, t in held.items() if isinstance(t, Tensor)}

    def _set(self, **checked: object) -> None:
        """Replace fields, for checks on construction."""
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _describe(self) -> str:
        return f"shape={self.shape}, nnz={self.nnz}, sparsity={self.sparsity:.4f}, dtype={self.dtype}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()})"
