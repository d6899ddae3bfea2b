"""How much is pruned: one fraction for all layers, one for each, or a budget that spreads one over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from sparseinfer.prune.checks import check_fraction
from sparseinfer.prune.layers import Layer
from sparseinfer.prune.patterns import Pattern
from sparseinfer.prune.statistics import CalibrationStats

if TYPE_CHECKING:
    from sparseinfer.prune.methods import SparseMethod

# A sparsity, and the pattern of its zeros.
Option: TypeAlias = "tuple[float, Pattern]"


class Budget(ABC):
    """Spreads a sparsity, or whatever it has to spend, over the layers."""

    @property
    def needs(self) -> frozenset[str]:
        """Of "gram", "norms" and "gradients": what it reads of the statistics."""
        return frozenset()

    @abstractmethod
    def allocate(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: SparseMethod
    ) -> Mapping[str, float | Option]:
        """A fraction for each layer, perhaps with a pattern in the place of the method's own."""


def check_sparsity(sparsity: object) -> None:
    """TypeError or ValueError unless it is a fraction, a mapping of fractions, or a Budget."""
    if isinstance(sparsity, Mapping):
        for fqn, value in sparsity.items():
            check_fraction(f"sparsity[{fqn!r}]", value)
    elif not isinstance(sparsity, Budget):
        check_fraction("sparsity", sparsity)
