"""How many units go, and which: by a ratio for each group, by one for all together, or down to some work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sparseinfer.prune.structured.groups import Group
from sparseinfer.prune.structured.labels import Solution
from sparseinfer.prune.structured.tracing import HEADS, Work

# Bytes of a vector of AVX-512 and of a cache line: dense kernels compute that many columns together.
_VECTOR = 64
# A group is never rounded to more than this part of its units.
_LEAST_PARTS = 8
# Together with others, a group loses this part of its units at most. Chosen, not measured.
_MOST = 0.9
# The search for a ratio halves its range so often, or until it is this narrow: a unit of a large group.
_HALVINGS = 24
_CLOSE = 1e-4


def rounding(group: Group, dtype: torch.dtype, round_to: int | None) -> int:
    """The number of units left is a multiple of this: of columns of a vector, unless the caller says so."""
    if round_to is not None:
        return min(round_to, group.size)
    if group.kind == HEADS:
        return 1
    step = _VECTOR // dtype.itemsize
    while step > 1 and step * _LEAST_PARTS > group.size:
        step //= 2
    return step


def kept_count(size: int, ratio: float, step: int) -> int:
    """How many of `size` units are left: the multiple of step next to size · (1 - ratio), at least a step."""
    # Against errors of 1 - ratio: 0.3 of 10 leaves 7.
    exact = size * (1 - ratio) + 1e-9
    if exact >= size:
        return size
    return min(size, max(step, int(exact / step + 0.5) * step)) if step > 1 else max(1, int(exact))


Chosen = dict[str, list[int]]


class Chooser:
    """Chooses units by their scores.

    scores  [units] for each group
    steps   what the number of units left is a multiple of
    """

    def __init__(
        self, groups: Sequence[Group], scores: Mapping[str, Tensor], steps: Mapping[str, int]
    ) -> None:
        self._groups = [group for group in groups if group.name in scores]
        self._order = {name: torch.argsort(values, stable=True).tolist() for name, values in scores.items()}
        self._scores, self._steps = scores, steps

    def per_group(self, ratio: float) -> Chosen:
        """The same part of each group, the lowest scores of each."""
        return {
            group.name: self._lowest(group, kept_count(group.size, ratio, self._steps[group.name]))
            for group in self._groups
        }

    def each(self, ratios: Mapping[str, float]) -> Chosen:
        """A part of each group that is named. ValueError: there is no such group."""
        for name in ratios:
            if name not in self._order:
                raise ValueError(f"ratio: expected names of groups, got {name!r}")
        return {
            group.name: self._lowest(
                group, kept_count(group.size, float(ratios[group.name]), self._steps[group.name])
            )
            for group in self._groups
            if group.name in ratios
        }

    def together(self, ratio: float) -> Chosen:
        """This part of all weights of the groups, the lowest scores of all."""
        weights = {g.name: sum(m.indices.shape[1] for m in g.members) for g in self._groups}
        ranked = sorted(
            (float(value), group.name, weights[group.name])
            for group in self._groups
            for value in self._scores[group.name].sort().values[: int(group.size * _MOST)]
        )
        budget = ratio * sum(weights[group.name] * group.size for group in self._groups)
        counts = dict.fromkeys(self._order, 0)
        for _, name, weight in ranked:
            if budget <= 0:
                break
            counts[name] += 1
            budget -= weight
        return {
            group.name: self._lowest(
                group,
                kept_count(group.size, counts[group.name] / group.size, self._steps[group.name]),
            )
            for group in self._groups
        }

    def _lowest(self, group: Group, left: int) -> list[int]:
        return sorted(self._order[group.name][: group.size - left])


def works_left(
    works: Sequence[Work], solution: Solution, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]
) -> list[list[int]]:
    """The lengths of the axes of each product once these units are gone."""
    gone = np.zeros(len(solution.root), bool)
    for group in groups:
        gone[group.labels[list(removed.get(group.name, ()))]] = True
    return [[int((~gone[solution.root[axis]]).sum()) for axis in work.axes] for work in works]


def flops(works: Sequence[Work], lengths: Sequence[Sequence[int]]) -> int:
    """Two for each multiplication."""
    return sum(
        2 * work.fixed * int(np.prod(left, dtype=np.int64)) for work, left in zip(works, lengths, strict=True)
    )


def least_ratio(
    choose: Callable[[float], Chosen], cost: Callable[[Chosen], float], target: float, name: str, whole: float
) -> Chosen:
    """The choice of the least ratio whose cost meets the target. ValueError: even the most does not.

    name, whole  for the error: what is to meet the target, and what 1 of it is
    """
    low, high = 0.0, 1.0 - 1e-6
    best = choose(high)
    if (least := cost(best)) > target:
        raise ValueError(f"{name}: expected at least {least / whole:.4g}, got {target / whole:.4g}")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        chosen = choose(middle)
        if cost(chosen) <= target:
            high, best = middle, chosen
        else:
            low = middle
        if high - low < _CLOSE:
            break
    return best
