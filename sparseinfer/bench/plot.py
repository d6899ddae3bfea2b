"""Plots speed-up over sparsity: one chart per set of conditions, one line per number of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sparseinfer.bench.layer import Measurement
from sparseinfer.bench.report import Conditions, Mean, means

_COLUMNS = 2
_TICKS = (0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)


def plot(measured: Sequence[Measurement], path: Path, *, title: str = "") -> None:
    """Draws the best sparse kernel's speed-up over the best dense one, the ideal 1/(1 − s) and break-even.

    One panel per dtype, number of threads and state of the weights. The file type follows the suffix of
    `path`. Raises RuntimeError when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError("plot: expected matplotlib, got none (pip install matplotlib)") from None
    by_conditions: dict[Conditions, list[Mean]] = {}
    for mean in means(measured):
        by_conditions.setdefault(mean.conditions, []).append(mean)
    columns = min(len(by_conditions), _COLUMNS)
    lines = math.ceil(len(by_conditions) / columns)
    figure = Figure(figsize=(7.5 * columns, 5 * lines), layout="constrained")
    figure.suptitle(title)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for (conditions, drawn), axes in zip(by_conditions.items(), panels, strict=False):
        _panel(axes, drawn, str(conditions))
    for axes in panels[len(by_conditions) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=150 if len(by_conditions) == 1 else 110)


def _panel(axes: Any, drawn: Sequence[Mean], title: str) -> None:
    low, high = min(mean.sparsity for mean in drawn), max(mean.sparsity for mean in drawn)
    grid = [low + i * (high - low) / 200 for i in range(201)]
    axes.plot(grid, [1 / (1 - s) for s in grid], "--", color="0.45", label="ideal 1/(1 − s)")
    for tokens in sorted({mean.tokens for mean in drawn}):
        x = [mean.sparsity for mean in drawn if mean.tokens == tokens]
        y = [mean.x_dense for mean in drawn if mean.tokens == tokens]
        (line,) = axes.plot(x, y, "o-", label=f"m = {tokens}")
        crossing = break_even(x, y)
        if crossing is not None:
            axes.plot(crossing, 1, "X", color=line.get_color(), markersize=11, zorder=3)
            axes.annotate(f"{crossing:.2f}", (crossing, 1), xytext=(4, -14), textcoords="offset points")
    axes.axhline(1, color="0.2", linewidth=1)
    axes.annotate("break-even", (high, 1), xytext=(0, 4), textcoords="offset points", ha="right")
    axes.set(xlabel="sparsity", ylabel="speed-up over the best dense", yscale="log", title=title)
    lowest = min(1.0, *(mean.x_dense for mean in drawn))
    ticks = [tick for tick in _TICKS if 0.8 * lowest <= tick <= 1.5 / (1 - high)]
    axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def break_even(sparsities: Sequence[float], speed_ups: Sequence[float]) -> float | None:
    """The lowest sparsity where the line rises through 1, read on a log axis; None where it never does."""
    for (s0, y0), (s1, y1) in pairwise(zip(sparsities, speed_ups, strict=True)):
        if y0 < 1 <= y1:
            return s0 - math.log(y0) / math.log(y1 / y0) * (s1 - s0)
    return None
