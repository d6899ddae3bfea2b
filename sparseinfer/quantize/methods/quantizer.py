"""Quantizer: the base of all methods that round weights to int8."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from sparseinfer._int8 import row_peaks, row_scales
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.named import Named
from sparseinfer.quantize.clip import Clip, clipped_scales


@dataclass(frozen=True, eq=False)
class Rounded:
    """A quantizer's result for one weight.

    integers  [groups, n, k] int8, from -127 to 127; zero where the weight is
    scale     [groups, n] float32, of `_int8.row_scales`
    """

    integers: Tensor
    scale: Tensor


@dataclass(frozen=True, eq=False)
class Prepared:
    """The layers and statistics that are rounded, and what else of the model changes.

    layers      with the weights to round: the model's own, or others that take their place
    stats       of the inputs that these weights get
    parameters  new values of other parameters, by name
    unprepared  names of layers that are rounded as they are, and why
    """

    layers: Mapping[str, Layer]
    stats: CalibrationStats | None
    parameters: Mapping[str, tuple[nn.Parameter, Tensor]] = field(default_factory=dict)
    unprepared: Mapping[str, str] = field(default_factory=dict)


class Quantizer(Named, ABC):
    """Rounds weights to int8, symmetrically, with one scale per row. Zeros stay zeros.

    name   on the command line, where it is called without arguments
    needs  of "gram" and "ranges": what it reads of the statistics
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def prepare(
        self, model: nn.Module, layers: Mapping[str, Layer], stats: CalibrationStats | None
    ) -> Prepared:
        """What to round; only read."""
        return Prepared(layers, stats)

    @abstractmethod
    def round(self, layers: Mapping[str, Layer], stats: CalibrationStats | None) -> dict[str, Rounded]:
        """Computes the result for each layer. Weights and statistics are only read."""


def scales_of(layer: Layer, clip: Clip) -> Tensor:
    """[groups, n] scales of a layer's rows. ValueError: a weight beyond what float32 scales reach."""
    matrix = layer.matrix()
    peak = row_peaks(matrix)
    scale = row_scales(peak, matrix.dtype)
    if not scale.isfinite().all():
        raise ValueError(f"{layer.name}: expected weights within 127 scales of float32, got {peak.max()}")
    return clipped_scales(matrix, scale, peak) if clip == "mse" else scale


def check_quantizer(method: object) -> None:
    """TypeError unless it is a quantizer."""
    if not isinstance(method, Quantizer):
        hint = "an instance, such as RoundToNearest()"
        raise TypeError(f"method: expected a quantizer, got {method!r} ({hint})")
