"""A budget of time: each layer's sparsity and pattern by what its kernels take and what it costs in error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

import torch

from sparseinfer.prune.layers import Layer
from sparseinfer.prune.methods import SparseMethod
from sparseinfer.prune.patterns import Pattern, Unstructured
from sparseinfer.prune.sensitivity import Scan
from sparseinfer.prune.sparsity import Option
from sparseinfer.prune.statistics import CalibrationStats

DENSE: Option = (0.0, Unstructured())

# So many cells per layer divide the time that there is to spend; what a layer takes is rounded up to cells.
_CELLS = 200


@dataclass(frozen=True)
class LatencyTable:
    """What each layer takes, by sparsity and pattern.

    us        layer -> option -> microseconds; every layer has DENSE, its time without zeros
    together  layers that run as one matrix, whose times are shares of one, and which get one option

    `sparseinfer.convert.latency_table` measures one for a model on this machine. TypeError or ValueError if a
    layer has no dense time, or a time is not a positive number.
    """

    us: Mapping[str, Mapping[Option, float]]
    together: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        for fqn, options in self.us.items():
            if DENSE not in options:
                raise ValueError(f"us: expected a time of {DENSE} for {fqn!r}, got none")
            for option, us in options.items():
                if not 0 < us < math.inf:
                    raise ValueError(f"us: expected a positive time of {option} for {fqn!r}, got {us!r}")

    @property
    def dense_us(self) -> float:
        """All layers together without zeros."""
        return sum(options[DENSE] for options in self.us.values())


@dataclass(frozen=True)
class Choice:
    """What a layer gets: `us` from the table; `error`: its relative output error, or growth of the loss."""

    sparsity: float
    pattern: Pattern
    us: float
    error: float


@dataclass(frozen=True)
class LatencyBudget(Scan):
    """The sparsity and the pattern of each layer that together reach a latency with the least error.

    table      of `latency_table`, for the same model
    target_us  microseconds that the layers of the table may take together; or
    speedup    how many times faster than dense they have to be
    evaluate, method  see Scan; a loss of the model tells more than the errors of its layers

    The method tries every option of each layer. The sum of what they cost is the least of all choices that
    keep to the target: a multiple-choice knapsack, solved exactly but for rounding times up by less than 1 %
    of what there is to spend. Layers that the table lacks stay dense; the method's own pattern is not used.
    Frantar and Alistarh choose so in SPDY, 2022. TypeError or ValueError: not exactly one positive target, or
    one that even the fastest options miss.
    """

    table: LatencyTable
    _: KW_ONLY
    target_us: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.table, LatencyTable):
            raise TypeError(f"table: expected a LatencyTable, got {type(self.table).__name__}")
        if (self.target_us is None) == (self.speedup is None):
            given = f"target_us={self.target_us!r} and speedup={self.speedup!r}"
            raise ValueError(f"target_us: expected either target_us or speedup, got {given}")
        for name in ("target_us", "speedup"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {value!r}")

    def allocate(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: SparseMethod
    ) -> dict[str, Option]:
        chosen = self.choose(layers, stats, method)
        return {fqn: (choice.sparsity, choice.pattern) for fqn, choice in chosen.items()}

    def choose(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: SparseMethod
    ) -> dict[str, Choice]:
        """The choice for each of the layers, in their order."""
        target = self.target_us or self.table.dense_us / (self.speedup or 1)
        known = {fqn: layer for fqn, layer in layers.items() if fqn in self.table.us}
        others = sum(options[DENSE] for fqn, options in self.table.us.items() if fqn not in known)
        base = self.base_cost()
        choices = {fqn: self._choices(layer, stats, method, base) for fqn, layer in known.items()}
        menus = [_menu([choices[fqn] for fqn in group]) for group in self._groups(known)]
        least = others + sum(min(item.us for item in menu) for menu in menus)
        if target < least * (1 - 1e-9):
            hint = "the fastest option of every layer that is pruned, dense times of the others"
            raise ValueError(f"target_us: expected at least {least:.1f} us, got {target:.1f} ({hint})")
        dense = Choice(*DENSE, us=0.0, error=0.0)
        found = dict.fromkeys(layers, dense)
        for group, item in zip(self._groups(known), _least_error(menus, target - others), strict=True):
            found |= {fqn: choices[fqn][item.sparsity, item.pattern] for fqn in group}
        return found

    def _choices(
        self, layer: Layer, stats: CalibrationStats | None, method: SparseMethod, base: float
    ) -> dict[Option, Choice]:
        options = self.table.us[layer.fqn]
        pruned = [option for option in options if option != DENSE]
        costs = self.costs(layer, stats, method, pruned)
        errors = {DENSE: 0.0} | {option: cost - base for option, cost in zip(pruned, costs, strict=True)}
        return {option: Choice(*option, us, errors[option]) for option, us in options.items()}

    def _groups(self, known: Mapping[str, Layer]) -> list[list[str]]:
        """Names of layers that get one option."""
        groups = [[fqn for fqn in group if fqn in known] for group in self.table.together]
        grouped = {fqn for group in groups for fqn in group}
        return [*filter(None, groups), *([fqn] for fqn in known if fqn not in grouped)]


def _menu(layers: Sequence[Mapping[Option, Choice]]) -> list[Choice]:
    """The options that all of these layers have, with the sums of their times and errors."""
    common = [option for option in layers[0] if all(option in choices for choices in layers)]
    return [
        Choice(
            *option,
            us=sum(choices[option].us for choices in layers),
            error=sum(choices[option].error for choices in layers),
        )
        for option in common
    ]


def _least_error(menus: Sequence[Sequence[Choice]], target_us: float) -> list[Choice]:
    """One of each menu, so that their times fit and the sum of their errors is least.

    Dynamic programming over the time above the fastest choices, in cells: `least[c]` is the least error of
    the menus so far within c cells.
    """
    freest = [min(menu, key=lambda choice: (choice.error, choice.us)) for menu in menus]
    if sum(choice.us for choice in freest) <= target_us * (1 + 1e-9):
        return freest
    cells = _CELLS * len(menus)
    fastest = [min(choice.us for choice in menu) for menu in menus]
    spare_us = target_us - sum(fastest)
    least = torch.zeros(cells + 1, dtype=torch.float64)
    picks = []
    for menu, fastest_us in zip(menus, fastest, strict=True):
        within = torch.full((len(menu), cells + 1), math.inf, dtype=torch.float64)
        for row, choice in zip(within, menu, strict=True):
            used = _cells(choice.us - fastest_us, spare_us, cells)
            if used <= cells:
                row[used:] = least[: cells + 1 - used] + choice.error
        least, pick = within.min(0)
        picks.append(pick)
    chosen, left = [], cells
    for menu, fastest_us, pick in zip(menus[::-1], fastest[::-1], picks[::-1], strict=True):
        choice = menu[int(pick[left])]
        left -= _cells(choice.us - fastest_us, spare_us, cells)
        chosen.append(choice)
    return chosen[::-1]


def _cells(us: float, spare_us: float, cells: int) -> int:
    """How many cells a time takes, rounded up; more than there are where nothing is to spare."""
    if us <= 0:
        return 0
    # Less than a rounding error above a whole number is that number.
    return math.ceil(us / spare_us * cells - 1e-9) if us <= spare_us else cells + 1
