"""What all matrices of a model gain together: the sum of their times, each as often as it occurs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from sparseinfer.bench.candidate import DENSE, OTHER, SPARSE
from sparseinfer.bench.families import Shape, named
from sparseinfer.bench.layer import Measurement
from sparseinfer.bench.report import Conditions, titled

OURS = "sparseinfer"


@dataclass(frozen=True)
class Total:
    """All matrices of a family at one number of tokens.

    dense_us   of the fastest dense product of torch for each matrix
    us         of the fastest kernel of this package, "sparseinfer", and of each other library's product
    """

    family: str
    conditions: Conditions
    tokens: int
    sparsity: float
    dense_us: float
    us: Mapping[str, float]

    def speed_up(self, name: str) -> float:
        return self.dense_us / self.us[name]


def totals(measured: Sequence[Measurement], layers: Sequence[str]) -> list[Total]:
    """Those of each family that `measured` has all shapes of, by family, conditions, tokens and sparsity."""
    cells: dict[tuple[Conditions, int, float], dict[Shape, list[Measurement]]] = {}
    for one in measured:
        cell = cells.setdefault((Conditions.of(one), one.tokens, one.sparsity), {})
        cell.setdefault((one.n, one.k), []).append(one)
    found = []
    for family, counts in named(tuple(layers)).items():
        for key in sorted(cells):
            by_shape = {shape: cells[key].get(shape, []) for shape in counts}
            if all(by_shape.values()):
                dense, us = _sums(by_shape, counts)
                found.append(Total(family, *key, dense, us))
    return found


def _sums(
    by_shape: Mapping[Shape, Sequence[Measurement]], counts: Mapping[Shape, int]
) -> tuple[float, dict[str, float]]:
    dense = 0.0
    us: dict[str, list[float]] = {}
    for shape, measured in by_shape.items():
        dense += counts[shape] * min(one.us for one in measured if one.kind == DENSE)
        ours = min(one.us for one in measured if one.kind == SPARSE)
        us.setdefault(OURS, []).append(counts[shape] * ours)
        for one in measured:
            if one.kind == OTHER:
                us.setdefault(one.name, []).append(counts[shape] * one.us)
    return dense, {name: sum(parts) for name, parts in us.items() if len(parts) == len(by_shape)}


def total_tables(measured: Sequence[Measurement], layers: Sequence[str]) -> list[Table]:
    """A table for each family and conditions: speed-up over dense by tokens, implementation and sparsity."""
    found = totals(measured, layers)
    tables = []
    for family, conditions in dict.fromkeys((one.family, one.conditions) for one in found):
        these = [one for one in found if (one.family, one.conditions) == (family, conditions)]
        sparsities = sorted({one.sparsity for one in these})
        table = titled(f"all matrices of {family}, x dense, {conditions}")
        table.add_column("m", justify="right")
        table.add_column("")
        for sparsity in sparsities:
            table.add_column(f"{sparsity:g}", justify="right")
        for tokens in sorted({one.tokens for one in these}):
            by_sparsity = {one.sparsity: one for one in these if one.tokens == tokens}
            for name in dict.fromkeys(name for one in by_sparsity.values() for name in one.us):
                line = (by_sparsity.get(sparsity) for sparsity in sparsities)
                table.add_row(
                    str(tokens),
                    name,
                    *(f"{one.speed_up(name):.2f}" if one and name in one.us else "" for one in line),
                )
        tables.append(table)
    return tables
