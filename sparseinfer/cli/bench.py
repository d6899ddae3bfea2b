"""sparseinfer bench: times one linear layer or whole models, sparse against dense."""

from __future__ import annotations

import argparse

from sparseinfer._machine import describe_machine
from sparseinfer.bench import layer, report, whole_model
from sparseinfer.bench.plot import plot
from sparseinfer.bench.settings import Settings
from sparseinfer.cli._common import Commands, add_json, console, output, progress_bar
from sparseinfer.cli._options import add_options, filled
from sparseinfer.ops import active_isa


def add(commands: Commands) -> None:
    parser = commands.add_parser("bench", help="time one linear layer or whole models, sparse against dense")
    add_options(parser, whole_model.ModelSettings)
    add_options(parser, Settings)
    parser.add_argument("--plot", type=output, metavar="FILE", help="draw the speed-ups (needs matplotlib)")
    parser.add_argument("--quiet", action="store_true", help="print the geometric means only")
    add_json(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    return _bench_models(options) if hasattr(options, "models") else _bench_layer(options)


def _bench_models(options: argparse.Namespace) -> int:
    settings = filled(whole_model.ModelSettings, options)
    machine, out = describe_machine(active_isa()), console()
    with progress_bar(out) as progress:
        task = progress.add_task("starting", total=None)
        measured = list(
            whole_model.run(settings, on_step=lambda text: progress.update(task, description=text))
        )
    out.print(f"{machine['cpu']}, {machine['isa']}", highlight=False)
    out.print(whole_model.table(measured))
    if options.json:
        report.write_json(options.json, whole_model.to_json(machine, measured))
    return 0


def _bench_layer(options: argparse.Namespace) -> int:
    settings = filled(Settings, options)
    machine, out = describe_machine(active_isa()), console()
    heading = report.heading(machine, settings)
    out.print(heading, highlight=False)
    with progress_bar(out) as progress:
        task = progress.add_task("measuring", total=settings.cell_count)

        def on_cell(cell: list[layer.Measurement]) -> None:
            progress.advance(task)
            if not options.quiet:
                out.print(report.cell_table(cell))

        measured = layer.run(settings, on_cell)
    for table in report.summary_tables(measured):
        out.print(table)
    if options.json:
        report.write_json(options.json, report.to_json(machine, settings, measured))
    if options.plot:
        plot(measured, options.plot, title=heading.splitlines()[0])
    return 0
