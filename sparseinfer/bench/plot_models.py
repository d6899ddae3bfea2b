"""Charts of whole models: the time of each layer, and quality against latency."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseinfer.bench.plot import new_figure
from sparseinfer.bench.whole_model import Measurement


def plot_layers(one: Measurement, path: Path) -> None:
    """Bars for each layer: the best dense product and what was chosen, as convert timed them.

    Layers whose names differ in numbers only, and were decided alike, share bars: their mean, and in brackets
    how many they are. RuntimeError: matplotlib is not installed.
    """
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name, decision, dense_us, us in one.per_layer:
        groups.setdefault((re.sub(r"\d+", "*", name), decision), []).append((dense_us, us))
    figure = new_figure(9, 1.6 + 0.42 * len(groups), _title(one))
    axes: Any = figure.subplots()
    places = range(len(groups))
    means = [[sum(us) / len(us) for us in zip(*group, strict=True)] for group in groups.values()]
    axes.barh([i - 0.2 for i in places], [dense for dense, _ in means], 0.4, color="0.7", label="dense")
    axes.barh([i + 0.2 for i in places], [us for _, us in means], 0.4, color="tab:blue", label="chosen")
    for i, (dense, us) in enumerate(means):
        axes.annotate(f" {dense / us:.1f}×", (us, i + 0.2), va="center", fontsize="small")
    labels = [f"{name} ({len(group)}, {decision})" for (name, decision), group in groups.items()]
    axes.set_yticks(list(places), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel="microseconds")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def plot_quality(measured: Sequence[Measurement], path: Path, *, title: str = "") -> None:
    """Similarity to the dense model over latency, a line for each model, batch, dtype and threads.

    The dense model itself is a cross at similarity 1. RuntimeError: matplotlib is not installed.
    """
    lines: dict[tuple[str, int, str, int], list[Measurement]] = {}
    for one in measured:
        lines.setdefault((one.model, one.batch, one.dtype, one.threads), []).append(one)
    figure = new_figure(8, 5.5, title)
    axes: Any = figure.subplots()
    for (model, batch, dtype, threads), points in lines.items():
        points = sorted(points, key=lambda each: each.sparsity)
        name = f"{model}, batch {batch}, {dtype}, {threads} thread{'s' if threads > 1 else ''}"
        (line,) = axes.plot([p.sparse_ms for p in points], [p.similarity for p in points], "o-", label=name)
        for point in points:
            at = (point.sparse_ms, point.similarity)
            axes.annotate(
                f"{point.sparsity:g}", at, xytext=(4, 4), textcoords="offset points", fontsize="small"
            )
        dense_ms = min(point.dense_ms for point in points)
        axes.plot([dense_ms], [1.0], "x", color=line.get_color(), markersize=9)
    axes.set(xlabel="milliseconds of a call (× dense, ● converted, with its sparsity)", xscale="log")
    axes.set(ylabel="similarity to the dense model's result")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def _title(one: Measurement) -> str:
    return f"{one.model}, batch {one.batch}, sparsity {one.sparsity:g}, {one.dtype}, {one.threads} thread(s)"
