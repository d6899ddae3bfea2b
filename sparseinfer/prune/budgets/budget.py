"""Budget: the base of classes that compute a sparsity for each layer."""

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
    """The interface of a pruning method that budgets use; SparseMethod implements it."""

    @property
    def needs(self) -> frozenset[str]:
        """Of "gram", "norms" and "gradients": what it reads of the statistics."""

    @property
    def pattern(self) -> Pattern:
        """The method's pattern, unless the budget chooses another one."""

    def trial(
        self, layer: Layer, stats: CalibrationStats | None, sparsity: float, pattern: Pattern
    ) -> Tensor:
        """The layer's weight if pruned by this method: a new tensor of its shape."""


class Budget(Named, ABC):
    """Distributes an overall sparsity, or another resource, over the layers.

    name  for budgets that are made from a sparsity alone, else ""
    """

    @property
    def needs(self) -> frozenset[str]:
        """Of "gram", "norms" and "gradients": what it reads of the statistics."""
        return frozenset()

    @abstractmethod
    def allocate(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: AdjustableMethod
    ) -> Mapping[str, float | Option]:
        """A fraction for each layer, optionally with a pattern that replaces the method's own."""


def check_sparsity(sparsity: object) -> None:
    """TypeError or ValueError unless it is a fraction, a mapping of fractions, or a Budget."""
    if isinstance(sparsity, Mapping):
        for fqn, value in sparsity.items():
            check_fraction(f"sparsity[{fqn!r}]", value)
    elif not isinstance(sparsity, Budget):
        check_fraction("sparsity", sparsity)
