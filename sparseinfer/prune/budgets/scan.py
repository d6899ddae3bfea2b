"""The base of budgets that measure the cost of pruning each layer by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

from sparseinfer.prune.budgets.budget import AdjustableMethod, Budget, Option
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.layers.layer import Layer


@dataclass(frozen=True)
class Scan(Budget):
    """A budget that prunes each layer by itself to measure the cost.

    evaluate  () -> float: the loss of the model in its present state, lower is better. It is called for the
              original model and then with one layer pruned at a time. Default: the layer's relative output
              error from the Gram matrix of a calibration, without running the model
    method    the method to try with; default: the method that prunes. Wanda ranks options for a solver in a
              fraction of its time
    """

    _: KW_ONLY
    evaluate: Callable[[], float] | None = None
    method: AdjustableMethod | None = None

    @property
    def needs(self) -> frozenset[str]:
        costs = frozenset({"gram"} if self.evaluate is None else ())
        return costs if self.method is None else costs | self.method.needs

    def base_cost(self) -> float:
        """The value of `costs` if nothing is pruned."""
        return 0.0 if self.evaluate is None else _finite_loss(self.evaluate, "as it was")

    def costs(
        self,
        layer: Layer,
        stats: CalibrationStats | None,
        method: AdjustableMethod,
        options: Sequence[Option],
    ) -> list[float]:
        """The cost of each option for this layer; `method` is the one that prunes.

        Without `evaluate` it is the layer's relative output error, ‖X·(W - Ŵ)ᵀ‖² / ‖X·Wᵀ‖², from the Gram
        matrix; else the loss of the model. The sparsity of NM(n, m) is its own, whatever the option says.
        """
        tried = self.method or method
        weights = (tried.trial(layer, stats, sparsity, pattern) for sparsity, pattern in options)
        if self.evaluate is None:
            assert stats is not None
            matrix, measured = layer.matrix(), stats[layer.fqn]
            return [measured.relative_error(matrix, layer.matrix(weight)) for weight in weights]
        before = layer.weight.detach().clone()
        costs = []
        try:
            for weight in list(weights):
                layer.weight.copy_(weight)
                costs.append(_finite_loss(self.evaluate, f"with {layer.fqn!r} pruned"))
        finally:
            layer.weight.copy_(before)
        return costs


def _finite_loss(evaluate: Callable[[], float], model: str) -> float:
    """ValueError, which names the model's state, if it is not finite."""
    loss = float(evaluate())
    if not math.isfinite(loss):
        raise ValueError(f"evaluate: expected a finite loss, got {loss} for the model {model}")
    return loss
