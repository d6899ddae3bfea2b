"""`report`: the page of a model in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sparseinfer._machine import describe_machine
from sparseinfer.bench.compare import benchmark
from sparseinfer.convert import explain
from sparseinfer.ops import active_isa
from sparseinfer.report.content import Content, Latency, Quality
from sparseinfer.report.page import html


def report(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    dense: nn.Module | None = None,
    inputs: Any = None,
    quality: Mapping[str, float] | None = None,
    quality_name: str = "quality",
    budget_s: float = 10.0,
) -> Path:
    """Write a page about a converted model, which needs no other file and no network; returns its path.

    dense, inputs  the model before, and inputs as of `benchmark`: given both, they are timed in turns
    quality        a value for each step, in order, such as {"dense": 0.91, "pruned": 0.90}
    budget_s       seconds to time for

    TypeError: `model` is no module. ValueError: only one of `dense` and `inputs`, or results whose shapes
    differ.
    """
    rows = explain(model).rows
    if (dense is None) != (inputs is None):
        missing = "dense" if dense is None else "inputs"
        raise ValueError(f"{missing}: expected both dense and inputs, or neither, got None")
    latencies = []
    if dense is not None:
        latencies.append(Latency("the inputs given", benchmark(dense, model, inputs, budget_s=budget_s)))
    name = type(model).__name__
    content = Content(
        name=name,
        kind=name,
        machine=describe_machine(active_isa()),
        layers=rows,
        latencies=latencies,
        quality=None if quality is None else Quality(quality_name, quality),
    )
    target = Path(path)
    target.write_text(html(content), encoding="utf-8")
    return target
