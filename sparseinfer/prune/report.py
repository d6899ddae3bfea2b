"""What a pruning call left behind."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PrunedLayer:
    """One pruned weight: its module's name ("" for the model itself), shape, and how many are not zero.

    error  ‖X·(W - Ŵ)ᵀ‖² / ‖X·Wᵀ‖² over the calibration tokens; None if there was no Gram matrix
    """

    fqn: str
    shape: tuple[int, ...]
    nnz: int
    error: float | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """1 - nnz / numel; 0.0 for a weight without elements."""
        return 1.0 - self.nnz / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class PruneReport:
    """The layers in the order of the model; a weight shared by several modules is listed once."""

    layers: tuple[PrunedLayer, ...]

    @property
    def numel(self) -> int:
        return sum(layer.numel for layer in self.layers)

    @property
    def nnz(self) -> int:
        return sum(layer.nnz for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Of all layers together; 0.0 if there is none."""
        return 1.0 - self.nnz / self.numel if self.numel else 0.0

    @property
    def mean_error(self) -> float | None:
        """Mean over the layers with one; None if there is none."""
        errors = [layer.error for layer in self.layers if layer.error is not None]
        return sum(errors) / len(errors) if errors else None

    def __str__(self) -> str:
        total = PrunedLayer("total", (self.numel,), self.nnz, self.mean_error)
        width = max(len(layer.fqn) for layer in (*self.layers, total))
        return "\n".join(
            f"{layer.fqn:<{width}}  {layer.nnz:>13,} of {layer.numel:>13,}  sparsity {layer.sparsity:.4f}"
            + ("" if layer.error is None else f"  error {layer.error:.4f}")
            for layer in (*self.layers, total)
        )
