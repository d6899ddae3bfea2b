"""LatencyTable: the time of each layer of a model, by sparsity and pattern."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparseinfer.prune.budgets.budget import Option
from sparseinfer.prune.patterns import Unstructured

# The option that prunes nothing.
DENSE: Option = (0.0, Unstructured())


@dataclass(frozen=True)
class LatencyTable:
    """The time of each layer, by sparsity and pattern.

    us        layer -> option -> microseconds; every layer has DENSE, its time without zeros
    together  layers that run as one matrix: each has a share of its time, and all get the same option

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
        """Microseconds of all layers together without zeros."""
        return sum(options[DENSE] for options in self.us.values())
