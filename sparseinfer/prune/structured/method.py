"""`Structured`: structured pruning as a method of `Pruner`, in steps of a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.checks import check_fraction
from sparseinfer.prune.structured.apply import find_groups, prune_structured_
from sparseinfer.prune.structured.groups import NEURONS
from sparseinfer.prune.structured.importance import Importance, importance_of
from sparseinfer.prune.structured.report import StructuredReport
from sparseinfer.prune.structured.tracing import CHANNELS, HEADS
from sparseinfer.select import Patterns


@dataclass(frozen=True, eq=False)
class Structured:
    """`prune_structured_` in steps: of each step's ratio, of the units that the model had at first.

    sparsity        the part of the units that are gone in the end, in [0, 1)
    example_inputs and the others: see `prune_structured_`
    """

    sparsity: float
    example_inputs: Any
    _: KW_ONLY
    importance: str | Importance = "magnitude"
    scope: str = "group"
    round_to: int | None = None
    units: Sequence[str] = (HEADS, NEURONS, CHANNELS)
    update: bool = False

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)
        importance_of(self.importance)

    def at(self, sparsity: float) -> Structured:
        """The same method for another part of the units."""
        return replace(self, sparsity=sparsity)

    def sizes(self, model: nn.Module, targets: Patterns = None, ignore: Patterns = None) -> dict[str, int]:
        """How many units each group has."""
        found = find_groups(model, self.example_inputs, self.units, targets, ignore)
        return {group.name: group.size for group in found.groups}

    def prune(
        self,
        model: nn.Module,
        sizes: dict[str, int],
        *,
        stats: CalibrationStats | None,
        optimizer: Optimizer | None,
        targets: Patterns,
        ignore: Patterns,
    ) -> StructuredReport:
        """Prune the model to this sparsity, counted from what it had at first, `sizes`."""
        now = self.sizes(model, targets, ignore)
        if self.scope == "global":
            left = sum(now.values()) / max(sum(sizes.values()), 1)
            ratio: Any = max(0.0, 1 - (1 - self.sparsity) / left)
        else:
            ratio = {
                name: max(0.0, 1 - sizes[name] * (1 - self.sparsity) / size) for name, size in now.items()
            }
        return prune_structured_(
            model,
            self.example_inputs,
            self.importance,
            ratio=ratio,
            scope=self.scope,
            round_to=self.round_to,
            units=self.units,
            stats=stats,
            update=self.update,
            optimizer=optimizer,
            targets=targets,
            ignore=ignore,
        )
