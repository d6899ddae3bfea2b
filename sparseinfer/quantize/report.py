"""The report of a quantization: the error of each layer, and weights that were skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sparseinfer.prune.report import LayersReport, ReportedLayer, some


@dataclass(frozen=True)
class QuantizedLayer(ReportedLayer):
    """One weight in int8.

    made_zero     how many of the others were not before: rounded to zero, they count as pruned
    weight_error  ‖W - Ŵ‖² / ‖W‖²
    error         ‖X·(W - Ŵ)ᵀ‖² / ‖X·Wᵀ‖² over the calibration tokens; None if there was no Gram matrix
    scales        the smallest and the largest scale of a row; (1, 1) if all are zero
    uneven        rows of one huge weight, beside which the others are rounded coarsely: by more than 1 % of
                  their squares
    """

    made_zero: int
    weight_error: float
    error: float | None
    scales: tuple[float, float]
    uneven: tuple[int, ...] = ()


@dataclass(frozen=True)
class QuantizeReport(LayersReport):
    """The layers in the order of the model; a weight shared by several modules is listed once.

    unlooked    weights that keep their dtype, as in PruneReport
    unprepared  layers that SmoothQuant left as they were, and why
    """

    layers: tuple[QuantizedLayer, ...]
    unprepared: Mapping[str, str] = field(default_factory=dict)

    @property
    def made_zero(self) -> int:
        """Weights of all layers that rounding made zero."""
        return sum(layer.made_zero for layer in self.layers)

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
            lines.append(f"not looked at: {some([weight.name for weight in self.unlooked])}")
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
        line += f"  one huge weight in row {some(list(map(str, layer.uneven)))}"
    return line
