"""Formats the demo's results as a table and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from sparseinfer.demo.experiment import Measurement

_COLUMNS = (
    "sparsity",
    "cosine",
    "recovered",
    "max rel diff",
    "dense ms",
    "sparse ms",
    "speed-up",
    "bytes",
    "sparse layers",
)


def table(measured: Sequence[Measurement]) -> Table:
    """The result as one table; its first line is the dense model."""
    tokens = f", {measured[0].tokens} tokens" if measured else ""
    title = f"all-MiniLM-L6-v2, 32 sentences{tokens}"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    if measured:
        first = measured[0]
        table.add_row(
            "dense", "1.000", "", "", f"{first.dense_ms:.1f}", "", "", f"{first.dense_nbytes:,}", ""
        )
    for one in measured:
        table.add_row(
            f"{one.sparsity:g}",
            f"{one.cosine:.3f}",
            "" if one.recovered is None else f"{one.recovered:.3f}",
            f"{one.max_rel_diff:.1e}",
            f"{one.dense_ms:.1f}",
            f"{one.sparse_ms:.1f}",
            f"{one.speed_up:.2f}",
            f"{one.nbytes:,}",
            f"{one.sparse_layers}/{one.layers}",
        )
    return table


def line(measurement: Measurement) -> str:
    """One sparsity in a few words, for those who wait for the table."""
    quality = f"cosine {measurement.cosine:.3f}"
    if measurement.recovered is not None:
        quality += f", {measurement.recovered:.3f} after training back"
    return f"{measurement.sparsity:g} pruned: {measurement.speed_up:.2f} times as fast, {quality}"


def to_json(machine: dict[str, object], threads: int, measured: Sequence[Measurement]) -> dict[str, object]:
    return {"machine": machine, "threads": threads, "rows": [asdict(one) for one in measured]}
