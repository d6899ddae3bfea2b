"""What a report is about, as plain values: `collect` makes it from folders, `page` shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparseinfer.bench.compare import Comparison
from sparseinfer.convert import LayerReport
from sparseinfer.hub.history import Pruning
from sparseinfer.io.summary import Summary


@dataclass(frozen=True)
class Latency:
    """The converted model against the same model run densely, on one input: `about` says which."""

    about: str
    compared: Comparison


@dataclass(frozen=True)
class Quality:
    """A measure of quality by its name, with the value of each step, in order: "dense", "pruned" ...

    low_is_good   as perplexity is
    """

    name: str
    steps: Mapping[str, float]
    low_is_good: bool = False


@dataclass(frozen=True)
class Content:
    """A model's report.

    name        of the model, as the reader knows it
    kind        its class; "" if unknown
    machine     that the times were measured on, as `_machine.describe_machine` tells it
    layers      what `explain` says; () for a model that was not converted
    latencies   () if none was measured
    summary     of its files; None of a model in memory
    pruning     what `sparseinfer prune` did; None if it is not known
    converted_here   whether it was converted for this report, and not stored converted
    """

    name: str
    kind: str
    machine: Mapping[str, object]
    layers: Sequence[LayerReport] = ()
    latencies: Sequence[Latency] = ()
    quality: Quality | None = None
    summary: Summary | None = None
    pruning: Pruning | None = None
    converted_here: bool = False
    notes: Sequence[str] = field(default_factory=tuple)
