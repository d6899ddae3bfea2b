"""What the page shows of a content: names, numbers and bars, ready to be put into the template."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparseinfer.convert import LayerReport
from sparseinfer.report.content import Content

# In the order of bars and legends; each has a colour of its own in the style sheet.
DECISIONS = ("sparse", "prepacked", "2:4", "channels_last", "dense")
_UNITS = ("bytes", "KB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Tile:
    """One of the large numbers on top: what it is, its value, and what that is made of."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Bar:
    """A line of a bar chart. `width` is a fraction of the widest; `kind` a class of the style sheet."""

    label: str
    text: str
    width: float
    kind: str = ""


@dataclass(frozen=True)
class Part:
    """A segment of a stacked bar: its fraction of the whole line."""

    kind: str
    width: float
    text: str


@dataclass(frozen=True)
class Group:
    """Layers whose names differ only in numbers, with means and sums. Times are None without any."""

    name: str
    rows: Sequence[LayerReport]
    sparsity: float | None
    dense_us: float | None
    us: float | None

    @property
    def decisions(self) -> list[tuple[str, int]]:
        """Each decision, and how many layers have it."""
        counts = {kind: sum(row.decision == kind for row in self.rows) for kind in DECISIONS}
        return [(kind, count) for kind, count in counts.items() if count]

    @property
    def shape(self) -> str:
        shapes = dict.fromkeys(row.shape for row in self.rows if row.shape)
        return ", ".join(" × ".join(map(str, shape)) for shape in shapes)

    @property
    def speed_up(self) -> float | None:
        return self.dense_us / self.us if self.dense_us and self.us else None


def times_of(row: LayerReport) -> tuple[float, float] | None:
    """Microseconds of the best dense product and of what was chosen, for the most tokens; None if unknown."""
    if not row.dense_us or not math.isfinite(row.dense_us[-1]):
        return None
    chosen = row.sparse_us if row.decision == "sparse" and row.sparse_us else row.dense_us
    return (row.dense_us[-1], chosen[-1]) if math.isfinite(chosen[-1]) else None


def groups_of(rows: Iterable[LayerReport]) -> list[Group]:
    alike: dict[str, list[LayerReport]] = {}
    for row in rows:
        alike.setdefault(re.sub(r"\d+", "*", row.layer) or "(the model)", []).append(row)
    groups = []
    for name, members in alike.items():
        known = [row.sparsity for row in members if row.sparsity is not None]
        times = [pair for row in members if (pair := times_of(row))]
        dense, us = (sum(column) for column in zip(*times, strict=True)) if times else (None, None)
        groups.append(Group(name, members, sum(known) / len(known) if known else None, dense, us))
    return groups


def sparsity_of(content: Content) -> float | None:
    """Of the layers that convert looked at; where it is not known, of all weights in the files."""
    weights = [(math.prod(row.shape), row.sparsity) for row in content.layers if row.sparsity is not None]
    if not weights and content.summary is not None:
        weights = [
            (math.prod(t.shape), t.sparsity) for t in content.summary.tensors if t.sparsity is not None
        ]
    total = sum(size for size, _ in weights)
    return sum(size * zeros for size, zeros in weights) / total if total else None


def tiles_of(content: Content) -> list[Tile]:
    tiles = []
    if content.latencies:
        best = content.latencies[-1]
        compared = best.compared
        ms = f"{milliseconds(compared.dense.p50_ms)} → {milliseconds(compared.fast.p50_ms)}, {best.about}"
        tiles.append(Tile("as fast", f"{compared.speed_up:.2f}×", ms))
    if (zeros := sparsity_of(content)) is not None:
        sparse = sum(row.decision == "sparse" for row in content.layers)
        told = f"{sparse} of {len(content.layers)} layers run sparse" if content.layers else "of all weights"
        tiles.append(Tile("zeros", percent(zeros), told))
    if content.summary is not None and content.summary.dense_nbytes:
        small, dense = content.summary.nbytes, content.summary.dense_nbytes
        tiles.append(Tile("of the bytes", percent(small / dense), f"{size(dense)} → {size(small)} on disk"))
    if content.quality is not None and len(content.quality.steps) > 0:
        steps = list(content.quality.steps.values())
        told = f"{number(steps[0])} when dense" if len(steps) > 1 else ""
        tiles.append(Tile(content.quality.name, number(steps[-1]), told))
    return tiles


