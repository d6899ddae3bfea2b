"""Methods that score weights and prune the lowest scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from numbers import Real

from torch import Tensor

from sparseinfer.prune.calibration.statistics import CalibrationStats, LayerStats
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.methods.method import Pruned
from sparseinfer.prune.methods.sparse import SparseMethod
from sparseinfer.prune.methods.threshold import global_masks, layer_mask, n_of_m_mask, unit_scores
from sparseinfer.prune.patterns import NM, expand


@dataclass(frozen=True)
class Criterion(SparseMethod):
    """A method that scores weights and prunes the lowest scores. A new one is a subclass with `scores`.

    threshold  instead of sparsity: prunes every weight whose score is below it. If a pattern has units of
               several weights, the score of a unit is the mean of its weights'
    """

    _: KW_ONLY
    threshold: float | None = None

    @abstractmethod
    def scores(self, layer: Layer, stats: LayerStats | None) -> Tensor:
        """Scores [groups, n, k], float32 or float64, without NaN."""

    @property
    def unit_norm(self) -> int:
        """How the score of a unit is computed: 1 the mean of its scores, 2 the root of their mean square."""
        return 1

    def prune(self, layers: Mapping[str, Layer], stats: CalibrationStats | None) -> dict[str, Pruned]:
        units = {fqn: self.pattern.unit(layer) for fqn, layer in layers.items()}

        def scores_of(fqn: str) -> Tensor:
            scores = self.scores(layers[fqn], None if stats is None else stats.get(fqn))
            return unit_scores(scores, units[fqn], self.unit_norm)

        if isinstance(self.pattern, NM):
            masks = {fqn: n_of_m_mask(scores_of(fqn), self.pattern) for fqn in layers}
        elif self.threshold is not None:
            masks = {fqn: scores_of(fqn) >= self.threshold for fqn in layers}
        elif self.scope == "global":
            assert isinstance(self.sparsity, Real)
            sizes = {fqn: r * c for fqn, (r, c) in units.items()}
            scores = {fqn: scores_of(fqn) for fqn in layers}
            masks = global_masks(scores, sizes, float(self.sparsity))
        else:
            amounts = self.fractions(layers)
            masks = {fqn: layer_mask(scores_of(fqn), amounts[fqn], self.scope) for fqn in layers}
        return {fqn: Pruned(layers[fqn].unmatrix(expand(mask, units[fqn]))) for fqn, mask in masks.items()}

    def _check_amount(self) -> None:
        if self.threshold is None:
            return super()._check_amount()
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, Real):
            raise TypeError(f"threshold: expected a float, got {type(self.threshold).__name__}")
        if not self.threshold >= 0:
            raise ValueError(f"threshold: expected a number of at least 0, got {self.threshold}")
        if self.sparsity is not None:
            raise ValueError(f"sparsity: expected None with a threshold, got {self.sparsity!r}")
        return None
