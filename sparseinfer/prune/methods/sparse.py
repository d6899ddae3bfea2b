"""Pruning methods: small, checked descriptions of what `prune_` is to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from numbers import Real
from typing import ClassVar

from torch import Tensor

from sparseinfer.prune import threshold
from sparseinfer.prune.layers import Layer
from sparseinfer.prune.patterns import NM, Column, Pattern, Row, Unstructured, expand
from sparseinfer.prune.sparsity import Budget, check_sparsity
from sparseinfer.prune.statistics import CalibrationStats, LayerStats


@dataclass(frozen=True, eq=False)
class Pruned:
    """What a method makes of one weight.

    mask    bool, shape of the weight, True = kept
    weight  shape and dtype of the weight: its new values, which count where the mask is True; None: as before
    """

    mask: Tensor
    weight: Tensor | None = None

    def applied(self, layer: Layer) -> Tensor:
        """The layer's weight as it becomes, zeros included: a new tensor."""
        weight = layer.weight.detach() if self.weight is None else self.weight
        return weight.masked_fill(~self.mask, 0)


class Method(ABC):
    """Turns weights into masks, and into new weights if it is a solver.

    needs  of "gram", "norms" and "gradients": what it reads of the statistics
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def prune(self, layers: Mapping[str, Layer], stats: CalibrationStats | None) -> dict[str, Pruned]:
        """What becomes of each layer's weight. Weights and statistics are only read."""

    def spread(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None
    ) -> list[tuple[Method, Mapping[str, Layer]]]:
        """Methods without a budget that prune in this one's place, and the layers of each."""
        return [(self, layers)]


@dataclass(frozen=True)
class SparseMethod(Method):
    """A method that is told how much to prune.

    sparsity  fraction in [0, 1): exactly round(sparsity * count) weights become zero. A mapping gives each
              layer, by name, its own, a Budget spreads one over the layers. None with a pattern that says it
    scope     what one count covers: "layer" each weight, "row" each output row, "global" all weights together
    pattern   which weights are pruned together: Unstructured(), Block(r, c), NM(n, m), Row() or Column();
              then count is that of blocks, rows or columns

    TypeError or ValueError if an argument is not as described.
    """

    sparsity: float | Mapping[str, float] | Budget | None = None
    scope: threshold.Scope = "layer"
    _: KW_ONLY
    pattern: Pattern = field(default_factory=Unstructured)

    def __post_init__(self) -> None:
        if self.scope not in threshold.SCOPES:
            raise ValueError(f"scope: expected one of {threshold.SCOPES}, got {self.scope!r}")
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"pattern: expected a pattern such as Block(4, 4), got {self.pattern!r}")
        if self.scope == "row" and isinstance(self.pattern, (Row, Column)):
            raise ValueError(f"scope: expected 'layer' or 'global' with {self.pattern!r}, got 'row'")
        if isinstance(self.pattern, NM):
            if self.sparsity is not None:
                raise ValueError(f"sparsity: expected None with {self.pattern!r}, got {self.sparsity!r}")
            return
        self._check_amount()
        if self.scope == "global" and isinstance(self.sparsity, (Mapping, Budget)):
            hint = "each layer has its own sparsity"
            raise ValueError(f"scope: expected 'layer' or 'row', got 'global' ({hint})")

    def _check_amount(self) -> None:
        check_sparsity(self.sparsity)

    def fractions(self, layers: Mapping[str, Layer]) -> dict[str, float]:
        """The sparsity of each layer. ValueError: a mapping that lacks one."""
        if isinstance(self.pattern, NM):
            return dict.fromkeys(layers, self.pattern.sparsity)
        if not isinstance(self.sparsity, Mapping):
            assert isinstance(self.sparsity, Real)
            return dict.fromkeys(layers, float(self.sparsity))
        for fqn in layers:
            if fqn not in self.sparsity:
                hint = "0.0 leaves it dense"
                raise ValueError(f"sparsity: expected a fraction for {fqn!r}, got none ({hint})")
        return {fqn: float(self.sparsity[fqn]) for fqn in layers}

    def spread(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None
    ) -> list[tuple[Method, Mapping[str, Layer]]]:
        if not isinstance(self.sparsity, Budget):
            return super().spread(layers, stats)
        amounts: defaultdict[Pattern, dict[str, float]] = defaultdict(dict)
        for fqn, amount in self.sparsity.allocate(layers, stats, self).items():
            fraction, pattern = amount if isinstance(amount, tuple) else (amount, self.pattern)
            amounts[pattern][fqn] = fraction
        return [
            (self.with_amount(fractions, pattern), {fqn: layers[fqn] for fqn in fractions})
            for pattern, fractions in amounts.items()
        ]

    def with_amount(self, sparsity: float | Mapping[str, float], pattern: Pattern) -> SparseMethod:
        """The same method with another sparsity, which counts unless the pattern says it, and pattern."""
        return replace(self, sparsity=None if isinstance(pattern, NM) else sparsity, pattern=pattern)


@dataclass(frozen=True)
class Criterion(SparseMethod):
    """A method that scores weights and prunes the lowest scores. A new one is a subclass with `scores`.

    threshold  instead of sparsity: prunes every weight whose score is below it. Where a pattern joins weights
               to units, the score of a unit is the mean of its weights'
    """

    _: KW_ONLY
    threshold: float | None = None

    @abstractmethod
    def scores(self, layer: Layer, stats: LayerStats | None) -> Tensor:
        """Scores [groups, n, k], float32 or float64, without NaN."""

    @property
    def unit_norm(self) -> int:
        """What the score of a unit is: 1 the mean of its scores, 2 the root of their mean square."""
        return 1

    def prune(self, layers: Mapping[str, Layer], stats: CalibrationStats | None) -> dict[str, Pruned]:
        units = {fqn: self.pattern.unit(layer) for fqn, layer in layers.items()}

        def scores_of(fqn: str) -> Tensor:
            scores = self.scores(layers[fqn], None if stats is None else stats.get(fqn))
            return threshold.unit_scores(scores, units[fqn], self.unit_norm)

        if isinstance(self.pattern, NM):
            masks = {fqn: threshold.n_of_m_mask(scores_of(fqn), self.pattern) for fqn in layers}
        elif self.threshold is not None:
            masks = {fqn: scores_of(fqn) >= self.threshold for fqn in layers}
        elif self.scope == "global":
            assert isinstance(self.sparsity, Real)
            sizes = {fqn: r * c for fqn, (r, c) in units.items()}
            scores = {fqn: scores_of(fqn) for fqn in layers}
            masks = threshold.global_masks(scores, sizes, float(self.sparsity))
        else:
            amounts = self.fractions(layers)
            masks = {fqn: threshold.layer_mask(scores_of(fqn), amounts[fqn], self.scope) for fqn in layers}
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
