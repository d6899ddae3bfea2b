"""The report of a pruning call: pruned layers, and weights that were skipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Names in one line of the report. Chosen: they fit a terminal.
_NAMED = 4


@dataclass(frozen=True)
class ReportedLayer:
    """A weight that was changed: its layer's name ("" for the model), shape, and number of non-zeros."""

    fqn: str
    shape: tuple[int, ...]
    nnz: int

    @property
    def numel(self) -> int:
        """Elements of the weight."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """1 - nnz / numel; 0.0 for a weight without elements."""
        return 1.0 - self.nnz / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class PrunedLayer(ReportedLayer):
    """One pruned weight.

    error  ‖X·(W - Ŵ)ᵀ‖² / ‖X·Wᵀ‖² over the calibration tokens; None if there was no Gram matrix
    """

    error: float | None = None


@dataclass(frozen=True)
class UnlookedWeight:
    """A weight that was skipped though it was not excluded: its parameter's name, and why."""

    name: str
    shape: tuple[int, ...]
    why: str

    @property
    def numel(self) -> int:
        """Elements of the weight."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class LayersReport:
    """What reports of pruning and of quantization have in common.

    layers    with `error`, in the order of the model; a weight shared by several modules is listed once
    unlooked  weights that were skipped
    """

    layers: tuple[Any, ...]
    unlooked: tuple[UnlookedWeight, ...] = ()

    @property
    def numel(self) -> int:
        """Elements of all pruned layers."""
        return sum(layer.numel for layer in self.layers)

    @property
    def nnz(self) -> int:
        """Non-zeros of all pruned layers."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Sparsity of all layers together; 0.0 if there is none."""
        return 1.0 - self.nnz / self.numel if self.numel else 0.0

    @property
    def mean_error(self) -> float | None:
        """Mean error over the layers that have one; None if there is none."""
        errors = [layer.error for layer in self.layers if layer.error is not None]
        return sum(errors) / len(errors) if errors else None


@dataclass(frozen=True)
class PruneReport(LayersReport):
    """The layers in the order of the model; a weight shared by several modules is listed once.

    unlooked     weights of two or more dimensions of unsupported kinds, such as embeddings and position
                 codes, or whose inputs calibration cannot record, in the order of the model; without those
                 excluded by `targets`, `ignore` or `filter_fn`
    model_numel  number of elements of all weights of the model of two or more dimensions
    model_nnz    number of non-zeros among these; None if not counted
    """

    layers: tuple[PrunedLayer, ...]
    unlooked: tuple[UnlookedWeight, ...] = ()
    model_numel: int | None = None
    model_nnz: int | None = None

    @property
    def model_sparsity(self) -> float:
        """Sparsity of all floating-point parameters of two or more dimensions, each counted once.

        Includes embeddings, and weights that were excluded or skipped. 0.0 if there is none; the sparsity of
        the layers if the others were not counted.
        """
        if self.model_numel is None or self.model_nnz is None:
            return self.sparsity
        return 1.0 - self.model_nnz / self.model_numel if self.model_numel else 0.0

    @property
    def unlooked_text(self) -> str:
        """Names and sizes of the skipped weights, the largest first, in two lines; "" if there is none."""
        if not self.unlooked:
            return ""
        largest = sorted(self.unlooked, key=lambda weight: -weight.numel)
        names = [f"{weight.name} {'x'.join(map(str, weight.shape))}" for weight in largest]
        count = sum(weight.numel for weight in self.unlooked)
        return (
            f"not looked at: {some(names)}; {count:,} weights\n"
            f"sparsity of the whole model: {self.model_sparsity:.4f}"
        )

    def __str__(self) -> str:
        total = PrunedLayer("total", (self.numel,), self.nnz, self.mean_error)
        width = max(len(layer.fqn) for layer in (*self.layers, total))
        lines = [
            f"{layer.fqn:<{width}}  {layer.nnz:>13,} of {layer.numel:>13,}  sparsity {layer.sparsity:.4f}"
            + ("" if layer.error is None else f"  error {layer.error:.4f}")
            for layer in (*self.layers, total)
        ]
        return "\n".join([*lines, self.unlooked_text] if self.unlooked else lines)


def some(names: Sequence[str]) -> str:
    """As many of the names as fit a line, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
