"""LatencyBudget: chooses each layer's sparsity and pattern by its kernel times and its error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from sparseinfer.prune.budgets.budget import AdjustableMethod, Option
from sparseinfer.prune.budgets.knapsack import Choice, least_error, menu_of
from sparseinfer.prune.budgets.latency_table import DENSE, LatencyTable
from sparseinfer.prune.budgets.scan import Scan
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.checks import check_positive
from sparseinfer.prune.layers.layer import Layer


@dataclass(frozen=True)
class LatencyBudget(Scan):
    """The sparsity and the pattern of each layer that together reach a latency with the least error.

    table      of `latency_table`, for the same model
    target_us  microseconds that the layers of the table may take together; or
    speedup    how many times faster than dense they have to be
    evaluate, method  see Scan; a loss of the whole model is more accurate than the errors of its layers

    The method tries every option of each layer. The chosen options have the least total cost that meets the
    target: a multiple-choice knapsack, solved exactly except that times are rounded up by less than 1 % of
    the available time. Layers that the table lacks stay dense; the method's own pattern is not used.
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
        for name, value in (("target_us", self.target_us), ("speedup", self.speedup)):
            if value is not None:
                check_positive(name, value, finite=True)

    def allocate(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: AdjustableMethod
    ) -> dict[str, Option]:
        chosen = self.choose(layers, stats, method)
        return {fqn: (choice.sparsity, choice.pattern) for fqn, choice in chosen.items()}

    def choose(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: AdjustableMethod
    ) -> dict[str, Choice]:
        """The choice for each layer, in order."""
        target = self.target_us or self.table.dense_us / (self.speedup or 1)
        timed = {fqn: layer for fqn, layer in layers.items() if fqn in self.table.us}
        others_us = sum(options[DENSE] for fqn, options in self.table.us.items() if fqn not in timed)
        base = self.base_cost()
        choices = {fqn: self._choices(layer, stats, method, base) for fqn, layer in timed.items()}
        menus = [menu_of([choices[fqn] for fqn in group]) for group in self._groups(timed)]
        least = others_us + sum(min(item.us for item in menu) for menu in menus)
        if target < least * (1 - 1e-9):
            hint = "the fastest option of every layer that is pruned, dense times of the others"
            raise ValueError(f"target_us: expected at least {least:.1f} us, got {target:.1f} ({hint})")
        dense = Choice(*DENSE, us=0.0, error=0.0)
        chosen = dict.fromkeys(layers, dense)
        for group, item in zip(self._groups(timed), least_error(menus, target - others_us), strict=True):
            chosen |= {fqn: choices[fqn][item.sparsity, item.pattern] for fqn in group}
        return chosen

    def _choices(
        self, layer: Layer, stats: CalibrationStats | None, method: AdjustableMethod, base: float
    ) -> dict[Option, Choice]:
        options = self.table.us[layer.fqn]
        pruned = [option for option in options if option != DENSE]
        costs = self.costs(layer, stats, method, pruned)
        errors = {DENSE: 0.0} | {option: cost - base for option, cost in zip(pruned, costs, strict=True)}
        return {option: Choice(*option, us, errors[option]) for option, us in options.items()}

    def _groups(self, timed: Mapping[str, Layer]) -> list[list[str]]:
        """Names of layers that get one option."""
        groups = [[fqn for fqn in group if fqn in timed] for group in self.table.together]
        grouped = {fqn for group in groups for fqn in group}
        return [*filter(None, groups), *([fqn] for fqn in timed if fqn not in grouped)]
