"""What pruning each layer by itself costs, and the budget with the least sum of these costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from sparseinfer.prune.checks import check_fraction
from sparseinfer.prune.layers import Layer
from sparseinfer.prune.methods import SparseMethod
from sparseinfer.prune.sparsity import Budget, Option
from sparseinfer.prune.statistics import CalibrationStats

CANDIDATES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Scan(Budget):
    """A budget that prunes each layer by itself to see what that costs.

    evaluate  () -> float: the loss of the model as it is then, lower is better. It is called for the model
              as it was and then with one layer pruned at a time. Default: the layer's relative output error
              from the Gram matrix of a calibration, without running the model
    method    what to try with; default: the method that prunes. Wanda ranks options for a solver in a
              fraction of its time
    """

    _: KW_ONLY
    evaluate: Callable[[], float] | None = None
    method: SparseMethod | None = None

    @property
    def needs(self) -> frozenset[str]:
        own = frozenset({"gram"} if self.evaluate is None else ())
        return own if self.method is None else own | self.method.needs

    def base_cost(self) -> float:
        """What `costs` are of nothing pruned."""
        return 0.0 if self.evaluate is None else checked_loss(self.evaluate, "as it was")

    def costs(
        self,
        layer: Layer,
        stats: CalibrationStats | None,
        method: SparseMethod,
        options: Sequence[Option],
    ) -> list[float]:
        """What each of the options costs in this layer; `method` is the one that prunes."""
        return pruning_costs(layer, stats, self.method or method, options, self.evaluate)


@dataclass(frozen=True)
class Sensitivity(Scan):
    """Every layer is pruned by itself to each candidate; layers that bear it well are pruned more.

    sparsity    of all layers together, in [0, 1)
    candidates  ascending fractions above 0 to try; the last one is the most that a layer is pruned
    evaluate, method  see Scan

    Costs between candidates are interpolated along their lower convex hull, and what costs least per weight
    is pruned first: that is the exact minimum of the sum of these costs. TypeError or ValueError if an
    argument is not as described.
    """

    sparsity: float
    _: KW_ONLY
    candidates: Sequence[float] = CANDIDATES

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)
        for candidate in self.candidates:
            check_fraction("candidates", candidate)
        if not self.candidates or list(self.candidates) != sorted({0.0, *self.candidates})[1:]:
            raise ValueError(f"candidates: expected ascending fractions above 0, got {self.candidates!r}")
        if self.sparsity > self.candidates[-1]:
            least = f"at least the sparsity {self.sparsity:g} as the last"
            raise ValueError(f"candidates: expected {least}, got {self.candidates[-1]:g}")

    def allocate(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: SparseMethod
    ) -> dict[str, float]:
        options = [(candidate, method.pattern) for candidate in self.candidates]
        base = self.base_cost()
        segments: list[tuple[float, str, int]] = []
        for fqn, layer in layers.items():
            numel = layer.weight.numel()
            # Rounded up: together the last ones reach every sparsity up to the last candidate.
            counts = [0, *(math.ceil(candidate * numel) for candidate in self.candidates)]
            costs = self.costs(layer, stats, method, options)
            segments += [(slope, fqn, count) for slope, count in _hull(counts, [base, *costs])]
        # Stable: within a layer the slopes of a hull ascend already.
        segments.sort(key=lambda segment: segment[0])
        left = round(self.sparsity * sum(layer.weight.numel() for layer in layers.values()))
        pruned = dict.fromkeys(layers, 0)
        for _, fqn, count in segments:
            pruned[fqn] += min(count, left)
            left -= min(count, left)
        return {fqn: count / max(layers[fqn].weight.numel(), 1) for fqn, count in pruned.items()}


def pruning_costs(
    layer: Layer,
    stats: CalibrationStats | None,
    method: SparseMethod,
    options: Sequence[Option],
    evaluate: Callable[[], float] | None,
) -> list[float]:
    """What each sparsity and pattern of this layer alone costs: `layer_errors`, or the model's loss then."""
    if evaluate is None:
        assert stats is not None
        return layer_errors(layer, stats, method, options)
    before = layer.weight.detach().clone()
    costs = []
    try:
        for weight in list(trials(layer, stats, method, options)):
            layer.weight.copy_(weight)
            costs.append(checked_loss(evaluate, f"with {layer.fqn!r} pruned"))
    finally:
        layer.weight.copy_(before)
    return costs


def checked_loss(evaluate: Callable[[], float], model: str) -> float:
    """ValueError, which names the model's state, if it is not finite."""
    loss = float(evaluate())
    if not math.isfinite(loss):
        raise ValueError(f"evaluate: expected a finite loss, got {loss} for the model {model}")
    return loss


def layer_errors(
    layer: Layer,
    stats: CalibrationStats,
    method: SparseMethod,
    options: Sequence[Option],
) -> list[float]:
    """Relative output errors of the layer, pruned by the method to each sparsity in each pattern.

    ‖X·(W - Ŵ)ᵀ‖² / ‖X·Wᵀ‖² from the Gram matrix. The sparsity of NM(n, m) is its own, whatever is given.
    """
    return [
        stats[layer.fqn].relative_error(layer.matrix(), layer.matrix(new))
        for new in trials(layer, stats, method, options)
    ]


def trials(
    layer: Layer,
    stats: CalibrationStats | None,
    method: SparseMethod,
    options: Sequence[Option],
) -> Iterator[Tensor]:
    """The layer's weight, pruned by the method to each sparsity in each pattern."""
    for sparsity, pattern in options:
        trial = method.with_amount(sparsity, pattern)
        yield trial.prune({layer.fqn: layer}, stats)[layer.fqn].applied(layer)


def _hull(counts: Sequence[int], costs: Sequence[float]) -> list[tuple[float, int]]:
    """(slope, length) of the segments of the lower convex hull of cost over count, in ascending order.

    The first count is 0, and counts do not descend; of equal ones the first counts.
    """
    hull: list[tuple[int, float]] = []
    for point in zip(counts, costs, strict=True):
        if hull and point[0] == hull[-1][0]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [(_slope(a, b), b[0] - a[0]) for a, b in itertools.pairwise(hull)]


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
