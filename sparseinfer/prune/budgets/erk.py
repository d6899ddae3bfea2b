"""ERK: a budget that sets each layer's density by its shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sparseinfer.prune.budgets.budget import AdjustableMethod, Budget
from sparseinfer.prune.budgets.spread import spread
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.checks import check_fraction
from sparseinfer.prune.layers.layer import Layer


@dataclass(frozen=True)
class ERK(Budget):
    """Erdős–Rényi kernel: density in proportion to the sum of a weight's sizes over their product.

    sparsity  of all layers together, in [0, 1)

    Small and narrow layers stay denser than large and square ones. A layer whose density would exceed 1 is
    left dense, and the others share what is left. Mocanu et al., "Scalable training of artificial neural
    networks with adaptive sparse connectivity", 2018; the kernel's sizes: Evci et al., "Rigging the lottery",
    2020. TypeError or ValueError if the sparsity is not as described.
    """

    name = "erk"

    sparsity: float

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)

    def allocate(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: AdjustableMethod
    ) -> dict[str, float]:
        ratios = [sum(layer.sizes) / max(math.prod(layer.sizes), 1) for layer in layers.values()]
        return spread(
            layers,
            self.sparsity,
            lambda scale: [scale * ratio for ratio in ratios],
            none=0.0,
            every=1 / min(ratios, default=1.0),
        )
