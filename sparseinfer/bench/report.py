"""Formats the results of a layer benchmark as tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from rich.table import Table

from sparseinfer._timing import geometric_mean
from sparseinfer.bench.candidate import OTHER, SPARSE
from sparseinfer.bench.layer import Cell, Measurement
from sparseinfer.bench.settings import Settings


@dataclass(frozen=True, order=True)
class Conditions:
    """The conditions that all numbers of one table share."""

    dtype: str
    threads: int
    weights: str

    @classmethod
    def of(cls, cell: Cell) -> Conditions:
        return cls(cell.dtype, cell.threads, cell.weights)

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.dtype}, {threads}, {self.weights} weights"


@dataclass(frozen=True)
class Mean:
    """Speed-up over dense across shapes: mean and minimum of the best kernels, mean of every kernel."""

    conditions: Conditions
    tokens: int
    sparsity: float
    shapes: int
    x_dense: float
    least: float
    kernels: Mapping[str, float]


def means(measured: Iterable[Measurement]) -> list[Mean]:
    """One Mean per conditions, number of tokens and sparsity, sorted by these."""
    groups: dict[tuple[Conditions, int, float], list[Measurement]] = {}
    for one in measured:
        if one.kind == SPARSE:
            groups.setdefault((Conditions.of(one), one.tokens, one.sparsity), []).append(one)
    return [_mean(*key, groups[key]) for key in sorted(groups)]


def cell_table(cell: Sequence[Measurement]) -> Table:
    """All candidates of one cell, the fastest sparse one in bold."""
    first = cell[0]
    title = f"{first.n}×{first.k}  m = {first.tokens}  sparsity {first.sparsity:g}  {Conditions.of(first)}"
    table = titled(title)
    table.add_column("kernel")
    for name in ("us", "median us", "spread", "GFLOP/s", "eff GFLOP/s", "GB/s", "x dense"):
        table.add_column(name, justify="right")
    table.add_column("planned")
    best = max((one for one in cell if one.kind == SPARSE), key=lambda one: one.x_dense, default=None)
    for one in cell:
        rates = (f"{rate:.1f}" for rate in (one.gflops, one.eff_gflops, one.gbps))
        figures = [f"{one.us:.1f}", f"{one.median_us:.1f}", f"{one.spread:.0%}", *rates]
        planned = "yes" if one.planned else ""
        table.add_row(one.name, *figures, f"{one.x_dense:.2f}", planned, style="bold" if one is best else "")
    return table


def peer_tables(measured: Sequence[Measurement]) -> list[Table]:
    """Speed-up over dense of other libraries, geometric mean over the shapes, one table per conditions."""
    others: dict[Conditions, dict[tuple[int, str], dict[float, list[float]]]] = {}
    for one in measured:
        if one.kind == OTHER:
            lines = others.setdefault(Conditions.of(one), {})
            lines.setdefault((one.tokens, one.name), {}).setdefault(one.sparsity, []).append(one.x_dense)
    tables = []
    for conditions, lines in sorted(others.items()):
        sparsities = sorted({sparsity for line in lines.values() for sparsity in line})
        table = titled(f"other libraries, x dense, {conditions}")
        table.add_column("m", justify="right")
        table.add_column("")
        for sparsity in sparsities:
            table.add_column(f"{sparsity:g}", justify="right")
        for (tokens, name), line in sorted(lines.items(), key=lambda item: item[0][0]):
            figures = (f"{geometric_mean(line.get(sparsity, [])):.2f}" for sparsity in sparsities)
            table.add_row(str(tokens), name, *figures)
        tables.append(table)
    return tables


def summary_tables(measured: Sequence[Measurement]) -> list[Table]:
    """`means` as tables, one per conditions: the mean of the best kernels, in brackets the minimum."""
    all_means = means(measured)
    sparsities = sorted({mean.sparsity for mean in all_means})
    tables = []
    for conditions in dict.fromkeys(mean.conditions for mean in all_means):
        cells = {(mean.tokens, mean.sparsity): mean for mean in all_means if mean.conditions == conditions}
        table = titled(f"x dense (least), {conditions}")
        for name in ("m", *(f"{sparsity:g}" for sparsity in sparsities)):
            table.add_column(name, justify="right")
        for tokens in sorted({tokens for tokens, _ in cells}):
            line = (cells[tokens, sparsity] for sparsity in sparsities)
            table.add_row(str(tokens), *(f"{mean.x_dense:.2f} ({mean.least:.2f})" for mean in line))
        tables.append(table)
    return tables


def heading(machine: Mapping[str, object], settings: Settings) -> str:
    """Two lines to print above the tables: machine, versions, and how to read the numbers."""
    versions = machine["versions"]
    torch_version = versions["torch"] if isinstance(versions, Mapping) else "unknown"
    isas = ", ".join(settings.isas) or machine["isa"]
    return (
        f"{machine['cpu']}, {isas}, torch {torch_version}\n"
        "us is the minimum, x dense = fastest dense of the same dtype / this; planned: convert would time it"
    )


def to_json(
    machine: Mapping[str, object], settings: Settings, measured: Sequence[Measurement]
) -> dict[str, object]:
    """All measurements, settings and the machine, ready for JSON: `columns` names the entries of each row."""
    asked = {**asdict(settings), "peers": [peer.name for peer in settings.peers]}
    return {
        "machine": machine,
        "settings": asked,
        "geometric_mean": [_rounded(_mean_to_json(mean)) for mean in means(measured)],
        "columns": [field.name for field in fields(Measurement)],
        "rows": [_rounded(list(astuple(one))) for one in measured],
    }


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Writes one line per list entry, so that files with thousands of rows and their diffs stay readable."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
            lines = ",\n    ".join(json.dumps(entry) for entry in value)
            parts.append(f"  {json.dumps(key)}: [\n    {lines}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _mean(conditions: Conditions, tokens: int, sparsity: float, measured: Sequence[Measurement]) -> Mean:
    shapes = dict.fromkeys((one.n, one.k) for one in measured)
    best = [max(one.x_dense for one in measured if (one.n, one.k) == shape) for shape in shapes]
    kernels = {
        name: geometric_mean([one.x_dense for one in measured if one.name == name])
        for name in dict.fromkeys(one.name for one in measured)
    }
    return Mean(conditions, tokens, sparsity, len(shapes), geometric_mean(best), min(best), kernels)


def _mean_to_json(mean: Mean) -> dict[str, object]:
    """The conditions are called "case" there, as in the files that were written before."""
    return {"case" if name == "conditions" else name: value for name, value in asdict(mean).items()}


def _rounded(value: object) -> object:
    """Floats to four digits: no clock here is better."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def titled(title: str) -> Table:
    """An empty table."""
    return Table(title=title, title_justify="left", title_style="bold", min_width=len(title))
