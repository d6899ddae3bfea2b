"""sparseinfer bench: times one linear layer or whole models, sparse against dense."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from sparseinfer._machine import describe_machine
from sparseinfer._rates import rates
from sparseinfer._tables import as_markdown
from sparseinfer.bench import layer, models, report, totals, whole_model
from sparseinfer.bench.peers.registry import Peers
from sparseinfer.bench.plot import plot, roofline
from sparseinfer.bench.plot_models import plot_layers, plot_quality
from sparseinfer.bench.settings import Settings
from sparseinfer.bench.whole_settings import ModelSettings
from sparseinfer.cli._common import Commands, add_json, console, output, progress_bar
from sparseinfer.cli._options import add_options, filled
from sparseinfer.hub.timed import timed_model
from sparseinfer.ops import active_isa


def add(commands: Commands) -> None:
    parser = commands.add_parser("bench", help="time one linear layer or whole models, sparse against dense")
    add_options(parser, ModelSettings)
    add_options(parser, Settings)
    parser.add_argument(
        "--plot",
        type=_chart,
        metavar="FILE|DIR",
        help="draw the speed-ups, of --model quality over latency; into a folder all charts",
    )
    parser.add_argument("--markdown", type=output, metavar="FILE", help="write the summary as Markdown")
    parser.add_argument("--quiet", action="store_true", help="print the geometric means only")
    add_json(parser)
    parser.set_defaults(command=_run)


def _chart(text: str) -> Path:
    return Path(text) if Path(text).is_dir() else output(text)


def _run(options: argparse.Namespace) -> int:
    return _bench_models(options) if hasattr(options, "models") else _bench_layer(options)


def _bench_models(options: argparse.Namespace) -> int:
    settings = filled(ModelSettings, options)
    machine, out = describe_machine(active_isa()), console()
    measured = []
    with Peers(settings.peers) as peers, progress_bar(out) as progress:
        machine = _with_versions(machine, peers)
        parts = list(_parts(settings, pruned=hasattr(options, "sparsities")))
        task = progress.add_task("starting", total=sum(part.row_count for part in parts))

        def on_step(text: str) -> None:
            progress.update(task, description=text)

        for part in parts:
            for one in whole_model.run(part, on_step, _model, peers):
                measured.append(one)
                progress.advance(task)
                if options.json:  # what there is, should a later one fail
                    report.write_json(options.json, whole_model.to_json(machine, measured))
    heading = f"{machine['cpu']}, {machine['isa']}"
    out.print(heading, highlight=False)
    tables = [whole_model.table(measured), *filter(None, [whole_model.peer_table(measured)])]
    for table in tables:
        out.print(table)
    if options.markdown:
        _write_markdown(options.markdown, heading, tables)
    if options.plot:
        folder = options.plot.is_dir()
        plot_quality(measured, options.plot / "quality.svg" if folder else options.plot, title=heading)
        for one in measured if folder else []:
            if one.per_layer:
                plot_layers(one, options.plot / _file_name(one))
    return 0


def _parts(settings: ModelSettings, *, pruned: bool) -> Iterable[ModelSettings]:
    """One for each model; a folder is measured as it is unless it shall be `pruned`."""
    for name in settings.models:
        as_it_is = name not in models.MODELS and not pruned
        yield replace(settings, models=(name,), sparsities=(0.0,) if as_it_is else settings.sparsities)


def _with_versions(machine: Mapping[str, object], peers: Peers) -> dict[str, object]:
    """The machine, with the engines' versions beside the others."""
    known = machine["versions"]
    return {**machine, "versions": {**(known if isinstance(known, dict) else {}), **peers.versions}}


def _model(name: str) -> models.Model:
    return models.MODELS[name] if name in models.MODELS else timed_model(Path(name))


def _file_name(one: whole_model.Measurement) -> str:
    parts = (Path(one.model).name, f"b{one.batch}", f"{one.sparsity:g}", one.dtype, f"t{one.threads}")
    return f"layers_{'_'.join(parts)}.svg"


def _write_markdown(path: Path, heading: str, tables: Iterable[Table]) -> None:
    path.write_text("\n".join([f"{heading}\n", *map(as_markdown, tables)]), encoding="utf-8")


def _bench_layer(options: argparse.Namespace) -> int:
    settings = filled(Settings, options)
    machine, out = describe_machine(active_isa()), console()
    heading = report.heading(machine, settings)
    out.print(heading, highlight=False)
    measured: list[layer.Measurement] = []
    with Peers(settings.peers) as peers, progress_bar(out) as progress:
        machine = _with_versions(machine, peers)
        task = progress.add_task("measuring", total=settings.cell_count)

        def on_cell(cell: list[layer.Measurement]) -> None:
            measured.extend(cell)
            progress.advance(task)
            if not options.quiet:
                out.print(report.cell_table(cell))
            if options.json:  # what there is, should a later one fail
                report.write_json(options.json, report.to_json(machine, settings, measured))

        layer.run(settings, on_cell, peers)
    tables = [
        *report.summary_tables(measured),
        *report.peer_tables(measured),
        *totals.total_tables(measured, settings.layers),
    ]
    for table in tables:
        out.print(table)
    title = heading.splitlines()[0]
    if options.markdown:
        _write_markdown(options.markdown, title, tables)
    if options.plot:
        known, folder = rates(active_isa()), options.plot.is_dir()
        path = options.plot / "speedup.svg" if folder else options.plot
        plot(measured, path, title=title, rates=known)
        if folder:
            roofline(measured, options.plot / "roofline.svg", known, title=title)
    return 0
