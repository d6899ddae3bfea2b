"""SparseMethod: the base of methods with a sparsity, scope and pattern."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from numbers import Real

from torch import Tensor

from sparseinfer.prune.budgets.budget import Budget, check_sparsity
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.methods.method import Method
from sparseinfer.prune.methods.threshold import SCOPES, Scope
from sparseinfer.prune.patterns import NM, Column, Pattern, Row, Unstructured


@dataclass(frozen=True)
class SparseMethod(Method):
    """A method with a given sparsity, scope and pattern.

    sparsity  fraction in [0, 1): exactly round(sparsity * count) weights become zero. A mapping gives each
              layer, by name, its own; a Budget computes them. None if the pattern determines it
    scope     what one count covers: "layer" each weight, "row" each output row, "global" all weights together
    pattern   which weights are pruned together: Unstructured(), Block(r, c), NM(n, m), Row() or Column();
              then count is that of blocks, rows or columns

    TypeError or ValueError if an argument is not as described.
    """

    sparsity: float | Mapping[str, float] | Budget | None = None
    scope: Scope = "layer"
    _: KW_ONLY
    pattern: Pattern = field(default_factory=Unstructured)

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"scope: expected one of {SCOPES}, got {self.scope!r}")
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

    @property
    def all_needs(self) -> frozenset[str]:
        return self.needs | self.sparsity.needs if isinstance(self.sparsity, Budget) else self.needs

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
        """The same method with another pattern, and another sparsity unless the pattern determines it."""
        return replace(self, sparsity=None if isinstance(pattern, NM) else sparsity, pattern=pattern)

    def trial(
        self, layer: Layer, stats: CalibrationStats | None, sparsity: float, pattern: Pattern
    ) -> Tensor:
        """The layer's weight pruned by `with_amount(sparsity, pattern)`: a new tensor."""
        method = self.with_amount(sparsity, pattern)
        return method.prune({layer.fqn: layer}, stats)[layer.fqn].applied(layer)
