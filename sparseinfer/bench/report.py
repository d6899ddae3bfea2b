"""Tables and JSON of a layer benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from rich.table import Table

from sparseinfer._timing import geometric_mean
from sparseinfer.bench.candidates import SPARSE
from sparseinfer.bench.layer import Row, Settings


@dataclass(frozen=True, order=True)
class Case:
    """What distinguishes one table of means from the next."""

    dtype: str
    threads: int
    weights: str

    @classmethod
    def of(cls, row: Row) -> Case:
        return cls(row.dtype, row.threads, row.weights)

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.dtype}, {threads}, {self.weights} weights"


@dataclass(frozen=True)
class Mean:
    """`x dense` over the shapes: mean and least of each shape's best sparse row, and mean of each kernel."""

    case: Case
    tokens: int
    sparsity: float
    shapes: int
    x_dense: float
    least: float
    kernels: Mapping[str, float]


def means(rows: Iterable[Row]) -> list[Mean]:
    """One entry per case, tokens and sparsity, sorted by all of them."""
    cells: dict[tuple[Case, int, float], list[Row]] = {}
    for row in rows:
        if row.kind == SPARSE:
            cells.setdefault((Case.of(row), row.tokens, row.sparsity), []).append(row)
    return [_mean(*key, cells[key]) for key in sorted(cells)]


def cell_table(rows: Sequence[Row]) -> Table:
    """All candidates of one cell, the fastest sparse one in bold."""
    first = rows[0]
    title = f"{first.n}×{first.k}  m = {first.tokens}  sparsity {first.sparsity:g}  {Case.of(first)}"
    table = _table(title)
    table.add_column("kernel")
    for name in ("us", "median us", "GFLOP/s", "eff GFLOP/s", "GB/s", "x dense"):
        table.add_column(name, justify="right")
    best = max((row for row in rows if row.kind == SPARSE), key=lambda row: row.x_dense, default=None)
    for row in rows:
        figures = (row.us, row.median_us, row.gflops, row.eff_gflops, row.gbps)
        cells = [f"{figure:.1f}" for figure in figures]
        table.add_row(row.name, *cells, f"{row.x_dense:.2f}", style="bold" if row is best else "")
    return table


def summary_tables(rows: Sequence[Row]) -> list[Table]:
    """`means`, a table per case: mean of the best over the shapes, and the least of them in brackets."""
    found = means(rows)
    sparsities = sorted({mean.sparsity for mean in found})
    tables = []
    for case in dict.fromkeys(mean.case for mean in found):
        cells = {(mean.tokens, mean.sparsity): mean for mean in found if mean.case == case}
        table = _table(f"x dense (least), {case}")
        for name in ("m", *(f"{sparsity:g}" for sparsity in sparsities)):
            table.add_column(name, justify="right")
        for tokens in sorted({tokens for tokens, _ in cells}):
            row = (cells[tokens, sparsity] for sparsity in sparsities)
            table.add_row(str(tokens), *(f"{mean.x_dense:.2f} ({mean.least:.2f})" for mean in row))
        tables.append(table)
    return tables


def heading(machine: Mapping[str, object], settings: Settings) -> str:
    """Two lines to stand above the tables: the figures mean nothing without them."""
    versions = machine["versions"]
    torch_version = versions["torch"] if isinstance(versions, Mapping) else "unknown"
    isas = ", ".join(settings.isas) or machine["isa"]
    return (
        f"{machine['cpu']}, {isas}, torch {torch_version}\n"
        "us is the minimum, x dense = fastest dense of the same dtype / this"
    )


def to_json(machine: Mapping[str, object], settings: Settings, rows: Sequence[Row]) -> dict[str, object]:
    """Everything that was measured and what it was measured on: `columns` names the entries of each row."""
    return {
        "machine": machine,
        "settings": asdict(settings),
        "geometric_mean": [_rounded(asdict(mean)) for mean in means(rows)],
        "columns": [field.name for field in fields(Row)],
        "rows": [_rounded(list(astuple(row))) for row in rows],
    }


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """One line per entry of a list, so that thousands of rows stay readable and their changes too."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
            lines = ",\n    ".join(json.dumps(entry) for entry in value)
            parts.append(f"  {json.dumps(key)}: [\n    {lines}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _mean(case: Case, tokens: int, sparsity: float, rows: Sequence[Row]) -> Mean:
    shapes = dict.fromkeys((row.n, row.k) for row in rows)
    best = [max(row.x_dense for row in rows if (row.n, row.k) == shape) for shape in shapes]
    names = dict.fromkeys(row.name for row in rows)
    kernels = {name: geometric_mean([row.x_dense for row in rows if row.name == name]) for name in names}
    return Mean(case, tokens, sparsity, len(shapes), geometric_mean(best), min(best), kernels)


def _rounded(value: object) -> object:
    """Floats to four digits: no clock here is better."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", min_width=len(title))