def time_parts(rows: Sequence[LayerReport]) -> list[tuple[str, str, list[Part]]]:
    """Two stacked bars, before and after: the time of all layers by what was decided for them."""
    sums: dict[str, list[float]] = {kind: [0.0, 0.0] for kind in DECISIONS}
    for row in rows:
        if pair := times_of(row):
            sums[row.decision][0] += pair[0]
            sums[row.decision][1] += pair[1]
    before, after = (sum(pair[i] for pair in sums.values()) for i in (0, 1))
    if not before:
        return []
    whole = max(before, after)
    return [
        (
            label,
            microseconds(total),
            [Part(kind, pair[i] / whole, microseconds(pair[i])) for kind, pair in sums.items() if pair[i]],
        )
        for i, (label, total) in enumerate((("dense", before), ("converted", after)))
    ]


def bars_of(values: Mapping[str, float], text: Mapping[str, str], kinds: Mapping[str, str]) -> list[Bar]:
    """A bar for each value, the widest of width 1."""
    top = max(values.values(), default=0.0)
    return [Bar(name, text[name], value / top if top else 0.0, kinds[name]) for name, value in values.items()]


def latency_bars(content: Content) -> list[tuple[str, str, list[Bar]]]:
    """For each input: what it is, the speed-up, and a bar for either model."""
    found = []
    for one in content.latencies:
        sides = {"dense": one.compared.dense, "converted": one.compared.fast}
        text = {
            name: f"{milliseconds(side.p50_ms)}, 99 % within {milliseconds(side.p99_ms)}"
            for name, side in sides.items()
        }
        bars = bars_of(
            {name: side.p50_ms for name, side in sides.items()},
            text,
            {"dense": "dense", "converted": "sparse"},
        )
        found.append((one.about, f"{one.compared.speed_up:.2f}×", bars))
    return found


def byte_bars(content: Content) -> list[Bar]:
    """Of the files, and of the layers in memory, each beside what it would be if dense."""
    values: dict[str, float] = {}
    kinds: dict[str, str] = {}
    if content.summary is not None:
        values |= {"file, dense": content.summary.dense_nbytes, "file": content.summary.nbytes}
    if content.layers:
        values["layers in memory, dense"] = sum(row.dense_nbytes for row in content.layers)
        values["layers in memory"] = sum(row.nbytes for row in content.layers)
    kinds = {name: "dense" if name.endswith("dense") else "sparse" for name in values}
    return bars_of(values, {name: size(value) for name, value in values.items()}, kinds)


def reasons_of(rows: Sequence[LayerReport]) -> list[tuple[str, str, int]]:
    """Decision, reason and number of layers, the most frequent first.

    What runs sparse does so because it is faster, so that its gains are told; of other layers whose reasons
    differ only in numbers, the first one's.
    """
    reasons: dict[tuple[str, str], str] = {}
    counts: dict[tuple[str, str], int] = {}
    gains = [
        dense / us
        for row in rows
        if row.decision == "sparse" and (pair := times_of(row))
        for dense, us in [pair]
    ]
    for row in rows:
        alike = re.sub(r"\d[\d.,]*(?:e[-+]?\d+)?", "", row.reason)
        reason = row.reason
        if row.decision == "sparse" and gains:
            alike, reason = "", _gains(gains)
        reasons.setdefault((row.decision, alike), reason)
        counts[row.decision, alike] = counts.get((row.decision, alike), 0) + 1
    ordered = sorted(counts, key=lambda key: (DECISIONS.index(key[0]), -counts[key]))
    return [(key[0], reasons[key], counts[key]) for key in ordered]


def _gains(gains: Sequence[float]) -> str:
    low, high = min(gains), max(gains)
    span = f"{low:.1f}×" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f}× to {high:.1f}×"
    return f"a kernel that skips zeros runs, {span} as fast as the best dense product"


def formats_of(content: Content) -> list[tuple[str, int, str, str]]:
    """Format, number of tensors, their bytes, and those over dense, of the files."""
    tensors = () if content.summary is None else content.summary.tensors
    found = []
    for name in dict.fromkeys(t.format for t in tensors):
        these = [t for t in tensors if t.format == name]
        small, dense = sum(t.nbytes for t in these), sum(t.dense_nbytes for t in these)
        found.append((name, len(these), size(small), percent(small / dense) if dense else ""))
    return found


def percent(fraction: float) -> str:
    digits = 0 if abs(100 * fraction - round(100 * fraction)) < 0.05 else 1
    return f"{100 * fraction:.{digits}f} %"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def milliseconds(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def microseconds(us: float) -> str:
    return milliseconds(us / 1e3) if us >= 1000 else f"{us:.3g} µs"


def size(nbytes: float) -> str:
    """In units of 1000, as disks are sold."""
    power = 0
    while nbytes >= 1000 and power < len(_UNITS) - 1:
        nbytes, power = nbytes / 1000, power + 1
    return f"{nbytes:.0f} {_UNITS[0]}" if power == 0 else f"{nbytes:.3g} {_UNITS[power]}"
