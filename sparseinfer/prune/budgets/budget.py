"""How much is pruned: one fraction for all layers, one for each, or a budget that spreads one over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol, TypeAlias

from torch import Tensor

from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.checks import check_fraction
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.named import Named
from sparseinfer.prune.patterns import Pattern

# A sparsity, and the pattern of its zeros.
Option: TypeAlias = "tuple[float, Pattern]"


class AdjustableMethod(Protocol):
    """A pruning method as a budget sees it: SparseMethod is one."""

    @property
    def needs(self) -> frozenset[str]:
        """Of "gram", "norms" and "gradients": what it reads of the statistics."""

    @property
    def pattern(self) -> Pattern:
        """Of its zeros, where the budget does not choose another one."""

    def trial(
        self, layer: Layer, stats: CalibrationStats | None, sparsity: float, pattern: Pattern
    ) -> Tensor:
        """What it would make of the layer's weight: a new tensor of its shape, zeros included."""


class Budget(Named, ABC):
    """Spreads a sparsity, or whatever it has to spend, over the layers.

    name  only of one that is made from a sparsity alone
    """

    @property
    def needs(self) -> frozenset[str]:
        """Of "gram", "norms" and "gradients": what it reads of the statistics."""
        return frozenset()

    @abstractmethod
    def allocate(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: AdjustableMethod
    ) -> Mapping[str, float | Option]:
        """A fraction for each layer, perhaps with a pattern in the place of the method's own."""


def check_sparsity(sparsity: object) -> None:
    """TypeError or ValueError unless it is a fraction, a mapping of fractions, or a Budget."""
    if isinstance(sparsity, Mapping):
        for fqn, value in sparsity.items():
            check_fraction(f"sparsity[{fqn!r}]", value)
    elif not isinstance(sparsity, Budget):
        check_fraction("sparsity", sparsity)
