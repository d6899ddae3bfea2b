"""sparseinfer inspect: shows what is in the files of a model."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sparseinfer.cli._common import Commands, add_json, console, output
from sparseinfer.io.summary import Summary, Tensor, summary_of


def add(commands: Commands) -> None:
    parser = commands.add_parser("inspect", help="formats, sparsity and bytes of a model's files")
    parser.add_argument(
        "path", type=Path, metavar="FILE|DIR", help="a file of safetensors, or a folder of some"
    )
    parser.add_argument("--all", action="store_true", help="a line for each tensor, not for each kind")
    parser.add_argument("--plot", type=output, metavar="FILE", help="draw the sparsities (needs matplotlib)")
    add_json(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    summary, out = summary_of(options.path), console()
    out.print(table(summary, every=options.all))
    out.print(_histogram(summary))
    out.print(_total(summary), highlight=False, soft_wrap=True)
    if options.json:
        options.json.write_text(summary.to_json() + "\n")
    if options.plot:
        plot(summary, options.plot)
    return 0


def table(summary: Summary, *, every: bool = False) -> Table:
    """Tensors whose names differ only in numbers share a row, unless `every` has its own."""
    shown = Table(box=SIMPLE_HEAD)
    shown.add_column("tensors", overflow="fold")
    for name in ("count", "shape", "dtype", "format", "sparsity", "bytes", "of dense"):
        shown.add_column(name, justify="right")
    alike: dict[tuple[object, ...], list[Tensor]] = {}
    for t in summary.tensors:
        name = t.name if every else re.sub(r"\d+", "*", t.name)
        alike.setdefault((name, t.shape, t.dtype, t.format, t.stored), []).append(t)
    for (title, *_), group in alike.items():
        t = group[0]
        kind = t.format if t.stored == t.dtype else f"{t.format}, {t.stored}"
        shape = " x ".join(map(str, t.shape))
        shown.add_row(str(title), str(len(group)), shape, t.dtype, kind, _sparsity(group), *_bytes(group))
    return shown


def plot(summary: Summary, path: Path) -> None:
    """Draws the sparsity of each weight, in order. RuntimeError: matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError("plot: expected matplotlib, got none (pip install matplotlib)") from None
    weights = [t for t in summary.tensors if t.sparsity is not None]
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(weights)), [t.sparsity or 0 for t in weights], ".")
    axes.set(xlabel="weight", ylabel="sparsity", ylim=(-0.02, 1.02), title=Path(summary.files[0]).name)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _sparsity(tensors: Iterable[Tensor]) -> str:
    known = [t.sparsity for t in tensors if t.sparsity is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""


def _bytes(tensors: Iterable[Tensor]) -> tuple[str, str]:
    group = list(tensors)
    nbytes, dense = sum(t.nbytes for t in group), sum(t.dense_nbytes for t in group)
    return f"{nbytes:,}", f"{nbytes / dense:.3f}" if dense else ""


def _histogram(summary: Summary) -> Table:
    counts = summary.histogram()
    shown = Table(box=SIMPLE_HEAD)
    shown.add_column("sparsity")
    shown.add_column("weights", justify="right")
    shown.add_column("")
    for i, count in enumerate(counts):
        if count:
            bar = "█" * max(1, round(40 * count / max(counts)))
            shown.add_row(f"{i / 10:.1f} to {(i + 1) / 10:.1f}", f"{count:,}", bar)
    return shown


def _total(summary: Summary) -> str:
    lines = []
    if summary.model:
        converted = ", converted" if summary.converted else ""
        lines.append(f"a {summary.model}{converted}")
    lines.append(f"all: {' bytes, '.join(_bytes(summary.tensors))} of dense")
    if summary.sparse:
        lines.append(f"sparse weights: {' bytes, '.join(_bytes(summary.sparse))} of dense")
    return "\n".join(lines)
