"""Tables and JSON of a layer benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from sparseinfer.bench.candidates import SPARSE
from sparseinfer.bench.layer import Row, Settings
from sparseinfer.bench.timing import geometric_mean


@dataclass(frozen=True)
class Mean:
    """Geometric means of `x dense` over the shapes: of each shape's best sparse row, and of each kernel."""

    tokens: int
    sparsity: float
    shapes: int
    x_dense: float
    kernels: Mapping[str, float]


def means(rows: Iterable[Row]) -> list[Mean]:
    """One entry per tokens and sparsity, sorted by both."""
    sparse = [row for row in rows if row.kind == SPARSE]
    return [
        _mean(tokens, sparsity, [r for r in sparse if (r.tokens, r.sparsity) == (tokens, sparsity)])
        for tokens, sparsity in sorted({(r.tokens, r.sparsity) for r in sparse})
    ]


def cell_table(rows: Sequence[Row]) -> Table:
    """All candidates of one cell, the fastest sparse one in bold."""
    first = rows[0]
    table = _table(f"{first.n}×{first.k}  m = {first.tokens}  sparsity {first.sparsity:g}")
    table.add_column("kernel")
    for name in ("us", "median us", "GFLOP/s", "eff GFLOP/s", "GB/s", "x dense"):
        table.add_column(name, justify="right")
    best = max((row for row in rows if row.kind == SPARSE), key=lambda row: row.x_dense, default=None)
    for row in rows:
        figures = (row.us, row.median_us, row.gflops, row.eff_gflops, row.gbps)
        cells = [f"{figure:.1f}" for figure in figures]
        table.add_row(row.name, *cells, f"{row.x_dense:.2f}", style="bold" if row is best else "")
    return table


def summary_table(rows: Sequence[Row]) -> Table:
    """`means` as a table, one line per tokens and sparsity."""
    found = means(rows)
    table = _table("x dense, geometric mean over the shapes")
    names = list(dict.fromkeys(name for mean in found for name in mean.kernels))
    for name in ("m", "sparsity", "best", *names):
        table.add_column(name, justify="right", overflow="fold")
    for mean in found:
        cells = (f"{mean.kernels[name]:.2f}" if name in mean.kernels else "" for name in names)
        table.add_row(str(mean.tokens), f"{mean.sparsity:g}", f"{mean.x_dense:.2f}", *cells)
    return table


def heading(machine: Mapping[str, object], settings: Settings) -> str:
    """Two lines to stand above the tables: the figures mean nothing without them."""
    versions = machine["versions"]
    torch_version = versions["torch"] if isinstance(versions, Mapping) else "unknown"
    weights = "cold weights" if settings.cold else "warm weights"
    threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    isas = ", ".join(settings.isas) or machine["isa"]
    return (
        f"{machine['cpu']}, {isas}, torch {torch_version}\n"
        f"float32, {threads}, {weights}; us is the minimum, x dense = fastest dense / this"
    )


def to_json(machine: Mapping[str, object], settings: Settings, rows: Sequence[Row]) -> dict[str, object]:
    """Everything that was measured and what it was measured on, ready for `json.dump`."""
    return {
        "machine": machine,
        "settings": asdict(settings),
        "rows": [asdict(row) for row in rows],
        "geometric_mean": [asdict(mean) for mean in means(rows)],
    }


def write_json(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _mean(tokens: int, sparsity: float, rows: Sequence[Row]) -> Mean:
    shapes = dict.fromkeys((row.n, row.k) for row in rows)
    best = [max(row.x_dense for row in rows if (row.n, row.k) == shape) for shape in shapes]
    names = dict.fromkeys(row.name for row in rows)
    kernels = {name: geometric_mean([row.x_dense for row in rows if row.name == name]) for name in names}
    return Mean(tokens, sparsity, len(shapes), geometric_mean(best), kernels)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold")
