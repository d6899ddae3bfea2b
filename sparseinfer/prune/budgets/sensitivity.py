"""Sensitivity: a budget that minimises the sum of the layers' individually measured costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from sparseinfer.prune.budgets.budget import AdjustableMethod
from sparseinfer.prune.budgets.scan import Scan
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.checks import check_fraction
from sparseinfer.prune.layers.layer import Layer

# Chosen, not measured: nearer to each other where most budgets end up.
CANDIDATES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Sensitivity(Scan):
    """Prunes every layer by itself to each candidate; layers that lose little are pruned more.

    sparsity    of all layers together, in [0, 1)
    candidates  ascending fractions above 0 to try; the last one is the maximum for any layer
    evaluate, method  see Scan

    Costs between candidates are interpolated along their lower convex hull, and the weights of lowest cost
    are pruned first, which gives the exact minimum of the sum of these costs. TypeError or ValueError if an
    argument is not as described.
    """

    name = "sensitivity"

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
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: AdjustableMethod
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
