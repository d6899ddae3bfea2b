"""The report of structured pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparseinfer.prune.structured.groups import Refused


@dataclass(frozen=True)
class PrunedGroup:
    """name    of the weight whose rows are the group's units
    kind    heads, neurons, channels, width or blocks
    before  how many units it had, and `after` how many are left
    """

    name: str
    kind: str
    before: int
    after: int

    @property
    def ratio(self) -> float:
        """The part of its units that were removed."""
        return 1 - self.after / self.before


@dataclass(frozen=True)
class StructuredReport:
    """groups             what could be pruned, in the order of the model
    refused            weights whose rows all have to stay, with the reason
    flops              of one run with the example inputs, before and after: 2 for each multiplication of a
                       matrix product, a convolution or attention; (0, 0) where not counted
    parameters         before and after
    milliseconds       with `latency`: of one run, predicted and then measured; None without
    """

    groups: Sequence[PrunedGroup]
    refused: Sequence[Refused] = ()
    flops: tuple[int, int] = (0, 0)
    parameters: tuple[int, int] = (0, 0)
    milliseconds: tuple[float, float] | None = None

    def __str__(self) -> str:
        lines = [f"{g.name}: {g.before} -> {g.after} {g.kind}" for g in self.groups if g.after < g.before]
        for what, (before, after) in (("flops", self.flops), ("parameters", self.parameters)):
            if before:
                lines.append(f"{what}: {before:,} -> {after:,} ({after / before:.1%})")
        if self.milliseconds:
            predicted, measured = self.milliseconds
            lines.append(f"milliseconds: {predicted:.2f} predicted, {measured:.2f} measured")
        lines += [f"{each.name} stays: {each.reason}" for each in self.refused]
        return "\n".join(lines)
