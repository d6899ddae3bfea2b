"""StaticInputs: one scale for all activations of a layer, from the ranges of a calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from sparseinfer._int8 import buffer_names
from sparseinfer.prune.calibration.ranges import quantiles
from sparseinfer.prune.calibration.statistics import LayerStats


@dataclass(frozen=True)
class StaticInputs:
    """How the range of a layer's inputs becomes a scale and a zero point.

    signed      False: integers from 0 to 255 and a zero point; True: from -127 to 127, and zero is 0
    percentile  the share of the inputs that lie inside of the range, in percent, half of the others on each
                side; 100: from the smallest to the largest
    """

    _: KW_ONLY
    signed: bool = False
    percentile: float = 100.0

    def __post_init__(self) -> None:
        if not isinstance(self.signed, bool):
            raise TypeError(f"signed: expected a bool, got {type(self.signed).__name__}")
        if isinstance(self.percentile, bool) or not isinstance(self.percentile, (int, float)):
            raise TypeError(f"percentile: expected a float, got {type(self.percentile).__name__}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile: expected a number above 50, at most 100, got {self.percentile}")

    def buffers(self, parameter: str, stats: LayerStats) -> Iterator[tuple[str, Tensor]]:
        """The buffers of a layer by name: input_scale, float32 [], and input_zero_point, int32 []."""
        low, high = self._range(stats)
        if self.signed:
            scale, zero = max(-low, high) / 127, 0
        else:
            scale = (high - low) / 255
            zero = round(-low / scale) if scale else 0
        device = stats.sq.device
        _, scale_of_inputs, zero_point = buffer_names(parameter)
        yield scale_of_inputs, torch.tensor(scale or 1.0, dtype=torch.float32, device=device)
        yield zero_point, torch.tensor(zero, dtype=torch.int32, device=device)

    def _range(self, stats: LayerStats) -> tuple[float, float]:
        """It holds zero, which padding and ReLU make, and which has to be exact."""
        assert stats.low is not None
        assert stats.high is not None
        low, high = float(stats.low.min()), float(stats.high.max())
        if self.percentile < 100:
            if stats.counts is None:
                hint = "how they are distributed is not known"
                got = f"expected 100 where SmoothQuant scales the inputs, got {self.percentile}"
                raise ValueError(f"percentile: {got} ({hint})")
            tail = (1 - self.percentile / 100) / 2
            inner = quantiles(stats.counts, tail, 1 - tail)
            low, high = max(low, inner[0]), min(high, inner[1])
        return min(low, 0.0), max(high, 0.0)
