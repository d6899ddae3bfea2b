"""Which indices of which axes have to be removed together.

Every index of every axis that pruning may shorten has a label, a number. Tracing says how they depend on each
other: two are the same (an add, a product's two sides), an axis is a product of others (a view into heads, a
flatten), an index has to stay. `solve` makes sets of labels of it: all of a set are kept, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# One label for each index of an axis; None: an axis that keeps its length, such as batch, tokens, pixels.
Axis: TypeAlias = "npt.NDArray[np.int64] | None"


@dataclass(frozen=True)
class _Product:
    """An axis that is laid out as the product of factors, the last one fastest."""

    flat: npt.NDArray[np.int64]
    factors: Sequence[Axis]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Solution:
    """root    for each label the least one of its set
    pinned  for each label the number of a reason why its set stays, an index of `reasons`; -1: it may go
    tags    for each name the labels whose set has a label with it, as bools
    """

    root: npt.NDArray[np.int64]
    pinned: npt.NDArray[np.int64]
    reasons: Sequence[str]
    tags: dict[str, npt.NDArray[np.bool_]]


@dataclass
class Labels:
    count: int = 0
    _edges: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = field(default_factory=list)
    _products: list[_Product] = field(default_factory=list)
    _pins: list[tuple[npt.NDArray[np.int64], str]] = field(default_factory=list)
    _tags: list[tuple[npt.NDArray[np.int64], str]] = field(default_factory=list)

    def fresh(self, size: int) -> npt.NDArray[np.int64]:
        self.count += size
        return np.arange(self.count - size, self.count)

    def same(self, a: Axis, b: Axis, reason: str) -> None:
        """Index i of one goes with index i of the other; if one axis keeps its length, so does the other."""
        if a is not None and b is not None:
            if not np.array_equal(a, b):
                self._edges.append((a, b))
        else:
            self.pin(a if b is None else b, reason)

    def pin(self, axis: Axis, reason: str) -> None:
        """These indices stay."""
        if axis is not None and axis.size:
            self._pins.append((axis, reason))

    def tag(self, axis: Axis, name: str) -> None:
        """Something to know of the sets of these labels."""
        if axis is not None and axis.size:
            self._tags.append((axis, name))

    def product(self, flat: Axis, factors: Sequence[Axis], sizes: Sequence[int]) -> None:
        """The axis `flat` is the product of axes of these sizes. One of them at most is shortened: whole rows
        of `flat` go with its indices.
        """
        assert flat is not None
        assert flat.size == prod(sizes)
        self._products.append(_Product(flat, tuple(factors), tuple(sizes)))

    def solve(self) -> Solution:
        """The factor of a product that is shortened is the one that can be; of several the longest, as it has
        the finest units, and of those equally long the first.
        """
        edges, pending = list(self._edges), list(self._products)
        pins, reasons = list(self._pins), [reason for _, reason in self._pins]
        while True:
            root = _components(self.count, edges)
            pinned = _spread_pins(root, pins)
            free = [(each, _free_factors(each, pinned)) for each in pending]
            decided = [(each, factors) for each, factors in free if len(factors) < 2]
            if not decided and free:
                each, factors = free[0]
                carrier = max(factors, key=lambda i: each.sizes[i])
                decided = [(each, [carrier])]
                for i in set(factors) - {carrier}:
                    self._inner(each, i, pins, reasons)
            if not decided:
                tags: dict[str, npt.NDArray[np.bool_]] = {}
                for axis, name in self._tags:
                    tags.setdefault(name, np.zeros(self.count, bool))[root[axis]] = True
                return Solution(root, pinned, reasons, {name: has[root] for name, has in tags.items()})
            for each, factors in decided:
                if factors:
                    edges += _rows(each, factors[0])
                else:
                    why = [f for f in each.factors if f is not None]
                    number = pinned[why[0][0]] if why else -1
                    text = (
                        reasons[number] if number >= 0 else "it is laid out over axes that keep their length"
                    )
                    pins.append((each.flat, text))
                    reasons.append(text)
            done = {id(each) for each, _ in decided}
            pending = [each for each in pending if id(each) not in done]

    def _inner(
        self, each: _Product, i: int, pins: list[tuple[npt.NDArray[np.int64], str]], reasons: list[str]
    ) -> None:
        axis = each.factors[i]
        assert axis is not None
        text = "it is the inner part of an axis that is shortened by its other part"
        pins.append((axis, text))
        reasons.append(text)


def _rows(each: _Product, carrier: int) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Edges from each index of the carrier to its rows of the flat axis."""
    axis = each.factors[carrier]
    assert axis is not None
    rows = np.moveaxis(each.flat.reshape(each.sizes), carrier, 0).reshape(axis.size, -1)
    return [(rows.reshape(-1), np.repeat(axis, rows.shape[1]))]


def _free_factors(each: _Product, pinned: npt.NDArray[np.int64]) -> list[int]:
    return [
        i
        for i, axis in enumerate(each.factors)
        if axis is not None and axis.size > 1 and bool((pinned[axis] < 0).any())
    ]


def _spread_pins(
    root: npt.NDArray[np.int64], pins: Sequence[tuple[npt.NDArray[np.int64], str]]
) -> npt.NDArray[np.int64]:
    """For each label the first reason of its set."""
    first = np.full(len(root), len(pins), np.int64)
    for number, (axis, _) in enumerate(pins):
        np.minimum.at(first, root[axis], number)
    spread = first[root]
    return np.where(spread == len(pins), -1, spread)


def _components(
    count: int, edges: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
) -> npt.NDArray[np.int64]:
    """For each label the least one that edges connect it with."""
    root = np.arange(count)
    if not edges:
        return root
    a, b = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    while True:
        least = np.minimum(root[a], root[b])
        new = root.copy()
        for ends in (a, b):
            np.minimum.at(new, root[ends], least)
            np.minimum.at(new, ends, least)
        new = new[new]
        if np.array_equal(new, root):
            return root
        root = new
