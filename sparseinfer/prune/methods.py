"""Pruning methods: small, checked descriptions of what `prune_` is to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from sparseinfer.prune import importance, threshold


class Method(ABC):
    """Turns weights into masks. A new criterion is a subclass that joins an importance and a threshold."""

    @abstractmethod
    def masks(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bool masks, True = kept, for the weights [n, ...] by name. The weights are only read."""


@dataclass(frozen=True)
class Magnitude(Method):
    """Prune the weights with the smallest absolute values: the L1 criterion of torch.nn.utils.prune.

    sparsity  fraction in [0, 1); exactly round(sparsity * count) weights become zero
    scope     what one count covers: "layer" each weight, "row" each output row, "global" all weights together

    Masks equal torch's l1_unstructured ("layer") and global_unstructured ("global") wherever magnitudes
    differ; of equal magnitudes, which torch leaves undefined, the first in row-major order are pruned.
    TypeError or ValueError if an argument is not as described.
    """

    sparsity: float
    scope: threshold.Scope = "layer"

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)
        if self.scope not in threshold.SCOPES:
            raise ValueError(f"scope: expected one of {threshold.SCOPES}, got {self.scope!r}")

    def masks(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = {name: importance.magnitude(weight) for name, weight in weights.items()}
        return threshold.masks(scores, float(self.sparsity), self.scope)


def _check_sparsity(sparsity: object) -> None:
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"sparsity: expected a float, got {type(sparsity).__name__}")
    if not 0 <= float(sparsity) < 1:  # also refuses NaN
        hint = "a fraction, not percent: 0.5 prunes half"
        raise ValueError(f"sparsity: expected a number in [0, 1), got {sparsity} ({hint})")
