"""Method: the base of all pruning methods, which compute masks and optionally new weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.named import Named


@dataclass(frozen=True, eq=False)
class Pruned:
    """A method's result for one weight.

    mask    bool, shape of the weight, True = kept
    weight  shape and dtype of the weight: its new values where the mask is True; None: unchanged
    """

    mask: Tensor
    weight: Tensor | None = None

    def applied(self, layer: Layer) -> Tensor:
        """The layer's new weight, including zeros: a new tensor."""
        weight = layer.weight.detach() if self.weight is None else self.weight
        return weight.masked_fill(~self.mask, 0)


class Method(Named, ABC):
    """Computes masks for weights, and new weights if it is a solver.

    name   for SparseMethods only, which are made from a sparsity and options
    needs  of "gram", "norms" and "gradients": what it reads of the statistics
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def all_needs(self) -> frozenset[str]:
        """The statistics that the method and its budget need."""
        return self.needs

    @abstractmethod
    def prune(self, layers: Mapping[str, Layer], stats: CalibrationStats | None) -> dict[str, Pruned]:
        """Computes the result for each layer. Weights and statistics are only read."""

    def spread(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None
    ) -> list[tuple[Method, Mapping[str, Layer]]]:
        """Replaces the budget: methods with fixed sparsities, and the layers of each."""
        return [(self, layers)]


def check_method(method: object) -> None:
    """TypeError unless it is a method."""
    if not isinstance(method, Method):
        raise TypeError(f"method: expected a pruning method such as Magnitude(0.5), got {method!r}")
