"""How much is pruned: one fraction for all layers, one for each, or a budget that spreads one over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, TypeAlias

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


def check_fraction(name: str, value: object) -> None:
    """TypeError or ValueError unless it is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a float, got {type(value).__name__}")
    if not 0 <= float(value) < 1:  # also refuses NaN
        hint = "a fraction, not percent: 0.5 prunes half"
        raise ValueError(f"{name}: expected a number in [0, 1), got {value} ({hint})")


def check_sparsity(sparsity: object) -> None:
    """TypeError or ValueError unless it is a fraction, a mapping of fractions, or a Budget."""
    if isinstance(sparsity, Mapping):
        for fqn, value in sparsity.items():
            check_fraction(f"sparsity[{fqn!r}]", value)
    elif not isinstance(sparsity, Budget):
        check_fraction("sparsity", sparsity)
