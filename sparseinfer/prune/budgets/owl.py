"""OWL: a budget that keeps layers with many outliers denser."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from sparseinfer.prune.budgets.budget import AdjustableMethod, Budget
from sparseinfer.prune.budgets.spread import spread
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.checks import check_fraction, check_positive
from sparseinfer.prune.importance import wanda
from sparseinfer.prune.layers.layer import Layer

Per = Literal["block", "layer"]


@dataclass(frozen=True)
class OWL(Budget):
    """Outlier weighed layerwise sparsity: layers with more outliers are pruned less. Yin et al., 2023.

    sparsity  of all layers together, in [0, 1)
    m         an outlier is a Wanda score of more than m times the mean; 5 as in the paper
    lam       densities lie in a range of 2·lam around the requested one, before the excess above 1 is
              redistributed; 0.08 as in the paper
    per       "block": layers of one transformer block, `model.layers.3.…`, are considered together and get
              one density; "layer": each by itself, as is a layer outside of all blocks

    Needs the norms of a calibration; intended for Wanda and SparseGPT. TypeError or ValueError if an
    argument is not as described.
    """

    name = "owl"

    sparsity: float
    m: float = 5.0
    lam: float = 0.08
    per: Per = "block"

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)
        check_positive("m", self.m)
        check_positive("lam", self.lam)
        if self.per not in get_args(Per):
            raise ValueError(f"per: expected one of {get_args(Per)}, got {self.per!r}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"norms"})

    def allocate(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: AdjustableMethod
    ) -> dict[str, float]:
        assert stats is not None
        groups = _blocks(layers) if self.per == "block" else [[fqn] for fqn in layers]
        share = {}
        for group in groups:
            share.update(dict.fromkeys(group, self._outliers([layers[fqn] for fqn in group], stats)))
        low, high = min(share.values(), default=0.0), max(share.values(), default=0.0)
        # All alike, as those of a single block: uniform.
        scale = 2 * self.lam / (high - low) if high > low else 0.0
        offsets = [scale * (share[fqn] - low) for fqn in layers]
        return spread(
            layers,
            self.sparsity,
            lambda shift: [shift + offset for offset in offsets],
            none=-2 * self.lam,
            every=1.0,
        )

    def _outliers(self, layers: Sequence[Layer], stats: CalibrationStats) -> float:
        """The fraction of the layers' weights whose score exceeds m times the mean of them all."""
        scores = torch.cat([wanda(layer.matrix(), stats[layer.fqn].sq).flatten() for layer in layers])
        return float((scores > self.m * scores.mean(dtype=torch.float64)).double().mean())


def _blocks(layers: Mapping[str, Layer]) -> list[list[str]]:
    """Names of one transformer block together: those alike up to the first number in them."""
    blocks: dict[str, list[str]] = {}
    for fqn in layers:
        numbered = re.match(r"(?:.*?\.)?\d+(?=\.)", fqn)
        blocks.setdefault(numbered[0] if numbered else fqn, []).append(fqn)
    return list(blocks.values())
