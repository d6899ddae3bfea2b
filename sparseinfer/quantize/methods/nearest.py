"""RoundToNearest: every weight by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from sparseinfer._int8 import rounded
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.quantize.clip import Clip, check_clip
from sparseinfer.quantize.methods.quantizer import Quantizer, Rounded, scales_of


@dataclass(frozen=True)
class RoundToNearest(Quantizer):
    """Round every weight to the nearest multiple of its row's scale.

    clip  "none": the largest magnitude of a row becomes 127. "mse": of some smaller scales too, the one of
          the least squared change of the row; what lies beyond 127 becomes 127
    """

    name = "nearest"
    _: KW_ONLY
    clip: Clip = "none"

    def __post_init__(self) -> None:
        check_clip(self.clip)

    def round(self, layers: Mapping[str, Layer], stats: CalibrationStats | None) -> dict[str, Rounded]:
        results = {}
        for fqn, layer in layers.items():
            scale = scales_of(layer, self.clip)
            results[fqn] = Rounded(rounded(layer.matrix(), scale), scale)
        return results
