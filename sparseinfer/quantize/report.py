"""The report of a quantization: the error of each layer, and weights that were skipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sparseinfer.prune.report import UnlookedWeight

# Names in one line of the report. Chosen: they fit a terminal.
_NAMED = 4


@dataclass(frozen=True)
class QuantizedLayer:
    """One weight in int8: its layer's name ("" for the model itself) and shape.

    nnz           number of weights that are not zero now
    made_zero     how many of the others were not before: rounded to zero, they count as pruned
    weight_error  ‖W - Ŵ‖² / ‖W‖²
    error         ‖X·(W - Ŵ)ᵀ‖² / ‖X·Wᵀ‖² over the calibration tokens; None if there was no Gram matrix
    scales        the smallest and the largest scale of a row; (1, 1) if all are zero
    uneven        rows of one huge weight, beside which the others are rounded coarsely: by more than 1 % of
                  their squares
    """

    fqn: str
    shape: tuple[int, ...]
    nnz: int
    made_zero: int
    weight_error: float
    error: float | None
    scales: tuple[float, float]
    uneven: tuple[int, ...] = ()

    @property
    def numel(self) -> int:
        """Elements of the weight."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """1 - nnz / numel; 0.0 for a weight without elements."""
        return 1.0 - self.nnz / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class QuantizeReport:
    """The layers in the order of the model; a weight shared by several modules is listed once.

    unlooked    weights that keep their dtype, as in PruneReport
    unprepared  layers that SmoothQuant left as they were, and why
    """

    layers: tuple[QuantizedLayer, ...]
    unlooked: tuple[UnlookedWeight, ...] = ()
    unprepared: Mapping[str, str] = field(default_factory=dict)

    @property
    def made_zero(self) -> int:
        """Weights of all layers that rounding made zero."""
        return sum(layer.made_zero for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Sparsity of all layers together; 0.0 if there is none."""
        numel = sum(layer.numel for layer in self.layers)
        return 1.0 - sum(layer.nnz for layer in self.layers) / numel if numel else 0.0

    @property
    def mean_error(self) -> float | None:
        """Mean error over the layers that have one; None if there is none."""
        errors = [layer.error for layer in self.layers if layer.error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def mean_weight_error(self) -> float:
        """Mean over the layers of their `weight_error`."""
        return sum(layer.weight_error for layer in self.layers) / max(len(self.layers), 1)

    @property
    def summary(self) -> str:
        """All layers in one line; more lines name weights that were skipped and layers left as they were."""
        total = f"{len(self.layers)} layers in int8, {self.made_zero:,} weights rounded to zero"
        if self.mean_error is not None:
            total += f", mean error {self.mean_error:.2e}"
        lines = [f"{total}; sparsity {self.sparsity:.4f}"]
        if self.unlooked:
            names = ", ".join(weight.name for weight in self.unlooked[:_NAMED])
            more = f" and {len(self.unlooked) - _NAMED} more" if self.unlooked[_NAMED:] else ""
            lines.append(f"not looked at: {names}{more}")
        if self.unprepared:
            fqn, why = next(iter(self.unprepared.items()))
            lines.append(f"not smoothed: {len(self.unprepared)} layers, such as {fqn}: {why}")
        return "\n".join(lines)

    def __str__(self) -> str:
        width = max((len(layer.fqn) for layer in self.layers), default=0)
        return "\n".join([*(_line(layer, width) for layer in self.layers), self.summary])


def _line(layer: QuantizedLayer, width: int) -> str:
    low, high = layer.scales
    line = f"{layer.fqn:<{width}}  weight error {layer.weight_error:.2e}"
    if layer.error is not None:
        line += f"  error {layer.error:.2e}"
    line += f"  scales {low:.2e} to {high:.2e}  made zero {layer.made_zero:,}"
    if layer.uneven:
        rows = ", ".join(map(str, layer.uneven[:_NAMED]))
        line += f"  one huge weight in row {rows}" + (" and more" if layer.uneven[_NAMED:] else "")
    return line
