"""Charts of layers: speed-up over sparsity, and what was reached of the machine's rates (a roofline)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sparseinfer._rates import Rates
from sparseinfer._timing import geometric_mean
from sparseinfer.bench.bound import bound_us, peak
from sparseinfer.bench.candidate import DENSE, SPARSE
from sparseinfer.bench.layer import Measurement
from sparseinfer.bench.report import Conditions, Mean, means

_COLUMNS = 2
# Rates of reading that differ by less share a line of a roofline. Chosen: labels do not overlap.
_ALIKE = 1.25
_TICKS = (0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)


def new_figure(width: float, height: float, title: str = "") -> Any:
    """An empty figure. RuntimeError: matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError("plot: expected matplotlib, got none (pip install matplotlib)") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title)
    return figure


def plot(measured: Sequence[Measurement], path: Path, *, title: str = "", rates: Rates | None = None) -> None:
    """Draws the best sparse kernel's speed-up over the best dense one, the ideal 1/(1 − s) and break-even.

    With the machine's rates also, dotted, the speed-up that no kernel can exceed there (`bound_us`). One
    panel per dtype, number of threads and state of the weights. The file type follows the suffix of `path`.
    RuntimeError: matplotlib is not installed.
    """
    by_conditions: dict[Conditions, list[Mean]] = {}
    for mean in means(measured):
        by_conditions.setdefault(mean.conditions, []).append(mean)
    bounds = {} if rates is None else _bounds(measured, rates)

    def panel(axes: Any, conditions: Conditions) -> None:
        own = {key[1:]: bound for key, bound in bounds.items() if key[0] == conditions}
        _speed_ups(axes, by_conditions[conditions], own)

    _panels(list(by_conditions), panel, path, title)


def roofline(measured: Sequence[Measurement], path: Path, rates: Rates, *, title: str = "") -> None:
    """Draws GFLOP/s over flops per byte, of the fastest sparse kernel of each cell, under what limits them:
    the fastest unit for the dtype, and reading from each cache and from memory.

    Flops are those of weights that are not zero; bytes are weights as packed, x and y, once each.
    RuntimeError: matplotlib is not installed.
    """
    best: dict[Conditions, dict[tuple[int, ...], Measurement]] = {}
    for one in measured:
        if one.kind == SPARSE:
            cells = best.setdefault(Conditions.of(one), {})
            key = (one.n, one.k, one.tokens, round(one.sparsity * 1e6))
            cells[key] = min(cells.get(key, one), one, key=lambda each: each.us)

    def panel(axes: Any, conditions: Conditions) -> None:
        _roofs(axes, list(best[conditions].values()), conditions, rates)

    _panels(sorted(best), panel, path, title)


def _panels(
    conditions: Sequence[Conditions], draw: Callable[[Any, Conditions], None], path: Path, title: str
) -> None:
    columns = min(len(conditions), _COLUMNS)
    lines = math.ceil(len(conditions) / columns)
    figure = new_figure(7.5 * columns, 5 * lines, title)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for each, axes in zip(conditions, panels, strict=False):
        draw(axes, each)
        axes.set_title(str(each))
    for axes in panels[len(conditions) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=150 if len(conditions) == 1 else 110)


def _bounds(measured: Sequence[Measurement], rates: Rates) -> dict[tuple[Conditions, int, float], float]:
    """Geometric mean over the shapes of the best dense time over `bound_us`."""
    dense: dict[tuple[Conditions, int, float], dict[tuple[int, int], Measurement]] = {}
    for one in measured:
        if one.kind == DENSE:
            shapes = dense.setdefault((Conditions.of(one), one.tokens, one.sparsity), {})
            known = shapes.get((one.n, one.k), one)
            shapes[one.n, one.k] = min(known, one, key=lambda each: each.us)
    return {
        key: geometric_mean([one.us / bound_us(one, rates) for one in shapes.values()])
        for key, shapes in dense.items()
    }


def _speed_ups(axes: Any, drawn: Sequence[Mean], bounds: Mapping[tuple[int, float], float]) -> None:
    low, high = min(mean.sparsity for mean in drawn), max(mean.sparsity for mean in drawn)
    grid = [low + i * (high - low) / 200 for i in range(201)]
    axes.plot(grid, [1 / (1 - s) for s in grid], "--", color="0.45", label="ideal 1/(1 − s)")
    for tokens in sorted({mean.tokens for mean in drawn}):
        x = [mean.sparsity for mean in drawn if mean.tokens == tokens]
        y = [mean.x_dense for mean in drawn if mean.tokens == tokens]
        (line,) = axes.plot(x, y, "o-", label=f"m = {tokens}")
        if bounds:
            label = f"bound, m = {tokens}"
            axes.plot(x, [bounds[tokens, s] for s in x], ":", color=line.get_color(), label=label)
        crossing = break_even(x, y)
        if crossing is not None:
            axes.plot(crossing, 1, "X", color=line.get_color(), markersize=11, zorder=3)
            axes.annotate(f"{crossing:.2f}", (crossing, 1), xytext=(4, -14), textcoords="offset points")
    axes.axhline(1, color="0.2", linewidth=1)
    axes.annotate("break-even", (high, 1), xytext=(0, 4), textcoords="offset points", ha="right")
    axes.set(xlabel="sparsity", ylabel="speed-up over the best dense", yscale="log")
    lowest = min(1.0, *(mean.x_dense for mean in drawn))
    highest = max(1.5 / (1 - high), *bounds.values(), *(mean.x_dense for mean in drawn))
    ticks = [tick for tick in _TICKS if 0.8 * lowest <= tick <= highest]
    axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _roofs(axes: Any, drawn: Sequence[Measurement], conditions: Conditions, rates: Rates) -> None:
    intensity = {id(one): one.gflops / one.gbps for one in drawn}
    top = 2 * peak(conditions.dtype, conditions.threads, rates)
    left, right = min(intensity.values()) / 2, max(intensity.values()) * 2
    before = math.inf
    for nbytes, rate in rates.measured:
        if rate > before / _ALIKE:
            continue
        before, gbps = rate, rate * conditions.threads
        size = f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"
        end = min(right, max(left, top / gbps))
        axes.plot([left, end], [left * gbps, end * gbps], color="0.7", linewidth=1)
        if left * gbps < top:
            axes.annotate(f"from {size}", (left * 1.02, left * gbps), fontsize="x-small", color="0.4")
    if math.isfinite(top):
        axes.axhline(top, color="0.2", linewidth=1, label=f"{top:.0f} GFLOP/s, the unit's rate")
    for tokens in sorted({one.tokens for one in drawn}):
        points = [one for one in drawn if one.tokens == tokens]
        axes.plot(
            [intensity[id(one)] for one in points],
            [one.gflops for one in points],
            "o",
            alpha=0.7,
            label=f"m = {tokens}",
        )
    axes.set(xlabel="flops per byte", ylabel="GFLOP/s", xscale="log", yscale="log", xlim=(left, right))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def break_even(sparsities: Sequence[float], speed_ups: Sequence[float]) -> float | None:
    """The lowest sparsity where the line rises through 1, read on a log axis; None where it never does."""
    for (s0, y0), (s1, y1) in pairwise(zip(sparsities, speed_ups, strict=True)):
        if y0 < 1 <= y1:
            return s0 - math.log(y0) / math.log(y1 / y0) * (s1 - s0)
    return None
