"""The result of a pruning job, and its table."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.table import Table

from sparseinfer.prune import PrunedLayer, PruneReport, StructuredReport
from sparseinfer.quantize import QuantizeReport


@dataclass(frozen=True)
class Result:
    """`before` and `after` are values of the measure `quality`; None and "" without text to evaluate on.

    quantized  the report of quantization, and `in_int8` the quality after it; None if it was not asked for
    structured the report of the units that were removed first, and `smaller` the quality after it; None
               likewise
    """

    report: PruneReport
    quality: str
    before: float | None
    after: float | None
    quantized: QuantizeReport | None = None
    in_int8: float | None = None
    structured: StructuredReport | None = None
    smaller: float | None = None


def table(result: Result) -> Table:
    """Layers whose names differ only in numbers share a row with their mean sparsity and error."""
    shown = Table()
    shown.add_column("layers", overflow="fold")
    for name in ("count", "sparsity", "error"):
        shown.add_column(name, justify="right")
    alike: dict[str, list[PrunedLayer]] = {}
    for layer in result.report.layers:
        alike.setdefault(re.sub(r"\d+", "*", layer.fqn), []).append(layer)
    for name, layers in alike.items():
        shown.add_row(name, *_numbers(PruneReport(tuple(layers))))
    shown.add_section()
    shown.add_row("all", *_numbers(result.report))
    return shown


def _numbers(report: PruneReport) -> tuple[str, str, str]:
    error = "" if report.mean_error is None else f"{report.mean_error:.4f}"
    return str(len(report.layers)), f"{report.sparsity:.4f}", error
